"""Where the structures of other subjects' references lie in a query: read from whole slices, without registration.

A registration that misses the place misses it completely; what is read of whole slices is coarse, but rarely far off.

Shape letters: I J K voxels; L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mvg_core.engine.consensus import coarse_grid
from mvg_core.engine.fields import Extent, Stack
from mvg_core.engine.reading import ReferenceReading
from mvg_core.engine.subject import Subject
from mvg_core.registration import Alignment
from mvg_core.volume import Volume

WHOLE = 128
"""Pixels a side of whole slices: enough to find structures, not to outline them."""
DISAGREES = 0.35
"""A registration whose structures overlap less than this (Dice) with what was read is not believed."""
AROUND = 1.3
"""Structures are looked for in a box of so many times their size."""
_STEADY = 0.1
"""The middle of the structures moves along this share of their length; faster changes are mistakes."""


@dataclass(frozen=True, eq=False)
class Located:
    """Where structures were read.

    Attributes:
        stack: the query.
        found: bool (I, J, K), what was read as any of them, near their middle.
        side_mm: longest side of the structures in the plane of the slices, by the references.
    """

    stack: Stack
    found: npt.NDArray[np.bool_]
    side_mm: float

    @cached_property
    def extents(self) -> Mapping[int, Extent]:
        """Where to look in each slice that shows it: all alike in size, and the middle moves steadily."""
        slices = np.moveaxis(self.found, self.stack.axis, 0).reshape(self.stack.n_slices, *self.stack.shape)
        area = slices.sum(axis=(1, 2)).astype(np.float64)
        sigma = _STEADY * np.count_nonzero(area) + 1e-3
        smooth = _blurred(area, sigma)
        summed = [(slices * place).sum(axis=(1, 2)).astype(np.float64) for place in np.indices(self.stack.shape)]
        middles = [_blurred(one, sigma) for one in summed]
        return {int(number): Extent((float(middles[0][number] / smooth[number]),
                                     float(middles[1][number] / smooth[number])), self.side_mm)
                for number in np.flatnonzero(area)}

    def agreement(self, alignment: Alignment, label: Volume) -> float:
        """Dice with where an alignment puts the structures of a reference's label map; on a coarse grid."""
        grid = coarse_grid(self.stack.volume.geometry)
        sides = zip(self.found.shape, grid.shape, strict=True)
        index = [np.round((np.arange(few) + 0.5) * n / few - 0.5).astype(int) for n, few in sides]
        here = self.found[np.ix_(*index)]
        there = alignment.label(label.with_array((label.array > 0).astype(np.uint8)), grid).array > 0
        return 2 * np.count_nonzero(here & there) / max(1, np.count_nonzero(here) + np.count_nonzero(there))

    def place(self, number: int) -> float:
        """Where a slice lies among those that show it, 0 to 1 from left, back or foot; beyond them less or more."""
        first, last = min(self.extents), max(self.extents)
        share = (number - first + 0.5) / (last - first + 1)
        return share if self.stack.is_ascending else 1 - share


def locate(query: Stack, subjects: Sequence[Subject], by_whole: ReferenceReading) -> Located | None:
    """Where structures are read; None if nothing is found.

    Args:
        query: its slices.
        subjects: the references.
        by_whole: reads whole slices, of side `WHOLE`, by whole slices of the references.
    """
    likely = np.zeros(query.volume.geometry.shape, np.float32)
    for number in range(query.n_slices):
        cut = query.cut(number, query.whole, WHOLE)
        query.slice_of(likely, number)[cut.box] = 1 - cut.back(by_whole.read(cut))[..., 0]
    found = likely > 0.5
    if not found.any():
        return None
    side_mm = float(np.mean([subject.side_mm for subject in subjects]))
    along_mm = float(np.mean([subject.length * subject.stack.between_mm for subject in subjects]))
    size = [side_mm / mm for mm in query.volume.geometry.spacing_mm]
    size[query.axis] = along_mm / query.between_mm
    # Where most of something of this size is, not where the largest piece is.
    dense = _sums_around(np.where(found, likely, np.float32(0)), [int(n / 2) for n in size])
    middle = np.unravel_index(int(np.argmax(dense)), dense.shape)
    box = tuple(slice(max(0, round(at - AROUND * n / 2)), round(at + AROUND * n / 2) + 1)
                for at, n in zip(middle, size, strict=True))
    near = np.zeros_like(found)
    near[box] = found[box]
    return Located(query, near, side_mm)


def _sums_around(values: npt.NDArray[np.float32], reach: Sequence[int]) -> npt.NDArray[np.float64]:
    """For every voxel the sum over a box around it that reaches so many voxels to either side."""
    sums = values.astype(np.float64)
    for axis, far in enumerate(reach):
        n = sums.shape[axis]
        until = np.concatenate([np.zeros_like(sums.take([0], axis)), sums.cumsum(axis)], axis)
        at = np.arange(n)
        sums = until.take(np.minimum(at + far + 1, n), axis) - until.take(np.maximum(at - far, 0), axis)
    return sums


def _blurred(values: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """Numbers (N,) with a Gaussian of this width, 0 around them."""
    away = np.arange(len(values))
    return np.exp(-((away[:, None] - away) ** 2) / (2 * sigma**2)) @ values
