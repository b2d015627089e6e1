"""Several processes: they learn what one process learns from all their episodes, and leave the same files behind.

Two processes are started once for all tests of this file, as `torchrun` would, and talk over gloo; that takes most of
the time (about 30 s on one idle core).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from miniature import TINY, tiny_bank, tiny_painter
from tiny import tiny_network
from torch import nn

from mvg_core.network.checkpoint import load_network
from mvg_core.network.config import NetworkConfig
from mvg_core.network.errors import CheckpointError
from mvg_core.training import distributed
from mvg_core.training.checkpoints import same_step_everywhere
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import KINDS, EpisodeConfig
from mvg_core.training.objective import HybridConfig
from mvg_core.training.stream import EpisodeStream
from mvg_core.training.trainer import HybridTrainer
from mvg_core.training.validation import HybridEvaluator

TINY_VIT = NetworkConfig(architecture="vit", size=32, widths=(16,), heads=2, depth=3, mlp_ratio=2.0, patch=8,
                         position_grid=4, merge_after=1, feature_blocks=(0, 2), decoder_width=4)
COMPACT = TrainingConfig(
    episodes=EpisodeConfig(size=32),
    objective=HybridConfig(masked_share={kind: 0.0 if kind == "segmentation" else 0.5 for kind in KINDS}),
    batch=2, iterations=4, epoch_length=2, warm_up=3, ema=0.5, precision="fp32", validation_episodes=2, report_every=1)
VIT = dataclasses.replace(COMPACT, episodes=EpisodeConfig(size=32, prompts=(1.0,)), parallel="fsdp", layer_decay=0.8,
                          activation_checkpointing=True)


def make_trainer(out: Path, config: TrainingConfig) -> HybridTrainer:
    # Whatever other processes begin with, the weights of process 0 count.
    seed = distributed.rank()
    network = tiny_network(TINY_VIT, seed) if config.activation_checkpointing else tiny_painter(TINY, seed)
    validator = HybridEvaluator(network, tiny_bank(), config)
    return HybridTrainer(network, tiny_bank(), config, out, validator=validator)


def trace_of(trainer: HybridTrainer, until: int = 100) -> list[dict[str, float]]:
    """What every step cost."""
    trace: list[dict[str, float]] = []

    def note(engine: HybridTrainer) -> None:
        trace.append(engine.state.output[0])
        if engine.state.iteration == until:
            raise KeyboardInterrupt

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    with contextlib.suppress(KeyboardInterrupt):
        trainer.run()
    return trace


def gradient_of_an_earlier_draw(trainer: HybridTrainer) -> list[float | None]:
    """What is known of the gradient before the last draw of a step, by weight."""
    learning = trainer.learner
    draws = next(iter(EpisodeStream(tiny_bank(), trainer.config, rank=distributed.rank())))
    (batch,) = learning._with_hidden(draws, 0)
    with distributed.gradients(learning.objective, exchanged=False):
        learning._backward(batch, None)
    return [None if p.grad is None else float(p.grad.abs().sum()) for p in trainer.painter.parameters()]


def play(out: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    device = distributed.start()
    told: dict[str, Any] = {"device": str(device), "backend": torch.distributed.get_backend()}
    told["compact"] = trace_of(make_trainer(out / "compact", COMPACT))
    told["cut"] = trace_of(make_trainer(out / "vit", VIT), until=3)  # its checkpoint is that of step 2
    trainer = make_trainer(out / "vit", VIT)
    weight = dict(trainer.painter.named_parameters())["blocks.1.mlp.fc1.weight"]
    told["shares"] = [list(weight.shape), list(weight.to_local().shape)]  # type: ignore[operator]
    told["vit"] = trace_of(trainer)
    told["best"] = trainer.best
    told["early_split"] = gradient_of_an_earlier_draw(make_trainer(out / "split", VIT))
    told["early_whole"] = gradient_of_an_earlier_draw(make_trainer(out / "whole", COMPACT))
    (episodes,) = next(iter(EpisodeStream(tiny_bank(), COMPACT, rank=distributed.rank())))
    told["episodes"] = float(episodes.images.sum())
    told["agreed"] = distributed.agreed(f"process {distributed.rank()}")
    try:
        same_step_everywhere(distributed.rank(), out)
    except RuntimeError as error:
        told["error"] = str(error)
    (out / f"{distributed.rank()}.json").write_text(json.dumps(told))
    distributed.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    out = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path(__file__).parents[1]}"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(out)],
                         env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)]
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-6000:]
    return out


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict[str, float]], HybridTrainer]]:
    """One process that draws what the two draw together."""
    found = {}
    for name, config in (("compact", COMPACT), ("vit", VIT)):
        trainer = make_trainer(tmp_path_factory.mktemp(name), dataclasses.replace(config, accumulate=2))
        found[name] = trace_of(trainer), trainer
    return found


def test_processes_meet_on_the_cpu_and_draw_different_episodes(told):
    assert [(each["device"], each["backend"]) for each in told] == [("cpu", "gloo")] * 2
    assert told[0]["episodes"] != told[1]["episodes"]
    assert [each["agreed"] for each in told] == ["process 0"] * 2


def test_several_processes_learn_what_one_learns_from_all_their_episodes(folder, told, alone):
    expected, trainer = alone["compact"]
    for each in told:
        for found, wanted in zip(each["compact"], expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    stored = torch.load(folder / "compact" / "last.pt", weights_only=True)
    for name, value in trainer.painter.named_parameters():
        torch.testing.assert_close(stored["network"][name], value.detach(), rtol=1e-5, atol=1e-5)


def test_a_split_network_learns_what_a_whole_one_learns_and_resumes(folder, told, alone):
    expected, trainer = alone["vit"]
    for each in told:
        for found, wanted in zip([*each["cut"][:2], *each["vit"]], expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        assert each["cut"][2] == pytest.approx(each["vit"][0], rel=1e-6)
        assert each["best"] == pytest.approx(trainer.best, rel=1e-4)
        assert each["shares"] == [[32, 16], [16, 16]]


def test_gradients_are_exchanged_once_a_step_however_many_draws_it_has(told):
    assert all(set(each["early_split"]) == {None} for each in told)  # nothing was gathered yet
    assert told[0]["early_whole"] != told[1]["early_whole"]  # each has its own


def test_weights_of_a_split_network_load_in_one_process(folder, alone):
    _, trainer = alone["vit"]
    for file in ("weights.pt", "best.pt"):
        network = load_network(folder / "vit" / file)
        assert network.config == TINY_VIT
    for name, value in load_network(folder / "vit" / "weights.pt").named_parameters():
        wanted = dict(trainer.average.module.named_parameters())[name]
        torch.testing.assert_close(value, wanted.detach().half().float(), rtol=2e-3, atol=1e-4)


def test_one_process_goes_on_where_two_ended(folder):
    longer = dataclasses.replace(VIT, iterations=6, parallel="ddp", accumulate=2)
    with pytest.raises(CheckpointError, match=r"2 draws a step \(accumulate x processes\) instead of 1: use the same"):
        make_trainer(folder / "vit", dataclasses.replace(longer, accumulate=1))
    trainer = make_trainer(folder / "vit", longer)
    assert trainer.first == 4
    stored = torch.load(folder / "vit" / "last.pt", weights_only=True)
    moments = trainer.optimizer.state_dict()["state"]
    assert len(moments) == len(list(trainer.painter.parameters()))
    for number, own in moments.items():
        assert torch.equal(own["exp_avg"], stored["optimizer"]["state"][number]["exp_avg"])
    assert len(trace_of(trainer)) == 2


def test_processes_that_see_different_folders_are_told(told):
    assert all("steps [0, 1]" in each["error"] and "same folder" in each["error"] for each in told)


def test_only_one_process_writes_the_record(folder):
    for name, steps in (("record", [1, 2, 3, 4]), ("validation", [2, 4])):
        for run in ("compact", "vit"):
            lines = (folder / run / f"{name}.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines][: len(steps)] == steps


def test_a_network_that_is_wrapped_already_is_refused(tmp_path):
    class Wrapped(nn.Module):
        module = None

    with pytest.raises(ValueError, match=r"got Wrapped: the trainer\s+wraps it for several processes itself"):
        HybridTrainer(Wrapped(), tiny_bank(), COMPACT, tmp_path)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert distributed.start("cpu") == torch.device("cpu")
    assert (distributed.rank(), distributed.n_processes()) == (0, 1)
    network = nn.Linear(2, 2)
    assert distributed.prepare(network, "fsdp", "cpu") is network


if __name__ == "__main__":
    play(Path(sys.argv[1]))
