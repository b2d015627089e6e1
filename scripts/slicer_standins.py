"""3D Slicer without the application: the real panel of the module on PySide6 and the real MRML of slicer-core.

`install()` puts modules named `qt`, `slicer.parameterNodeWrapper` and so on in place; after it `MVG` can be imported.
Stand-ins are only what slicer-core lacks: Qt under Slicer's name, four widget classes, parameter nodes, message boxes,
the module's base classes. They do less than the real ones. Used by tests and by the script that takes screenshots.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported; scripts/ and the extension are put on the path below.
from __future__ import annotations

import ctypes
import enum
import os
import sys
import typing
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtUiTools import QUiLoader

if sys.version_info < (3, 12):
    # Methods of PySide6 6.12 that return nothing give back a reference to None that they never took, as if None lived
    # forever, which it does from Python 3.12 on: before, Python aborts after some ten thousand calls. Make it so.
    ctypes.c_ssize_t.from_address(id(None)).value += 2**40

MODULE_FOLDER = Path(__file__).resolve().parents[1] / "slicer_extension" / "MVG"
PROPERTY = "SlicerParameterName"


# --- widgets that Slicer and CTK bring ---


class qMRMLWidget(QtWidgets.QWidget):
    """A panel that passes the scene on to its children."""

    def setMRMLScene(self, scene: Any) -> None:
        for child in self.findChildren(QtWidgets.QWidget):
            if child is not self and hasattr(child, "setMRMLScene"):
                child.setMRMLScene(scene)


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A section with a title that can be folded."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, 26, 0, 0)

    def _setText(self, text: str) -> None:
        self._text = text

    def _setCollapsed(self, collapsed: bool) -> None:
        self._collapsed = bool(collapsed)
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(not self._collapsed)
        self.setMaximumHeight(26 if self._collapsed else 16777215)
        self.setMinimumHeight(26)

    text = QtCore.Property(str, lambda self: self._text, _setText)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, _setCollapsed)

    def showEvent(self, event: Any) -> None:
        self._setCollapsed(self._collapsed) if self._collapsed else None

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(100, 26) if self._collapsed else super().sizeHint()

    def paintEvent(self, event: Any) -> None:
        painter = QtGui.QPainter(self)
        painter.fillRect(0, 0, self.width(), 22, QtGui.QColor("#d9dee6"))
        painter.setPen(QtGui.QColor("#1d2430"))
        font = painter.font()
        font.setBold(True)
        painter.setFont(font)
        painter.drawText(8, 16, f"{'▸' if self._collapsed else '▾'}  {self._text}")


class qMRMLNodeComboBox(QtWidgets.QComboBox):
    """Chooses a node of the scene."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._ids: list[str] = []
        self.activated.connect(lambda *_: self.currentNodeChanged.emit(self.currentNode()))

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent):
            scene.AddObserver(event, self._refresh)
        self._refresh()

    def _refresh(self, *_: Any) -> None:
        chosen = self.currentNode()
        nodes = [node for kind in self.property("nodeTypes") or () for node in slicer.util.getNodesByClass(kind)
                 if node.GetClassName() == kind and not node.GetHideFromEditors()]
        self.blockSignals(True)
        self.clear()
        self._ids = ["", *(node.GetID() for node in nodes)]
        self.addItems([self.property("noneDisplay") or "None", *(node.GetName() for node in nodes)])
        self.blockSignals(False)
        self._select(chosen)

    def _select(self, node: Any) -> None:
        number = self._ids.index(node.GetID()) if node is not None and node.GetID() in self._ids else 0
        self.setCurrentIndex(number)

    def currentNode(self) -> Any:
        number = self.currentIndex()
        return self._scene.GetNodeByID(self._ids[number]) if self._scene and 0 < number < len(self._ids) else None

    def setCurrentNode(self, node: Any) -> None:
        before = self.currentNode()
        self._select(node)
        if self.currentNode() is not before:
            self.currentNodeChanged.emit(self.currentNode())


class qMRMLSegmentSelectorWidget(QtWidgets.QComboBox):
    """Chooses a segment of a segmentation."""

    currentNodeChanged = QtCore.Signal(object)
    currentSegmentChanged = QtCore.Signal(str)

    def setMRMLScene(self, scene: Any) -> None:
        self.addItem("Select a segment")

    def setCurrentNode(self, node: Any) -> None:
        self.currentNodeChanged.emit(node)

    def setCurrentSegmentID(self, segmentId: str) -> None:
        self.currentSegmentChanged.emit(segmentId)


WIDGETS = (qMRMLWidget, ctkCollapsibleButton, qMRMLNodeComboBox, qMRMLSegmentSelectorWidget)


def load_ui(path: str | os.PathLike[str]) -> QtWidgets.QWidget:
    """Load a .ui file with the stand-ins for Slicer's widgets; its connections are left out.

    Raises:
        RuntimeError: it cannot be loaded.
    """
    tree = ElementTree.parse(path)
    root = tree.getroot()
    for name in ("customwidgets", "connections"):
        for element in root.findall(name):
            root.remove(element)
    loader = QUiLoader()
    for widget in WIDGETS:
        loader.registerCustomWidget(widget)
    buffer = QtCore.QBuffer()
    buffer.setData(ElementTree.tostring(root))
    buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
    loaded = loader.load(buffer)
    if loaded is None:
        raise RuntimeError(f"{path} cannot be loaded: {loader.errorString()}")
    return loaded


def child_widgets(widget: QtWidgets.QWidget) -> SimpleNamespace:
    """All widgets with a name, as `slicer.util.childWidgetVariables` gives them."""
    children = widget.findChildren(QtWidgets.QWidget)
    return SimpleNamespace(**{child.objectName(): child for child in children if child.objectName().isidentifier()})


# --- parameter nodes ---


def parameter_node_wrapper(kind: type) -> type:
    """Stand-in for `slicer.parameterNodeWrapper.parameterNodeWrapper`; for nodes, enums, bool, int and str."""
    kinds = typing.get_type_hints(kind)
    defaults = {name: getattr(kind, name, None) for name in kinds}

    class Wrapped:
        def __init__(self, parameterNode: Any) -> None:
            self.parameterNode = parameterNode
            self._writers: list[Any] = []
            self._writing = False
            for name, value in defaults.items():
                if value is not None and not parameterNode.GetParameter(name):
                    _write(parameterNode, name, kinds[name], value)

        def connectGui(self, ui: Any) -> int:
            for widget in list(vars(ui).values()):
                name = widget.property(PROPERTY)
                if name:
                    self._writers.append(_bind(self, widget, name, kinds[name]))
            self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, self._show)
            self._show()
            return 0

        def disconnectGui(self, tag: Any) -> None:
            self._writers.clear()

        def _show(self, *_: Any) -> None:
            if self._writing:
                return
            self._writing = True
            try:
                for writer in self._writers:
                    writer()
            finally:
                self._writing = False

    for name, each in kinds.items():
        setattr(Wrapped, name, property(lambda self, name=name, each=each: _read(self.parameterNode, name, each),
                                        lambda self, value, name=name, each=each: _write(
                                            self.parameterNode, name, each, value)))
    Wrapped.__name__ = kind.__name__
    return Wrapped


def _isNode(kind: type) -> bool:
    return issubclass(kind, slicer.vtkMRMLNode)


def _read(node: Any, name: str, kind: type) -> Any:
    if _isNode(kind):
        return node.GetNodeReference(name)
    text = node.GetParameter(name)
    if issubclass(kind, enum.Enum):
        return kind[text]
    return text == "True" if kind is bool else kind(text)


def _write(node: Any, name: str, kind: type, value: Any) -> None:
    if _isNode(kind):
        node.SetNodeReferenceID(name, None if value is None else value.GetID())
        node.Modified()
    elif not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
    else:
        node.SetParameter(name, value.name if isinstance(value, enum.Enum) else str(value))


def _bind(wrapped: Any, widget: Any, name: str, kind: type) -> Any:
    """Tie a widget to a parameter; returns what shows the parameter."""

    def change(value: Any) -> None:
        if not wrapped._writing:
            setattr(wrapped, name, value)

    if _isNode(kind):
        widget.currentNodeChanged.connect(change)
        return lambda: widget.setCurrentNode(getattr(wrapped, name))
    if issubclass(kind, enum.Enum):
        values = list(kind)
        widget.clear()
        widget.addItems([value.label() for value in values])
        widget.currentIndexChanged.connect(lambda number: change(values[number]))
        return lambda: widget.setCurrentIndex(values.index(getattr(wrapped, name)))
    if kind is bool:
        widget.toggled.connect(change)
        return lambda: widget.setChecked(getattr(wrapped, name))
    if kind is int:
        widget.valueChanged.connect(change)
        return lambda: widget.setValue(getattr(wrapped, name))
    widget.textChanged.connect(change)
    return lambda: widget.setText(getattr(wrapped, name))


# --- the application ---


class Application:
    """What the module asks of `slicer.app`.

    Attributes:
        isTesting: as in `Slicer --testing`, errors are raised again instead of being shown.
        errors: what would have been shown in error boxes.
        questions: what the user was asked.
        answer: what the user says to questions.
    """

    applicationName = "Slicer"

    def __init__(self) -> None:
        self.isTesting = False
        self.errors: list[str] = []
        self.questions: list[str] = []
        self.answer = True

    def testingEnabled(self) -> bool:
        return self.isTesting

    def processEvents(self) -> None:
        process_events()

    def showError(self, text: str, *_: Any, **__: Any) -> None:
        self.errors.append(text)

    def ask(self, text: str, *_: Any, **__: Any) -> bool:
        self.questions.append(text)
        return self.answer


def process_events() -> None:
    """Let the application live for a moment."""
    QtWidgets.QApplication.processEvents()


def _fromQt(name: str) -> Any:
    """A class of Qt, whichever part it is in."""
    for part in (QtCore, QtGui, QtWidgets):
        if hasattr(part, name):
            return getattr(part, name)
    raise AttributeError(f"Qt has no {name}")


class _FileDialog(QtWidgets.QFileDialog):
    """PythonQt returns the path alone."""

    @staticmethod
    def getSaveFileName(*arguments: Any) -> str:  # type: ignore[override]
        return QtWidgets.QFileDialog.getSaveFileName(*arguments)[0]

    @staticmethod
    def getOpenFileName(*arguments: Any) -> str:  # type: ignore[override]
        return QtWidgets.QFileDialog.getOpenFileName(*arguments)[0]


class _Module:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class _Widget:
    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.layout = parent.layout() if parent is not None else None
        self.moduleName = type(self).__name__.removesuffix("Widget")

    def setup(self) -> None:
        """Nothing here."""

    def resourcePath(self, name: str) -> str:
        return str(MODULE_FOLDER / "Resources" / name)


class _Test(unittest.TestCase):
    def delayDisplay(self, message: str, *_: Any) -> None:
        print(message)


def show_in_views(background: Any = None, fit: bool = False) -> None:
    """`slicer.util.setSliceViewerLayers` as far as the module needs it."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetBackgroundVolumeID(None if background is None else background.GetID())


def install(scene: Any) -> Application:
    """Put the stand-ins in place, and the module's folder on the path.

    Args:
        scene: becomes `slicer.mrmlScene`.
    """
    _ = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    qt = ModuleType("qt")
    vars(qt).update(__getattr__=_fromQt, QFileDialog=_FileDialog)
    base = ModuleType("slicer.ScriptedLoadableModule")
    vars(base).update(ScriptedLoadableModule=_Module, ScriptedLoadableModuleWidget=_Widget,
                      ScriptedLoadableModuleTest=_Test, ScriptedLoadableModuleLogic=object)
    wrapper = ModuleType("slicer.parameterNodeWrapper")
    vars(wrapper).update(parameterNodeWrapper=parameter_node_wrapper)
    sys.modules.update({"qt": qt, "slicer.ScriptedLoadableModule": base, "slicer.parameterNodeWrapper": wrapper})

    application = Application()
    vars(slicer).update(mrmlScene=scene, app=application)
    vars(slicer.util).update(loadUI=load_ui, childWidgetVariables=child_widgets, errorDisplay=application.showError,
                             confirmYesNoDisplay=application.ask, confirmOkCancelDisplay=application.ask,
                             showStatusMessage=lambda *_: None, setSliceViewerLayers=show_in_views)
    if str(MODULE_FOLDER) not in sys.path:
        sys.path.insert(0, str(MODULE_FOLDER))
    return application


def add_slice_views(scene: Any) -> None:
    """Red, green and yellow views with what says what they show, as the application has them."""
    for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
        view = scene.AddNewNodeByClass("vtkMRMLSliceNode", name)
        view.SetLayoutName(name)
        view.SetSingletonTag(name)  # they stay when the scene is closed
        getattr(view, f"SetOrientationTo{orientation}", lambda: None)()
        view.SetDimensions(400, 400, 1)
        composite = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", name)
        composite.SetLayoutName(name)
        composite.SetSingletonTag(name)


def panel_of(widget_class: type) -> Any:
    """A module's widget, set up in a window of its own; `.window` is the window."""
    window = QtWidgets.QWidget()
    QtWidgets.QVBoxLayout(window).setContentsMargins(4, 4, 4, 4)
    widget = widget_class(window)
    widget.window = window
    widget.setup()
    return widget
