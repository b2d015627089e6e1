"""All training slices in memory: cut once with the `SlicePlan` of inference, kept as bytes, indexed for episodes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvg_core.intensity import IntensityScaling
from mvg_core.references import scaled_slices, whole_labels
from mvg_core.slices import SlicePlan
from mvg_core.training.datasets import TrainingItem, TrainingSet
from mvg_core.volume import Geometry, Plane
from mvg_core.volume_io import read_volume

CT_WINDOWS = {"": (-200.0, 300.0), "_wide": (-1000.0, 1000.0)}
"""Every CT is kept twice: soft tissue as in inference, and wide, as two contrasts."""
MINIMUM_CONTENT = 0.02
"""Share of pixels brighter than 5 % below which a slice shows nothing worth learning from."""
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class SliceBank:
    """Slices of many volumes. Numbers are columns of one table with a row per slice.

    Attributes:
        images: (N, S, S) uint8, intensity x 255; black where a set has label maps only.
        labels: (N, S, S) uint8 label numbers, 0 where a set has no labels.
        dataset: index into `names`.
        stack: one number for each (volume, plane, contrast).
        group: one number for each (data set, plane, contrast): stacks of different subjects that can serve each other.
        subject: one number for each (data set, subject).
        site: one number for each (volume, plane, slice): shared by the co-registered contrasts of one place.
        relative: position in the stack, 0..1.
        number: slice number in the stack.
        labelled: whether any label is on the slice.
        has_image: False for label maps only.
        names: data set names.
    """

    images: np.ndarray
    labels: np.ndarray
    dataset: np.ndarray
    stack: np.ndarray
    group: np.ndarray
    subject: np.ndarray
    site: np.ndarray
    relative: np.ndarray
    number: np.ndarray
    labelled: np.ndarray
    has_image: np.ndarray
    names: np.ndarray

    def save(self, path: Path) -> None:
        """Write the bank as one uncompressed .npz, atomically."""
        temporary = path.with_name(path.name + ".part.npz")
        np.savez(temporary, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> SliceBank:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})


class _Numbering:
    """Gives every new key the next number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[object, ...], int] = {}

    def __call__(self, *key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


class _Stack(NamedTuple):
    """The slices of one item in one plane and contrast."""

    plane: Plane
    contrast: str
    numbers: np.ndarray  # (n,)
    relative: np.ndarray  # (n,)
    images: np.ndarray  # (n, S, S) uint8
    labels: np.ndarray  # (n, S, S) uint8


def build_bank(sets: Iterable[TrainingSet], size: int = 192, stride_2nd: int = 2) -> SliceBank:
    """Cut all slices of several data sets.

    Args:
        sets: what `read_training_set` returned.
        size: side of the slices in pixels; networks train on crops and scalings of them.
        stride_2nd: of planes other than the acquisition plane, and of isotropic volumes, every n-th slice is kept.

    Raises:
        VolumeReadError: a file cannot be read.
        ValueError: the files of a subject lie on different grids, or a label map is none.
    """
    stacks, groups, subjects, sites = (_Numbering() for _ in range(4))
    names: list[str] = []
    columns: dict[str, list] = {field.name: [] for field in fields(SliceBank) if field.name != "names"}
    for training_set in sets:
        names.append(training_set.name)
        for item in training_set.items:
            for stack in _item_stacks(training_set, item, size, stride_2nd):
                key = (item.dataset, item.subject, str(item.label or next(iter(item.images.values()))), stack.plane)
                count = len(stack.numbers)
                columns["images"].append(stack.images)
                columns["labels"].append(stack.labels)
                columns["dataset"].append(np.full(count, len(names) - 1))
                columns["stack"].append(np.full(count, stacks(*key, stack.contrast)))
                columns["group"].append(np.full(count, groups(item.dataset, stack.plane, stack.contrast)))
                columns["subject"].append(np.full(count, subjects(item.dataset, item.subject)))
                columns["site"].append(np.array([sites(*key, number) for number in stack.numbers]))
                columns["relative"].append(stack.relative.astype(np.float32))
                columns["number"].append(stack.numbers)
                columns["labelled"].append(stack.labels.any((1, 2)))
                columns["has_image"].append(np.full(count, bool(item.images)))
    return SliceBank(**{name: np.concatenate(parts) for name, parts in columns.items()}, names=np.array(names))


def _item_stacks(training_set: TrainingSet, item: TrainingItem, size: int, stride_2nd: int) -> Iterator[_Stack]:
    """Every plane and contrast of an item that shows something."""
    label = read_volume(item.label) if item.label else None
    label_array = None
    if label is not None:
        label_array = _merged(whole_labels(label.array, str(item.label)), training_set.merged_labels)
    volumes = {name: read_volume(path) for name, path in item.images.items()}
    geometry = label.geometry if label is not None else next(iter(volumes.values())).geometry
    for name, volume in volumes.items():
        if not volume.geometry.is_close(geometry):
            raise ValueError(f"{item.images[name]} and the other files of subject {item.subject} have different grids")
    for plane, stride in _planes(geometry, stride_2nd):
        plan = SlicePlan.for_volume(geometry, plane, size=size)
        numbers = np.arange(0, plan.n_slices, stride)
        labels = np.zeros((len(numbers), size, size), np.uint8)
        if label_array is not None:
            labels = plan.extract_label(label_array, numbers).astype(np.uint8)
        shown = {} if volumes else {"labelmap": np.zeros_like(labels)}
        for name, volume in volumes.items():
            for suffix, scaling in _scalings(volume.array).items():
                shown[name + suffix] = _bytes(scaled_slices(plan, volume.array, numbers, scaling))
        for contrast, images in shown.items():
            content = images if volumes else (labels > 0) * np.uint8(255)
            keep = (content > 12).mean((1, 2)) > MINIMUM_CONTENT
            if keep.any():
                relative = plan.relative_positions[numbers][keep]
                yield _Stack(plane, contrast, numbers[keep], relative, images[keep], labels[keep])


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.round(images * 255).astype(np.uint8)


def _planes(geometry: Geometry, stride_2nd: int) -> list[tuple[Plane, int]]:
    """The planes worth cutting, each with its stride."""
    if min(geometry.shape) == 1:
        return [(geometry.plane_of_axis(int(np.argmin(geometry.shape))), 1)]
    thickest = geometry.plane_of_axis(int(np.argmax(geometry.spacing_mm)))
    isotropic = max(geometry.spacing_mm) < 1.3 * min(geometry.spacing_mm)
    anisotropic = max(geometry.spacing_mm) > 2.2 * min(geometry.spacing_mm)
    if anisotropic:
        return [(thickest, 1)]
    return [(plane, stride_2nd if isotropic or plane != "axial" else 1) for plane in PLANES]


def _scalings(array: np.ndarray) -> dict[str, IntensityScaling]:
    """What is added to the contrast's name -> scaling."""
    scaling = IntensityScaling.for_volume(array)
    if scaling.kind != "window":
        return {"": scaling}
    return {suffix: IntensityScaling.from_window(*window) for suffix, window in CT_WINDOWS.items()}


def _merged(labels: np.ndarray, merged: Mapping[int, int]) -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    for old, new in merged.items():
        table[old] = new
    return table[labels]
