"""Two made-up patients for trying the module out and for its tests; computed, not downloaded, and of nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

SHAPE = (96, 96, 36)
SPACING_MM = (3.0, 3.0, 5.0)
AIR, BODY = -1000.0, 40.0
ORGANS = {"liver": (110.0, (0.86, 0.40, 0.31)), "left kidney": (180.0, (0.73, 0.40, 0.87)),
          "right kidney": (180.0, (0.35, 0.65, 0.90)), "spine": (420.0, (0.95, 0.84, 0.57))}
"""Name -> intensity, colour."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A made-up patient.

    Attributes:
        image: (I, J, K) int16, like a CT in Hounsfield units.
        masks: name of an organ -> (I, J, K) bool.
        affine: (4, 4), voxel index -> RAS mm.
    """

    image: np.ndarray
    masks: dict[str, np.ndarray]
    affine: np.ndarray


def phantom(number: int = 0, shape: tuple[int, int, int] = SHAPE, noise: float = 15.0) -> Phantom:
    """A made-up patient; other numbers have organs of another size at other places, and another tilt.

    Args:
        number: which patient.
        shape: voxels along left, posterior, superior.
        noise: standard deviation in Hounsfield units.
    """
    random = np.random.default_rng(number)
    vary = random.uniform(-1, 1, 12) if number else np.zeros(12)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, count) for count in shape), indexing="ij")

    def ball(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1

    grown = 1 + 0.08 * vary[0]
    # x grows to the left, so the liver is at negative x.
    liver = ball(-0.30 + 0.05 * vary[1], -0.10 + 0.04 * vary[2], 0.15 + 0.06 * vary[3], 0.40 * grown, 0.42, 0.60)
    left = ball(0.36 + 0.03 * vary[4], 0.26 + 0.04 * vary[5], -0.15 + 0.06 * vary[6], 0.14 * grown, 0.18, 0.45)
    right = ball(-0.36 + 0.03 * vary[7], 0.32 + 0.03 * vary[8], -0.35 + 0.06 * vary[9], 0.14 * grown, 0.16, 0.45)
    spine = (x - 0.02 * vary[10]) ** 2 + (y - 0.45) ** 2 < 0.13**2
    masks = {"liver": liver & ~right & ~spine, "left kidney": left & ~spine, "right kidney": right & ~spine,
             "spine": spine}

    image = np.where((x / 0.88) ** 2 + (y / 0.72) ** 2 < 1, BODY, AIR)
    for name, mask in masks.items():
        image[mask] = ORGANS[name][0]
    image = image + random.normal(0, noise, shape)
    tilt = np.deg2rad(4 * vary[11])
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2]])  # left, posterior, superior
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Phantom(image.round().astype(np.int16), masks, affine)


def addPatient(number: int = 0, labelledSlices: list[int] | None = None) -> tuple[Any, Any]:
    """Put a made-up patient into the scene.

    Args:
        number: which patient.
        labelledSlices: the segments are there on these axial slices only; None: everywhere.

    Returns:
        Its volume node and its segmentation node.
    """
    import slicer

    from .mrml_bridge import setVolumeArray, vtkImage, vtkMatrix

    made, name = phantom(number), f"MVG patient {number + 1}"
    volume: Any = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    volume.SetIJKToRASMatrix(vtkMatrix(made.affine))
    setVolumeArray(volume, made.image)
    volume.CreateDefaultDisplayNodes()
    if volume.GetDisplayNode() is not None:
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevel(400, 60)

    segmentation: Any = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} labels")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for organ, mask in made.masks.items():
        shown = mask
        if labelledSlices is not None:
            shown = np.zeros_like(mask)
            shown[..., labelledSlices] = mask[..., labelledSlices]
        image = logic.CreateOrientedImageDataFromVolumeNode(volume)
        image.GetPointData().SetScalars(vtkImage(shown.astype(np.uint8)).GetPointData().GetScalars())
        segmentId = segmentation.GetSegmentation().AddEmptySegment("", organ, ORGANS[organ][1])
        logic.SetBinaryLabelmapToSegment(image, segmentation, segmentId, logic.MODE_REPLACE)
    return volume, segmentation


def register(iconFolder: str) -> None:
    """Offer both patients in Slicer's Sample Data module."""
    import os

    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MVG",
        sampleName="MVGTwoPatients",
        customDownloader=lambda *_: _addBoth(),
        thumbnailFileName=os.path.join(iconFolder, "MVG.png"),
    )


def _addBoth() -> list[Any]:
    """One patient with a single labelled slice, one with all of it."""
    nodes = [*addPatient(0, [SHAPE[2] // 2]), *addPatient(1)]
    return [node for node in nodes if node.IsA("vtkMRMLScalarVolumeNode")]
