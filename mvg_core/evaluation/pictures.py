"""One slice of a case as a strip of square tiles, for the report's best, median and worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mvg_core.evaluation.scoring import image_scaling
from mvg_core.intensity import IntensityScaling
from mvg_core.preview import Picture, heat, label_colours, overlay
from mvg_core.slices import SlicePlan
from mvg_core.tasks import MAX_LABEL
from mvg_core.volume import Volume

TILE = 256
LARGEST_ERROR = 0.3
"""Errors of painted images from here on are shown in the brightest colour."""
COLOURS = label_colours(range(1, MAX_LABEL + 1))
"""By label number, so that a label has one colour in all cases."""


def label_strip(image: Volume | None, truth: Volume, prediction: Volume, axis: int, *, confidence: Volume | None = None,
                given: Sequence[int] = ()) -> Picture:
    """Image, truth, prediction and (if known) confidence of the slice with most labelled voxels.

    Args:
        image: on the grid of the others; None or another grid: labels are shown on black.
        truth: label map.
        prediction: label map on the same grid.
        axis: along which slices are taken.
        confidence: 0 to 1.
        given: slices that are not shown.

    Returns:
        (TILE, tiles * TILE, 3) RGB.
    """
    others = tuple(other for other in range(3) if other != axis)
    # The truth decides: the same slice is shown for every method.
    voxels = np.count_nonzero(truth.array, axis=others)
    voxels = voxels if voxels.any() else np.count_nonzero(prediction.array, axis=others)
    voxels[list(given)] = -1
    number = [int(np.argmax(voxels))]
    plan = SlicePlan.for_volume(truth.geometry, axis, size=TILE)
    grey = np.zeros((TILE, TILE), np.float32)
    if image is not None and image.geometry.is_close(truth.geometry, tolerance_mm=1.0):
        grey = _grey_slice(image.array, plan, number)
    tiles = [overlay(grey, np.zeros_like(grey, np.uint8), {}),
             *(overlay(grey, plan.extract_label(answer.array, number)[0], COLOURS) for answer in (truth, prediction))]
    if confidence is not None:
        tiles.append(heat(plan.extract(confidence.array, number, fill=1)[0]))
    return np.hstack(tiles)


def image_strip(shown: Volume, painted: Volume, target: Volume, axis: int, *, same_units: bool,
                hole: npt.NDArray[np.bool_] | None = None) -> Picture:
    """What was shown, the answer, what it should be, and the error, of the middle slice.

    Args:
        shown: what the network saw.
        painted: the answer.
        target: what it should be.
        axis: along which slices are taken.
        same_units: what was shown has the units of the target (denoising, inpainting).
        hole: where the image was missing; the slice with the largest hole is shown.

    Returns:
        (TILE, 4 * TILE, 3) RGB.
    """
    number = [target.geometry.shape[axis] // 2]
    if hole is not None:
        number = [int(np.argmax(np.count_nonzero(hole, axis=tuple(other for other in range(3) if other != axis))))]
    plan = SlicePlan.for_volume(target.geometry, axis, size=TILE)
    scaling = image_scaling(target.array, "the target")
    images = [scaling.apply(plan.extract(volume.array, number, fill=scaling.low)[0]) for volume in (painted, target)]
    seen = _grey_slice(shown.array, plan, number, scaling if same_units else None)
    none = np.zeros((TILE, TILE), np.uint8)
    error = (np.abs(images[0] - images[1]) / LARGEST_ERROR).astype(np.float32)
    return np.hstack([*(overlay(image, none, {}) for image in (seen, *images)), heat(1 - error)])


def _grey_slice(array: npt.NDArray, plan: SlicePlan, number: list[int], scaling: IntensityScaling | None = None
                ) -> npt.NDArray[np.float32]:
    finite = np.nan_to_num(array)
    try:
        scaling = scaling or IntensityScaling.for_volume(finite)
    except ValueError:  # constant
        return np.zeros((TILE, TILE), np.float32)
    return scaling.apply(plan.extract(finite, number, fill=scaling.low)[0])
