"""What the user chose, kept in the scene by Slicer's parameter node; each is tied to a widget of MVG.ui by its name.

The key of a server is not among them: a scene is a file that is passed on.
"""

import enum

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper


class Choice(enum.Enum):
    """A value that a combo box shows by a text; its name is what is stored."""

    def label(self) -> str:
        """What the combo box shows."""
        return self.value


class Task(Choice):
    """What is to be done; the names are those of the server."""

    segmentation = "Segmentation"
    denoising = "Denoising"
    inpainting = "Inpainting (fill a hole)"
    synthesis = "Synthesis (another contrast or modality)"


class Plane(Choice):
    """Along which slices the volume is solved."""

    automatic = "Automatic (as the references)"
    view = "As the slice view shows"
    axial = "Axial"
    coronal = "Coronal"
    sagittal = "Sagittal"


class Preset(Choice):
    """How hard the engine tries; the names are those of the server."""

    fast = "Fast"
    balanced = "Balanced"
    accurate = "Accurate (slow)"
    plain = "Plain (every slice by itself)"


class Computer(Choice):
    """Where it computes."""

    local = "This computer"
    localTorch = "This computer, with PyTorch (GPU)"
    remote = "A server"


@parameterNodeWrapper
class MVGParameterNode:
    """The choices of the panel; the slices are voxel indices along the plane's axis."""

    queryVolume: vtkMRMLScalarVolumeNode
    task: Task = Task.segmentation
    viewName: str = "Red"
    holeSegmentation: vtkMRMLSegmentationNode
    holeSegmentId: str = ""
    labelSegmentation: vtkMRMLSegmentationNode
    referenceVolume: vtkMRMLScalarVolumeNode
    referenceSegmentation: vtkMRMLSegmentationNode
    referenceTarget: vtkMRMLScalarVolumeNode
    plane: Plane = Plane.automatic
    allSlices: bool = True
    firstSlice: int = 0
    lastSlice: int = 0
    preset: Preset = Preset.fast
    outputSegmentation: vtkMRMLSegmentationNode
    replaceResult: bool = False
    showConfidence: bool = False
    computer: Computer = Computer.local
    serverUrl: str = ""
