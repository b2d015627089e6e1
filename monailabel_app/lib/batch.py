"""Batch inference that needs no GPU, and goes on when one image fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.utils.others.generic import remove_file

from lib.errors import as_http


class Batch(BatchInferTask):
    """One image after the other: one inference uses all cores, and MONAI Label's own divides by the number of GPUs."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        """Answer images, and save the answers beside them.

        Args:
            request: `images` (all, labeled, unlabeled, or ids), `label_tag`, `max_batch_size` (0 is all), and options
                of the model.
            datastore: the images.
            infer: answers one.

        Returns:
            For each image what is known about the answer, or `error`.
        """
        ids = sorted(self.get_images(request, datastore))
        most = int(request.get("max_batch_size") or 0)
        options = {key: value for key, value in request.items() if key not in ("images", "max_batch_size", "gpus",
                                                                               "multi_gpu", "max_workers", "device")}
        found: dict[str, Any] = {}
        for one in ids[:most] if most else ids:
            try:
                answer = infer({**options, "image": one, "save_label": True,
                                "label_tag": request.get("label_tag") or DefaultLabelTag.ORIGINAL}, datastore)
            except HTTPException as error:
                found[one] = {"error": error.detail}
                continue
            except Exception as error:
                found[one] = {"error": as_http(error).detail}
                continue
            remove_file(answer.pop("file"))
            found[one] = answer
        return found
