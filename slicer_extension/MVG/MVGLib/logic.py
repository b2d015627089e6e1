"""Everything the module does, without its panel: for the panel, for scripts, for tests and for other programs.

In a script:

logic = MVGLogic(slicer.mrmlScene, Client(url, token))
logic.references.addSlice(volume, segmentation, ["Segment_1"], SlicePosition(axis=2, index=40))
result = logic.process(volume)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import slicer

from . import views
from .client import Client
from .geometry import SlicePosition
from .job import PreviewRun, Run, RunResult, RunStatus, WarmUp
from .mrml_bridge import addConfidence, addVolumeLike, isAlive, localAffine, removeWithDisplays, uniqueName, volumeShape
from .output import MADE_BY, layOn
from .plan import PRESETS, TASKS, RunSettings, chosenAxis, prepare, problems, warningsOf
from .references import ReferenceSet
from .segments import Mask, SegmentStyle, maskImage

PREVIEW = "MVG preview"
_PREVIEW_TAG = "MVG.Preview"


class MVGLogic:
    """The module's logic.

    Args:
        scene: vtkMRMLScene to work in.
        client: of the server; None until there is one.

    Attributes:
        run: the latest; None before the first.
    """

    def __init__(self, scene: Any, client: Client | None = None) -> None:
        self.scene = scene
        self.run: Run | None = None
        self._client: Client | None = None
        self._references: ReferenceSet | None = None
        self._identities: dict[Any, str] = {}
        self._layers: dict[Any, Any] = {}
        self._preview: PreviewRun | None = None
        self._warmUp: WarmUp | None = None
        self._confidence: dict[int, Any] = {}
        self.client = client

    @property
    def client(self) -> Client | None:
        """The server that runs go to; a new one knows nothing of what was sent before."""
        return self._client

    @client.setter
    def client(self, client: Client | None) -> None:
        if client is not self._client:
            self._identities = {}
        self._client = client

    @property
    def references(self) -> ReferenceSet:
        """The references of the scene, those saved with it included."""
        if self._references is None:
            self._references = ReferenceSet.fromScene(self.scene)
        return self._references

    # --- runs ---

    def process(self, queryNode: Any, task: str = "segmentation", *,
                progress: Callable[[RunStatus], Any] | None = None, timeout_s: float | None = None,
                pollEvery_s: float = 0.1, **settings: Any) -> RunResult:
        """Run and wait, for scripts.

        Args:
            queryNode: volume to solve.
            task: see `RunSettings`.
            progress: called with the status at every look.
            timeout_s: give up after so many seconds.
            pollEvery_s: seconds between two looks.
            settings: further fields of `RunSettings`.

        Raises:
            ValueError: it cannot start; says what is missing.
            RuntimeError: it failed, or took too long; what was painted is in the scene, see `run.result`.
        """
        run = self.start(RunSettings(queryNode, task, **settings))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        late = False
        while not run.poll(pollEvery_s).finished:
            if progress is not None:
                progress(run.status)
            if deadline is not None and not late and time.monotonic() > deadline:
                late = True
                run.cancel(keep=True)
        if progress is not None:
            progress(run.status)
        if late:
            raise RuntimeError(f"not finished within {timeout_s:g} s: give it more time, or solve fewer slices")
        if run.status.state != "done" or run.result is None:
            raise RuntimeError(run.status.message)
        return run.result

    def check(self, settings: RunSettings) -> list[str]:
        """What is missing before a run can start, in sentences; cheap."""
        found = problems(self.references, settings)
        if self._client is None:
            found.append("no server is connected: start the local worker, or connect to a server")
        return found

    def warnings(self, settings: RunSettings) -> list[str]:
        """What the user should know before a run, in sentences; cheap."""
        return warningsOf(self.references, settings)

    def chosenAxis(self, settings: RunSettings) -> int | None:
        """The voxel axis that a run would slice along; None: the server chooses."""
        return chosenAxis(self.references, settings)

    def start(self, settings: RunSettings) -> Run:
        """Begin a run; call its `poll` from a timer.

        Raises:
            ValueError: something is missing; says what.
            RuntimeError: a run is going on.
        """
        if self.run is not None and not self.run.isFinished:
            raise RuntimeError("a run is going on: wait for its end, or cancel it")
        client = self._ready(settings)
        self._stopBackground()
        display = None
        if settings.task == "synthesis":
            pair = self._usedEntries(settings)[0]
            display = self.references.targetNode(pair.id)
        name = time.strftime("%Y-%m-%d %H:%M:%S") + f".{time.time_ns() // 1_000_000 % 1000:03d}"
        settings = replace(settings)  # what the caller changes later stays outside
        self.run = Run(self.scene, client, settings, prepare(self.references, settings, self._layers), self._identities,
                       name, display)
        return self.run

    def preview(self, settings: RunSettings, sliceIndex: int) -> PreviewRun:
        """Begin to solve one slice; it replaces the preview before.

        Raises:
            ValueError: something is missing, or there is no such slice; says what.
        """
        client = self._ready(replace(settings, sliceRange=None))
        axis = self.chosenAxis(settings)
        if axis is None:
            raise ValueError("choose the plane of the preview: no reference slice says which")
        if not 0 <= sliceIndex < self.sliceCount(settings.queryNode, axis):
            raise ValueError(f"there is no slice {sliceIndex}: along this axis volume '{settings.queryNode.GetName()}' "
                             f"has slices 0 to {self.sliceCount(settings.queryNode, axis) - 1}")
        self._stopBackground()
        settings = replace(settings, axis=axis, sliceRange=None)
        self._preview = PreviewRun(
            self.scene, client, settings, prepare(self.references, settings, self._layers), self._identities,
            int(sliceIndex), lambda axis, answers: self._show(settings, SlicePosition(axis, int(sliceIndex)), answers))
        return self._preview

    def removePreview(self) -> None:
        """Take the preview out of the scene."""
        if self._preview is not None:
            self._preview.cancel()
        self._removePreviews()

    def warmUp(self, settings: RunSettings) -> WarmUp | None:
        """Begin to let the server encode the references; poll it as a run. None if a run could not start anyway."""
        busy = self.run is not None and not self.run.isFinished
        if busy or self.check(settings):
            return None
        if self._warmUp is not None:
            self._warmUp.cancel()
        self._warmUp = WarmUp(self._ready(settings), settings, prepare(self.references, settings, self._layers),
                              self._identities)
        return self._warmUp

    # --- views ---

    def axisOfView(self, sliceNode: Any, volumeNode: Any) -> int:
        """The voxel axis that a slice view looks along.

        Raises:
            ValueError: the view is oblique to the volume; says what to do.
        """
        return views.axisOfView(sliceNode, volumeNode)

    def sliceOfView(self, sliceNode: Any, volumeNode: Any) -> SlicePosition:
        """The slice that a view shows.

        Raises:
            ValueError: the view is oblique to the volume, or beside it; says what to do.
        """
        return views.sliceOfView(sliceNode, volumeNode)

    def jumpTo(self, sliceNode: Any, volumeNode: Any, axis: int, index: int) -> None:
        """Show a slice in a view, turned to the volume's planes if need be.

        Raises:
            ValueError: there is no such slice.
        """
        views.jumpTo(sliceNode, volumeNode, SlicePosition(axis, index))

    def sliceCount(self, volumeNode: Any, axis: int) -> int:
        """Number of slices of a volume along a voxel axis."""
        return volumeShape(volumeNode)[axis]

    # --- after a run ---

    @property
    def canUndo(self) -> bool:
        """Whether `undo` would do something."""
        return self.run is not None and self.run.canUndo

    @property
    def canRedo(self) -> bool:
        """Whether `redo` would do something."""
        return self.run is not None and self.run.canRedo

    def undo(self) -> bool:
        """Take back what the latest run made, and bring back what it replaced; False if there is nothing."""
        return self.run is not None and self.run.undo()

    def redo(self) -> bool:
        """Bring back what `undo` took; False if there is nothing."""
        return self.run is not None and self.run.redo()

    def showConfidence(self, result: RunResult, visible: bool = True, sliceCompositeNodes: Sequence[Any] = (),
                       opacity: float = 0.5) -> Any:
        """The confidence of a segmentation as a coloured volume in percent, made when first asked for.

        Args:
            result: of a run.
            visible: show it, or hide it again.
            sliceCompositeNodes: whose foreground it takes, or leaves.
            opacity: in the foreground.

        Returns:
            The volume node; None if there is no confidence, or nothing to hide.
        """
        if result.confidence is None:
            return None
        node = self._confidence.get(id(result))
        if not isAlive(self.scene, node):
            if not visible:
                return None
            node = addConfidence(self.scene, result.queryNode, result.confidence,
                                 f"{result.queryNode.GetName()} confidence")
            self._confidence = {id(result): node}
        for composite in sliceCompositeNodes:
            if visible:
                composite.SetForegroundVolumeID(node.GetID())
                composite.SetForegroundOpacity(opacity)
            elif composite.GetForegroundVolumeID() == node.GetID():
                composite.SetForegroundVolumeID(None)
        return node

    def nextSliceToLabel(self, result: RunResult | None = None) -> SlicePosition | None:
        """The slice that would help most if it was labelled next, and is not yet; None: no suggestion."""
        result = result or (self.run.result if self.run is not None else None)
        if result is None:
            return None
        labelled = {one.position for one in self.references.entries if one.kind == "slice"
                    and self.references.volumeNode(one.id) is result.queryNode}
        return next((one for one in result.suggestedSlices if one not in labelled), None)

    def cleanup(self) -> None:
        """Cancel what goes on and take previews away; results stay."""
        if self.run is not None:
            self.run.cancel(keep=True)
            self.run.abandon()
        self._stopBackground()
        self.removePreview()
        self._layers.clear()

    # --- parts ---

    def _ready(self, settings: RunSettings) -> Client:
        found = self.check(settings)
        if found:
            raise ValueError("; ".join(found))
        assert self._client is not None, "check says if there is no client"
        return self._client

    def _usedEntries(self, settings: RunSettings) -> list[Any]:
        wanted = self.references.forTask(settings.task, onlyEnabled=settings.references is None)
        return [one for one in wanted if settings.references is None or one.id in settings.references]

    def _stopBackground(self) -> None:
        for one in (self._preview, self._warmUp):
            if one is not None:
                one.cancel()

    def _removePreviews(self) -> None:
        nodes = [self.scene.GetNthNode(number) for number in range(self.scene.GetNumberOfNodes())]
        for node in nodes:
            if node.GetAttribute(_PREVIEW_TAG):
                removeWithDisplays(self.scene, node)

    def _show(self, settings: RunSettings, position: SlicePosition,
              answers: Sequence[tuple[Mapping[int, SegmentStyle], Any]]) -> Any:
        """Draw a preview; the one before goes."""
        self._removePreviews()
        if settings.task == "segmentation":
            node = self._previewSegments(settings.queryNode, position, answers)
        else:
            node = self._previewVolume(settings.queryNode, position, answers[0][1].label)
        node.SetAttribute(_PREVIEW_TAG, "1")
        node.SetSaveWithScene(False)
        return node

    def _previewSegments(self, queryNode: Any, position: SlicePosition,
                         answers: Sequence[tuple[Mapping[int, SegmentStyle], Any]]) -> Any:
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", uniqueName(self.scene, PREVIEW))
        node.SetHideFromEditors(True)
        node.CreateDefaultDisplayNodes()
        layOn(node, queryNode)
        start = [0, 0, 0]
        start[position.axis] = position.index
        name = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
        for styles, answer in answers:
            for number, style in styles.items():
                shown = np.expand_dims(answer.label == number, position.axis)
                segment = slicer.vtkSegment()
                segment.SetName(style.name)
                segment.SetColor(*style.colour)
                image = maskImage(Mask((start[0], start[1], start[2]), shown), localAffine(queryNode))
                segment.AddRepresentation(name, image)
                node.GetSegmentation().AddSegment(segment)
        return node

    def _previewVolume(self, queryNode: Any, position: SlicePosition, answer: np.ndarray) -> Any:
        node = addVolumeLike(self.scene, queryNode, np.expand_dims(answer, position.axis), PREVIEW)
        start = np.zeros(4)
        start[position.axis], start[3] = position.index, 1
        node.SetOrigin(*(localAffine(queryNode) @ start)[:3].tolist())
        node.SetHideFromEditors(True)
        return node


__all__ = ["MADE_BY", "PRESETS", "TASKS", "MVGLogic", "RunResult", "RunSettings", "RunStatus", "SlicePosition"]
