"""Segments of a segmentation as masks on the grid of a volume, and their names, colours and terminology."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk

from .geometry import SlicePosition, corners
from .mrml_bridge import imageArray, imageStamp, localAffine, matrixArray, transformBetween, volumeShape, vtkMatrix

MOST_LABELS = 255
"""Labels of a label map are stored in a byte."""


@dataclass(frozen=True)
class SegmentStyle:
    """What a segment looks like and means.

    Attributes:
        name: as the user wrote it; segments of one name are one structure.
        colour: red, green, blue, 0 to 1.
        terminology: the segment's terminology entry as Slicer stores it; empty if it has none.
    """

    name: str
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)
    terminology: str = ""


@dataclass(frozen=True, eq=False)
class Mask:
    """Where a segment is on a grid.

    Attributes:
        start: voxel (i, j, k) of the grid that `array[0, 0, 0]` lies on.
        array: bool, no larger than it has to be; shape (0, 0, 0) where there is nothing.
    """

    start: tuple[int, int, int]
    array: np.ndarray

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where it lies in an array of the whole grid."""
        i, j, k = (slice(low, low + n) for low, n in zip(self.start, self.array.shape, strict=True))
        return i, j, k

    def __bool__(self) -> bool:
        return bool(self.array.any())


NOTHING = Mask((0, 0, 0), np.zeros((0, 0, 0), bool))


def segmentIds(segmentationNode: Any) -> list[str]:
    """IDs of all segments, in their order."""
    segmentation = segmentationNode.GetSegmentation()
    return [segmentation.GetNthSegmentID(number) for number in range(segmentation.GetNumberOfSegments())]


def segmentOf(segmentationNode: Any, segmentId: str) -> Any:
    """The segment with an ID.

    Raises:
        ValueError: there is none.
    """
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    if segment is None:
        raise ValueError(f"segmentation '{segmentationNode.GetName()}' has no segment '{segmentId}' any more: choose "
                         "the segments again")
    return segment


def styleOf(segment: Any) -> SegmentStyle:
    """Name, colour and terminology of a segment."""
    red, green, blue = segment.GetColor()
    return SegmentStyle(segment.GetName() or "", (red, green, blue), tag(segment, segment.GetTerminologyEntryTagName()))


def chosenStyles(segmentationNode: Any, ids: Sequence[str]) -> dict[str, SegmentStyle]:
    """Styles of segments by their IDs.

    Raises:
        ValueError: none, a segment that is not there, or two of one name.
    """
    if segmentationNode is None or not ids:
        raise ValueError("no segment is chosen: choose a segmentation and at least one of its segments")
    styles = {one: styleOf(segmentOf(segmentationNode, one)) for one in ids}
    names = [style.name for style in styles.values()]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"two of the chosen segments are called '{double}': rename one, since equal names mean the "
                         "same structure")
    return styles


def tag(segment: Any, name: str) -> str:
    """A tag of a segment; empty if it has none of this name."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def stampOf(segmentationNode: Any, ids: Iterable[str]) -> tuple[Any, ...]:
    """Changes whenever the voxels, names or place of segments do."""
    parts: list[Any] = [segmentationNode.GetID(), segmentationNode.GetTransformNodeID()]
    for one in ids:
        segment = segmentOf(segmentationNode, one)
        labels = _labelmap(segment)
        source = segmentationNode.GetSegmentation().GetSourceRepresentationName()
        shape = segment.GetRepresentation(source) if labels is None else None
        stamp = imageStamp(labels) if labels is not None else (0 if shape is None else shape.GetMTime(),)
        parts += [one, segment.GetName(), segment.GetLabelValue(), *stamp]
    return tuple(parts)


def segmentMask(segmentationNode: Any, segmentId: str, volumeNode: Any, position: SlicePosition | None = None) -> Mask:
    """Where a segment is on the grid of a volume.

    Both may lie under transforms of their own, and on grids of their own: then the nearest voxel is taken.

    Args:
        segmentationNode: that holds it.
        segmentId: which.
        volumeNode: whose grid.
        position: look at this slice only.

    Raises:
        ValueError: there is no such segment, or it cannot be made a label map.
    """
    image, value = _labelmapOf(segmentationNode, segmentId)
    low, high = _window(volumeShape(volumeNode), position)
    start = np.array(image.GetExtent()[::2])
    found = _bounded(Mask(tuple(start.tolist()), _voxels(image) == value))
    if not found:
        return NOTHING
    general, linear = transformBetween(segmentationNode, volumeNode)
    shift = None if linear is None else _wholeShift(image, linear, volumeNode)
    if shift is not None:
        i, j, k = (int(n) for n in np.array(found.start) + shift)
        return _cropped(Mask((i, j, k), found.array), low, high)
    return _cropped(_resampled(found, image, general, volumeNode, low, high), low, high)


def labelImage(shape: Sequence[int], affine: np.ndarray) -> Any:
    """An empty vtkOrientedImageData of bytes; `affine` is in the coordinates of the segmentation."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, shape[0] - 1, 0, shape[1] - 1, 0, shape[2] - 1)
    image.SetImageToWorldMatrix(vtkMatrix(affine))
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(0)
    return image


def maskImage(mask: Mask, affine: np.ndarray) -> Any:
    """A mask as a vtkOrientedImageData of zeros and ones, no larger than the mask."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*_extent(mask.start, np.array(mask.start) + mask.array.shape))
    image.SetImageToWorldMatrix(vtkMatrix(affine))
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    _voxels(image)[...] = mask.array
    return image


def _labelmapOf(segmentationNode: Any, segmentId: str) -> tuple[Any, int]:
    """The vtkOrientedImageData that holds a segment, perhaps beside others, and the segment's value in it."""
    segment = segmentOf(segmentationNode, segmentId)
    image = _labelmap(segment)
    if image is not None:
        return image, int(segment.GetLabelValue())
    # Made from a surface. A copy, which belongs to the segment alone: the user's segmentation stays as it is.
    image = slicer.vtkOrientedImageData()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not logic.GetSegmentBinaryLabelmapRepresentation(segmentationNode, segmentId, image, False):
        raise ValueError(f"segment '{segment.GetName()}' cannot be made a label map: create its binary labelmap "
                         "representation in the module Segmentations")
    return image, 1


def _labelmap(segment: Any) -> Any:
    return segment.GetRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName())


def _voxels(image: Any) -> np.ndarray:
    """View (I, J, K) of an image of any extent; (0, 0, 0) if it is empty."""
    extent = image.GetExtent()
    shape = tuple(max(0, extent[2 * axis + 1] - extent[2 * axis] + 1) for axis in range(3))
    if 0 in shape or image.GetPointData().GetScalars() is None:
        return np.zeros((0, 0, 0), np.uint8)
    return imageArray(image, shape)


def _window(shape: tuple[int, int, int], position: SlicePosition | None) -> tuple[np.ndarray, np.ndarray]:
    """First voxel, and the one after the last."""
    low, high = np.zeros(3, int), np.array(shape)
    if position is not None:
        if not 0 <= position.index < shape[position.axis]:
            raise ValueError(f"there is no slice {position.index}: along this axis the volume has slices 0 to "
                             f"{shape[position.axis] - 1}")
        low[position.axis], high[position.axis] = position.index, position.index + 1
    return low, high


def _cropped(mask: Mask, low: np.ndarray, high: np.ndarray) -> Mask:
    """The part of a mask from `low` up to, without, `high`."""
    start = np.array(mask.start)
    first, last = np.maximum(low, start), np.minimum(high, start + mask.array.shape)
    if (last <= first).any():
        return NOTHING
    i, j, k = (slice(a, b) for a, b in zip(first - start, last - start, strict=True))
    part = mask.array[i, j, k]
    return Mask(tuple(int(n) for n in first), part) if part.any() else NOTHING  # type: ignore[arg-type]


def _bounded(mask: Mask) -> Mask:
    """The same without empty margins."""
    array, start = mask.array, list(mask.start)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(array.any(axis=others))
        if not used.size:
            return NOTHING
        start[axis] += int(used[0])
        array = array[tuple(slice(used[0], used[-1] + 1) if one == axis else slice(None) for one in range(3))]
    return Mask((start[0], start[1], start[2]), array)


def _wholeShift(image: Any, toVolume: np.ndarray, volumeNode: Any) -> np.ndarray | None:
    """Voxels between the grids of a label map and a volume, if they differ by whole voxels alone."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    between = np.linalg.inv(localAffine(volumeNode)) @ toVolume @ matrixArray(matrix)
    shift = np.round(between[:3, 3])
    whole = np.eye(4)
    whole[:3, 3] = shift
    ends = np.array(image.GetExtent(), float).reshape(3, 2).T
    away = max(np.abs((between - whole)[:3] @ np.array([*end, 1])).max() for end in ends)
    tilt = np.abs((between - whole)[:3, :3]).sum(axis=1).max() * max(1.0, np.abs(ends).max())
    return shift if max(away, tilt) < 0.01 else None


def _resampled(mask: Mask, image: Any, transform: Any, volumeNode: Any, low: np.ndarray, high: np.ndarray) -> Mask:
    """A mask on the grid of `image` brought onto the grid of a volume, within a box of voxels there."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    affine = matrixArray(matrix)
    lowest, highest = _reach(mask, affine, transform, volumeNode)
    low, high = np.maximum(low, lowest), np.minimum(high, highest)
    if (high <= low).any():
        return NOTHING
    wanted = slicer.vtkOrientedImageData()
    wanted.SetExtent(*_extent(low, high))
    wanted.SetImageToWorldMatrix(vtkMatrix(localAffine(volumeNode)))
    found = slicer.vtkOrientedImageData()
    resample = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
    if not resample(maskImage(mask, affine), wanted, found, False, False, transform):
        raise ValueError(f"a segment cannot be brought onto the grid of volume '{volumeNode.GetName()}': check the "
                         "transforms of both")
    i, j, k = (int(n) for n in found.GetExtent()[::2])
    return Mask((i, j, k), _voxels(found) > 0)


def _reach(mask: Mask, affine: np.ndarray, transform: Any, volumeNode: Any) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a volume, from and up to, within which a mask must lie."""
    shifted = affine.copy()
    shifted[:3, 3] = affine[:3, :3] @ np.array(mask.start) + affine[:3, 3]
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(transform):
        return np.zeros(3, int), np.array(volumeShape(volumeNode))  # a curved box may reach anywhere
    ends = np.array([transform.TransformPoint(point) for point in corners(mask.array.shape, shifted)])
    inverse = np.linalg.inv(localAffine(volumeNode))
    ijk = ends @ inverse[:3, :3].T + inverse[:3, 3]
    # The outer half of the outermost voxels, which may be large beside those of the volume.
    margin = 1 + np.abs(inverse[:3, :3]) @ np.abs(affine[:3, :3]).sum(axis=1)
    return np.floor(ijk.min(axis=0) - margin).astype(int), np.ceil(ijk.max(axis=0) + margin).astype(int) + 1


def _extent(low: Sequence[int] | np.ndarray, high: Sequence[int] | np.ndarray) -> list[int]:
    """As VTK writes it, from and up to, without, these voxels."""
    return [int(n) for pair in zip(low, np.array(high) - 1, strict=True) for n in pair]
