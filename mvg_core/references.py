"""References: solved volumes, and the prompts that are cut from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mvg_core.holes import continued
from mvg_core.intensity import IntensityScaling, check_finite, slabs
from mvg_core.prompts import Prompt
from mvg_core.resample import resample_to
from mvg_core.slices import SlicePlan, choose_plane
from mvg_core.tasks import MAX_LABEL, Task
from mvg_core.volume import Geometry, GeometryError, Volume


@dataclass(frozen=True, eq=False)
class Reference:
    """One solved example in 3D.

    Attributes:
        image: the image.
        label: the label map (segmentation), or the image that the answer should look like. Brought onto the grid of
            `image` when it lies on another one.
        name: for messages and reports.
        slices: numbers of the slices that are solved, along the axis of the plan; None takes all slices with any label
            (segmentation), with any hole (inpainting with a `hole`), or all slices.
        hole: where `image` is missing (inpainting); None punches a hole of its own into every prompt.
    """

    image: Volume
    label: Volume
    name: str = "reference"
    slices: tuple[int, ...] | None = None
    hole: Volume | None = None

    def checked(self, task: Task) -> Reference:
        """This reference on one grid, with a usable label: of a label map, what the task names.

        Raises:
            GeometryError: image and label do not overlap in space.
            ValueError: NaN, a constant image, a hole in another task than inpainting, or a label map that is negative,
                fractional, above 255, or empty.
        """
        check_finite(self.image.array, f"{self.name} image")
        check_not_constant(self.image.array, f"{self.name} image")
        if self.hole is not None and task.kind != "inpainting":
            raise ValueError(f"{self.name} has a hole, which belongs to inpainting, not to {task.kind}: leave it out")
        label = self._label_map(task) if task.is_segmentation else self._label_image()
        return Reference(self.image, label, self.name, self.slices, self._hole())

    def is_part_of(self, query: Volume) -> bool:
        """Whether the reference image is the query itself (same grid, same voxels)."""
        if self.image is query or self.image.array is query.array:
            return self.image.geometry.is_close(query.geometry)
        return self.image.geometry.is_close(query.geometry) and all(
            np.array_equal(mine, theirs) for mine, theirs in slabs(self.image.array, query.array))

    def _label_map(self, task: Task) -> Volume:
        name = f"{self.name} label"
        label = self.label.with_array(whole_labels(self.label.array, name))
        shown = labels_in(label.array)
        if task.foreground and not shown & set(task.foreground):
            raise ValueError(f"{name} holds none of the labels {list(task.foreground)} of the task, only "
                             f"{sorted(shown)}: name the labels it has")
        if not shown:
            raise ValueError(f"{name} is empty: label at least one slice of the structures you want")
        if task.foreground and shown - set(task.foreground):
            label = label.with_array(_only(label.array, task.foreground))
        label = _on_grid(label, self.image.geometry, name, is_label=True)
        if not label.array.any():
            raise ValueError(f"{name} is empty where its image is: they do not show the same place")
        return label

    def _label_image(self) -> Volume:
        check_finite(self.label.array, f"{self.name} label")
        outside = float(self.label.array.min())  # air, in CT as in other modalities
        return _on_grid(self.label, self.image.geometry, f"{self.name} label", is_label=False, fill=outside)

    def _hole(self) -> Volume | None:
        if self.hole is None:
            return None
        hole = self.hole.with_array(hole_mask(self.hole.array, f"{self.name} hole"))
        hole = _on_grid(hole, self.image.geometry, f"{self.name} hole", is_label=True)
        if not hole.array.any():
            raise ValueError(f"{self.name} hole is empty where its image is: they do not show the same place")
        return hole


def check_not_constant(array: npt.NDArray, name: str) -> None:
    """Refuse an image in which nothing can be seen.

    Raises:
        ValueError: all voxels have one value.
    """
    low, high = array.min(), array.max()
    if low == high:
        raise ValueError(f"{name} is constant ({low} everywhere): nothing can be seen in it, check the file")


def whole_labels(array: npt.NDArray, name: str) -> npt.NDArray[np.uint8]:
    """A label map as uint8; not a copy if it is one already.

    Raises:
        ValueError: NaN, fractional, negative or above 255; says which values were found.
    """
    if array.dtype in (np.bool_, np.uint8):
        return array.view(np.uint8)
    check_finite(array, name)
    low, high = array.min(), array.max()
    if low < 0 or high > MAX_LABEL:
        raise ValueError(f"{name} holds values from {low:g} to {high:g}: labels are 0 (background) to {MAX_LABEL}. "
                         "Renumber them")
    whole = np.empty_like(array, dtype=np.uint8)
    for values, rounded in slabs(array, whole):
        rounded[...] = values
        wrong = values[values != rounded]
        if wrong.size:
            raise ValueError(f"{name} holds fractions such as {wrong.flat[0]:g}: a label map holds whole numbers. Pass "
                             "the label map, not a probability map; or threshold it")
    return whole


def hole_mask(array: npt.NDArray, name: str) -> npt.NDArray[np.bool_]:
    """Where an image is missing, bool, from a label map that is not 0 there.

    Raises:
        ValueError: it is no label map, or 0 everywhere.
    """
    mask = whole_labels(array, name) > 0
    if not mask.any():
        raise ValueError(f"{name} is empty: mark the voxels to be painted")
    return mask


def labels_in(array: npt.NDArray[np.uint8]) -> set[int]:
    """The labels of a label map (...), without background."""
    found = np.zeros(MAX_LABEL + 1, bool)
    for (part,) in slabs(array):
        found[part] = True
    return set(np.flatnonzero(found).tolist()) - {0}


def choose_axis(references: Sequence[Reference], query: Geometry, task: Task, plane: str | int = "auto") -> int:
    """The query's index axis along which slices are taken.

    Args:
        references: checked; the first decides when `plane` is `auto`.
        query: grid of the query.
        task: label maps decide by where they are, image-to-image tasks by spacing.
        plane: `axial`, `coronal`, `sagittal`, an index axis, or `auto`.

    Raises:
        GeometryError: unknown plane.
    """
    if plane != "auto":
        return query.anatomical_axis(plane) if isinstance(plane, str) else plane  # type: ignore[arg-type]
    if min(query.shape) == 1:
        return choose_plane(query)
    first = references[0]
    geometry = first.image.geometry
    if not task.is_segmentation:
        axis = choose_plane(geometry)
    elif first.slices is None:
        axis = choose_plane(geometry, first.label.array)
    else:
        axis = _axis_of_slices(first)
    return query.anatomical_axis(geometry.plane_of_axis(axis))


def plan_for(reference: Geometry, query: SlicePlan, spacing_mm: float | None) -> SlicePlan:
    """The plan that cuts a reference as the query is cut: same plane (but pictures in their own) and size.

    Args:
        reference: its grid.
        query: the query's plan.
        spacing_mm: pixel spacing, usually the query's; None fits the reference by itself.
    """
    if reference.is_close(query.geometry):
        axis = query.axis
    elif min(reference.shape) == 1:
        axis = choose_plane(reference)
    else:
        axis = reference.anatomical_axis(query.geometry.plane_of_axis(query.axis))
    return SlicePlan.for_volume(reference, axis, size=query.size, spacing_mm=spacing_mm)


def common_spacing(geometries: Sequence[Geometry], axes: Sequence[int], size: int) -> float | None:
    """In-plane spacing (mm) at which all fit into `size` pixels, so that anatomy has one scale; None for pictures.

    Pictures (one slice with unit spacing) have no true scale: each is fitted by itself.
    """
    if any(min(geometry.shape) == 1 and np.allclose(geometry.spacing_mm, 1) for geometry in geometries):
        return None
    return max(SlicePlan.for_volume(geometry, axis, size=size).spacing_mm
               for geometry, axis in zip(geometries, axes, strict=True))


@dataclass(frozen=True, eq=False)
class PromptSource:
    """Cuts the prompts of a reference one by one, so that those of a huge volume need not be held at once.

    Attributes:
        reference: checked.
        plan: for the reference's grid.
        task: segmentation keeps label numbers; other tasks scale the label to [0, 1].
        image_scaling: of the reference image.
        label_scaling: of the target image; None for segmentation.

    Raises:
        IndexError: `reference.slices` names a slice that does not exist.
    """

    reference: Reference
    plan: SlicePlan
    task: Task
    image_scaling: IntensityScaling
    label_scaling: IntensityScaling | None

    def __post_init__(self) -> None:
        wrong = [number for number in self.reference.slices or () if not 0 <= number < self.plan.n_slices]
        if wrong:
            raise IndexError(f"{self.reference.name} has no slice {wrong[0]}: along this axis they are 0 to "
                             f"{self.plan.n_slices - 1}")

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the slices that can serve as prompts, ascending."""
        if self.reference.slices is not None:
            return tuple(sorted(set(self.reference.slices)))
        marks = self.reference.label if self.task.is_segmentation else self.reference.hole
        return tuple(range(self.plan.n_slices)) if marks is None else marked_slices(marks.array, self.plan.axis)

    @cached_property
    def positions(self) -> tuple[float, ...]:
        """Relative position of each of `numbers`, 0 to 1."""
        return tuple(self.plan.relative_positions[list(self.numbers)].tolist())

    @cached_property
    def labels(self) -> set[int]:
        """The labels that the prompts show; empty for image-to-image tasks."""
        if not self.task.is_segmentation:
            return set()
        stored = np.moveaxis(self.reference.label.array, self.plan.axis, 0)
        return set().union(*(labels_in(stored[number]) for number in self.numbers))

    def cut(self, number: int) -> Prompt:
        """The prompt of one slice."""
        image = scaled_slices(self.plan, self._shown(number), [number], self.image_scaling)[0]
        if self.label_scaling is None:
            label = self.plan.extract_label(self.reference.label.array, number)[0]
        else:
            label = scaled_slices(self.plan, self.reference.label.array, [number], self.label_scaling)[0]
        hole = None
        if self.task.kind == "inpainting":
            hole = (_standard_hole(self.plan.size) if self.reference.hole is None
                    else self.plan.extract_label(self.reference.hole.array, number)[0] > 0)
            image = np.where(hole, np.float32(0), image)
        return Prompt(image=image, label=label, subject=self.reference.name, hole=hole,
                      position_mm=float(self.plan.relative_positions[number]))

    def _shown(self, number: int) -> npt.NDArray:
        """The image (I, J, K), with its own hole filled in this slice; other slices are not to be looked at then."""
        image = self.reference.image.array
        if self.task.kind != "inpainting" or self.reference.hole is None:
            return image
        # Filled before it is resampled, or what is in the hole would shine through at its edge.
        part, hole = (np.moveaxis(array, self.plan.axis, 0)[number] for array in (image, self.reference.hole.array))
        filled = continued(part, hole > 0)
        return np.moveaxis(np.broadcast_to(filled, (self.plan.n_slices, *filled.shape)), 0, self.plan.axis)


def cut_prompts(reference: Reference, plan: SlicePlan, task: Task, image_scaling: IntensityScaling,
                label_scaling: IntensityScaling | None) -> list[Prompt]:
    """All prompts of a checked reference, see `PromptSource`."""
    source = PromptSource(reference, plan, task, image_scaling, label_scaling)
    return [source.cut(number) for number in source.numbers]


def scaled_slices(plan: SlicePlan, array: npt.NDArray, numbers: Sequence[int] | npt.NDArray,
                  scaling: IntensityScaling) -> npt.NDArray[np.float32]:
    """Slices as the network sees them, in training as in inference: cut, then scaled to [0, 1]; black around them.

    Args:
        plan: how to cut.
        array: (I, J, K) image in its own units.
        numbers: slice numbers.
        scaling: of the whole image.

    Returns:
        float32 (N, S, S) in [0, 1].
    """
    return scaling.apply(plan.extract(array, numbers, fill=scaling.low))


def slice_range(slices: tuple[int, int] | None, n_slices: int) -> range:
    """Numbers of the slices from the first to the last that is asked for, both included; None asks for all.

    Raises:
        ValueError: the last comes before the first.
        IndexError: there is no such slice.
    """
    first, last = slices if slices is not None else (0, n_slices - 1)
    if first > last:
        raise ValueError(f"slices are asked for from {first} to {last}: give the lower number first")
    if first < 0 or last >= n_slices:
        raise IndexError(f"slices are asked for from {first} to {last}: along this axis they are 0 to {n_slices - 1}")
    return range(first, last + 1)


def only_slices(mask: npt.NDArray[np.bool_], axis: int, numbers: range) -> npt.NDArray[np.bool_]:
    """A mask (I, J, K) without what it marks in other slices than these."""
    kept = np.zeros_like(mask)
    part = tuple(slice(numbers.start, numbers.stop) if at == axis else slice(None) for at in range(mask.ndim))
    kept[part] = mask[part]
    return kept


def marked_slices(array: npt.NDArray, axis: int) -> tuple[int, ...]:
    """Numbers of the slices along `axis` of (I, J, K) that hold anything but 0."""
    return tuple(number for number, part in enumerate(np.moveaxis(array, axis, 0)) if part.any())


def _axis_of_slices(reference: Reference) -> int:
    """The reference's axis along which its `slices` are numbered: where only they hold labels, else by the grid."""
    default = choose_plane(reference.image.geometry)
    if reference.slices is None:
        return default
    solved = tuple(sorted(set(reference.slices)))
    axes = [axis for axis in range(3) if marked_slices(reference.label.array, axis) == solved]
    return default if not axes or default in axes else axes[0]


def _only(array: npt.NDArray[np.uint8], labels: Collection[int]) -> npt.NDArray[np.uint8]:
    """The label map (...) with every other label set to background."""
    kept = np.zeros(MAX_LABEL + 1, np.uint8)
    kept[list(labels)] = list(labels)
    result = np.empty_like(array)
    for part, out in slabs(array, result):
        out[...] = kept[part]
    return result


def _on_grid(volume: Volume, geometry: Geometry, name: str, *, is_label: bool, fill: float = 0) -> Volume:
    """`volume` on the grid `geometry`, resampled if both overlap in space."""
    if volume.geometry.is_close(geometry):
        return volume
    if not volume.geometry.overlaps(geometry):
        raise GeometryError(f"{name} (shape {volume.geometry.shape}) and its image (shape {geometry.shape}) do not "
                            "overlap in space: they are probably from different patients or lost their orientation")
    return resample_to(volume, geometry, is_label=is_label, fill=fill)


def _standard_hole(size: int) -> npt.NDArray[np.bool_]:
    """Two discs, (size, size), bool: what a prompt without a hole of its own is shown without."""
    y, x = np.mgrid[:size, :size] / size
    return (((x - 0.4) ** 2 + (y - 0.42) ** 2) < 0.09 ** 2) | (((x - 0.63) ** 2 + (y - 0.6) ** 2) < 0.06 ** 2)
