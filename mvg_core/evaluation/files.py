"""Compare files that exist already, of whatever program: matched by their names, each pair scored on its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mvg_core.evaluation.cases import Case, pair_for, read_cases, stem
from mvg_core.evaluation.pictures import image_strip, label_strip
from mvg_core.evaluation.results import CaseResult, Failure
from mvg_core.evaluation.runner import CASES, Evaluation, make_folder, read_label, reason_of
from mvg_core.evaluation.scoring import ScoringRules, check_one_grid, score_image, score_labels
from mvg_core.preview import Picture, write_picture
from mvg_core.references import hole_mask
from mvg_core.slices import choose_plane
from mvg_core.tasks import TaskKind
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWarning, VolumeWriteError, read_volume

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg")
_SEPARATORS = "_-. "


@dataclass(frozen=True)
class Match:
    """A prediction and its truth.

    Attributes:
        name: of the case.
        subject: whom it shows.
        prediction: file.
        truth: file.
        others: "image", "confidence", "holes" -> file, where there is one.
        merge: labels of the truth that are merged.
        labels: number -> name, as far as the list of the truth names them.
    """

    name: str
    subject: str
    prediction: Path
    truth: Path
    others: Mapping[str, Path] = field(default_factory=dict)
    merge: Mapping[int, int] = field(default_factory=dict)
    labels: Mapping[int, str] | None = None


@dataclass(frozen=True)
class Matches:
    """Pairs of files, and the files that found no partner."""

    pairs: tuple[Match, ...]
    unmatched: Mapping[str, Sequence[str]]


def match_files(predictions: Path, truth: Path, kind: TaskKind = "segmentation", *, split: str = "test",
                target: str | None = None, others: Mapping[str, Path] | None = None) -> Matches:
    """Find the prediction of every truth.

    A prediction belongs to the truth whose name it has, without suffix; or whose name its own begins with, followed by
    one of `_-. ` (`a_seg.nii.gz` belongs to `a.nii.gz`; where several fit, to the longest). Items of a datalist are
    found by the names of their image and label, or by their subject where it has one item only. In folders, files of
    subfolders are found too; where names repeat, their path in the folder is their name.

    Args:
        predictions: folder.
        truth: folder, or a datalist.
        kind: of the task.
        split: of the datalist.
        target: contrast in the datalist that is the truth (synthesis).
        others: "image", "confidence", "holes" -> folder whose files are matched in the same way.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: nothing matches, or a truth has two predictions.
    """
    found = _files(predictions, "--predictions")
    if truth.is_file():
        wanted = _listed(truth, split, kind, target)
    else:
        wanted = [Match(name, name, path, path) for name, path in _files(truth, "--truth").items()]
    names = [_names(match, truth.is_file(), wanted) for match in wanted]
    chosen = _assign(found, names, str(predictions))
    if not chosen:
        raise ValueError(f"no file in {predictions} has the name of one in {truth}: predictions "
                         f"{_some(found)}; truths {_some([match.name for match in wanted])}")
    beside = {role: _assign(_files(folder, f"--{role}"), names, str(folder)) for role, folder in (others or {}).items()}
    pairs = []
    for number, match in enumerate(wanted):
        if number in chosen:
            files = {role: paths[number] for role, paths in beside.items() if number in paths}
            pairs.append(Match(match.name, match.subject, chosen[number], match.truth, {**match.others, **files},
                               match.merge, match.labels))
    used = set(chosen.values())
    return Matches(tuple(pairs), {
        "truth without prediction": [str(match.truth) for n, match in enumerate(wanted) if n not in chosen],
        "prediction without truth": [str(path) for path in found.values() if path not in used]})


def evaluate_files(matches: Matches, kind: TaskKind, rules: ScoringRules, out: Path, *,
                   settings: Mapping[str, object] | None = None,
                   progress: Callable[[int, int], None] | None = None) -> Evaluation:
    """Score every pair; one that cannot be scored is reported, and the others go on.

    Args:
        matches: see `match_files`.
        kind: of the task.
        rules: what is scored; its labels, where given, stand for those of the list.
        out: folder for the pictures of the cases; is made if need be.
        settings: kept with the results.
        progress: called with cases done and cases in all.

    Raises:
        VolumeWriteError: `out` cannot be written to.
    """
    make_folder(out / CASES)
    results, failures = [], []
    for done, match in enumerate(matches.pairs, start=1):
        try:
            results.append(_score(match, kind, rules, out))
        except VolumeWriteError:
            raise
        except Exception as error:
            failures.append(Failure(match.name, 0, reason_of(error)))
        if progress is not None:
            progress(done, len(matches.pairs))
    return Evaluation(kind, tuple(results), tuple(failures), None, matches.unmatched, settings)


def _score(match: Match, kind: TaskKind, rules: ScoringRules, out: Path) -> CaseResult:
    score = _score_labels if kind == "segmentation" else _score_image
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VolumeWarning)
        result, picture = score(match, kind, rules)
    write_picture(picture, out / CASES / f"{result.key}.png")
    heard = dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, VolumeWarning))
    facts = {"prediction": str(match.prediction), "truth": str(match.truth)}
    return replace(result, remarks=(*heard, *result.remarks), facts=facts)


def _score_labels(match: Match, kind: TaskKind, rules: ScoringRules) -> tuple[CaseResult, Picture]:
    names = str(match.prediction), str(match.truth)
    prediction, truth = read_label(match.prediction), read_label(match.truth, match.merge)
    check_one_grid(prediction, truth, names)
    confidence, image = _beside(match, "confidence", truth), _image(match, truth)
    axis = choose_plane(truth.geometry)  # by the grid alone: the same for all subjects
    if rules.labels is None:
        rules = replace(rules, labels=match.labels)
    found = score_labels(prediction, truth, rules, axis=axis, confidence=confidence, names=names)
    result = CaseResult(match.name, match.subject, 0, kind, found.scores, (), found.calibration,
                        n_slices=truth.geometry.shape[axis], remarks=found.remarks)
    return result, label_strip(image, truth, prediction, axis, confidence=confidence)


def _score_image(match: Match, kind: TaskKind, rules: ScoringRules) -> tuple[CaseResult, Picture]:
    names = str(match.prediction), str(match.truth)
    painted, target = read_volume(match.prediction), read_volume(match.truth)
    check_one_grid(painted, target, names)
    mask, shown = _beside(match, "holes", target), _image(match, target)
    if kind == "inpainting" and mask is None:
        raise ValueError(f"{match.prediction}: its hole is not known: give a folder of masks with --holes")
    hole = None if mask is None else hole_mask(mask.array, str(match.others["holes"]))
    axis = choose_plane(target.geometry)
    scores = score_image(painted, target, kind, axis=axis, shown=shown, hole=hole, names=names)
    strip = image_strip(shown or painted, painted, target, axis, same_units=kind != "synthesis", hole=hole)
    return CaseResult(match.name, match.subject, 0, kind, scores, n_slices=target.geometry.shape[axis]), strip


def _beside(match: Match, role: str, truth: Volume) -> Volume | None:
    """A file that must lie on the grid of the truth."""
    if role not in match.others:
        return None
    volume = read_volume(match.others[role])
    check_one_grid(volume, truth, (str(match.others[role]), str(match.truth)))
    return volume


def _image(match: Match, truth: Volume) -> Volume | None:
    """The image, for pictures: not needed, so it may be missing or lie elsewhere."""
    path = match.others.get("image")
    image = None if path is None or not path.exists() else read_volume(path)
    return image if image is not None and image.geometry.is_close(truth.geometry, tolerance_mm=1.0) else None


def _files(folder: Path, option: str) -> dict[str, Path]:
    """Image files in a folder and below, by their name; by their path where names repeat.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing in it is an image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{option} {folder} is no folder: give the folder that holds the files")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.lower().endswith(SUFFIXES)
                   and not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{option} {folder} holds no image files ({', '.join(SUFFIXES)})")
    names = [stem(path) for path in paths]
    return {name if names.count(name) == 1 else str(path.relative_to(folder).parent / name).replace("/", "_"): path
            for name, path in zip(names, paths, strict=True)}


def _listed(listing: Path, split: str, kind: TaskKind, target: str | None) -> list[Match]:
    matches = []
    for case in read_cases(listing, split):
        if kind == "segmentation" and case.label is None:
            continue
        truth, image = _truth(case, kind, target)
        matches.append(Match(case.name, case.subject, truth, truth, {"image": image}, case.merge, case.labels))
    if not matches:
        raise ValueError(f"{listing}: no item of {split!r} has a label")
    return matches


def _truth(case: Case, kind: TaskKind, target: str | None) -> tuple[Path, Path]:
    """The truth of an item, and the image beside it."""
    if kind != "segmentation" and case.target is None and target is not None:
        pair = pair_for(case, "synthesis", next(iter(case.images), None), target)
        return pair.answer, pair.image
    pair = pair_for(case, kind)
    return pair.answer, pair.image


def _names(match: Match, is_listed: bool, all_matches: Sequence[Match]) -> list[str]:
    """Under which names a prediction of this truth may be found."""
    names = [match.name]
    if is_listed:
        names += [stem(path) for path in (match.others["image"], match.truth)]
        if sum(other.subject == match.subject for other in all_matches) == 1:
            names.append(match.subject)
    return list(dict.fromkeys(names))


def _assign(files: Mapping[str, Path], names: Sequence[Sequence[str]], where: str) -> dict[int, Path]:
    """Which file belongs to which truth (by number).

    Raises:
        ValueError: two files belong to one.
    """
    number_of: dict[str, set[int]] = {}
    for number, known in enumerate(names):
        for name in known:
            number_of.setdefault(name, set()).add(number)
    chosen: dict[int, Path] = {}
    exact: set[int] = set()
    for name, path in sorted(files.items(), key=lambda pair: pair[0] not in number_of):  # equal names first
        fitting = [known for known in number_of if name == known
                   or (name.startswith(known) and name[len(known)] in _SEPARATORS)]
        if not fitting:
            continue
        numbers = number_of[max(fitting, key=len)]
        if len(numbers) > 1:
            continue  # a name that several items share says nothing
        (number,) = numbers
        if number in chosen:
            if number in exact and name not in number_of:
                continue  # the file of just this name is the one that is meant
            raise ValueError(f"{where} holds two files for {names[number][0]}: {chosen[number].name} and {path.name}; "
                             "leave one of them")
        chosen[number] = path
        if name in number_of:
            exact.add(number)
    return chosen


def _some(names: Mapping[str, Path] | Sequence[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (f" ... ({len(shown)})" if len(shown) > 3 else "")
