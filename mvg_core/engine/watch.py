"""Whoever started a long prediction may look on, and stop it between two slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


class Cancelled(RuntimeError):
    """The prediction was stopped on request.

    Attributes:
        partial: the `Prediction` so far, slices that were not reached being background; None before the first, and
            for the preset `plain`.
    """

    def __init__(self, partial: Any = None) -> None:
        super().__init__("the prediction was cancelled")
        self.partial = partial


@dataclass(frozen=True)
class Watch:
    """What is told to whom while a volume is solved.

    Attributes:
        progress: called with steps done and steps in all; a step is a slice painted, or as much work.
        cancelled: asked before every slice; True stops.
        painted: called with the number of a slice along the plane's axis, and its answer (a copy; two in-plane axes in
            index order), as soon as it is there; a later pass may paint a slice again. Of three planes the first is
            shown. The preset `plain` does not call it.
    """

    progress: Callable[[int, int], None] | None = None
    cancelled: Callable[[], bool] | None = None
    painted: Callable[[int, npt.NDArray[np.generic]], None] | None = None

    def check(self) -> None:
        """Stop if that was asked for.

        Raises:
            Cancelled: without a partial answer.
        """
        if self.cancelled is not None and self.cancelled():
            raise Cancelled

    def tell(self, done: int, total: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(done, total)

    def check_and_tell(self, done: int, total: int) -> None:
        """Report progress, and stop if that was asked for."""
        self.check()
        self.tell(done, total)

    def show(self, number: int, answer: npt.NDArray[np.generic]) -> None:
        """Show an answered slice."""
        if self.painted is not None:
            self.painted(number, answer.copy())
