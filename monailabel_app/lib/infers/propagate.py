"""From painted slices of an image to all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from monailabel.interfaces.tasks.infer_v2 import InferType
from mvg_core.predict import Prediction
from mvg_core.references import Reference, labels_in, marked_slices, whole_labels
from mvg_core.resample import resample_to
from mvg_core.slices import choose_plane
from mvg_core.tasks import Task
from mvg_core.volume import GeometryError, Volume

from lib.errors import problem
from lib.infers.volume_task import VolumeTask, found_labels, quality_of
from lib.names import BACKGROUND, SCRIBBLES, names_in, renumbered
from lib.workbench import Workbench

PAINT = ("nothing is painted: paint the whole structure on one slice (Slicer: Scribbles, Foreground) and press Update "
         "again")


@dataclass(frozen=True, eq=False)
class Painted:
    """What the user painted.

    Attributes:
        label: uint8 (I, J, K); in the slices that count, what is there.
        marks: bool (I, J, K), which voxels say that their slice counts.
        names: label number -> name.
    """

    label: npt.NDArray[np.uint8]
    marks: npt.NDArray[np.bool_]
    names: dict[int, str]


class Propagate(VolumeTask):
    """Completes a volume of which some slices are painted; its type makes Slicer send what is painted.

    Args:
        workbench: images, references and network.
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench, InferType.SCRIBBLES,
                         "Paint the structure on one slice, Update: the whole volume. Correct a slice, Update again")

    def solve(self, query: Volume, settings: Mapping[str, Any]) -> tuple[Prediction, dict[str, Any]]:
        """Take the painted slices as they are, and solve the others."""
        if not settings.get("label"):
            raise problem(422, "no label map was uploaded: send the painted slices as the form's file 'label'")
        if min(query.geometry.shape) == 1:
            raise problem(422, "a picture has no other slices: use mvg_segment, with a labelled picture as reference")
        painted = self._painted(query, settings)
        plane = str(settings["plane"])
        axis = choose_plane(query.geometry, painted.marks) if plane == "auto" else query.geometry.anatomical_axis(plane)
        numbers = marked_slices(painted.marks, axis)
        box = _box(settings.get("roi"), query.geometry.shape)
        reference = Reference(query, query.with_array(painted.label), "painted slices", numbers)
        slices = None if box is None else (min(box[axis].start, *numbers), max(box[axis].stop - 1, *numbers))
        prediction = self.engine(settings).solve(query, reference, Task.segmentation(), plane=axis, slices=slices)
        if box is not None:
            _clear_outside(prediction.volume.array, box, axis, numbers)
        told = prediction.provenance
        return prediction, {
            "label_names": found_labels(prediction.volume.array, painted.names), "quality": quality_of(told),
            "painted_slices": list(numbers), "plane": told["plane"], "preset": settings["preset"],
            "doubtful_slices": told.get("doubtful_slices", []), "suggested_slices": told.get("suggested_slices", []),
            "warnings": told["warnings"], "weights": settings["weights"]}

    def _painted(self, query: Volume, settings: Mapping[str, Any]) -> Painted:
        label = self.bench.volumes.read(settings["label"])
        array = whole_labels(label.array, "the uploaded label")
        if not array.any():
            raise ValueError(PAINT)
        if not label.geometry.is_close(query.geometry):
            if not label.geometry.overlaps(query.geometry):
                raise GeometryError("the uploaded label and the image do not overlap in space: send the label map of "
                                    "this very image")
            array = resample_to(label.with_array(array), query.geometry, is_label=True).array
        present = sorted(labels_in(array))
        names = names_in(settings, present)
        selected = settings.get("selected_label_name")
        if selected:
            return _of_one_segment(array, names, str(selected))
        kept = {number: number for number in present if names.get(number) not in (*SCRIBBLES, BACKGROUND)}
        array = renumbered(array, kept)
        if not array.any():
            raise ValueError(PAINT)
        return Painted(array, array > 0, {number: names.get(number, f"label {number}") for number in kept})


def _of_one_segment(array: npt.NDArray[np.uint8], names: Mapping[int, str], selected: str) -> Painted:
    """Slicer's Scribbles: one segment, and what was painted onto it or taken off it.

    Where anything is painted, only the painted slices count: the segment itself holds the answer to the request before.
    """
    def where(name: str) -> npt.NDArray[np.bool_]:
        return np.isin(array, [number for number, other in names.items() if other == name])

    segment, added, removed = where(selected), where(SCRIBBLES[0]), where(SCRIBBLES[1])
    marks = added | removed if added.any() or removed.any() else segment
    if not marks.any():
        raise ValueError(PAINT)
    label = ((segment | added) & ~removed).astype(np.uint8)
    if not label.any():
        raise ValueError("everything is painted away: paint the structure on one slice (Scribbles, Foreground)")
    return Painted(label, marks, {1: selected})


def _box(roi: Any, shape: tuple[int, ...]) -> tuple[slice, slice, slice] | None:
    """Slicer's region [i0, i1, j0, j1, k0, k1] in voxels, as far as it lies in the image; None without one."""
    if not roi:
        return None
    if not isinstance(roi, (list, tuple)) or len(roi) != 6:
        raise ValueError(f"roi must be six voxel indices [i0, i1, j0, j1, k0, k1], got {roi!r}")
    ends = [sorted((int(roi[2 * axis]), int(roi[2 * axis + 1]))) for axis in range(3)]
    first = [max(0, low) for low, _ in ends]
    last = [min(shape[axis] - 1, high) for axis, (_, high) in enumerate(ends)]
    if any(low > high for low, high in zip(first, last, strict=True)):
        raise ValueError(f"roi {list(roi)} lies outside the image of {shape} voxels: move it, or remove it")
    return (slice(first[0], last[0] + 1), slice(first[1], last[1] + 1), slice(first[2], last[2] + 1))


def _clear_outside(label: npt.NDArray[np.uint8], box: tuple[slice, slice, slice], axis: int, painted: tuple[int, ...]
                   ) -> None:
    """Background outside the region, but for painted slices."""
    outside = np.ones(label.shape, bool)
    outside[box] = False
    np.moveaxis(outside, axis, 0)[list(painted)] = False
    label[outside] = 0
