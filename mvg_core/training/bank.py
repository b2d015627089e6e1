"""All training slices in one table: cut once with the `SlicePlan` of inference, kept as bytes, indexed for episodes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mvg_core.training.cutting import UNDIRECTED, Cutting, Stack, merged_label
from mvg_core.training.datasets import TrainingItem, TrainingSet
from mvg_core.volume_io import read_volume


@dataclass(frozen=True)
class SliceBank:
    """Slices of many volumes. Numbers are columns of one table with a row per slice.

    Attributes:
        images: (N, S, S) uint8, intensity x 255; black where a set has label maps only. May be mapped from a file.
        labels: (N, S, S) uint8 label numbers, 0 where a set has no labels. May be mapped from a file.
        dataset: index into `names`.
        stack: one number for each (volume, plane, contrast).
        group: one number for each (data set, plane, contrast, modality): stacks of different subjects that can serve
            each other.
        subject: one number for each (data set, subject).
        site: one number for each (volume, plane, slice): shared by the co-registered contrasts of one place, and by the
            two sides of a directed pair.
        relative: position in the stack, 0..1.
        number: slice number in the stack.
        labelled: whether any label is on the slice.
        has_image: False for label maps only.
        names: data set names.
        direction: `UNDIRECTED`, or `SOURCE` and `TARGET` of a directed image-to-image pair (see `cutting`). None gives
            all slices no direction.
        kind: index into `TASK_KINDS` of the task that a directed pair is an example of; 0 without direction, as None.
        weights: one for each of `names`: how often the data set is drawn where the configuration does not say. None
            gives all 1.
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
    direction: np.ndarray = None  # type: ignore[assignment]  # filled below
    kind: np.ndarray = None  # type: ignore[assignment]
    weights: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.weights is None:
            object.__setattr__(self, "weights", np.ones(len(self.names)))
        for name in ("direction", "kind"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(len(self.stack), np.int8))

    def save(self, path: Path) -> None:
        """Write the bank as one uncompressed .npz, atomically."""
        temporary = path.with_name(path.name + ".part.npz")
        np.savez(temporary, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> SliceBank:
        """Read what `save` wrote, also before pairs had a direction."""
        with np.load(path) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls) if field.name in stored})

    @classmethod
    def map(cls, folder: Path) -> SliceBank:
        """Open what a `BankBuilder` wrote into `folder`; the slices stay on disk until they are looked at.

        Raises:
            OSError, ValueError, KeyError: incomplete or damaged.
        """
        with np.load(folder / _COLUMNS) as stored:
            columns = {name: stored[name] for name in stored.files}
        shape = tuple(int(n) for n in columns.pop("shape"))
        for name in _SLICES:
            path = folder / f"{name}.bin"
            if path.stat().st_size != np.prod(shape):
                raise ValueError(f"{path} has {path.stat().st_size} bytes, needed {np.prod(shape)}")
            # Copy on write: never written to, but torch warns of arrays that cannot be.
            columns[name] = np.memmap(path, np.uint8, "c", shape=shape)
        return cls(**columns)


_SLICES = ("images", "labels")
_COLUMNS = "columns.npz"


@dataclass(frozen=True)
class Owner:
    """Whose slices are added to a bank.

    Attributes:
        dataset: name of the data set.
        subject: unique within the data set.
        volume: what tells the item from others of the subject, usually a path.
        modality: items of different ones serve each other in no episode.
        task: index into `TASK_KINDS` of a directed pair.
        has_image: False for label maps only.
    """

    dataset: str
    subject: str
    volume: str
    modality: str = ""
    task: int = 0
    has_image: bool = True


class BankBuilder:
    """Numbers the slices of one item after the other.

    Args:
        folder: where the slices are written as they come, so that they never are in memory together; it must not exist.
            None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._numbers: dict[str, dict[tuple[object, ...], int]] = {}
        self._columns: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._count, self._size = 0, 0
        if folder is not None:
            folder.mkdir(parents=True)
            self._files = {name: open(folder / f"{name}.bin", "wb") for name in _SLICES}  # noqa: SIM115

    def dataset(self, name: str) -> int:
        """The number of a data set."""
        return self._number("dataset", name)

    def add(self, owner: Owner, stacks: Iterable[Stack]) -> int:
        """Add the slices of an item; how many there were."""
        added = 0
        for stack in stacks:
            key = (owner.dataset, owner.subject, owner.volume, stack.plane)
            count = len(stack.numbers)
            directed = stack.direction != UNDIRECTED
            same = {
                "dataset": self.dataset(owner.dataset),
                "stack": self._number("stack", *key, stack.contrast),
                "group": self._number("group", owner.dataset, stack.plane, stack.contrast, owner.modality),
                "subject": self._number("subject", owner.dataset, owner.subject),
                "has_image": owner.has_image,
                "direction": np.int8(stack.direction),
                "kind": np.int8(owner.task if directed else 0),
            }
            own = {
                "site": np.array([self._number("site", *key, number) for number in stack.numbers.tolist()]),
                "relative": stack.relative.astype(np.float32),
                "number": stack.numbers,
                "labelled": stack.labels.any((1, 2)),
            }
            for name, values in [*own.items(), *((name, np.full(count, value)) for name, value in same.items())]:
                self._columns.setdefault(name, []).append(values)
            self._store({"images": stack.images, "labels": stack.labels})
            added += count
        self._count += added
        return added

    def build(self) -> SliceBank:
        """The bank of everything added.

        Raises:
            ValueError: nothing was added.
        """
        if not self._count:
            raise ValueError("no slice shows anything: check the images and labels of the list (mvg check-data)")
        columns: dict[str, Any] = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        columns["names"] = np.array([name for (name,) in self._numbers["dataset"]])
        if self.folder is None:
            return SliceBank(**columns)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        columns["shape"] = np.array([self._count, self._size, self._size])
        np.savez(self.folder / _COLUMNS, **columns)
        return SliceBank.map(self.folder)

    def written_to(self) -> Path:
        """The folder that was written to."""
        assert self.folder is not None
        return self.folder

    def abandon(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            file.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _store(self, slices: dict[str, np.ndarray]) -> None:
        for name, values in slices.items():
            self._size = values.shape[-1]
            if self._files:
                np.ascontiguousarray(values, dtype=np.uint8).tofile(self._files[name])
            else:
                self._columns.setdefault(name, []).append(values)

    def _number(self, column: str, *key: object) -> int:
        """Gives every new key of a column the next number."""
        numbers = self._numbers.setdefault(column, {})
        return numbers.setdefault(key, len(numbers))


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
    builder, cutting = BankBuilder(), Cutting(size, stride_2nd)
    for training_set in sets:
        builder.dataset(training_set.name)
        for item in training_set.items:
            owner = Owner(item.dataset, item.subject, str(item.label or next(iter(item.images.values()))),
                          has_image=bool(item.images))
            builder.add(owner, _item_stacks(training_set, item, cutting))
    return builder.build()


def _item_stacks(training_set: TrainingSet, item: TrainingItem, cutting: Cutting) -> Iterable[Stack]:
    """Every plane and contrast of an item that shows something."""
    label = read_volume(item.label) if item.label else None
    label_array = None
    if label is not None:
        label_array = merged_label(label.array, training_set.merged_labels, str(item.label))
    volumes = {name: read_volume(path) for name, path in item.images.items()}
    geometry = label.geometry if label is not None else next(iter(volumes.values())).geometry
    for name, volume in volumes.items():
        if not volume.geometry.is_close(geometry):
            raise ValueError(f"{item.images[name]} and the other files of subject {item.subject} have different grids")
    return cutting.images(volumes, label_array, geometry)
