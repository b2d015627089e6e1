"""MONAI transforms from the loaded files of a training item to its slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import Transform

from mvg_core.intensity import check_finite
from mvg_core.references import check_not_constant, labels_in
from mvg_core.tasks import TaskKind
from mvg_core.training.cutting import Cutting, Stack, grid_difference, merged_label, on_grid_of
from mvg_core.training.reading import to_volume
from mvg_core.volume import Volume

IMAGE = "image/"
"""Prefix of a contrast's key among the keys that are loaded."""


class FlattenPaths(Transform):
    """Paths as keys of their own, as `LoadImaged` wants them."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The same with every entry of `paths`."""
        return {**data, **data["paths"]}


class CutSlices(Transform):
    """The loaded files of an item -> its slices, as tensors and plain values that a cache can keep.

    Args:
        cutting: how.
    """

    def __init__(self, cutting: Cutting) -> None:
        self.cutting = cutting

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Cut.

        Args:
            data: `paths` by key, `task`, `merge`, and under every key of `paths` what `LoadVolumesd` loaded.

        Returns:
            `stacks` (see `SliceDataset`), and `found`: the labels in the whole label map.

        Raises:
            ValueError: files that do not belong together or cannot be used; the message has the path.
        """
        paths = data["paths"]
        volumes = {key: to_volume(data[key], path) for key, path in paths.items()}
        found: list[int] = []
        if "source" in volumes:
            stacks = self._pair(volumes["source"], volumes["target"], paths, data["task"])
        else:
            label = volumes.pop("label", None)
            if label is not None:
                label = label.with_array(merged_label(label.array, data["merge"], paths["label"]))
                found = sorted(labels_in(label.array))
            stacks = self._images(volumes, label, paths)
        return {"stacks": [_as_tensors(stack) for stack in stacks], "found": found}

    def _pair(self, source: Volume, target: Volume, paths: Mapping[str, str], task: TaskKind) -> Iterator[Stack]:
        _check_usable(target.array, paths["target"])
        target = on_grid_of(source, target, is_label=False, names=(paths["source"], paths["target"]))
        visible = source.array
        if task == "inpainting":
            visible = visible[visible == target.array]  # what the hole holds is never looked at
            if not visible.size:
                raise ValueError(f"{paths['source']} and {paths['target']} are equal nowhere: outside the hole of an "
                                 "inpainting they must be the same")
        _check_usable(visible, paths["source"])
        return self.cutting.pair(source, target, task)

    def _images(self, volumes: Mapping[str, Volume], label: Volume | None, paths: Mapping[str, str]
                ) -> Iterator[Stack]:
        first = next(iter(volumes), "label")
        for key, volume in volumes.items():
            _check_usable(volume.array, paths[key])
            difference = grid_difference(volumes[first].geometry, volume.geometry)
            if difference is not None:
                raise ValueError(f"{paths[key]} and {paths[first]} have different grids ({difference}): resample one "
                                 "onto the other")
        if volumes and label is not None:
            label = on_grid_of(volumes[first], label, is_label=True, names=(paths[first], paths["label"]))
        some = volumes.get(first, label)
        assert some is not None  # an item has an image or a label
        images = {key.removeprefix(IMAGE): volume for key, volume in volumes.items()}
        return self.cutting.images(images, None if label is None else label.array, some.geometry)


def _check_usable(array: np.ndarray, path: str) -> None:
    """Refuse an image that is not finite, or in which nothing can be seen."""
    check_finite(array, path)
    check_not_constant(array, path)


def _as_tensors(stack: Stack) -> dict[str, Any]:
    """A stack as a cache can keep it."""
    return {name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
            for name, value in stack._asdict().items()}
