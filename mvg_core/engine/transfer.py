"""From labelled volumes of other subjects to a new one.

A registration of the volumes says where the structures are to be expected and which slices of the references
correspond; the network, shown both in focus, says where they are.

Shape letters: I J K voxels; h w the in-plane axes of a slice; S side of the network's square; L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.engine.answer import VolumeAnswer
from mvg_core.engine.config import EngineConfig
from mvg_core.engine.consensus import OUTLIER
from mvg_core.engine.fields import Cut, Extent, Field, Stack, extent_of
from mvg_core.engine.judging import FEWEST, share_by_references
from mvg_core.engine.locating import Located
from mvg_core.engine.matching import Matching
from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.quality import LEAST_QUALITY, quality_of
from mvg_core.engine.reading import ReferenceReading
from mvg_core.engine.subject import Subject
from mvg_core.engine.watch import Watch
from mvg_core.prompts import Prompt
from mvg_core.registration import Alignment
from mvg_core.registration.grids import Box, part_of
from mvg_core.retrieval import Choice
from mvg_core.tuning import TuningConfig, thinned
from mvg_core.volume import Geometry, Volume

MARGIN = 0.15
"""Structures are looked for this share of their length beyond where they are expected."""
LEAST_VOTES = 0.3
"""A voxel belongs to where structures are expected if so many of the references say so."""
OWN_EXAMPLES = 2
"""Most slices of the query itself that serve one slice beside the references."""
SCALES = (0.7, 1.4)
"""A reference is shown at most this much smaller or larger than the query, whatever the registration says."""
_PIECE = 4_000_000
"""Most voxels for which the registrations' expectations are worked out at once, for memory."""


class Transfer:
    """Labels of other subjects -> labels of the query.

    Args:
        stack: the query.
        subjects: the references.
        painter: paints.
        config: which parts are used.
        own: label map (I, J, K) of the query, of which `solved` slices are known; they serve their neighbours.
        solved: numbers of these slices.
        wanted: numbers of the slices that are asked for; None: all.
        keep: keep the probabilities of the labels too.
        located: where the structures were read; asked where no registration says where they are.
    """

    def __init__(self, stack: Stack, subjects: Sequence[Subject], painter: SlicePainter, config: EngineConfig, *,
                 own: npt.NDArray[np.uint8] | None = None, solved: Sequence[int] = (), wanted: range | None = None,
                 keep: bool = False, located: Located | None = None) -> None:
        self.stack, self.painter, self.config = stack, painter, config
        self.solved, self._own = sorted(set(solved)), own
        asked = range(stack.n_slices) if wanted is None else wanted
        self._unsolved = [number for number in asked if number not in self.solved]
        believed = [subject for subject in subjects if subject.agreement >= OUTLIER]
        self._subjects = sorted(believed, key=lambda subject: -subject.weight)
        self._prior = _Prior(stack, self._subjects, painter.labels)
        self._located = located if self._prior.is_empty else None
        self._extents = self._expected()
        side_mm = max((extent.side_mm for extent in self._extents.values()), default=0.0)
        self.size = stack.pixels(config.focus * side_mm, config.size) if config.focus else config.size
        self.answer = VolumeAnswer.empty(stack.volume.geometry.shape, len(painter.labels) if keep else 0)
        if own is not None:
            for number in self.solved:
                stack.slice_of(self.answer.label, number)[...] = stack.slice_of(own, number)

    @property
    def n_to_paint(self) -> int:
        """Slices to be decided on, over all passes."""
        return len(self._unsolved) * self.config.passes

    def run(self, watch: Watch, done: int = 0, total: int | None = None) -> VolumeAnswer:
        """Solve every slice in which something is expected.

        Args:
            watch: told about every slice.
            done: steps done before.
            total: steps in all; None: these alone.

        Raises:
            Cancelled: on request; `answer` holds what was done.
        """
        total = done + self.n_to_paint if total is None else total
        before = None
        for _ in range(self.config.passes):
            if before is not None:
                self._extents = self._found(before)
            for number in self._unsolved:
                watch.check()
                done += 1
                if number in self._extents:
                    self._solve(number, before)
                    watch.show(number, self.stack.slice_of(self.answer.label, number))
                watch.tell(done, total)
            before = self.answer.copy() if self.config.passes > 1 else None
        return self.answer

    def lessons(self, most: int = TuningConfig.most_prompts) -> list[Prompt]:
        """Slices of the references, evenly thinned to `most`, as prompts that a network can be tuned on."""
        marked = [(subject, number) for subject in self._subjects for number in subject.extents]
        prompts = []
        for subject, number in thinned(marked, most):
            shown = subject.stack.whole
            if self.config.focus:
                side_mm = self.config.focus * subject.side_mm
                shown = subject.stack.field(subject.extents[number].centre, side_mm, self.size)
            example = self._example(subject, number, shown)
            prompts.append(Prompt(example.image, example.label, subject.stack.name, subject.place(number)))
        return prompts

    def described(self) -> list[dict[str, Any]]:
        """The references and how they were used, for a report."""
        return [{"reference": subject.stack.name, "slices": sorted(subject.extents),
                 "registration": _registration(subject)} for subject in self._subjects]

    # --- where ---

    def _expected(self) -> dict[int, Extent]:
        """Where the structures are expected in each slice of the query, margins included."""
        everywhere = {number: Extent(self.stack.whole.centre, self.stack.whole.side_mm)
                      for number in range(self.stack.n_slices)}
        if not self.config.focus:
            return everywhere
        found = self._located_extents() if self._prior.is_empty else self._prior.extents
        if not found:
            return everywhere
        side = max(extent.side_mm for extent in found.values())
        margin = 1 + round(MARGIN * (max(found) - min(found) + 1))
        low, high = max(0, min(found) - margin), min(self.stack.n_slices - 1, max(found) + margin)
        return {number: Extent(_nearest(found, number).centre, side) for number in range(low, high + 1)}

    def _located_extents(self) -> dict[int, Extent]:
        """Where structures were read, in fields as large as the references' structures are on average."""
        if self._located is None:
            return {}
        sides = [subject.side_mm for subject in self._subjects]
        return {number: Extent(extent.centre, float(np.mean(sides)))
                for number, extent in self._located.extents.items()}

    def _found(self, before: VolumeAnswer) -> dict[int, Extent]:
        """The same, by what was found; where nothing was, the slices around say where to look."""
        found = {}
        for number in self._extents:
            extent = extent_of(self.stack.slice_of(before.label, number), self.stack.spacing_mm)
            if extent is not None and (number in self.solved or before.quality[number].expected >= LEAST_QUALITY):
                found[number] = extent
        if not found:
            return self._extents
        return {number: Extent(_nearest(found, number).centre, expected.side_mm)
                for number, expected in self._extents.items()}

    # --- what ---

    def _solve(self, number: int, before: VolumeAnswer | None) -> None:
        config, stack, extent = self.config, self.stack, self._extents[number]
        shown = stack.field(extent.centre, config.focus * extent.side_mm, self.size) if config.focus else stack.whole
        cut = stack.cut(number, shown, self.size)
        extra = [*self._own_examples(cut), *([] if before is None else self._neighbours(number, before, cut))]
        own = list(extra)
        prior = None if config.prior == "off" or self._prior.is_empty else self._prior.of(cut)
        if prior is not None and config.prior in ("draft", "both"):
            guess = self.painter.decide(prior)
            if guess.any():
                extra.append(Example(cut.image, guess, weight=config.trust))
        probabilities = self.painter.mixed(lambda: self._ensemble(cut, extra), lambda: self._read(cut, own), self.share)
        if prior is not None and config.prior in ("fuse", "both"):
            probabilities = (1 - config.prior_weight) * probabilities + config.prior_weight * prior
        native = cut.back(probabilities)
        label = self.painter.decide(native)
        self.answer.write(number, cut, native, label, quality_of(native, label))

    def _ensemble(self, cut: Cut, extra: Sequence[Example]) -> npt.NDArray[np.float32]:
        """Answers by different references, averaged; the best references come first in each."""
        n_answers = min(self.config.ensemble, len(self._subjects))
        answers = []
        subjects = self._best_first(cut.number)
        for turn in range(n_answers):
            mine = subjects[turn::n_answers][: self.config.n_prompts]
            examples = [self._example(subject, *self._corresponding(subject, cut)) for subject in mine]
            answers.append(self.painter.paint(cut.image, [*examples, *extra]))
        return np.mean(answers, axis=0)

    @cached_property
    def share(self) -> float:
        """Of what is read; the references themselves tell, where there are enough of them, see `judging`."""
        # A network that was tuned on the references would be judged by what it has seen.
        can_judge = self.config.judge and not self.config.tuning
        if not can_judge or len(self._subjects) < FEWEST or self.painter.reading is None:
            return self.painter.share
        return share_by_references(self._subjects, self.painter, self._reading, self.size, self.config)

    def _read(self, cut: Cut, own: Sequence[Example]) -> npt.NDArray[np.float32]:
        """What the slices of all references, and of the query itself, read."""
        return self._reading.read(cut, [self._corresponding(subject, cut)[0] for subject in self._subjects],
                                  [self.painter.moments_of(example) for example in own],
                                  [example.weight for example in own])

    @cached_property
    def _reading(self) -> ReferenceReading:
        assert self.painter.reading is not None  # else it has no share
        return ReferenceReading(self._subjects, self.painter.reading, self.size, self.config.focus)

    def _example(self, subject: Subject, number: int, shown: Field) -> Example:
        cut = subject.stack.cut(number, shown, self.size)
        key = (id(subject), number, shown)
        return Example(cut.image, cut.label(subject.stack.slice_of(subject.label, number)), key)

    def _best_first(self, number: int) -> list[Subject]:
        """The references: registered ones as they are ordered already, then those that match a slice best."""
        return sorted(self._subjects, key=lambda one: self._matches[one][number].cost if one in self._matches else -1.0)

    @cached_property
    def _matches(self) -> dict[Subject, list[Choice]]:
        """Of references that no registration places: what serves each slice of the query."""
        lost = [subject for subject in self._subjects if subject.placed is None]
        if not lost:
            return {}
        matching = Matching(self.stack, by_looks=self.config.retrieval)
        return {subject: matching.of(subject.stack, *subject.first_and_last) for subject in lost}

    def _corresponding(self, subject: Subject, cut: Cut) -> tuple[int, Field]:
        """The slice of a reference, and the part of it, that shows what a cut of the query shows."""
        there = subject.stack
        if subject.placed is None and self._located is not None:
            number = subject.number_at(self._located.place(cut.number))
            side_mm = self.config.focus * subject.side_mm
            return number, there.field(subject.extents_near(number).centre, side_mm, cut.size)
        if subject.placed is None:
            return self._matches[subject][cut.number].slice, there.whole
        first, second = self.stack.in_plane
        corners = np.zeros((3, 3))
        corners[:, self.stack.axis] = cut.number
        corners[:, [first, second]] = cut.field.centre
        for row, (axis, mm) in enumerate(zip((first, second), self.stack.spacing_mm, strict=True), start=1):
            corners[row, axis] += cut.field.side_mm / mm
        mm = subject.placed.points(self.stack.volume.geometry.index_to_world(corners))
        index = there.volume.geometry.world_to_index(mm[0])
        # Where the reference shows nothing of it, its nearest slice that does is the better example.
        number = int(np.clip(round(float(index[there.axis])), *subject.first_and_last))
        side_mm = float(np.mean(np.linalg.norm(mm[1:] - mm[0], axis=1)))
        least, most = (scale * self._side(subject, cut) for scale in SCALES)
        side_mm = float(np.clip(side_mm, least, most))
        centre = (float(index[there.in_plane[0]]), float(index[there.in_plane[1]]))
        return number, there.field(centre, side_mm, cut.size)

    def _side(self, subject: Subject, cut: Cut) -> float:
        """Side of the reference's field if both subjects were of one size; pictures have no true scale."""
        if _is_picture(self.stack.volume.geometry) or _is_picture(subject.stack.volume.geometry):
            return cut.field.side_mm * subject.stack.whole.side_mm / self.stack.whole.side_mm
        return cut.field.side_mm

    def _own_examples(self, cut: Cut) -> list[Example]:
        """The nearest slices of the query that are solved already, where the query's own structures are expected."""
        if self._own is None:
            return []
        examples = []
        for at in sorted(self.solved, key=lambda at: abs(at - cut.number))[:OWN_EXAMPLES]:
            label = self.stack.slice_of(self._own, at)
            extent = extent_of(label, self.stack.spacing_mm)
            shown = cut.field if extent is None else Field(extent.centre, cut.field.side_mm)
            one = self.stack.cut(at, shown if self.config.focus else self.stack.whole, cut.size)
            examples.append(Example(one.image, one.label(label), ("own", at, shown)))
        return examples

    def _neighbours(self, number: int, before: VolumeAnswer, cut: Cut) -> list[Example]:
        """What the slices around were found to show."""
        examples = []
        for step in range(1, self.config.memory + 1):
            for at in (number - step, number + step):
                quality = before.quality.get(at)
                if quality is None or not quality.area or quality.expected < LEAST_QUALITY:
                    continue
                one = self.stack.cut(at, cut.field, cut.size)
                examples.append(Example(one.image, one.label(self.stack.slice_of(before.label, at)),
                                        weight=max(1e-3, self.config.trust * quality.expected)))
        return examples


class _Prior:
    """What the registrations expect: how much of each voxel every label covers, in the part that it can reach."""

    def __init__(self, stack: Stack, subjects: Sequence[Subject], labels: Sequence[int]) -> None:
        self._stack, self._n_labels = stack, len(labels)
        placed = [(subject.weight, subject.placed, subject.stack.volume.with_array(subject.label))
                  for subject in subjects if subject.placed is not None]
        total = sum(weight for weight, _, _ in placed)
        parts = {row: _expected_label(stack.volume.geometry, label, [
            (weight / total, alignment, volume) for weight, alignment, volume in placed])
            for row, label in enumerate(labels, start=1)}
        # One box for each label: all labels on one box would not fit in memory.
        self._parts = {row: part for row, part in parts.items() if part is not None}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is expected anywhere."""
        return not self._parts

    @property
    def extents(self) -> dict[int, Extent]:
        """Where structures are expected in the slices in which they are."""
        each = {number: extent_of(self._slice(number)[1].sum(axis=-1) > LEAST_VOTES, self._stack.spacing_mm)
                for number in range(self._stack.n_slices)}
        return {number: extent for number, extent in each.items() if extent is not None}

    def of(self, cut: Cut) -> npt.NDArray[np.float32]:
        """(S, S, 1 + L)."""
        rows, covered = self._slice(cut.number)
        shown = np.zeros((cut.size, cut.size, 1 + self._n_labels), np.float32)
        if rows:
            shown[..., rows] = cut.channels(covered)
        shown[..., 0] = np.maximum(0, 1 - shown.sum(axis=-1))
        return shown

    def _slice(self, number: int) -> tuple[list[int], npt.NDArray[np.float32]]:
        """The rows of the labels that reach a slice, and how much of its voxels they cover, (h, w, rows)."""
        axis, (first, second) = self._stack.axis, self._stack.in_plane
        rows = [row for row, (box, _) in self._parts.items() if box[axis].start <= number < box[axis].stop]
        whole = np.zeros((*self._stack.shape, len(rows)), np.float32)
        for channel, row in enumerate(rows):
            box, covered = self._parts[row]
            whole[box[first], box[second], channel] = np.moveaxis(covered, axis, 0)[number - box[axis].start]
        return rows, whole


def _expected_label(query: Geometry, label: int, placed: Sequence[tuple[float, Alignment, Volume]]
                    ) -> tuple[Box, npt.NDArray[np.float16]] | None:
    """Where several references, each with its share of the votes, expect a label: a box, and how much is covered."""
    found = []
    for share, alignment, volume in placed:
        only = _only(volume, label)
        box = None if only is None else alignment.box(only)
        if only is not None and box is not None:
            found.append((share, alignment, only, box))
    if not found:
        return None
    i, j, k = (slice(min(box[axis].start for *_, box in found), max(box[axis].stop for *_, box in found))
               for axis in range(3))
    covered = np.zeros((i.stop - i.start, j.stop - j.start, k.stop - k.start), np.float16)
    for share, alignment, only, box in found:
        step = max(1, _PIECE // ((box[1].stop - box[1].start) * (box[2].stop - box[2].start)))
        for start in range(box[0].start, box[0].stop, step):
            piece = (slice(start, min(start + step, box[0].stop)), box[1], box[2])
            here = tuple(slice(side.start - all_.start, side.stop - all_.start)
                         for side, all_ in zip(piece, (i, j, k), strict=True))
            values = alignment.probabilities(only, [label], part_of(query, piece))[..., 1]
            covered[here] += (share * values).astype(np.float16)
    return (i, j, k), covered


def _only(volume: Volume, label: int) -> Volume | None:
    """The part of a label map that holds a label, and one voxel around it; None if it is not there."""
    mask = volume.array == label
    sides = []
    for axis in range(3):
        marked = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not marked.size:
            return None
        sides.append(slice(max(0, int(marked[0]) - 1), int(marked[-1]) + 2))
    box = (sides[0], sides[1], sides[2])
    return Volume(volume.array[box] * mask[box], part_of(volume.geometry, box))


def _nearest(found: dict[int, Extent], number: int) -> Extent:
    return found[min(found, key=lambda at: abs(at - number))]


def _is_picture(geometry: Geometry) -> bool:
    return min(geometry.shape) == 1 and np.allclose(geometry.spacing_mm, 1)


def _registration(subject: Subject) -> dict[str, Any] | None:
    if subject.alignment is None:
        return None
    return {"stage": subject.alignment.stage, "quality": round(subject.alignment.quality, 4),
            "agreement": round(subject.agreement, 4), "remarks": list(subject.alignment.remarks)}
