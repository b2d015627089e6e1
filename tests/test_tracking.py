"""Handlers of others, and what a run shows while it goes on."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from miniature import tiny_bank, tiny_painter
from monai.handlers.checkpoint_loader import CheckpointLoader
from monai.handlers.checkpoint_saver import CheckpointSaver
from monai.handlers.lr_schedule_handler import LrScheduleHandler
from monai.handlers.stats_handler import StatsHandler
from monai.handlers.tensorboard_handlers import TensorBoardStatsHandler
from monai.handlers.utils import from_engine
from monai.handlers.validation_handler import ValidationHandler
from rich.console import Console
from test_trainer import CONFIG, run_and_trace

from mvg_core.training import distributed, tracking
from mvg_core.training.tracking import Display, mlflow_handler, tensorboard_handler
from mvg_core.training.trainer import HybridTrainer
from mvg_core.training.validation import HybridEvaluator

SHORT = dataclasses.replace(CONFIG, iterations=4, epoch_length=2, validation_episodes=1, batch=1)


def make_trainer(out: Path, handlers: list[Any], **changes: Any) -> HybridTrainer:
    return HybridTrainer(tiny_painter(), tiny_bank(), SHORT, out, train_handlers=handlers, **changes)


# --- handlers of MONAI ---


def test_standard_handlers_of_a_bundle_work_together(tmp_path, capsys):
    network = tiny_painter()
    best = CheckpointSaver(str(tmp_path), {"network": network}, save_key_metric=True, key_metric_filename="key.pt")
    validator = HybridEvaluator(tiny_painter(), tiny_bank(), SHORT, val_handlers=[
        best, TensorBoardStatsHandler(log_dir=str(tmp_path / "val"), iteration_log=False)])
    saver = CheckpointSaver(str(tmp_path), {"network": network}, save_final=True, final_filename="final.pt")
    handlers = [ValidationHandler(2, validator), saver, tensorboard_handler(tmp_path / "train"),
                StatsHandler(name="defaults"),
                StatsHandler(name="usual", tag_name="train_loss", output_transform=from_engine(["loss"], first=True))]
    trainer = HybridTrainer(network, tiny_bank(), SHORT, tmp_path / "run", train_handlers=handlers)
    trace = run_and_trace(trainer)
    said = capsys.readouterr().out
    assert f"train_loss: {trace[1]['loss']:.4f}" in said
    assert f"loss: {trace[1]['loss']:.4f} norm: {trace[1]['norm']:.4f}" in said
    assert f"Epoch[2] Metrics -- dice: {trainer.state.metrics['dice']:.4f}" in said
    # Validated when the handler says, after the second epoch, and only then.
    assert sorted(path.name for path in (tmp_path / "run" / "panels").iterdir()) == ["step_000004.png"]
    assert (tmp_path / "run" / "best.pt").is_file()
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    assert torch.equal(final["mix1.correct.weight"], network.state_dict()["mix1.correct.weight"])
    assert (tmp_path / "key.pt").is_file()
    found = scalars(tmp_path / "train")
    assert [round(value, 4) for value in found["loss"]] == [round(trace[step]["loss"], 4) for step in (1, 2, 3, 4)]
    assert found["score"] == pytest.approx([trainer.best["score"]])
    assert scalars(tmp_path / "val")["score"] == pytest.approx([trainer.best["score"]])


def scalars(folder: Path) -> dict[str, list[float]]:
    """What TensorBoard reads from a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_early_stopping_of_ignite_ends_a_run(tmp_path):
    validator = HybridEvaluator(tiny_painter(), tiny_bank(), SHORT)
    trainer = HybridTrainer(tiny_painter(), tiny_bank(), dataclasses.replace(SHORT, iterations=20), tmp_path,
                            validator=validator)
    stopper = EarlyStopping(patience=1, score_function=lambda engine: 0.0, trainer=trainer)
    validator.add_event_handler(Events.COMPLETED, stopper)
    assert len(run_and_trace(trainer)) == 4
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4


def test_a_schedule_of_others_is_refused(tmp_path):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    handler = LrScheduleHandler(torch.optim.lr_scheduler.StepLR(optimizer, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the configuration sets the learning rate of every step: leave it out"):
        make_trainer(tmp_path, [handler])


def test_what_is_no_handler_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be MONAI or ignite handlers, which can be attached; got 'tensorboard'"):
        make_trainer(tmp_path, ["tensorboard"])


def test_weights_are_loaded_by_a_handler_unless_the_run_is_resumed(tmp_path):
    start = tiny_painter(seed=5)
    torch.save(start.state_dict(), tmp_path / "start.pt")

    def handlers(network: torch.nn.Module) -> list[Any]:
        return [CheckpointLoader(str(tmp_path / "start.pt"), {"network": network}, strict=True)]

    losses = []
    for initial, given in ((tiny_painter(), True), (start, False), (tiny_painter(), False)):
        out = tmp_path / f"{len(losses)}"
        trainer = HybridTrainer(initial, tiny_bank(), SHORT, out, train_handlers=handlers(initial) if given else [])
        losses.append(run_and_trace(trainer)[1]["loss"])
    assert losses[0] == losses[1] != losses[2]
    network = tiny_painter()
    with pytest.warns(RuntimeWarning, match="CheckpointLoader is left out: the run goes on from its own last.pt"):
        resumed = HybridTrainer(network, tiny_bank(), dataclasses.replace(SHORT, iterations=5), tmp_path / "0",
                                train_handlers=handlers(network))
    trained = torch.load(tmp_path / "0" / "last.pt", weights_only=True)["network"]["mix1.correct.weight"]
    seen = []
    resumed.add_event_handler(Events.STARTED, lambda engine: seen.append(engine.painter.mix1.correct.weight.clone()))
    resumed.run()
    assert torch.equal(seen[0], trained)


# --- what may be missing ---


@pytest.mark.parametrize(("make", "title"), [(mlflow_handler, "MLflow"), (tensorboard_handler, "TensorBoard")])
def test_a_tracker_that_is_not_installed_is_named(make, title, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(RuntimeError, match=f"{title} is not installed: `pip install {title.lower()}`, or leave"):
        make("somewhere")


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_is_told_of_every_step(tmp_path):
    import mlflow  # type: ignore[import-not-found]

    uri = f"sqlite:///{tmp_path}/runs.db"
    trace = run_and_trace(make_trainer(tmp_path / "run", [mlflow_handler(uri, close_on_complete=True)]))
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.value for metric in history] == pytest.approx([trace[step]["loss"] for step in (1, 2, 3, 4)])


# --- the terminal ---


def test_a_terminal_gets_a_bar_and_lines_and_a_file_lines_only():
    for terminal in (True, False):
        shown = io.StringIO()
        display = Display(Console(file=shown, force_terminal=terminal, width=80, soft_wrap=True, highlight=False))
        display.start(2, 10)
        display.step(3, 0.5)
        display.say({"step": 3, "loss": 0.5})
        display.stop()
        assert "{'step': 3, 'loss': 0.5}\n" in shown.getvalue()
        assert terminal or shown.getvalue().count("\n") == 1
        assert ("3/10" in shown.getvalue()) == ("loss 0.500" in shown.getvalue()) == terminal
        assert ("\x1b" in shown.getvalue()) == terminal


def test_only_process_0_speaks(monkeypatch, capsys):
    for rank, expected in ((0, "{'step': 1}\n"), (1, "")):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        Display().say({"step": 1})
        assert capsys.readouterr().out == expected


def test_a_run_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_trainer(tmp_path, []).run()
