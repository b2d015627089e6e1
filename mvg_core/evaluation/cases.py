"""The queries of a datalist, and the solved examples of other subjects that each of them is shown.

A datalist is MONAI Decathlon style JSON, see `training.datalist`; its list `references` (else `training`) holds what
may serve as examples.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvg_core.tasks import TaskKind
from mvg_core.training.datalist import PATH_KEYS, SPLITS, Datalist, DatalistError

REFERENCE_SPLITS = ("references", "training")


@dataclass(frozen=True)
class Case:
    """One item of a datalist.

    Attributes:
        name: unique in its list, and fit for a file name.
        subject: whom it shows.
        images: contrast -> path; a single image is called "image".
        label: path of the label map.
        source: of a directed pair, what is shown.
        target: of a directed pair, what is to be painted.
        task: of a directed pair.
        labels: number -> name; None names none.
        merge: label number -> number that replaces it when the label map is read.
    """

    name: str
    subject: str
    images: Mapping[str, Path]
    label: Path | None = None
    source: Path | None = None
    target: Path | None = None
    task: str = "segmentation"
    labels: Mapping[int, str] | None = None
    merge: Mapping[int, int] = field(default_factory=dict)

    def paths(self) -> set[Path]:
        """Every file of the case."""
        return {path.resolve() for path in [*self.images.values(), self.label, self.source, self.target]
                if path is not None}


@dataclass(frozen=True)
class Pair:
    """What a task takes from a case: the image that is shown, and what it should become.

    Attributes:
        case: where it comes from.
        image: path.
        answer: path of a label map, of the target, or of the clean image itself where the task makes its own query.
        is_made: the query is made from the clean image (noise, holes) instead of read from a file.
    """

    case: Case
    image: Path
    answer: Path
    is_made: bool = False


class UnsuitableItemError(ValueError):
    """An item lacks what the task needs."""


def read_cases(path: Path, split: str) -> list[Case]:
    """The items of one split; also of the `dataset.json` files that name images by their contrasts.

    Files that are missing are no error here: each is a failure of its own case.

    Raises:
        FileNotFoundError, DatalistError: see `read_datalist`.
    """
    listing = Datalist.open(path).listing
    # No role: being evaluated is not being trained on.
    open_to_all = {key: value for key, value in listing.items() if key != "role"}
    folded = {name: [_folded(entry) for entry in open_to_all.get(name) or []] for name in SPLITS}
    items = Datalist(Path(path).absolute(), {**open_to_all, **folded}).items(split, allow_missing=True)
    if not items:
        raise DatalistError(f"{path}: has no items in {split!r}: choose another list with --split "
                            f"({', '.join(name for name in SPLITS if folded[name]) or 'it has none'})")
    return cases_of(items)


def read_references(path: Path) -> list[Case]:
    """What may serve as solved examples: the list `references`, else `training`.

    Raises:
        FileNotFoundError, DatalistError: see `read_datalist`; or neither has items.
    """
    listing = Datalist.open(path).listing
    for split in REFERENCE_SPLITS:
        if listing.get(split):
            return read_cases(path, split)
    raise DatalistError(f"{path}: has no items in {' or '.join(REFERENCE_SPLITS)}: name solved examples there, or in "
                        "another file with --reference-list")


def cases_of(items: Iterable[Mapping[str, Any]]) -> list[Case]:
    """Items as `read_datalist` returns them; where a subject has several, a case is named by its file."""
    items = list(items)
    subjects = [_subject(item) for item in items]
    cases, taken = [], set[str]()
    for item, subject in zip(items, subjects, strict=True):
        name = subject
        if subjects.count(subject) > 1:
            name = stem(_first_path(item))
            name = name if subject in name else f"{subject}_{name}"
        name = free = file_name(name)
        while free in taken:
            free = f"{name}~{len(taken)}"
        taken.add(free)
        cases.append(_case(free, subject, item))
    return cases


def pair_for(case: Case, kind: TaskKind, source: str | None = None, target: str | None = None) -> Pair:
    """What a task takes from a case.

    Args:
        case: an item.
        kind: of the task.
        source: contrast that is shown; None takes the first.
        target: contrast that is painted (synthesis).

    Raises:
        UnsuitableItemError: the case lacks it.
    """
    if kind == "segmentation":
        if case.label is None:
            raise UnsuitableItemError(f"{case.name} has no label")
        return Pair(case, _contrast(case, source), case.label)
    if case.source is not None and case.target is not None and source is None and target is None:
        if case.task not in (kind, "segmentation"):
            raise UnsuitableItemError(f"{case.name} is about {case.task}")
        return Pair(case, case.source, case.target)
    if kind == "synthesis":
        if source is None or target is None:
            raise ValueError("synthesis needs items with source and target, or the names of two contrasts: --source t1 "
                             "--target t2")
        return Pair(case, _contrast(case, source), _contrast(case, target))
    clean = _contrast(case, source)
    return Pair(case, clean, clean, is_made=True)


def examples_for(query: Case, pool: Sequence[Pair], draw: int) -> list[Pair]:
    """The pool in the order in which it serves a query, without its subject.

    The order depends on the query, the draw and the names alone: it is the same on every machine, whatever else is in
    the lists, and the first of eight examples is the one that stands alone where one is asked for.

    Args:
        query: which will never be its own example.
        pool: solved examples.
        draw: another number is another order.
    """
    files = query.paths()
    others = [pair for pair in pool if pair.case.subject != query.subject and not pair.case.paths() & files]

    def rank(pair: Pair) -> str:
        return hashlib.sha256(f"{draw}\n{query.name}\n{pair.case.name}".encode()).hexdigest()

    return sorted(others, key=rank)


def stem(path: Path) -> str:
    """File name without its suffix: `a.nii.gz` -> `a`."""
    lower = path.name.lower()
    two_parts = next((end for end in (".nii.gz", ".seg.nrrd") if lower.endswith(end)), path.suffix)
    return path.name[: len(path.name) - len(two_parts)]


def file_name(text: str) -> str:
    """The text without what file systems dislike."""
    return re.sub(r"[^\w.=+~-]+", "_", text).strip(".") or "case"


def _case(name: str, subject: str, item: Mapping[str, Any]) -> Case:
    def path(key: str) -> Path | None:
        return Path(item[key]) if item.get(key) else None

    labels = item.get("labels")
    return Case(name, subject, _images(item), path("label"), path("source"), path("target"),
                item.get("task") or "segmentation",
                dict(labels) if labels else None, dict(item.get("merge") or {}))


def _folded(entry: Any) -> Any:
    """An entry that names its images by their contrasts ("t1": "a.nii.gz") as one with `image`."""
    if not isinstance(entry, Mapping):
        return entry
    entry = dict(entry)
    if not entry.keys() & {"image", "source", "target"}:
        suffixes = (".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".jpg", ".jpeg")
        contrasts = {key: value for key, value in entry.items()
                     if key not in PATH_KEYS and isinstance(value, str) and value.lower().endswith(suffixes)}
        if contrasts:
            entry = {key: value for key, value in entry.items() if key not in contrasts} | {"image": contrasts}
    if "label" not in entry and "source" not in entry:
        entry.setdefault("task", "denoising")  # an image alone; whether that is enough, the task decides
    return entry


def _images(item: Mapping[str, Any]) -> dict[str, Path]:
    image = item.get("image")
    if isinstance(image, Mapping):
        return {contrast: Path(path) for contrast, path in image.items()}
    return {"image": Path(image)} if image else {}


def _first_path(item: Mapping[str, Any]) -> Path:
    return [*_images(item).values(), *(Path(item[key]) for key in ("source", "label") if item.get(key))][0]


def _subject(item: Mapping[str, Any]) -> str:
    return str(item.get("subject") or stem(_first_path(item)))


def _contrast(case: Case, name: str | None) -> Path:
    images = case.images or ({"source": case.source} if case.source is not None else {})
    if not images:
        raise UnsuitableItemError(f"{case.name} has no image")
    if name is None:
        return next(iter(images.values()))
    if name not in images:
        raise UnsuitableItemError(f"{case.name} has no contrast {name!r}, only {', '.join(images)}")
    return images[name]
