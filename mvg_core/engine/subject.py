"""A reference of another subject, as slices in the plane of the query's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mvg_core.engine.fields import Extent, Stack, extent_of
from mvg_core.registration import Alignment


@dataclass(frozen=True, eq=False)
class Subject:
    """A reference of another subject.

    Attributes:
        stack: its slices, in the plane of the query's.
        label: label map uint8 (I, J, K), not empty.
        alignment: how it lies on the query; None where nothing was registered.
        agreement: how far the other references agree with that, 0 to 1.
    """

    stack: Stack
    label: npt.NDArray[np.uint8]
    alignment: Alignment | None = None
    agreement: float = 1.0

    @property
    def weight(self) -> float:
        """How much it counts beside others: better matches count more."""
        return 1.0 if self.alignment is None else max(0.05, self.alignment.quality) ** 4 * self.agreement**4

    @cached_property
    def placed(self) -> Alignment | None:
        """The alignment, if it puts any label on the query."""
        labels = self.stack.volume.with_array(self.label)
        return None if self.alignment is None or self.alignment.box(labels) is None else self.alignment

    @cached_property
    def first_and_last(self) -> tuple[int, int]:
        """Of the slices with labels."""
        return min(self.extents), max(self.extents)

    def place(self, number: int) -> float:
        """Where a slice lies among those with labels, 0 to 1 from left, back or foot."""
        first, last = self.first_and_last
        share = (number - first + 0.5) / (last - first + 1)
        return share if self.stack.is_ascending else 1 - share

    def number_at(self, place: float) -> int:
        """The slice with labels that lies at a place; the first or the last beyond them."""
        first, last = self.first_and_last
        share = place if self.stack.is_ascending else 1 - place
        return int(np.clip(round(first + share * (last - first + 1) - 0.5), first, last))

    def extents_near(self, number: int) -> Extent:
        """Where the labels lie in a slice, or in the nearest that has some."""
        return self.extents[self.nearest_labelled(number)]

    def nearest_labelled(self, number: int) -> int:
        """The slice with labels that is nearest to a slice."""
        return min(self.extents, key=lambda at: abs(at - number))

    @property
    def side_mm(self) -> float:
        """Longest side of the structures in any slice."""
        return max(extent.side_mm for extent in self.extents.values())

    @property
    def length(self) -> int:
        """Slices from the first to the last with labels."""
        first, last = self.first_and_last
        return last - first + 1

    @cached_property
    def extents(self) -> dict[int, Extent]:
        """Where the labels lie in each slice with labels."""
        found = {number: extent_of(part, self.stack.spacing_mm)
                 for number, part in enumerate(np.moveaxis(self.label, self.stack.axis, 0))}
        return {number: extent for number, extent in found.items() if extent is not None}
