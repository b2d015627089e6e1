"""The slices of a job that were painted so far, for whoever wants to see the answer grow."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from mvg_core.server import wire


class PaintedSlices:
    """Keeps the latest answer of every slice, and in which order they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[int, tuple[int, npt.NDArray]] = {}
        self._count = 0

    @property
    def count(self) -> int:
        """Answers so far; a slice that was painted twice counts twice."""
        return self._count

    def add(self, number: int, answer: npt.NDArray) -> None:
        """Note the answer (H, W) to a slice."""
        if answer.dtype == np.float64:
            answer = answer.astype(np.float32)  # enough for a look
        with self._lock:
            self._count += 1
            self._latest[number] = self._count, answer

    def settle(self, answer: npt.NDArray | None, axis: int) -> None:
        """Take the slices from the finished answer (I, J, K), so that they are held once; without one forget them."""
        with self._lock:
            if answer is None:
                self._latest, self._count = {}, 0
                return
            stored = np.moveaxis(answer, axis, 0)
            self._latest = {number: (at, stored[number]) for number, (at, _) in self._latest.items()}

    def since(self, after: int, axis: int, most: int = 64) -> bytes:
        """What came after the first `after` answers, at most so many slices, as `wire.pack` writes it."""
        with self._lock:
            fresh = sorted((at, number, answer) for number, (at, answer) in self._latest.items() if at > after)[:most]
            following = fresh[-1][0] if len(fresh) == most else self._count
        return wire.pack([number for _, number, _ in fresh], [answer for *_, answer in fresh], axis, following)
