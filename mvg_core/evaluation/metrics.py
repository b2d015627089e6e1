"""Metrics of one answer against its truth, in 3D and in physical units.

The numbers come from MONAI. What MONAI leaves undefined is defined here, so that a mean over subjects is one:

    truth    prediction   Dice, IoU, NSD   HD95
    empty    empty        NaN              NaN                   agreement about absence; not counted in means
    empty    not empty    0                diagonal of the grid  something was invented
    present  empty        0                diagonal of the grid  something was missed

Equal images have a PSNR of `HIGHEST_PSNR_DB` instead of infinity.

Shape letters: I J K voxels; N slices; H W pixels of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.regression import MAEMetric, PSNRMetric, compute_ssim_and_cs
from monai.metrics.surface_dice import compute_surface_dice

from mvg_core.volume import Geometry

TOLERANCE_MM = 2.0
"""NSD counts a piece of surface as right if the other surface is this near."""
HIGHEST_PSNR_DB = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Pixels; Source: Wang et al. 2004, IEEE Trans Image Process 13:600."""

Empty = Literal["", "both", "truth", "prediction"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """One structure in one subject; NaN is "not counted".

    Attributes:
        dice: 0 to 1.
        iou: 0 to 1.
        hd95_mm: 95th percentile of the distances between both surfaces, the larger direction; NaN if not asked for.
        nsd: share of both surfaces within the tolerance of each other; NaN if not asked for.
        empty: which of the two masks is empty; "" if none is.
    """

    dice: float
    iou: float
    hd95_mm: float
    nsd: float
    empty: Empty


@dataclass(frozen=True)
class Similarity:
    """One painted image against the image it should be, both in [0, 1].

    Attributes:
        psnr_db: at most `HIGHEST_PSNR_DB`.
        ssim: mean over slices; NaN where slices are smaller than the window.
        mae: mean absolute error.
    """

    psnr_db: float
    ssim: float
    mae: float


def overlap(prediction: Mask, truth: Mask) -> tuple[float, float, Empty]:
    """Dice, IoU and which of the masks is empty.

    Args:
        prediction: (...).
        truth: the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(prediction, truth)
    empty = _which_is_empty(prediction, truth)
    if empty:
        value = math.nan if empty == "both" else 0.0
        return value, value, empty
    pair = _cropped(prediction, truth)
    dice, iou = (float(compute(*pair, include_background=True)) for compute in (compute_dice, compute_iou))
    return dice, iou, empty


def surface_distances(prediction: Mask, truth: Mask, spacing_mm: Sequence[float],
                      tolerance_mm: float = TOLERANCE_MM) -> tuple[float, float]:
    """HD95 in mm, and NSD.

    HD95 measures between the centres of surface voxels. NSD weighs every piece of surface by its area in mm^2 (in a
    picture of one slice: by its length), so it is not misled by thick slices.

    Args:
        prediction: (I, J, K); an axis of length 1 is left out.
        truth: the same shape.
        spacing_mm: of I, J, K.
        tolerance_mm: of the NSD.

    Raises:
        ValueError: the shapes differ, fewer than two axes are longer than 1, or the tolerance is negative.
    """
    _check_shapes(prediction, truth)
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance_mm must be 0 or more, got {tolerance_mm}")
    empty = _which_is_empty(prediction, truth)
    if empty == "both":
        return math.nan, math.nan
    if empty:
        return _diagonal_mm(prediction.shape, spacing_mm), 0.0
    axes = [axis for axis, length in enumerate(prediction.shape) if length > 1]
    if len(axes) < 2:
        raise ValueError(f"surfaces need an image of at least two axes, got shape {prediction.shape}")
    shape, spacing = [prediction.shape[axis] for axis in axes], [float(spacing_mm[axis]) for axis in axes]
    pair = _cropped(prediction.reshape(shape), truth.reshape(shape))
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(*pair, [tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True)
    return float(hd95), float(nsd)


def compare_label(prediction: Mask, truth: Mask, geometry: Geometry, *, counted: Mask | None = None,
                  distances: bool = True, tolerance_mm: float = TOLERANCE_MM) -> Overlap:
    """All metrics of one structure.

    Args:
        prediction: (I, J, K).
        truth: (I, J, K).
        geometry: of both.
        counted: (I, J, K), voxels that Dice and IoU count; None counts all. Surfaces are always those of the whole
            masks: cutting voxels out would move them.
        distances: whether HD95 and NSD are wanted; they mean nothing where the spacing is not real.
        tolerance_mm: of the NSD.
    """
    seen = (prediction, truth) if counted is None else (prediction & counted, truth & counted)
    dice, iou, empty = overlap(*seen)
    hd95_mm = nsd = math.nan
    if distances and empty != "both":
        hd95_mm, nsd = surface_distances(prediction, truth, geometry.spacing_mm, tolerance_mm)
    return Overlap(dice, iou, hd95_mm, nsd, empty)


def filled_slices(prediction: Mask, truth: Mask, axis: int, counted: Sequence[int] | None = None) -> tuple[int, int]:
    """Slices without the structure, and how many of them the prediction filled nevertheless.

    Args:
        prediction: (I, J, K).
        truth: (I, J, K).
        axis: along which slices are taken.
        counted: slice numbers; None counts all.
    """
    others = tuple(other for other in range(3) if other != axis)
    numbers = list(range(truth.shape[axis]) if counted is None else counted)
    shows, filled = (np.any(mask, axis=others)[numbers] for mask in (truth, prediction))
    return int(np.count_nonzero(~shows)), int(np.count_nonzero(~shows & filled))


def voxel_ml(geometry: Geometry) -> float:
    """Volume of one voxel in ml."""
    return abs(float(np.linalg.det(geometry.affine[:3, :3]))) / 1000


def has_real_spacing(geometry: Geometry) -> bool:
    """Whether distances mean something: a picture (one slice with unit spacing) has none."""
    return not (min(geometry.shape) == 1 and np.allclose(geometry.spacing_mm, 1))


def compare_images(prediction: npt.NDArray[np.floating], truth: npt.NDArray[np.floating], axis: int,
                   where: Mask | None = None) -> Similarity:
    """PSNR and MAE over all voxels, SSIM slice by slice.

    Args:
        prediction: (I, J, K) in [0, 1].
        truth: (I, J, K) in [0, 1].
        axis: along which slices are taken for the SSIM.
        where: (I, J, K), voxels that count, for example a hole; None counts all. The SSIM is then the mean of its map
            over these voxels; the map sees the surroundings of each voxel, mirrored at the border of the image.

    Raises:
        ValueError: the shapes differ, values are NaN or outside [0, 1], or no voxel counts.
    """
    _check_shapes(prediction, truth)
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not (image.min() >= -1e-4 and image.max() <= 1 + 1e-4):  # also refuses NaN
            raise ValueError(f"the {name} must lie in [0, 1], got {image.min():g} to {image.max():g}: scale both by "
                             "the truth's intensities")
    if where is not None:
        _check_shapes(where, truth)
        if not where.any():
            raise ValueError("no voxel counts: the mask is empty")
    pair = [_as_batch(image if where is None else image[where]) for image in (prediction, truth)]
    psnr = float(PSNRMetric(max_val=1)(*pair))  # type: ignore[arg-type]
    mae = float(MAEMetric()(*pair))  # type: ignore[arg-type]
    return Similarity(min(psnr, HIGHEST_PSNR_DB), _ssim(prediction, truth, axis, where), mae)


def _ssim(prediction: npt.NDArray, truth: npt.NDArray, axis: int, where: Mask | None) -> float:
    slices = [np.moveaxis(image, axis, 0) for image in (prediction, truth)]
    if min(slices[0].shape[1:]) < SSIM_WINDOW:
        return math.nan
    total, count = 0.0, 0
    for number in range(len(slices[0])):
        pair = [torch.from_numpy(np.array(one[number], np.float64))[None, None] for one in slices]
        if where is not None:
            inside = np.moveaxis(where, axis, 0)[number]
            if not inside.any():
                continue
            pair = [F.pad(image, (SSIM_WINDOW // 2,) * 4, mode="reflect") for image in pair]
            values = _ssim_map(pair)[inside]
            # Every voxel of a mask counts the same, every slice of a whole image does.
            total, count = total + float(values.sum()), count + values.size
        else:
            total, count = total + float(_ssim_map(pair).mean()), count + 1
    return total / count


def _ssim_map(pair: Sequence[torch.Tensor]) -> npt.NDArray[np.floating]:
    """(1, 1, H, W) twice -> (H - 10, W - 10)."""
    values, _ = compute_ssim_and_cs(pair[0], pair[1], 2, (SSIM_WINDOW,) * 2, (SSIM_SIGMA,) * 2)
    return values[0, 0].numpy()


def _check_shapes(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"prediction and truth have shapes {first.shape} and {second.shape}: bring them onto one grid")


def _which_is_empty(prediction: Mask, truth: Mask) -> Empty:
    has_prediction, has_truth = bool(prediction.any()), bool(truth.any())
    if has_prediction:
        return "" if has_truth else "truth"
    return "prediction" if has_truth else "both"


def _diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Between the centres of the farthest voxels: no distance on this grid is larger."""
    return math.sqrt(sum(((n - 1) * step) ** 2 for n, step in zip(shape, spacing_mm, strict=True)))


def _cropped(prediction: Mask, truth: Mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Both masks (1, 1, ...) without what lies around them, which no metric here looks at."""
    either = prediction | truth
    box = []
    for axis in range(either.ndim):
        marked = np.flatnonzero(either.any(axis=tuple(other for other in range(either.ndim) if other != axis)))
        box.append(slice(int(marked[0]), int(marked[-1]) + 1))
    return _as_batch(prediction[tuple(box)]), _as_batch(truth[tuple(box)])


def _as_batch(array: npt.NDArray) -> torch.Tensor:
    """(...) -> (1, 1, ...): one of a batch, one channel."""
    kind = np.uint8 if array.dtype == bool else np.float64
    return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))[None, None]
