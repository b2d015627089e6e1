"""The module's calls to Slicer and VTK are calls that exist, with arguments that fit: pyright on generated stubs.

Half a minute on a quiet machine.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported; scripts/ and the extension are put on the path below.
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer_core")
pytest.importorskip("PySide6")

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import slicer_stubs  # noqa: E402

MISTAKE = """
import slicer
import vtk

node = slicer.vtkMRMLScalarVolumeNode()
node.SetSpacings(1.0, 1.0, 1.0)
vtk.vtkMatrix4x4().SetElements(0, 0, 1.0)
"""


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright")
def test_calls_to_slicer_and_vtk_exist(tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    assert slicer_stubs.write_stubs(stubs) > 40
    mistake = tmp_path / "mistake.py"
    mistake.write_text(MISTAKE)
    sources = slicer_stubs.sources()
    assert len(sources) > 8
    said = slicer_stubs.check(stubs, [*sources, mistake]).stdout
    errors = [line for line in said.splitlines() if " - error: " in line]
    assert sum("mistake.py" in line for line in errors) == 2, "this test could not fail"
    assert not [line for line in errors if "mistake.py" not in line]
