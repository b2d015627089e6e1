"""From the volumes of one training item to its slices: cut with the `SlicePlan` and the intensities of inference.

Shape letters: n slices, S side of a slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from mvg_core.holes import fill_slices
from mvg_core.intensity import CT_WINDOW_HU, IntensityScaling, check_finite, looks_like_ct
from mvg_core.predict import CT_IMAGE_WINDOW_HU
from mvg_core.references import scaled_slices, whole_labels
from mvg_core.resample import resample_to
from mvg_core.slices import SlicePlan
from mvg_core.tasks import MAX_LABEL, TaskKind
from mvg_core.volume import Geometry, Plane, Volume

CT_WINDOWS = {"": CT_WINDOW_HU, "_wide": CT_IMAGE_WINDOW_HU}
"""Every CT is kept twice: soft tissue as in segmentation, and wide as in image-to-image tasks, as two contrasts."""
MINIMUM_CONTENT = 0.02
"""Share of pixels brighter than 5 % below which a slice shows nothing worth learning from."""
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
UNDIRECTED, SOURCE, TARGET = 0, 1, 2
"""Direction of a stack: none, shown to the network, or painted by it."""

# Share of a voxel by which the grids of an image and its label may differ and still be one.
_SAME_GRID = 0.1


class Stack(NamedTuple):
    """The slices of one item in one plane and contrast."""

    plane: str
    contrast: str
    direction: int
    numbers: np.ndarray  # (n,) int64
    relative: np.ndarray  # (n,)
    images: np.ndarray  # (n, S, S) uint8
    labels: np.ndarray  # (n, S, S) uint8


@dataclass(frozen=True)
class Cutting:
    """How volumes are cut.

    Attributes:
        size: side of the slices in pixels; networks train on crops and scalings of them.
        stride_2nd: of planes other than the acquisition plane, and of isotropic volumes, every n-th slice is kept.
    """

    size: int = 192
    stride_2nd: int = 2

    def __post_init__(self) -> None:
        for name in ("size", "stride_2nd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def images(self, images: Mapping[str, Volume], label: np.ndarray | None, geometry: Geometry) -> Iterator[Stack]:
        """Every plane and contrast of co-registered images that shows something.

        Args:
            images: by contrast, all on the grid `geometry`; none for a label map only.
            label: (I, J, K) uint8 on that grid, or None.
            geometry: the grid.
        """
        for plane, plan, numbers in self._plans(geometry):
            labels = np.zeros((len(numbers), self.size, self.size), np.uint8)
            if label is not None:
                labels = plan.extract_label(label, numbers).astype(np.uint8)
            shown = {} if images else {"labelmap": np.zeros_like(labels)}
            for name, volume in images.items():
                for suffix, scaling in _scalings(volume.array).items():
                    shown[name + suffix] = _bytes(scaled_slices(plan, volume.array, numbers, scaling))
            for contrast, slices in shown.items():
                keep = _has_content(slices if images else (labels > 0) * np.uint8(255))
                if keep.any():
                    yield Stack(plane, contrast, UNDIRECTED, numbers[keep], plan.relative_positions[numbers][keep],
                                slices[keep], labels[keep])

    def pair(self, source: Volume, target: Volume, kind: TaskKind) -> Iterator[Stack]:
        """Source and target of an image-to-image example.

        Both are scaled as in inference: by the source, unless they have units of their own (synthesis). Where they
        differ is the hole of an inpainting; it is black in the source, and what the source holds there plays no part.

        Args:
            source: what is shown; equal to the target somewhere if it is for inpainting.
            target: what is painted, on the same grid.
            kind: of the task.
        """
        geometry = source.geometry
        hole = source.array != target.array if kind == "inpainting" else None
        scaling = image_scaling(source.array if hole is None else source.array[~hole])
        target_scaling = image_scaling(target.array) if kind == "synthesis" else scaling
        for plane, plan, numbers in self._plans(geometry):
            sources = scaled_slices(plan, _filled(source.array, hole, plan.axis), numbers, scaling)
            if hole is not None:
                sources = np.where(plan.extract_label(hole, numbers) > 0, np.float32(0), sources)
            targets = _bytes(scaled_slices(plan, target.array, numbers, target_scaling))
            keep = _has_content(targets)
            if not keep.any():
                continue
            relative, nothing = plan.relative_positions[numbers][keep], np.zeros_like(targets[keep])
            yield Stack(plane, f"{kind} source", SOURCE, numbers[keep], relative, _bytes(sources)[keep], nothing)
            yield Stack(plane, f"{kind} target", TARGET, numbers[keep], relative, targets[keep], nothing)

    def _plans(self, geometry: Geometry) -> Iterator[tuple[Plane, SlicePlan, np.ndarray]]:
        """Every plane worth cutting, its plan, and the numbers of the slices kept."""
        for plane, stride in planes_of(geometry, self.stride_2nd):
            plan = SlicePlan.for_volume(geometry, plane, size=self.size)
            yield plane, plan, np.arange(0, plan.n_slices, stride)


def planes_of(geometry: Geometry, stride_2nd: int) -> list[tuple[Plane, int]]:
    """The planes worth cutting, each with its stride."""
    if min(geometry.shape) == 1:
        return [(geometry.plane_of_axis(int(np.argmin(geometry.shape))), 1)]
    thickest = geometry.plane_of_axis(int(np.argmax(geometry.spacing_mm)))
    isotropic = max(geometry.spacing_mm) < 1.3 * min(geometry.spacing_mm)
    anisotropic = max(geometry.spacing_mm) > 2.2 * min(geometry.spacing_mm)
    if anisotropic:
        return [(thickest, 1)]
    return [(plane, stride_2nd if isotropic or plane != "axial" else 1) for plane in PLANES]


def merged_label(array: np.ndarray, merge: Mapping[int, int], name: str) -> np.ndarray:
    """A label map as uint8, with the labels in `merge` replaced.

    Raises:
        ValueError: `array` is no label map; see `whole_labels`.
    """
    table = np.arange(MAX_LABEL + 1, dtype=np.uint8)
    for old, new in merge.items():
        table[old] = new
    return table[whole_labels(array, name)]


def on_grid_of(image: Volume, other: Volume, *, is_label: bool, names: tuple[str, str]) -> Volume:
    """A label or target on the grid of its image, resampled as in inference where both cover the same place.

    Args:
        image: decides the grid.
        other: what is brought onto it.
        is_label: nearest neighbour; else linear.
        names: of both, for messages.

    Raises:
        ValueError: they do not cover the same place.
    """
    difference = grid_difference(image.geometry, other.geometry)
    if difference is None:
        return image.with_array(other.array)
    if not covers_same_place(image.geometry, other.geometry):
        raise ValueError(f"{names[1]} does not cover the same place as {names[0]} ({difference}): resample it onto the "
                         "image's grid, or repair its header")
    fill = 0.0 if is_label else float(other.array.min())
    return resample_to(other, image.geometry, is_label=is_label, fill=fill)


def grid_difference(geometry: Geometry, other: Geometry) -> str | None:
    """What differs between two grids, in words; None where it is less than a tenth of a voxel."""
    if geometry.is_close(other, _SAME_GRID * min(geometry.spacing_mm)):
        return None
    if geometry.shape != other.shape:
        return f"shape {other.shape} instead of {geometry.shape}"
    if not np.allclose(geometry.spacing_mm, other.spacing_mm, rtol=1e-3):
        return f"spacing {_mm(other.spacing_mm)} instead of {_mm(geometry.spacing_mm)} mm"
    if geometry.axis_codes != other.axis_codes:
        return f"axes {''.join(other.axis_codes)} instead of {''.join(geometry.axis_codes)}"
    ends = np.array([(0, 0, 0), np.array(geometry.shape) - 1])
    apart = np.linalg.norm(geometry.index_to_world(ends) - other.index_to_world(ends), axis=1).max()
    return f"same shape and spacing, but {apart:.2f} mm away or turned"


def covers_same_place(geometry: Geometry, other: Geometry) -> bool:
    """Whether the bounding boxes of two grids differ by at most a voxel at every side."""
    limit_mm = max(*geometry.spacing_mm, *other.spacing_mm)
    return bool(np.abs(_bounds_mm(geometry) - _bounds_mm(other)).max() <= limit_mm)


def _bounds_mm(geometry: Geometry) -> np.ndarray:
    """(2, 3) smallest and largest world coordinates of the box around all voxels."""
    corners = np.array(list(product(*((-0.5, n - 0.5) for n in geometry.shape))))
    world = geometry.index_to_world(corners)
    return np.stack([world.min(axis=0), world.max(axis=0)])


def _mm(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:g}" for value in np.round(spacing, 3))


def _filled(array: np.ndarray, hole: np.ndarray | None, axis: int) -> np.ndarray:
    """The image without what a hole holds, which interpolation would let shine through."""
    if hole is None:
        return array
    filled = array.astype(np.result_type(array.dtype, np.float32))
    fill_slices(filled, hole, axis)
    return filled


def _has_content(images: np.ndarray) -> np.ndarray:
    """(n,) which of (n, S, S) uint8 show something."""
    return (images > 12).mean((1, 2)) > MINIMUM_CONTENT


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.round(images * 255).astype(np.uint8)


def _scalings(array: np.ndarray) -> dict[str, IntensityScaling]:
    """What is added to the contrast's name -> scaling."""
    scaling = IntensityScaling.for_volume(array)
    if scaling.kind != "window":
        return {"": scaling}
    return {suffix: IntensityScaling.from_window(*window) for suffix, window in CT_WINDOWS.items()}


def image_scaling(array: np.ndarray) -> IntensityScaling:
    """How inference scales images in image-to-image tasks."""
    check_finite(array, "image")
    return IntensityScaling.for_volume(array, window=CT_IMAGE_WINDOW_HU if looks_like_ct(array) else None)
