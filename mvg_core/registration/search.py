"""The search for a shift, a similarity and an affine transform that lay one image on another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from mvg_core.demons import correlation, resampled
from mvg_core.registration.config import RegistrationConfig
from mvg_core.registration.grids import affine_transform, matrix_of, of_axes, translation
from mvg_core.registration.pair import Pair

Stage = Literal["centre", "shift", "similarity", "affine", "demons"]
Candidate = tuple[Stage, sitk.Transform]

_SMALLEST_OVERLAP = 0.5
"""Of the smaller image: shifts with less are not looked at."""
_SHIFT_VOXELS = 48
"""Longest side of the images whose every shift is tried."""
_TRIED = 2
"""So many of the starts, the best, are followed to the end."""
_FITTED: tuple[Stage, Stage] = ("similarity", "affine")
"""Seven numbers first, then twelve."""
_FEW = 14
"""With fewer slices than this, an affine transform flattens the image instead of moving it: a similarity has to do."""
_LARGEST_SCALE = 1.6
"""People differ less than this in any direction."""
_THICK = 2.5
"""Slices this many times as thick as their pixels are wide were planned one stack at a time."""
_ROUNDING = 1e-6
_THIN = 4
"""With fewer slices than this, only the shift is looked for before the demons."""


def found_affine(pair: Pair, config: RegistrationConfig) -> tuple[Stage, sitk.Transform, tuple[str, ...]]:
    """The best of what the whole images and the focus say, each shifted, then fitted; and what went wrong."""
    whole = pair.whole()
    remarks: list[str] = []
    starts: list[Candidate] = [("centre", whole.start())]
    # Pictures are framed by whoever took them: far shifts and turns match worse than what they show in the middle.
    if pair.n_axes == 3:
        starts += _shifts(whole, (0.0,), config, remarks)
    if pair.is_focused:
        best = _best(whole, starts, config)[0]
        starts = [best, *_affine(whole, best, config, remarks)]
    if pair.n_axes == 3:
        starts += _shifts(pair, config.turns_degrees if _may_be_turned(pair) else (0.0,), config, remarks)
    best = _best(pair, starts, config)[:_TRIED]
    stage, found = _best(pair, [*best, *(one for start in best for one in _affine(pair, start, config, remarks))],
                         config)[0]
    return stage, found, tuple(dict.fromkeys(remarks)) if stage != "affine" else ()


def _may_be_turned(pair: Pair) -> bool:
    """Whether slices may have been imaged at any angle, as stacks of thick slices are: planned by the organ."""
    spacing = sorted(pair.volumes[1].geometry.spacing_mm)
    return spacing[2] >= _THICK * spacing[1]


def _best(pair: Pair, candidates: Sequence[Candidate], config: RegistrationConfig) -> list[Candidate]:
    """The candidates, the best first."""
    if len(candidates) == 1:
        return list(candidates)
    fixed, moving = (pair.working(which, config.affine_mm) for which in (0, 1))
    return sorted(candidates, key=lambda each: -_judged(fixed, moving, each[1], config))


def _shifts(pair: Pair, turns_degrees: Sequence[float], config: RegistrationConfig, remarks: list[str]
            ) -> list[Candidate]:
    """The best shift for each turn."""
    spacing_mm = _shift_spacing(pair, config)
    fixed, moving = pair.working(0, spacing_mm), pair.working(1, spacing_mm)
    try:
        return [("shift", _best_shift(fixed, moving, _turn(moving, degrees), config)) for degrees in turns_degrees]
    except RuntimeError as error:
        remarks.append(f"no shift was found ({reason_of(error)})")
        return []


def _affine(pair: Pair, start: Candidate, config: RegistrationConfig, remarks: list[str]) -> list[Candidate]:
    fixed, moving = (pair.working(which, config.affine_mm) for which in (0, 1))
    if min(fixed.GetSize()) < _THIN or min(moving.GetSize()) < _THIN:
        remarks.append(f"fewer than {_THIN} slices: no affine registration, only a shift")
        return []
    found: list[Candidate] = []
    thin = min(fixed.GetSize()) < _FEW
    for stage in _FITTED[start[0] == "affine" : 1 if thin else 2]:
        try:
            fitted = _optimised(fixed, moving, found[-1][1] if found else start[1], stage, config)
        except RuntimeError as error:
            remarks.append(f"{stage} registration failed ({reason_of(error)})")
            continue
        problem = _implausible(fitted)
        if problem:
            remarks.append(f"{stage} registration was left out: {problem}")
        else:
            found.append((stage, fitted))
    return found


def _judged(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, config: RegistrationConfig) -> float:
    """How well an alignment matches; a match of little more than the edges counts for little."""
    quality, overlap = agreement(fixed, moving, transform, config.threads)
    volumes = [float(np.prod(image.GetSpacing()) * np.prod(image.GetSize())) for image in (fixed, moving)]
    return quality * _worth(overlap * volumes[0] / min(volumes))


def _worth(share: Any) -> Any:
    """Of a correlation over this share of the smaller image: the same number says less where less was compared."""
    return np.sqrt(np.minimum(1.0, share))


def agreement(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, threads: int) -> tuple[float, float]:
    """Correlation where both show something, and the share of the fixed image that the moving one covers."""
    reached = sitk.GetArrayFromImage(resampled(moving, fixed, transform, fill=-1.0, threads=threads))
    here = sitk.GetArrayViewFromImage(fixed)
    inside = reached >= 0
    return correlation(here[inside], reached[inside]), float(inside.mean())


def _shift_spacing(pair: Pair, config: RegistrationConfig) -> float:
    """Coarse enough that every shift can be tried."""
    sides = [n * mm * float(np.linalg.norm(frame[:3, :3], 2))
             for volume, frame in zip(pair.volumes, pair.frames, strict=True)
             for n, mm in zip(volume.geometry.shape, volume.geometry.spacing_mm, strict=True) if n > 1]
    return max(config.affine_mm, max(sides) / _SHIFT_VOXELS)


def _best_shift(fixed: sitk.Image, moving: sitk.Image, turn: sitk.Transform, config: RegistrationConfig
                ) -> sitk.Transform:
    """The shift with the highest correlation over all in which the images overlap enough, then the turn."""
    grid = _covering(moving, fixed, turn)
    there = resampled(moving, grid, turn, fill=-1.0, threads=config.threads)
    moving_array = sitk.GetArrayFromImage(there)
    match, share = _correlations(sitk.GetArrayFromImage(fixed), np.maximum(moving_array, 0), moving_array >= 0)
    score = np.where(share >= _SMALLEST_OVERLAP, match * _worth(share), -np.inf)
    peak = np.array(np.unravel_index(int(np.argmax(score)), score.shape))
    offset = np.where(peak < fixed.GetSize()[::-1], peak, peak - score.shape)[::-1]
    here_mm = np.array(fixed.TransformContinuousIndexToPhysicalPoint(offset.astype(float).tolist()))
    matrix = matrix_of(turn) @ matrix_of(translation(np.array(grid.GetOrigin()) - here_mm))
    return affine_transform(of_axes(matrix, fixed.GetDimension()))


def _correlations(fixed: npt.NDArray[np.float32], moving: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
                  ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Correlation over the overlap at every shift, and the overlap as a share of the largest; negative shifts last.

    SimpleITK's filter gives the same and takes ten times as long.

    Args:
        fixed: (...).
        moving: of as many axes, 0 outside the mask.
        mask: where `moving` shows something.
    """
    # Multiples of 8 are transformed fast.
    shape = [-(-(n + m - 1) // 8) * 8 for n, m in zip(fixed.shape, moving.shape, strict=True)]
    axes = tuple(range(fixed.ndim))

    def transformed(array: npt.NDArray) -> npt.NDArray[np.complex128]:
        return np.fft.rfftn(array, shape, axes)

    def summed(first: npt.NDArray, second: npt.NDArray) -> npt.NDArray[np.float64]:
        return np.fft.irfftn(first * np.conj(second), shape, axes)

    # Centred, so that the differences of large sums below keep their digits.
    fixed = fixed - fixed.mean()
    moving = np.where(mask, moving - moving[mask].mean(), 0)
    ones, images, squares = (transformed(each) for each in (np.ones_like(fixed), fixed, fixed**2))
    masks, others, other_squares = (transformed(each) for each in (mask.astype(float), moving, moving**2))
    count = np.maximum(np.round(summed(ones, masks)), 1)
    sums, other_sums = summed(images, masks), summed(ones, others)
    common = summed(images, others) - sums * other_sums / count
    spread = (summed(squares, masks) - sums**2 / count) * (summed(ones, other_squares) - other_sums**2 / count)
    # Where one of them is next to constant, rounding errors would correlate.
    usable = spread > _ROUNDING * spread.max()
    return np.where(usable, common / np.sqrt(np.where(usable, spread, 1)), 0), count / count.max()


def _turn(image: sitk.Image, degrees: float) -> sitk.Transform:
    """A turn about the middle of the image, in the plane of its slices."""
    n_axes = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(n_axes, n_axes)
    normal = int(np.argmax(image.GetSpacing())) if n_axes == 3 else 2
    across = [axis for axis in range(n_axes) if axis != normal]
    turn = sitk.AffineTransform(n_axes)
    turn.SetCenter(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    within = np.eye(n_axes)
    within[np.ix_(across, across)] = [[cos, -sin], [sin, cos]]
    turn.SetMatrix((direction @ within @ np.linalg.inv(direction)).ravel().tolist())
    return turn


def _covering(image: sitk.Image, like: sitk.Image, turn: sitk.Transform) -> sitk.Image:
    """An empty grid with the voxels of `like` that covers what is turned into `image`."""
    spacing = like.GetSpacing()
    n_axes = image.GetDimension()
    direction = np.array(like.GetDirection()).reshape(n_axes, n_axes)
    ends = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in image.GetSize()))).reshape(n_axes, -1).T
    corners = np.array([image.TransformContinuousIndexToPhysicalPoint(end.tolist()) for end in ends])
    corners = np.array([turn.GetInverse().TransformPoint(corner.tolist()) for corner in corners])
    along = corners @ np.linalg.inv(direction).T / np.array(spacing)
    low, high = along.min(axis=0), along.max(axis=0)
    size = np.maximum(1, np.round(high - low)).astype(int)
    origin = direction @ (((low + high) / 2 - (size - 1) / 2) * np.array(spacing))
    grid = sitk.Image([int(n) for n in size], sitk.sitkUInt8)
    grid.SetSpacing([float(mm) for mm in spacing])
    grid.SetDirection(like.GetDirection())
    grid.SetOrigin(origin.tolist())
    return grid


def _optimised(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, stage: Stage,
               config: RegistrationConfig) -> sitk.Transform:
    """The similarity or affine transform with the best metric, from a start; a similarity starts from a turn."""
    n_axes = fixed.GetDimension()
    transform = sitk.AffineTransform(n_axes)
    if stage == "similarity":
        transform = sitk.Similarity3DTransform() if n_axes == 3 else sitk.Similarity2DTransform()
    middle = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    transform.SetCenter(middle)
    given = matrix_of(start)
    transform.SetMatrix(given[:n_axes, :n_axes].ravel().tolist())
    # About the middle, the translation is what the middle is moved by.
    moved = given[:n_axes, :n_axes] @ np.array(middle) + given[:n_axes, 3]
    transform.SetTranslation((moved - np.array(middle)).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(config.threads)
    if config.metric == "correlation":
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(32)
    share = config.samples / float(np.prod(fixed.GetSize()))
    if share < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, config.seed)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=2.0, minStep=0.02,
                                                    numberOfIterations=config.affine_iterations,
                                                    relaxationFactor=0.6, gradientMagnitudeTolerance=1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([1, 1])
    method.SetSmoothingSigmasPerLevel([config.affine_mm, 0.0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetInitialTransform(transform, inPlace=True)
    with _silence():
        method.Execute(fixed, moving)
    return affine_transform(of_axes(matrix_of(transform), n_axes))


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings of ITK on the user's terminal: that images do not overlap on the way is found out anyway."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _implausible(transform: sitk.Transform) -> str:
    """Why an affine transform cannot be right between two people; empty if it can."""
    n_axes = transform.GetDimension()
    scales = np.linalg.svd(matrix_of(transform)[:n_axes, :n_axes], compute_uv=False)
    if not np.isfinite(scales).all() or scales.min() < 1 / _LARGEST_SCALE or scales.max() > _LARGEST_SCALE:
        return f"it scales by {scales.min():.2f} to {scales.max():.2f}"
    return ""


def reason_of(error: RuntimeError) -> str:
    """The last line of an ITK message, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
