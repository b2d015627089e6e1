"""Denoising, inpainting and synthesis; for Slicer's MVG module and for programs, stock clients show label maps only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType
from mvg_core.predict import Prediction
from mvg_core.tasks import TASK_KINDS, Task
from mvg_core.volume import Volume

from lib.infers.volume_task import VolumeTask
from lib.workbench import Workbench

TASKS = [kind for kind in ("denoising", "inpainting", "synthesis") if kind in TASK_KINDS]


class Image(VolumeTask):
    """Paints an image by example; the answer holds fractions, in the units of the image (synthesis: of the example).

    Args:
        workbench: images, references and network.
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench, InferType.OTHERS, "Denoises, inpaints or synthesises by example; a float image")

    def config(self) -> dict[str, Any]:
        """The options."""
        return {"task": list(TASKS), "reference_pairs": "", **super().config()}

    def solve(self, query: Volume, settings: Mapping[str, Any]) -> tuple[Prediction, dict[str, Any]]:
        """Find references and solve; an uploaded label is the hole that is painted."""
        kind = str(settings["task"])
        if kind not in TASKS:
            raise ValueError(f"task {kind!r} is unknown: use one of {', '.join(TASKS)} (mvg_segment segments)")
        if kind == "inpainting" and not settings.get("label"):
            raise ValueError("inpainting needs a hole: upload as 'label' a label map that is not 0 where the image is "
                             "missing")
        hole = self.bench.volumes.read(settings["label"]) if kind == "inpainting" else None
        found = self.bench.references.pairs(settings, kind)
        prediction = self.engine(settings).solve(query, found.references, Task(kind), plane=str(settings["plane"]),
                                                 hole=hole)
        array = prediction.volume.array
        if self._suffix(settings) == ".png":
            array = np.clip(np.rint(array), 0, np.iinfo(np.uint16).max)
        else:
            array = array.astype(np.float32, copy=False)
        told = prediction.provenance
        return Prediction(prediction.volume.with_array(array), None, told), {
            "task": kind, "references": found.ids, "reference_source": found.source, "label_names": {},
            "plane": told["plane"], "warnings": told["warnings"], "weights": settings["weights"]}

    def _labels(self) -> dict[str, int]:
        return {}

    def _default_suffix(self, name: str) -> str:
        """A format that holds fractions."""
        return ".nrrd" if name.endswith(".nrrd") else ".nii.gz"
