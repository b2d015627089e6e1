"""The part of the panel that runs: settings, preview, run, stop, progress, and what is done with a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .geometry import axisOfPlane
from .mrml_bridge import worldAffine
from .parameters import Plane, Task
from .plan import RunSettings, problems

if TYPE_CHECKING:
    from .job import PreviewRun, Run, RunResult, RunStatus, WarmUp
    from .widget import MVGWidget


READY_TEXT = "Ready: Preview this slice, or Run."


class RunPanel:
    """Preview, run, result.

    Args:
        owner: the module's widget.

    Attributes:
        result: of the latest run that ended with one; None before.
    """

    def __init__(self, owner: MVGWidget) -> None:
        self._owner, self._ui = owner, owner.ui
        self.result: RunResult | None = None
        self._run: Run | None = None
        self._preview: PreviewRun | None = None
        self._warmUp: WarmUp | None = None
        self._rangeOf: tuple[str, int] | None = None
        ui, connect = self._ui, owner.connect
        connect(ui.previewButton.clicked, self.preview, "The preview was not made.")
        connect(ui.runButton.clicked, self.start, "The run was not started.")
        connect(ui.cancelKeepButton.clicked, lambda: self.stop(True), "The run was not stopped.")
        connect(ui.cancelDiscardButton.clicked, lambda: self.stop(False), "The run was not stopped.")
        connect(ui.firstFromViewButton.clicked, lambda: self.rangeFromView("firstSlice"), "The slice is not known.")
        connect(ui.lastFromViewButton.clicked, lambda: self.rangeFromView("lastSlice"), "The slice is not known.")
        connect(ui.nextSliceButton.clicked, self.goToNextSlice, "The slice cannot be shown.")
        connect(ui.undoButton.clicked, self.undo, "The run cannot be undone.")
        connect(ui.redoButton.clicked, self.redo, "The run cannot be redone.")
        ui.confidenceOpacitySlider.valueChanged.connect(self.setConfidenceOpacity)
        self._opacity = 0.4
        self._isMissing = False

    @property
    def isBusy(self) -> bool:
        """Whether something is computed for this panel, or about to be."""
        return self._run is not None or self._preview is not None or self._owner.server.isWaiting

    # --- settings ---

    def settings(self) -> RunSettings:
        """What the panel says, for the logic.

        Raises:
            ValueError: the slice view does not lie along the volume, or a choice is missing.
        """
        parameters = self._owner.parameters
        if parameters.queryVolume is None:
            raise ValueError("Select the volume to solve.")
        isSegmentation = parameters.task == Task.segmentation
        hole = parameters.holeSegmentation if parameters.task == Task.inpainting else None
        return RunSettings(
            queryNode=parameters.queryVolume,
            task=parameters.task.name,
            axis=self._axis(),
            sliceRange=None if parameters.allSlices else (
                min(parameters.firstSlice, parameters.lastSlice), max(parameters.firstSlice, parameters.lastSlice)),
            preset=parameters.preset.name,
            holeSegmentation=hole,
            holeSegmentIds=[parameters.holeSegmentId] if hole is not None and parameters.holeSegmentId else None,
            outputSegmentation=parameters.outputSegmentation if isSegmentation else None,
            replace=parameters.replaceResult,
        )

    def rangeFromView(self, name: str) -> None:
        """Take the slice that the view shows as an end of the range."""
        parameters = self._owner.parameters
        if parameters.queryVolume is None:
            raise ValueError("Select the volume to solve.")
        position = self._owner.logic.sliceOfView(self._owner.sliceNode(), parameters.queryVolume)
        axis = self._axis()
        if axis is None:
            parameters.plane = Plane.view
        elif axis != position.axis:
            raise ValueError("The slice view shows another plane than the one that is solved: choose the plane As the "
                             "slice view shows, or another view.")
        setattr(parameters, name, position.index)

    # --- preview, run, stop ---

    def preview(self) -> None:
        """Solve the slice that the view shows."""
        settings = self.settings()
        position = self._owner.logic.sliceOfView(self._owner.sliceNode(), settings.queryNode)
        settings.axis, settings.sliceRange = position.axis, None
        self._check(settings)
        if self._owner.server.whenReady(lambda: self._startPreview(settings, position.index)):
            self._show("Starting the preview...")
        self._owner.update()

    def start(self) -> None:
        """Solve all chosen slices."""
        settings = self.settings()
        self._check(settings)
        for warning in self._owner.logic.warnings(settings):
            self._owner.log(f"Warning: {warning}")
        if self._owner.server.whenReady(lambda: self._startRun(settings)):
            self._show("Starting...")
        self._owner.update()

    def stop(self, keep: bool) -> None:
        """Stop what runs; the slices so far are kept or taken back."""
        self._owner.server.forget()
        if self._run is not None:
            self._tell(self._run.cancel(keep=keep))
        if self._preview is not None:
            self._preview.cancel()
            self._preview = None
        self._owner.update()

    def warmUp(self) -> None:
        """Let the references be prepared while the user looks for the next slice, by a worker that starts meanwhile.

        Nobody is asked anything for that, and nothing is sent to a server that was not agreed to.
        """
        if self.isBusy or self._problems():
            return
        if not self._owner.server.isReady:
            self._owner.server.startEarly()
        elif self._owner.server.hasAgreed:
            self._warmUp = self._owner.logic.warmUp(self.settings())

    @property
    def isPreparing(self) -> bool:
        """Whether references are being prepared."""
        return self._warmUp is not None

    def poll(self) -> None:
        """Look at what runs."""
        if self._warmUp is not None and self._warmUp.poll().finished:
            self._warmUp = None
        if self._preview is not None:
            status = self._preview.poll()
            if status.finished:
                self._preview = None
                self._show("Preview shown." if status.state == "done" else _sentence(status.message))
                self._owner.log(f"Preview {status.state} after {status.seconds:.1f} s. {status.message}")
                self._owner.update()
        if self._run is not None:
            status = self._run.poll()
            self._tell(status)
            if status.finished:
                self._finish(self._run, status)

    # --- with a result ---

    def goToNextSlice(self) -> None:
        """Show the slice where a label would help most; its present answer becomes what is corrected."""
        result = self.result
        position = None if result is None else self._owner.logic.nextSliceToLabel(result)
        if result is None or position is None:
            self._show("No further slice is suggested. Run again to get new suggestions.")
            return
        self._owner.logic.jumpTo(self._owner.sliceNode(), result.queryNode, position.axis, position.index)
        if result.segmentationNode is not None:
            self._owner.parameters.labelSegmentation = result.segmentationNode
            self._owner.references.observe()
            self._owner.references.tickOnly(result.segmentIds)
        self._show(f"Slice {position.index}: correct the segments with the Segment Editor, press Use current slice, "
                   "then run again.")

    def showConfidence(self, visible: bool) -> None:
        """Show or hide how sure the latest result is."""
        if self.result is None or self.result.confidence is None:
            return
        self._owner.logic.showConfidence(self.result, visible, self._owner.compositeNodes(), self._opacity)

    def setConfidenceOpacity(self, percent: int) -> None:
        """How strongly the confidence covers the image, 0 to 100."""
        self._opacity = percent / 100
        if self.result is not None and self._owner.parameters.showConfidence:
            for composite in self._owner.compositeNodes():
                composite.SetForegroundOpacity(self._opacity)

    def undo(self) -> None:
        """Take the latest output back."""
        if self._owner.logic.undo():
            self._show("The output of the last run was taken back.")
        self._owner.update()

    def redo(self) -> None:
        """Put it there again."""
        if self._owner.logic.redo():
            self._show("The output of the last run is back.")
        self._owner.update()

    # --- showing ---

    def update(self) -> None:
        """Enable and show what can be used now."""
        ui, parameters, logic = self._ui, self._owner.parameters, self._owner.logic
        isSegmentation, isBusy = parameters.task == Task.segmentation, self.isBusy
        for widget in (ui.outputSegmentationLabel, ui.outputSegmentationSelector, ui.replaceResultCheckBox,
                       ui.confidenceRow, ui.nextSliceButton):
            widget.setVisible(isSegmentation)
        for widget in (ui.holeLabel, ui.holeSegmentSelector):
            widget.setVisible(parameters.task == Task.inpainting)
        for widget in (ui.sliceRangeLabel, ui.sliceRangeWidget):
            widget.setVisible(not parameters.allSlices)
        missing = self._problems()
        for button, tip in ((ui.runButton, "Solves all chosen slices in the background."),
                            (ui.previewButton, "Solves the slice shown in the slice view. Nothing is kept.")):
            button.setEnabled(not missing and not isBusy)
            button.setToolTip("\n".join(missing) or tip)
        ui.stopButtons.setVisible(isBusy)
        ui.progressBar.setVisible(isBusy)
        if not isBusy and self.result is None:
            if missing:
                self._show(missing[0])
            elif self._isMissing:
                self._show(READY_TEXT)
            self._isMissing = bool(missing)
        result = self.result
        ui.nextSliceButton.setEnabled(not isBusy and result is not None and bool(result.suggestedSlices))
        hasConfidence = result is not None and result.confidence is not None
        ui.confidenceCheckBox.setEnabled(hasConfidence)
        ui.confidenceOpacitySlider.setEnabled(hasConfidence and parameters.showConfidence)
        ui.undoButton.setEnabled(bool(not isBusy and logic.canUndo))
        ui.redoButton.setEnabled(bool(not isBusy and logic.canRedo))
        self._setRange()

    def abandon(self) -> None:
        """Follow what runs no longer."""
        self._run = self._preview = self._warmUp = None
        self._owner.server.forget()
        self.update()

    def forget(self) -> None:
        """The scene is closed: nothing of it is left."""
        self.result = self._run = self._preview = self._warmUp = self._rangeOf = None
        self._ui.resultLabel.setText("Nothing solved yet.")

    # --- parts ---

    def _startPreview(self, settings: RunSettings, number: int) -> None:
        self._preview = self._owner.logic.preview(settings, number)
        self._ui.progressBar.setRange(0, 0)
        self._owner.update()

    def _startRun(self, settings: RunSettings) -> None:
        self._owner.logic.removePreview()
        self._run = self._owner.logic.start(settings)
        self._ui.progressBar.setRange(0, 100)
        self._owner.log(f"Run started: {settings.task}, preset {settings.preset}.")
        self._owner.update()

    def _finish(self, run: Run, status: RunStatus) -> None:
        """The run has ended: show what it left, and why it ended if not by itself."""
        self._run = None
        result = run.result
        if result is not None and (result.segmentationNode is not None or result.volumeNode is not None):
            self.result = result
            self._ui.resultLabel.setText(summary(result))
            for warning in result.warnings:
                self._owner.log(f"Warning: {warning}")
            self._owner.showResult(result)
            if self._owner.parameters.showConfidence:
                self.showConfidence(True)
        self._owner.log(f"Run {status.state} after {status.seconds:.1f} s. {status.message}")
        if status.state == "failed":
            self._owner.warn(_sentence(status.message))
        self._owner.update()

    def _check(self, settings: RunSettings) -> None:
        # Not `logic.check`: that there is no connection yet is no problem, one is made.
        found = problems(self._owner.logic.references, settings)
        if found:
            raise ValueError(" ".join(_sentence(one) for one in found))

    def _problems(self) -> list[str]:
        try:
            return [_sentence(one) for one in problems(self._owner.logic.references, self.settings())]
        except (ValueError, RuntimeError) as error:
            return [_sentence(str(error))]

    def _axis(self) -> int | None:
        """The voxel axis to slice along; None: as the references."""
        parameters = self._owner.parameters
        volume, plane = parameters.queryVolume, parameters.plane
        if volume is None or plane == Plane.automatic:
            return None
        if plane == Plane.view:
            return self._owner.logic.axisOfView(self._owner.sliceNode(), volume)
        return axisOfPlane(worldAffine(volume), plane.name)

    def _setRange(self) -> None:
        """Let the range's boxes end where the volume does; all slices when volume or axis is another one."""
        parameters = self._owner.parameters
        volume = parameters.queryVolume
        if volume is None or volume.GetImageData() is None:
            return
        try:
            axis = self._axis()
        except ValueError:
            return
        count = max(self._owner.logic.sliceCount(volume, one) for one in ((0, 1, 2) if axis is None else (axis,)))
        if (volume.GetID(), count) == self._rangeOf:
            return
        isNew = self._rangeOf is not None or parameters.lastSlice == 0
        self._rangeOf = (volume.GetID(), count)
        for box in (self._ui.firstSliceSpinBox, self._ui.lastSliceSpinBox):
            box.setRange(0, count - 1)
        if isNew:
            parameters.firstSlice, parameters.lastSlice = 0, count - 1

    def _tell(self, status: RunStatus) -> None:
        self._ui.progressBar.setValue(round(100 * status.fraction))
        slices = f" {status.paintedSlices} slices so far." if status.paintedSlices and not status.finished else ""
        self._show(f"{_sentence(status.message)}{slices}")

    def _show(self, text: str) -> None:
        self._ui.statusLabel.setText(text)


def summary(result: Any) -> str:
    """A result in a few lines."""
    what = {"segmentation": "Segmented", "denoising": "Denoised", "inpainting": "Filled in",
            "synthesis": "Synthesised"}[result.task]
    count = len(result.slicesDone)
    lines = [f"{what} {count} slice{'s' * (count != 1)} in {result.seconds:.1f} s{' (partial)' * result.isPartial}."]
    if result.doubtfulSlices:
        numbers = ", ".join(str(one.index) for one in result.doubtfulSlices[:8])
        lines.append(f"Look at {'these slices' if len(result.doubtfulSlices) > 1 else 'this slice'} first: {numbers}"
                     f"{', ...' * (len(result.doubtfulSlices) > 8)}.")
    if result.suggestedSlices:
        lines.append(f"A label on slice {result.suggestedSlices[0].index} would help most.")
    lines += [f"Note: {warning}" for warning in result.warnings[:3]]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text[-1:] in '.!?:' else '.'}" if text else ""
