"""The items of datalists as slices: loaded by MONAI, cut as in inference, cached, and joined into a `SliceBank`."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from monai.data.dataset import CacheDataset
from monai.transforms.compose import Compose
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from mvg_core.tasks import MAX_LABEL, TASK_KINDS
from mvg_core.training.bank import BankBuilder, Owner, SliceBank
from mvg_core.training.cutting import Cutting, Stack
from mvg_core.training.datalist_items import (
    DatalistError,
    Item,
    check_item,
    default_subject,
    files_of,
    label_table,
    same_name,
)
from mvg_core.training.datasets import RefusedDataError
from mvg_core.training.reading import LoadVolumesd
from mvg_core.training.slice_cache import CacheWarning, SliceCache, digest
from mvg_core.training.slice_transforms import IMAGE, CutSlices, FlattenPaths


class DatalistWarning(UserWarning):
    """An item that can be used, though it adds nothing."""


class SliceDataset(Dataset):
    """Slices of the items of datalists.

    Args:
        data: MONAI-style items: what `read_datalist` returned, or bare ones such as `{"image": path, "label": path}`.
        cache: folder that keeps the cut slices (MONAI's `PersistentDataset`), so that they are not cut again unless a
            file changes, and are mapped from disk instead of being held in memory. None holds them in memory
            (`CacheDataset`).
        size: side of the slices in pixels.
        workers: threads that read and cut items.
        stride_2nd: of planes other than the acquisition plane, and of isotropic volumes, every n-th slice is kept.
        reader: name of a MONAI reader such as `ITKReader`; None reads as inference does.

    Attributes:
        data: the items, completed.

    Raises:
        DatalistError: no items, or one that lacks a key.
        FileNotFoundError: a file is missing.
        RefusedDataError: an item of a list that must not be trained on.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], *, cache: Path | str | None = None, size: int = 192,
                 workers: int = 0, stride_2nd: int = 2, reader: str | None = None) -> None:
        self.data = _completed(data)
        self.cache = None if cache is None else Path(cache)
        self.workers = workers
        cutting = Cutting(size, stride_2nd)
        loaded = [_loadable(item) for item in self.data]
        keys = sorted({key for item in loaded for key in item["paths"]})
        transform = Compose([FlattenPaths(), LoadVolumesd(keys, reader, allow_missing_keys=True), CutSlices(cutting)])
        self._memory: list[dict[str, Any] | None] = [None] * len(loaded)
        if self.cache is None:
            self._items: Dataset = CacheDataset(loaded, transform, runtime_cache=self._memory, copy_cache=False)
        else:
            self._items = SliceCache(loaded, transform, self.cache, [reader, asdict(cutting)])
        self._numbering = _LabelNumbers(self.data)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The slices of one item.

        Returns:
            `dataset`, `subject`, `task`, and `stacks`: for each plane and contrast a dictionary of `plane`, `contrast`,
            `direction`, and the tensors `numbers` (n,), `relative` (n,), `images` and `labels` (n, S, S) uint8. Label
            numbers are those of `labels`.

        Raises:
            DatalistError: the item's files cannot be used; has the paths of the file and of the list.
        """
        index = range(len(self))[index]
        item = self.data[index]
        with _speaking_of(item):
            cut: dict[str, Any] = self._items[index]
            table = self._numbering.table(item, cut["found"])
        stacks = cut["stacks"]
        if not cut.get("numbered"):
            stacks = [stack | {"labels": torch.from_numpy(table[stack["labels"].numpy()])} for stack in stacks]
        return {key: item[key] for key in ("dataset", "subject", "task")} | {"stacks": stacks}

    @cached_property
    def bank(self) -> SliceBank:
        """All slices in one table; built once, and with a cache only once for the same items.

        Raises:
            DatalistError: as `__getitem__`; or no item shows anything.
        """
        bank = self._mapped(self._items) if isinstance(self._items, SliceCache) else self._in_memory()
        return replace(bank, weights=np.array([self.dataset_weights[str(name)] for name in bank.names]))

    def _in_memory(self) -> SliceBank:
        bank, rows = self._build(BankBuilder())
        self._share(bank, rows)
        return bank

    def _mapped(self, cache: SliceCache) -> SliceBank:
        """The bank kept in the cache, built if it is not there or damaged."""
        assert cache.cache_dir is not None
        described = [[cache.hash_of(loaded).decode(), item["dataset"], item["subject"], item["modality"],
                      sorted(item["labels"].items())] for loaded, item in zip(cache.data, self.data, strict=True)]
        folder = cache.cache_dir / f"bank-{digest(described)}"
        if folder.is_dir():
            try:
                return SliceBank.map(folder)
            except Exception as error:  # damage surfaces as almost any type
                warnings.warn(f"{folder} is damaged ({error}): built again", CacheWarning, stacklevel=3)
                shutil.rmtree(folder)
        return self._build_mapped(folder)

    @property
    def dataset_weights(self) -> dict[str, float]:
        """How often each data set is drawn; the largest weight of its items."""
        weights: dict[str, float] = {}
        for item in self.data:
            weights[item["dataset"]] = max(weights.get(item["dataset"], 0.0), float(item["weight"]))
        return weights

    @property
    def labels(self) -> dict[str, dict[int, str]]:
        """Of each data set: label number in the slices -> name."""
        return self._numbering.names()

    def _build(self, builder: BankBuilder) -> tuple[SliceBank, list[int]]:
        """The bank, and the number of its rows that each item has."""
        self._fill()
        rows = []
        for index, item in enumerate(self.data):
            owner = Owner(item["dataset"], item["subject"], "\n".join(files_of(item)), same_name(item["modality"]),
                          TASK_KINDS.index(item["task"]), bool(item.get("image") or item.get("source")))
            rows.append(builder.add(owner, (_as_stack(stack) for stack in self[index]["stacks"])))
            if not rows[-1]:
                warnings.warn(f"{_name(item)}: no slice shows anything, so it adds nothing", DatalistWarning,
                              stacklevel=4)
        try:
            return builder.build(), rows
        except ValueError as error:
            raise DatalistError(f"{self.data[0]['datalist']}: {error}") from error

    def _build_mapped(self, folder: Path) -> SliceBank:
        """A bank whose slices are written as they come and mapped from then on."""
        builder = BankBuilder(folder.with_name(f".{folder.name}.{uuid4().hex}.part"))
        try:
            self._build(builder)
            try:
                os.replace(builder.written_to(), folder)
            except OSError:
                if not folder.is_dir():  # or another process was faster, whose bank is the same
                    raise
            return SliceBank.map(folder)
        except OSError as error:  # those of reading are DatalistErrors
            raise OSError(f"cache {folder.parent} cannot be written to ({error}): free space, or choose another folder"
                          ) from error
        finally:
            builder.abandon()

    def _share(self, bank: SliceBank, rows: Sequence[int]) -> None:
        """Let the items show the slices of the bank, so that memory holds them once."""
        starts = np.cumsum([0, *rows])
        for index, start in enumerate(starts[:-1].tolist()):
            shown = []
            for stack in self[index]["stacks"]:
                part = slice(start, start := start + len(stack["numbers"]))
                shown.append(stack | {"images": torch.from_numpy(bank.images[part]),
                                      "labels": torch.from_numpy(bank.labels[part])})
            known = self._memory[index]
            assert known is not None  # it was cut to build the bank
            self._memory[index] = {"stacks": shown, "found": known["found"], "numbered": True}

    def _fill(self) -> None:
        """Read and cut every item that is not cached, with a bar in a terminal."""
        console = Console(stderr=True)
        with ThreadPool(max(1, self.workers)) as pool:
            done = pool.imap(self._touch, range(len(self))) if self.workers > 1 else map(self._touch, range(len(self)))
            for _ in track(done, "cutting slices", len(self), console=console, disable=not console.is_terminal):
                pass

    def _touch(self, index: int) -> None:
        with _speaking_of(self.data[index]):
            self._items[index]


class _LabelNumbers:
    """Which numbers the labels of a data set get: those of its first table of labels, and new ones for further names.

    Tables of one data set belong together by name, whatever their numbers. Labels without a table keep their numbers.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._of: dict[str, dict[str, int]] = {}
        self._names: dict[str, dict[int, str]] = {}
        for item in items:
            numbers = self._of.setdefault(item["dataset"], {})
            names = self._names.setdefault(item["dataset"], {})
            for number, name in sorted(item["labels"].items()):
                if same_name(name) in numbers:
                    continue
                free = [number, *(n for n in range(1, MAX_LABEL + 1) if n not in names)]
                chosen = next((n for n in free if n not in names), None)
                if chosen is None:
                    raise DatalistError(f"{_name(item)}: data set {item['dataset']!r} has more than {MAX_LABEL} "
                                        "labels: give its lists different names")
                numbers[same_name(name)], names[chosen] = chosen, name

    def names(self) -> dict[str, dict[int, str]]:
        """Of each data set: number -> name."""
        return {dataset: dict(sorted(names.items())) for dataset, names in self._names.items()}

    def table(self, item: Item, found: Sequence[int]) -> np.ndarray:
        """(256,) uint8: label number in the item's file -> in the slices.

        Raises:
            ValueError: the file holds a label that the item's table does not name.
        """
        table = np.arange(MAX_LABEL + 1, dtype=np.uint8)
        if item["labels"] and (unnamed := sorted(set(found) - set(item["labels"]))):
            raise ValueError(f"{item['label']} holds label {unnamed[0]}, which its 'labels' do not name "
                             f'({item["labels"]}): name it, or remove it with "merge": {{"{unnamed[0]}": 0}}')
        for number, name in item["labels"].items():
            table[number] = self._of[item["dataset"]][same_name(name)]
        return table


# ------------------------------------------------------------------------------------------------------------- items


def _completed(data: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Items with everything that may be left out, once they were checked."""
    if isinstance(data, (str, os.PathLike)):
        raise DatalistError(f"{data}: needed the items of a datalist, got a path: read it with read_datalist or "
                            "read_datalists")
    if not len(data):
        raise DatalistError("no items to cut slices of: the datalist is empty, or its split is")
    completed = []
    for number, given in enumerate(data):
        where = f"{given.get('datalist', 'data')}: item {number}" + (
            f" ({given['subject']})" if given.get("subject") else "")
        check_item(given, where)
        if given.get("role", "train") != "train":
            raise RefusedDataError(f"{where}: has role {given['role']!r}, only role 'train' may be trained on")
        item = {"task": "segmentation", "labels": {}, "merge": {}, "modality": "", "weight": 1.0, "dataset": "data",
                "datalist": "data", "subject": default_subject(given)} | dict(given)
        item["labels"] = label_table(item["labels"], where)
        for file in files_of(item):
            if not Path(file).exists():
                raise FileNotFoundError(f"{where}: {file} is missing: correct the path, or remove the item")
        completed.append(item)
    return completed


def _loadable(item: Item) -> dict[str, Any]:
    """What the slices of an item depend on: task, merged labels and, by the key under which each is loaded, paths."""
    paths: dict[str, str] = {}
    image = item.get("image")
    for name, path in (image if isinstance(image, Mapping) else {"image": image} if image else {}).items():
        paths[IMAGE + name] = str(path)
    paths |= {key: str(item[key]) for key in ("label", "source", "target") if item.get(key) is not None}
    return {"paths": paths, "task": item["task"], "merge": dict(item["merge"])}


def _name(item: Item) -> str:
    return f"{item['datalist']}: item of subject {item['subject']!r}"


@contextmanager
def _speaking_of(item: Item) -> Iterator[None]:
    """Say of which item an error of ours is; MONAI wraps it into its own."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and (type(cause) is RuntimeError or not isinstance(cause, (ValueError, OSError))):
            cause = cause.__cause__
        if cause is None:
            raise
        raise DatalistError(f"{_name(item)}: {cause}") from error


def _as_stack(tensors: Mapping[str, Any]) -> Stack:
    arrays: dict[str, Any] = {name: value.numpy() if isinstance(value, torch.Tensor) else value
                              for name, value in tensors.items()}
    return Stack(**arrays)
