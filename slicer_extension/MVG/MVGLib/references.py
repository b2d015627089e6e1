"""The solved examples of a scene: slices of a volume with their segments, and whole volumes of other patients.

The set lives in one node of the scene, so it is saved and reopened with it. A slice keeps its own copy of the segments,
with the grid that they lie on: painting on does not change it until the slice is added again. Volumes stay nodes of the
scene.
"""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import views
from .geometry import SlicePosition, planeOfAxis, sliceOf
from .mrml_bridge import volumeArray, volumeShape, worldAffine
from .segments import SegmentStyle, chosenStyles, segmentIds, segmentMask, styleOf
from .thumbnails import thumbnail

Kind = Literal["slice", "volume", "pair", "image"]
ATTRIBUTE = "MVG.ReferenceSet"
_PARAMETER = "references"
_TASKS: Mapping[str, tuple[Kind, ...]] = {
    "segmentation": ("slice", "volume"),
    "denoising": ("pair",),
    "synthesis": ("pair",),
    "inpainting": ("image",),
}


@dataclass(frozen=True)
class ReferenceEntry:
    """One solved example.

    Attributes:
        id: of this set.
        kind: `slice`: segments in a slice; `volume`: an image with its segmentation; `pair`: a source and a target
            image; `image`: an intact image.
        name: for lists, such as `CT1, axial slice 41: liver`.
        volumeName: of its image.
        position: of a slice; None for the others.
        segments: what is labelled, also where a slice does not show it.
        enabled: whether runs use it.
        shape: (I, J, K) of the image when it was added.
        affine: voxel index -> RAS mm in the world when it was added, row by row.
        segmentIds: of a `volume`, in its segmentation.
        masks: of a `slice`, packed: see `ReferenceSet.sliceMasks`.
    """

    id: str
    kind: Kind
    name: str
    volumeName: str
    position: SlicePosition | None = None
    segments: tuple[SegmentStyle, ...] = ()
    enabled: bool = True
    shape: tuple[int, int, int] = (0, 0, 0)
    affine: tuple[float, ...] = ()
    segmentIds: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4) float64 of `affine`."""
        return np.array(self.affine, float).reshape(4, 4)


class ReferenceSet:
    """The references of a scene.

    Args:
        scene: that holds them; its set is taken up if it has one.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._text, self._entries = "", []

    @classmethod
    def fromScene(cls, scene: Any) -> ReferenceSet:
        """The set that was saved with a scene, or an empty one."""
        return cls(scene)

    @property
    def node(self) -> Any:
        """The vtkMRMLScriptedModuleNode that holds the set; it fires ModifiedEvent whenever the set changes."""
        return self._found() or self._made()

    @property
    def entries(self) -> list[ReferenceEntry]:
        """All references, in their order."""
        node = self._found()
        text = (node.GetParameter(_PARAMETER) if node is not None else "") or ""
        if text != self._text:
            self._text, self._entries = text, [_entry(values) for values in json.loads(text)] if text else []
        return list(self._entries)

    def entry(self, entryId: str) -> ReferenceEntry:
        """The reference with an ID.

        Raises:
            KeyError: there is none.
        """
        for one in self.entries:
            if one.id == entryId:
                return one
        raise KeyError(f"there is no reference '{entryId}'")

    def forTask(self, task: str, onlyEnabled: bool = True) -> list[ReferenceEntry]:
        """Those that a task can use: of its kind, complete, and enabled."""
        return [one for one in self.entries if (one.enabled or not onlyEnabled) and one.kind in _TASKS[task]
                and self.problem(one.id) is None]

    # --- adding ---

    def addSliceOfView(self, sliceNode: Any, volumeNode: Any, segmentationNode: Any, ids: Sequence[str]
                       ) -> ReferenceEntry:
        """Add the slice that a view shows, see `addSlice`.

        Raises:
            ValueError: also if the view shows no single slice of the volume; says what to do.
        """
        return self.addSlice(volumeNode, segmentationNode, ids, views.sliceOfView(sliceNode, volumeNode))

    def addSlice(self, volumeNode: Any, segmentationNode: Any, ids: Sequence[str], position: SlicePosition, *,
                 anyShown: bool = True) -> ReferenceEntry:
        """Add segments in a slice of a volume.

        The same slice again: its segments of the same name are replaced, others stay.

        Args:
            volumeNode: the image.
            segmentationNode: that holds the segments, on any grid.
            ids: of the segments that are labelled in this slice, also of those that it does not show.
            position: of the slice.
            anyShown: refuse a slice that shows none of them.

        Raises:
            ValueError: no such slice or segments, or the slice shows none of them.
        """
        volumeArray(volumeNode)  # refuses colour images
        styles = chosenStyles(segmentationNode, ids)
        shape, affine = volumeShape(volumeNode), worldAffine(volumeNode)
        labelled: dict[str, tuple[SegmentStyle, str]] = {}
        shown = False
        for one, style in styles.items():
            mask = segmentMask(segmentationNode, one, volumeNode, position)
            flat = np.zeros(shape[: position.axis] + shape[position.axis + 1 :], bool)
            if mask:
                box = [part for axis, part in enumerate(mask.box) if axis != position.axis]
                flat[box[0], box[1]] = sliceOf(mask.array, position.axis, 0)
                shown = True
            labelled[style.name] = (style, _packed(flat))
        before = self._sameSlice(volumeNode, position, shape)
        if before is not None:
            kept = {style.name: (style, mask) for style, mask in zip(before.segments, before.masks, strict=True)}
            labelled = {**kept, **labelled}
        if anyShown and not shown and before is None:
            raise ValueError(f"{planeOfAxis(affine, position.axis)} slice {position.index} of '{volumeNode.GetName()}' "
                             "shows none of the chosen segments: paint them there first, or choose another slice")
        entry = ReferenceEntry(
            before.id if before else _newId(), "slice", "", volumeNode.GetName(), position,
            tuple(style for style, _ in labelled.values()), True, shape, tuple(affine.ravel().tolist()),
            masks=tuple(mask for _, mask in labelled.values()))
        return self._add(replace(entry, name=_sliceName(entry)), {"image": volumeNode})

    def addVolume(self, volumeNode: Any, segmentationNode: Any, ids: Sequence[str] | None = None,
                  name: str | None = None) -> ReferenceEntry:
        """Add a volume with its segmentation; added again, it replaces what was chosen before.

        Args:
            volumeNode: the image.
            segmentationNode: of the same patient, on any grid.
            ids: of the segments to use; None: all.
            name: for lists.

        Raises:
            ValueError: no such segments, or an image that cannot be used.
        """
        volumeArray(volumeNode)
        if segmentationNode is None:
            raise ValueError(f"no segmentation is chosen for '{volumeNode.GetName()}': choose the one that shows what "
                             "you want to find")
        ids = tuple(segmentIds(segmentationNode) if ids is None else ids)
        styles = chosenStyles(segmentationNode, ids)
        names = ", ".join(style.name for style in styles.values())
        before = self._same("volume", image=volumeNode, label=segmentationNode)
        entry = self._volumeEntry("volume", volumeNode, name or f"{volumeNode.GetName()}: {names}", before)
        return self._add(replace(entry, segments=tuple(styles.values()), segmentIds=ids),
                         {"image": volumeNode, "label": segmentationNode})

    def addPair(self, sourceNode: Any, targetNode: Any, name: str | None = None) -> ReferenceEntry:
        """Add a source volume and what it should become (denoising, synthesis).

        Raises:
            ValueError: one volume twice, or one that cannot be used.
        """
        for node in (sourceNode, targetNode):
            volumeArray(node)
        if sourceNode is targetNode:
            raise ValueError(f"'{sourceNode.GetName()}' is chosen as source and as target: choose two volumes")
        before = self._same("pair", image=sourceNode, target=targetNode)
        name = name or f"{sourceNode.GetName()} → {targetNode.GetName()}"
        return self._add(self._volumeEntry("pair", sourceNode, name, before),
                         {"image": sourceNode, "target": targetNode})

    def addImage(self, volumeNode: Any, name: str | None = None) -> ReferenceEntry:
        """Add an intact image (inpainting).

        Raises:
            ValueError: it cannot be used.
        """
        volumeArray(volumeNode)
        before = self._same("image", image=volumeNode)
        return self._add(self._volumeEntry("image", volumeNode, name or volumeNode.GetName(), before),
                         {"image": volumeNode})

    # --- changing ---

    def remove(self, entryId: str) -> None:
        """Remove a reference; its volumes stay in the scene."""
        self.entry(entryId)
        for role in _roles(entryId):
            self.node.RemoveNodeReferenceIDs(role)
        self._write([one for one in self.entries if one.id != entryId])

    def clear(self) -> None:
        """Remove all references."""
        for one in self.entries:
            self.remove(one.id)

    def move(self, entryId: str, toIndex: int) -> None:
        """Put a reference to another place in the list."""
        entries = self.entries
        moved = self.entry(entryId)
        entries.remove(moved)
        entries.insert(toIndex, moved)
        self._write(entries)

    def setEnabled(self, entryId: str, enabled: bool) -> None:
        """Let runs use a reference, or not."""
        self.entry(entryId)
        self._write([replace(one, enabled=bool(enabled)) if one.id == entryId else one for one in self.entries])

    # --- looking ---

    def volumeNode(self, entryId: str) -> Any:
        """The image of a reference, or None if it is not in the scene any more."""
        return self.node.GetNodeReference(_role("image", entryId))

    def segmentationNode(self, entryId: str) -> Any:
        """The segmentation of a reference volume, or None."""
        return self.node.GetNodeReference(_role("label", entryId))

    def targetNode(self, entryId: str) -> Any:
        """The target image of a pair, or None."""
        return self.node.GetNodeReference(_role("target", entryId))

    def problem(self, entryId: str) -> str | None:
        """Why a reference cannot be used, in one sentence; None: it can."""
        one = self.entry(entryId)
        image = self.volumeNode(entryId)
        if image is None or image.GetImageData() is None:
            return (f"volume '{one.volumeName}' of reference '{one.name}' is gone: load it again, or remove the "
                    "reference")
        if one.kind == "slice" and volumeShape(image) != one.shape:
            return (f"volume '{one.volumeName}' has {volumeShape(image)} voxels now, {one.shape} when reference "
                    f"'{one.name}' was added: add the slice again")
        if one.kind == "pair" and (self.targetNode(entryId) is None or self.targetNode(entryId).GetImageData() is None):
            return f"the target volume of reference '{one.name}' is gone: load it again, or remove the reference"
        if one.kind == "volume":
            return self._segmentationProblem(one)
        return None

    def sliceMasks(self, entryId: str) -> dict[str, np.ndarray]:
        """Where the segments of a slice are, by name: (H, W) bool, the two other voxel axes in their order."""
        one = self.entry(entryId)
        assert one.position is not None, "only slices have masks"
        shape = one.shape[: one.position.axis] + one.shape[one.position.axis + 1 :]
        return {style.name: _unpacked(mask, shape) for style, mask in zip(one.segments, one.masks, strict=True)}

    def thumbnail(self, entryId: str, size: int = 96) -> np.ndarray:
        """A small picture, (size, size, 3) uint8 RGB; grey if the volume is gone."""
        one = self.entry(entryId)
        if self.problem(entryId) is not None:
            return np.full((size, size, 3), 64, np.uint8)
        image = self.volumeNode(entryId)
        position, masks = self._picture(one, image)
        return thumbnail(image, position, masks, size)

    def goTo(self, entryId: str, sliceNodes: Sequence[Any]) -> Any:
        """Show a reference in the view that looks its way; the view, or None if there is nothing to show."""
        one = self.entry(entryId)
        if self.problem(entryId) is not None:
            return None
        image = self.volumeNode(entryId)
        position = one.position or self._picture(one, image)[0]
        view = views.viewFor(list(sliceNodes), image, position.axis)
        if view is not None:
            views.jumpTo(view, image, position)
        return view

    # --- files ---

    def save(self, path: str | Path) -> None:
        """Write the set with its images, as a folder, or as one file if `path` ends in .zip."""
        from . import reference_files

        reference_files.save(self, Path(path))

    def load(self, path: str | Path, append: bool = False) -> list[ReferenceEntry]:
        """Read what `save` wrote; its volumes become nodes of the scene, or are recognised if they are there.

        Raises:
            ValueError: it is no set of references, or incomplete; names the file.
        """
        from . import reference_files

        return reference_files.load(self, Path(path), append)

    # --- parts ---

    @property
    def scene(self) -> Any:
        """The scene that holds the set."""
        return self._scene

    def _found(self) -> Any:
        """The scene's set, with those that other scenes brought with them when they were imported."""
        number = self._scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode")
        nodes = [self._scene.GetNthNodeByClass(one, "vtkMRMLScriptedModuleNode") for one in range(number)]
        nodes = [node for node in nodes if node.GetAttribute(ATTRIBUTE)]
        if len(nodes) > 1 and not self._scene.IsBatchProcessing():  # not while one is being imported
            for other in nodes[1:]:
                _absorb(nodes[0], other)
                self._scene.RemoveNode(other)
        return nodes[0] if nodes else None

    def _made(self) -> Any:
        node = self._scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)  # the reference that CreateNodeByClass leaves to its caller
        node.SetName("MVG references")
        node.SetModuleName("MVG")
        node.SetAttribute(ATTRIBUTE, "1")
        node.SetHideFromEditors(True)
        return self._scene.AddNode(node)

    def _add(self, entry: ReferenceEntry, nodes: Mapping[str, Any]) -> ReferenceEntry:
        """Put an entry behind the others, or where the one with its ID is."""
        entries = self.entries
        places = [number for number, one in enumerate(entries) if one.id == entry.id]
        entries[places[0] if places else len(entries) : (places[0] + 1) if places else len(entries)] = [entry]
        was = self.node.StartModify()
        for role, node in nodes.items():
            self.node.SetNodeReferenceID(_role(role, entry.id), node.GetID())
        self._write(entries)
        self.node.EndModify(was)
        return entry

    def _write(self, entries: Sequence[ReferenceEntry]) -> None:
        self.node.SetParameter(_PARAMETER, json.dumps([asdict(one) for one in entries]))

    def _sameSlice(self, volumeNode: Any, position: SlicePosition, shape: tuple[int, int, int]
                   ) -> ReferenceEntry | None:
        return next((one for one in self.entries if one.kind == "slice" and one.position == position
                     and one.shape == shape and self.volumeNode(one.id) is volumeNode), None)

    def _same(self, kind: Kind, **nodes: Any) -> ReferenceEntry | None:
        return next((one for one in self.entries if one.kind == kind and all(
            self.node.GetNodeReference(_role(role, one.id)) is node for role, node in nodes.items())), None)

    def _volumeEntry(self, kind: Kind, volumeNode: Any, name: str, before: ReferenceEntry | None) -> ReferenceEntry:
        return ReferenceEntry(before.id if before else _newId(), kind, name, volumeNode.GetName(),
                              shape=volumeShape(volumeNode), affine=tuple(worldAffine(volumeNode).ravel().tolist()))

    def _segmentationProblem(self, one: ReferenceEntry) -> str | None:
        node = self.segmentationNode(one.id)
        if node is None:
            return f"the segmentation of reference '{one.name}' is gone: load it again, or remove the reference"
        gone = [style.name for segmentId, style in zip(one.segmentIds, one.segments, strict=True)
                if node.GetSegmentation().GetSegment(segmentId) is None]
        if gone:
            return (f"segment '{gone[0]}' of reference '{one.name}' is gone from '{node.GetName()}': add the volume "
                    "again")
        return None

    def _picture(self, one: ReferenceEntry, image: Any
                 ) -> tuple[SlicePosition, list[tuple[np.ndarray, tuple[float, float, float]]]]:
        """What a thumbnail shows: of a volume, the slice with most of its segments."""
        if one.position is not None:
            masks = self.sliceMasks(one.id)
            return one.position, [(masks[style.name], style.colour) for style in one.segments]
        axis, shape = _axialAxis(worldAffine(image)), volumeShape(image)
        if one.kind != "volume":
            return SlicePosition(axis, shape[axis] // 2), []
        found = [(segmentMask(self.segmentationNode(one.id), segmentId, image), style.colour)
                 for segmentId, style in zip(one.segmentIds, one.segments, strict=True)]
        others = tuple(other for other in range(3) if other != axis)
        area = np.zeros(shape[axis], int)
        for mask, _ in found:
            area[mask.box[axis]] += mask.array.sum(axis=others)
        position = SlicePosition(axis, int(area.argmax()))
        flats = []
        for mask, colour in found:
            flat = np.zeros([shape[other] for other in others], bool)
            at = position.index - mask.start[axis]
            if 0 <= at < mask.array.shape[axis]:
                flat[tuple(mask.box[other] for other in others)] = sliceOf(mask.array, axis, at)
            flats.append((flat, colour))
        return position, flats


def currentStyles(references: ReferenceSet, entry: ReferenceEntry) -> dict[str, SegmentStyle]:
    """Segments of a reference by name: of a volume as they look now, of a slice as they looked when it was added."""
    if entry.kind != "volume":
        return {style.name: style for style in entry.segments}
    segmentation = references.segmentationNode(entry.id).GetSegmentation()
    styles = (styleOf(segmentation.GetSegment(one)) for one in entry.segmentIds)
    return {style.name: style for style in styles}


def _absorb(node: Any, other: Any) -> None:
    """Put the references of another set behind those of a set."""
    texts = [one.GetParameter(_PARAMETER) or "[]" for one in (node, other)]
    mine, theirs = (json.loads(text) for text in texts)
    for values in theirs:
        before = values["id"]
        if before in {one["id"] for one in mine}:  # the same scene, imported twice
            values["id"] = _newId()
        for old, new in zip(_roles(before), _roles(values["id"]), strict=True):
            node.SetNodeReferenceID(new, other.GetNodeReferenceID(old))
        mine.append(values)
    node.SetParameter(_PARAMETER, json.dumps(mine))


def _entry(values: Mapping[str, Any]) -> ReferenceEntry:
    position = values["position"]
    return ReferenceEntry(**{
        **values,
        "position": None if position is None else SlicePosition(**position),
        "segments": tuple(SegmentStyle(one["name"], tuple(one["colour"]), one["terminology"])
                          for one in values["segments"]),
        "shape": tuple(values["shape"]), "affine": tuple(values["affine"]),
        "segmentIds": tuple(values["segmentIds"]), "masks": tuple(values["masks"])})


def _sliceName(entry: ReferenceEntry) -> str:
    assert entry.position is not None
    plane = planeOfAxis(entry.matrix, entry.position.axis)
    names = ", ".join(style.name for style in entry.segments)
    return f"{entry.volumeName}, {plane} slice {entry.position.index}: {names}"


def _axialAxis(affine: np.ndarray) -> int:
    return next(axis for axis in range(3) if planeOfAxis(affine, axis) == "axial")


def _packed(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 9)).decode()


def _unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def _newId() -> str:
    return uuid.uuid4().hex[:12]


def _role(kind: str, entryId: str) -> str:
    return f"{kind}.{entryId}"


def _roles(entryId: str) -> list[str]:
    return [_role(kind, entryId) for kind in ("image", "label", "target")]


