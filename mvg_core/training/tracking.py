"""What a run shows while it goes on: lines, a progress bar in terminals, TensorBoard and MLflow."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers.mlflow_handler import MLFlowHandler
from monai.handlers.tensorboard_handlers import TensorBoardStatsHandler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mvg_core.training import distributed


class Display:
    """Lines of a run, below a progress bar where they go to a terminal. Only process 0 shows anything."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False, quiet=distributed.rank() != 0)
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
                   TimeRemainingColumn())
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("", total=None)

    def start(self, done: int, total: int) -> None:
        """Show the bar."""
        self._bar.update(self._task, completed=done, total=total)
        if self.console.is_terminal:
            self._bar.start()

    def step(self, done: int, loss: float) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, description=f"loss {loss:.3f}")

    def stop(self) -> None:
        """Remove the bar."""
        if self.console.is_terminal:
            self._bar.stop()

    def say(self, line: Mapping[str, Any]) -> None:
        """Print a line of the record."""
        self.console.print(str(dict(line)), markup=False)


def say_errors_once(engine: Engine) -> None:
    """Keep ignite from logging an error that is raised anyway, once or twice more."""
    engine.logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "terminating due to exception" not in record.msg


def tensorboard_handler(folder: Path | str, **options: Any) -> TensorBoardStatsHandler:
    """A handler for `train_handlers` that draws the curves of every step; other options are those of MONAI's.

    Raises:
        RuntimeError: tensorboard is not installed.
    """
    _need("tensorboard", "TensorBoard")
    return TensorBoardStatsHandler(log_dir=str(folder), **options)


def mlflow_handler(tracking_uri: str | None = None, **options: Any) -> MLFlowHandler:
    """A handler for `train_handlers` that logs every step to MLflow; other options are those of MONAI's.

    Args:
        tracking_uri: of a server, or `sqlite:///FILE`.
        options: of `monai.handlers.MLFlowHandler`.

    Raises:
        RuntimeError: mlflow is not installed.
    """
    _need("mlflow", "MLflow")
    return MLFlowHandler(tracking_uri=tracking_uri, **options)


def _need(package: str, title: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise RuntimeError(f"{title} is not installed: `pip install {package}`, or leave its handler out")
