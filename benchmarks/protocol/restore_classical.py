"""Image to image without learning: denoisers, biharmonic inpainting, histogram matching, polynomial intensity maps.

Images are brought to [0, 1] as for the scores, solved slice by slice, and brought back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.exposure import match_histograms
from skimage.restoration import (
    denoise_nl_means,
    denoise_tv_chambolle,
    inpaint_biharmonic,
)

from mvg_core.evaluation.scoring import image_scaling
from mvg_core.predict import Prediction
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Volume

Slice = npt.NDArray[np.floating]
Filter = Callable[[Slice, float], Slice]
LEAST_SIGMA = 1e-3
LEVELS = 4


def nlm(image: Slice, strength: float) -> Slice:
    """Non-local means; `strength` x the estimated noise is h."""
    sigma = noise_of(image)
    return denoise_nl_means(image, patch_size=5, patch_distance=6, h=strength * sigma, sigma=sigma, fast_mode=True)


def tv(image: Slice, strength: float) -> Slice:
    """Total variation; the weight is `strength` x the estimated noise."""
    return denoise_tv_chambolle(image, weight=strength * noise_of(image))


def wavelet(image: Slice, strength: float) -> Slice:
    """Shift-invariant Haar wavelets with BayesShrink soft thresholds, for `strength` x the estimated noise.

    Source: Chang, Yu, Vetterli 2000 (thresholds); Coifman and Donoho 1995 (shift invariance).
    """
    sigma, pad = strength * noise_of(image), 2**LEVELS
    rest, details = np.pad(image.astype(np.float64), pad, mode="symmetric"), []
    for level in range(LEVELS):
        step, noise = 2**level, sigma / 2 ** (level + 1)
        low, high = _split(rest, 0, step)
        (rest, across), (down, both) = _split(low, 1, step), _split(high, 1, step)
        details.append([_shrunk(part, noise) for part in (across, down, both)])
    for level in reversed(range(LEVELS)):
        step, (across, down, both) = 2**level, details[level]
        rest = _joined(_joined(rest, across, 1, step), _joined(down, both, 1, step), 0, step)
    return rest[pad:-pad, pad:-pad]


def _split(image: Slice, axis: int, step: int) -> tuple[Slice, Slice]:
    """Half the sum and half the difference of pixels that lie `step` apart."""
    next_ = np.roll(image, -step, axis)
    return (image + next_) / 2, (image - next_) / 2


def _joined(low: Slice, high: Slice, axis: int, step: int) -> Slice:
    """The inverse of `_split`: the mean of both ways in which a pixel can be had back."""
    return ((low + high) + np.roll(low - high, step, axis)) / 2


def _shrunk(detail: Slice, noise: float) -> Slice:
    signal = np.sqrt(max(float(detail.var()) - noise**2, 0.0))
    threshold = noise**2 / signal if signal > 0 else float(np.abs(detail).max())
    return np.sign(detail) * np.maximum(np.abs(detail) - threshold, 0)


DENOISERS: Mapping[str, Filter] = {"nlm": nlm, "tv": tv, "wavelet": wavelet}


def noise_of(image: Slice) -> float:
    """Standard deviation of the noise, from the finest diagonal Haar wavelets.

    Source: Donoho and Johnstone 1994, median of absolute values / 0.6745.
    """
    diagonal = (image[:-1, :-1] - image[1:, :-1] - image[:-1, 1:] + image[1:, 1:]) / 2
    # Black background, from which the noise was clipped, tells nothing of it.
    clipped = (image[:-1, :-1] > 0) & (image[:-1, :-1] < 1)
    shown = np.abs(diagonal[clipped]) if clipped.any() else np.abs(diagonal)
    return max(LEAST_SIGMA, float(np.median(shown)) / 0.6745)


class DenoisingSolver:
    """A filter on every slice."""

    def __init__(self, name: str, strength: float) -> None:
        self._filter, self._strength = DENOISERS[name], strength

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        scaling = image_scaling(query.array, "the query")
        slices = np.moveaxis(scaling.apply(query.array), plane, 0)
        cleaned = np.stack([self._filter(image, self._strength) for image in slices])
        return _prediction(query, scaling.invert(np.moveaxis(cleaned, 0, plane)))


class InpaintingSolver:
    """Biharmonic continuation of what lies around a hole, or the mean of the image."""

    def __init__(self, name: str) -> None:
        self._is_biharmonic = name == "biharmonic"

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        assert hole is not None
        mask = hole.array > 0
        scaling = image_scaling(np.where(mask, query.array.min(), query.array), "the query")
        image = scaling.apply(query.array)
        if not self._is_biharmonic:
            image = np.where(mask, image[~mask].mean(), image)
        else:
            slices, masks = np.moveaxis(image, plane, 0), np.moveaxis(mask, plane, 0)
            filled = [inpaint_biharmonic(one, where, split_into_regions=True) if where.any() else one
                      for one, where in zip(slices, masks, strict=True)]
            image = np.moveaxis(np.stack(filled), 0, plane)
        return _prediction(query, scaling.invert(np.clip(image, 0, 1)))


class IntensityMapSolver:
    """One curve from intensities of the source to those of the target, learned from the examples.

    Args:
        name: `histogram`, or `polynomial` (least squares).
        degree: of the polynomial.
    """

    def __init__(self, name: str, degree: int = 3) -> None:
        self._name, self._degree = name, degree

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        checked = [reference.checked(task) for reference in references]
        source = image_scaling(query.array, "the query").apply(query.array)
        shown, targets = (np.concatenate([_scaled(volume).ravel() for volume in volumes])
                          for volumes in ([one.image for one in checked], [one.label for one in checked]))
        scaling = image_scaling(checked[0].label.array, "the target")
        if self._name == "histogram":
            # An anti-correlated target needs the inverted order.
            rising = np.corrcoef(shown, targets)[0, 1] >= 0
            mapped = match_histograms(source if rising else 1 - source, targets.reshape(-1, 1, 1))
        else:
            curve = np.polynomial.Polynomial.fit(shown, targets, self._degree, domain=[0, 1])
            mapped = curve(source)
        return _prediction(query, scaling.invert(np.clip(mapped, 0, 1)))


class UnchangedSolver:
    """The query as it is."""

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        return _prediction(query, query.array)


def _scaled(volume: Volume) -> npt.NDArray[np.float32]:
    return image_scaling(volume.array, "an example").apply(volume.array)


def _prediction(query: Volume, image: npt.NDArray[Any]) -> Prediction:
    return Prediction(query.with_array(image.astype(np.float32)), None)
