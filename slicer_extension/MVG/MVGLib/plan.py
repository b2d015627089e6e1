"""What is to be run: the choices of the user, checked, and the volumes and label maps that a run sends.

A label map holds one structure a voxel, and says of every structure that it names where it is not. So segments that
overlap, or that not all references show, are solved in separate layers: runs of the network of their own.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .geometry import PLANES, SlicePosition, VolumeData, axisOfPlane, planeOfAxis, sliceOf
from .mrml_bridge import volumeArray, volumeData, volumeShape, worldAffine
from .output import outputAffine
from .references import ReferenceEntry, ReferenceSet, currentStyles
from .segments import MOST_LABELS, Mask, SegmentStyle, segmentIds, segmentMask, stampOf

TASKS = ("segmentation", "denoising", "inpainting", "synthesis")
PRESETS = ("plain", "fast", "balanced", "accurate")
Steps = Generator[None, None, Any]
"""Work in small pieces: whoever runs it may do something else between two of them."""


@dataclass
class RunSettings:
    """What to run.

    Attributes:
        queryNode: the volume to solve.
        task: one of `TASKS`.
        axis: voxel axis of the query to slice along; None: that of the reference slices, else the server chooses.
        sliceRange: first and last slice along the axis, both included; None: all.
        preset: how hard the engine tries, one of `PRESETS`.
        parts: engine parts changed in the preset.
        window: intensities shown as black and white; None: automatic.
        references: IDs of references; None: all that are enabled.
        holeSegmentation: inpainting: segmentation that says what to paint.
        holeSegmentIds: of it; None: all its segments.
        outputSegmentation: segmentation that gets the new segments; None: a new one.
        outputName: of a new node.
        replace: whether segments that an earlier run made, of the same name, give way.
        wantConfidence: whether to fetch the confidence of a segmentation.
    """

    queryNode: Any
    task: str = "segmentation"
    axis: int | None = None
    sliceRange: tuple[int, int] | None = None
    preset: str = "fast"
    parts: Mapping[str, Any] = field(default_factory=dict)
    window: tuple[float, float] | None = None
    references: Sequence[str] | None = None
    holeSegmentation: Any = None
    holeSegmentIds: Sequence[str] | None = None
    outputSegmentation: Any = None
    outputName: str | None = None
    replace: bool = False
    wantConfidence: bool = True


@dataclass(frozen=True, eq=False)
class PlannedReference:
    """An example as the server takes it; `name` stays on this side of the connection."""

    image: VolumeData
    label: VolumeData
    name: str
    slices: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class PlannedLayer:
    """One job.

    Attributes:
        styles: label number -> segment; empty for image-to-image tasks.
        references: at least one.
    """

    styles: Mapping[int, SegmentStyle]
    references: tuple[PlannedReference, ...]


@dataclass(frozen=True, eq=False)
class RunPlan:
    """Everything that a run sends.

    Attributes:
        query: the volume to solve.
        layers: jobs, one after the other.
        axis: voxel axis to slice along; None: the server chooses.
        hole: inpainting: what to paint.
        warnings: what the user should know, in sentences.
    """

    query: VolumeData
    layers: tuple[PlannedLayer, ...]
    axis: int | None
    hole: VolumeData | None
    warnings: tuple[str, ...]

    def job(self, settings: RunSettings, layer: PlannedLayer, identities: Mapping[int, str]) -> dict[str, Any]:
        """The request of one layer; `identities`: `id` of a volume's data -> its identity on the server."""
        references = [{"image": identities[id(one.image)], "label": identities[id(one.label)],
                       # A volume's name may be a patient's.
                       "name": f"reference {number}", "slices": None if one.slices is None else list(one.slices)}
                      for number, one in enumerate(layer.references, 1)]
        return {"task": settings.task, "query": identities[id(self.query)], "references": references,
                "labels": {str(number): style.name[:200] for number, style in layer.styles.items()},
                "plane": "auto" if self.axis is None else self.axis,
                "hole": None if self.hole is None else identities[id(self.hole)],
                "window": None if settings.window is None else [float(end) for end in settings.window],
                "preset": settings.preset, "parts": dict(settings.parts)}

    def volumes(self, layer: PlannedLayer) -> list[VolumeData]:
        """What the server must hold for a layer, each once."""
        wanted = [self.query, *([] if self.hole is None else [self.hole])]
        for one in layer.references:
            wanted += [one.image, one.label]
        return list({id(one): one for one in wanted}.values())


def problems(references: ReferenceSet, settings: RunSettings) -> list[str]:
    """What keeps a run from starting, in sentences; cheap."""
    found = _queryProblems(settings)
    if found:
        return found
    found = [*_choiceProblems(references, settings), *_referenceProblems(references, settings)]
    if settings.task == "inpainting":
        found += _holeProblems(settings)
    if settings.task == "segmentation" and settings.outputSegmentation is not None:
        try:
            outputAffine(settings.queryNode, settings.outputSegmentation)
        except ValueError as error:
            found.append(str(error))
    return found


def warningsOf(references: ReferenceSet, settings: RunSettings) -> list[str]:
    """What the user should know before a run, in sentences; cheap."""
    if problems(references, settings):
        return []
    wanted = _wanted(references, settings)
    found = [problem for one in wanted if (problem := references.problem(one.id)) is not None]
    entries = _usable(references, settings)
    axis = chosenAxis(references, settings)
    left = len(entries) - len(_alongAxis(references, entries, settings.queryNode, axis))
    if left:
        found.append(f"{left} reference slice{'s lie' if left > 1 else ' lies'} in another plane than the run and "
                     f"{'are' if left > 1 else 'is'} left out")
    return found


def chosenAxis(references: ReferenceSet, settings: RunSettings) -> int | None:
    """The voxel axis of a run: as chosen, else that of most reference slices, those of the query first."""
    if settings.axis is not None:
        return settings.axis
    slices = [one for one in _usable(references, settings) if one.kind == "slice"]
    own = [one for one in slices if references.volumeNode(one.id) is settings.queryNode]
    axes = [_axisOnQuery(references, one, settings.queryNode) for one in own or slices]
    if axes:
        return max(sorted(set(axes)), key=axes.count)
    if settings.task == "inpainting" and not _usable(references, settings):
        return axisOfPlane(worldAffine(settings.queryNode), PLANES[2])
    return None


def prepare(references: ReferenceSet, settings: RunSettings, earlier: Mapping[Any, Any] | None = None) -> Steps:
    """Make a plan, in pieces of some hundredths of a second.

    Args:
        references: of the scene.
        settings: without `problems`.
        earlier: layers that were made before, by what they were made of; one is added.

    Returns:
        The `RunPlan`.

    Raises:
        ValueError: something in the way that only the voxels show; says what to do.
    """
    notes = warningsOf(references, settings)
    query = volumeData(settings.queryNode)
    axis = chosenAxis(references, settings)
    yield
    if settings.task != "segmentation":
        hole = None
        if settings.task == "inpainting":
            hole = yield from _hole(settings, query)
        layer = PlannedLayer({}, _imageReferences(references, settings, query, hole, axis))
        return RunPlan(query, (layer,), axis, hole, tuple(notes))
    entries = _alongAxis(references, _usable(references, settings), settings.queryNode, axis)
    key = _keyOf(references, entries)
    known = (earlier or {}).get(key)
    if known is None:
        known = yield from _segmentationLayers(references, entries)
        if isinstance(earlier, dict):
            earlier.clear()  # one is enough, and they are large
            earlier[key] = known
    layers, empty = known
    if not layers:
        raise ValueError("the references show none of their segments: paint at least one slice")
    notes += [f"segment '{name}' is empty in all references and is left out" for name in empty]
    return RunPlan(query, tuple(layers), axis, None, tuple(notes))


# --- checks ---


def _queryProblems(settings: RunSettings) -> list[str]:
    if settings.queryNode is None:
        return ["choose the volume to solve"]
    try:
        volumeArray(settings.queryNode)
        worldAffine(settings.queryNode)
    except ValueError as error:
        return [str(error)]
    if settings.task not in TASKS:
        return [f"task '{settings.task}' is unknown: use one of {', '.join(TASKS)}"]
    return []


def _choiceProblems(references: ReferenceSet, settings: RunSettings) -> list[str]:
    found = []
    if settings.preset not in PRESETS:
        found.append(f"preset '{settings.preset}' is unknown: use one of {', '.join(PRESETS)}")
    if settings.axis not in (None, 0, 1, 2):
        found.append(f"axis must be 0, 1 or 2, got {settings.axis}")
    elif settings.sliceRange is not None:
        first, last = settings.sliceRange
        shape, axis = volumeShape(settings.queryNode), chosenAxis(references, settings)
        most = max(shape) if axis is None else shape[axis]
        if not 0 <= first <= last < most:
            found.append(f"the slices must be from 0 to {most - 1}, the first before the last: got {first} to {last}")
    if settings.window is not None and not settings.window[0] < settings.window[1]:
        found.append(f"the window must go from low to high, got {settings.window[0]:g} to {settings.window[1]:g}")
    return found


def _referenceProblems(references: ReferenceSet, settings: RunSettings) -> list[str]:
    usable = _usable(references, settings)
    if not usable:
        if settings.task == "inpainting":
            return []  # the query's own intact slices serve
        broken = [problem for one in _wanted(references, settings) if (problem := references.problem(one.id))]
        return broken or [_NO_REFERENCE[settings.task]]
    axis = chosenAxis(references, settings)
    if settings.sliceRange is not None and axis is None:
        return ["choose the plane that the range of slices counts along"]
    if settings.task == "segmentation" and not _alongAxis(references, usable, settings.queryNode, axis):
        planes = {planeOfAxis(one.matrix, one.position.axis) for one in usable if one.position is not None}
        plane = planeOfAxis(worldAffine(settings.queryNode), 0 if axis is None else axis)
        return [f"the reference slices are {' and '.join(sorted(planes))}, but the run is {plane}: choose their plane, "
                f"or add a slice of the {plane} view"]
    return []


_NO_REFERENCE = {
    "segmentation": "add a reference: label one slice of the volume and add it, or add another patient's volume with "
                    "its segmentation",
    "denoising": "add a reference: a noisy volume, and the same without noise as its target",
    "synthesis": "add a reference: a volume of the query's kind, and the same patient in the wanted kind as its target",
}


def _holeProblems(settings: RunSettings) -> list[str]:
    if settings.holeSegmentation is None or not segmentIds(settings.holeSegmentation):
        return ["choose the segment that marks the hole to be painted"]
    return []


# --- references ---


def _wanted(references: ReferenceSet, settings: RunSettings) -> list[ReferenceEntry]:
    """Those that the user asked for, of any kind."""
    if settings.references is None:
        return [one for one in references.entries if one.enabled]
    return [one for one in references.entries if one.id in set(settings.references)]


def _usable(references: ReferenceSet, settings: RunSettings) -> list[ReferenceEntry]:
    able = {one.id for one in references.forTask(settings.task, onlyEnabled=settings.references is None)}
    return [one for one in _wanted(references, settings) if one.id in able]


def _axisOnQuery(references: ReferenceSet, one: ReferenceEntry, queryNode: Any) -> int:
    """The query's axis that a reference slice is cut along: of another volume, by the name of the plane."""
    assert one.position is not None, "only slices have an axis"
    if references.volumeNode(one.id) is queryNode:
        return one.position.axis
    plane = planeOfAxis(worldAffine(references.volumeNode(one.id)), one.position.axis)
    return axisOfPlane(worldAffine(queryNode), plane)


def _alongAxis(references: ReferenceSet, entries: Sequence[ReferenceEntry], queryNode: Any, axis: int | None
               ) -> list[ReferenceEntry]:
    """Without the slices that lie in another plane than the run."""
    return [one for one in entries
            if one.kind != "slice" or axis is None or _axisOnQuery(references, one, queryNode) == axis]


def _imageReferences(references: ReferenceSet, settings: RunSettings, query: VolumeData, hole: VolumeData | None,
                     axis: int | None) -> tuple[PlannedReference, ...]:
    """Of image-to-image tasks."""
    made = []
    for one in _usable(references, settings):
        image = volumeData(references.volumeNode(one.id))
        target = image if one.kind == "image" else volumeData(references.targetNode(one.id))
        made.append(PlannedReference(image, target, one.volumeName))
    if made:
        return tuple(made)
    assert hole is not None, "only inpainting goes without references"
    assert axis is not None, "the intact slices count along an axis"
    others = tuple(other for other in range(3) if other != axis)
    intact = np.flatnonzero(~(hole.array > 0).any(axis=others))
    flat = [bool(np.ptp(sliceOf(query.array, axis, int(number)))) for number in intact]
    intact = intact[flat]
    if not intact.size:
        raise ValueError("the hole touches every slice: add an intact image of this kind as a reference, or choose "
                         "another plane")
    return (PlannedReference(query, query, query.name, tuple(int(number) for number in intact)),)


def _hole(settings: RunSettings, query: VolumeData) -> Steps:
    """What to paint, as a label map on the query."""
    hole = np.zeros(query.shape, np.uint8)
    ids = segmentIds(settings.holeSegmentation) if settings.holeSegmentIds is None else list(settings.holeSegmentIds)
    for one in ids:
        mask = segmentMask(settings.holeSegmentation, one, settings.queryNode)
        hole[mask.box] |= mask.array
        yield
    if not hole.any():
        raise ValueError(f"the hole is empty in volume '{query.name}': paint what is to be filled")
    return VolumeData(hole, query.affine, "hole")


# --- layers ---


def _keyOf(references: ReferenceSet, entries: Sequence[ReferenceEntry]) -> tuple[Any, ...]:
    """Changes whenever the layers would."""
    parts: list[Any] = []
    for one in entries:
        image = volumeData(references.volumeNode(one.id))
        parts += [one, image.key]
        if one.kind == "volume":
            parts.append(stampOf(references.segmentationNode(one.id), one.segmentIds))
    return tuple(parts)


def _segmentationLayers(references: ReferenceSet, entries: Sequence[ReferenceEntry]) -> Steps:
    """Label maps of all references.

    Returns:
        The layers, and the names of segments that no reference shows.
    """
    masks: dict[str, dict[str, Mask]] = {}
    styles: dict[str, SegmentStyle] = {}
    for one in entries:
        for name, style in currentStyles(references, one).items():
            styles.setdefault(name, style)
            masks.setdefault(name, {})[one.id] = _maskOf(references, one, name)
            yield
    empty = [name for name, found in masks.items() if not any(found.values())]
    images: dict[str, VolumeData] = {}
    layers = []
    for names in grouped({name: found for name, found in masks.items() if name not in empty}):
        part = [one for one in entries if one.id in masks[names[0]]]
        planned = yield from _labelMaps(references, part, names, masks, images)
        layers.append(PlannedLayer({number: styles[name] for number, name in enumerate(names, 1)}, tuple(planned)))
    return layers, empty


def grouped(masks: Mapping[str, Mapping[str, Mask]]) -> list[list[str]]:
    """Names of segments that one label map can hold: the same references show them, and they overlap in none.

    Args:
        masks: name -> ID of the reference -> where it is.
    """
    groups: list[list[str]] = []
    for name, mine in masks.items():
        for group in groups:
            if masks[group[0]].keys() == mine.keys() and len(group) < MOST_LABELS and not any(
                    overlap(mine[reference], masks[other][reference]) for other in group for reference in mine):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def overlap(one: Mask, other: Mask) -> bool:
    """Whether two masks of one grid share a voxel."""
    boxes = []
    for mine, theirs in ((one, other), (other, one)):
        low = np.maximum(mine.start, theirs.start) - mine.start
        high = np.minimum(np.array(mine.start) + mine.array.shape, np.array(theirs.start) + theirs.array.shape)
        high -= mine.start
        if (high <= low).any():
            return False
        boxes.append(tuple(slice(a, b) for a, b in zip(low, high, strict=True)))
    return bool((one.array[boxes[0]] & other.array[boxes[1]]).any())


def _maskOf(references: ReferenceSet, one: ReferenceEntry, name: str) -> Mask:
    """Where a segment is in a reference."""
    if one.position is None:
        segmentId = next(segmentId for segmentId, style in zip(one.segmentIds, _named(references, one), strict=True)
                         if style == name)
        return segmentMask(references.segmentationNode(one.id), segmentId, references.volumeNode(one.id))
    flat = references.sliceMasks(one.id)[name]
    start = [0, 0, 0]
    start[one.position.axis] = one.position.index
    return Mask((start[0], start[1], start[2]), np.expand_dims(flat, one.position.axis))


def _named(references: ReferenceSet, one: ReferenceEntry) -> list[str]:
    segmentation = references.segmentationNode(one.id).GetSegmentation()
    return [segmentation.GetSegment(segmentId).GetName() for segmentId in one.segmentIds]


def _labelMaps(references: ReferenceSet, entries: Sequence[ReferenceEntry], names: Sequence[str],
               masks: Mapping[str, Mapping[str, Mask]], images: dict[str, VolumeData]) -> Steps:
    """References of one layer; slices of one volume in one plane become one reference."""
    together: dict[tuple[Any, ...], list[ReferenceEntry]] = {}
    for one in entries:
        alone = one.id if one.position is None else ""
        axis = None if one.position is None else one.position.axis
        together.setdefault((references.volumeNode(one.id).GetID(), axis, alone), []).append(one)
    planned = []
    for (nodeId, axis, _), group in together.items():
        if nodeId not in images:
            images[nodeId] = volumeData(references.volumeNode(group[0].id))
        image = images[nodeId]
        labels = np.zeros(image.shape, np.uint8)
        for one in group:
            for number, name in enumerate(names, 1):
                mask = masks[name][one.id]
                labels[mask.box][mask.array] = number
        yield
        if labels.any():  # a volume that shows none of them is no example for the server
            key = ("labels", nodeId, _keyOf(references, group), tuple(names))
            slices = None if axis is None else tuple(sorted(_index(one.position) for one in group))
            planned.append(PlannedReference(image, VolumeData(labels, image.affine, group[0].name, key), image.name,
                                            slices))
    return planned


def _index(position: SlicePosition | None) -> int:
    assert position is not None, "only slices are numbered"
    return position.index
