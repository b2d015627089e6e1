"""Fits what is painted into a hole to what surrounds it.

A network paints the surroundings of a hole, too, and there it can be seen how far it is off: too bright on one side,
too dark on another. The painted hole is corrected by that error, carried inwards smoothly (after Perez et al. 2003,
Poisson image editing, ACM Trans Graph 22:313, whose membrane is replaced by averages over growing distances).

What is invented for one slice does not know of the next: averaged with its neighbours, it flickers less and is nearer
to the truth, the more so the thinner slices are.

Shape letters: h w pixels of a slice; I J K voxels.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

RIM = 1
"""Pixels around a hole that are compared."""
SIGMAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Standard deviations of the averages in pixels: a pixel is corrected by the nearest part of the rim that it sees."""
_SEES = 1e-3
NEIGHBOUR_MM = 5.0
"""Standard deviation of the Gaussian that weighs the slices before and after."""


def without_seam(painted: npt.NDArray[np.float32], known: npt.NDArray[np.float32], hole: npt.NDArray[np.bool_]
                 ) -> npt.NDArray[np.float32]:
    """The painted slice, corrected in the hole.

    Args:
        painted: (h, w) on [0, 1], of the whole slice.
        known: (h, w) on [0, 1]; what it holds in the hole is not looked at.
        hole: (h, w).

    Returns:
        float32 (h, w) in [0, 1]; unchanged outside the hole.
    """
    rim = _grown(hole, RIM) & ~hole
    if not rim.any():
        return painted
    box = _box(rim | hole)
    error = _carried(np.where(rim, known - painted, 0)[box], rim[box])
    corrected = painted.copy()
    corrected[box] = np.where(hole[box], np.clip(painted[box] + error, 0, 1), painted[box])
    return corrected


def smooth_across(image: npt.NDArray, hole: npt.NDArray[np.bool_], axis: int, spacing_mm: float) -> None:
    """Average what was painted into a hole with the slices before and after, in place; nothing else is looked at.

    Args:
        image: (I, J, K) floating point.
        hole: (I, J, K).
        axis: along which slices are stacked.
        spacing_mm: from slice to slice.
    """
    weight = float(np.exp(-0.5 * (spacing_mm / NEIGHBOUR_MM) ** 2))
    slices, holes = np.moveaxis(image, axis, 0), np.moveaxis(hole, axis, 0)
    before: npt.NDArray | None = None  # the last slice as it was painted
    for number in range(len(slices)):
        painted = slices[number].copy()
        total, weights = painted.astype(np.float64), np.ones(painted.shape)
        for neighbour, there in ((before, number - 1), (slices[number + 1] if number + 1 < len(slices) else None,
                                                        number + 1)):
            if neighbour is not None:
                shared = holes[number] & holes[there]
                total[shared] += weight * neighbour[shared]
                weights[shared] += weight
        np.copyto(slices[number], total / weights, where=holes[number], casting="same_kind")
        before = painted


def _carried(error: npt.NDArray[np.floating], rim: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Errors (h, w) that are known on the rim only, everywhere."""
    carried = np.full(error.shape, error[rim].mean(dtype=np.float64))
    for sigma in reversed(SIGMAS):
        down, across = (_gaussian(side, sigma) for side in error.shape)
        seen = down @ rim @ across
        carried = (down @ error @ across + _SEES * carried) / (seen + _SEES)
    return carried


def _box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest part of (h, w) that holds all of the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=other)) for other in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _gaussian(n: int, sigma: float) -> npt.NDArray[np.float64]:
    """(n, n) weights of every pixel in the average around every other."""
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    return np.exp(-0.5 * (distance / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


def _grown(mask: npt.NDArray[np.bool_], pixels: int) -> npt.NDArray[np.bool_]:
    """The mask with all pixels that are so near to it, also diagonally."""
    height, width = mask.shape
    padded = np.pad(mask, pixels)
    grown = np.zeros_like(mask)
    for down, across in product(range(2 * pixels + 1), repeat=2):
        grown |= padded[down : down + height, across : across + width]
    return grown
