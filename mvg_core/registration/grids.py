"""Parts of grids, coarse copies of volumes, and matrices as transforms of ITK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from mvg_core.volume import Geometry, Volume

Box = tuple[slice, slice, slice]
"""Part of a grid, as slices of I, J, K."""
TIGHT, WIDE = (0.1, 8.0), (0.35, 15.0)
"""Margins around labels on each side: a share of their box, and at least so many mm."""


def block_means(volume: Volume, factors: Sequence[int]) -> Volume:
    """The volume with blocks of voxels averaged; what is left over at the far ends is dropped."""
    if max(factors) == 1:
        return volume
    array, geometry = volume.array, volume.geometry
    shape = tuple(n // by for n, by in zip(geometry.shape, factors, strict=True))
    slow = int(np.argmax(array.strides))
    others = [axis for axis in range(3) if axis != slow]
    moved = np.moveaxis(array, slow, 0)[:, : shape[others[0]] * factors[others[0]],
                                        : shape[others[1]] * factors[others[1]]]
    blocks = (shape[others[0]], factors[others[0]], shape[others[1]], factors[others[1]])
    means = np.stack([moved[n * factors[slow] : (n + 1) * factors[slow]].mean(axis=0, dtype=np.float32)
                      .reshape(blocks).mean(axis=(1, 3)) for n in range(shape[slow])])
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.index_to_world((np.array(factors) - 1) / 2)
    affine[:3, :3] *= np.array(factors)
    return Volume(np.moveaxis(means, 0, slow), Geometry((shape[0], shape[1], shape[2]), affine))


def part_of(geometry: Geometry, box: Box) -> Geometry:
    """The grid of `array[box]`."""
    ranges = [part.indices(n)[:2] for part, n in zip(box, geometry.shape, strict=True)]
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.index_to_world([start for start, _ in ranges])
    i, j, k = (stop - start for start, stop in ranges)
    return Geometry((i, j, k), affine)


def corners_of(grid: Geometry) -> npt.NDArray[np.float64]:
    """(8, 3) outer corners in RAS+ mm."""
    return grid.index_to_world(np.array(np.meshgrid(*((-0.5, n - 0.5) for n in grid.shape))).reshape(3, -1).T)


def box_of(part: Geometry, whole: Geometry) -> Box:
    """The inverse of `part_of`."""
    first = np.round(whole.world_to_index(part.index_to_world([0, 0, 0]))).astype(int)
    i, j, k = (slice(int(start), int(start) + n) for start, n in zip(first, part.shape, strict=True))
    return i, j, k


def around(label: Volume, grid: Geometry, margin: tuple[float, float]) -> Geometry:
    """Part of the grid around what is not 0, see `TIGHT`; all of it if nothing is."""
    corners = label_corners(label)
    if corners is None:
        return grid
    index = grid.world_to_index(corners)
    low, high = index.min(axis=0), index.max(axis=0)
    more = np.maximum(margin[0] * (high - low), margin[1] / np.array(plane_distances_mm(grid)))
    low = np.maximum(np.floor(low - more), 0).astype(int)
    high = np.minimum(np.ceil(high + more) + 1, grid.shape).astype(int)
    if (low >= high).any():
        return grid
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return part_of(grid, (i, j, k))


def label_corners(label: Volume) -> npt.NDArray[np.float64] | None:
    """(8, 3) corners in RAS+ mm of the box around what is not 0, half a voxel beyond it; None if empty."""
    ends = []
    for axis in range(3):
        marked = np.flatnonzero(label.array.any(axis=tuple(other for other in range(3) if other != axis)))
        if not marked.size:
            return None
        ends.append((marked[0] - 1.0, marked[-1] + 1.0))
    return label.geometry.index_to_world(np.array(np.meshgrid(*ends)).reshape(3, -1).T)


def plane_distances_mm(geometry: Geometry) -> list[float]:
    """Distance between neighbouring planes of voxels along each axis; less than the spacing where axes are slanted."""
    return [float(1 / np.linalg.norm(row)) for row in np.linalg.inv(geometry.affine)[:3, :3]]


def middle_of(geometry: Geometry) -> npt.NDArray[np.float64]:
    """(3,) RAS+ mm."""
    return geometry.index_to_world((np.array(geometry.shape) - 1) / 2)


def moved(matrix: npt.NDArray[np.floating], points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Points (..., 3) through a (4, 4) matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def translation(by: npt.NDArray[np.float64]) -> sitk.Transform:
    """A shift by 2 or 3 numbers."""
    n_axes = len(by)
    transform = sitk.AffineTransform(n_axes)
    transform.SetTranslation([float(mm) for mm in by])
    return transform


def affine_transform(matrix: npt.NDArray[np.floating]) -> sitk.Transform:
    """(3, 3) or (4, 4) matrix as a transform of 2 or 3 axes."""
    n_axes = len(matrix) - 1
    transform = sitk.AffineTransform(n_axes)
    transform.SetMatrix(matrix[:n_axes, :n_axes].ravel().tolist())
    transform.SetTranslation(matrix[:n_axes, n_axes].tolist())
    return transform


def matrix_of(transform: Any) -> npt.NDArray[np.float64]:
    """(4, 4) of an affine transform of 2 or 3 axes; of 2 axes the third stays."""
    n_axes = transform.GetDimension()
    matrix = np.eye(4)
    middle = np.array(transform.GetCenter())
    linear = np.array(transform.GetMatrix()).reshape(n_axes, n_axes)
    matrix[:n_axes, :n_axes] = linear
    matrix[:n_axes, 3] = np.array(transform.GetTranslation()) + middle - linear @ middle
    return matrix


def of_axes(matrix: npt.NDArray[np.floating], n_axes: int) -> npt.NDArray[np.floating]:
    """A (4, 4) matrix for 3 axes, or (3, 3) for the first 2."""
    return matrix if n_axes == 3 else np.delete(np.delete(matrix, 2, axis=0), 2, axis=1)


def lifted(field: sitk.Image) -> sitk.Image:
    """Displacements in a plane as those of a layer: thick enough that the plane is inside."""
    flat = sitk.GetArrayFromImage(field)
    layer = np.zeros((1, *flat.shape[:2], 3))
    layer[0, ..., :2] = flat
    lifted = sitk.GetImageFromArray(layer, isVector=True)
    lifted.SetSpacing([*field.GetSpacing(), 1e4])
    lifted.SetOrigin([*field.GetOrigin(), 0.0])
    return lifted
