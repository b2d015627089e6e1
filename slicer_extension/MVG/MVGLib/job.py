"""One run: volumes go to the server, answers come back slice by slice into the scene, and nothing waits.

`Run.poll` is called from a timer of the user interface. Calls to the server run on threads of the client; the scene is
touched by `poll` alone. Whatever goes wrong on the way ends the run with a message; what was painted stays.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .client import Client, JobNews, ServerError
from .geometry import PLANES, SlicePosition, VolumeData, axisOfPlane
from .mrml_bridge import isAlive, removeWithDisplays, volumeArray, volumeShape, worldAffine
from .output import SegmentsOutput, VolumeOutput
from .plan import PlannedLayer, RunPlan, RunSettings, Steps
from .segments import SegmentStyle

STATES = ("preparing", "uploading", "queued", "running", "fetching", "done", "failed", "cancelled")
FINISHED = ("done", "failed", "cancelled")
STOPPING_S = 15.0
"""Most seconds that a run waits for the server to stop, and for its partial answer."""
POLL_S = 0.15
"""Seconds between two looks at the server."""
_SHARES = {"preparing": (0.0, 0.02), "uploading": (0.02, 0.1), "queued": (0.1, 0.1), "running": (0.1, 0.95),
           "fetching": (0.95, 1.0)}


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        state: one of `STATES`.
        done: steps done in the present state.
        total: steps in all; 0 if not known.
        fraction: of the whole run, 0 to 1.
        message: one line for the user; why it failed.
        seconds: since the start.
        paintedSlices: slices that the answer shows.
    """

    state: str = "preparing"
    done: int = 0
    total: int = 0
    fraction: float = 0.0
    message: str = "Preparing"
    seconds: float = 0.0
    paintedSlices: int = 0

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in FINISHED


@dataclass(eq=False)
class RunResult:
    """What a run left in the scene.

    Attributes:
        task: see `RunSettings`.
        queryNode: volume that was solved.
        segmentationNode: of a segmentation: that holds the new segments.
        segmentIds: of them.
        volumeNode: of other tasks: the new volume.
        isPartial: whether slices are missing.
        axis: voxel axis that slices count along; None if nothing was painted.
        slicesDone: numbers of slices that were painted as they came in.
        report: of the server, of the first layer; empty if unknown.
        warnings: in sentences.
        suggestedSlices: to label next, the best first.
        doubtfulSlices: that are probably wrong.
        confidence: (I, J, K) uint8 percent; the lowest of all layers; None if unknown.
        seconds: it took.
    """

    task: str
    queryNode: Any
    segmentationNode: Any = None
    segmentIds: list[str] = field(default_factory=list)
    volumeNode: Any = None
    isPartial: bool = False
    axis: int | None = None
    slicesDone: list[int] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    suggestedSlices: list[SlicePosition] = field(default_factory=list)
    doubtfulSlices: list[SlicePosition] = field(default_factory=list)
    confidence: np.ndarray | None = None
    seconds: float = 0.0


class StoppedByUser(RuntimeError):
    """Ends the steps of a run."""


class Conversation:
    """Steps that talk to a server: what runs, previews and warming up have in common.

    Args:
        client: of the server.
        settings: what to run.
        plan: makes the `RunPlan`, in steps.
        identities: of volumes that were sent before, by their keys; added to.
    """

    def __init__(self, client: Client, settings: RunSettings, plan: Steps, identities: dict[Any, str]) -> None:
        self.settings = settings
        self.status = RunStatus()
        self._client, self._plan, self._identities = client, plan, identities
        self._started = time.monotonic()
        self._patience = 0.02
        self._stop: bool | None = None
        self._layer, self._layers = 0, 1
        self._steps: Generator[None, None, None] = self._work()

    @property
    def isFinished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.finished

    def poll(self, patience_s: float = 0.02) -> RunStatus:
        """Take what has arrived; call it every 100 to 200 ms.

        Args:
            patience_s: most seconds to wait for news, which also lets the threads of the client run.
        """
        if self.isFinished:
            return self.status
        self._patience = patience_s
        try:
            next(self._steps)
        except StopIteration:
            self._end("done", "Done")
        except StoppedByUser:
            self._end("cancelled", "Cancelled")
        except Exception as error:  # whatever it is, the user is told and keeps what there is
            self._end("failed", self._explained(error))
        else:
            self.status = replace(self.status, seconds=time.monotonic() - self._started)
        return self.status

    # --- for those who inherit ---

    def _work(self) -> Generator[None, None, None]:
        raise NotImplementedError

    def _finish(self, state: str) -> None:
        """Called once, when the run ends."""

    def _planned(self) -> Generator[None, None, RunPlan]:
        """Make the plan."""
        while True:
            try:
                next(self._plan)
            except StopIteration as end:
                return end.value
            yield
            self._check()

    def _wait(self, call: Callable[..., Any], *arguments: Any, tell: str = "", state: str = "") -> Steps:
        """Call the client on a thread; the value of this step is what it returned."""
        background = self._client.inBackground(call, *arguments)
        while not background.poll(self._patience):
            if state:
                self._tell(state, *background.progress, tell)
            yield
            if self._stop is not None:
                background.cancel()
                self._check()
        return background.result()

    def _send(self, plan: RunPlan, layer: PlannedLayer) -> Steps:
        """Let the server have what a layer needs; the value is the request."""
        volumes = plan.volumes(layer)
        identities = {}
        for number, volume in enumerate(volumes, 1):
            tell = f"Sending volume {number} of {len(volumes)}"
            self._tell("uploading", 0, 0, tell)
            identities[id(volume)] = yield from self._upload(volume, tell)
        return plan.job(self.settings, layer, identities)

    def _upload(self, volume: VolumeData, tell: str) -> Steps:
        known = self._identities.get(volume.key) if volume.key else None
        if known is not None and (yield from self._wait(self._client.hasVolume, known)):
            return known
        identity = yield from self._wait(self._client.uploadVolume, volume.array, volume.affine, tell=tell,
                                         state="uploading")
        if volume.key:
            self._identities[volume.key] = identity
        return identity

    def _asked(self, plan: RunPlan, layer: PlannedLayer, ask: Callable[..., Any], *arguments: Any) -> Steps:
        """Send what is needed and ask; once more if the server dropped a volume meanwhile."""
        for attempt in (1, 2):
            request = yield from self._send(plan, layer)
            try:
                return (yield from self._wait(ask, request, *arguments))
            except ServerError as error:
                if error.status != 404 or attempt == 2:
                    raise
                self._identities.clear()

    def _check(self) -> None:
        if self._stop is not None:
            raise StoppedByUser

    def _tell(self, state: str, done: int = 0, total: int = 0, message: str = "") -> None:
        low, high = _SHARES[state]
        part = low + (high - low) * (done / total if total else 0)
        fraction = max(self.status.fraction, min(1.0, (self._layer + part) / self._layers))
        self.status = replace(self.status, state=state, done=done, total=total, fraction=fraction,
                              message=message or self.status.message)

    def _end(self, state: str, message: str) -> None:
        try:
            self._finish(state)
        except Exception as error:  # such as a node that was deleted meanwhile
            state, message = "failed", f"{message}; the answer could not be kept: {error}"
        self._steps.close()
        self.status = replace(self.status, state=state, message=message, seconds=time.monotonic() - self._started,
                              fraction=1.0 if state == "done" else self.status.fraction)

    def _explained(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        if isinstance(error, (ServerError, ValueError, RuntimeError)):
            return text
        return f"{type(error).__name__}: {text}"


class Run(Conversation):
    """A whole volume, or a range of its slices.

    Args:
        scene: to work in.
        client: of the server.
        settings: what to run.
        plan: makes the `RunPlan`, in steps.
        identities: see `Conversation`.
        runName: is written into what the run makes.
        display: volume node whose window and level a new volume gets; None: the query's.
    """

    def __init__(self, scene: Any, client: Client, settings: RunSettings, plan: Steps, identities: dict[Any, str],
                 runName: str, display: Any = None) -> None:
        super().__init__(client, settings, plan, identities)
        self.result: RunResult | None = None
        self._scene, self._runName, self._display = scene, runName, display
        self._output: SegmentsOutput | VolumeOutput | None = None
        self._jobId = ""
        self._found = RunResult(settings.task, settings.queryNode)
        self._suggested: list[list[SlicePosition]] = []
        self._names: dict[str, str] = {}
        self._slices: set[int] = set()

    def cancel(self, keep: bool = True) -> RunStatus:
        """Ask the server to stop; poll on until the run is finished.

        Args:
            keep: whether what was painted stays in the scene.
        """
        if not self.isFinished:
            self._stop = keep
            self.status = replace(self.status, message="Stopping")
        return self.status

    def abandon(self) -> None:
        """End at once, without waiting for the server; what was painted stays."""
        if not self.isFinished:
            self._end("cancelled", "Cancelled")

    @property
    def canUndo(self) -> bool:
        """Whether `undo` would do something."""
        return self.isFinished and self._output is not None and self._output.canUndo

    @property
    def canRedo(self) -> bool:
        """Whether `redo` would do something."""
        return self.isFinished and self._output is not None and self._output.canRedo

    def undo(self) -> bool:
        """Take back what the finished run made; False if there is nothing."""
        return self.isFinished and self._output is not None and self._output.undo()

    def redo(self) -> bool:
        """Bring back what `undo` took; False if there is nothing."""
        return self.isFinished and self._output is not None and self._output.redo()

    # --- steps ---

    def _work(self) -> Generator[None, None, None]:
        plan = yield from self._planned()
        self._found.warnings += plan.warnings
        self._layers = len(plan.layers)
        for number, layer in enumerate(plan.layers):
            self._layer = number
            yield from self._solve(plan, layer)
            self._check()

    def _solve(self, plan: RunPlan, layer: PlannedLayer) -> Steps:
        """One layer: send, run, fetch."""
        self._names = {f"reference {number}": one.name for number, one in enumerate(layer.references, 1)}
        target = None
        try:
            self._jobId = yield from self._asked(plan, layer, self._submit)
            target = self._target(layer.styles)
            yield from self._follow(target)
            yield from self._fetch(target)
        except StoppedByUser:
            yield from self._stopped(target)
            raise
        finally:
            self._forget()

    def _submit(self, request: Mapping[str, Any]) -> str:
        wanted = self.settings.sliceRange
        jobId = self._client.submit({**request, "slices": None if wanted is None else [int(end) for end in wanted]})
        if self._stop is not None:  # nobody waits for this thread any more
            self._client.deleteJob(jobId)
        return jobId

    def _target(self, styles: Mapping[int, SegmentStyle]) -> Any:
        """Where a layer's answer is written."""
        settings = self.settings
        if settings.task == "segmentation":
            if self._output is None:
                self._output = SegmentsOutput(self._scene, settings.queryNode, settings.outputSegmentation,
                                              settings.outputName, replace=settings.replace, runName=self._runName)
            assert isinstance(self._output, SegmentsOutput)
            return self._output.addLayer(styles)
        name = settings.outputName or f"{settings.queryNode.GetName()} {_DONE[settings.task]}"
        start = None if settings.task == "synthesis" else volumeArray(settings.queryNode)
        self._output = VolumeOutput(self._scene, settings.queryNode, name, display=self._display, start=start,
                                    runName=self._runName)
        return self._output

    def _follow(self, target: Any) -> Steps:
        """Write slices as they are painted, until the job ends."""
        follower = self._client.follow(self._jobId, POLL_S)
        try:
            while True:
                news = follower.poll(self._patience)
                self._write(target, news)
                if news.status is not None and news.status.isFinished:
                    if news.status.state != "done":
                        raise RuntimeError(news.status.error or "the server stopped the job: run it again")
                    return
                yield
                self._check()
        finally:
            follower.close()

    def _write(self, target: Any, news: JobNews) -> None:
        if not self._isThere():
            raise RuntimeError("the result was deleted from the scene while the run went on")
        if news.painted:
            target.writeSlices(news.axis, news.painted)
            self._found.axis = news.axis
            self._slices |= {number for number, _ in news.painted}
            self.status = replace(self.status, paintedSlices=len(self._slices))
        now = news.status
        if now is None:
            return
        if now.state == "queued":
            self._tell("queued", message=f"Waiting for {now.ahead} other job{'' if now.ahead == 1 else 's'}"
                       if now.ahead else "Starting")
        elif now.state == "running":
            of = f" (part {self._layer + 1} of {self._layers})" if self._layers > 1 else ""
            self._tell("running", now.done, now.total, f"Painting: step {now.done} of {now.total}{of}")

    def _isThere(self) -> bool:
        node = None if self._output is None else self._output.node
        return node is None or isAlive(self._scene, node)

    def _fetch(self, target: Any) -> Steps:
        """Write the whole answer."""
        self._tell("fetching", message="Fetching the answer")
        array, _ = yield from self._wait(self._client.result, self._jobId, state="fetching")
        if array.shape != volumeShape(self.settings.queryNode):
            raise RuntimeError(f"the server's answer has {array.shape} voxels, the query "
                               f"{volumeShape(self.settings.queryNode)}: update the older of module and server")
        if not self._isThere():
            raise RuntimeError("the result was deleted from the scene while the run went on")
        target.writeAll(array)
        if self.settings.task == "segmentation" and self.settings.wantConfidence:
            percent = yield from self._wait(self._percent, self._jobId)
            before = self._found.confidence
            self._found.confidence = percent if before is None else np.minimum(before, percent)
        self._learn((yield from self._wait(self._client.report, self._jobId)))

    def _percent(self, jobId: str) -> np.ndarray:
        """Confidence in a quarter of the memory; on the client's thread."""
        found, _ = self._client.confidence(jobId)
        return np.rint(found * np.float32(100)).astype(np.uint8)

    def _learn(self, report: dict[str, Any]) -> None:
        """Keep what a report says."""
        found = self._found
        found.report = found.report or report
        found.warnings += [text for text in report.get("warnings", []) if text not in found.warnings]
        axis = found.axis if found.axis is not None else self._axisOf(report)
        if axis is None:
            return
        found.axis = axis
        self._suggested.append([SlicePosition(axis, int(number)) for number in report.get("suggested_slices", [])])
        doubtful = {SlicePosition(axis, int(number)) for number in report.get("doubtful_slices", [])}
        found.doubtfulSlices = sorted(doubtful | set(found.doubtfulSlices), key=lambda one: one.index)

    def _axisOf(self, report: Mapping[str, Any]) -> int | None:
        plane = report.get("plane")
        return axisOfPlane(worldAffine(self.settings.queryNode), plane) if plane in PLANES else None

    # --- the end ---

    def _stopped(self, target: Any) -> Steps:
        """Let the server stop, and fetch what there is, within `STOPPING_S`."""
        keep, self._stop = self._stop, None
        deadline = time.monotonic() + STOPPING_S
        if not self._jobId or not keep:
            self._stop = keep
            return
        try:
            yield from self._within(deadline, self._wait(self._client.cancel, self._jobId))
            while not (yield from self._within(deadline, self._wait(self._client.status, self._jobId))).isFinished:
                yield from self._within(deadline, self._wait(time.sleep, POLL_S))
            if target is not None:
                yield from self._within(deadline, self._fetch(target))
        except (ServerError, RuntimeError, TimeoutError):
            pass  # the slices that came in are kept
        finally:
            self._stop = keep

    def _within(self, deadline: float, steps: Steps) -> Steps:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
            if time.monotonic() > deadline:
                steps.close()
                raise TimeoutError
            yield

    def _forget(self) -> None:
        """Let the server forget the job; nobody waits for it."""
        if self._jobId:
            self._client.inBackground(self._client.deleteJob, self._jobId)
            self._jobId = ""

    def _finish(self, state: str) -> None:
        found = self._found
        found.seconds = time.monotonic() - self._started
        found.isPartial = state != "done"
        found.slicesDone = sorted(self._slices)
        found.suggestedSlices = _taking_turns(self._suggested)
        output = self._output
        if output is not None and self._isThere():
            output.finish()
            if self._stop is False:
                output.undo()
            elif isinstance(output, SegmentsOutput):
                found.segmentIds = output.segmentIds
                found.segmentationNode = output.node if found.segmentIds else None
            else:
                found.volumeNode = output.node
        self.result = found

    def _explained(self, error: Exception) -> str:
        text = super()._explained(error)
        # The server knows references by number; the user knows them by the names of their volumes.
        return re.sub(r"\breference \d+\b", lambda found: self._named(found.group()), text)

    def _named(self, reference: str) -> str:
        name = self._names.get(reference)
        return f"{reference} ('{name}')" if name else reference


_DONE = {"denoising": "denoised", "inpainting": "inpainted", "synthesis": "synthesised"}


class PreviewRun(Conversation):
    """One slice, shown as segments or as a thin volume of their own.

    Args:
        scene: to work in.
        client: of the server.
        settings: what to run.
        plan: makes the `RunPlan`, in steps.
        identities: see `Conversation`.
        number: of the slice.
        show: draws the answers: is given the axis, and of every layer its segments and the `Preview`.
    """

    def __init__(self, scene: Any, client: Client, settings: RunSettings, plan: Steps, identities: dict[Any, str],
                 number: int, show: Callable[[int, list[tuple[Mapping[int, SegmentStyle], Any]]], Any]) -> None:
        super().__init__(client, settings, plan, identities)
        self.node: Any = None
        self.warnings: list[str] = []
        self._scene, self._number, self._show = scene, number, show

    def cancel(self, keep: bool = False) -> RunStatus:
        """Give up; nothing is shown."""
        if not self.isFinished:
            self._stop = keep
        return self.status

    def remove(self) -> None:
        """Take the preview out of the scene."""
        self.cancel()
        if isAlive(self._scene, self.node):
            removeWithDisplays(self._scene, self.node)
        self.node = None

    def _work(self) -> Generator[None, None, None]:
        plan = yield from self._planned()
        self._layers = len(plan.layers)
        answers = []
        for number, layer in enumerate(plan.layers):
            self._layer = number
            self._tell("running", message="Painting the slice")
            answer = yield from self._asked(plan, layer, self._client.preview, self._number)
            answers.append((layer.styles, answer))
            self.warnings += [text for text in answer.warnings if text not in self.warnings]
        self._check()
        self.node = self._show(answers[0][1].axis, answers)


class WarmUp(Conversation):
    """Lets the server encode the references, so that the first preview is quick; failing is no harm."""

    def cancel(self, keep: bool = False) -> RunStatus:
        """Give up."""
        if not self.isFinished:
            self._stop = keep
        return self.status

    def _work(self) -> Generator[None, None, None]:
        plan = yield from self._planned()
        for layer in plan.layers:
            yield from self._asked(plan, layer, self._client.encode)


def _taking_turns(lists: list[list[SlicePosition]]) -> list[SlicePosition]:
    """The first of every list, then the second ..., each once."""
    longest = max((len(one) for one in lists), default=0)
    mixed = [one[place] for place in range(longest) for one in lists if place < len(one)]
    return list(dict.fromkeys(mixed))


