"""MVG.ui and the code that uses it fit together; what can be seen without loading Slicer."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported; scripts/ and the extension are put on the path below.
from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[1] / "slicer_extension" / "MVG"
UI = MODULE / "Resources" / "UI" / "MVG.ui"
ROOT = ElementTree.parse(UI).getroot()
WIDGETS = {widget.get("name", ""): widget.get("class", "") for widget in ROOT.iter("widget")}
SOURCES = [MODULE / "MVG.py", *sorted((MODULE / "MVGLib").glob("*.py")), *sorted((MODULE / "Testing").rglob("*.py"))]

KINDS = {"QCheckBox": "bool", "QSpinBox": "int", "QLineEdit": "str", "qMRMLNodeComboBox": "node", "QComboBox": "enum"}
"""Class of a widget -> kind of parameter that Slicer's parameter nodes can tie to it."""

READ_AS_PROPERTY = {"text", "checked", "value", "currentText", "currentIndex", "count", "enabled", "visible",
                    "collapsed", "currentRow", "plainText", "maximum", "minimum", "toolTip"}
"""Under PythonQt these are values, under Qt's own Python methods: code that calls neither works with both."""


def uses(path: Path) -> Iterator[tuple[str, str, ast.AST, int]]:
    """Every `<...>.ui.NAME.MEMBER` (or `._ui.`, or a local `ui`) in a file: name, member, what holds it, line."""
    tree = ast.parse(path.read_text())
    holders = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _isUi(node.value):
            member = holders.get(node)
            if isinstance(member, ast.Attribute):
                yield node.attr, member.attr, holders[member], node.lineno
            else:
                yield node.attr, "", node, node.lineno


def _isUi(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr in ("ui", "_ui")) or (
        isinstance(node, ast.Name) and node.id == "ui")


def property_of(widget: ElementTree.Element, name: str) -> str | None:
    for each in widget.findall("property"):
        if each.get("name") == name:
            return "".join(each.itertext()).strip()
    return None


def test_every_widget_that_code_uses_is_in_the_ui_file() -> None:
    used = {(path.name, name, line) for path in SOURCES for name, _, _, line in uses(path)}
    assert len(used) > 60
    missing = {(where, name, line) for where, name, line in used if name not in WIDGETS}
    assert not missing


def test_every_widget_that_can_be_pressed_or_chosen_is_used() -> None:
    used = {name for path in SOURCES for name, _, _, _ in uses(path)}
    tied = {widget.get("name") for widget in ROOT.iter("widget") if property_of(widget, "SlicerParameterName")}
    active = {name for name, kind in WIDGETS.items() if kind in {*KINDS, "QPushButton", "QListWidget", "QSlider"}}
    assert not active - used - tied


def test_names_are_unique_and_tell_the_kind() -> None:
    names = [widget.get("name") for widget in ROOT.iter("widget")]
    assert len(names) == len(set(names))
    endings = {"QPushButton": "Button", "QCheckBox": "CheckBox", "QLabel": "Label", "QSpinBox": "SpinBox",
               "qMRMLNodeComboBox": "Selector", "QLineEdit": "LineEdit", "ctkCollapsibleButton": "CollapsibleButton"}
    assert not {name for name, kind in WIDGETS.items() if kind in endings and not name.endswith(endings[kind])}


def test_everything_that_can_be_pressed_or_chosen_has_a_tip() -> None:
    without = {widget.get("name") for widget in ROOT.iter("widget")
               if widget.get("class") in {*KINDS, "QPushButton", "QListWidget", "QSlider"}
               and not property_of(widget, "toolTip")}
    assert not without


def test_the_research_notice_is_shown_and_cannot_be_folded_away() -> None:
    label = next(widget for widget in ROOT.iter("widget") if widget.get("name") == "noticeLabel")
    assert "not a medical device" in (property_of(label, "text") or "")
    sections = [widget for widget in ROOT.iter("widget") if widget.get("class") == "ctkCollapsibleButton"]
    assert len(sections) == 6
    assert not any(one.get("name") == "noticeLabel" for section in sections for one in section.iter("widget"))


def test_every_selector_is_given_the_scene() -> None:
    connected = {one.findtext("receiver") for one in ROOT.iter("connection")
                 if one.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"}
    assert connected == {name for name, kind in WIDGETS.items() if kind.startswith("qMRML") and kind != "qMRMLWidget"}


def test_code_sets_widgets_and_listens_to_them_but_reads_no_property() -> None:
    """A property read as `box.value` is a number in Slicer and a method elsewhere; parameters and signals are safe."""
    wrong = []
    for path in sorted((MODULE / "MVGLib").glob("*.py")):
        for name, member, holder, line in uses(path):
            called = isinstance(holder, ast.Call)
            listened = isinstance(holder, ast.Attribute) and holder.attr == "connect"
            passed = not called and re.search(r"(clicked|activated|triggered)$", member)
            if member and not (called or listened or passed):
                wrong.append(f"{path.name}:{line} {name}.{member}")
            if member in READ_AS_PROPERTY:
                wrong.append(f"{path.name}:{line} {name}.{member}")
    assert not wrong


# --- parameters ---


def parameters() -> dict[str, str]:
    """Name -> annotation, of the class MVGParameterNode."""
    tree = ast.parse((MODULE / "MVGLib" / "parameters.py").read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "MVGParameterNode"]
    return {node.target.id: ast.unparse(node.annotation) for node in found.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def test_parameter_names_in_the_ui_file_are_parameters_of_a_fitting_kind() -> None:
    known = parameters()
    tied = {property_of(widget, "SlicerParameterName"): widget for widget in ROOT.iter("widget")
            if property_of(widget, "SlicerParameterName")}
    for name, widget in tied.items():
        assert name in known, f"{widget.get('name')} is tied to {name}, which is no parameter"
        kind = KINDS[widget.get("class", "")]
        annotation = known[name]
        plain = annotation if annotation in ("bool", "int", "str") else "enum"
        found = "node" if annotation.startswith("vtkMRML") else plain
        assert found == kind, f"{widget.get('name')} cannot show a {annotation}"
        if kind == "node":
            assert property_of(widget, "nodeTypes") == annotation
    # Set by hand: a list of views, and a widget that parameter nodes do not know.
    assert set(known) - set(tied) == {"viewName", "holeSegmentation", "holeSegmentId"}


def test_no_parameter_holds_a_secret() -> None:
    assert not [name for name in parameters() if re.search(r"key|token|password", name, re.IGNORECASE)]


def test_tasks_and_presets_are_those_of_the_library() -> None:
    from mvg_core.engine.config import PRESETS
    from mvg_core.tasks import TASK_KINDS

    tree = ast.parse((MODULE / "MVGLib" / "parameters.py").read_text())
    names = {node.name: [each.targets[0].id for each in node.body if isinstance(each, ast.Assign)
                         and isinstance(each.targets[0], ast.Name)]
             for node in tree.body if isinstance(node, ast.ClassDef)}
    assert set(names["Task"]) == set(TASK_KINDS)
    assert set(names["Preset"]) == set(PRESETS)


# --- loading it ---


def test_it_loads_and_fits_a_module_panel() -> None:
    pytest.importorskip("PySide6")
    pytest.importorskip("slicer_core")
    import sys

    sys.path.insert(0, str(MODULE.parents[1] / "scripts"))
    import slicer_standins
    from PySide6 import QtWidgets

    _ = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    panel = slicer_standins.load_ui(UI)
    children = vars(slicer_standins.child_widgets(panel))
    assert set(WIDGETS) - {"MVG"} <= set(children)
    assert panel.minimumSizeHint().width() <= 480
    for name, kind in WIDGETS.items():
        if name != "MVG":
            assert type(children[name]).__name__ == kind
