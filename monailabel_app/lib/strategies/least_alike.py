"""Next comes the image that is least like those that are labelled."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy
from mvg_core.intensity import IntensityScaling
from mvg_core.volume import Volume
from scipy import ndimage

from lib.dicomweb import DicomwebStudies
from lib.errors import told_to_clients
from lib.workbench import Workbench

THUMBNAIL = 12
"""Voxels a side at which images are compared."""
LEVELS = 16
BUSY_S = 900
"""An image that was given to somebody so recently is not given to somebody else, while there are others."""

FETCHED = 16
"""Images of a DICOMweb server that are compared: each has to be fetched."""


class LeastAlike(Strategy):
    """Chooses what adds most to the labelled images: the image whose nearest of them is farthest.

    Args:
        workbench: images, references and network.
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("The image that is least like the labelled ones")
        self._bench = workbench
        self._known: dict[tuple, npt.NDArray[np.float32]] = {}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The next image; None if all are labelled."""
        with told_to_clients():
            waiting = free_images(datastore, request)
            if not waiting:
                return None
            if isinstance(datastore, DicomwebStudies):
                waiting = datastore.at_hand(waiting, FETCHED)
            labelled = [self._look(one, datastore) for one in datastore.get_labeled_images()]
            looks = {one: self._look(one, datastore) for one in waiting}
            # Without labels, one in the middle: the most typical image serves most of the others.
            others, sign = (labelled, 1.0) if labelled else (list(looks.values()), -1.0)
            best = max(waiting, key=lambda one: sign * _nearest(looks[one], others, farthest=not labelled))
            return {"id": best}

    def _look(self, image_id: str, datastore: Datastore) -> npt.NDArray[np.float32]:
        try:
            path = datastore.get_image_uri(image_id)
        except ValueError:
            path = ""
        key = image_id, path
        if key not in self._known:
            try:
                self._known[key] = look(self._bench.volumes.read(path))
            except ValueError:  # an unreadable image is told about when somebody opens it
                self._known[key] = np.zeros(THUMBNAIL**3 + LEVELS, np.float32)
        return self._known[key]


def look(volume: Volume) -> npt.NDArray[np.float32]:
    """What an image looks like, in few numbers: a thumbnail in its own axes, and how bright its voxels are."""
    step = tuple(slice(None, None, max(1, n // (4 * THUMBNAIL))) for n in volume.array.shape)
    coarse = volume.array[step].astype(np.float32)
    scaled = IntensityScaling.for_volume(coarse).apply(coarse)
    small = ndimage.zoom(scaled, [THUMBNAIL / n for n in scaled.shape], order=1)
    levels = np.histogram(scaled, bins=LEVELS, range=(0, 1))[0] / scaled.size
    return np.concatenate([small.ravel() / np.sqrt(small.size), levels]).astype(np.float32)


def free_images(datastore: Datastore, request: Mapping[str, Any]) -> list[str]:
    """Images without a label, by id; without those that somebody else is working on, if others are left."""
    waiting = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
    me, now = request.get("client_id"), time.time()

    def is_taken(image_id: str) -> bool:
        given = datastore.get_image_info(image_id).get("strategy", {}).values()
        return any(one.get("client_id") != me and now - one.get("ts", 0) < BUSY_S for one in given)

    return [one for one in waiting if not is_taken(one)] or waiting


def _nearest(mine: npt.NDArray[np.float32], others: list[npt.NDArray[np.float32]], *, farthest: bool) -> float:
    distances = [float(np.linalg.norm(mine - other)) for other in others]
    return float(np.mean(distances)) if farthest else min(distances)
