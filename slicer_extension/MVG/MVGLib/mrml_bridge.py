"""Volume nodes as arrays that know where they are, and back.

Nodes come as arguments, so the same code serves 3D Slicer, tests and other programs built on slicer-core: `slicer` is
imported for its C++ classes alone, never for its application.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util import numpy_support

from .geometry import VolumeData

CONFIDENCE_COLOURS = "vtkMRMLColorTableNodeFileViridis.txt"


def matrixArray(matrix: Any) -> np.ndarray:
    """(4, 4) float64 of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def vtkMatrix(array: np.ndarray) -> Any:
    """The vtkMatrix4x4 of a (4, 4) array."""
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(array[row, column]))
    return matrix


def localAffine(volumeNode: Any) -> np.ndarray:
    """(4, 4) voxel index -> RAS mm in the node's own coordinates, parent transforms left out."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return matrixArray(matrix)


def toWorld(node: Any) -> np.ndarray:
    """(4, 4) from a transformable node's own coordinates to the world.

    Raises:
        ValueError: a parent transform is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise ValueError(f"'{node.GetName()}' lies under the transform '{parent.GetName()}', which is not linear: "
                         "harden the transform on it (Data module, right-click on it), or take it out of the transform")
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return matrixArray(matrix)


def worldAffine(volumeNode: Any) -> np.ndarray:
    """(4, 4) voxel index -> RAS mm in the world, linear parent transforms included.

    Raises:
        ValueError: a parent transform is not linear.
    """
    return toWorld(volumeNode) @ localAffine(volumeNode)


def volumeShape(volumeNode: Any) -> tuple[int, int, int]:
    """Numbers of voxels (I, J, K).

    Raises:
        ValueError: the node holds no image.
    """
    image = None if volumeNode is None else volumeNode.GetImageData()
    if image is None or 0 in image.GetDimensions():
        name = "no volume" if volumeNode is None else f"volume '{volumeNode.GetName()}'"
        raise ValueError(f"{name} is chosen that holds voxels: load an image, or choose another volume"
                         if volumeNode is None else f"{name} holds no voxels: load it again, or choose another volume")
    i, j, k = image.GetDimensions()
    return i, j, k


def volumeArray(volumeNode: Any) -> np.ndarray:
    """The node's own voxels, (I, J, K): what is written there changes the node, see `volumeChanged`.

    Raises:
        ValueError: no voxels, or several numbers a voxel (colour, diffusion).
    """
    shape = volumeShape(volumeNode)
    scalars = volumeNode.GetImageData().GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfComponents() != 1:
        count = 0 if scalars is None else scalars.GetNumberOfComponents()
        raise ValueError(f"volume '{volumeNode.GetName()}' has {count} numbers a voxel, one is needed: choose a scalar "
                         "volume, or convert it with the module 'Vector to Scalar Volume'")
    return imageArray(volumeNode.GetImageData(), shape)


def imageArray(image: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The voxels of a vtkImageData as a view (I, J, K)."""
    scalars = image.GetPointData().GetScalars()
    return numpy_support.vtk_to_numpy(scalars).reshape(shape[::-1]).transpose(2, 1, 0)


def volumeChanged(volumeNode: Any) -> None:
    """Tell displays and observers that voxels were written into `volumeArray`."""
    image = volumeNode.GetImageData()
    image.GetPointData().GetScalars().Modified()
    image.Modified()
    volumeNode.Modified()


def volumeData(volumeNode: Any) -> VolumeData:
    """Voxels and place of a volume node.

    Raises:
        ValueError: no voxels, several numbers a voxel, or a transform that is not linear.
    """
    array, affine = volumeArray(volumeNode), worldAffine(volumeNode)
    key = (volumeNode.GetID(), *imageStamp(volumeNode.GetImageData()), affine.tobytes())
    return VolumeData(array, affine, volumeNode.GetName(), key)


def imageStamp(image: Any) -> tuple[int, ...]:
    """Changes whenever the voxels of a vtkImageData do."""
    scalars = image.GetPointData().GetScalars()
    return image.GetMTime(), 0 if scalars is None else scalars.GetMTime()


def vtkImage(array: np.ndarray) -> Any:
    """A vtkImageData with a copy of (I, J, K); its place is the node's affair."""
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape)
    flat = np.ascontiguousarray(array.transpose(2, 1, 0)).reshape(-1)
    flat = flat.view(np.uint8) if flat.dtype == np.bool_ else flat
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(flat, deep=True))
    return image


def setVolumeArray(volumeNode: Any, array: np.ndarray) -> None:
    """Give a node other voxels (I, J, K); its geometry stays."""
    volumeNode.SetAndObserveImageData(vtkImage(array))


def uniqueName(scene: Any, name: str) -> str:
    """The name, with a number behind it if a node of the scene has it already."""
    taken = {scene.GetNthNode(number).GetName() for number in range(scene.GetNumberOfNodes())}
    return unusedName(name, taken)


def unusedName(name: str, taken: set[str] | frozenset[str]) -> str:
    """The name, or the first of `name 2`, `name 3` ... that is not taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name} {number}"
    return found


def addVolumeLike(scene: Any, volumeNode: Any, array: np.ndarray, name: str, *, display: Any = None) -> Any:
    """A new scalar volume on the grid of another, under the same transform.

    Args:
        scene: to add it to.
        volumeNode: whose geometry and transform it gets.
        array: (I, J, K).
        name: made unique.
        display: volume node whose colours, window and level it gets; None: those of `volumeNode`.

    Returns:
        The new vtkMRMLScalarVolumeNode.
    """
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", uniqueName(scene, name))
    placeLike(node, volumeNode)
    setVolumeArray(node, array)
    node.CreateDefaultDisplayNodes()
    shown = (display or volumeNode).GetDisplayNode()
    if shown is not None and node.GetDisplayNode() is not None and not shown.IsA("vtkMRMLLabelMapVolumeDisplayNode"):
        copyDisplay(shown, node.GetDisplayNode())
    return node


def placeLike(node: Any, volumeNode: Any) -> None:
    """Give a volume node the geometry and the transform of another."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())


def copyDisplay(source: Any, target: Any) -> None:
    """Colours, window, level, threshold and interpolation of one scalar display for another."""
    if source.GetColorNodeID():
        target.SetAndObserveColorNodeID(source.GetColorNodeID())
    target.SetAutoWindowLevel(False)
    target.SetWindowLevel(source.GetWindow(), source.GetLevel())
    target.SetAutoThreshold(False)
    target.SetApplyThreshold(source.GetApplyThreshold())
    target.SetThreshold(source.GetLowerThreshold(), source.GetUpperThreshold())
    target.SetInterpolate(source.GetInterpolate())


def addConfidence(scene: Any, volumeNode: Any, percent: np.ndarray, name: str) -> Any:
    """Confidence (I, J, K) in percent as a coloured volume on the grid of another; what is 0 is not shown."""
    node = addVolumeLike(scene, volumeNode, percent, name)
    shown = node.GetDisplayNode()
    if shown is not None:
        if scene.GetNodeByID(CONFIDENCE_COLOURS) is not None:
            shown.SetAndObserveColorNodeID(CONFIDENCE_COLOURS)
        shown.SetAutoWindowLevel(False)
        shown.SetWindowLevelMinMax(0, 100)
        shown.SetThreshold(1, 100)
        shown.SetApplyThreshold(True)
        shown.SetInterpolate(False)
    node.SetAttribute("MVG.Confidence", "1")
    return node


def saveForUndo(scene: Any) -> None:
    """Let the scene's own undo, where it is switched on, come back to what is there now."""
    if scene.GetUndoFlag():
        scene.SaveStateForUndo()


def nodeOf(scene: Any, nodeId: str | None) -> Any:
    """The node with an ID, or None."""
    return scene.GetNodeByID(nodeId) if nodeId else None


def isAlive(scene: Any, node: Any) -> bool:
    """Whether the scene still holds a node."""
    return node is not None and bool(scene.IsNodePresent(node))


def removeWithDisplays(scene: Any, node: Any) -> list[Any]:
    """Remove a node with its display nodes, which nothing would show any more; these, for `addWithDisplays`."""
    displays = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    displays = [one for one in displays if one is not None]
    scene.RemoveNode(node)
    for one in displays:
        scene.RemoveNode(one)
    return displays


def addWithDisplays(scene: Any, node: Any, displays: list[Any]) -> None:
    """Bring back what `removeWithDisplays` removed."""
    for one in displays:
        scene.AddNode(one)
    scene.AddNode(node)
    node.RemoveAllDisplayNodeIDs()
    for one in displays:
        node.AddAndObserveDisplayNodeID(one.GetID())


def transformBetween(source: Any, target: Any) -> tuple[Any, np.ndarray | None]:
    """From one transformable node's own coordinates to another's.

    Returns:
        The vtkGeneralTransform, and its (4, 4) matrix if it is linear.
    """
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source.GetParentTransformNode(),
                                                         target.GetParentTransformNode(), general)
    linear = vtk.vtkTransform()
    if slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general, linear):
        return general, matrixArray(linear.GetMatrix())
    return general, None
