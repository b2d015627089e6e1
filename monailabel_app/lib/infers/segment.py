"""Segmentation of an image by the labels that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType
from mvg_core.predict import Prediction
from mvg_core.tasks import Task
from mvg_core.volume import Volume

from lib.infers.volume_task import VolumeTask, found_labels, quality_of
from lib.references import digest
from lib.workbench import Workbench


class Segment(VolumeTask):
    """Labels an image as its references are labelled.

    Args:
        workbench: images, references and network.
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench, InferType.SEGMENTATION,
                         "Segments as the labels that were submitted show it; better with every label")

    def config(self) -> dict[str, Any]:
        """The options, in the order of use."""
        return {"reference": self.bench.references.choices(), "n_references": 3, "reference_ids": "",
                **super().config(), "any_modality": False}

    def solve(self, query: Volume, settings: Mapping[str, Any]) -> tuple[Prediction, dict[str, Any]]:
        """Find references, solve, and tell how sure it is."""
        found = self.bench.references.find(settings, query)
        own = all(reference.image is query for reference in found.references)
        prediction = self.engine(settings, own=own).solve(query, found.references, Task.segmentation(),
                                                          plane=str(settings["plane"]))
        told = prediction.provenance
        return prediction, {
            "label_names": found_labels(prediction.volume.array, found.names), "references": found.ids,
            "reference_source": found.source, "references_digest": digest(found.references),
            "quality": quality_of(told), "plane": told["plane"],
            "doubtful_slices": told.get("doubtful_slices", []), "suggested_slices": told.get("suggested_slices", []),
            "warnings": [*found.remarks, *told["warnings"]], "weights": settings["weights"],
            "preset": settings["preset"]}
