"""Reading lists of training items, and refusing what must never be trained on.

A data set folder holds a `dataset.json`: MONAI-style lists split by subject, in which every item has its `subject` and
paths relative to the folder. Several images of one item share a world space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HIPPOCAMPUS_FREESURFER = (17, 53)
"""FreeSurfer numbers of left and right hippocampus, an organ that is kept unseen for evaluation."""
HIPPOCAMPUS_REPLACEMENT = {17: 2, 53: 41}
"""Each is merged into the cerebral white matter of its side, so that neither its label nor its shape is seen."""
REFUSED_CONTRASTS = ("pet",)
TRAINING_SPLITS = ("training", "validation")


class RefusedDataError(ValueError):
    """The data exists, but must not be trained on."""


@dataclass(frozen=True)
class TrainingItem:
    """One subject's images on one grid.

    Attributes:
        dataset: name of the data set.
        subject: unique within the data set.
        images: contrast name -> path; empty for sets of label maps only.
        label: path of the label map, or None.
    """

    dataset: str
    subject: str
    images: Mapping[str, Path]
    label: Path | None


@dataclass(frozen=True)
class TrainingSet:
    """One split of one data set.

    Attributes:
        name: of the data set.
        modality: as written in `dataset.json`.
        labels: number -> name.
        merged_labels: label number -> the number that replaces it when the label map is read.
        items: one for each image set.
    """

    name: str
    modality: str
    labels: Mapping[int, str]
    merged_labels: Mapping[int, int]
    items: tuple[TrainingItem, ...]


def read_training_set(folder: Path, split: str = "training", contrasts: tuple[str, ...] | None = None) -> TrainingSet:
    """Read one split of a data set that may be trained on.

    Args:
        folder: holds `dataset.json`.
        split: `training`, or `validation` to choose among trained networks.
        contrasts: names of the images wanted, items without any of them are left out; None takes all that may be
            trained on.

    Raises:
        FileNotFoundError: no `dataset.json`, or a listed file is missing.
        RefusedDataError: the role is not `train`, the split is `test`, or a wanted contrast is PET.
        ValueError: no item has any of the wanted contrasts.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a data set folder needs a dataset.json")
    listing = json.loads(path.read_text())
    if listing.get("role") != "train":
        raise RefusedDataError(f"{folder.name} has role {listing.get('role')!r}: only role 'train' may be trained on")
    if split not in TRAINING_SPLITS:
        raise RefusedDataError(f"split {split!r} of {folder.name} is not for training: use one of {TRAINING_SPLITS}")
    refused = [name for name in contrasts or () if _is_refused(name)]
    if refused:
        raise RefusedDataError(f"{folder.name}: contrast {refused[0]!r} belongs to an unseen task, never train on it")
    items = tuple(_item(folder, entry, contrasts) for entry in listing[split])
    if contrasts is not None:
        # Without its images an item would pass for one of label maps only.
        items = tuple(item for item in items if item.images)
        if not items:
            raise ValueError(f"no item of {folder.name}, {split}, has any of the contrasts {contrasts}")
    labels = {int(number): name for number, name in listing.get("labels", {}).items()}
    return TrainingSet(folder.name, listing["modality"], labels, hippocampus_merges(listing), items)


def _is_refused(contrast: str) -> bool:
    return contrast.lower() in REFUSED_CONTRASTS


def _item(folder: Path, entry: Mapping[str, str], contrasts: tuple[str, ...] | None) -> TrainingItem:
    names = [key for key in entry if key not in ("subject", "label") and not _is_refused(key)]
    if contrasts is not None:
        names = [name for name in names if name in contrasts]
    images = {name: folder / entry[name] for name in names}
    label = folder / entry["label"] if "label" in entry else None
    for path in [*images.values(), *([label] if label else [])]:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is listed in {folder / 'dataset.json'} but missing")
    return TrainingItem(folder.name, entry["subject"], images, label)


def hippocampus_merges(listing: Mapping) -> dict[int, int]:
    """Numbers of this listing whose FreeSurfer number is hippocampus -> the number of their surroundings."""
    freesurfer = {int(k): v for k, v in listing.get("freesurfer_number_of_label", {}).items()}
    number_of = {v: k for k, v in freesurfer.items()}
    return {number_of[old]: number_of[new] for old, new in HIPPOCAMPUS_REPLACEMENT.items() if old in number_of}
