"""One answer against its truth: all scores of a case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mvg_core.evaluation.calibration import Reliability
from mvg_core.evaluation.metrics import (
    TOLERANCE_MM,
    compare_images,
    compare_label,
    filled_slices,
    has_real_spacing,
    voxel_ml,
)
from mvg_core.evaluation.results import ImageScore, LabelScore
from mvg_core.intensity import IntensityScaling, check_finite, looks_like_ct
from mvg_core.predict import CT_IMAGE_WINDOW_HU
from mvg_core.references import check_not_constant, labels_in, whole_labels
from mvg_core.tasks import TaskKind
from mvg_core.volume import GeometryError, Volume

_INSIDE_SHARE = (0.02, 0.98)
"""The region `inside` is scored where it is this share of an image; otherwise it says nothing new."""


@dataclass(frozen=True)
class ScoringRules:
    """What is scored, and how.

    Attributes:
        labels: number -> name of the labels that count; None takes those in truth or prediction.
        tolerance_mm: of the NSD.
        distances: whether HD95 and NSD are wanted; None: where the spacing is real, which pictures' is not.
    """

    labels: Mapping[int, str] | None = None
    tolerance_mm: float = TOLERANCE_MM
    distances: bool | None = None


@dataclass(frozen=True)
class LabelScores:
    """What `score_labels` found."""

    scores: tuple[LabelScore, ...]
    calibration: Mapping[str, Reliability]
    remarks: tuple[str, ...]


def score_labels(prediction: Volume, truth: Volume, rules: ScoringRules, *, axis: int, confidence: Volume | None = None,
                 given: Sequence[int] = (), names: tuple[str, str] = ("prediction", "truth")) -> LabelScores:
    """Score a label map.

    Args:
        prediction: label map.
        truth: label map on the same grid.
        rules: what is scored.
        axis: along which slices are taken.
        confidence: 0 to 1 on the same grid.
        given: slices that were given to the network with their labels, and do not count.
        names: of prediction and truth, for messages.

    Raises:
        GeometryError: the grids differ.
        ValueError: something is no label map.
    """
    check_one_grid(prediction, truth, names)
    predicted, true = whole_labels(prediction.array, names[0]), whole_labels(truth.array, names[1])
    shown = labels_in(predicted) | labels_in(true)
    labels = sorted(shown) if rules.labels is None else sorted(set(rules.labels) - {0})
    geometry = truth.geometry
    distances = has_real_spacing(geometry) if rules.distances is None else rules.distances
    counted_slices = [number for number in range(geometry.shape[axis]) if number not in set(given)]
    counted = None if not given else _mask_of_slices(geometry.shape, axis, counted_slices)
    ml = voxel_ml(geometry) if has_real_spacing(geometry) else math.nan
    scores = []
    for label in labels:
        mine, its = predicted == label, true == label
        found = compare_label(mine, its, geometry, counted=counted, distances=distances,
                              tolerance_mm=rules.tolerance_mm)
        empty_slices, filled = filled_slices(mine, its, axis, counted_slices)
        scores.append(LabelScore(
            label, (rules.labels or {}).get(label, ""), found.dice, found.iou, found.hd95_mm, found.nsd, found.empty,
            empty_slices, filled / empty_slices if empty_slices else math.nan, int(mine.sum()) * ml,
            int(its.sum()) * ml, _mean_where(confidence, mine if counted is None else mine & counted)))
    predicted_only, true_only = (np.where(np.isin(array, labels), array, 0) for array in (predicted, true))
    return LabelScores(tuple(scores), _calibration(predicted_only, true_only, confidence, counted),
                       _remarks(predicted, labels, names[0]))


def score_image(painted: Volume, target: Volume, kind: TaskKind, *, axis: int, shown: Volume | None = None,
                hole: npt.NDArray[np.bool_] | None = None, names: tuple[str, str] = ("prediction", "target")
                ) -> tuple[ImageScore, ...]:
    """Score a painted image on [0, 1]: both images are scaled by the target's intensities, and clipped.

    CT is scaled from -1000 to 1000 HU, everything else between the target's percentiles 0.5 and 99.5.

    Args:
        painted: the answer.
        target: what it should be, on the same grid.
        kind: of the task; denoising and inpainting also score what was shown.
        axis: along which slices are taken.
        shown: what the network saw, on the same grid.
        hole: (I, J, K), where the image was missing.
        names: of painted image and target, for messages.

    Raises:
        GeometryError: the grids differ.
        ValueError: NaN, a constant target, or an empty hole.
    """
    check_one_grid(painted, target, names)
    for volume, name in ((painted, names[0]), (target, names[1])):
        check_finite(volume.array, name)
    scaling = image_scaling(target.array, names[1])
    images = [scaling.apply(volume.array) for volume in (painted, target)]
    before = None
    if shown is not None and kind in ("denoising", "inpainting"):
        before = scaling.apply(np.nan_to_num(shown.array, nan=scaling.low))
    regions: dict[str, npt.NDArray[np.bool_] | None] = {"whole": None}
    if hole is not None:
        regions["hole"] = hole
    inside = target.array > target.array.min()
    if kind == "synthesis" and _INSIDE_SHARE[0] < inside.mean() < _INSIDE_SHARE[1]:
        regions["inside"] = inside
    scores = []
    for region, where in regions.items():
        after = compare_images(images[0], images[1], axis, where)
        score = ImageScore(region, after.psnr_db, after.ssim, after.mae)
        if before is not None:
            given = compare_images(before, images[1], axis, where)
            score = ImageScore(region, after.psnr_db, after.ssim, after.mae, given.psnr_db, given.ssim, given.mae)
        scores.append(score)
    return tuple(scores)


def image_scaling(target: npt.NDArray, name: str) -> IntensityScaling:
    """How an image becomes [0, 1] for its metrics: by the target alone, so that every method is judged alike.

    Raises:
        ValueError: NaN, or a constant image.
    """
    check_not_constant(target, name)
    return IntensityScaling.for_volume(target, window=CT_IMAGE_WINDOW_HU if looks_like_ct(target) else None)


def check_one_grid(first: Volume, second: Volume, names: tuple[str, str]) -> None:
    """Refuse two volumes that do not lie on one grid.

    Raises:
        GeometryError: names both, and how they differ.
    """
    one, other = first.geometry, second.geometry
    if one.is_close(other, tolerance_mm=0.1 * min(*one.spacing_mm, *other.spacing_mm)):
        return
    if one.shape != other.shape:
        how = f"shapes {one.shape} and {other.shape}"
    elif not np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-3):
        how = f"spacing {_shown_mm(one.spacing_mm)} and {_shown_mm(other.spacing_mm)}"
    else:
        how = "another position or orientation in space"
    raise GeometryError(f"{names[0]} and {names[1]} lie on different grids ({how}): resample one onto the other")


def _shown_mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{step:.4g}" for step in spacing) + " mm"


def _mask_of_slices(shape: Sequence[int], axis: int, numbers: Sequence[int]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(tuple(shape), bool)
    np.moveaxis(mask, axis, 0)[list(numbers)] = True
    return mask


def _mean_where(confidence: Volume | None, where: npt.NDArray[np.bool_]) -> float:
    if confidence is None or not where.any():
        return math.nan
    return float(confidence.array[where].mean(dtype=np.float64))


def _calibration(predicted: npt.NDArray, true: npt.NDArray, confidence: Volume | None,
                 counted: npt.NDArray[np.bool_] | None) -> dict[str, Reliability]:
    if confidence is None:
        return {}
    everywhere = np.ones(predicted.shape, bool) if counted is None else counted
    labelled = everywhere & ((predicted > 0) | (true > 0))
    return {name: Reliability.of(confidence.array[where], predicted[where] == true[where])
            for name, where in (("all", everywhere), ("labelled", labelled))}


def _remarks(predicted: npt.NDArray[np.uint8], labels: Sequence[int], name: str) -> tuple[str, ...]:
    unknown = sorted(labels_in(predicted) - set(labels))
    if not unknown:
        return ()
    return (f"{name} holds labels that are not scored: {', '.join(map(str, unknown))}",)
