"""The training loop: the same losses as ever, the same after a resume, and nothing lost when it is killed.

Run this file as a script to write the golden trace anew, after a change that is meant to change it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from miniature import TINY, tiny_bank, tiny_painter
from torch import Tensor

from mvg_core.network.checkpoint import load_network
from mvg_core.network.compact import CompactPainter
from mvg_core.network.errors import CheckpointError
from mvg_core.training import objective, recipe, trainer
from mvg_core.training.bank import SliceBank
from mvg_core.training.datasets import TrainingItem, TrainingSet
from mvg_core.training.episodes import KINDS, EpisodeConfig
from mvg_core.training.objective import HybridConfig
from mvg_core.training.optimizer import learning_rate, parameter_groups
from mvg_core.training.stream import EpisodeStream
from mvg_core.training.trainer import HybridTrainer, TrainingConfig

GOLDEN = Path(__file__).parent / "golden" / "loss_trace.json"
PARTS = ("loss", "segmentation", "image", "norm")
CONFIG = TrainingConfig(
    episodes=EpisodeConfig(size=32),
    objective=HybridConfig(masked_share={kind: 0.0 if kind == "segmentation" else 0.5 for kind in KINDS}),
    batch=4, iterations=8, learning_rate=1e-3, warm_up=3, ema=0.5, precision="fp32", epoch_length=4,
    report_every=2)


def make_trainer(out: Path, config: TrainingConfig = CONFIG) -> HybridTrainer:
    out.mkdir(exist_ok=True)
    return HybridTrainer(tiny_painter(), tiny_bank(), config, out)


def run_and_trace(training: HybridTrainer) -> dict[int, dict[str, float]]:
    """What every step cost, by its number."""
    trace: dict[int, dict[str, float]] = {}

    def note(engine: HybridTrainer) -> None:
        (costs,) = engine.state.output
        trace[engine.state.iteration] = dict(costs)

    training.add_event_handler(Events.ITERATION_COMPLETED, note)
    training.run()
    return trace


def weights_of(training: HybridTrainer) -> dict[str, Tensor]:
    parameters = dict(training.painter.named_parameters()) | {
        f"average.{name}": value for name, value in training.average.named_parameters()}
    return {name: value.detach().clone() for name, value in parameters.items()}


# --- the schedule ---


def test_learning_rate_worked_by_hand():
    config = TrainingConfig(learning_rate=2.0, warm_up=4, iterations=12, final_rate=0.1)
    rates = [learning_rate(step, config) for step in (0, 1, 3, 4, 6, 8, 12, 50)]
    # A quarter of the cosine is (1 + cos 45 deg) / 2 = 0.853553; half of it 0.5.
    assert rates == pytest.approx([0.5, 1.0, 2.0, 2.0, 2 * (0.1 + 0.9 * 0.8535534), 2 * 0.55, 0.2, 0.2])


def test_a_constant_rate_and_a_stage_without_warm_up():
    constant = TrainingConfig(learning_rate=2.0, warm_up=2, iterations=10, final_rate=1.0)
    assert [learning_rate(step, constant) for step in (0, 1, 2, 9)] == [1.0, 2.0, 2.0, 2.0]
    assert learning_rate(0, TrainingConfig(learning_rate=2.0, warm_up=0, iterations=10)) == 2.0
    assert learning_rate(5, TrainingConfig(learning_rate=2.0, warm_up=5, iterations=5)) == 2.0


def test_norms_biases_and_positions_are_not_decayed():
    network = CompactPainter(TINY)
    decayed, plain = parameter_groups(network, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, plain)]
    assert len(groups[0]) + len(groups[1]) == len(names)
    assert groups[0] | groups[1] == set(names.values())
    assert {"image_encoder.stem.weight", "read8.to_key.weight"} <= groups[0]
    assert {"image_encoder.stem.bias", "stage8.norm.weight", "image_encoder.position"} <= groups[1]


# --- episodes ---


def test_step_k_is_the_same_whenever_it_is_drawn():
    whole = list(EpisodeStream(tiny_bank(), CONFIG))
    assert len(whole) == 8
    late = list(EpisodeStream(tiny_bank(), CONFIG, first=5))
    assert len(late) == 3
    for (first,), (second,) in zip(whole[5:], late, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    assert not torch.equal(whole[0][0].palette, whole[1][0].palette)
    (other,) = next(iter(EpisodeStream(tiny_bank(), dataclasses.replace(CONFIG, seed=1))))
    assert not torch.equal(whole[0][0].palette, other.palette)


# --- the loop ---


def golden_trace(out: Path) -> list[dict[str, float]]:
    trace = run_and_trace(make_trainer(out, dataclasses.replace(CONFIG, iterations=20, epoch_length=20)))
    return [{name: float(f"{trace[step][name]:.6g}") for name in PARTS} for step in sorted(trace)]


def test_twenty_steps_cost_what_they_always_cost(tmp_path):
    # Other threads and processors sum in another order, which these steps amplify to about 1e-5 (losses).
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = golden_trace(tmp_path)
    assert len(found) == len(expected) == 20
    for name, tolerance in zip(PARTS, (1e-3, 1e-3, 1e-3, 1e-2), strict=True):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], rel=tolerance), name


def test_a_run_leaves_a_record_a_checkpoint_and_weights(tmp_path):
    training = make_trainer(tmp_path)
    trace = run_and_trace(training)
    assert sorted(trace) == list(range(1, 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "record.jsonl", "weights.pt"]
    record = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in record] == [2, 4, 6, 8]
    assert record[1]["loss"] == pytest.approx((trace[3]["loss"] + trace[4]["loss"]) / 2, abs=1e-4)
    assert record[0]["lr"] == pytest.approx(1e-3 * 2 / 3)
    shipped = load_network(tmp_path / "weights.pt")
    averaged = dict(training.average.module.named_parameters())
    for name, parameter in shipped.named_parameters():
        assert torch.equal(parameter, averaged[name].half().float()), name
    stored = torch.load(tmp_path / "last.pt", weights_only=True)
    assert stored["step"] == 8
    assert json.loads(stored["config"])["batch"] == 4


def test_the_average_is_moved_by_one_minus_its_decay(tmp_path):
    training = make_trainer(tmp_path, dataclasses.replace(CONFIG, iterations=3, ema=0.75))
    steps: list[dict[str, Tensor]] = []
    training.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(weights_of(engine)))
    training.run()
    name = "mix1.correct.weight"
    first, second, third = (step[name] for step in steps)
    assert not torch.equal(first, second)
    expected = first, 0.75 * first + 0.25 * second
    expected = *expected, 0.75 * expected[1] + 0.25 * third
    for step, average in zip(steps, expected, strict=True):
        torch.testing.assert_close(step[f"average.module.{name}"], average)


def test_a_bad_batch_does_not_poison_the_weights(tmp_path, monkeypatch):
    honest, calls = objective.hybrid_loss, []

    def sometimes_nan(*arguments: Any) -> dict[str, Tensor]:
        calls.append(1)
        parts = honest(*arguments)
        return {**parts, "loss": parts["loss"] * float("nan")} if len(calls) == 2 else parts

    monkeypatch.setattr(objective, "hybrid_loss", sometimes_nan)
    training = make_trainer(tmp_path, dataclasses.replace(CONFIG, iterations=3, report_every=3))
    steps: list[dict[str, Tensor]] = []
    training.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(weights_of(engine)))
    training.run()
    (line,) = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text(encoding="utf-8").splitlines()]
    assert line["skipped"] == 1
    assert line["loss"] > 0  # the mean of the steps that were taken
    first, second, third = steps
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second["mix1.correct.weight"], third["mix1.correct.weight"])
    assert all(torch.isfinite(value).all() for value in third.values())


def test_training_that_is_lost_ends_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "HOPELESS", 3)
    honest = objective.hybrid_loss

    def always_nan(*arguments: Any) -> dict[str, Tensor]:
        parts = honest(*arguments)
        return {**parts, "loss": parts["loss"] * float("nan")}

    monkeypatch.setattr(objective, "hybrid_loss", always_nan)
    with pytest.raises(RuntimeError, match="no finite gradient in 3 steps in a row, up to step 3: start again"):
        make_trainer(tmp_path).run()


def test_the_seed_also_fixes_what_handlers_draw(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    drawn: list[tuple[float, float]] = []
    for run in range(2):
        training = make_trainer(tmp_path / f"{run}", dataclasses.replace(CONFIG, iterations=1, seed=3))
        training.add_event_handler(Events.STARTED, lambda: drawn.append((np.random.random(), random.random())))
        training.run()
    assert drawn[0] == drawn[1]
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)


def test_max_epochs_takes_the_place_of_iterations(tmp_path):
    training = HybridTrainer(tiny_painter(), tiny_bank(), CONFIG, tmp_path, max_epochs=1)
    assert sorted(run_and_trace(training)) == [1, 2, 3, 4]
    assert training.state.max_epochs == 1


def test_a_bank_without_what_is_drawn_is_refused_at_once(tmp_path):
    rows = ~tiny_bank().has_image
    fields = [field.name for field in dataclasses.fields(SliceBank) if field.name not in ("names", "weights")]
    maps = SliceBank(**{name: getattr(tiny_bank(), name)[rows] for name in fields}, names=tiny_bank().names)
    config = dataclasses.replace(CONFIG, episodes=EpisodeConfig(size=32, families={"real": 1.0}))
    with pytest.raises(ValueError, match="no slice with an image has labels"):
        HybridTrainer(tiny_painter(), maps, config, tmp_path)


def test_mixed_precision_trains_too(tmp_path):
    trace = run_and_trace(make_trainer(tmp_path, dataclasses.replace(CONFIG, iterations=2, precision="bf16")))
    plain = run_and_trace(make_trainer(tmp_path / "plain", dataclasses.replace(CONFIG, iterations=2)))
    assert trace[1]["loss"] == pytest.approx(plain[1]["loss"], rel=0.05)
    assert trace[1]["loss"] != plain[1]["loss"]


# --- interrupted ---


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, dict[str, float]], dict[str, Tensor]]:
    training = make_trainer(tmp_path_factory.mktemp("uninterrupted"))
    return run_and_trace(training), weights_of(training)


class Interrupted(Exception):
    """Stands for whatever ends a run early."""


def interrupt_after(training: HybridTrainer, step: int) -> None:
    def stop(engine: HybridTrainer) -> None:
        if engine.state.iteration == step:
            raise Interrupted

    training.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(Interrupted):
        training.run()


def test_a_resumed_run_goes_on_as_if_it_had_not_been_interrupted(tmp_path, uninterrupted):
    expected, weights = uninterrupted
    interrupt_after(make_trainer(tmp_path), 6)  # the checkpoint is that of step 4
    with open(tmp_path / "record.jsonl", "a", encoding="utf-8") as record:
        record.write('{"step": 7, "lo')  # cut off
    resumed = make_trainer(tmp_path)
    trace = run_and_trace(resumed)
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]  # no step twice
    assert trace == {step: expected[step] for step in (5, 6, 7, 8)}
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(resumed).items())


def test_the_last_steps_are_kept_when_they_fill_no_interval(tmp_path, uninterrupted):
    expected, _ = uninterrupted
    short = dataclasses.replace(CONFIG, iterations=6)
    training, epochs = make_trainer(tmp_path, short), []
    training.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: epochs.append(engine.state.iteration))
    trace = run_and_trace(training)
    assert sorted(trace) == [1, 2, 3, 4, 5, 6]
    assert epochs == [4, 6]  # handlers of others are told of the short interval too
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 6
    # The learning rate follows the length of the run, so steps equal those of the longer run only in the warm-up.
    assert trace[3] == expected[3]


def test_a_run_can_be_prolonged_from_the_middle_of_an_interval(tmp_path):
    constant = dataclasses.replace(CONFIG, final_rate=1.0, iterations=10)
    expected = run_and_trace(make_trainer(tmp_path / "whole", constant))
    run_and_trace(make_trainer(tmp_path, dataclasses.replace(constant, iterations=6)))
    assert run_and_trace(make_trainer(tmp_path, constant)) == {step: expected[step] for step in (7, 8, 9, 10)}


def test_a_finished_run_is_left_as_it_is(tmp_path):
    make_trainer(tmp_path).run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for config in (CONFIG, dataclasses.replace(CONFIG, iterations=5)):
        again = make_trainer(tmp_path, config)
        assert run_and_trace(again) == {}
        assert again.state.iteration == 8
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_checkpoint_is_refused(tmp_path):
    make_trainer(tmp_path, dataclasses.replace(CONFIG, iterations=1)).run()
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be loaded safely"):
        make_trainer(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    make_trainer(tmp_path, dataclasses.replace(CONFIG, iterations=1)).run()
    other = CompactPainter(dataclasses.replace(TINY, slots=16))
    with pytest.raises(CheckpointError, match="slots 8 instead of 16"):
        HybridTrainer(other, tiny_bank(), CONFIG, tmp_path)


TO_BE_KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import torch
import test_trainer

saved, honest = [], torch.save

def half_a_save(state, file):
    saved.append(1)
    if len(saved) < 4:  # weights.pt and last.pt of step 4, weights.pt of step 8
        return honest(state, file)
    file.write(b"half of last.pt at step 8")
    file.flush()
    Path(sys.argv[1], "writing").touch()
    time.sleep(600)

torch.save = half_a_save
torch.set_num_threads(1)
test_trainer.make_trainer(Path(sys.argv[1])).run()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_a_run_killed_while_writing_resumes(tmp_path, uninterrupted):
    expected, weights = uninterrupted
    here = Path(__file__).parent
    # A session of its own, so that the process that draws episodes ends with it.
    process = subprocess.Popen([sys.executable, "-c", TO_BE_KILLED, str(tmp_path), str(here), str(here.parent)],
                               start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not (tmp_path / "writing").exists():
            assert process.poll() is None, (process.stderr.read() if process.stderr else b"").decode()
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    (half,) = tmp_path.glob(".last.pt.*")
    assert half.read_bytes() == b"half of last.pt at step 8"
    resumed = make_trainer(tmp_path)
    trace = run_and_trace(resumed)
    assert sorted(trace) == [5, 6, 7, 8]
    for step, parts in trace.items():
        assert parts == pytest.approx(expected[step], rel=1e-4)
    for name, value in weights_of(resumed).items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-4)


# --- the recipe ---


def test_segmentation_is_always_autoregressive_in_the_recipe():
    assert all(stage.objective.masked_share["segmentation"] == 0.0 for stage in recipe.STAGES.values())
    assert all(stage.episodes.size % 16 == 0 for stage in recipe.STAGES.values())
    assert set(recipe.DATASET_WEIGHTS) <= set(recipe.TRAINING_SETS)


def test_a_stage_runs_from_the_command_line_and_resumes(tmp_path, monkeypatch, capsys):
    tiny_bank().save(tmp_path / "training.npz")
    stages = {"start": CONFIG, "finish": dataclasses.replace(CONFIG, iterations=2, seed=1)}
    monkeypatch.setattr(recipe, "STAGES", stages)
    monkeypatch.setattr(recipe, "preset", lambda name: TINY)

    def command(stage: str, *more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["recipe", stage, "--data", "nowhere", "--packs", str(tmp_path), "--device",
                                          "cpu", "--out", str(tmp_path / stage), *more])
        recipe.main()
        return torch.load(tmp_path / stage / "last.pt", weights_only=True)["step"]

    assert command("start", "--iterations", "3") == 3
    assert command("start") == 8
    assert command("finish", "--initial", str(tmp_path / "start" / "weights.pt")) == 2
    assert '"step"' in (tmp_path / "finish" / "record.jsonl").read_text(encoding="utf-8")
    capsys.readouterr()


def test_slices_are_cut_once_and_kept(tmp_path, monkeypatch):
    cut: list[int] = []

    def read(folder: Path, split: str) -> TrainingSet:
        assert split == "validation"
        item = TrainingItem(folder.name, "subject", {}, None)
        return TrainingSet(folder.name, "MR", {}, {}, (item,) if folder.name.startswith("b") else ())

    def build(sets: list[TrainingSet]) -> SliceBank:
        cut.append(len(sets))
        return tiny_bank()

    monkeypatch.setattr(recipe, "read_training_set", read)
    monkeypatch.setattr(recipe, "build_bank", build)
    first = recipe.read_bank(tmp_path, tmp_path / "packs", "validation")
    again = recipe.read_bank(tmp_path, tmp_path / "packs", "validation")
    assert cut == [3]  # brain_fetal_atlas, brain_ms, breast_us; sets without items are left out
    assert (first.images == again.images).all()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(step) for step in golden_trace(Path(folder))) + "\n]\n")
