"""MRML scenes with known contents, for the tests of the Slicer extension below its panel."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportPossiblyUnboundVariable=false
# slicer-core builds its namespace when it is imported, and MVGLib is found by tests/slicer_scenes.py.
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXTENSION = Path(__file__).resolve().parents[1] / "slicer_extension" / "MVG"
if str(EXTENSION) not in sys.path:
    sys.path.insert(0, str(EXTENSION))

try:
    import slicer
    import vtk

    slicer.vtkMRMLSegmentationNode  # noqa: B018  PyPI has another package called slicer
    MISSING = ""
except (ImportError, AttributeError) as error:
    MISSING = f"needs slicer-core ({error}): pip install '.[slicer]'"

FRAMES: Mapping[str, np.ndarray] = {
    "straight": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]], float),
    "flipped": np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]], float),
    "sagittal stack": np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]], float),
    "oblique": np.linalg.qr(np.array([[-0.9, 0.3, 0.2], [-0.25, -0.95, 0.1], [0.2, -0.05, 1.0]]))[0],
}
"""Directions of the voxel axes, in columns."""


def needSlicer() -> None:
    """Skip the whole test file where slicer-core cannot be used."""
    if MISSING:
        pytest.skip(MISSING, allow_module_level=True)


def newScene() -> Any:
    """A scene as the application would have it, as far as segmentations, undo and .mrb need it."""
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    colours = slicer.vtkMRMLColorLogic()
    colours.SetMRMLScene(scene)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    # The logics must live as long as the scene.
    scene.logics = (logic, colours)
    return scene


def frame(name: str, spacing: tuple[float, float, float] = (0.8, 1.1, 3.0),
          origin: tuple[float, float, float] = (12.0, -30.0, 45.0)) -> np.ndarray:
    """(4, 4) affine of one of `FRAMES`."""
    affine = np.eye(4)
    affine[:3, :3] = FRAMES[name] * np.array(spacing)
    affine[:3, 3] = origin
    return affine


def addVolume(scene: Any, array: np.ndarray, affine: np.ndarray, name: str = "CT") -> Any:
    """A scalar volume."""
    from MVGLib.mrml_bridge import setVolumeArray, vtkMatrix

    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetIJKToRASMatrix(vtkMatrix(affine))
    setVolumeArray(node, array)
    node.CreateDefaultDisplayNodes()
    return node


def addSegmentation(scene: Any, volumeNode: Any, masks: Mapping[str, np.ndarray], name: str = "Segmentation",
                    colours: Mapping[str, tuple[float, float, float]] | None = None,
                    terminology: Mapping[str, str] | None = None) -> Any:
    """Segments on the grid of a volume, as the Segment Editor would leave them; a segment's ID is its name."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())  # before the grid, which depends on it
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    for title, mask in masks.items():
        segment = slicer.vtkSegment()
        segment.SetName(title)
        segment.SetColor(*(colours or {}).get(title, (0.9, 0.2, 0.1)))
        if title in (terminology or {}):
            segment.SetTag(segment.GetTerminologyEntryTagName(), (terminology or {})[title])
        node.GetSegmentation().AddSegment(segment, title)
        paint(node, title, volumeNode, mask)
    return node


def paint(segmentationNode: Any, segmentId: str, volumeNode: Any, mask: np.ndarray) -> None:
    """Give a segment other voxels, by Slicer's own logic."""
    image = slicer.vtkSlicerSegmentationsModuleLogic.CreateOrientedImageDataFromVolumeNode(
        volumeNode, volumeNode.GetParentTransformNode())
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    scalars = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    scalars[:] = mask.astype(np.uint8).transpose(2, 1, 0).ravel()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.SetBinaryLabelmapToSegment(image, segmentationNode, segmentId, logic.MODE_REPLACE)


def addTransform(scene: Any, matrix: np.ndarray, name: str = "Transform") -> Any:
    """A linear transform to the world."""
    from MVGLib.mrml_bridge import vtkMatrix

    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(vtkMatrix(matrix))
    return node


def addBending(scene: Any, moved: Sequence[tuple[float, float, float, float]] = (
        (0, 0, 0, 5), (50, 0, 0, 0), (0, 50, 0, 0), (0, 0, 50, 0), (50, 50, 50, 8))) -> Any:
    """A transform that is not linear; `moved`: points x, y, z, and how far each goes up."""
    points = vtk.vtkThinPlateSplineTransform()
    sources, targets = vtk.vtkPoints(), vtk.vtkPoints()
    for x, y, z, up in moved:
        sources.InsertNextPoint(x, y, z)
        targets.InsertNextPoint(x, y, z + up)
    points.SetSourceLandmarks(sources)
    points.SetTargetLandmarks(targets)
    points.SetBasisToR()
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "Bending")
    node.SetAndObserveTransformToParent(points)
    return node


def addView(scene: Any, orientation: str = "Axial", name: str = "Red") -> Any:
    """A slice view."""
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode", name)
    node.SetLayoutName(name)
    node.SetOrientation(orientation)
    return node


def turn(degrees: float, axis: tuple[float, float, float] = (0.3, 0.5, 0.8),
         shift: tuple[float, float, float] = (5.0, -7.0, 11.0)) -> np.ndarray:
    """(4, 4) rotation about an axis, and a shift."""
    transform = vtk.vtkTransform()
    transform.Translate(*shift)
    transform.RotateWXYZ(degrees, *axis)
    from MVGLib.mrml_bridge import matrixArray

    return matrixArray(transform.GetMatrix())


def reopened(scene: Any, folder: Path) -> Any:
    """A scene from its .mrb, as the application saves and reads it."""
    assert scene.WriteToMRB(str(folder / "saved.mrb"), None)
    again, logic = newScene(), slicer.vtkMRMLApplicationLogic()
    logic.SetMRMLScene(again)
    (folder / "unpacked").mkdir()
    assert logic.OpenSlicerDataBundle(str(folder / "saved.mrb"), str(folder / "unpacked"))
    return again


def segmentArray(segmentationNode: Any, segmentId: str, volumeNode: Any) -> np.ndarray:
    """(I, J, K) bool by Slicer's own export, which looks at nothing of ours."""
    scene = volumeNode.GetScene()
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    wanted = vtk.vtkStringArray()
    wanted.InsertNextValue(segmentId)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ExportSegmentsToLabelmapNode(segmentationNode, wanted, labels, volumeNode)
    scalars = labels.GetImageData().GetPointData().GetScalars()
    array = vtk.util.numpy_support.vtk_to_numpy(scalars).reshape(volumeNode.GetImageData().GetDimensions()[::-1])
    found = array.transpose(2, 1, 0) > 0
    colours = labels.GetDisplayNode().GetColorNode() if labels.GetDisplayNode() else None
    scene.RemoveNode(labels)
    if colours is not None:
        scene.RemoveNode(colours)
    return found
