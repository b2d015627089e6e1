"""Runs of the volume engine on validation lists, each kept in a file of its own.

A run is kept as long as weights, source and configuration are the same. Besides Dice and seconds it holds what
calibration needs: what is known of the quality of slices, and counts of voxels by confidence and by whether they are
right.

Shape letters: N slices; h w the in-plane axes of a slice; Z zones; B bins.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, iterate_structure

import mvg_core
from mvg_core.backends import weights_sha256
from mvg_core.demons import chain
from mvg_core.engine.answer import VolumeAnswer
from mvg_core.engine.calibration import (
    MOST_EVIDENCE,
    SliceFacts,
    evidence_of,
    facts_of,
    nearest_found,
    painted_box,
    remoteness_of,
)
from mvg_core.engine.config import PRESETS, EngineConfig
from mvg_core.engine.painter import SlicePainter
from mvg_core.engine.segmentation import SegmentationRun
from mvg_core.engine.watch import Watch
from mvg_core.evaluation.cases import Case, examples_for, pair_for, read_cases, read_references
from mvg_core.evaluation.queries import ACQUISITION, only_slice, slice_to_label
from mvg_core.evaluation.runner import read_label
from mvg_core.intensity import IntensityScaling
from mvg_core.predict import Predictor
from mvg_core.references import Reference, choose_axis, labels_in
from mvg_core.registration import align, refine
from mvg_core.report import write_text
from mvg_core.tasks import Task
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume

OUT = Path(__file__).parent / "out" / "engine"
BAND = 5
"""The band around structures: so many voxels in the slice, and one slice, around what is labelled or was found."""
N_BINS = 64
"""Of the evidence, from 0 to `MOST_EVIDENCE`."""
EVIDENCE = (np.arange(N_BINS) + 0.5) / N_BINS * MOST_EVIDENCE
_EDGES = np.arange(-5, 2.3, 0.25)
REMOTENESS = np.append(_EDGES - 0.125, 2.29)
"""Of the background: the middle of each bin of log2(remoteness)."""
N_ZONES = 1 + 2 * len(REMOTENESS)
"""Where labels were found; background in the band by remoteness; background outside the band by remoteness."""
REGISTRATION, DEMONS = "registration alone", "demons chained, whole slices"
SOURCES = ("engine/answer.py", "engine/consensus.py", "engine/fields.py", "engine/locating.py", "engine/painter.py",
           "engine/propagation.py", "engine/quality.py", "engine/reading.py", "engine/segmentation.py",
           "engine/subject.py", "engine/transfer.py", "backends.py", "cleanup.py", "codecs.py", "demons.py",
           "intensity.py", "label_reader.py", "label_readout.py", "predict.py", "reader_backends.py", "registration",
           "slices.py", "tuning.py")
"""What decides an answer; other files may change without any run being repeated."""


@dataclass(frozen=True)
class Use:
    """What the engine is given for the cases of one data set.

    Attributes:
        data: folder of the data set.
        n_references: labelled volumes of other subjects; 0: one labelled slice of the volume itself.
        plane: of the labelled slice.
    """

    data: str
    n_references: int
    plane: str = "auto"

    @property
    def name(self) -> str:
        """For tables."""
        kind = {0: "one slice -> volume", 1: "1 volume -> new"}.get(self.n_references)
        return f"{self.data}, {kind or f'{self.n_references} volumes -> new'}"


USES = tuple(Use(data, n, ACQUISITION if (data, n) == ("heart_acdc", 0) else "auto")
             for data in ("heart_acdc", "hippocampus_t1", "headneck_ct") for n in (0, 1, 8))


Where = Callable[[Use], bool]


def configurations() -> dict[str, tuple[EngineConfig, Where]]:
    """Name -> configuration, and for which uses it can make a difference."""
    def always(_: Use) -> bool:
        return True

    def slices(use: Use) -> bool:
        return use.n_references == 0

    def subjects(use: Use) -> bool:
        return use.n_references > 0

    def many(use: Use) -> bool:
        return use.n_references > 1

    def cubes(use: Use) -> bool:
        return subjects(use) and use.data != "heart_acdc"

    changed: dict[str, tuple[dict[str, Any], Where]] = {
        "no focus": ({"focus": 0}, always),
        "no memory": ({"memory": 0}, slices),
        "no prior": ({"prior": "off"}, always),
        "no prior, no locate": ({"prior": "off", "locate": False}, subjects),
        "prior as draft only": ({"prior": "draft"}, always),
        "prior fused only": ({"prior": "fuse"}, always),
        "prior draft and fused": ({"prior": "both"}, always),
        "never stops": ({"stop_after": 0}, slices),
        "painted only": ({"reading": 0.0, "own_reading": 0.0}, always),
        "painted only, n_prompts 1": ({"reading": 0.0, "n_prompts": 1}, many),
        "painted only, 2 answers averaged": ({"reading": 0.0, "ensemble": 2}, many),
        "half painted": ({"reading": 0.5}, subjects),
        "read only": ({"own_reading": 1.0}, slices),
        "1 pass": ({"passes": 1}, subjects),
        "2 passes": ({"passes": 2}, subjects),
        "3 planes": ({"planes": 3}, cubes),
        "largest component": ({"largest_component": True}, always),
        "tuned 30 steps": ({"tuning": 30}, slices),
        "half painted, tuned 100 steps": ({"reading": 0.5, "tuning": 100}, subjects),
    }
    found: dict[str, tuple[EngineConfig, Where]] = {name: (config, always) for name, config in PRESETS.items()}
    base = PRESETS["balanced"]
    for name, (changes, where) in changed.items():
        config = replace(base, **changes)
        if config not in PRESETS.values():
            found[f"balanced, {name}"] = config, where
    found[REGISTRATION] = replace(base, prior="fuse", prior_weight=1.0, memory=0), always
    found[DEMONS] = replace(base, prior="fuse", focus=0), slices
    return found


# ------------------------------------------------------------------------------------------------------- the problems


@dataclass(frozen=True, eq=False)
class Problem:
    """One query with what is given for it.

    Attributes:
        use: what is given.
        case: whose.
        query: image.
        truth: label map.
        references: solved examples.
        axis: along which slices are taken.
        solved: slices that are given.
    """

    use: Use
    case: Case
    query: Volume
    truth: Volume
    references: tuple[Reference, ...]
    axis: int
    solved: tuple[int, ...]

    @cached_property
    def task(self) -> Task:
        """Of the labels that the references show."""
        shown = sorted(set[int]().union(*(labels_in(one.label.array) for one in self.references)))
        return Task.segmentation({label: (self.case.labels or {}).get(label, "") for label in shown})

    @cached_property
    def target(self) -> npt.NDArray[np.uint8]:
        """The truth, as far as the references show its labels."""
        return np.where(np.isin(self.truth.array, self.task.foreground), self.truth.array, 0).astype(np.uint8)


def chosen_cases(data: Path, use: Use, limit: int | None) -> list[Case]:
    """Validation cases; with a limit of each subject one, as far as there are enough."""
    cases = read_cases(data / use.data / "dataset.json", "validation")
    if limit is None or limit >= len(cases):
        return cases
    seen = [sum(other.subject == case.subject for other in cases[:at]) for at, case in enumerate(cases)]
    return [cases[at] for at in sorted(sorted(range(len(cases)), key=lambda at: (seen[at], at))[:limit])]


def problem_of(data: Path, use: Use, case: Case) -> Problem:
    """Read what belongs to a case."""
    assert case.label is not None
    query, truth = _image(case.images["image"]), _label(case.label, tuple(sorted(case.merge.items())))
    if use.n_references == 0:
        axis, number = slice_to_label(truth, case.labels, use.plane)
        reference = Reference(query, only_slice(truth, axis, number), f"slice {number}", (number,))
        return Problem(use, case, query, truth, (reference,), axis, (number,))
    pool = [pair_for(one, "segmentation") for one in read_references(data / use.data / "dataset.json")]
    pairs = examples_for(case, pool, 0)[: use.n_references]
    references = tuple(Reference(_image(pair.image), _label(pair.answer, tuple(sorted(pair.case.merge.items()))),
                                 pair.case.name) for pair in pairs)
    axis = choose_axis([references[0].checked(Task.segmentation())], query.geometry, Task.segmentation())
    return Problem(use, case, query, truth, references, axis, ())


@lru_cache(maxsize=64)
def _image(path: Path) -> Volume:
    return read_volume(path)


@lru_cache(maxsize=64)
def _label(path: Path, merge: tuple[tuple[int, int], ...]) -> Volume:
    return read_label(path, dict(merge))


# ----------------------------------------------------------------------------------------------------------- the runs


class Registrations:
    """Registrations of one case, shared by its configurations, each of which is charged for them."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, float]] = {}
        self._kept: list[Any] = []
        self.saved_s = 0.0

    def __call__(self, query: Volume, image: Volume, *, label: Volume, affine_only: bool) -> Any:
        """In place of `align`."""
        started = time.process_time()
        self._kept += [query, image]  # or an id could be used again
        key = id(query), id(image), tuple(sorted(labels_in(label.array)))
        affine, seconds = self._get((*key, "affine"), lambda: align(query, image, label=label, affine_only=True))
        if not affine_only:
            affine, more = self._get((*key, "bent"), lambda: refine(affine, query, image, label=label))
            seconds += more
        self.saved_s += seconds - (time.process_time() - started)
        return affine

    def _get(self, key: Any, find: Callable[[], Any]) -> tuple[Any, float]:
        if key not in self._known:
            started = time.process_time()
            found = find()
            self._known[key] = found, time.process_time() - started
        return self._known[key]


def solve(predictor: Predictor, problem: Problem, name: str, config: EngineConfig, shared: Registrations
          ) -> tuple[VolumeAnswer, float]:
    """The raw answer, before calibration, and the CPU seconds that it took (or would have, without sharing)."""
    shared.saved_s = 0.0
    started = time.process_time()
    with warnings.catch_warnings(), _without_network(name == REGISTRATION), mock.patch(
            "mvg_core.engine.segmentation.align", shared):
        warnings.simplefilter("ignore")
        if name == DEMONS:
            answer = _chained(problem)
        elif config.is_plain:
            found = predictor.predict_volume(problem.query, problem.references, problem.task, plane=problem.axis)
            assert found.confidence is not None
            answer = VolumeAnswer(found.volume.array, found.confidence.array)
        else:
            run = SegmentationRun(predictor, config, problem.query, problem.references, problem.task, problem.axis,
                                  None)
            answer = run.solve(Watch())
            answer.match = run.match
    return answer, time.process_time() - started + shared.saved_s


def _chained(problem: Problem) -> VolumeAnswer:
    """The labelled slice carried from neighbour to neighbour, at the image's own resolution."""
    slices = np.moveaxis(IntensityScaling.for_volume(problem.query.array).apply(problem.query.array), problem.axis, 0)
    labels, start = sorted(problem.task.foreground), problem.solved[0]
    carried = chain(slices, np.moveaxis(problem.target, problem.axis, 0)[start], start, labels)
    label = np.array([0, *labels], np.uint8)[carried.argmax(axis=-1)]
    return VolumeAnswer(np.moveaxis(label, 0, problem.axis), np.ones(label.shape, np.float32))


@contextmanager
def _without_network(is_without: bool) -> Iterator[None]:
    """Nothing but background is painted, at no cost."""
    def paint(self: SlicePainter, query: npt.NDArray, _: Sequence[Any]) -> npt.NDArray[np.float32]:
        return self.one_hot(np.zeros(query.shape, np.uint8))

    if not is_without:
        yield
        return
    with mock.patch.object(SlicePainter, "paint", paint):
        yield


# ------------------------------------------------------------------------------------------------------- what is kept


@dataclass(frozen=True, eq=False)
class Run:
    """What is kept of one run.

    Attributes:
        use: name of the use.
        case: name of the case.
        subject: whom it shows.
        config: name of the configuration.
        dice: mean over the labels that the references show; the given slices do not count.
        cpu_s: CPU seconds, registrations included.
        facts: of the predicted slices, by number.
        slice_dice: their true Dice, mean over the labels that they hold or should hold; 1 where both are empty.
        counts: (N, Z, B, wrong or right) painted voxels of the predicted slices, in the order of `facts`, by evidence.
        beyond: (in the band or not, wrong or right) voxels that were neither painted nor given.
    """

    use: str
    case: str
    subject: str
    config: str
    dice: float
    cpu_s: float
    facts: Mapping[int, SliceFacts]
    slice_dice: Sequence[float]
    counts: npt.NDArray[np.int64]
    beyond: npt.NDArray[np.int64]

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.use.split(",")[0]

    @property
    def n_others(self) -> int:
        """Labelled volumes of other subjects that were given."""
        number = self.use.split(", ")[1].split()[0]
        return int(number) if number.isdigit() else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; of the counts only those above 0."""
        filled = np.flatnonzero(self.counts)
        return {"use": self.use, "case": self.case, "subject": self.subject, "config": self.config, "dice": self.dice,
                "cpu_s": self.cpu_s, "facts": {str(at): asdict(one) for at, one in self.facts.items()},
                "slice_dice": list(self.slice_dice), "filled": filled.tolist(),
                "counts": self.counts.ravel()[filled].tolist(), "beyond": self.beyond.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Run:
        """The inverse of `to_json`."""
        counts = np.zeros((len(values["facts"]), N_ZONES, N_BINS, 2), np.int64)
        counts.ravel()[values["filled"]] = values["counts"]
        return cls(**{key: values[key] for key in ("use", "case", "subject", "config", "dice", "cpu_s", "slice_dice")},
                   facts={int(at): SliceFacts(**one) for at, one in values["facts"].items()}, counts=counts,
                   beyond=np.array(values["beyond"], np.int64))


def scored(problem: Problem, name: str, answer: VolumeAnswer, cpu_s: float) -> Run:
    """Compare an answer with the truth."""
    axis, truth = problem.axis, np.moveaxis(problem.target, problem.axis, 0)
    label, lead = np.moveaxis(answer.label, axis, 0), np.moveaxis(answer.confidence, axis, 0)
    counted = np.setdiff1d(np.arange(len(truth)), problem.solved)
    dice = mean_dice(label[counted], truth[counted], problem.task.foreground)
    band, right, located = _band((label > 0) | (truth > 0)), label == truth, nearest_found(label)
    facts = facts_of(answer, axis, problem.solved)
    counts, is_beyond = np.zeros((len(facts), N_ZONES, N_BINS, 2), np.int64), np.ones(label.shape, bool)
    is_beyond[list(problem.solved)] = False
    for row, number in enumerate(facts):
        found = label[located[number]] > 0
        box = painted_box(lead[number], label[number], found)
        is_beyond[number][box] = False
        zone = np.digitize(np.log2(remoteness_of(found[box])), _EDGES)
        zone = np.where(label[number][box] > 0, 0, 1 + zone + len(REMOTENESS) * ~band[number][box])
        counts[row] = _counted(zone, _bins(lead[number][box]), right[number][box])
    beyond = np.array([[np.count_nonzero(where & is_beyond & (right == value)) for value in (False, True)]
                       for where in (band, ~band)], np.int64)
    slice_dice = [mean_dice(label[number], truth[number], problem.task.foreground, empty=1.0) for number in facts]
    return Run(problem.use.name, problem.case.name, problem.case.subject, name, dice, round(cpu_s, 3), facts,
               slice_dice, counts, beyond)


def _bins(lead: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    return np.minimum((evidence_of(lead) / MOST_EVIDENCE * N_BINS).astype(np.intp), N_BINS - 1)


def _counted(zone: npt.NDArray[np.intp], place: npt.NDArray[np.intp], right: npt.NDArray[np.bool_]
             ) -> npt.NDArray[np.intp]:
    shape = (N_ZONES, N_BINS, 2)
    index = np.ravel_multi_index((zone.ravel(), place.ravel(), right.ravel().astype(np.intp)), shape)
    return np.bincount(index, minlength=int(np.prod(shape))).reshape(shape)


def mean_dice(label: npt.NDArray, truth: npt.NDArray, labels: Sequence[int], empty: float = np.nan) -> float:
    """Mean over the labels that either shows; `empty` if neither shows any."""
    found = []
    for one in labels:
        mine, its = label == one, truth == one
        size = int(mine.sum()) + int(its.sum())
        if size:
            found.append(2 * int((mine & its).sum()) / size)
    return round(float(np.mean(found)), 6) if found else empty


def _band(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Marked voxels (N, h, w) and those around."""
    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, :] = cross[1, :, 1] = True
    wide = binary_dilation(marked, iterate_structure(cross, BAND))
    along = np.zeros((3, 3, 3), bool)
    along[:, 1, 1] = True
    return np.asarray(binary_dilation(wide, along), bool)


# -------------------------------------------------------------------------------------------------------- many runs


def all_runs(predictor: Predictor, data: Path, limit: int | None, only: Sequence[str] | None) -> Iterator[Run]:
    """Every case with every use and configuration; what was measured before is not repeated."""
    source = source_sha256()
    chosen = {name: entry for name, entry in configurations().items() if only is None or name in only}
    for name in dict.fromkeys(use.data for use in USES):
        uses = [use for use in USES if use.data == name]
        for case in chosen_cases(data, uses[0], limit):
            shared = Registrations()
            for use in uses:
                yield from _runs_of(predictor, data, use, case, chosen, shared, source)


def _runs_of(predictor: Predictor, data: Path, use: Use, case: Case, chosen: Mapping[str, Any], shared: Registrations,
             source: str) -> Iterator[Run]:
    problem = None
    for name, (config, where) in chosen.items():
        if not where(use):
            continue
        described = {"weights": weights_sha256(predictor.backend), "source": source, "config": config.to_json(),
                     "use": use.name, "case": case.name, "name": name}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        path = OUT / f"{digest[:24]}.json"
        if not path.is_file():
            problem = problem or problem_of(data, use, case)
            run = scored(problem, name, *solve(predictor, problem, name, config, shared))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"of": described, **run.to_json()}))
        yield Run.from_json(json.loads(path.read_text()))


def source_sha256() -> str:
    """Of the code that decides an answer."""
    digest, root = hashlib.sha256(), Path(mvg_core.__file__).parent
    for name in SOURCES:
        path = root / name
        for one in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(one.read_bytes())
    return digest.hexdigest()
