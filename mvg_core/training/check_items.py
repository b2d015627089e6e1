"""What one item of a datalist holds, looked at before training starts: its files, grids, intensities and labels."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mvg_core.intensity import CT_AIR_BELOW_HU, looks_like_ct, slabs
from mvg_core.tasks import MAX_LABEL
from mvg_core.training.cutting import (
    CT_WINDOWS,
    Cutting,
    covers_same_place,
    grid_difference,
    merged_label,
    planes_of,
)
from mvg_core.training.datalist import Item
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import VolumeWarning, read_volume

Severity = Literal["error", "warning"]
_CT = re.compile(r"\bct\b|computed tomography", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """Something about an item.

    Attributes:
        severity: an `error` stops training, a `warning` deserves a look.
        kind: the same few words for problems of one kind.
        message: what was found and what to do, with the path of the file.
    """

    severity: Severity
    kind: str
    message: str


@dataclass(frozen=True)
class ImageFacts:
    """What an image is like.

    Attributes:
        path: of the file.
        shape: voxels (I, J, K).
        spacing_mm: of the voxels.
        low: smallest intensity, of those that are numbers.
        high: largest intensity.
        digest: the same for files with the same voxels, whatever their format.
    """

    path: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    low: float
    high: float
    digest: str


@dataclass
class ItemFacts:
    """What was found in an item.

    Attributes:
        images: by contrast, `source` and `target` of a pair.
        voxels: label number -> number of voxels, once merged.
        voxel_ml: volume of a voxel of the label map.
        slices: most slices that training may cut of it.
        problems: errors and warnings.
    """

    images: dict[str, ImageFacts] = field(default_factory=dict)
    voxels: dict[int, int] = field(default_factory=dict)
    voxel_ml: float = 0.0
    slices: int = 0
    problems: list[Problem] = field(default_factory=list)

    def error(self, kind: str, message: str) -> None:
        """Add an error."""
        self.problems.append(Problem("error", kind, message))

    def warning(self, kind: str, message: str) -> None:
        """Add a warning."""
        self.problems.append(Problem("warning", kind, message))


def inspect_item(item: Item) -> ItemFacts:
    """Read all files of an item; whatever is wrong with them becomes a problem, never an exception.

    Args:
        item: what `read_datalist` returns; its files may be missing.
    """
    facts = ItemFacts()
    first: Volume | None = None
    for name, path in images_of(item).items():
        volume = _read(path, facts)
        if volume is None:
            continue
        facts.images[name] = _image_facts(volume, path, facts, is_pair="source" in item,
                                          may_lack=name == "source" and item["task"] == "inpainting")
        if first is None:
            first = volume
            _check_modality(volume, path, item, facts)
        elif name == "target":
            _check_pair(first, volume, (item["source"], path), item["task"], facts)
        elif (difference := grid_difference(first.geometry, volume.geometry)) is not None:
            facts.error("different grids", f"{path} and {next(iter(facts.images.values())).path} have different grids "
                        f"({difference}): resample one onto the other")
    label = item.get("label")
    if label is not None:
        _inspect_label(item, first, facts)
    return facts


def images_of(item: Item) -> dict[str, str]:
    """The paths of an item's images by contrast, or as `source` and `target`; none of a label map."""
    image = item.get("image")
    images = dict(image) if isinstance(image, Mapping) else {"image": image} if image else {}
    return images | {key: item[key] for key in ("source", "target") if item.get(key) is not None}


def _read(path: str, facts: ItemFacts) -> Volume | None:
    """The volume, unless it cannot be read; warnings about the file are kept."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", VolumeWarning)
            volume = read_volume(path)
    except ValueError as error:
        facts.error("unreadable", str(error))
        return None
    except Exception as error:  # a defect in a library must not hide what else is wrong
        facts.error("unreadable", f"{path}: {type(error).__name__}: {error}")
        return None
    for one in said:
        facts.warning("file", str(one.message))
    return volume


def _image_facts(volume: Volume, path: str, facts: ItemFacts, *, is_pair: bool, may_lack: bool) -> ImageFacts:
    """What the image is like; `may_lack` where a hole may hold anything, NaN included."""
    array, geometry = volume.array, volume.geometry
    n_bad, low, high = _range(array)
    if n_bad and not may_lack:
        facts.error("not finite", f"{path}: holds {n_bad} NaN/Inf voxels: replace them, for example by the value of "
                    "air")
    elif low == high:
        facts.error("constant image", f"{path}: every voxel is {low:g}, nothing can be seen: check the file")
    windows = len(CT_WINDOWS) if low <= CT_AIR_BELOW_HU and not is_pair else 1
    facts.slices += _slices(geometry) * windows
    return ImageFacts(path, geometry.shape, geometry.spacing_mm, low, high, _digest(array))


def _range(array: np.ndarray) -> tuple[int, float, float]:
    """Number of voxels that are no numbers, and the smallest and largest of the others; piece by piece."""
    n_bad, low, high = 0, np.inf, -np.inf
    for (part,) in slabs(array):
        good = part[np.isfinite(part)]
        n_bad += part.size - good.size
        if good.size:
            low, high = min(low, good.min()), max(high, good.max())
    return (n_bad, float(low), float(high)) if low <= high else (n_bad, 0.0, 0.0)


def _digest(array: np.ndarray) -> str:
    """Of the shape and the values as float64, so that neither compression nor number type play a part."""
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    for part in np.moveaxis(array, 2, 0):
        digest.update(np.ascontiguousarray(part, dtype=np.float64).tobytes())
    return digest.hexdigest()


def _slices(geometry: Geometry) -> int:
    """How many slices of a volume training keeps at most, of one contrast."""
    planes = planes_of(geometry, Cutting().stride_2nd)
    return sum(len(range(0, geometry.shape[geometry.anatomical_axis(plane)], stride)) for plane, stride in planes)


def _check_modality(volume: Volume, path: str, item: Item, facts: ItemFacts) -> None:
    """CT gets fixed windows by its Hounsfield units: say where these and the stated modality disagree."""
    modality = item["modality"]
    if not modality or len(images_of(item)) > 1:
        return
    stated, found = bool(_CT.search(modality)), looks_like_ct(volume.array)
    if stated and not found:
        facts.warning("modality", f"{path}: the list says {modality!r}, but no voxel is air ({CT_AIR_BELOW_HU:g} HU or "
                      "less): it is scaled by percentiles instead of the CT window")
    if found and not stated:
        facts.warning("modality", f"{path}: the list says {modality!r}, but voxels of {CT_AIR_BELOW_HU:g} or less are "
                      "taken for air in CT: it is scaled by the CT window")


def _check_pair(source: Volume, target: Volume, paths: tuple[str, str], task: str, facts: ItemFacts) -> None:
    if not _check_grid(source.geometry, target.geometry, paths, facts) or source.array.shape != target.array.shape:
        return
    same = source.array == target.array
    if same.all():
        facts.warning("identical pair", f"{paths[0]} and {paths[1]} hold the same image: there is nothing to learn")
    elif task == "inpainting" and not same.any():
        facts.error("no hole", f"{paths[0]} and {paths[1]} are equal nowhere: outside the hole of an inpainting they "
                    "must be the same")


def _check_grid(geometry: Geometry, other: Geometry, paths: tuple[str, str], facts: ItemFacts) -> bool:
    """Whether a label or target can be brought onto the grid of its image."""
    difference = grid_difference(geometry, other)
    if difference is None:
        return True
    if covers_same_place(geometry, other):
        facts.warning("grid", f"{paths[1]}: its grid differs from that of {paths[0]} ({difference}), so training "
                      "resamples it")
        return True
    facts.error("grid", f"{paths[1]}: does not cover the same place as {paths[0]} ({difference}): resample it onto the "
                "image's grid, or repair its header")
    return False


def _inspect_label(item: Item, image: Volume | None, facts: ItemFacts) -> None:
    path = item["label"]
    if path in images_of(item).values():
        facts.error("label", f"{path}: is image and label at once")
        return
    volume = _read(path, facts)
    if volume is None:
        return
    if image is None:
        facts.slices += _slices(volume.geometry)
    else:
        _check_grid(image.geometry, volume.geometry, (next(iter(images_of(item).values())), path), facts)
    try:
        label = merged_label(volume.array, item["merge"], path)
    except ValueError as error:
        facts.error("label", str(error))
        return
    counts = np.zeros(MAX_LABEL + 1, np.int64)
    for (part,) in slabs(label):
        counts += np.bincount(part.ravel(), minlength=MAX_LABEL + 1)
    facts.voxels = {int(number): int(counts[number]) for number in np.flatnonzero(counts) if number}
    facts.voxel_ml = abs(float(np.linalg.det(volume.geometry.affine[:3, :3]))) / 1000
    if not facts.voxels:
        facts.warning("empty label", f"{path}: has no foreground")
    unnamed = sorted(set(facts.voxels) - set(item["labels"])) if item["labels"] else []
    for number in unnamed:
        facts.error("unnamed label", f"{path}: holds label {number} ({facts.voxels[number]} voxels), which 'labels' do "
                    f'not name: name it, or remove it with "merge": {{"{number}": 0}}')

