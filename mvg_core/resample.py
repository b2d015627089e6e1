"""One grid onto another: linear for images, nearest neighbour for label maps."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from mvg_core.volume import Geometry, Volume

# Voxels resampled at once: beside the result, no more than this is held in memory.
_SLAB_VOXELS = 2**23


def resample_to(volume: Volume, geometry: Geometry, *, is_label: bool, fill: float = 0) -> Volume:
    """The volume as seen on another grid.

    Images are interpolated linearly, without smoothing; label maps take the nearest voxel, so no label is invented.
    Where both grids are the same, the voxels come back unchanged.

    Args:
        volume: what to resample.
        geometry: the grid of the result.
        is_label: label map (number type kept) or image (float32; float64 stays float64).
        fill: value outside the volume; grids that do not meet give a result of only this (see `Geometry.overlaps`).

    Raises:
        ValueError: a label map's `fill` does not fit its number type.
    """
    array = volume.array
    kept = array.dtype if is_label else np.dtype(np.float64 if array.dtype == np.float64 else np.float32)
    if is_label and np.asarray(fill).astype(kept) != fill:
        raise ValueError(f"fill {fill} does not fit a label map of type {kept}: use a whole number in its range")
    if volume.geometry.is_close(geometry):
        return Volume(array.astype(kept, copy=False), geometry)
    source, axes = _itk_image(array)
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkNearestNeighbor if is_label else sitk.sitkLinear)
    resampler.SetDefaultPixelValue(float(fill))
    if not is_label:
        resampler.SetOutputPixelType(sitk.sitkFloat64 if kept == np.float64 else sitk.sitkFloat32)
    index_to_index = (np.linalg.inv(volume.geometry.affine) @ geometry.affine)[[*axes, 3]]
    return Volume(_resampled(resampler, source, index_to_index, geometry.shape, kept), geometry)


def _resampled(
    resampler: sitk.ResampleImageFilter,
    source: sitk.Image,
    index_to_index: np.ndarray,
    shape: tuple[int, int, int],
    dtype: np.dtype,
) -> np.ndarray:
    """(I, J, K) voxels of `source` at the indices of a grid of `shape`, slab by slab.

    Both grids are given to ITK as index space and the way between them as one affine transform: that is exact for
    sheared grids too, which ITK images cannot always hold.
    """
    result = np.empty(shape[::-1], dtype)
    thickness = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, shape[2], thickness):
        slab = result[start : start + thickness]
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(index_to_index[:3, :3].ravel().tolist())
        transform.SetTranslation((index_to_index @ (0, 0, start, 1))[:3].tolist())
        resampler.SetTransform(transform)
        resampler.SetSize(slab.shape[::-1])
        part = resampler.Execute(source)  # named, because the view below does not keep it alive
        slab[...] = sitk.GetArrayViewFromImage(part)
    return result.transpose(2, 1, 0)


def _itk_image(array: np.ndarray) -> tuple[sitk.Image, tuple[int, int, int]]:
    """Voxels (I, J, K) as an ITK image, and which of I, J, K its x, y and z are.

    ITK's x is the axis whose neighbours lie side by side in memory: of I and K the one that saves a copy.
    """
    array = array.astype(_itk_type(array.dtype), copy=False)
    if array.flags.c_contiguous:
        return sitk.GetImageFromArray(array), (2, 1, 0)
    return sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0))), (0, 1, 2)


def _itk_type(dtype: np.dtype) -> np.dtype:
    """A type that ITK knows and that holds the same values."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype == np.float16:
        return np.dtype(np.float32)
    if dtype.itemsize > 8:
        return np.dtype(np.float64)
    return dtype.newbyteorder("=")
