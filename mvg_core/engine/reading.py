"""Slices of a query read by many slices of other subjects at once.

Of every slice of a reference the sums that a readout needs are made once; for a slice of the query they are added up,
those of slices from the same place counting most.

Shape letters: S side of the network's square; L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mvg_core.engine.fields import Cut, Field
from mvg_core.engine.subject import Subject
from mvg_core.label_reader import LabelReading
from mvg_core.label_readout import LabelMoments
from mvg_core.tuning import thinned

MOST_SLICES = 64
"""Most slices of all references together that are looked at: more take time, and neighbours look alike."""
BEYOND = 0.25
"""Slices beyond the labels, up to this share of those with labels, show what is no longer the structure."""
NEARBY = 0.15
"""Slices count half as much about this share of the structures' length away."""
ELSEWHERE = 0.05
"""What slices from anywhere else count at least."""


class ReferenceReading:
    """Reads slices by references.

    Args:
        subjects: the references.
        reading: of the labels.
        size: S.
        focus: side of the field of view as a multiple of the structures' longest side; 0 shows whole slices.
    """

    def __init__(self, subjects: Sequence[Subject], reading: LabelReading, size: int, focus: float) -> None:
        self._subjects, self._reading, self._size, self._focus = list(subjects), reading, size, focus

    def read(self, cut: Cut, corresponding: Sequence[float] | None = None, own: Sequence[LabelMoments] = (),
             own_weights: Sequence[float] | None = None, without: int | None = None) -> npt.NDArray[np.float32]:
        """Probabilities (S, S, 1 + L) of a cut of the query.

        Args:
            cut: shows as much around the structures as the references do.
            corresponding: for every reference the number of the slice that shows the same place; None counts all alike.
            own: of slices of the query itself that are solved.
            own_weights: how much each of these counts, beside 1 for a reference; None: as much.
            without: a reference that is left out.
        """
        weights = []
        for order, (subject, numbers) in enumerate(zip(self._subjects, self._numbers, strict=True)):
            share = 0.0 if order == without else subject.weight / max(1, len(numbers))
            if corresponding is None:
                weights += [share] * len(numbers)
                continue
            away = (np.array(numbers) - corresponding[order]) / max(1.0, NEARBY * subject.length)
            weights += (share * (ELSEWHERE + np.exp(-(away**2) / 2))).tolist()
        more = [1.0] * len(own) if own_weights is None else own_weights
        merged = LabelMoments.sum([*self._moments, *own], [*weights, *more])
        return self._reading.read(cut.image[None], merged)[0]

    @cached_property
    def _numbers(self) -> list[list[int]]:
        """The slices of each reference that are looked at."""
        most = max(1, MOST_SLICES // len(self._subjects))
        found = []
        for subject in self._subjects:
            first, last = subject.first_and_last
            beyond = round(BEYOND * subject.length) if self._focus else subject.stack.n_slices
            numbers = range(max(0, first - beyond), min(subject.stack.n_slices, last + beyond + 1))
            found.append(thinned(numbers, most))
        return found

    @cached_property
    def _moments(self) -> list[LabelMoments]:
        return [self._moments_of(subject, number)
                for subject, numbers in zip(self._subjects, self._numbers, strict=True) for number in numbers]

    def _moments_of(self, subject: Subject, number: int) -> LabelMoments:
        cut = subject.stack.cut(number, self.field_of(subject, number), self._size)
        return self._reading.encode(cut.image, cut.label(subject.stack.slice_of(subject.label, number)))

    def field_of(self, subject: Subject, number: int) -> Field:
        """What is shown of a slice of a reference."""
        if not self._focus:
            return subject.stack.whole
        return subject.stack.field(subject.extents_near(number).centre, self._focus * subject.side_mm, self._size)
