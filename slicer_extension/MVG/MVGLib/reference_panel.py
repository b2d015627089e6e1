"""The part of the panel that holds the references: add, remove, go to, save, load, thumbnails."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer
import vtk

from .parameters import Task

if TYPE_CHECKING:
    from .references import ReferenceSet
    from .widget import MVGWidget

THUMBNAIL = 64
FILES = "References (*.zip)"


class ReferencePanel:
    """The list of references and its buttons.

    Args:
        owner: the module's widget.
    """

    def __init__(self, owner: MVGWidget) -> None:
        self._owner, self._ui = owner, owner.ui
        self._ids: list[str] = []
        self._row = -1
        self._segmentIds: list[str] = []
        self._unticked: set[str] = set()
        self._filling = False
        self._pending = False
        self._observedSet: Any = None
        self._observedSegmentation: Any = None
        self._pictures = Path(tempfile.mkdtemp(prefix="mvg-thumbnails-"))
        ui, connect = self._ui, owner.connect
        connect(ui.addSliceButton.clicked, self.addSlice, "The slice cannot be used as a reference.")
        connect(ui.addVolumeButton.clicked, self.addVolume, "The volume cannot be used as a reference.")
        connect(ui.goToReferenceButton.clicked, self.goTo, "The reference cannot be shown.")
        connect(ui.removeReferenceButton.clicked, self.remove, "The reference cannot be removed.")
        connect(ui.clearReferencesButton.clicked, self.clear, "The list cannot be emptied.")
        connect(ui.saveReferencesButton.clicked, self.save, "The references were not saved.")
        connect(ui.loadReferencesButton.clicked, self.load, "The references were not loaded.")
        ui.referencesList.currentRowChanged.connect(self.setRow)
        ui.referencesList.itemChanged.connect(self._onReferenceTicked)
        connect(ui.referencesList.itemDoubleClicked, self.goTo, "The reference cannot be shown.")
        ui.segmentsList.itemChanged.connect(self._onSegmentTicked)

    @property
    def references(self) -> ReferenceSet:
        """Those of the scene."""
        return self._owner.logic.references

    @property
    def tickedSegments(self) -> list[str]:
        """Ids of the segments that are ticked."""
        return [one for one in self._segmentIds if one not in self._unticked]

    # --- what the user does ---

    def addSlice(self) -> None:
        """Make the slice that the view shows a reference."""
        parameters = self._owner.parameters
        volume, segmentation = parameters.queryVolume, parameters.labelSegmentation
        if volume is None or segmentation is None:
            raise ValueError("Select the volume and the segmentation that holds the labels of the slice first.")
        if not self.tickedSegments:
            raise ValueError("Tick at least one segment.")
        entry = self.references.addSliceOfView(self._owner.sliceNode(), volume, segmentation, self.tickedSegments)
        self._added(entry)

    def addVolume(self) -> None:
        """Make a whole volume with its answer a reference."""
        parameters, references = self._owner.parameters, self.references
        image, task = parameters.referenceVolume, parameters.task
        if image is None:
            raise ValueError("Select the image of the reference first.")
        if task == Task.segmentation:
            if parameters.referenceSegmentation is None:
                raise ValueError("Select the segmentation of the reference first.")
            entry = references.addVolume(image, parameters.referenceSegmentation)
        elif task == Task.inpainting:
            entry = references.addImage(image)
        else:
            if parameters.referenceTarget is None:
                raise ValueError("Select the answer that belongs to the image first.")
            entry = references.addPair(image, parameters.referenceTarget)
        self._added(entry)

    def setRow(self, row: int) -> None:
        """Take note of the selected reference."""
        self._row = row
        self.update()

    def goTo(self) -> None:
        """Show the selected reference's slice."""
        if self._selected is not None:
            self.references.goTo(self._selected, self._owner.sliceNodes())

    def remove(self) -> None:
        """Take the selected reference out of the list."""
        if self._selected is not None:
            self.references.remove(self._selected)
            self.refresh()

    def clear(self) -> None:
        """Empty the list, after a question."""
        if self._ids and slicer.util.confirmYesNoDisplay(
                f"Take {len(self._ids)} references out of the list? No volume or segment is deleted.", "MVG"):
            self.references.clear()
            self.refresh()

    def save(self) -> None:
        """Write all references into a file."""
        path = qt.QFileDialog.getSaveFileName(None, "Save references", "references.zip", FILES)
        if path:
            path = path if path.lower().endswith(".zip") else f"{path}.zip"
            self.references.save(path)
            self._owner.log(f"{len(self._ids)} references saved.")

    def load(self) -> None:
        """Add the references of a file."""
        path = qt.QFileDialog.getOpenFileName(None, "Load references", "", FILES)
        if path:
            self.references.load(path, append=True)
            self.refresh()

    # --- showing ---

    def observe(self) -> None:
        """Follow the reference set and the chosen segmentation; call when one of them may be another one."""
        owner = self._owner
        node = self.references.node
        if node is not self._observedSet:
            self._unobserve("_observedSet", self._onSetModified)
            self._observedSet = node
            if node is not None:
                owner.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onSetModified)
            self.refresh()
        segmentation = owner.parameters.labelSegmentation
        if segmentation is not self._observedSegmentation:
            self._unobserve("_observedSegmentation", self._onSegmentsModified)
            self._observedSegmentation = segmentation
            self._unticked.clear()
            if segmentation is not None:
                for event in _segmentEvents():
                    owner.addObserver(segmentation, event, self._onSegmentsModified)
            self.refreshSegments()

    def refresh(self) -> None:
        """Fill the list anew."""
        self._pending = False
        references = self.references
        selected = self._selected
        self._filling = True
        try:
            self._ui.referencesList.clear()
            self._ids = [entry.id for entry in references.entries]
            for number, entry in enumerate(references.entries):
                problem = references.problem(entry.id)
                item = qt.QListWidgetItem(entry.name if problem is None else f"{entry.name}\n{problem}")
                item.setFlags(item.flags() | qt.Qt.ItemIsUserCheckable)
                item.setCheckState(qt.Qt.Checked if entry.enabled else qt.Qt.Unchecked)
                item.setToolTip(problem or entry.name)
                icon = self._icon(entry.id, number)
                if icon is not None:
                    item.setIcon(icon)
                self._ui.referencesList.addItem(item)
        finally:
            self._filling = False
        if selected in self._ids:
            self._ui.referencesList.setCurrentRow(self._ids.index(selected))
        else:
            self._row = -1
        self._owner.update()

    def refreshSegments(self) -> None:
        """Fill the list of segments anew; ticks stay."""
        self._filling = True
        try:
            self._ui.segmentsList.clear()
            node = self._observedSegmentation
            segmentation = None if node is None else node.GetSegmentation()
            self._segmentIds = [] if segmentation is None else list(segmentation.GetSegmentIDs())
            for segmentId in self._segmentIds:
                segment = segmentation.GetSegment(segmentId)
                item = qt.QListWidgetItem(segment.GetName())
                item.setFlags(item.flags() | qt.Qt.ItemIsUserCheckable)
                item.setCheckState(qt.Qt.Unchecked if segmentId in self._unticked else qt.Qt.Checked)
                item.setIcon(_swatch(segment.GetColor()))
                self._ui.segmentsList.addItem(item)
        finally:
            self._filling = False
        self._owner.update()

    def tickOnly(self, segmentIds: list[str]) -> None:
        """Tick these segments and no others."""
        self._unticked = set(self._segmentIds) - set(segmentIds)
        self.refreshSegments()

    def update(self) -> None:
        """Enable and show what can be used now."""
        ui, parameters = self._ui, self._owner.parameters
        task = parameters.task
        isSegmentation = task == Task.segmentation
        ui.referenceTabs.setTabEnabled(0, isSegmentation)
        if not isSegmentation:
            ui.referenceTabs.setCurrentIndex(1)
        for widget in (ui.referenceSegmentationLabel, ui.referenceSegmentationSelector):
            widget.setVisible(isSegmentation)
        for widget in (ui.referenceTargetLabel, ui.referenceTargetSelector):
            widget.setVisible(task in (Task.denoising, Task.synthesis))
        ui.addSliceButton.setEnabled(bool(parameters.queryVolume is not None and self.tickedSegments))
        ui.addVolumeButton.setEnabled(parameters.referenceVolume is not None)
        for button in (ui.goToReferenceButton, ui.removeReferenceButton):
            button.setEnabled(self._selected is not None)
        for button in (ui.clearReferencesButton, ui.saveReferencesButton):
            button.setEnabled(bool(self._ids))
        problem = None if self._selected is None else self.references.problem(self._selected)
        ui.referenceProblemLabel.setVisible(problem is not None)
        ui.referenceProblemLabel.setText(problem or "")

    def cleanup(self) -> None:
        """Remove the pictures."""
        shutil.rmtree(self._pictures, ignore_errors=True)

    # --- parts ---

    @property
    def _selected(self) -> str | None:
        return self._ids[self._row] if 0 <= self._row < len(self._ids) else None

    def _added(self, entry: Any) -> None:
        self._owner.log(f"Reference added: {entry.kind}.")
        self.observe()
        self.refresh()
        self._ui.referencesList.setCurrentRow(self._ids.index(entry.id))
        self._owner.run.warmUp()

    def _onReferenceTicked(self, item: Any) -> None:
        row = self._ui.referencesList.row(item)
        if not self._filling and 0 <= row < len(self._ids):
            self.references.setEnabled(self._ids[row], item.checkState() == qt.Qt.Checked)

    def _onSegmentTicked(self, item: Any) -> None:
        row = self._ui.segmentsList.row(item)
        if self._filling or not 0 <= row < len(self._segmentIds):
            return
        change = self._unticked.discard if item.checkState() == qt.Qt.Checked else self._unticked.add
        change(self._segmentIds[row])
        self._owner.update()

    def _onSetModified(self, *_: Any) -> None:
        # Later, and once: the list must not be filled anew while it tells of a change.
        if not self._pending:
            self._pending = True
            qt.QTimer.singleShot(0, self._refreshPending)

    def _refreshPending(self) -> None:
        if self._pending and not self._owner.isClosed:
            self.refresh()

    def _onSegmentsModified(self, *_: Any) -> None:
        self.refreshSegments()

    def _unobserve(self, name: str, callback: Any) -> None:
        observed = getattr(self, name)
        if observed is not None:
            self._owner.removeObservers(callback)

    def _icon(self, entryId: str, number: int) -> Any:
        """The thumbnail as an icon; None if there is no picture, which is no reason to hide the reference."""
        try:
            picture = self.references.thumbnail(entryId, THUMBNAIL)
        except Exception as error:
            self._owner.log(f"No thumbnail of reference {number + 1}: {type(error).__name__}.")
            return None
        # The simplest picture format there is; every Qt reads it.
        path = self._pictures / f"{number}.ppm"
        height, width = picture.shape[:2]
        path.write_bytes(f"P6 {width} {height} 255\n".encode() + picture.tobytes())
        return qt.QIcon(qt.QPixmap(str(path)))


def _segmentEvents() -> list[int]:
    kind = slicer.vtkSegmentation
    return [kind.SegmentAdded, kind.SegmentRemoved, kind.SegmentModified]


def _swatch(colour: tuple[float, float, float]) -> Any:
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*(round(255 * one) for one in colour)))
    return qt.QIcon(pixmap)
