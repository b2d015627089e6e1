"""A set of references as files: images as .nrrd, segments as .seg.nrrd, and what they mean in references.json.

Parent transforms are part of the files' geometry. An image that several references share is written once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import slicer

from .geometry import SlicePosition, VolumeData, isSameGrid
from .mrml_bridge import setVolumeArray, uniqueName, volumeArray, volumeData, volumeShape, vtkMatrix, worldAffine
from .references import ReferenceEntry, ReferenceSet, currentStyles
from .segments import Mask, SegmentStyle, maskImage, segmentIds, segmentMask

FORMAT = "MVG references"
VERSION = 1
LISTING = "references.json"
MOST_BYTES = 64 * 2**30
"""A zip file that unpacks to more is refused."""


def save(references: ReferenceSet, path: Path) -> None:
    """Write a set to a folder, or to one file if the path ends in .zip.

    Raises:
        ValueError: nothing to write, a reference whose volume is gone, or a folder that holds something else.
        OSError: it cannot be written.
    """
    if not references.entries:
        raise ValueError("there are no references to save: add one first")
    broken = next((found for one in references.entries if (found := references.problem(one.id))), None)
    if broken is not None:
        raise ValueError(f"the references cannot be saved: {broken}")
    isZip = path.suffix.lower() == ".zip"
    if not isZip and path.exists() and not (path.is_dir() and (_isSet(path) or not any(path.iterdir()))):
        raise ValueError(f"{path} exists and is no set of references: choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mvg-", dir=path.parent) as name:
        folder = Path(name) / "set"
        folder.mkdir()
        _write(references, folder)
        if isZip:
            _pack(folder, Path(name) / "set.zip")
            (Path(name) / "set.zip").replace(path)
            return
        # The old set goes only when the new one is complete.
        if path.exists():
            path.rename(Path(name) / "old")
        folder.rename(path)


def load(references: ReferenceSet, path: Path, append: bool) -> list[ReferenceEntry]:
    """Read a set that `save` wrote; the new references.

    Raises:
        ValueError: it is no such set, or incomplete; names the file.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: choose a folder or .zip file of references")
    if path.is_dir():
        return _read(references, path, append)
    with tempfile.TemporaryDirectory(prefix="mvg-") as name:
        _unpack(path, Path(name))
        return _read(references, Path(name), append, shown=path)


# --- writing ---


def _write(references: ReferenceSet, folder: Path) -> None:
    listing: dict[str, Any] = {"format": FORMAT, "version": VERSION, "references": []}
    names: dict[str, str] = {}
    for number, one in enumerate(references.entries, 1):
        image = references.volumeNode(one.id)
        values: dict[str, Any] = {
            "kind": one.kind, "name": one.name, "enabled": one.enabled, "volume": image.GetName(),
            "image": _image(image, folder, names),
            "slice": None if one.position is None else {"axis": one.position.axis, "index": one.position.index}}
        if one.kind == "pair":
            target = references.targetNode(one.id)
            values |= {"target": _image(target, folder, names), "targetVolume": target.GetName()}
        if one.kind in ("slice", "volume"):
            values["segmentation"] = f"segments-{number}.seg.nrrd"
            styles = list(currentStyles(references, one).values())
            _segments(_masks(references, one), styles, volumeData(image), folder / values["segmentation"])
            values["segments"] = [{"name": style.name, "colour": list(style.colour), "terminology": style.terminology}
                                  for style in styles]
        listing["references"].append(values)
    (folder / LISTING).write_text(json.dumps(listing, indent=2, ensure_ascii=False), encoding="utf-8")


def _image(node: Any, folder: Path, names: dict[str, str]) -> str:
    """Write a volume once; its file name."""
    if node.GetID() not in names:
        names[node.GetID()] = f"image-{len(names) + 1}.nrrd"
        found = volumeData(node)
        scene = slicer.vtkMRMLScene()
        written = _addVolume(scene, found, node.GetName())
        storage: Any = scene.AddNewNodeByClass("vtkMRMLNRRDStorageNode")
        storage.SetUseCompression(True)
        _store(storage, written, folder / names[node.GetID()])
    return names[node.GetID()]


def _segments(masks: Mapping[str, Mask], styles: list[SegmentStyle], image: VolumeData, path: Path) -> None:
    scene = slicer.vtkMRMLScene()
    node: Any = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    name = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    for number, style in enumerate(styles, 1):
        segment = slicer.vtkSegment()
        segment.SetName(style.name)
        segment.SetColor(*style.colour)
        if style.terminology:
            segment.SetTag(segment.GetTerminologyEntryTagName(), style.terminology)
        mask = masks[style.name]
        # A file cannot hold a segment without voxels: one that is 0 says the same.
        mask = mask if mask else Mask((0, 0, 0), np.zeros((1, 1, 1), bool))
        segment.AddRepresentation(name, maskImage(mask, image.affine))
        node.GetSegmentation().AddSegment(segment, f"Segment_{number}")
    _store(scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode"), node, path)


def _masks(references: ReferenceSet, one: ReferenceEntry) -> dict[str, Mask]:
    if one.position is None:
        node, image = references.segmentationNode(one.id), references.volumeNode(one.id)
        names = currentStyles(references, one)
        return {name: segmentMask(node, segmentId, image)
                for name, segmentId in zip(names, one.segmentIds, strict=True)}
    start = [0, 0, 0]
    start[one.position.axis] = one.position.index
    return {name: Mask((start[0], start[1], start[2]), np.expand_dims(flat, one.position.axis))
            for name, flat in references.sliceMasks(one.id).items()}


def _store(storage: Any, node: Any, path: Path) -> None:
    storage.SetFileName(str(path))
    if not storage.WriteData(node):
        raise OSError(f"{path} cannot be written: check that the disk has room and the folder can be written to")


def _pack(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:  # the files are compressed already
        for one in sorted(folder.iterdir()):
            packed.write(one, one.name)


# --- reading ---


def _read(references: ReferenceSet, folder: Path, append: bool, shown: Path | None = None) -> list[ReferenceEntry]:
    """Everything is read before anything is changed."""
    shown = shown or folder
    listing = _listing(folder, shown)
    staging = slicer.vtkMRMLScene()
    images: dict[str, Any] = {}
    for values in listing:
        for name in (values["image"], values.get("target")):
            if name is not None and name not in images:
                images[name] = _loaded(staging, "vtkMRMLScalarVolumeNode", "vtkMRMLNRRDStorageNode", folder, name,
                                       shown)
    segments = {number: _loaded(staging, "vtkMRMLSegmentationNode", "vtkMRMLSegmentationStorageNode", folder,
                                values["segmentation"], shown)
                for number, values in enumerate(listing) if "segmentation" in values}
    _checkSlices(listing, images, shown)
    if not append:
        references.clear()
    nodes: dict[str, Any] = {}
    for values in listing:
        for name, title in ((values["image"], values["volume"]), (values.get("target"), values.get("targetVolume"))):
            if name is not None and name not in nodes:
                nodes[name] = _taken(references.scene, images[name], str(title))
    return [_added(references, values, nodes, segments.get(number)) for number, values in enumerate(listing)]


def _listing(folder: Path, shown: Path) -> list[dict[str, Any]]:
    advice = "choose a folder or .zip file that was saved by MVG"
    try:
        values = json.loads((folder / LISTING).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown} holds no readable {LISTING}: {advice}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{shown}: {LISTING} describes no references: {advice}")
    if values.get("version") != VERSION:
        raise ValueError(f"{shown} has version {values.get('version')}, this module reads {VERSION}: update the module")
    try:
        for one in values["references"]:
            needed = {"slice": ("slice", "segmentation", "segments"), "volume": ("segmentation", "segments"),
                      "pair": ("target", "targetVolume"), "image": ()}[one["kind"]]
            for key in ("image", "volume", "name", *needed):
                if one[key] is None:
                    raise KeyError(key)
            if one["kind"] == "slice":
                SlicePosition(int(one["slice"]["axis"]), int(one["slice"]["index"]))
        return list(values["references"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{shown}: {LISTING} lacks {error}: {advice}") from error


def _loaded(scene: Any, kind: str, storageKind: str, folder: Path, name: str, shown: Path) -> Any:
    """A node of a scene that is thrown away."""
    if PurePosixPath(name).name != name or "\\" in name:
        raise ValueError(f"{shown}: {LISTING} names '{name}', which is no file of the folder: the set was changed")
    if not (folder / name).is_file():
        raise ValueError(f"{shown}: {name} is missing: the set is incomplete, copy it again")
    node = scene.AddNewNodeByClass(kind)
    storage = scene.AddNewNodeByClass(storageKind)
    storage.SetFileName(str(folder / name))
    if not storage.ReadData(node):
        raise ValueError(f"{shown}: {name} cannot be read: the set is damaged, copy it again")
    return node


def _checkSlices(listing: list[dict[str, Any]], images: Mapping[str, Any], shown: Path) -> None:
    for values in listing:
        if values["kind"] == "slice":
            shape, at = volumeShape(images[values["image"]]), values["slice"]
            if at["axis"] not in (0, 1, 2) or not 0 <= at["index"] < shape[at["axis"]]:
                raise ValueError(f"{shown}: {LISTING} names slice {at['index']} along axis {at['axis']} of an image of "
                                 f"{shape} voxels: the set was changed")


def _taken(scene: Any, loaded: Any, name: str) -> Any:
    """The same volume in the scene, if it is there; else a new node."""
    found = volumeData(loaded)
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode")
        if _isVolume(node, found):
            return node
    return _addVolume(scene, found, name)


def _isVolume(node: Any, found: VolumeData) -> bool:
    try:
        return isSameGrid(volumeShape(node), worldAffine(node), found.shape, found.affine) and np.array_equal(
            volumeArray(node), found.array)
    except ValueError:  # a node that could not be used anyway
        return False


def _addVolume(scene: Any, found: VolumeData, name: str) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", uniqueName(scene, name))
    node.SetIJKToRASMatrix(vtkMatrix(found.affine))
    setVolumeArray(node, found.array)
    node.CreateDefaultDisplayNodes()
    return node


def _added(references: ReferenceSet, values: Mapping[str, Any], nodes: Mapping[str, Any], segmentation: Any
           ) -> ReferenceEntry:
    """One reference; its segments are copied out of the scene that is thrown away."""
    image = nodes[values["image"]]
    if values["kind"] == "image":
        return _enabled(references, references.addImage(image, values["name"]), values)
    if values["kind"] == "pair":
        return _enabled(references, references.addPair(image, nodes[values["target"]], values["name"]), values)
    _restyle(segmentation, values["segments"])
    # Files hold world positions: segments go where the image is, whatever its transform.
    if values["kind"] == "slice":
        position = SlicePosition(int(values["slice"]["axis"]), int(values["slice"]["index"]))
        entry = references.addSlice(image, segmentation, segmentIds(segmentation), position, anyShown=False)
        return _enabled(references, entry, values)
    scene = references.scene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", uniqueName(scene, f"{values['volume']} segmentation"))
    node.CreateDefaultDisplayNodes()
    for one in segmentIds(segmentation):
        node.GetSegmentation().CopySegmentFromSegmentation(segmentation.GetSegmentation(), one)
    node.SetReferenceImageGeometryParameterFromVolumeNode(image)
    return _enabled(references, references.addVolume(image, node, name=values["name"]), values)


def _restyle(segmentation: Any, styles: list[Mapping[str, Any]]) -> None:
    """Names as they were, which a file may have shortened."""
    for one, style in zip(segmentIds(segmentation), styles, strict=True):
        segment = segmentation.GetSegmentation().GetSegment(one)
        segment.SetName(str(style["name"]))
        segment.SetColor(*(float(part) for part in style["colour"]))
        if style.get("terminology"):
            segment.SetTag(segment.GetTerminologyEntryTagName(), str(style["terminology"]))


def _enabled(references: ReferenceSet, entry: ReferenceEntry, values: Mapping[str, Any]) -> ReferenceEntry:
    references.setEnabled(entry.id, bool(values.get("enabled", True)))
    return references.entry(entry.id)


def _unpack(path: Path, folder: Path) -> None:
    """Only plain files at the top: nothing is written elsewhere."""
    try:
        with zipfile.ZipFile(path) as packed:
            members = [one for one in packed.infolist() if not one.is_dir()]
            if sum(one.file_size for one in members) > MOST_BYTES:
                raise ValueError(f"{path} unpacks to more than {MOST_BYTES // 2**30} GiB: it is no set of references")
            for one in members:
                if PurePosixPath(one.filename).name != one.filename or "\\" in one.filename:
                    raise ValueError(f"{path} holds '{one.filename}', a set of references has no folders: choose a "
                                     ".zip file that was saved by MVG")
                with packed.open(one) as source, (folder / one.filename).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is no readable .zip file ({error}): choose a folder or .zip file of references"
                         ) from error


def _isSet(folder: Path) -> bool:
    return (folder / LISTING).is_file()
