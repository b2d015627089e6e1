"""Answer the queries of a datalist by examples of other subjects, and score each answer.

What is finished is kept in the folder `cases` of the output, one file each, so a run that was stopped goes on where it
was. A case that fails is reported, and the others go on.
"""

from __future__ import annotations

import functools
import json
import math
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mvg_core.evaluation.cases import (
    Case,
    Pair,
    UnsuitableItemError,
    examples_for,
    pair_for,
    read_cases,
    read_references,
)
from mvg_core.evaluation.pictures import image_strip, label_strip
from mvg_core.evaluation.queries import ACQUISITION, only_slice, random_holes, slice_to_label, thinned, with_noise
from mvg_core.evaluation.results import CaseResult, Failure
from mvg_core.evaluation.scoring import ScoringRules, check_one_grid, score_image, score_labels
from mvg_core.predict import Prediction, PredictionWarning
from mvg_core.preview import Picture, write_picture
from mvg_core.references import Reference, choose_axis, labels_in, whole_labels
from mvg_core.report import check_folder, write_report
from mvg_core.resample import resample_to
from mvg_core.tasks import Task, TaskKind
from mvg_core.volume import GeometryError, Volume
from mvg_core.volume_io import VolumeWarning, VolumeWriteError, read_volume, write_volume
from mvg_core.weights import file_sha256

CASES, PREDICTIONS, SETTINGS = "cases", "predictions", "settings.json"
Progress = Callable[[int, int], None]


class Solver(Protocol):
    """What is evaluated: `Predictor.predict_volume`, or a baseline with the same arguments."""

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """Answer on the query's own grid."""
        ...


@dataclass(frozen=True)
class EvaluationSettings:
    """What is asked, of whom, and with which examples. Results belong together only if these are the same.

    Attributes:
        listing: datalist.
        split: of it.
        kind: of the task.
        n_references: solved examples of other subjects for each query.
        reference_list: datalist that holds them; None takes `listing`.
        one_slice: the example is one labelled slice of the query itself (segmentation).
        plane: `auto`, `axial`, `coronal`, `sagittal`, or `acquisition` (with `one_slice`).
        sigma: of the noise, on [0, 1] (denoising).
        source: contrast that is shown; None takes the first.
        target: contrast that is painted (synthesis).
        most_slices: image-to-image tasks use at most so many slices of a volume; None uses all.
        tolerance_mm: of the NSD.
        distances: see `ScoringRules`.
    """

    listing: Path
    split: str = "test"
    kind: TaskKind = "segmentation"
    n_references: int = 1
    reference_list: Path | None = None
    one_slice: bool = False
    plane: str = "auto"
    sigma: float = 0.1
    source: str | None = None
    target: str | None = None
    most_slices: int | None = None
    tolerance_mm: float = 2.0
    distances: bool | None = None

    def __post_init__(self) -> None:
        if self.n_references < 1:
            raise ValueError(f"at least 1 reference is needed, got {self.n_references}")
        if self.one_slice and self.kind != "segmentation":
            raise ValueError(f"one labelled slice belongs to segmentation, not to {self.kind}")
        if self.one_slice and self.reference_list is not None:
            raise ValueError("with one labelled slice, the query is its own example: leave the reference list out")
        if self.plane == ACQUISITION and not self.one_slice:
            raise ValueError("the acquisition plane is for one labelled slice: choose axial, coronal or sagittal")
        if self.most_slices is not None and (self.kind == "segmentation" or self.most_slices < 1):
            raise ValueError("a number of slices (at least 1) is for image-to-image tasks: a segmentation is scored in "
                             "3D")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be above 0, got {self.sigma}")
        if not (math.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise ValueError(f"the tolerance must be 0 mm or more, got {self.tolerance_mm}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, with checksums of the lists."""
        plain = {key: str(value.resolve()) if isinstance(value, Path) else value
                 for key, value in asdict(self).items()}
        return plain | {f"{key}_sha256": None if path is None else file_sha256(path)
                        for key, path in (("listing", self.listing), ("reference_list", self.reference_list))}


@dataclass(frozen=True)
class Evaluation:
    """Everything a report is made of.

    Attributes:
        kind: of the task.
        results: of the cases that were scored.
        failures: of those that were not.
        skipped: case -> why the task does not concern it.
        unmatched: what was left over -> files.
        settings: how the results came about.
    """

    kind: TaskKind
    results: tuple[CaseResult, ...]
    failures: tuple[Failure, ...] = ()
    skipped: Mapping[str, str] | None = None
    unmatched: Mapping[str, Sequence[str]] | None = None
    settings: Mapping[str, Any] | None = None


def evaluate_list(settings: EvaluationSettings, solve: Solver, solver: Mapping[str, Any], out: Path, *, draws: int = 1,
                  limit: int | None = None, keep_predictions: bool = False, progress: Progress | None = None
                  ) -> Evaluation:
    """Run an evaluation, or go on with one.

    Args:
        settings: what is asked.
        solve: what answers.
        solver: what tells this solver from others, JSON-serialisable (checksum of weights, ...).
        out: folder; is made if need be. Results in it must be of the same settings and solver.
        draws: of references for each query, numbered from 0; more can be added later.
        limit: only the first cases of the list.
        keep_predictions: also write the answers, into the folder `predictions`.
        progress: called with cases done and cases in all.

    Raises:
        FileNotFoundError, ValueError: the lists cannot be used, or `out` holds results of something else.
        VolumeWriteError: `out` cannot be written to; what was finished before is kept.
    """
    if draws < 1 or (limit is not None and limit < 1):
        raise ValueError(f"at least 1 case and 1 draw are needed, got {limit} and {draws}")
    if draws > 1 and settings.one_slice:
        raise ValueError("with one labelled slice there is nothing to draw: the slice is chosen by a rule")
    pairs, skipped = _pairs(read_cases(settings.listing, settings.split), settings)
    if not pairs:
        raise ValueError(f"{settings.listing}: no item of {settings.split!r} suits {settings.kind}: "
                         f"{next(iter(skipped.values()))}")
    pool = [] if settings.one_slice else _pairs(read_references(settings.reference_list or settings.listing),
                                                settings)[0]
    described = {**settings.to_json(), "solver": dict(solver)}
    _prepare(out, described, [CASES, PREDICTIONS] if keep_predictions else [CASES])
    pairs = pairs[:limit]
    work = [(pair, draw) for draw in range(draws) for pair in pairs]
    run = _Run(settings, solve, pool, out, keep_predictions)
    results, failures = [], []
    for done, (pair, draw) in enumerate(work, start=1):
        try:
            results.append(run.finished(pair, draw) or run.solve(pair, draw))
        except VolumeWriteError:
            raise  # a full disk would fail every other case, too
        except Exception as error:
            failures.append(Failure(pair.case.name, draw, reason_of(error)))
        if progress is not None:
            progress(done, len(work))
    return Evaluation(settings.kind, tuple(results), tuple(failures), skipped, None, described | {
        "draws": draws, "limit": limit})


def reason_of(error: Exception) -> str:
    """One line; of a defect also where it happened."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, IndexError, OSError, RuntimeError)):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}:{last.lineno})"


def read_label(path: Path, merge: Mapping[int, int] | None = None) -> Volume:
    """A label map as uint8, its labels merged.

    Raises:
        VolumeReadError, ValueError: not readable, or no label map.
    """
    volume = read_volume(path)
    array = whole_labels(volume.array, str(path))
    if merge:
        table = np.arange(256, dtype=np.uint8)
        for old, new in merge.items():
            table[old] = new
        array = table[array]
    return volume.with_array(array)


class _Run:
    """What is fixed before the first case."""

    def __init__(self, settings: EvaluationSettings, solve: Solver, pool: Sequence[Pair], out: Path,
                 keep_predictions: bool) -> None:
        self._settings, self._solve, self._pool = settings, solve, pool
        self._subjects = {pair.case.name: pair.case.subject for pair in pool}
        self._out, self._keep_predictions = out, keep_predictions
        self._read = functools.lru_cache(maxsize=2 * settings.n_references)(read_volume)

    def finished(self, pair: Pair, draw: int) -> CaseResult | None:
        """What an earlier run found; None if it must be done (again)."""
        path = self._file(f"{pair.case.name}.{draw}")
        if not path.is_file():
            return None
        try:
            return CaseResult.from_json(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            return None

    def solve(self, pair: Pair, draw: int) -> CaseResult:
        """Answer, score and keep one case."""
        with warnings.catch_warnings(record=True) as caught:
            for kind in (PredictionWarning, VolumeWarning):
                warnings.simplefilter("always", kind)
            make = self._labelled if self._settings.kind == "segmentation" else self._painted
            result, picture, prediction = make(pair, draw)
        heard = [str(one.message) for one in caught if issubclass(one.category, (PredictionWarning, VolumeWarning))]
        result = replace(result, remarks=(*result.remarks, *dict.fromkeys(heard)))
        if self._keep_predictions:
            write_volume(prediction.volume, self._out / PREDICTIONS / f"{result.key}.nii.gz", overwrite=True)
        write_picture(picture, self._file(result.key).with_suffix(".png"))
        write_report(self._file(result.key), result.to_json())  # last: it says that all is there
        return result

    def _file(self, key: str) -> Path:
        return self._out / CASES / f"{key}.json"

    def _labelled(self, pair: Pair, draw: int) -> tuple[CaseResult, Picture, Prediction]:
        settings, case = self._settings, pair.case
        query, truth = read_volume(pair.image), read_label(pair.answer, case.merge)
        check_one_grid(query, truth, (str(pair.image), str(pair.answer)))
        if settings.one_slice:
            axis, number = slice_to_label(truth, case.labels, settings.plane)
            references, given = [Reference(query, only_slice(truth, axis, number), f"slice {number}", (number,))], (
                number,)
        else:
            references, given, axis = self._examples(pair, draw, query), (), None
        wanted = set(case.labels or ()) or set(range(1, 256))
        shown = sorted(wanted & set[int]().union(*(_labels_of(reference) for reference in references)))
        task = Task.segmentation({label: (case.labels or {}).get(label, "") for label in shown})
        if axis is None:
            axis = choose_axis([references[0].checked(task)], query.geometry, task, settings.plane)
        started = time.perf_counter()
        prediction = self._solve(query, references, task, plane=axis, hole=None)
        seconds = time.perf_counter() - started
        rules = ScoringRules(task.labels, settings.tolerance_mm, settings.distances)
        found = score_labels(prediction.volume, truth, rules, axis=axis, confidence=prediction.confidence, given=given)
        not_shown = sorted((wanted & labels_in(truth.array)) - set(shown))
        remarks = [f"not counted, because no reference shows it: label {label}" for label in not_shown]
        picture = label_strip(query, truth, prediction.volume, axis, confidence=prediction.confidence, given=given)
        facts = self._facts(query, axis, references) | ({"labelled_slice": given[0]} if given else {})
        result = CaseResult(case.name, case.subject, draw, settings.kind, found.scores,
                            tuple(reference.name for reference in references), found.calibration, round(seconds, 3),
                            query.geometry.shape[axis], (*found.remarks, *remarks), facts)
        return result, picture, prediction

    def _painted(self, pair: Pair, draw: int) -> tuple[CaseResult, Picture, Prediction]:
        settings, case = self._settings, pair.case
        kind, task = settings.kind, Task(settings.kind)
        target, remarks = read_volume(pair.answer), []
        query = target if pair.is_made else read_volume(pair.image)
        if not query.geometry.is_close(target.geometry):
            target = _onto(target, query, (str(pair.answer), str(pair.image)))
            remarks.append("the target was resampled onto the grid of what is shown")
        references = self._examples(pair, draw, query)
        axis = choose_axis(references, query.geometry, task, settings.plane)
        if settings.most_slices is not None:
            query, target = (thinned(volume, axis, settings.most_slices) for volume in (query, target))
        hole = None
        if kind == "denoising" and pair.is_made:
            query = with_noise(target, settings.sigma, f"{case.name}/{draw}")
        elif kind == "inpainting" and pair.is_made:
            hole = random_holes(target, axis, f"{case.name}/{draw}")
            query = query.with_array(np.where(hole, query.array.min(), query.array))
        elif kind == "inpainting":
            hole = query.array != target.array
        started = time.perf_counter()
        prediction = self._solve(query, references, task, plane=axis,
                                 hole=None if hole is None else query.with_array(hole.astype(np.uint8)))
        seconds = time.perf_counter() - started
        scores = score_image(prediction.volume, target, kind, axis=axis, shown=query, hole=hole)
        picture = image_strip(query, prediction.volume, target, axis, same_units=kind != "synthesis", hole=hole)
        facts = self._facts(query, axis, references)
        result = CaseResult(case.name, case.subject, draw, kind, scores,
                            tuple(reference.name for reference in references), {}, round(seconds, 3),
                            query.geometry.shape[axis], tuple(remarks), facts)
        return result, picture, prediction

    def _facts(self, query: Volume, axis: int, references: Sequence[Reference]) -> dict[str, Any]:
        subjects = [self._subjects[reference.name] for reference in references if reference.name in self._subjects]
        return {"plane": query.geometry.plane_of_axis(axis), "reference_subjects": subjects}

    def _examples(self, pair: Pair, draw: int, query: Volume) -> list[Reference]:
        """So many references of other subjects as are asked for.

        Raises:
            ValueError: there are not so many, or one of them is the query under another name.
        """
        settings, references = self._settings, []
        for example in examples_for(pair.case, self._pool, draw):
            reference = self._example(example)
            if settings.kind == "segmentation" and not _shows(reference, pair.case):
                continue
            if reference.is_part_of(query) or (example.is_made and _same(reference.label, query)):
                raise ValueError(f"{example.image} (subject {example.case.subject}) is the same image as "
                                 f"{pair.image} (subject {pair.case.subject}): it must not be its example, correct the "
                                 "subjects in the list")
            references.append(reference)
            if len(references) == settings.n_references:
                return references
        raise ValueError(f"{len(references)} references of other subjects than {pair.case.subject} suit, "
                         f"{settings.n_references} were asked for")

    def _example(self, pair: Pair) -> Reference:
        settings, name = self._settings, pair.case.name
        image = self._read(pair.image)
        if settings.kind == "segmentation":
            label = self._read(pair.answer)
            return Reference(image, read_label(pair.answer, pair.case.merge) if pair.case.merge else label, name)
        answer = image if pair.is_made else self._read(pair.answer)
        if settings.kind == "denoising" and pair.is_made:
            image = with_noise(image, settings.sigma, f"example {name}")
        if settings.kind == "inpainting" and not pair.is_made:
            check_one_grid(image, answer, (str(pair.image), str(pair.answer)))
            return Reference(image, answer, name, hole=image.with_array((image.array != answer.array).astype(np.uint8)))
        return Reference(image, answer, name)


def _pairs(cases: Sequence[Case], settings: EvaluationSettings) -> tuple[list[Pair], dict[str, str]]:
    """What the task takes from each case, and why it takes nothing from others."""
    pairs, skipped = [], {}
    for case in cases:
        try:
            pairs.append(pair_for(case, settings.kind, settings.source, settings.target))
        except UnsuitableItemError as error:
            skipped[case.name] = str(error)
    return pairs, skipped


def make_folder(folder: Path) -> None:
    """Make a folder if need be.

    Raises:
        VolumeWriteError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VolumeWriteError(f"folder {folder} cannot be made ({error.strerror}): choose another") from error
    check_folder(folder)


def _prepare(out: Path, described: Mapping[str, Any], folders: Sequence[str]) -> None:
    """Refuse to mix results of two evaluations, and make the folders."""
    path = out / SETTINGS
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: give another folder with --out, or remove {out}") from error
        plain = json.loads(json.dumps(described))
        differing = sorted(key for key in known.keys() | plain.keys() if known.get(key) != plain.get(key))
        if differing:
            raise ValueError(f"{out} holds an evaluation with other settings ({', '.join(differing)}): give another "
                             "folder with --out, or remove it")
    for folder in folders:
        make_folder(out / folder)
    if not path.exists():
        write_report(path, described)


def _labels_of(reference: Reference) -> set[int]:
    return labels_in(whole_labels(reference.label.array, f"{reference.name} label"))


def _shows(reference: Reference, query: Case) -> bool:
    """Whether the reference shows any label that is asked for."""
    shown = _labels_of(reference)
    return bool(shown if query.labels is None else shown & set(query.labels))


def _same(first: Volume, second: Volume) -> bool:
    return first.geometry.is_close(second.geometry) and np.array_equal(first.array, second.array)


def _onto(target: Volume, query: Volume, names: tuple[str, str]) -> Volume:
    if not target.geometry.overlaps(query.geometry):
        raise GeometryError(f"{names[0]} and {names[1]} do not overlap in space: they are probably of different "
                            "patients, or lost their orientation")
    return resample_to(target, query.geometry, is_label=False, fill=float(target.array.min()))
