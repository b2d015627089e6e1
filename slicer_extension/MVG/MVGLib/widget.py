"""The module's panel: parameters, its three parts, one timer. Resources/UI/MVG.ui is what it looks like."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import qt
import slicer
import slicer.util
import vtk
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from .logic import MVGLogic
from .parameters import Computer, MVGParameterNode
from .reference_panel import ReferencePanel
from .run_panel import RunPanel
from .server_panel import ServerPanel

if TYPE_CHECKING:
    from .job import RunResult

BUSY_MS, IDLE_MS = 100, 1000
"""Milliseconds between two looks at what runs, and at a worker that has nothing to do."""


class MVGWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel.

    Attributes:
        ui: the widgets of MVG.ui by name.
        logic: works on the scene.
        parameters: what the user chose; kept in the scene.
        server, references, run: the parts.
        isClosed: whether the panel was taken down.
    """

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.isClosed = False
        self._guiTag: Any = None
        self._updating = self._isBetweenScenes = False

    def setup(self) -> None:
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/MVG.ui"))
        self.layout.addWidget(panel)
        self.ui: Any = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)

        self.logic = MVGLogic(slicer.mrmlScene)
        self.parameters = MVGParameterNode(_parameterNode())
        self.server, self.references, self.run = ServerPanel(self), ReferencePanel(self), RunPanel(self)
        self.connect(self.ui.copyLogButton.clicked, self.copyLog, "The log was not copied.")
        self.ui.viewComboBox.currentTextChanged.connect(self.setViewName)
        self.ui.holeSegmentSelector.currentNodeChanged.connect(self.setHoleSegmentation)
        self.ui.holeSegmentSelector.currentSegmentChanged.connect(self.setHoleSegment)
        self._computer: tuple[Any, str] = (Computer.local, "")
        self._wasShown = False
        self._connectParameters()

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndClose)
        self._timer = qt.QTimer()
        self._timer.setInterval(IDLE_MS)
        self._timer.timeout.connect(self.poll)
        self._timer.start()
        self.refreshViews()
        self.update()

    def enter(self) -> None:
        """The module is shown."""
        self.refreshViews()
        if self.parameters.queryVolume is None:
            self.parameters.queryVolume = self._shownVolume()
        self.references.observe()
        self.update()

    def exit(self) -> None:
        """Another module is shown; what runs goes on."""

    def cleanup(self) -> None:
        """The application closes, or the module is loaded again."""
        self.isClosed = True
        self._timer.stop()
        self._leaveParameters()
        self.removeObservers()
        self.endRun()
        self.server.disconnect()
        self.references.cleanup()
        self.logic.cleanup()

    def onReload(self) -> None:
        """Load the library again too, for developers."""
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "MVGLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    # --- scene and parameters ---

    def onSceneStartClose(self, *_: Any) -> None:
        """End what runs before its nodes are gone, and leave the choices alone: Slicer empties their node."""
        self.endRun()
        self.run.forget()
        self.logic.cleanup()
        self._leaveParameters()
        self._isBetweenScenes = True

    def onSceneEndClose(self, *_: Any) -> None:
        """Another scene: its own parameters and references."""
        client = self.logic.client
        self.logic.cleanup()
        self.logic = MVGLogic(slicer.mrmlScene, client)
        self._leaveParameters()
        self.parameters = MVGParameterNode(_parameterNode())
        self._isBetweenScenes = False
        self._connectParameters()
        self.references.observe()
        self.refreshViews()
        self.update()

    def onParameters(self, *_: Any) -> None:
        """Something was chosen."""
        if self._updating:
            return
        if self._takeComputer():
            self.server.update()
        if self.parameters.showConfidence != self._wasShown:
            self._wasShown = self.parameters.showConfidence
            self.guarded(lambda: self.run.showConfidence(self._wasShown), "The confidence cannot be shown.")
        self.references.observe()
        self.update()

    def setViewName(self, name: str) -> None:
        """Take a slice view, such as Red."""
        if name and name != self.parameters.viewName:
            self.parameters.viewName = name

    def setHoleSegmentation(self, node: Any) -> None:
        """Take the segmentation of the hole."""
        self.parameters.holeSegmentation = node

    def setHoleSegment(self, segmentId: str) -> None:
        """Take the segment of the hole."""
        self.parameters.holeSegmentId = segmentId or ""

    # --- views ---

    def sliceNodes(self) -> list[Any]:
        """The slice views of the scene, the chosen one first."""
        nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
        return sorted(nodes, key=lambda node: node.GetLayoutName() != self.parameters.viewName)

    def sliceNode(self) -> Any:
        """The chosen slice view.

        Raises:
            ValueError: there is none.
        """
        nodes = self.sliceNodes()
        if not nodes:
            raise ValueError("There is no slice view: choose a layout that shows one.")
        return nodes[0]

    def compositeNodes(self) -> list[Any]:
        """What says which volumes the slice views show."""
        return list(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"))

    def refreshViews(self) -> None:
        """Offer the slice views that there are."""
        names = sorted(node.GetLayoutName() for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"))
        chosen = self.parameters.viewName
        blocked = self.ui.viewComboBox.blockSignals(True)
        self.ui.viewComboBox.clear()
        self.ui.viewComboBox.addItems(names)
        self.ui.viewComboBox.blockSignals(blocked)
        if chosen in names:
            self.ui.viewComboBox.setCurrentIndex(names.index(chosen))
        elif names:
            self.setViewName("Red" if "Red" in names else names[0])

    def showResult(self, result: RunResult) -> None:
        """Show a new volume behind the segments; segments show themselves."""
        if result.volumeNode is not None:
            slicer.util.setSliceViewerLayers(background=result.volumeNode)

    # --- running ---

    def poll(self) -> None:
        """Look at everything that is under way; called by the timer."""
        if self._isBetweenScenes:
            return
        self.guarded(self.server.poll, "The worker cannot be reached.")
        if not self.guarded(self.run.poll, "The run cannot be followed any more."):
            self.run.abandon()  # once, not at every tick
        isBusy = self.run.isBusy or self.run.isPreparing or self.server.isConnecting
        self._timer.setInterval(BUSY_MS if isBusy else IDLE_MS)

    def endRun(self) -> None:
        """Stop what runs; the slices so far stay."""
        self.run.stop(keep=True)

    def update(self) -> None:
        """Enable and show what can be used now."""
        if self._updating or self.isClosed or self._isBetweenScenes:
            return
        self._updating = True
        try:
            self.references.update()
            self.run.update()
        finally:
            self._updating = False
        if self.run.isBusy:
            self._timer.setInterval(BUSY_MS)

    # --- telling ---

    def connect(self, signal: Any, handler: Callable[[], Any], message: str) -> None:
        """Call a handler at each signal; what goes wrong is shown with a message before it."""
        signal.connect(lambda *_: self.guarded(handler, message))

    def guarded(self, handler: Callable[[], Any], message: str) -> bool:
        """Call a handler; what goes wrong is shown and logged. Returns whether all went well.

        In Slicer's testing mode nothing is shown, and errors go on to the test.
        """
        try:
            with slicer.util.tryWithErrorDisplay(message):
                handler()
        except Exception as error:
            self.log(f"{message} {error}")
            if slicer.app.testingEnabled():
                raise
            return False
        return True

    def warn(self, text: str) -> None:
        """Tell something that the user should know now, without a window in the way."""
        self.log(text)
        self.ui.statusLabel.setText(text)
        slicer.util.showStatusMessage(text, 5000)

    def log(self, text: str) -> None:
        """A line in the log, of the panel and of Slicer; names of volumes, which may be patients', are left out."""
        text = self._withoutNames(text)
        self.ui.logTextEdit.appendPlainText(f"{time.strftime('%H:%M:%S')}  {text}")
        logging.info("MVG: %s", text)

    def copyLog(self) -> None:
        """Put the log on the clipboard."""
        self.ui.logTextEdit.selectAll()
        self.ui.logTextEdit.copy()

    # --- parts ---

    def _withoutNames(self, text: str) -> str:
        kinds = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode")
        names = {node.GetName(): node.GetID() for kind in kinds for node in slicer.util.getNodesByClass(kind)}
        names.update({entry.volumeName: "a deleted volume" for entry in self.logic.references.entries
                      if entry.volumeName not in names})
        for name in sorted(filter(None, names), key=len, reverse=True):  # the longest first: one may begin another
            text = text.replace(name, names[name])
        return text

    def _connectParameters(self) -> None:
        self._guiTag = self.parameters.connectGui(self.ui)
        self.addObserver(self.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self.ui.holeSegmentSelector.setCurrentNode(self.parameters.holeSegmentation)
        self._wasShown = self.parameters.showConfidence
        self._takeComputer()
        self.server.update()

    def _leaveParameters(self) -> None:
        """Tie the panel to no choices."""
        if self._guiTag is not None:
            self.parameters.disconnectGui(self._guiTag)
            self._guiTag = None
        self.removeObservers(self.onParameters)

    def _takeComputer(self) -> bool:
        """Leave a connection to another computer than the one that is chosen; whether it is another one."""
        chosen = (self.parameters.computer, self.parameters.serverUrl)
        if chosen == self._computer:
            return False
        self._computer = chosen
        self.server.disconnect()
        return True

    def _shownVolume(self) -> Any:
        """The volume that the chosen view shows; None if it shows none."""
        for composite in self.compositeNodes():
            if composite.GetLayoutName() == self.parameters.viewName and composite.GetBackgroundVolumeID():
                node = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID())
                if node is not None and node.IsA("vtkMRMLScalarVolumeNode"):
                    return node
        return None


def _parameterNode() -> Any:
    """The scene's node for the module's choices; made once."""
    scene = slicer.mrmlScene
    node: Any = scene.GetSingletonNode("MVG", "vtkMRMLScriptedModuleNode")
    if node is None:
        node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag("MVG")
        node.SetModuleName("MVG")
        node.SetName("MVG")
        node = scene.AddNode(node)
    return node
