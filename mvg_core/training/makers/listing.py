"""What all makers of datalists share: facts of a data set, finding its folders, and what goes into the list."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mvg_core.tasks import TaskKind
from mvg_core.training.datalist import Item, split_by_subject
from mvg_core.volume_io import read_volume

Progress = Callable[[str, int, int], None]
SPLITS = ("training", "validation", "test")
NIFTI = (".nii.gz", ".nii")
_SKIPPED_FOLDERS = ("__MACOSX",)


@dataclass(frozen=True)
class Download:
    """What a maker works on.

    Attributes:
        folder: the extracted download; only read.
        converted: where files go that must be converted; made by the maker that needs it.
        progress: told title, done and total of a long conversion.
    """

    folder: Path
    converted: Path
    progress: Progress = lambda title, done, total: None


@dataclass
class Found:
    """What a maker found.

    Attributes:
        training: items with absolute paths, and so on for the other splits.
        validation: empty where the data set has no split of its own for it.
        test: with known answers only.
        labels: number -> name where it depends on the files; None takes those of the data set.
        remarks: what was left out and why, one line each.
    """

    training: list[Item] = field(default_factory=list)
    validation: list[Item] = field(default_factory=list)
    test: list[Item] = field(default_factory=list)
    labels: Mapping[int, str] | None = None
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataSet:
    """A public data set that a datalist can be made of.

    Attributes:
        name: what it is called on the command line and in the list.
        title: what its makers call it.
        task: of every item.
        modality: of every item.
        licence: in short; the page behind `terms` decides.
        terms: URL of the terms of use.
        layout: what the folder is expected to hold, for people.
        find: reads the folder.
        labels: number -> name; empty for image-to-image tasks.
    """

    name: str
    title: str
    task: TaskKind
    modality: str
    licence: str
    terms: str
    layout: str
    find: Callable[[Download], Found]
    labels: Mapping[int, str] = field(default_factory=dict)


def locate(folder: Path, *parts: str, depth: int = 2) -> Path | None:
    """The folder itself, or the one at most `depth` levels below it, that holds all `parts`.

    Raises:
        ValueError: several of the same level do.
    """
    level = [folder]
    for _ in range(depth + 1):
        found = [candidate for candidate in level if all((candidate / part).exists() for part in parts)]
        if len(found) > 1:
            raise ValueError(f"{folder} holds the data set {len(found)} times ({found[0].name}, {found[1].name}): give "
                             "the folder of one of them")
        if found:
            return found[0]
        level = [below for candidate in level for below in subfolders(candidate)]
    return None


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; without hidden ones and what macOS adds to archives."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return [folder / name for name in sorted(names) if not name.startswith(".") and name not in _SKIPPED_FOLDERS]


def files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files in a folder with one of the suffixes, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(tuple(suffixes)))


def stem(path: Path) -> str:
    """The name of a file without .nii.gz or its last suffix."""
    return path.name[: -len(".nii.gz")] if path.name.endswith(".nii.gz") else path.stem


def segmentation_items(images: Iterable[Path], label_of: Callable[[Path], Path], subject_of: Callable[[Path], str],
                       remarks: list[str]) -> list[Item]:
    """An item for each image whose label exists; the others are counted in `remarks`."""
    items, without = [], []
    for image in images:
        label = label_of(image)
        if label.is_file():
            items.append({"image": image, "label": label, "subject": subject_of(image)})
        else:
            without.append(image)
    if without:
        remarks.append(f"{count_of(without, 'image')} in {without[0].parent} left out: no label "
                       f"{label_of(without[0])}" + (", ..." if len(without) > 1 else ""))
    return items


def count_of(things: Sequence[object] | int, name: str) -> str:
    """'1 image', '2 images'."""
    number = things if isinstance(things, int) else len(things)
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def foreground_value(labels: Iterable[Path]) -> int:
    """The number of the only structure in binary label maps (1, or 255 in many downloads), from the first that has it.

    Raises:
        VolumeReadError: a file cannot be read.
        ValueError: all are empty.
    """
    paths = list(labels)
    for path in paths:
        value = int(np.max(read_volume(path).array))
        if value > 0:
            return value
    raise ValueError(f"{paths[0].parent}: all {len(paths)} label maps are empty: is the download complete?")


def hold_out(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Training and validation items; every subject is on one side with all its items.

    Args:
        items: of the training split.
        share: of the subjects; at least one subject, unless it is 0 or there is only one.
        seed: of the draw.

    Raises:
        ValueError: `share` is not in 0..1, or would leave nothing to train on.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of subjects for validation must be at least 0 and below 1, got {share}")
    if share == 0 or len({item["subject"] for item in items}) < 2:
        return list(items), []
    sides = split_by_subject([{**item, "dataset": ""} for item in items], share, seed)
    first, second = ([{key: value for key, value in item.items() if key != "dataset"} for item in side]
                     for side in sides)
    return first, second


def to_listing(data_set: DataSet, found: Found) -> dict[str, Any]:
    """The content of the datalist, with absolute paths."""
    labels = data_set.labels if found.labels is None else found.labels
    listing: dict[str, Any] = {
        "name": data_set.name, "description": data_set.title, "modality": data_set.modality, "task": data_set.task,
        "licence": data_set.licence, "terms_of_use": data_set.terms}
    if labels:
        listing["labels"] = {str(number): name for number, name in labels.items()}
    return listing | {split: [_written(item) for item in getattr(found, split)] for split in SPLITS}


def _written(value: Any) -> Any:
    """Paths as absolute text; not resolved, so that a link in the download stays the name that people know."""
    if isinstance(value, Mapping):
        return {key: _written(one) for key, one in value.items()}
    return Path(os.path.abspath(value)).as_posix() if isinstance(value, Path) else value
