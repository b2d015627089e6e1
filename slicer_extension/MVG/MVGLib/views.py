"""Slice views and the slices of a volume: which slice a view shows, and how to show one."""

from __future__ import annotations

from typing import Any

import numpy as np

from .geometry import PLANES, SlicePosition, corners, planeNormal, planeOfAxis
from .mrml_bridge import matrixArray, volumeShape, worldAffine

MOST_AWAY = 0.5
"""A view shows a slice if it leaves it nowhere by more than this share of the distance between slices."""


def sliceOfView(sliceNode: Any, volumeNode: Any) -> SlicePosition:
    """The slice of a volume that a slice view shows.

    Raises:
        ValueError: the view cuts through the slices, or lies beside the volume; says what to do.
    """
    shape, affine = volumeShape(volumeNode), worldAffine(volumeNode)
    axis = axisOfView(sliceNode, volumeNode)
    view = matrixArray(sliceNode.GetSliceToRAS())
    normal = view[:3, 2] / np.linalg.norm(view[:3, 2])
    middle = affine @ [*((np.array(shape) - 1) / 2), 1]
    step = float(affine[:3, axis] @ normal)
    place = (shape[axis] - 1) / 2 + float((view[:3, 3] - middle[:3]) @ normal) / step
    index = int(np.floor(place + 0.5 + 1e-6))
    if not 0 <= index < shape[axis]:
        raise ValueError(f"the {_viewName(sliceNode)} view shows no slice of volume '{volumeNode.GetName()}': scroll "
                         "until the volume is seen")
    return SlicePosition(axis, index)


def axisOfView(sliceNode: Any, volumeNode: Any) -> int:
    """The voxel axis of a volume that a slice view looks along.

    Raises:
        ValueError: the view is oblique to all slices of the volume; says what to do.
    """
    shape, affine = volumeShape(volumeNode), worldAffine(volumeNode)
    view = matrixArray(sliceNode.GetSliceToRAS())
    normal = view[:3, 2] / np.linalg.norm(view[:3, 2])
    axis = max(range(3), key=lambda one: abs(float(planeNormal(affine, one) @ normal)))
    if _departure(shape, affine, axis, normal) > MOST_AWAY:
        raise ValueError(f"the {_viewName(sliceNode)} view is oblique to volume '{volumeNode.GetName()}', so it shows "
                         "no single slice of it: click 'Rotate to volume plane' in the view's controller (pin, at its "
                         "top left), then try again")
    return axis


def jumpTo(sliceNode: Any, volumeNode: Any, position: SlicePosition) -> None:
    """Show a slice in a view, which is turned into the volume's planes if it has to be.

    Raises:
        ValueError: there is no such slice.
    """
    shape, affine = volumeShape(volumeNode), worldAffine(volumeNode)
    if not 0 <= position.index < shape[position.axis]:
        raise ValueError(f"volume '{volumeNode.GetName()}' has no slice {position.index}: along this axis they are 0 "
                         f"to {shape[position.axis] - 1}")
    if not _looksAlong(sliceNode, volumeNode, position.axis):
        _turn(sliceNode, shape, affine, position.axis)
    ijk = (np.array(shape) - 1) / 2
    ijk[position.axis] = position.index
    # Only the distance along the normal changes: where the user has panned to stays.
    sliceNode.JumpSliceByOffsetting(*(affine @ [*ijk, 1])[:3].tolist())


def viewFor(sliceNodes: list[Any], volumeNode: Any, axis: int) -> Any:
    """The view that looks along an axis of a volume, else the one nearest to it; None without views."""
    if not sliceNodes:
        return None
    normal = planeNormal(worldAffine(volumeNode), axis)
    return max(sliceNodes, key=lambda one: abs(float(matrixArray(one.GetSliceToRAS())[:3, 2] @ normal)))


def _looksAlong(sliceNode: Any, volumeNode: Any, axis: int) -> bool:
    try:
        return axisOfView(sliceNode, volumeNode) == axis
    except ValueError:
        return False


def _departure(shape: tuple[int, int, int], affine: np.ndarray, axis: int, normal: np.ndarray) -> float:
    """How far a plane through the middle of a slice leaves it at most, in slices."""
    ends = list(shape)
    ends[axis] = 1
    points = corners(tuple(ends), affine)
    return float(np.abs((points - points.mean(axis=0)) @ normal).max() / abs(affine[:3, axis] @ normal))


def _turn(sliceNode: Any, shape: tuple[int, int, int], affine: np.ndarray, axis: int) -> None:
    """Lay a view into the slices along an axis, as radiologists see them."""
    normal = planeNormal(affine, axis)
    # As Slicer's own views: x to Left, Left, Posterior; y to Anterior, Superior, Superior; z along the world's axis.
    plane = planeOfAxis(affine, axis)
    normal = normal * (np.sign(normal[PLANES.index(plane)]) or 1)
    up = np.array((0, 1, 0) if plane == "axial" else (0, 0, 1), float)
    up = _unit(up - normal * (up @ normal))
    across = np.array((0, -1, 0) if plane == "sagittal" else (-1, 0, 0), float)
    across = _unit(across - normal * (across @ normal) - up * (across @ up))
    middle = affine @ [*((np.array(shape) - 1) / 2), 1]
    matrix = sliceNode.GetSliceToRAS()
    for column, vector in enumerate((across, up, normal, middle[:3])):
        for row in range(3):
            matrix.SetElement(row, column, float(vector[row]))
    sliceNode.UpdateMatrices()


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _viewName(sliceNode: Any) -> str:
    return str(sliceNode.GetLayoutName() or sliceNode.GetName() or "slice")
