"""Requests as MONAI Label's module for 3D Slicer sends them, by the client that comes with that module.

Source: plugins/slicer/MONAILabel/MONAILabel.py of MONAI Label 0.8.5, `getParamsFromConfig`, `onUpdateScribbles`,
`onClickSegmentation`, `onSaveLabel` and `MONAILabelLogic.infer`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume

_CLIENT = Path(sys.prefix) / "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py"


class Slicer:
    """An annotator's Slicer.

    Args:
        url: of the server.
        folder: for temporary files.
    """

    def __init__(self, url: str, folder: Path) -> None:
        spec = importlib.util.spec_from_file_location("slicer_client", _CLIENT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.client = module.MONAILabelClient(url, str(folder), "annotator")
        self.folder = folder

    def options(self, model: str, section: str = "models") -> dict[str, Any]:
        config = self.client.info()[section][model]["config"]
        return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}

    def segment(self, model: str, image: str, **changes: Any) -> tuple[Volume, dict[str, Any]]:
        """The button Run of Auto Segmentation."""
        return self._infer(model, image, {**self.options(model), **changes})

    def update_scribbles(self, model: str, image: str, label: Volume, segments: Sequence[str], selected: str,
                         roi: Sequence[int] = ()) -> tuple[Volume, dict[str, Any]]:
        """The button Update of Scribbles; label numbers count through all segments of the scene."""
        path = self._write(label)
        info = [{"name": name, "id": number} for number, name in enumerate(segments, start=1)]
        params = {**self.options(model), "roi": list(roi), "label_info": info, "selected_label_name": selected}
        return self._infer(model, image, params, path)

    def submit(self, image: str, label: Volume, segments: Sequence[str]) -> dict[str, Any]:
        """The button Submit Label."""
        info = [{"name": name, "idx": number} for number, name in enumerate(segments, start=1)]
        return self.client.save_label(image, str(self._write(label)), params={"label_info": info})

    def _infer(self, model: str, image: str, params: Mapping[str, Any], label: Path | None = None
               ) -> tuple[Volume, dict[str, Any]]:
        params = {**params, "result_extension": ".nrrd", "result_dtype": "uint8"}
        path, told = self.client.infer(model, image, params, None if label is None else str(label))
        return read_volume(path), told

    def _write(self, label: Volume) -> Path:
        path = self.folder / "scribbles.nii.gz"
        write_volume(label.with_array(label.array.astype(np.uint8)), path, overwrite=True)
        return path


def named_segments(answer: Volume, label_names: Mapping[str, int]) -> dict[str, np.ndarray]:
    """How Slicer names what it gets: its logic takes the names in order for the numbers that it finds, ascending.

    Source: `onClickSegmentation` sorts by number; vtkSlicerSegmentationsModuleLogic::ImportLabelmapToSegmentationNode.
    """
    names = [name for name, _ in sorted(label_names.items(), key=lambda item: item[1])]
    found = [int(number) for number in np.unique(answer.array) if number]
    return {name: answer.array == number for name, number in zip(names, found, strict=True)}
