"""How much worse neighbouring slices of an answer agree than those of the truth do.

Shape letters: I J K voxels; N slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Flicker:
    """Between-slice inconsistency of an answer.

    Attributes:
        detail: mean absolute second difference of the error along the slice axis, relative to that of the truth; 0 for
            a perfect answer, about 1 for errors that change from slice to slice as much as anatomy does.
        jumps: mean absolute second difference of the slices' mean error, on the scale of the images: the flicker that
            is seen when one scrolls.
    """

    detail: float
    jumps: float


def flicker(prediction: npt.NDArray[np.floating], truth: npt.NDArray[np.floating], axis: int,
            where: npt.NDArray[np.bool_] | None = None) -> Flicker:
    """Compare an answer with the truth across slices.

    Args:
        prediction: (I, J, K) in [0, 1].
        truth: (I, J, K) in [0, 1].
        axis: along which slices are taken.
        where: (I, J, K), voxels that count, for example a hole; None counts all. Three slices in a row must show them.

    Raises:
        ValueError: the shapes differ, or no three slices in a row count.
    """
    if prediction.shape != truth.shape or (where is not None and where.shape != truth.shape):
        raise ValueError(f"prediction, truth and mask have different shapes: {prediction.shape}, {truth.shape}"
                         + ("" if where is None else f", {where.shape}"))
    counted = np.ones(truth.shape, bool) if where is None else where
    error, true = (np.moveaxis(array, axis, 0) for array in (prediction - truth, truth))
    mask = np.moveaxis(counted, axis, 0)
    in_a_row = mask[:-2] & mask[1:-1] & mask[2:]
    if not in_a_row.any():
        raise ValueError("no three slices in a row show anything that counts: flicker cannot be measured")
    changes = [np.abs(_second_difference(array))[in_a_row].mean(dtype=np.float64) for array in (error, true)]
    counts = mask.sum(axis=(1, 2))
    profile = np.where(mask, error, 0).sum(axis=(1, 2), dtype=np.float64) / np.maximum(counts, 1)
    shown = counts > 0
    jumps = np.abs(_second_difference(profile))[shown[:-2] & shown[1:-1] & shown[2:]]
    return Flicker(float(changes[0] / max(changes[1], 1e-12)), float(jumps.mean()))


def _second_difference(array: npt.NDArray) -> npt.NDArray:
    """(N, ...) -> (N - 2, ...)."""
    return array[:-2] - 2 * array[1:-1] + array[2:]
