"""Datalists: JSON files in the style of MONAI and the Decathlon that say what to train on, and mixtures of them.

    {"name": "livers", "modality": "CT", "labels": {"1": "liver"},
     "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "subject": "a"}], "validation": [...]}

Everything that a list says of all its items is inherited by each of them, so that what `read_datalist` returns can be
mixed, split and passed on as it is. Reading a list opens no image and needs neither torch nor MONAI.
"""

from __future__ import annotations

import difflib
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvg_core.report import write_text
from mvg_core.tasks import TASK_KINDS
from mvg_core.training.datalist_items import (
    PATH_KEYS,
    DatalistError,
    Item,
    check_item,
    checked_weight,
    default_subject,
    files_of,
    label_table,
    merge_table,
    modality_text,
    same_name,
)
from mvg_core.training.datasets import RefusedDataError, hippocampus_merges, read_training_set

__all__ = ["PATH_KEYS", "SPLITS", "Datalist", "DatalistError", "Item", "check_item", "convert_dataset_json", "files_of",
           "label_table", "open_datalists", "read_datalist", "read_datalists", "same_name", "split_by_subject",
           "write_datalist"]

SPLITS = ("training", "validation", "test", "references")


def read_datalist(path: str | os.PathLike[str], split: str, *, allow_missing: bool = False) -> list[Item]:
    """Read one split of a datalist.

    Args:
        path: JSON file; paths in it are relative to its folder.
        split: `training`, `validation`, `test` or `references`.
        allow_missing: accept a split without items, and files that are not there.

    Returns:
        MONAI-style dictionaries. Paths are absolute; `task`, `labels` (number -> name), `merge` (number -> number that
        replaces it), `modality`, `dataset`, `weight` and `datalist` (the file) are always there, and so is `subject`.
        An item has `image` (a path, {contrast: path}, or None for a label map without image) and perhaps `label`, or it
        has `source` and `target`.

    Raises:
        FileNotFoundError: no such list, or a file in it is missing.
        DatalistError: no JSON, a split without items, or an item that cannot be used.
        RefusedDataError: the list says that it must not be trained on (`role`), and the split is `training`.
    """
    return Datalist.open(path).items(split, allow_missing=allow_missing)


def read_datalists(mixture: Any, split: str, *, allow_missing: bool = False) -> list[Item]:
    """Read one split of several datalists.

    Args:
        mixture: path of a datalist, or of a JSON file `{"datalists": [...]}`; or a sequence, whose entries are paths or
            `{"path": ..., "weight": 2.0}`; or `{"datalists": [...]}` itself.
        split: as in `read_datalist`; a list without items in it adds none, as long as another has some.
        allow_missing: as in `read_datalist`.

    Raises:
        FileNotFoundError, DatalistError, RefusedDataError: as `read_datalist`.
    """
    lists = open_datalists(mixture)
    items = [item for one in lists for item in one.items(split, allow_missing=allow_missing, allow_empty=True)]
    if not items and not allow_missing:
        if len(lists) == 1:
            lists[0].items(split)  # says what is wrong with it
        raise DatalistError(f"none of the {len(lists)} datalists has items in {split!r}: {_advice(split)}")
    return items


def split_by_subject(items: Sequence[Mapping[str, Any]], share: float = 0.2, seed: int = 0
                     ) -> tuple[list[Item], list[Item]]:
    """Split items so that no subject is on both sides; the same for the same subjects, whatever their order.

    Args:
        items: what `read_datalist` returned.
        share: of the subjects of every data set on the second side, above 0 and below 1; at least one subject.
        seed: another one splits otherwise.

    Returns:
        The larger side (training) and the smaller one (validation), in the order of `items`.

    Raises:
        ValueError: share out of range, or no data set has two subjects.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share!r}")
    held_out: set[tuple[str, str]] = set()
    owners = [(str(item.get("dataset", "")), str(item.get("subject") or default_subject(item))) for item in items]
    for dataset in sorted({dataset for dataset, _ in owners}):
        subjects = sorted({subject for owner, subject in owners if owner == dataset})
        count = min(max(1, round(share * len(subjects))), len(subjects) - 1)
        held_out |= {(dataset, subject) for subject in random.Random(seed).sample(subjects, count)}
    if not held_out:
        raise ValueError("a split needs two subjects in a data set or more: add cases, or give each item its 'subject'")
    sides: tuple[list[Item], list[Item]] = ([], [])
    for item, owner in zip(items, owners, strict=True):
        sides[owner in held_out].append(dict(item))
    return sides


def write_datalist(path: str | os.PathLike[str], listing: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a datalist whole or not at all, with its absolute paths made relative to its folder where they are below.

    Raises:
        FileExistsError: the file exists and may not be replaced.
        DatalistError: the listing is none that `read_datalist` would accept; nothing was written.
        VolumeWriteError: no space, no permission.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or replace it with overwrite=True")
    checked = Datalist(path, listing)
    for split in SPLITS:
        checked.items(split, allow_missing=True)
    written = {key: [_relative(entry, path.parent) for entry in value] if key in SPLITS else value
               for key, value in listing.items()}
    write_text(path, json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def convert_dataset_json(folder: Path, splits: Sequence[str] = ("training", "validation")) -> dict[str, Any]:
    """The datalist of a folder with a `dataset.json` (see `datasets.py`), as far as it may be trained on.

    Images are named by their contrasts there; label maps without image and images without label become items of their
    own kind. Hippocampus labels become `merge`, PET is left out.

    Args:
        folder: holds `dataset.json`.
        splits: `training`, `validation` or both.

    Returns:
        A listing for `write_datalist`, with absolute paths.

    Raises:
        RefusedDataError, FileNotFoundError, ValueError: as `read_training_set`.
    """
    folder = folder.resolve()
    sets = {split: read_training_set(folder, split) for split in splits}
    if not sets:
        raise ValueError(f"no split of {folder.name} asked for: give training, validation or both")
    first = next(iter(sets.values()))
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    listing = {"name": first.name, "modality": first.modality, "task": "segmentation",
               **({"licence": described["licence"]} if "licence" in described else {}),
               "labels": {str(number): name for number, name in first.labels.items()
                          if number and number not in first.merged_labels}}
    if first.merged_labels:
        listing["merge"] = {str(old): new for old, new in first.merged_labels.items()}
    for split, training_set in sets.items():
        listing[split] = [_converted(item.subject, item.images, item.label) for item in training_set.items]
    return listing


def _converted(subject: str, images: Mapping[str, Path], label: Path | None) -> Item:
    paths = {name: str(image) for name, image in images.items()}
    item: Item = {"subject": subject, "image": (paths["image"] if list(paths) == ["image"] else paths) or None}
    if label is not None:
        return item | {"label": str(label)}
    return item | {"task": "synthesis" if len(paths) > 1 else "denoising"}


# ---------------------------------------------------------------------------------------------------------- one list


@dataclass(frozen=True, eq=False)
class Datalist:
    """A datalist whose list-wide statements were checked; its items are when they are asked for.

    Attributes:
        path: of the JSON file.
        listing: its content.
        weight: how often its data set is drawn, multiplied with the listing's own `weight`.

    Raises:
        DatalistError: wrong types, unknown task, or a table of labels that cannot be used.
    """

    path: Path
    listing: Mapping[str, Any]
    weight: float = 1.0
    _common: Item = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.listing, Mapping):
            raise DatalistError(f"{self.path}: holds a {type(self.listing).__name__}, needed an object with a list "
                                "'training' of items")
        for key in SPLITS:
            if not isinstance(self.listing.get(key, []), list):
                raise DatalistError(f"{self.path}: {key!r} must be a list of items")
        object.__setattr__(self, "_common", self._inherited(self.listing, f"{self.path}"))

    @classmethod
    def open(cls, path: str | os.PathLike[str], weight: float = 1.0) -> Datalist:
        """Read the JSON file.

        Raises:
            FileNotFoundError: no such file.
            DatalistError: no JSON, or as the constructor.
        """
        path = Path(os.path.abspath(path))
        listing = _read_json(path)
        if isinstance(listing, Mapping) and "datalists" in listing:
            raise DatalistError(f"{path}: is a mixture of datalists, needed one datalist: use read_datalists")
        return cls(path, listing, weight)

    @property
    def name(self) -> str:
        """Name of the data set: what the list says, else its file's or, for `dataset.json`, its folder's name."""
        default = self.path.parent.name if self.path.stem.lower() in ("dataset", "datalist") else self.path.stem
        return str(self.listing.get("name") or default)

    def items(self, split: str, *, allow_missing: bool = False, allow_empty: bool = False) -> list[Item]:
        """The items of a split; see `read_datalist`. `allow_empty` accepts a split without items only."""
        if split not in SPLITS:
            raise DatalistError(f"{self.path}: unknown split {split!r}, use one of {', '.join(SPLITS)}")
        entries = self.listing.get(split) or []
        if not entries and not (allow_missing or allow_empty):
            raise DatalistError(f"{self.path}: has no items in {split!r}{self._instead(split)}: {_advice(split)}")
        if entries and split == "training":
            self.check_role()
        items = [self.item(split, number) for number in range(len(entries))]
        for number, other in self.clashing_subjects(split, dict(enumerate(items))):
            raise DatalistError(f"{self.where(split, number)}: {clash_message(split, other)}")
        if not allow_missing:
            for number, item in enumerate(items):
                for file in files_of(item):
                    if not Path(file).exists():
                        raise FileNotFoundError(f"{self.where(split, number)}: {file} is missing: correct the path, or "
                                                "remove the item")
        return items

    def item(self, split: str, number: int) -> Item:
        """One item with everything it inherits; whether its files exist is not looked at.

        Raises:
            DatalistError: it lacks a key, or a value cannot be used.
        """
        where, entry = self.where(split, number), self.listing[split][number]
        if isinstance(entry, str):  # so the Decathlon lists its unlabelled test images
            entry = {"image": entry}
        if not isinstance(entry, Mapping):
            raise DatalistError(f"{where}: is a {type(entry).__name__}, needed an object such as "
                                '{"image": "a.nii.gz", "label": "b.nii.gz"}')
        own = self._common | self._inherited(entry, where)
        if "source" in entry and "task" not in entry and "task" not in self.listing:
            own["task"] = "synthesis"
        item = dict(entry) | own
        item |= {key: self._absolute(entry[key], key, where) for key in PATH_KEYS if key in entry}
        check_item(item, where, labelled=split != "test")
        if item["task"] != "segmentation":
            item |= {"labels": {}, "merge": {}}
        item["subject"] = str(entry.get("subject") or default_subject(item))
        return item | {"dataset": self.name, "datalist": str(self.path)}

    def where(self, split: str, number: int) -> str:
        """How messages call an item."""
        entry = self.listing[split][number]
        subject = f" ({entry['subject']})" if isinstance(entry, Mapping) and entry.get("subject") else ""
        return f"{self.path}: {split}[{number}]{subject}"

    def _inherited(self, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What an item takes from its list; of the list itself with the defaults, of an item only what it states."""
        is_list = entry is self.listing
        found: dict[str, Any] = {}
        if is_list or "task" in entry:
            found["task"] = entry.get("task", "segmentation")
            if found["task"] not in TASK_KINDS:
                raise DatalistError(f"{where}: task {found['task']!r} is unknown: use one of {', '.join(TASK_KINDS)}")
        if is_list or "modality" in entry:
            found["modality"] = modality_text(entry.get("modality", ""))
        if is_list or "labels" in entry:
            found["labels"] = label_table(entry.get("labels") or {}, where)
        if is_list or "merge" in entry:
            found["merge"] = merge_table(entry.get("merge") or {}, where) | hippocampus_merges(entry)
        if is_list or "weight" in entry:
            found["weight"] = self.weight * checked_weight(entry.get("weight", 1.0), where)
        if is_list and "role" in entry:
            found["role"] = entry["role"]
        return found

    def check_role(self) -> None:
        """Refuse a list that must not be trained on.

        Raises:
            RefusedDataError: its `role` is not `train`.
        """
        role = self.listing.get("role", "train")
        if role != "train":
            raise RefusedDataError(f"{self.path}: has role {role!r}, only role 'train' may be trained on")

    def clashing_subjects(self, split: str, items: Mapping[int, Item]) -> Iterator[tuple[int, int]]:
        """Numbers of two items without `subject` whose files have one name in different folders: hardly one subject."""
        folders: dict[str, tuple[int, Path]] = {}
        for number, item in items.items():
            entry = self.listing[split][number]
            if isinstance(entry, Mapping) and entry.get("subject"):
                continue
            folder = Path(files_of(item)[0]).parent
            other, known = folders.setdefault(item["subject"], (number, folder))
            if known != folder:
                yield number, other

    def _absolute(self, value: Any, key: str, where: str) -> Any:
        """Absolute paths of what an item has under `key`."""
        if key == "image" and (value is None or value == {}):
            return None
        if key == "image" and isinstance(value, Mapping):
            return {str(name): self._absolute(path, f"image {name}", where) for name, path in value.items()}
        if not isinstance(value, str) or not value.strip():
            kinds = "a path or {contrast: path}" if key == "image" else "a path"
            raise DatalistError(f"{where}: {key!r} is {value!r}, needed {kinds}")
        return os.path.normpath(self.path.parent / value)

    def _instead(self, split: str) -> str:
        """What the list has in place of a split, perhaps misspelt."""
        lists = [key for key, value in self.listing.items() if isinstance(value, list) and value]
        near = difflib.get_close_matches(split, [key for key in lists if key not in SPLITS], 1, 0.4)
        return f" (do you mean {near[0]!r}?)" if near else f" (it has {', '.join(lists) or 'no list at all'})"


def clash_message(split: str, other: int) -> str:
    """What is wrong with an item that `clashing_subjects` found."""
    return (f"its file has the name of that of {split}[{other}], which lies in another folder: give both items a "
            "'subject'")


def open_datalists(mixture: Any, failed: Callable[[Exception], None] | None = None) -> list[Datalist]:
    """The lists of a mixture; see `read_datalists`.

    Args:
        mixture: as in `read_datalists`.
        failed: told about lists that cannot be used, instead of raising.

    Raises:
        FileNotFoundError, DatalistError: a list is missing or cannot be used.
    """
    try:
        entries, folder, where = _entries(mixture)
    except (OSError, ValueError) as error:
        if failed is None:
            raise
        failed(error)
        return []
    lists = []
    for entry in entries:
        try:
            lists.append(_opened(entry, folder, where))
        except (OSError, ValueError) as error:
            if failed is None:
                raise
            failed(error)
    return lists


def _opened(entry: Any, folder: Path, where: str) -> Datalist:
    """The list that an entry of a mixture names."""
    given = entry if isinstance(entry, Mapping) else {"path": entry}
    path = given.get("path")
    unknown = sorted(set(given) - {"path", "weight"})
    if not isinstance(path, (str, os.PathLike)) or unknown:
        detail = f"unknown key {unknown[0]!r}" if unknown else repr(entry)
        raise DatalistError(f'{where}: {detail}, needed "list.json" or {{"path": "list.json", "weight": 2.0}}')
    return Datalist.open(folder / path, checked_weight(given.get("weight", 1.0), where))


def _entries(mixture: Any) -> tuple[Sequence[Any], Path, str]:
    """Entries of a mixture, the folder they are relative to, and how messages call it."""
    folder, where = Path.cwd(), "mixture of datalists"
    if isinstance(mixture, (str, os.PathLike)):
        path = Path(os.path.abspath(mixture))
        listing = _read_json(path)
        if not (isinstance(listing, Mapping) and "datalists" in listing):
            return [path], folder, str(path)
        mixture, folder, where = listing, path.parent, str(path)
    if isinstance(mixture, Mapping):
        mixture = mixture.get("datalists", [mixture] if "path" in mixture else None)
    if not isinstance(mixture, Sequence) or isinstance(mixture, str) or not mixture:
        raise DatalistError(f"{where}: needed a list of datalists with at least one entry, got {mixture!r}")
    return mixture, folder, where


def _read_json(path: Path) -> Any:
    if path.is_dir():
        raise DatalistError(f"{path} is a folder: give the JSON file that lists the items")
    if not path.is_file():
        raise FileNotFoundError(f"no datalist {path}: check the path, or write one (docs/reference/datalist.md)")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DatalistError(f"{path}: is no JSON text in UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DatalistError(f"{path}: is no valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
                            ) from error


def _relative(entry: Any, folder: Path) -> Any:
    """An entry with paths below `folder` relative to it."""

    def shortened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: shortened(path) for name, path in value.items()}
        if isinstance(value, str) and os.path.isabs(value):
            path = os.path.relpath(value, os.path.abspath(folder))
            return value if path.startswith("..") else Path(path).as_posix()
        return value

    if not isinstance(entry, Mapping):
        return shortened(entry)
    return {key: shortened(value) if key in PATH_KEYS else value for key, value in entry.items()}


def _advice(split: str) -> str:
    if split == "validation":
        return ("list some subjects there, or split the training items with split_by_subject(items, share, seed); "
                "without validation no best checkpoint can be chosen")
    return f'add a list "{split}" of items such as {{"image": "a.nii.gz", "label": "a_label.nii.gz"}}'
