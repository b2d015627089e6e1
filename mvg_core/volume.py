"""Voxels that know where they are: `Geometry` (a grid in patient space) and `Volume` (an array on such a grid).

World coordinates are RAS+ millimetres: x grows towards the patient's Right, y to Anterior, z to Superior. A picture
without a patient (PNG, one ultrasound frame) is a volume of one slice, shape (I, J, 1), with unit spacing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from numbers import Integral
from typing import Literal, NamedTuple, get_args

import numpy as np

Plane = Literal["axial", "coronal", "sagittal"]

# World axis that is normal to each plane: x (Right), y (Anterior), z (Superior).
_WORLD_AXIS: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_CODES = (("L", "R"), ("P", "A"), ("I", "S"))

# Volume spanned by three unit columns; below this the axes are parallel for every purpose of an image.
_SMALLEST_UNIT_VOLUME = 1e-4


class GeometryError(ValueError):
    """A grid that cannot place voxels in space, or an array that does not fit its grid."""


class Display(NamedTuple):
    """How a slice is laid out on screen: which index axes run down and across, and which of them are reversed."""

    row_axis: int
    column_axis: int
    flip_rows: bool
    flip_columns: bool


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in patient space.

    Attributes:
        shape: number of voxels (I, J, K), each at least 1.
        affine: (4, 4) float64, voxel index -> RAS+ mm (centre of the voxel). Any obliqueness, also sheared; kept as a
            read-only copy.

    Raises:
        GeometryError: the shape is not three positive whole numbers, or the affine is not invertible.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        object.__setattr__(self, "affine", _checked_affine(self.affine))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxel centres along each index axis."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def direction(self) -> np.ndarray:
        """(3, 3) unit columns: the world direction in which each index grows."""
        return self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axis_codes(self) -> tuple[str, str, str]:
        """Where each index grows to, for example ('R', 'A', 'S'); every letter pair is used once, however oblique."""
        i, j, k = (
            _CODES[world][int(self.direction[world, axis] > 0)] for axis, world in enumerate(self._world_of_axis)
        )
        return i, j, k

    def index_to_world(self, ijk: np.ndarray | Sequence[float]) -> np.ndarray:
        """World position in mm (..., 3) of voxel indices (..., 3); whole numbers are voxel centres."""
        return np.asarray(ijk, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def world_to_index(self, mm: np.ndarray | Sequence[float]) -> np.ndarray:
        """Fractional voxel indices (..., 3) of world positions (..., 3) in mm."""
        return (np.asarray(mm, dtype=np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def is_close(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and no outer corner differs by more than `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        distance_mm = np.linalg.norm(self._corners_mm() - other._corners_mm(), axis=1)
        return bool(distance_mm.max() <= tolerance_mm)

    def overlaps(self, other: Geometry) -> bool:
        """Whether the world bounding boxes of both grids share volume; touching faces do not count."""
        mine, theirs = self._corners_mm(), other._corners_mm()
        low = np.maximum(mine.min(axis=0), theirs.min(axis=0))
        high = np.minimum(mine.max(axis=0), theirs.max(axis=0))
        return bool(np.all(high > low))

    def anatomical_axis(self, plane: Plane) -> int:
        """Index axis (0, 1, 2) along which slices of `plane` are stacked.

        Index axes are given to the world axes one to one, so three planes always mean three different axes, also
        when the grid is turned by 45 degrees.

        Raises:
            GeometryError: `plane` is not axial, coronal or sagittal.
        """
        if plane not in _WORLD_AXIS:
            raise GeometryError(f"unknown plane {plane!r}: use one of {', '.join(get_args(Plane))}")
        return self._world_of_axis.index(_WORLD_AXIS[plane])

    def plane_of_axis(self, axis: int) -> Plane:
        """Name of the plane whose slices are stacked along index `axis`; the inverse of `anatomical_axis`."""
        return next(plane for plane in get_args(Plane) if self.anatomical_axis(plane) == axis)

    def display(self, axis: int) -> Display:
        """How slices along index `axis` are shown, as radiologists see them.

        Axial: rows anterior to posterior, columns right to left (the patient's Left is on the image's right).
        Coronal: rows superior to inferior, columns right to left. Sagittal: rows superior to inferior, columns
        anterior to posterior. Oblique grids: the nearest of these, without resampling.
        """
        in_plane = [other for other in range(3) if other != axis]
        # Rows take the world axis that comes later in x, y, z: y before x (axial), z before x or y.
        column, row = sorted(in_plane, key=lambda other: self._world_of_axis[other])
        # Display runs to Left, Posterior and Inferior: the negative directions of RAS+.
        grows = [self.axis_codes[other] in "RAS" for other in (row, column)]
        return Display(row, column, *grows)

    @cached_property
    def _world_of_axis(self) -> tuple[int, int, int]:
        """World axis (0 x, 1 y, 2 z) of each index axis: the one-to-one choice with the largest total alignment."""
        alignment = np.abs(self.direction)
        # Rounding makes exact ties (45 degrees) fall to the earlier choice instead of to the last bit.
        totals = {order: round(sum(alignment[order[axis], axis] for axis in range(3)), 6) for order in _ORDERS}
        return max(_ORDERS, key=lambda order: totals[order])

    def _corners_mm(self) -> np.ndarray:
        """(8, 3) outer corners of the grid, half a voxel beyond the outer voxel centres."""
        corners = list(product(*((-0.5, n - 0.5) for n in self.shape)))
        return self.index_to_world(np.array(corners))


@dataclass(frozen=True, eq=False)
class Volume:
    """An array of voxels on a grid.

    Attributes:
        array: (I, J, K) numbers or booleans; not copied.
        geometry: the grid, of the same shape.

    Raises:
        GeometryError: the array does not have the shape of the grid.
        ValueError: the array does not hold plain numbers.
    """

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.shape != self.geometry.shape:
            raise GeometryError(
                f"array has shape {array.shape}, its grid {self.geometry.shape}: pass the grid that belongs to this"
                " array, or resample the array first"
            )
        if array.dtype.kind not in "buif":
            raise ValueError(f"voxels have type {array.dtype}: convert them to integers or real numbers first")
        object.__setattr__(self, "array", array)

    def with_array(self, array: np.ndarray) -> Volume:
        """Another array (I, J, K) on the same grid."""
        return Volume(array, self.geometry)

    @classmethod
    def from_array(cls, array: np.ndarray, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Volume:
        """A volume whose axes point to Right, Anterior, Superior, with voxel (0, 0, 0) at the world origin.

        Args:
            array: (I, J, K), or (I, J) for a single slice.
            spacing_mm: distance between voxel centres along I, J, K, in mm.
        """
        array = np.asarray(array)
        if array.ndim == 2:
            array = array[:, :, None]
        if len(spacing_mm) != 3:
            raise GeometryError(f"spacing_mm needs three numbers (I, J, K), got {tuple(spacing_mm)}")
        return cls(array, Geometry(_checked_shape(array.shape), np.diag([*spacing_mm, 1.0])))


_ORDERS: tuple[tuple[int, int, int], ...] = tuple(permutations((0, 1, 2)))  # type: ignore[assignment]


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Three positive Python integers, or GeometryError."""
    shape = tuple(shape)
    if len(shape) != 3:
        raise GeometryError(
            f"a grid has three axes (I, J, K), got shape {shape}: add axes of length 1, or pick a frame"
        )
    if not all(isinstance(n, Integral) and n >= 1 for n in shape):
        raise GeometryError(f"a grid needs at least one voxel along every axis, got shape {shape}")
    i, j, k = (int(n) for n in shape)
    return i, j, k


def _checked_affine(affine: np.ndarray) -> np.ndarray:
    """A read-only float64 copy, or GeometryError."""
    affine = np.array(affine, dtype=np.float64)
    advice = "repair the file's orientation header, or pass an affine that maps voxel index to RAS+ mm"
    if affine.shape != (4, 4):
        raise GeometryError(f"affine has shape {affine.shape}, needed (4, 4): {advice}")
    if not np.isfinite(affine).all():
        raise GeometryError(f"affine holds NaN or infinite numbers: {advice}")
    if not np.array_equal(affine[3], (0.0, 0.0, 0.0, 1.0)):
        raise GeometryError(f"last row of the affine is {affine[3].tolist()}, needed [0, 0, 0, 1]: {advice}")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # Unit columns first, so that a tiny spacing is not mistaken for a degenerate grid.
    if spacing.min() == 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < _SMALLEST_UNIT_VOLUME:
        raise GeometryError(f"affine is singular (spacing {spacing.tolist()} mm, parallel or zero axes): {advice}")
    affine.flags.writeable = False
    return affine
