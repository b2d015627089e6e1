"""Small pictures of slices with coloured segments, as radiologists see them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .geometry import SlicePosition, display, sliceOf, spacing
from .mrml_bridge import volumeArray, worldAffine

OPACITY = 0.5
"""Of the segments over the image."""


def thumbnail(volumeNode: Any, position: SlicePosition, masks: Iterable[tuple[np.ndarray, tuple[float, float, float]]],
              size: int = 96) -> np.ndarray:
    """A slice in the volume's window and level.

    Args:
        volumeNode: to show.
        position: of the slice.
        masks: pairs of (H, W) bool, the two other voxel axes in their order, and a colour, 0 to 1.
        size: side in pixels.

    Returns:
        (size, size, 3) uint8 RGB; black around the image, whose proportions in mm are kept.
    """
    affine = worldAffine(volumeNode)
    grey = sliceOf(volumeArray(volumeNode), position.axis, position.index).astype(np.float32)
    low, high = _window(volumeNode, grey)
    # NaN has no grey: black.
    grey = np.nan_to_num(np.clip((grey - low) / max(high - low, 1e-12), 0, 1), nan=0.0)
    colours = np.repeat(grey[..., None], 3, axis=2)
    for mask, colour in masks:
        colours[mask] = (1 - OPACITY) * colours[mask] + OPACITY * np.array(colour, np.float32)
    return _fitted(_shown(colours, affine, position.axis), _sides(affine, position.axis), size)


def _window(volumeNode: Any, grey: np.ndarray) -> tuple[float, float]:
    """Intensities shown as black and white."""
    shown = volumeNode.GetDisplayNode()
    # A display whose window was never worked out says 256 and 128, whatever the image.
    if shown is not None and shown.IsA("vtkMRMLScalarVolumeDisplayNode") and shown.GetWindow() > 0:
        low, high = shown.GetLevel() - shown.GetWindow() / 2, shown.GetLevel() + shown.GetWindow() / 2
        if np.nanmax(grey) > low and np.nanmin(grey) < high:
            return float(low), float(high)
    low, high = np.nanpercentile(grey, (0.5, 99.5))
    return float(low), float(high)


def _shown(picture: np.ndarray, affine: np.ndarray, axis: int) -> np.ndarray:
    """(in-plane voxel axes, 3) -> rows down, columns across."""
    row, column, flipRows, flipColumns = display(affine, axis)
    picture = picture if row < column else picture.swapaxes(0, 1)
    picture = picture[::-1] if flipRows else picture
    return picture[:, ::-1] if flipColumns else picture


def _sides(affine: np.ndarray, axis: int) -> tuple[float, float]:
    """Millimetres of a pixel down and across."""
    row, column, _, _ = display(affine, axis)
    return float(spacing(affine)[row]), float(spacing(affine)[column])


def _fitted(picture: np.ndarray, sides: tuple[float, float], size: int) -> np.ndarray:
    """Nearest pixels, in the middle of a black square."""
    lengths = [n * side for n, side in zip(picture.shape[:2], sides, strict=True)]
    counts = [max(1, round(size * length / max(lengths))) for length in lengths]
    rows, columns = (np.minimum(((np.arange(n) + 0.5) * total / n).astype(int), total - 1)
                     for n, total in zip(counts, picture.shape[:2], strict=True))
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - counts[0]) // 2, (size - counts[1]) // 2
    square[top : top + counts[0], left : left + counts[1]] = np.round(picture[rows][:, columns] * 255)
    return square
