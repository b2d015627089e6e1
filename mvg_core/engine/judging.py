"""How far to trust what is painted and what is read: references that know the answer are asked.

Each of some references is solved by the others; what mixes best there is used for the query. And volumes are read by
themselves: where not even the references' own structures are found, what is read says nothing of where those of the
query are. Both cost as much as a few slices more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mvg_core.engine.config import EngineConfig
from mvg_core.engine.fields import Field
from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.reading import ReferenceReading
from mvg_core.engine.subject import Subject
from mvg_core.tuning import thinned

FEWEST = 3
"""One that is left out must leave others who agree or not."""
MOST = 6
"""References that are left out, one after the other."""
PLACES = (0.15, 0.5, 0.85)
"""Where their slices are solved: not the middle alone, for the ends are harder."""
LEAST_RECALL = 0.6
"""Structures that are read worse than this (Dice) from the references' own slices are not looked for by reading."""
RECALLED = 8
"""Slices of references that are read for that."""
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of what is read. Earlier ones win a tie: reading is faster."""


def recall(subjects: Sequence[Subject], by_whole: ReferenceReading, painter: SlicePainter, size: int) -> float:
    """Dice of what is read of whole slices of the references, by all of them, with what is labelled there, 0 to 1.

    Args:
        subjects: the references.
        by_whole: reads whole slices by them.
        painter: knows the labels.
        size: side of the slices in pixels.
    """
    both = all_found = 0
    marked = [(subject, number) for subject in subjects for number in subject.extents]
    for subject, number in thinned(marked, RECALLED):
        cut = subject.stack.cut(number, subject.stack.whole, size)
        truth = cut.label(subject.stack.slice_of(subject.label, number)) > 0
        found = painter.decide(by_whole.read(cut)) > 0
        both += np.count_nonzero(found & truth)
        all_found += np.count_nonzero(found) + np.count_nonzero(truth)
    return 2 * both / max(1, all_found)


def share_by_references(subjects: Sequence[Subject], painter: SlicePainter, reading: ReferenceReading, size: int,
                        config: EngineConfig) -> float:
    """The share of what is read that suits the references best.

    Args:
        subjects: the references, in the order of `reading`.
        painter: paints.
        reading: reads by them.
        size: side of the network's square.
        config: says how much is seen around the structures, and by how many examples is painted.
    """
    dice = [_dice_of_shares(number, subjects, painter, reading, size, config)
            for number in thinned(range(len(subjects)), MOST)]
    return SHARES[int(np.argmax(np.round(np.mean(dice, axis=0), 3)))]


def _dice_of_shares(left_out: int, subjects: Sequence[Subject], painter: SlicePainter, reading: ReferenceReading,
                    size: int, config: EngineConfig) -> list[float]:
    numbers = {subjects[left_out].nearest_labelled(subjects[left_out].number_at(place)) for place in PLACES}
    found = [_dice_in_slice(left_out, number, subjects, painter, reading, size, config) for number in sorted(numbers)]
    return np.mean(found, axis=0).tolist()


def _dice_in_slice(left_out: int, number: int, subjects: Sequence[Subject], painter: SlicePainter,
                   reading: ReferenceReading, size: int, config: EngineConfig) -> list[float]:
    subject = subjects[left_out]
    place = subject.place(number)
    corresponding = [other.number_at(place) for other in subjects]
    examples = [_example(other, at, reading.field_of(other, at), size) for order, (other, at)
                in enumerate(zip(subjects, corresponding, strict=True)) if order != left_out][: config.n_prompts]
    cut = subject.stack.cut(number, reading.field_of(subject, number), size)
    truth = cut.label(subject.stack.slice_of(subject.label, number))
    painted = painter.paint(cut.image, examples)
    read = reading.read(cut, corresponding, without=left_out)
    return [_dice(painter.decide(painter.mixed(lambda: painted, lambda: read, share)), truth) for share in SHARES]


def _example(subject: Subject, number: int, shown: Field, size: int) -> Example:
    cut = subject.stack.cut(number, shown, size)
    label = cut.label(subject.stack.slice_of(subject.label, number))
    return Example(cut.image, label, ("judging", id(subject), number))


def _dice(found: npt.NDArray[np.integer], truth: npt.NDArray[np.integer]) -> float:
    """Mean over the labels that are there."""
    labels = [label for label in np.unique(truth) if label]
    if not labels:  # lost when the slice was cut
        return 0.0
    return float(np.mean([2 * np.count_nonzero((found == label) & (truth == label))
                          / (np.count_nonzero(found == label) + np.count_nonzero(truth == label)) for label in labels]))
