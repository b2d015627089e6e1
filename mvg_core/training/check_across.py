"""What shows only when the items of datalists are looked at together: leaks between splits, duplicates, class sizes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvg_core.training.check_items import ImageFacts, ItemFacts
from mvg_core.training.check_report import ClassSize, Finding, SplitSummary
from mvg_core.training.datalist import SPLITS, Item, files_of, same_name

MAY_SHARE = frozenset({"training", "references"})
"""The only two splits that may show the same subjects: prompts may come from training."""
UNUSUAL_SPACING = 3.0
"""A spacing that differs from the median of its data set and modality by more than this factor is reported."""


@dataclass(frozen=True)
class Entry:
    """An item, where it stands, and what its files hold.

    Attributes:
        where: what messages call it.
        split: name of the split.
        item: with what it inherits from its list.
        missing: files of it that are not there.
        facts: about those that are.
    """

    where: str
    split: str
    item: Item
    missing: tuple[str, ...]
    facts: ItemFacts

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.item["dataset"]

    @property
    def owner(self) -> tuple[str, str]:
        """Data set and subject."""
        return self.item["dataset"], self.item["subject"]


def findings_across(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Everything that is wrong between items."""
    yield from _shared_subjects(entries)
    yield from _repeated_files(entries)
    yield from _duplicates(entries)
    yield from _odd_spacings(entries)


def _shared_subjects(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Subjects on both sides of a split."""
    known: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for entry in entries:
        known[entry.owner].setdefault(entry.split, entry.where)
    for (_, subject), places in known.items():
        for one, other in _leaks(places):
            yield Finding("error", "subject on both sides", places[other], f"subject {subject!r} is in {one!r} and in "
                          f"{other!r}: put all its items into one of them")


def _leaks(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of splits that must not share anything."""
    pairs = itertools.combinations(sorted(set(splits), key=SPLITS.index), 2)
    return [(one, other) for one, other in pairs if {one, other} != MAY_SHARE]


def _repeated_files(entries: Sequence[Entry]) -> Iterator[Finding]:
    """A path in two splits under different subjects, or an item that is listed twice."""
    first: dict[str, dict[str, Entry]] = defaultdict(dict)
    seen: dict[tuple[str, ...], str] = {}
    for entry in entries:
        files = tuple(files_of(entry.item))
        same = seen.setdefault((entry.split, *files), entry.where)
        if same != entry.where:
            yield Finding("warning", "listed twice", entry.where, f"lists the same files as {same}: remove one")
        for file in files:
            first[file].setdefault(entry.split, entry)
    for file, places in first.items():
        for one, other in _leaks(places):
            if places[one].owner != places[other].owner:  # or it was reported with its subject
                yield Finding("error", "file on both sides", places[other].where, f"{file} is in {one!r} and in "
                              f"{other!r}: remove it from one of them")


def _duplicates(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Images of different subjects with the same voxels, in different files."""
    first: dict[str, tuple[Entry, str]] = {}
    for entry in entries:
        for image in entry.facts.images.values():
            if image.low == image.high:
                continue  # reported as constant
            other, path = first.setdefault(image.digest, (entry, image.path))
            if path == image.path or entry.owner == other.owner:
                continue
            leaks = bool(_leaks({entry.split, other.split}))
            advice = "and the splits share it: remove one" if leaks else "remove one, or give both one subject"
            yield Finding("error" if leaks else "warning", "duplicate", entry.where, f"{image.path} holds the same "
                          f"voxels as {path} of {other.where}, {advice}")


def _odd_spacings(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Images whose voxels are far larger or smaller than those of others: often a wrong unit or a lost header."""
    groups: dict[tuple[str, str], list[tuple[Entry, ImageFacts]]] = defaultdict(list)
    for entry in entries:
        for image in entry.facts.images.values():
            groups[entry.dataset, entry.item["modality"]].append((entry, image))
    for members in groups.values():
        # In order of size, because volumes may be stored along any axis.
        spacings = np.sort([image.spacing_mm for _, image in members], axis=1)
        ratios = spacings / np.median(spacings, axis=0)
        for (entry, image), ratio in zip(members, ratios, strict=True):
            if ratio.max() > UNUSUAL_SPACING or ratio.min() < 1 / UNUSUAL_SPACING:
                typical = _product(np.median(spacings, axis=0))
                yield Finding("warning", "unusual spacing", entry.where, f"{image.path}: spacing "
                              f"{_product(image.spacing_mm)} mm, others of this set have about {typical} mm in order "
                              "of size: check its header")


def _product(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def split_summaries(entries: Sequence[Entry]) -> Iterator[SplitSummary]:
    """A row for every split of every data set."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.dataset, entry.split].append(entry)
    for (dataset, split), members in groups.items():
        images = [image for entry in members for image in entry.facts.images.values()]
        modalities, tasks = (_counted(entry.item[key] for entry in members) for key in ("modality", "task"))
        yield SplitSummary(
            dataset, split, len(members), len({entry.owner for entry in members}), modalities, tasks,
            _ends([image.shape for image in images]), _ends([image.spacing_mm for image in images]),
            (min(image.low for image in images), max(image.high for image in images)) if images else None,
            sum(entry.facts.slices for entry in members))


def _counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _ends(rows: Sequence[tuple]) -> Any:
    """Smallest and largest of every column, None without rows."""
    return (np.min(rows, axis=0).tolist(), np.max(rows, axis=0).tolist()) if rows else None


def class_sizes(entries: Sequence[Entry]) -> Iterator[ClassSize]:
    """A row for every data set, label and split with labels; names that no file shows included."""
    labelled = [entry for entry in entries if entry.item["task"] == "segmentation" and entry.item.get("label")]
    for dataset in dict.fromkeys(entry.dataset for entry in labelled):
        own = [entry for entry in labelled if entry.dataset == dataset]
        named: dict[str, set[tuple[int, str, bool]]] = defaultdict(set)
        for entry in own:
            for number in sorted({*entry.item["labels"], *entry.facts.voxels}):
                name = _label_name(entry.item, number)
                named[same_name(name)].add((number, name, number in entry.item["labels"] or not entry.item["labels"]))
        for same, labels in named.items():
            for split in dict.fromkeys(entry.split for entry in own):
                members = [entry for entry in own if entry.split == split]
                voxels = [sum(count for number, count in entry.facts.voxels.items()
                              if same_name(_label_name(entry.item, number)) == same) for entry in members]
                ml = sum(count * entry.facts.voxel_ml for count, entry in zip(voxels, members, strict=True))
                _, name, is_named = min(labels)
                yield ClassSize(dataset, name, is_named, sorted({number for number, _, _ in labels}), split,
                                sum(count > 0 for count in voxels), sum(voxels), ml)


def _label_name(item: Item, number: int) -> str:
    return item["labels"].get(number, f"label {number}")


def class_findings(classes: Sequence[ClassSize]) -> Iterator[Finding]:
    """Names without voxels, and labels that only one side of a split shows."""
    rows: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for row in classes:
        if row.is_named:  # or it is an error anyway
            rows[row.dataset, row.name][row.split] = row.cases
    for (dataset, name), cases in rows.items():
        where = f"data set {dataset!r}"
        if not any(cases.values()):
            yield Finding("warning", "unused label", where, f"no file shows the label {name!r}: remove it from "
                          "'labels', or check its number")
        elif not cases.get("training", 1):
            yield Finding("warning", "label not trained", where, f"no item in 'training' shows the label {name!r}, "
                          "items of other splits do: move subjects")
        elif not cases.get("validation", 1):
            yield Finding("warning", "label not validated", where, f"no item in 'validation' shows the label {name!r}: "
                          "move a subject")
