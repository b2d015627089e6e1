"""What lies around a hole, continued smoothly into it: where inpainting starts from.

Shape letters: ... leading axes (images); H W pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 6
"""Of averaging with the four neighbours, at every resolution."""
_SMALLEST = 2


def continued(image: npt.NDArray[np.floating], hole: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """An image whose holes hold a smooth continuation of what is around them, nearly a solution of Laplace's equation.

    Solved from coarse to fine, so that the time does not depend on the size of the holes.

    Args:
        image: (..., H, W); what it holds inside holes plays no part, and may be NaN.
        hole: (..., H, W), True where the image is missing; an image that is missing altogether becomes 0.5.

    Returns:
        float32 (..., H, W), outside the holes as given.
    """
    known = ~hole
    shown = np.where(known, image, 0).astype(np.float32)
    if known.all():
        return shown
    height, width = shown.shape[-2:]
    if min(height, width) <= _SMALLEST:
        share = known.mean((-2, -1), keepdims=True)
        mean = np.where(share > 0, shown.mean((-2, -1), keepdims=True) / np.maximum(share, 1e-6), 0.5)
        return np.where(known, shown, mean).astype(np.float32)
    count = _summed(known.astype(np.float32))
    coarse = continued(_summed(shown) / np.maximum(count, 1), count == 0)
    filled: npt.NDArray[np.float32] = np.where(known, shown, coarse.repeat(2, -2).repeat(2, -1)[..., :height, :width])
    for _ in range(ROUNDS):
        filled = np.where(known, shown, _neighbours(filled))
    return filled


def fill_slices(image: npt.NDArray[np.floating], hole: npt.NDArray[np.bool_], axis: int) -> None:
    """Continue every slice into its holes, in place.

    Args:
        image: (I, J, K) in any unit.
        hole: (I, J, K).
        axis: along which slices are taken.
    """
    slices, holes = np.moveaxis(image, axis, 0), np.moveaxis(hole, axis, 0)
    for number in np.flatnonzero(holes.any(axis=(1, 2))):
        slices[number] = np.where(holes[number], continued(slices[number], holes[number]), slices[number])


def _summed(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sums over 2 x 2 pixels; an odd side is continued by its last pixels."""
    height, width = array.shape[-2:]
    even = _padded(array, (0, height % 2), (0, width % 2))
    return even[..., 0::2, 0::2] + even[..., 1::2, 0::2] + even[..., 0::2, 1::2] + even[..., 1::2, 1::2]


def _neighbours(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean of the four neighbours of every pixel."""
    around = _padded(array, (1, 1), (1, 1))
    total = around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
    return total * np.float32(0.25)


def _padded(array: npt.NDArray[np.float32], rows: tuple[int, int], columns: tuple[int, int]) -> npt.NDArray[np.float32]:
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + [rows, columns], mode="edge")
