"""The field of view: a square part of a slice, chosen around the structures, so that the network sees them large.

A small network tells structures apart best when they fill much of its picture; and fewer pixels are then enough.

Shape letters: I J K voxels; h w the two in-plane axes of a slice in index order; S side of the network's square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mvg_core.intensity import IntensityScaling
from mvg_core.slices import SlicePlan
from mvg_core.volume import Geometry, Volume

LEAST_PIXELS = 96
"""Smaller fields are magnified: with fewer pixels a side the network sees too little detail."""
FINEST = 1 / 3
"""A field is not magnified until its pixels are smaller than this share of the volume's own."""


@dataclass(frozen=True)
class Field:
    """A square in the plane of a slice.

    Attributes:
        centre: index coordinates along the two in-plane axes.
        side_mm: length of its sides.
    """

    centre: tuple[float, float]
    side_mm: float


@dataclass(frozen=True)
class Extent:
    """Where the foreground of a slice lies.

    Attributes:
        centre: of its bounding box, index coordinates along the two in-plane axes.
        side_mm: longer side of the bounding box.
    """

    centre: tuple[float, float]
    side_mm: float


def extent_of(label: npt.NDArray, spacing_mm: Sequence[float]) -> Extent | None:
    """Where the foreground (not 0) of a slice (h, w) lies; None if there is none."""
    sides = [np.flatnonzero(label.any(axis=other)) for other in (1, 0)]
    if not sides[0].size:
        return None
    centre = tuple(float(found[0] + found[-1]) / 2 for found in sides)
    lengths = [(found[-1] - found[0] + 1) * mm for found, mm in zip(sides, spacing_mm, strict=True)]
    return Extent(centre, float(max(lengths)))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Stack:
    """A volume as a stack of slices.

    Attributes:
        volume: the image.
        axis: index axis along which the slices are stacked.
        scaling: of its intensities to [0, 1].
        name: for reports.
    """

    volume: Volume
    axis: int
    scaling: IntensityScaling
    name: str = ""

    @property
    def n_slices(self) -> int:
        """Number of slices."""
        return self.volume.geometry.shape[self.axis]

    @property
    def in_plane(self) -> tuple[int, int]:
        """The two index axes in the plane of a slice, ascending."""
        first, second = (other for other in range(3) if other != self.axis)
        return first, second

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Spacing along the two in-plane axes."""
        first, second = (self.volume.geometry.spacing_mm[other] for other in self.in_plane)
        return first, second

    @property
    def between_mm(self) -> float:
        """From one slice to the next."""
        return self.volume.geometry.spacing_mm[self.axis]

    @property
    def shape(self) -> tuple[int, int]:
        """Voxels (h, w) of a slice."""
        first, second = (self.volume.geometry.shape[other] for other in self.in_plane)
        return first, second

    @property
    def is_ascending(self) -> bool:
        """Whether slice numbers grow to the right, to the front or to the head."""
        return self.volume.geometry.axis_codes[self.axis] in "RAS"

    @cached_property
    def whole(self) -> Field:
        """The field that shows everything."""
        height, width = self.shape
        sides = [n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True)]
        return Field(((height - 1) / 2, (width - 1) / 2), max(sides))

    def field(self, centre: tuple[float, float], side_mm: float, size: int) -> Field:
        """A field of that side, as far as it makes sense: no larger than the slice, and not magnified beyond reason."""
        finest = min(self.spacing_mm) * FINEST * size
        return Field(centre, float(np.clip(side_mm, min(finest, self.whole.side_mm), self.whole.side_mm)))

    def pixels(self, side_mm: float, most: int) -> int:
        """Side of the network's square for a field: as many pixels as voxels, within limits; a multiple of 16."""
        voxels = side_mm / min(self.spacing_mm)
        return int(np.clip(math.ceil(voxels / 16 - 1e-6) * 16, min(LEAST_PIXELS, most), most))

    def slice_of(self, array: npt.NDArray, number: int) -> npt.NDArray:
        """View (h, w) of one slice of an array (I, J, K) on the volume's grid."""
        return np.moveaxis(array, self.axis, 0)[number]

    def cut(self, number: int, field: Field, size: int) -> Cut:
        """What the network sees of a slice."""
        return Cut(self, number, field, size)


@dataclass(frozen=True, eq=False)
class Cut:
    """One slice, cut to a field, as (S, S) pixels.

    Attributes:
        stack: where it comes from.
        number: of the slice.
        field: what is shown.
        size: S.
    """

    stack: Stack
    number: int
    field: Field
    size: int

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """The voxels of the slice (h, w) that are shown."""
        sides = []
        for centre, n, mm in zip(self.field.centre, self.stack.shape, self.stack.spacing_mm, strict=True):
            length = min(n, max(1, int(self.field.side_mm / mm + 1e-6)))
            start = int(np.clip(round(centre - (length - 1) / 2), 0, n - length))
            sides.append(slice(start, start + length))
        return sides[0], sides[1]

    @cached_property
    def image(self) -> npt.NDArray[np.float32]:
        """(S, S) in [0, 1], black around."""
        scaling = self.stack.scaling
        return scaling.apply(self._plan.extract(self._block(self.stack.volume.array), fill=scaling.low))[0]

    def label(self, label: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """A label map of the slice (h, w) as (S, S)."""
        return self._plan.extract_label(np.expand_dims(label[self.box], self.stack.axis))[0]

    def channels(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Real numbers of the slice (h, w, C) as (S, S, C), 0 around."""
        shown = values[self.box]
        return np.stack([self._plan.extract(np.expand_dims(shown[..., channel], self.stack.axis))[0]
                         for channel in range(shown.shape[-1])], axis=-1)

    def label_of_box(self, label: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """A label map of the voxels of `box` (h', w') as (S, S)."""
        return self._plan.extract_label(np.expand_dims(label, self.stack.axis))[0]

    def back(self, painted: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """(S, S, C) on the voxels of `box`: float32 (h', w', C)."""
        return self._plan.restore_slice(painted)

    @cached_property
    def _index(self) -> tuple[slice, slice, slice]:
        index = [slice(None)] * 3
        index[self.stack.axis] = slice(self.number, self.number + 1)
        for axis, side in zip(self.stack.in_plane, self.box, strict=True):
            index[axis] = side
        return index[0], index[1], index[2]

    def _block(self, array: npt.NDArray) -> npt.NDArray:
        return array[self._index]

    @cached_property
    def _plan(self) -> SlicePlan:
        geometry = self.stack.volume.geometry
        start = [side.start for side in self._index]
        affine = geometry.affine.copy()
        affine[:3, 3] = geometry.index_to_world(start)
        shape = tuple(side.stop - side.start for side in self._index)
        return SlicePlan(Geometry(shape, affine), self.stack.axis, self.size,  # type: ignore[arg-type]
                         self.field.side_mm / self.size)
