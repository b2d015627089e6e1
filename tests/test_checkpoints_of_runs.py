"""The folder of a run: resumed, never half written, never mixed up with another run's."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import resource
from pathlib import Path

import pytest
import torch
from miniature import tiny_bank, tiny_painter
from test_trainer import CONFIG, make_trainer, run_and_trace
from torch import Tensor

from mvg_core.network.checkpoint import load_network
from mvg_core.network.errors import CheckpointError
from mvg_core.training.checkpoints import RunFolder
from mvg_core.training.trainer import HybridTrainer
from mvg_core.training.validation import EpisodeMean, HybridEvaluator

SHORT = dataclasses.replace(CONFIG, iterations=4, epoch_length=2, validation_episodes=1, batch=1, warm_up=0)


def validated(out: Path, scores: list[float], monkeypatch: pytest.MonkeyPatch, **changes: object) -> HybridTrainer:
    """A trainer whose validations give these scores, one after the other."""
    config = dataclasses.replace(SHORT, **changes)  # type: ignore[arg-type]
    coming = iter(scores)
    monkeypatch.setattr(EpisodeMean, "compute", lambda self: next(coming) if self.name == "score" else 0.0)
    return HybridTrainer(tiny_painter(), tiny_bank(), config, out,
                         validator=HybridEvaluator(tiny_painter(), tiny_bank(), config))


def averaged(trainer: HybridTrainer) -> dict[str, Tensor]:
    return {name: value.detach().half().float() for name, value in trainer.average.module.named_parameters()}


def holds(path: Path, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in load_network(path).named_parameters())


# --- the best weights ---


def test_the_best_weights_are_never_replaced_by_worse_ones(tmp_path, monkeypatch):
    first = validated(tmp_path, [0.5, 0.9], monkeypatch)
    first.run()
    best = averaged(first)
    assert holds(tmp_path / "best.pt", best)
    assert first.best == {"score": 0.9, "step": 4, "since": 0}
    # Resumed: worse twice, then better.
    second = validated(tmp_path, [0.7, 0.8], monkeypatch, iterations=8)
    assert second.best["score"] == 0.9
    assert second.validator is not None
    assert (second.validator.state.best_metric, second.validator.state.best_metric_epoch) == (0.9, 2)
    second.run()
    assert holds(tmp_path / "best.pt", best)
    assert not holds(tmp_path / "weights.pt", best)
    assert second.best == {"score": 0.9, "step": 4, "since": 2}
    third = validated(tmp_path, [0.95, float("nan")], monkeypatch, iterations=12)
    third.run()
    assert not holds(tmp_path / "best.pt", best)
    assert third.best == {"score": 0.95, "step": 10, "since": 1}
    assert (third.state.best_metric, third.state.best_metric_epoch) == (0.95, 5)
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("score")) for line in lines] == [
        (2, 0.5), (4, 0.9), (6, 0.7), (8, 0.8), (10, 0.95), (12, None)]


def test_a_validator_that_is_run_by_itself_changes_nothing_of_the_run(tmp_path, monkeypatch):
    trainer = validated(tmp_path, [0.5], monkeypatch)
    assert trainer.validator is not None
    trainer.validator.run()
    assert trainer.validator.state.metrics["score"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["panels"]
    assert trainer.best["step"] == 0


def test_the_averaged_weights_are_those_that_are_validated(tmp_path, monkeypatch):
    trainer = validated(tmp_path, [0.5, 0.9], monkeypatch)
    assert trainer.validator is not None
    assert trainer.validator.network is trainer.average.module
    trainer.run()
    assert sorted(path.name for path in (tmp_path / "panels").iterdir()) == ["step_000002.png", "step_000004.png"]


def test_training_ends_when_patience_is_over_and_stays_ended(tmp_path, monkeypatch, capsys):
    trainer = validated(tmp_path, [0.5, 0.4, 0.3], monkeypatch, iterations=100, patience=2)
    trainer.run()
    assert trainer.state.iteration == 6
    assert "no better score in 2 validations: the best was at step 2, training ends" in capsys.readouterr().out
    again = validated(tmp_path, [], monkeypatch, iterations=100, patience=2)
    assert run_and_trace(again) == {}


# --- no space ---


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(tmp_path, monkeypatch, caplog):
    make_trainer(tmp_path, dataclasses.replace(SHORT, iterations=2)).run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError) as caught:
            make_trainer(tmp_path, SHORT).run()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []  # said once
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'weights.pt'} could not be written (No space left on device); ")
    assert "weights.pt is still the one before. Make space" in message
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "record.jsonl"}
    assert after == {name: content for name, content in before.items() if name != "record.jsonl"}
    resumed = make_trainer(tmp_path, SHORT)
    assert sorted(run_and_trace(resumed)) == [3, 4]


@pytest.mark.skipif(os.name != "posix", reason="limits are those of POSIX")
def test_a_file_that_the_system_cuts_off_is_one_line_and_keeps_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_last({"step": torch.tensor(1)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"last\.pt could not be written \(File too large\)") as caught:
            folder.write_last({"step": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert torch.load(folder.last, weights_only=True)["step"] == 1


def test_a_record_that_cannot_be_written_is_one_line(tmp_path):
    trainer = make_trainer(tmp_path, SHORT)
    (tmp_path / "record.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"record\.jsonl could not be written \(Is a directory\)"):
        trainer.run()


def test_the_checkpoint_is_written_after_the_weights(tmp_path, monkeypatch):
    trainer, written = make_trainer(tmp_path, SHORT), []
    honest = os.replace

    def note(source: Path, target: Path) -> None:
        honest(source, target)
        written.append(Path(target).name)

    monkeypatch.setattr(os, "replace", note)
    trainer.run()
    assert written == ["weights.pt", "last.pt"] * 2


def test_nothing_is_said_to_be_kept_where_there_was_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="no file was left behind"):
        RunFolder(tmp_path / "new").write_last({})
    assert list((tmp_path / "new").iterdir()) == []


# --- other runs ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    make_trainer(out, dataclasses.replace(SHORT, iterations=2)).run()
    return out


def test_a_run_with_another_configuration_is_refused(finished):
    other = dataclasses.replace(SHORT, learning_rate=1.0, episodes=dataclasses.replace(SHORT.episodes, near=0.1))
    with pytest.raises(CheckpointError) as caught:
        make_trainer(finished, other)
    message = str(caught.value)
    assert message.startswith(f"{finished / 'last.pt'} belongs to another run, with episodes.near 0.5 instead of 0.1; "
                              "learning_rate 0.001 instead of 1.0: use the same configuration to go on")
    assert "\n" not in message


def test_length_and_cost_of_a_run_may_change(finished):
    free = dataclasses.replace(SHORT, iterations=9, epoch_length=3, precision="bf16", report_every=1, patience=3)
    assert make_trainer(finished, free).first == 2


def test_a_checkpoint_from_before_fields_were_renamed_is_resumed(finished, tmp_path):
    stored = torch.load(finished / "last.pt", weights_only=True)
    config = json.loads(stored["config"])
    config["mixed_precision"] = config.pop("precision") != "fp32"
    config["checkpoint_every"] = config.pop("epoch_length")
    for name in ("accumulate", "layer_decay", "activation_checkpointing", "compile", "parallel", "validation_episodes",
                 "patience"):
        del config[name]
    for group in stored["optimizer"]["param_groups"]:
        del group["rate_scale"]
    del stored["scaler"], stored["best"]
    torch.save({**stored, "config": json.dumps(config)}, tmp_path / "last.pt")
    old, new = make_trainer(tmp_path, SHORT), make_trainer(finished, SHORT)
    assert old.first == 2
    assert run_and_trace(old) == run_and_trace(new)


@pytest.mark.parametrize(("content", "message"), [
    ({"step": 3}, r"last\.pt is no checkpoint of a run: it needs \['average', 'config', 'network', "),
    (dict.fromkeys(("network", "average", "optimizer", "step"), 0) | {"config": "{"},
     r"last\.pt was written by another version"),
    (dict.fromkeys(("network", "average", "optimizer", "step"), 0) | {"config": '{"colour": 1}'},
     r"written by another version: training configuration has unknown fields \['colour'\]"),
])
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=message):
        make_trainer(tmp_path, SHORT)


def test_weights_of_another_shape_are_refused(finished, tmp_path):
    stored = torch.load(finished / "last.pt", weights_only=True)
    name = "mix1.correct.weight"
    stored["network"][name] = stored["network"][name][:1]
    torch.save(stored, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt does not fit this network: .*size mismatch") as caught:
        make_trainer(tmp_path, SHORT)
    assert "\n" not in str(caught.value)
