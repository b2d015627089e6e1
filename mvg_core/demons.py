"""Demons: a smooth displacement after which one image looks like another of the same modality.

Source: Vercauteren et al. 2009 (symmetric forces), as implemented in SimpleITK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

SMALLEST_SIDE = 8
"""Images are not made coarser than this many voxels a side."""
_HISTOGRAM_LEVELS, _HISTOGRAM_POINTS = 128, 12


@dataclass(frozen=True)
class DemonsConfig:
    """How far the demons go.

    Attributes:
        iterations: at each resolution, coarse to fine; every resolution has half as many voxels a side as the next.
        smooth: standard deviation of the displacement field's smoothing, in voxels of the resolution.
        match_histogram: whether the moving image's intensities are first fitted to those of the fixed one.
        threads: most CPU threads.

    Raises:
        ValueError: a number is out of range.
    """

    iterations: tuple[int, ...] = (30, 30, 30)
    smooth: float = 1.5
    match_histogram: bool = True
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", tuple(self.iterations))
        if not self.iterations or min(self.iterations) < 0:
            raise ValueError(f"iterations needs a number of 0 or more for each resolution, got {self.iterations}")
        if not (np.isfinite(self.smooth) and self.smooth > 0):
            raise ValueError(f"smooth must be above 0 voxels, got {self.smooth}: without it images are torn apart")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


SLICE_DEMONS = DemonsConfig(match_histogram=False)
"""What neighbouring slices are registered with, see docs/explanation/registration-prior.md."""


@dataclass(frozen=True, eq=False)
class SliceWarp:
    """How a moving slice is bent to lie on a fixed one.

    Attributes:
        displacement: float64 (H, W, 2): how many rows and columns further the moving slice shows what the fixed one
            shows here.
        similarity: correlation of the fixed and the warped moving slice, -1 to 1; 0 if one of them is constant.
    """

    displacement: npt.NDArray[np.float64]
    similarity: float

    def image(self, image: npt.NDArray) -> npt.NDArray[np.float32]:
        """What lies on the moving slice, (H, W) or (H, W, C) numbers, on the fixed slice; linear, edges repeated."""
        image = self._checked(image)
        channels = np.ascontiguousarray(image.reshape(*image.shape[:2], -1), dtype=np.float32)
        warped = _resampled(sitk.GetImageFromArray(channels, isVector=True), self.displacement, sitk.sitkLinear)
        return sitk.GetArrayFromImage(warped).reshape(image.shape)

    def label(self, label: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """A label map (H, W) of the moving slice on the fixed slice: nearest pixel, in its own type."""
        label = self._checked(label)
        stored = label.astype(np.uint8 if label.dtype == bool else label.dtype)
        warped = _resampled(sitk.GetImageFromArray(stored), self.displacement, sitk.sitkNearestNeighbor)
        return sitk.GetArrayFromImage(warped).astype(label.dtype)

    def probabilities(self, label: npt.NDArray[np.integer], labels: Sequence[int]) -> npt.NDArray[np.float32]:
        """How much of every pixel each label covers after the warp.

        Args:
            label: (H, W) on the moving slice; labels not asked for count as background.
            labels: without background.

        Returns:
            float32 (H, W, 1 + L), background first; sums to 1.
        """
        return self.image(coverage(label, labels))

    def _checked(self, array: npt.NDArray) -> npt.NDArray:
        array = np.asarray(array)
        if array.shape[:2] != self.displacement.shape[:2] or array.ndim > 3:
            raise ValueError(f"shape {array.shape} does not fit a warp of slices {self.displacement.shape[:2]}: pass "
                             "(H, W) or (H, W, C) of the moving slice")
        return array


def register_slices(fixed: npt.NDArray[np.floating], moving: npt.NDArray[np.floating],
                    config: DemonsConfig = SLICE_DEMONS) -> SliceWarp:
    """Bend one slice so that it lies on another, for example its neighbour.

    Args:
        fixed: (H, W) in [0, 1].
        moving: (H, W) in [0, 1].
        config: how far to go.

    Returns:
        The warp; it moves nothing where one of the slices is constant.

    Raises:
        ValueError: the shapes differ, or a slice holds NaN.
    """
    images = [np.ascontiguousarray(image, dtype=np.float32) for image in (fixed, moving)]
    if images[0].ndim != 2 or images[0].shape != images[1].shape:
        raise ValueError(f"slices must be (H, W) of one shape, got {np.shape(fixed)} and {np.shape(moving)}")
    if not all(np.isfinite(image).all() for image in images):
        raise ValueError("a slice holds NaN or infinite numbers: replace them before it is registered")
    field = sitk.GetArrayFromImage(demons(sitk.GetImageFromArray(images[0]), sitk.GetImageFromArray(images[1]), config))
    displacement = np.ascontiguousarray(field[..., ::-1])
    warped = SliceWarp(displacement, 0.0).image(images[1])
    return SliceWarp(displacement, correlation(images[0], warped))


def warp_slice(fixed: npt.NDArray[np.floating], moving: npt.NDArray[np.floating], label: npt.NDArray[np.integer],
               config: DemonsConfig = SLICE_DEMONS) -> npt.NDArray[np.integer]:
    """Register one slice onto another, and carry a label map along; see `register_slices`.

    Args:
        fixed: (H, W) in [0, 1], where the label should go.
        moving: (H, W) in [0, 1], where the label is.
        label: (H, W) on `moving`.
        config: how far to go.

    Returns:
        (H, W) label numbers on `fixed`.
    """
    return register_slices(fixed, moving, config).label(label)


def chain(slices: npt.NDArray[np.floating], label: npt.NDArray[np.integer], start: int, labels: Sequence[int],
          config: DemonsConfig = SLICE_DEMONS) -> npt.NDArray[np.float32]:
    """Carry the label of one slice from neighbour to neighbour through a whole stack.

    Args:
        slices: (N, H, W) in [0, 1].
        label: (H, W) on slice `start`.
        start: number of the labelled slice.
        labels: to be carried, without background.
        config: of every step.

    Returns:
        float32 (N, H, W, 1 + L), how much each label covers, background first. The label map of every slice is
        warped as coverages, so that edges do not get more ragged with every step.
    """
    shown = coverage(label, labels)
    carried = np.empty((len(slices), *shown.shape), np.float32)
    carried[start] = shown
    for numbers in (range(start + 1, len(slices)), range(start - 1, -1, -1)):
        previous = start
        for number in numbers:
            carried[number] = register_slices(slices[number], slices[previous], config).image(carried[previous])
            previous = number
    return carried


def coverage(label: npt.NDArray[np.integer], labels: Sequence[int]) -> npt.NDArray[np.float32]:
    """A label map (...) as float32 (..., 1 + L) of 0 and 1, background first; labels not asked for are background."""
    shown = (np.asarray(label)[..., None] == np.array([0, *labels])).astype(np.float32)
    shown[..., 0] = 1 - shown[..., 1:].sum(axis=-1)
    return shown


def demons(fixed: sitk.Image, moving: sitk.Image, config: DemonsConfig) -> sitk.Image:
    """Displacement of the fixed image's points into the moving image, coarse to fine.

    Args:
        fixed: 2D or 3D, float32.
        moving: on the same grid.
        config: how far to go.

    Returns:
        Vectors of float64 in mm on the fixed image's grid; zeros if one of the images is constant.
    """
    if any(_is_constant(image) for image in (fixed, moving)):
        return _no_displacement(fixed)
    if config.match_histogram:
        moving = _matched(moving, fixed, config.threads)
    levels = len(config.iterations)
    field = None
    for level, iterations in enumerate(config.iterations):
        factors = _factors(fixed, 2 ** (levels - 1 - level))
        if level < levels - 1 and factors == _factors(fixed, 2 ** (levels - 2 - level)):
            continue  # too small to be made this coarse
        field = _one_level(_shrunk(fixed, factors), _shrunk(moving, factors), field, iterations, config)
    assert field is not None  # the last level is never left out
    return field


def correlation(first: npt.NDArray, second: npt.NDArray) -> float:
    """Pearson correlation of two arrays of one shape, -1 to 1; 0 if one of them is constant."""
    x, y = (np.asarray(each, dtype=np.float64).ravel() for each in (first, second))
    if not x.size:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / norm, -1, 1)) if norm > 1e-12 else 0.0


def _one_level(fixed: sitk.Image, moving: sitk.Image, field: sitk.Image | None, iterations: int,
               config: DemonsConfig) -> sitk.Image:
    start = _no_displacement(fixed) if field is None else resampled(field, fixed, threads=config.threads)
    if not iterations:
        return start
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfThreads(config.threads)
    method.SetNumberOfIterations(iterations)
    method.SetStandardDeviations(config.smooth)
    return method.Execute(fixed, moving, start)


def resampled(image: sitk.Image, grid: sitk.Image, transform: sitk.Transform | None = None, *,
              interpolator: int = sitk.sitkLinear, fill: float | None = None, threads: int = 1) -> sitk.Image:
    """An image on the grid of another.

    Args:
        image: any type.
        grid: whose grid to take.
        transform: from points of the grid to points of the image; None stays in place.
        interpolator: of SimpleITK.
        fill: value outside the image; None repeats its edge.
        threads: most CPU threads.
    """
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(threads)
    resampler.SetReferenceImage(grid)
    resampler.SetInterpolator(interpolator)
    if transform is not None:
        resampler.SetTransform(transform)
    resampler.SetUseNearestNeighborExtrapolator(fill is None)
    resampler.SetDefaultPixelValue(fill or 0.0)
    return resampler.Execute(image)


def _resampled(image: sitk.Image, displacement: npt.NDArray[np.float64], interpolator: int) -> sitk.Image:
    field = sitk.GetImageFromArray(np.ascontiguousarray(displacement[..., ::-1]), isVector=True)
    return resampled(image, image, sitk.DisplacementFieldTransform(field), interpolator=interpolator)


def _matched(moving: sitk.Image, fixed: sitk.Image, threads: int) -> sitk.Image:
    """The moving image with intensities distributed as in the fixed one; both levels above the mean decide."""
    matcher = sitk.HistogramMatchingImageFilter()
    matcher.SetNumberOfThreads(threads)
    matcher.SetNumberOfHistogramLevels(_HISTOGRAM_LEVELS)
    matcher.SetNumberOfMatchPoints(_HISTOGRAM_POINTS)
    matcher.ThresholdAtMeanIntensityOn()
    return matcher.Execute(moving, fixed)


def _factors(image: sitk.Image, factor: int) -> tuple[int, ...]:
    """By how much each axis is shrunk, so that voxels become `factor` times as long as the shortest side of one."""
    size, spacing = image.GetSize(), image.GetSpacing()
    wanted = [max(1, round(min(spacing) * factor / each)) for each in spacing]
    return tuple(max(1, min(want, n // SMALLEST_SIDE)) for want, n in zip(wanted, size, strict=True))


def _shrunk(image: sitk.Image, factors: tuple[int, ...]) -> sitk.Image:
    return image if max(factors) == 1 else sitk.BinShrink(image, factors)


def _no_displacement(grid: sitk.Image) -> sitk.Image:
    n_axes = grid.GetDimension()
    field = sitk.Image(grid.GetSize(), sitk.sitkVectorFloat64, n_axes)
    field.CopyInformation(grid)
    return field


def _is_constant(image: sitk.Image) -> bool:
    voxels = sitk.GetArrayViewFromImage(image)
    return bool(voxels.min() == voxels.max())
