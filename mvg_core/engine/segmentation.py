"""A segmentation of one volume: by propagation, from other subjects, or both; in one plane or in three."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.cleanup import CleanupConfig, LabelCleanup, clean_up
from mvg_core.codecs import label_groups
from mvg_core.engine.answer import VolumeAnswer, lead
from mvg_core.engine.calibration import Calibration
from mvg_core.engine.config import EngineConfig
from mvg_core.engine.consensus import Believed, believed
from mvg_core.engine.fields import Stack
from mvg_core.engine.judging import LEAST_RECALL, recall
from mvg_core.engine.locating import DISAGREES, WHOLE, Located, locate
from mvg_core.engine.painter import SlicePainter
from mvg_core.engine.propagation import Propagation, chains
from mvg_core.engine.quality import quality_of, suggestions
from mvg_core.engine.reading import ReferenceReading
from mvg_core.engine.subject import Subject
from mvg_core.engine.transfer import OWN_EXAMPLES, Transfer
from mvg_core.engine.watch import Watch
from mvg_core.predict import Predictor, look_at, modality_warnings, scaling_for
from mvg_core.prompts import Support
from mvg_core.references import Reference, choose_axis, labels_in, marked_slices, plan_for, slice_range
from mvg_core.registration import Alignment, align
from mvg_core.slices import SlicePlan
from mvg_core.tasks import Task
from mvg_core.tuning import TuningConfig
from mvg_core.volume import Geometry, Volume

DOUBTFUL = 0.6
"""Slices whose answer is expected to have a lower Dice are named in the report."""
NEARLY_CUBES = 1.5
"""Three planes are averaged where no side of a voxel is longer than this multiple of another."""
MOST_LESSONS = 96
"""Most slices that a network is tuned on: more take memory, and a hundred steps see few of them twice."""
REGISTRATION_STEPS = 20
"""For whoever looks on, the registration of a reference is as much work as so many slices."""
_CACHED = 64
"""Most examples kept encoded, where memory is not limited."""


class SegmentationRun:
    """One segmentation: everything that is fixed before the first slice is painted.

    Args:
        predictor: holds the network.
        config: which parts are used.
        query: what to solve.
        references: at least one, not yet checked.
        task: segmentation.
        plane: see `Predictor.predict_volume`.
        window: see `Predictor.predict_volume`.
        slices: see `VolumeEngine.solve`.
        register: see `VolumeEngine`.

    Raises:
        GeometryError, IndexError, ValueError: an input cannot be used; says what to do.
    """

    def __init__(self, predictor: Predictor, config: EngineConfig, query: Volume, references: Sequence[Reference],
                 task: Task, plane: str | int, window: tuple[float, float] | None,
                 slices: tuple[int, int] | None = None, register: Callable[..., Alignment] = align) -> None:
        self._config, self._query, self._task, self._window = config, query, task, window
        self._register = register
        self._scaling, is_ct = look_at(query, None, task, window)
        checked = [reference.checked(task) for reference in references]
        self.warnings = modality_warnings(is_ct, checked)
        own = [reference.is_part_of(query) for reference in checked]
        self._own = [reference for reference, mine in zip(checked, own, strict=True) if mine]
        others = [reference for reference, mine in zip(checked, own, strict=True) if not mine]
        # Slices of the query were drawn in a plane; other subjects can be cut in any.
        self._axis = choose_axis([*self._own, *others], query.geometry, task, plane)
        self._wanted = slice_range(slices, query.geometry.shape[self._axis])
        self._own_label, self._solved = self._own_slices()
        self._others = [known for reference in others if (known := self._known(reference)).label.array.any()]
        if not self._solved and not self._others:
            raise ValueError("the references hold no solved slice: label at least one")
        self._labels = sorted(labels_in(self._own_label).union(
            *(labels_in(reference.label.array) for reference in self._others)))
        self._tuning = TuningConfig(config.tuning, most_prompts=MOST_LESSONS) if config.tuning else predictor.tuning
        self._predictor, self._cached = self._within_memory(predictor)
        self._runs: list[Propagation | Transfer] = []
        self._registered: list[Believed] = []
        self._located: Located | None = None
        self._tuned: dict[str, Any] | None = None
        self._cleaned: tuple[LabelCleanup, ...] = ()

    def solve(self, watch: Watch) -> VolumeAnswer:
        """Solve all slices.

        Raises:
            Cancelled: on request; `partial` gives what there is.
        """
        watch.check()
        total = self._n_steps
        done = self._align(watch, total)
        painter = SlicePainter(self._predictor.backend, self._labels, self._predictor.palette, self._cached,
                               self._config.reading if self._others else self._config.own_reading)
        self._located = self._locate(painter)
        self._runs = self._planned(painter)
        done = self._tune(painter, watch, done, total)
        for run in self._runs:
            # Numbers of slices in other planes would mean nothing to whoever looks on.
            run.run(watch if run is self._runs[0] else replace(watch, painted=None), done, total)
            done += run.n_to_paint
        answer = self._runs[0].answer
        if len(self._runs) > 1:
            self._average(answer, [run.answer for run in self._runs])
        self.tidy(answer)
        return answer

    def partial(self) -> VolumeAnswer | None:
        """What was solved so far, in the first plane."""
        return self._runs[0].answer if self._runs and self._runs[0].answer.quality else None

    def calibrate(self, answer: VolumeAnswer) -> None:
        """Turn confidence into probabilities, and tell what to expect of slices; in place."""
        answer.match = self.match
        way = Calibration.way(len(self._others), is_fused=self._config.prior in ("fuse", "both"))
        stack = self._stack(self._axis)
        passed = sorted(set(range(stack.n_slices)) - set(self._wanted) - set(self._solved))
        for number in passed:  # solved only because others learn from them, or not at all
            stack.slice_of(answer.label, number)[...] = 0
            answer.quality.pop(number, None)
        Calibration.shipped().apply(answer, self._axis, self._solved, way)
        np.moveaxis(answer.confidence, self._axis, 0)[passed] = 0

    def described(self, answer: VolumeAnswer) -> dict[str, Any]:
        """How the answer came about, for a report."""
        quality = {str(number): {"expected_dice": round(one.expected_dice, 4), "soft_dice": round(one.expected, 4),
                                 "voxels": one.area}
                   for number, one in sorted(answer.quality.items())}
        doubtful = [number for number, one in sorted(answer.quality.items())
                    if one.area and one.expected_dice < DOUBTFUL]
        first = self._runs[0]
        return {"labels": {str(number): name for number, name in self._task.labels.items()},
                "plane": self._query.geometry.plane_of_axis(self._axis), "planes": len(self._runs),
                "slices": self._query.geometry.shape[self._axis],
                "asked_slices": [self._wanted[0], self._wanted[-1]], "network_size": self._runs[0].size,
                "labelled_slices": list(self._solved), "slice_quality": quality, "doubtful_slices": doubtful,
                "suggested_slices": suggestions(answer.quality, self._solved, self._query.geometry.shape[self._axis]),
                "given_up_registrations": [reference.name for reference, found in
                                           zip(self._others, self._registered, strict=False) if found.missed],
                "ended_at": sorted(answer.ended), "intensity": self._scaling.to_json(), "tuning": self._tuned,
                "prompts": [*({"reference": reference.name, "slices": list(self._solved)} for reference in self._own),
                            *(first.described() if isinstance(first, Transfer) else [])],
                "cleanup": self.cleanup}

    @property
    def cleanup(self) -> list[dict[str, Any]]:
        """What was tidied, for a report."""
        return [one.to_json() for one in self._cleaned]

    # --- the parts ---

    def tidy(self, answer: VolumeAnswer) -> None:
        """Clean up an answer as the configuration says; what the user drew stays."""
        config = CleanupConfig(largest_component=self._config.largest_component, fill_holes=self._config.fill_holes)
        if config.is_off:
            return
        before = answer.label
        tidied, cleaned = clean_up(self._query.with_array(before), config)
        answer.label = tidied.array.astype(np.uint8, copy=False)
        answer.confidence = np.where(answer.label == before, answer.confidence, np.float32(0))
        stack = self._stack(self._axis)
        for number in self._solved:
            stack.slice_of(answer.label, number)[...] = stack.slice_of(self._own_label, number)
        self._cleaned = tuple(_recounted(one, before == one.label, answer.label == one.label) for one in cleaned)

    @property
    def _n_steps(self) -> int:
        """Steps of work in all, for whoever looks on; known before anything is found out."""
        steps = self._tuning.steps if self._tuning is not None else 0
        if self._is_registered:
            steps += REGISTRATION_STEPS * len(self._others)
        if not self._others:
            n_slices = self._query.geometry.shape[self._axis]
            visited = chains(self._solved, n_slices, self._wanted, self._config)
            return steps + sum(len(chain) - 1 for chain in visited)
        asked = len(set(self._wanted) - set(self._solved))
        around = sum(self._query.geometry.shape[axis] for axis in self._axes[1:])
        return steps + (asked + around) * self._config.passes

    def _planned(self, painter: SlicePainter) -> list[Propagation | Transfer]:
        """What solves each plane."""
        if not self._others:
            return [Propagation(self._stack(self._axis), self._own_label, self._solved, painter, self._config,
                                self._wanted)]
        return [Transfer(self._stack(axis), self._subjects(axis), painter, self._config,
                         own=self._own_label if axis == self._axis else None,
                         solved=self._solved if axis == self._axis else (), keep=len(self._axes) > 1,
                         wanted=self._wanted if axis == self._axis else None,
                         located=self._located if axis == self._axis else None)
                for axis in self._axes]

    def _tune(self, painter: SlicePainter, watch: Watch, done: int, total: int) -> int:
        """Tune on the examples, if asked for and anything is painted; the steps done then."""
        if self._tuning is None:
            return done
        if painter.share == 1:
            watch.tell(done + self._tuning.steps, total)
            return done + self._tuning.steps
        support = Support(tuple(self._runs[0].lessons(self._tuning.most_prompts)), self._task)
        tuned = Predictor(self._predictor.backend, palette=self._predictor.palette, tuning=self._tuning).tune(
            support, lambda step, _: watch.check_and_tell(done + step, total))
        painter.backend, self._tuned = tuned.backend, tuned.tuned
        return done + self._tuning.steps

    def _average(self, result: VolumeAnswer, answers: Sequence[VolumeAnswer]) -> None:
        """Planes averaged, in the first one's answer; what was labelled stays."""
        stack = self._stack(self._axis)
        labels = np.array([0, *self._labels], np.uint8)
        for number in sorted(set(range(stack.n_slices)) - set(self._solved)):  # one by one, for memory
            kept = [stack.slice_of(answer.probabilities, number) for answer in answers
                    if answer.probabilities is not None]
            mean = np.mean(kept, axis=0, dtype=np.float32)
            probabilities = np.concatenate([1 - mean.sum(axis=-1, keepdims=True), mean], axis=-1)
            label = labels[probabilities.argmax(axis=-1)]
            stack.slice_of(result.label, number)[...] = label
            stack.slice_of(result.confidence, number)[...] = lead(probabilities)
            if number in result.quality or label.any():
                result.quality[number] = quality_of(probabilities, label)
        result.probabilities = None

    def _align(self, watch: Watch, total: int) -> int:
        """Register every reference, if asked for; the steps done then."""
        if not self._is_registered:
            return 0
        done, bend, found = 0, self._config.prior != "off", []
        for reference in self._others:
            watch.check()
            found.append(self._register(self._query, reference.image, label=reference.label, affine_only=not bend))
            done += REGISTRATION_STEPS
            watch.tell(done, total)
        watch.check()
        self._registered = believed(self._query, self._others, found, affine_only=not bend)
        return done

    def _locate(self, painter: SlicePainter) -> Located | None:
        """Where the structures are by what is read of whole slices; registrations that miss it are given up.

        What is not even found in the references themselves is not looked for in the query.
        """
        if painter.reading is None or not (self._others and self._config.locate and self._config.focus):
            return None
        query, subjects = self._stack(self._axis), self._subjects(self._axis)
        by_whole = ReferenceReading(subjects, painter.reading, WHOLE, 0)
        if query.n_slices > 1 and recall(subjects, by_whole, painter, WHOLE) < LEAST_RECALL:
            return None
        located = locate(query, subjects, by_whole)
        if located is not None:
            both = zip(self._registered, self._others, strict=False)  # nothing need be registered
            self._registered = [self._doubted(located, *each) for each in both]
        return located

    @staticmethod
    def _doubted(located: Located, found: Believed, reference: Reference) -> Believed:
        misses = located.agreement(found.alignment, reference.label) < DISAGREES
        return replace(found, missed=True) if misses else found

    @property
    def match(self) -> float:
        """See `VolumeAnswer.match`."""
        return max((one.alignment.quality * one.agreement for one in self._registered), default=VolumeAnswer.match)

    @property
    def _is_registered(self) -> bool:
        return self._config.locate or self._config.prior != "off"

    def _subjects(self, axis: int) -> list[Subject]:
        """The other subjects, in the plane of this axis of the query."""
        plan = SlicePlan.for_volume(self._query.geometry, axis)
        subjects = []
        for number, reference in enumerate(self._others):
            there = plan_for(reference.image.geometry, plan, None).axis
            stack = Stack(reference.image, there, self._scaling_of(reference), reference.name)
            subject = Subject(stack, reference.label.array)
            if self._registered:
                found = self._registered[number]
                subject = replace(subject, alignment=None if found.missed else found.alignment,
                                  agreement=found.agreement)
            subjects.append(subject)
        return subjects

    def _known(self, reference: Reference) -> Reference:
        """A reference with the labels of its solved slices only, if it names them."""
        if reference.slices is None:
            return reference
        axis = plan_for(reference.image.geometry, SlicePlan.for_volume(self._query.geometry, self._axis), None).axis
        label, known = np.moveaxis(reference.label.array, axis, 0), np.zeros_like(reference.label.array)
        for number in _checked_slices(reference, len(label)):
            np.moveaxis(known, axis, 0)[number] = label[number]
        return replace(reference, label=reference.label.with_array(known))

    def _scaling_of(self, reference: Reference) -> Any:
        return scaling_for(reference.image.array, self._task, self._window)

    def _stack(self, axis: int) -> Stack:
        return Stack(self._query, axis, self._scaling, "query")

    @cached_property
    def _axes(self) -> list[int]:
        """The planes' axes: that of the slices first; it alone where only some slices are asked for."""
        is_whole = len(self._wanted) == self._query.geometry.shape[self._axis]
        can_turn = (self._config.planes == 3 and is_whole and _nearly_cubes(self._query.geometry) and bool(self._others)
                    and all(_is_labelled_throughout(reference) for reference in self._others))
        more = [axis for axis in range(3) if axis != self._axis] if can_turn else []
        return [self._axis, *more]

    def _own_slices(self) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """The label map of the query's own solved slices, and their numbers."""
        label, solved = np.zeros(self._query.geometry.shape, np.uint8), set[int]()
        for reference in self._own:
            known = np.moveaxis(reference.label.array, self._axis, 0)
            numbers = (marked_slices(reference.label.array, self._axis) if reference.slices is None
                       else _checked_slices(reference, len(known)))
            for number in numbers:
                here = np.moveaxis(label, self._axis, 0)[number]
                here[known[number] > 0] = known[number][known[number] > 0]
            solved |= set(numbers)
        return label, sorted(solved)

    def _within_memory(self, predictor: Predictor) -> tuple[Predictor, int]:
        """A predictor that stays below its limit of memory, and how many examples may be kept encoded."""
        if predictor.max_memory_mb is None:
            return predictor, _CACHED
        limited = copy.copy(predictor)
        limited.tuning = self._tuning
        limited.n_prompts = self._config.n_prompts + 2 * self._config.memory + OWN_EXAMPLES + 1
        limited = limited.within_memory(self._config.size, self._query.array.size, len(self._labels))
        return limited, max(1, limited.cached_prompts // max(1, len(label_groups(self._labels))))


def _checked_slices(reference: Reference, n_slices: int) -> list[int]:
    """The numbers of a reference's solved slices, plain and in order.

    Raises:
        IndexError: there is no such slice.
    """
    numbers = sorted({int(number) for number in reference.slices or ()})
    wrong = [number for number in numbers if not 0 <= number < n_slices]
    if wrong:
        raise IndexError(f"{reference.name} has no slice {wrong[0]}: along this axis they are 0 to {n_slices - 1}")
    return numbers


def _is_labelled_throughout(reference: Reference) -> bool:
    """Whether the labels can be cut in any plane: not a few slices of them only."""
    marked = [marked_slices(reference.label.array, axis) for axis in range(3)]
    return reference.slices is None and all(1 < len(numbers) == numbers[-1] - numbers[0] + 1 for numbers in marked)


def _recounted(one: LabelCleanup, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> LabelCleanup:
    """A clean-up by what it came to, when some of it was taken back."""
    removed, added = (int(np.count_nonzero(lost)) for lost in (before & ~after, after & ~before))
    removed_ml, added_ml = (None if ml is None else round(ml * now / was, 6) if was else ml
                            for ml, now, was in ((one.removed_ml, removed, one.removed_voxels),
                                                 (one.added_ml, added, one.added_voxels)))
    return replace(one, removed_voxels=removed, added_voxels=added, removed_ml=removed_ml, added_ml=added_ml)


def _nearly_cubes(geometry: Geometry) -> bool:
    return min(geometry.shape) > 1 and max(geometry.spacing_mm) <= NEARLY_CUBES * min(geometry.spacing_mm)
