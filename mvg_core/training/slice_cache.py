"""Cut slices on disk: MONAI's `PersistentDataset`, made safe against changed and damaged files."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from monai.data.dataset import PersistentDataset
from monai.transforms.compose import Compose

from mvg_core.network.checkpoint import load_safely, save_atomically
from mvg_core.network.errors import CheckpointError

FORMAT = 1
"""Part of every key: raise it when slices are cut otherwise."""


class CacheWarning(UserWarning):
    """Something in a cache was damaged and is made again."""


class SliceCache(PersistentDataset):
    """Entries whose keys change with their files, that are checked when read, and replaced in one step.

    MONAI 1.6 writes to the system's temporary folder and copies from there, and passes on most errors of damaged files.

    Args:
        data: items with `paths`, `task` and `merge`.
        transform: gives tensors and plain values only.
        folder: made if it is not there.
        facts: whatever else the result of `transform` depends on; JSON-serialisable.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose, folder: Path, facts: Any) -> None:
        self.facts = facts
        try:
            super().__init__(data, transform, folder, hash_func=self.hash_of)
        except (OSError, ValueError) as error:
            raise OSError(f"cache {folder} cannot be made ({error}): choose another folder") from error

    def hash_of(self, item: Mapping[str, Any]) -> bytes:
        """Changes with anything that the slices of an item depend on: its files, task, merged labels, and `facts`."""
        files = [[key, path, _state(Path(path))] for key, path in item["paths"].items()]
        return digest([FORMAT, self.facts, item["task"], sorted(item["merge"].items()), files]).encode()

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> dict[str, Any]:
        assert self.cache_dir is not None
        path = self.cache_dir / f"{self.hash_of(item_transformed).decode()}.pt"
        if path.is_file():
            try:
                return load_safely(path)
            except CheckpointError:
                warnings.warn(f"{path} is damaged: its item is cut again", CacheWarning, stacklevel=2)
        cut = cast(dict[str, Any], self._pre_transform(dict(item_transformed)))
        try:
            save_atomically(cut, path)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            raise OSError(f"cache {self.cache_dir} cannot be written to ({error}): free space, or choose another folder"
                          ) from error
        return cut


def digest(value: Any) -> str:
    """32 characters that stand for a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _state(path: Path) -> list[Any]:
    """Size and time of change of a file, or of all files of a DICOM folder."""
    if path.is_dir():
        return [[entry.name, *_state(entry)] for entry in sorted(path.iterdir()) if entry.is_file()]
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
