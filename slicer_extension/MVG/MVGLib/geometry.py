"""Where voxels are: affines from voxel index (i, j, k) to RAS millimetres, and the planes that slices lie in.

Planes and display follow `mvg_core.volume.Geometry`, which this side of the connection does without.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np

PLANES = ("sagittal", "coronal", "axial")
"""Names of the planes that are normal to the world's x, y and z."""


@dataclass(frozen=True)
class SlicePosition:
    """A slice of a volume.

    Attributes:
        axis: voxel axis (0 i, 1 j, 2 k) that the slice is normal to.
        index: number of the slice along it, from 0.
    """

    axis: int
    index: int


@dataclass(frozen=True, eq=False)
class VolumeData:
    """The voxels of a volume node, and where they are in the world.

    Attributes:
        array: (I, J, K), a view of the node's voxels where that is possible.
        affine: (4, 4) float64, voxel index -> RAS mm in the world, linear parent transforms included.
        name: for messages.
        key: equal keys mean equal voxels in an equal place; empty means that nothing is known.
    """

    array: np.ndarray
    affine: np.ndarray
    name: str = ""
    key: tuple[Hashable, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        i, j, k = self.array.shape
        return i, j, k


def sliceOf(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One slice of (I, J, K), the two other axes in their order; a view, where np.take copies the volume first."""
    return np.moveaxis(array, axis, 0)[index]


def spacing(affine: np.ndarray) -> np.ndarray:
    """Distance in mm between neighbouring voxels along i, j, k."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def planeOfAxis(affine: np.ndarray, axis: int) -> str:
    """Name of the plane whose slices are stacked along a voxel axis; oblique grids: the nearest, each plane once."""
    return PLANES[_worldOfAxis(affine)[axis]]


def axisOfPlane(affine: np.ndarray, plane: str) -> int:
    """Voxel axis along which slices of a plane are stacked; the inverse of `planeOfAxis`."""
    return _worldOfAxis(affine).index(PLANES.index(plane))


def display(affine: np.ndarray, axis: int) -> tuple[int, int, bool, bool]:
    """How slices along an axis are shown, as radiologists see them.

    Returns:
        Voxel axis that runs down, voxel axis that runs across, and whether each is reversed.
    """
    world = _worldOfAxis(affine)
    column, row = sorted((other for other in range(3) if other != axis), key=lambda other: world[other])
    # The display runs to Left, Posterior and Inferior: the negative directions of RAS.
    down, across = (bool(affine[world[other], other] > 0) for other in (row, column))
    return row, column, down, across


def planeNormal(affine: np.ndarray, axis: int) -> np.ndarray:
    """Unit normal (3,) of the slices along an axis; sheared grids: not the direction of the axis."""
    first, second = (affine[:3, other] for other in range(3) if other != axis)
    normal = np.cross(first, second)
    normal *= np.sign(normal @ affine[:3, axis])
    return normal / np.linalg.norm(normal)


def corners(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """(8, 3) world positions of the centres of the outermost voxels."""
    ijk = np.array(list(product(*((0, n - 1) for n in shape))), float)
    return ijk @ affine[:3, :3].T + affine[:3, 3]


def isSameGrid(shape: tuple[int, ...], affine: np.ndarray, otherShape: tuple[int, ...], otherAffine: np.ndarray,
               toleranceMm: float = 1e-3) -> bool:
    """Whether two grids have the same shape and no corner differs by more."""
    if tuple(shape) != tuple(otherShape):
        return False
    away = np.linalg.norm(corners(shape, affine) - corners(shape, otherAffine), axis=1)
    return bool(away.max() <= toleranceMm)


def _worldOfAxis(affine: np.ndarray) -> tuple[int, int, int]:
    """World axis of each voxel axis: the one-to-one choice with the largest total alignment."""
    return _bestOrder(tuple(np.asarray(affine, float)[:3, :3].ravel().tolist()))


@lru_cache(maxsize=64)
def _bestOrder(matrix: tuple[float, ...]) -> tuple[int, int, int]:
    columns = np.array(matrix).reshape(3, 3)
    alignment = np.abs(columns / np.linalg.norm(columns, axis=0))
    orders = list(permutations((0, 1, 2)))
    # Rounded, so that ties (45 degrees) fall to the earlier choice instead of to the last bit.
    return max(orders, key=lambda order: round(sum(alignment[order[axis], axis] for axis in range(3)), 6))  # type: ignore
