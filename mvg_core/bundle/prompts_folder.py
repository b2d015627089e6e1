"""The reference cases of a bundle: a folder with an image and its answer for each case, and `prompts.json`.

    prompts/prompts.json       {"cases": [{"name": "a", "image": "a/image.nii.gz", "label": "a/label.nii.gz", ...}]}
    prompts/a/image.nii.gz

Files that are added are written anew from their voxels and their grid, so what else a header holds (names, dates) stays
where it was. A `prompts.json` may also be written by hand, with paths of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from mvg_core.references import Reference, labels_in, whole_labels
from mvg_core.report import write_report
from mvg_core.tasks import MAX_LABEL, Task, TaskKind
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume

LISTING = "prompts.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILES = ("image", "label", "hole")


class PromptsError(ValueError):
    """A folder of reference cases that cannot be used as it is; the message names the folder or file."""


@dataclass(frozen=True)
class Case:
    """One solved example.

    Attributes:
        name: unique in its folder.
        image: image file.
        label: label map (segmentation), or the image that the answer should look like.
        task: what it shows.
        labels: segmentation only, number -> name; empty means all that the label map holds, without names.
        slices: see `Reference.slices`.
        hole: mask file, inpainting only.
        merge: label number in the file -> number that replaces it.
    """

    name: str
    image: Path
    label: Path
    task: TaskKind = "segmentation"
    labels: Mapping[int, str] = field(default_factory=dict)
    slices: tuple[int, ...] | None = None
    hole: Path | None = None
    merge: Mapping[int, int] = field(default_factory=dict)

    def read(self) -> Reference:
        """The case as a reference.

        Raises:
            VolumeReadError: a file cannot be read.
            ValueError: the label is no label map.
        """
        hole = None if self.hole is None else read_volume(self.hole)
        label = read_volume(self.label)
        if self.merge:
            table = np.arange(MAX_LABEL + 1, dtype=np.uint8)
            table[list(self.merge)] = list(self.merge.values())
            label = label.with_array(table[whole_labels(label.array, str(self.label))])
        return Reference(read_volume(self.image), label, self.name, self.slices, hole)

    def to_json(self, folder: Path) -> dict[str, Any]:
        """The entry of `prompts.json`; paths inside `folder` are relative to it."""
        entry: dict[str, Any] = {"name": self.name, "task": self.task}
        entry |= {key: _shortened(getattr(self, key), folder) for key in _FILES if getattr(self, key) is not None}
        if self.labels:
            entry["labels"] = {str(number): name for number, name in sorted(self.labels.items())}
        if self.slices is not None:
            entry["slices"] = list(self.slices)
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], folder: Path) -> Case:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: something in it is missing, unknown or of another type.
        """
        unknown = set(entry) - {"name", "task", "labels", "slices", *_FILES}
        if unknown:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        task = entry.get("task", "segmentation")
        labels = {int(number): str(name) for number, name in entry.get("labels", {}).items()}
        Task(task, labels)  # refuses unknown kinds, labels out of range, and labels of tasks that have none
        slices = entry.get("slices")
        return cls(str(entry["name"]), folder / entry["image"], folder / entry["label"], task, labels,
                   None if slices is None else tuple(int(number) for number in slices),
                   folder / entry["hole"] if "hole" in entry else None)


def read_cases(folder: Path) -> tuple[Case, ...]:
    """The cases of a folder, in the order in which they were added; none if it has no `prompts.json`.

    Raises:
        PromptsError: `prompts.json` cannot be understood, or two cases have one name.
    """
    path = folder / LISTING
    if not path.is_file():
        return ()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromptsError(f"{path} cannot be understood ({type(error).__name__}: {error}): it holds "
                           '{"cases": [{"name": ..., "image": ..., "label": ...}]}') from error
    cases = tuple(_case(entry, number, path) for number, entry in enumerate(entries, start=1))
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PromptsError(f"{path} has two cases with the name {twice[0]!r}: rename one")
    return cases


def add_case(folder: Path, image: Path | Volume, label: Path | Volume, *, name: str, task: TaskKind = "segmentation",
             labels: Mapping[int, str] | None = None, slices: Sequence[int] | None = None, hole: Path | None = None,
             overwrite: bool = False) -> Case:
    """Check a solved example and copy it into the folder, which is made if need be.

    Args:
        folder: of the reference cases.
        image: a file that `read_volume` reads, or a volume.
        label: its answer, likewise.
        name: letters, digits, dots, dashes and underscores.
        task: what the pair shows.
        labels: names, segmentation only; of labels that the label map does not hold they are left out, others are
            called by their number.
        slices: numbers of the slices that are solved; None takes those with any label.
        hole: mask file, inpainting only.
        overwrite: replace a case of this name.

    Raises:
        PromptsError: a name that is taken or cannot be one.
        VolumeReadError, GeometryError, ValueError: an unreadable or unusable example, see `Reference.checked`.
        VolumeWriteError: the folder cannot be written to.
    """
    others = _others(folder, name, overwrite)
    if labels and task != "segmentation":
        raise PromptsError(f"names of labels belong to segmentation, not to {task}: leave them out")
    volumes = {"image": _volume(image), "label": _volume(label)} | ({} if hole is None else {"hole": read_volume(hole)})
    reference = Reference(volumes["image"], volumes["label"], f"case {name!r}",
                          None if slices is None else tuple(slices), volumes.get("hole")).checked(Task(task))
    shown = sorted(labels_in(reference.label.array)) if labels else []
    files = _write_files(folder, name, {**volumes, "label": reference.label})
    case = Case(name, files["image"], files["label"], task,
                {number: (labels or {}).get(number, f"label {number}") for number in shown}, reference.slices,
                files.get("hole"))
    _write_listing(folder, [*others, case])
    return case


def remove_case(folder: Path, name: str) -> None:
    """Take a case out of the list, and delete the folder that `add_case` made for it.

    Raises:
        PromptsError: no case has this name.
    """
    cases = read_cases(folder)
    removed = next((case for case in cases if case.name == name), None)
    if removed is None:
        known = ", ".join(case.name for case in cases) or "none"
        raise PromptsError(f"{folder / LISTING} has no case {name!r}: it has {known}")
    _write_listing(folder, [case for case in cases if case.name != name])
    if _NAME.fullmatch(name) and removed.image == folder / name / "image.nii.gz":
        shutil.rmtree(folder / name, ignore_errors=True)


def common_task(cases: Sequence[Case]) -> Task:
    """What all of several cases show, with the names of all their labels.

    Raises:
        PromptsError: they show different tasks, or call one label number differently.
    """
    kinds: list[TaskKind] = sorted({case.task for case in cases})
    if len(kinds) > 1:
        raise PromptsError(f"the reference cases show several tasks ({', '.join(kinds)}): choose one of them, for "
                           f"example --task {kinds[0]}")
    names: dict[int, tuple[str, str]] = {}
    for case in cases:
        for number, label in case.labels.items():
            known, first = names.setdefault(number, (label, case.name))
            if known != label:
                raise PromptsError(f"case {first!r} calls label {number} {known!r}, case {case.name!r} calls it "
                                   f"{label!r}: remove one, or renumber its labels")
    # Where one case names nothing, its labels count too.
    complete = all(case.labels for case in cases)
    return Task(kinds[0], {number: label for number, (label, _) in names.items()} if complete else {})


def _others(folder: Path, name: str, overwrite: bool) -> list[Case]:
    """The cases beside that of this name, once it is known that the name may be used."""
    if not _NAME.fullmatch(name):
        raise PromptsError(f"{name!r} cannot be the name of a case: use letters, digits, '.', '-' and '_', beginning "
                           "with a letter or digit (--name)")
    cases = read_cases(folder)
    if name in [case.name for case in cases] and not overwrite:
        raise PromptsError(f"{folder} has a case {name!r} already: choose another --name, or replace it with "
                           "--overwrite")
    return [case for case in cases if case.name != name]


def _case(entry: Any, number: int, path: Path) -> Case:
    try:
        return Case.from_json(entry, path.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise PromptsError(f"{path}: case {number} cannot be understood ({reason}): correct it") from error


def _volume(given: Path | Volume) -> Volume:
    return given if isinstance(given, Volume) else read_volume(given)


def _write_files(folder: Path, name: str, volumes: Mapping[str, Volume]) -> dict[str, Path]:
    """Write all files beside their place, then put them there in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid4().hex}"
    try:
        temporary.mkdir()
        for key, volume in volumes.items():
            write_volume(volume, temporary / f"{key}.nii.gz")
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(temporary, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {key: folder / name / f"{key}.nii.gz" for key in volumes}


def _write_listing(folder: Path, cases: Sequence[Case]) -> None:
    write_report(folder / LISTING, {"cases": [case.to_json(folder) for case in cases]})


def _shortened(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
