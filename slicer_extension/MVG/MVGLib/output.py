"""Where answers go: new segments or a new volume, filled slice by slice, and taken back on request.

Nothing that was there before is changed, but for segments that an earlier run made and the user asked to replace; these
come back with `undo`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer

from .geometry import SlicePosition
from .mrml_bridge import (
    addVolumeLike,
    addWithDisplays,
    imageArray,
    isAlive,
    localAffine,
    removeWithDisplays,
    saveForUndo,
    setVolumeArray,
    transformBetween,
    uniqueName,
    unusedName,
    volumeArray,
    volumeChanged,
    volumeShape,
)
from .segments import SegmentStyle, labelImage, segmentIds, tag

MADE_BY = "MVG.Result"
"""Tag of segments, and attribute of nodes, that a run made; its value is the run's name."""


class SegmentsOutput:
    """New segments of one run.

    Args:
        scene: to work in.
        queryNode: volume on whose grid the answer lies.
        segmentationNode: that gets the segments; None: a new one on the query.
        name: of a new one.
        replace: whether segments of the same name that an earlier run made give way.
        runName: written into `MADE_BY`.

    Raises:
        ValueError: the segmentation lies under a transform that keeps it from the query's grid.
    """

    def __init__(self, scene: Any, queryNode: Any, segmentationNode: Any = None, name: str | None = None, *,
                 replace: bool = False, runName: str = "1") -> None:
        self._scene, self._query, self._runName, self._replace = scene, queryNode, runName, replace
        self._affine = outputAffine(queryNode, segmentationNode)
        saveForUndo(scene)
        self._isNew = segmentationNode is None
        name = name or f"{queryNode.GetName()} MVG"
        self.node = segmentationNode or _newSegmentation(scene, queryNode, name, runName)
        self._layers: list[SegmentLayer] = []
        self._replaced: list[_Kept] = []
        self._undone: list[_Kept] | None = None
        self._displays: list[Any] = []

    @property
    def segmentIds(self) -> list[str]:
        """IDs of the new segments that are there."""
        there = set(segmentIds(self.node)) if isAlive(self._scene, self.node) else set()
        return [one for layer in self._layers for one in layer.segmentIds.values() if one in there]

    def addLayer(self, styles: Mapping[int, SegmentStyle]) -> SegmentLayer:
        """Add empty segments that do not overlap each other; `styles`: label number -> what it looks like."""
        if self._replace:
            self._giveWay({style.name for style in styles.values()})
        taken = {self.node.GetSegmentation().GetSegment(one).GetName() for one in segmentIds(self.node)}
        image = labelImage(volumeShape(self._query), self._affine)
        layer = SegmentLayer(self.node, image, volumeShape(self._query))
        for number, style in styles.items():
            name = unusedName(style.name or "segment", taken)
            taken.add(name)
            layer.segmentIds[number] = self._addSegment(image, number, style, name)
        self._layers.append(layer)
        return layer

    def finish(self) -> None:
        """Leave out layers in which nothing was painted, and the memory around the others."""
        for layer in [one for one in self._layers if not one.isPainted]:
            self._layers.remove(layer)
            for one in layer.segmentIds.values():
                self.node.GetSegmentation().RemoveSegment(one)
        for layer in self._layers:
            layer.shrink()
        if not self._layers:
            self._restore()

    @property
    def canUndo(self) -> bool:
        """Whether `undo` would do something."""
        return self._undone is None and bool(self.segmentIds)

    @property
    def canRedo(self) -> bool:
        """Whether `redo` would do something."""
        return bool(self._undone) and (self._isNew or isAlive(self._scene, self.node))

    def undo(self) -> bool:
        """Take the new segments back, and bring back what they replaced; False if that was done, or cannot be."""
        if not self.canUndo:
            return False
        self._undone = [_take(self.node, one) for one in self.segmentIds]
        self._restore()
        return True

    def redo(self) -> bool:
        """Bring the segments of `undo` back; False if there was none, or it cannot be."""
        if self._undone is None or not self.canRedo:
            return False
        if not isAlive(self._scene, self.node):
            addWithDisplays(self._scene, self.node, self._displays)
        there = set(segmentIds(self.node))
        self._replaced = [_take(self.node, kept.segmentId) for kept in self._replaced if kept.segmentId in there]
        _put(self.node, self._undone)
        self._undone = None
        return True

    # --- parts ---

    def _addSegment(self, image: Any, number: int, style: SegmentStyle, name: str) -> str:
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.SetColor(*style.colour)
        segment.SetLabelValue(number)
        segment.SetTag(MADE_BY, self._runName)
        if style.terminology:
            segment.SetTag(segment.GetTerminologyEntryTagName(), style.terminology)
        # One image for the whole layer: a slice is then written once for all its segments.
        segment.AddRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName(), image)
        segmentation = self.node.GetSegmentation()
        segmentId = segmentation.GenerateUniqueSegmentID(name)
        if not segmentation.AddSegment(segment, segmentId):
            raise RuntimeError(f"segment '{name}' could not be added to '{self.node.GetName()}': choose a new "
                               "segmentation for the result")
        return segmentId

    def _restore(self) -> None:
        """What was there before, but for the new segments themselves."""
        _put(self.node, self._replaced)
        if self._isNew and not segmentIds(self.node):
            self._displays = removeWithDisplays(self._scene, self.node)

    def _giveWay(self, names: set[str]) -> None:
        segmentation = self.node.GetSegmentation()
        for one in segmentIds(self.node):
            segment = segmentation.GetSegment(one)
            if segment.GetName() in names and tag(segment, MADE_BY) not in ("", self._runName):
                self._replaced.append(_take(self.node, one))


class SegmentLayer:
    """Segments of one run that share a label map, so that no two overlap.

    Attributes:
        segmentIds: by label number.
        slicesDone: numbers of the slices that were written, by axis.
    """

    def __init__(self, segmentationNode: Any, image: Any, shape: tuple[int, int, int]) -> None:
        self.segmentIds: dict[int, str] = {}
        self.slicesDone: set[SlicePosition] = set()
        self._node, self._image, self._shape = segmentationNode, image, shape
        self._whole = False

    @property
    def isPainted(self) -> bool:
        """Whether anything was written."""
        return self._whole or bool(self.slicesDone)

    def writeSlices(self, axis: int, slices: Sequence[tuple[int, np.ndarray]]) -> None:
        """Write answers: pairs of slice number along `axis` and (H, W) label numbers, other voxels stay."""
        if not slices:
            return
        whole = np.moveaxis(imageArray(self._image, self._shape), axis, 0)
        for number, answer in slices:
            whole[number] = answer
            self.slicesDone.add(SlicePosition(axis, number))
        self._image.GetPointData().GetScalars().Modified()
        self._image.Modified()

    def writeAll(self, labels: np.ndarray) -> None:
        """Write the whole answer, (I, J, K) label numbers."""
        imageArray(self._image, self._shape)[...] = labels
        self._whole = True
        self._image.GetPointData().GetScalars().Modified()
        self._image.Modified()

    def shrink(self) -> None:
        """Give up the memory around the segments; nothing can be written any more."""
        labels = imageArray(self._image, self._shape)
        low, high = [], []
        for axis in range(3):
            used = np.flatnonzero(labels.any(axis=tuple(other for other in range(3) if other != axis)))
            # At least one voxel: an image without any cannot hold segments.
            low.append(int(used[0]) if used.size else 0)
            high.append(int(used[-1]) if used.size else 0)
        small = slicer.vtkOrientedImageData()
        small.SetExtent(low[0], high[0], low[1], high[1], low[2], high[2])
        small.AllocateScalars(self._image.GetScalarType(), 1)
        kept = labels[low[0] : high[0] + 1, low[1] : high[1] + 1, low[2] : high[2] + 1]
        imageArray(small, kept.shape)[...] = kept
        small.CopyDirections(self._image)
        small.SetOrigin(self._image.GetOrigin())
        small.SetSpacing(self._image.GetSpacing())
        # The same object: its segments and their observers stay as they are.
        self._image.ShallowCopy(small)
        self._image.Modified()


class VolumeOutput:
    """A new volume of one run.

    Args:
        scene: to work in.
        queryNode: volume on whose grid the answer lies.
        name: of the new volume.
        display: volume node whose colours, window and level it gets; None: the query's.
        start: (I, J, K), what slices hold before they are painted; None: black.
        runName: written into `MADE_BY`.
    """

    def __init__(self, scene: Any, queryNode: Any, name: str, *, display: Any = None, start: np.ndarray | None = None,
                 runName: str = "1") -> None:
        self._scene, self._query, self._name, self._display = scene, queryNode, name, display
        self._start, self._runName = start, runName
        self._isUndone = False
        self._displays: list[Any] = []
        self.node: Any = None
        self.slicesDone: set[SlicePosition] = set()

    def writeSlices(self, axis: int, slices: Sequence[tuple[int, np.ndarray]]) -> None:
        """Write answers: pairs of slice number along `axis` and (H, W) intensities; other slices stay."""
        if not slices:
            return
        if self.node is None:
            self._create(self._begin(slices))
        whole = np.moveaxis(volumeArray(self.node), axis, 0)
        for number, answer in slices:
            whole[number] = answer
            self.slicesDone.add(SlicePosition(axis, number))
        volumeChanged(self.node)

    def writeAll(self, array: np.ndarray) -> None:
        """Write the whole answer, (I, J, K)."""
        if self.node is None:
            self._create(array)
        else:
            setVolumeArray(self.node, array)

    def finish(self) -> None:
        """Nothing more will be written."""

    @property
    def canUndo(self) -> bool:
        """Whether `undo` would do something."""
        return not self._isUndone and isAlive(self._scene, self.node)

    @property
    def canRedo(self) -> bool:
        """Whether `redo` would do something."""
        return self._isUndone

    def undo(self) -> bool:
        """Take the volume out of the scene; False if there is none."""
        if not self.canUndo:
            return False
        self._displays = removeWithDisplays(self._scene, self.node)
        self._isUndone = True
        return True

    def redo(self) -> bool:
        """Bring it back."""
        if not self._isUndone:
            return False
        addWithDisplays(self._scene, self.node, self._displays)
        self._isUndone = False
        return True

    def _begin(self, slices: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        kind = np.result_type(*(answer.dtype for _, answer in slices))
        if self._start is not None:
            return self._start.astype(np.result_type(kind, self._start.dtype))
        return np.full(volumeShape(self._query), min(answer.min() for _, answer in slices), kind)

    def _create(self, array: np.ndarray) -> None:
        saveForUndo(self._scene)
        self.node = addVolumeLike(self._scene, self._query, array, self._name, display=self._display)
        self.node.SetAttribute(MADE_BY, self._runName)


def outputAffine(queryNode: Any, segmentationNode: Any = None) -> np.ndarray:
    """(4, 4) voxel index of the query -> a segmentation's own coordinates; a new one lies where the query does.

    Raises:
        ValueError: a transform that is not linear lies between them.
    """
    if segmentationNode is None:
        return localAffine(queryNode)
    _, matrix = transformBetween(queryNode, segmentationNode)
    if matrix is None:
        raise ValueError(f"a transform that is not linear lies between volume '{queryNode.GetName()}' and segmentation "
                         f"'{segmentationNode.GetName()}': choose a new segmentation for the result")
    return matrix @ localAffine(queryNode)


@dataclass
class _Kept:
    """A segment that was taken out of a segmentation."""

    segmentId: str
    segment: Any
    before: str = ""


def _take(segmentationNode: Any, segmentId: str) -> _Kept:
    """Remove a segment, and keep it."""
    ids = segmentIds(segmentationNode)
    at = ids.index(segmentId)
    segmentation = segmentationNode.GetSegmentation()
    segment = segmentation.GetSegment(segmentId)
    # On removal the segment gets a label map of its own, so what happens to its neighbours does not touch it.
    segmentation.RemoveSegment(segmentId)
    return _Kept(segmentId, segment, ids[at + 1] if at + 1 < len(ids) else "")


def _put(segmentationNode: Any, segments: Sequence[_Kept]) -> None:
    """Bring segments back to where they were."""
    segmentation = segmentationNode.GetSegmentation()
    for kept in reversed(segments):
        before = kept.before if segmentation.GetSegment(kept.before) is not None else ""
        segmentation.AddSegment(kept.segment, kept.segmentId, before)


def _newSegmentation(scene: Any, queryNode: Any, name: str, runName: str) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", uniqueName(scene, name))
    node.CreateDefaultDisplayNodes()
    layOn(node, queryNode)
    node.SetAttribute(MADE_BY, runName)
    return node


def layOn(segmentationNode: Any, volumeNode: Any) -> None:
    """Give a segmentation without segments the transform and the grid of a volume."""
    # The transform first: the grid is worked out in the segmentation's own coordinates.
    segmentationNode.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
