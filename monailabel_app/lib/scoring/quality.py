"""The Dice that is to be expected of an answer, without a truth to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.errors import told_to_clients
from lib.infers.volume_task import VolumeTask
from lib.workbench import Workbench

QUALITY = "mvg_quality"
"""Key in the information about an image."""


class ExpectedQuality(ScoringMethod):
    """Answers unlabelled images, and keeps what Dice is to be expected.

    Args:
        workbench: images, references and network.
        segment: answers an image.
        remove: removes the file of an answer.
    """

    def __init__(self, workbench: Workbench, segment: VolumeTask, remove: Callable[[str], None]) -> None:
        super().__init__("Expected Dice of every unlabelled image; the strategy lowest_quality goes by it")
        self._bench, self._segment, self._remove = workbench, segment, remove

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score.

        Args:
            request: `max_images` (0 is all), and options of mvg_segment.
            datastore: the images.
        """
        with told_to_clients():
            waiting = sorted(datastore.get_unlabeled_images())
            if request.get("max_images"):
                waiting = waiting[: int(request["max_images"])]
            scores: dict[str, float | None] = {}
            failed: dict[str, str] = {}
            options = {key: value for key, value in request.items() if key in self._segment.config()}
            for one in waiting:
                try:
                    path, facts = self._segment({**options, "image": datastore.get_image_uri(one)})
                except HTTPException as error:  # the others may go well
                    failed[one] = str(error.detail)
                    continue
                self._remove(path)
                scores[one] = facts["quality"]
                datastore.update_image_info(one, {QUALITY: {
                    "expected_dice": facts["quality"], "references": facts["references"],
                    "references_digest": facts["references_digest"]}})
        return {"scored": scores, "failed": failed}


def known_quality(datastore: Datastore, image_id: str) -> float | None:
    """The expected Dice of an image's answer, by scoring or by the last batch inference."""
    scored = (datastore.get_image_info(image_id).get(QUALITY) or {}).get("expected_dice")
    if scored is not None:
        return float(scored)
    batch = (datastore.get_label_info(image_id, DefaultLabelTag.ORIGINAL) or {}).get("params") or {}
    quality = batch.get("quality")
    return None if quality is None else float(quality)
