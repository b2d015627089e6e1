"""Next comes the image whose answer is expected to be worst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.errors import told_to_clients
from lib.scoring.quality import known_quality
from lib.strategies.least_alike import LeastAlike, free_images


class LowestQuality(Strategy):
    """Chooses by the expected Dice that scoring or batch inference left.

    Args:
        otherwise: chooses while no image has been scored.
    """

    def __init__(self, otherwise: LeastAlike) -> None:
        super().__init__("The image whose answer is probably worst; run scoring or batch inference first")
        self._otherwise = otherwise

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The next image; None if all are labelled."""
        with told_to_clients():
            scored = {one: quality for one in free_images(datastore, request)
                      if (quality := known_quality(datastore, one)) is not None}
            if not scored:
                return self._otherwise(request, datastore)
            worst = min(scored, key=lambda one: scored[one])
            return {"id": worst, "quality": scored[worst]}
