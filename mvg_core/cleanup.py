"""Tidying a label map: small or lesser pieces removed, holes filled. Off unless asked for, and always reported.

A network that judges slice by slice leaves specks and pinholes which no organ has. Removing them helps some structures
and harms others (metastases are many pieces, a ventricle is a hole by right), so it is the user's choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from mvg_core.references import labels_in, whole_labels
from mvg_core.volume import Geometry, Volume

_MM3_PER_ML = 1000.0
_ROUNDING = 1e-9


@dataclass(frozen=True)
class CleanupConfig:
    """What is tidied; nothing by default.

    Attributes:
        largest_component: keep the largest piece of each label only.
        smallest_ml: pieces below this volume are removed; 0 keeps all. Needs an image with a true scale.
        fill_holes: give background that labels enclose to the label that most of its surface touches.
        largest_hole_ml: holes above this volume stay; infinite fills all.
        labels: which labels are tidied; None tidies all.

    Raises:
        ValueError: a volume is negative or not a number.
    """

    largest_component: bool = False
    smallest_ml: float = 0.0
    fill_holes: bool = False
    largest_hole_ml: float = math.inf
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("smallest_ml", "largest_hole_ml"):
            if not getattr(self, name) >= 0:  # also refuses NaN
                raise ValueError(f"{name} must be 0 ml or more, got {getattr(self, name)}")
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))

    @property
    def is_off(self) -> bool:
        """Whether nothing would be changed."""
        return not (self.largest_component or self.smallest_ml > 0 or self.fill_holes)


@dataclass(frozen=True)
class LabelCleanup:
    """What happened to one label.

    Attributes:
        label: its number.
        pieces: how many pieces it had.
        removed_pieces: how many of them were removed.
        removed_voxels: that became background.
        filled_holes: holes that became this label.
        added_voxels: of these holes.
        removed_ml: None for pictures, which have no true scale.
        added_ml: None for pictures.
    """

    label: int
    pieces: int
    removed_pieces: int
    removed_voxels: int
    filled_holes: int
    added_voxels: int
    removed_ml: float | None
    added_ml: float | None

    @property
    def changed(self) -> bool:
        """Whether a voxel of it was removed or added."""
        return bool(self.removed_voxels or self.added_voxels)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        return asdict(self)


def clean_up(labels: Volume, config: CleanupConfig) -> tuple[Volume, tuple[LabelCleanup, ...]]:
    """Tidy a label map.

    Pieces hang together by shared faces, edges or corners; a hole is background whose only way out, by shared faces,
    is through labels, and it may not reach the edge of the volume. Pieces are removed before holes are filled. A volume
    of one slice is tidied in its plane.

    Args:
        labels: label map.
        config: what is tidied.

    Returns:
        The tidied label map, uint8 (the same voxels if `config.is_off`), and what happened to each label in it.

    Raises:
        ValueError: it is no label map, or volumes in ml are asked of a picture, which has no scale.
    """
    array = whole_labels(labels.array, "the label map")
    voxel_ml = _voxel_ml(labels.geometry)
    if voxel_ml is None and (config.smallest_ml > 0 or math.isfinite(config.largest_hole_ml)):
        raise ValueError("sizes in ml mean nothing in a picture without a scale: leave smallest_ml and "
                         "largest_hole_ml out")
    if config.is_off:
        return labels.with_array(array), ()
    array = array.copy()
    chosen = sorted(labels_in(array) & set(config.labels if config.labels is not None else range(256)))
    if not chosen:
        return labels.with_array(array), ()
    pieces = {label: _remove_pieces(array, label, config, voxel_ml or 1.0) for label in chosen}
    filled = _fill_holes(array, chosen, config.largest_hole_ml / (voxel_ml or 1.0)) if config.fill_holes else {}
    report = []
    for label in chosen:
        n_pieces, n_removed, removed = pieces[label]
        n_holes, added = filled.get(label, (0, 0))
        ml = [None if voxel_ml is None else round(n * voxel_ml, 6) for n in (removed, added)]
        report.append(LabelCleanup(label, n_pieces, n_removed, removed, n_holes, added, *ml))
    return labels.with_array(array), tuple(report)


def _voxel_ml(geometry: Geometry) -> float | None:
    """Volume of a voxel; None for a picture."""
    if min(geometry.shape) == 1 and np.allclose(geometry.spacing_mm, 1):
        return None
    return abs(float(np.linalg.det(geometry.affine[:3, :3]))) / _MM3_PER_ML


def _remove_pieces(array: npt.NDArray[np.uint8], label: int, config: CleanupConfig, voxel_ml: float
                   ) -> tuple[int, int, int]:
    """Remove pieces of a label in place; how many there were, how many went, and their voxels."""
    box = _box(array == label)
    view = array[box]
    pieces, sizes = _components(view == label, fully_connected=True)
    keep = sizes * voxel_ml >= config.smallest_ml * (1 - _ROUNDING)
    if config.largest_component:
        keep &= np.arange(len(sizes)) == int(np.argmax(sizes))  # of equal ones, the first
    lost = np.concatenate([[False], ~keep])[pieces]
    view[lost] = 0
    return len(sizes), int((~keep).sum()), int(lost.sum())


def _fill_holes(array: npt.NDArray[np.uint8], chosen: Collection[int], most_voxels: float
                ) -> dict[int, tuple[int, int]]:
    """Fill holes in place; how many each label took, and their voxels."""
    # One voxel more on each side, where there is any: what lies outside all labels is one piece with the edge.
    view = array[_box(array > 0, margin=1)]
    holes, sizes = _components(view == 0, fully_connected=False)
    edge = [np.take(holes, end, axis).ravel() for axis in range(3) if view.shape[axis] > 1 for end in (0, -1)]
    becomes = _most_touched(view, holes, len(sizes))
    becomes[np.unique(np.concatenate(edge))] = 0
    becomes[1:][sizes > most_voxels * (1 + _ROUNDING)] = 0
    becomes[~np.isin(becomes, list(chosen))] = 0
    np.copyto(view, becomes[holes], where=becomes[holes] > 0)
    return {label: (int((becomes == label).sum()), int(sizes[becomes[1:] == label].sum()))
            for label in set(becomes.tolist()) - {0}}


def _most_touched(array: npt.NDArray[np.uint8], holes: npt.NDArray[np.uint32], n_holes: int) -> npt.NDArray[np.uint8]:
    """(1 + n_holes,) the label on most faces of each hole, of equal ones the lowest; 0 without any."""
    touched = np.zeros((1 + n_holes) * 256, np.intp)
    for axis in range(3):
        numbers, labels = (np.moveaxis(each, axis, 0) for each in (holes, array))
        for inside, beyond in ((numbers[:-1], labels[1:]), (numbers[1:], labels[:-1])):
            touching = (inside > 0) & (beyond > 0)
            touched += np.bincount(inside[touching].astype(np.intp) * 256 + beyond[touching], minlength=len(touched))
    return touched.reshape(-1, 256).argmax(axis=1).astype(np.uint8)


def _components(mask: npt.NDArray[np.bool_], *, fully_connected: bool) -> tuple[npt.NDArray[np.uint32],
                                                                                npt.NDArray[np.intp]]:
    """Pieces of (I, J, K), numbered from 1, and the voxels of each."""
    method = sitk.ConnectedComponentImageFilter()
    method.SetFullyConnected(fully_connected)
    pieces = sitk.GetArrayFromImage(method.Execute(sitk.GetImageFromArray(mask.astype(np.uint8)))).astype(np.uint32)
    return pieces, np.bincount(pieces.ravel(), minlength=1)[1:]


def _box(mask: npt.NDArray[np.bool_], margin: int = 0) -> tuple[slice, ...]:
    """The smallest box around True, with a margin where there is room."""
    box = []
    for axis, n in enumerate(mask.shape):
        marked = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not marked.size:
            return (slice(0, 0),) * mask.ndim
        box.append(slice(max(0, int(marked[0]) - margin), min(n, int(marked[-1]) + 1 + margin)))
    return tuple(box)
