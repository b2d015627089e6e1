"""Queries that an evaluation makes itself: one labelled slice of a volume, noise, holes; always the same ones.

Shape letters: I J K voxels; N slices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from mvg_core.evaluation.scoring import image_scaling
from mvg_core.volume import Geometry, Volume

ACQUISITION = "acquisition"
"""Plane name: across the largest spacing."""
_PLANES = ("axial", "coronal", "sagittal")  # of equal ones, the first is taken


def slice_to_label(truth: Volume, labels: Collection[int] | None = None, plane: str = "auto") -> tuple[int, int]:
    """The slice whose labels are given in the use "one labelled slice -> volume".

    In the plane in which a slice shows most labels (of equal ones: the acquisition plane, that is across the largest
    spacing, then axial, coronal, sagittal), the slice with most labels, of these the one with most labelled voxels, of
    these the first.

    Args:
        truth: label map.
        labels: that count; None counts all.
        plane: `auto`, `acquisition`, `axial`, `coronal` or `sagittal`.

    Returns:
        Index axis along which slices are taken, and the number of the slice.

    Raises:
        ValueError: the label map is empty, has one slice only, or has no acquisition plane though that is asked for.
        GeometryError: unknown plane.
    """
    geometry = truth.geometry
    present = np.unique(truth.array)
    present = [label for label in present.tolist() if label != 0 and (labels is None or label in labels)]
    if not present:
        raise ValueError("its label map is empty: no slice can be chosen as the labelled one")
    acquisition = acquisition_axis(geometry)
    if plane == ACQUISITION:
        if acquisition is None:
            raise ValueError(f"spacing {geometry.spacing_mm} mm has no largest one, so there is no acquisition plane: "
                             "choose axial, coronal or sagittal")
        axes = [acquisition]
    elif plane == "auto":
        by_name = [geometry.anatomical_axis(name) for name in _PLANES]  # type: ignore[arg-type]
        axes = sorted(by_name, key=lambda axis: axis != acquisition)  # stable: the others keep their order
    else:
        axes = [geometry.anatomical_axis(plane)]  # type: ignore[arg-type]
    axes = [axis for axis in axes if geometry.shape[axis] > 1 and _is_image(geometry, axis)]
    if not axes:
        raise ValueError(f"shape {geometry.shape} has one slice only: one labelled slice needs others to be painted")
    counts = {axis: _counts(truth.array, present, axis) for axis in axes}
    best = max(axes, key=lambda axis: counts[axis].astype(bool).sum(axis=0).max())  # the first of equal ones
    n_labels, n_voxels = counts[best].astype(bool).sum(axis=0), counts[best].sum(axis=0)
    return best, int(np.lexsort((np.arange(len(n_labels)), -n_voxels, -n_labels))[0])


def acquisition_axis(geometry: Geometry) -> int | None:
    """The axis with the largest spacing; None if no spacing is more than 1 % above the next."""
    order = np.argsort(geometry.spacing_mm)
    second, largest = (geometry.spacing_mm[axis] for axis in order[-2:])
    return int(order[-1]) if largest > 1.01 * second else None


def only_slice(label: Volume, axis: int, number: int) -> Volume:
    """The label map with background in all other slices."""
    array = np.zeros_like(label.array)
    np.moveaxis(array, axis, 0)[number] = np.moveaxis(label.array, axis, 0)[number]
    return label.with_array(array)


def thinned(volume: Volume, axis: int, most: int) -> Volume:
    """At most so many slices, evenly spread over the volume; they lie that much farther apart."""
    n_slices = volume.geometry.shape[axis]
    if most < 1:
        raise ValueError(f"at least 1 slice is needed, got {most}")
    if n_slices <= most:
        return volume
    step = n_slices // most
    first = (n_slices - step * (most - 1) - 1) // 2
    chosen: list[slice | int] = [slice(None)] * 3
    chosen[axis] = slice(first, first + step * (most - 1) + 1, step)
    affine = volume.geometry.affine.copy()
    origin = [0, 0, 0]
    origin[axis] = first
    affine[:3, 3] = volume.geometry.index_to_world(origin)
    affine[:3, axis] *= step
    array = volume.array[tuple(chosen)]
    return Volume(array, Geometry(array.shape, affine))


def with_noise(clean: Volume, sigma: float, seed: str) -> Volume:
    """Gaussian noise, in the units of the image.

    Args:
        clean: an image.
        sigma: of the noise, where the image goes from 0 to 1 (see `image_scaling`).
        seed: another text is another noise.
    """
    scaling = image_scaling(clean.array, "the image")
    noise = _random(seed).normal(0, sigma, clean.array.shape)
    return clean.with_array(scaling.invert(np.clip(scaling.apply(clean.array) + noise, 0, 1)))


def random_holes(image: Volume, axis: int, seed: str) -> npt.NDArray[np.bool_]:
    """One to three ellipses or boxes in every slice, where the image shows something; bool (I, J, K).

    Half axes are 6 to 16 % of the longer side of a slice. Centres are drawn among the voxels above the darkest quarter
    of the intensity range.

    Args:
        image: where the holes are to be.
        axis: along which slices are taken.
        seed: another text is other holes.
    """
    random = _random(seed)
    scaled = np.moveaxis(image_scaling(image.array, "the image").apply(image.array), axis, 0)  # (N, rows, columns)
    spacing = [image.geometry.spacing_mm[other] for other in range(3) if other != axis]
    rows, columns = np.mgrid[: scaled.shape[1], : scaled.shape[2]]
    side_mm = max(n * step for n, step in zip(scaled.shape[1:], spacing, strict=True))
    holes = np.zeros(image.array.shape, bool)
    for slice_of_image, hole in zip(scaled, np.moveaxis(holes, axis, 0), strict=True):
        seen = np.argwhere(slice_of_image > 0.25)
        for _ in range(random.integers(1, 4)):
            row, column = seen[random.integers(len(seen))] if len(seen) else np.array(slice_of_image.shape) // 2
            half_mm = side_mm * random.uniform(0.06, 0.16, 2)
            down = (rows - row) * spacing[0] / half_mm[0]
            across = (columns - column) * spacing[1] / half_mm[1]
            is_box = random.random() < 0.5
            hole |= np.maximum(np.abs(down), np.abs(across)) < 1 if is_box else down**2 + across**2 < 1
    return holes


def _random(seed: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))


def _counts(array: npt.NDArray, labels: Sequence[int], axis: int) -> npt.NDArray[np.intp]:
    """(labels, slices) voxels of each label in each slice."""
    others = tuple(other for other in range(3) if other != axis)
    return np.stack([np.count_nonzero(array == label, axis=others) for label in labels])


def _is_image(geometry: Geometry, axis: int) -> bool:
    """Whether a slice along the axis has two dimensions."""
    return all(geometry.shape[other] > 1 for other in range(3) if other != axis)
