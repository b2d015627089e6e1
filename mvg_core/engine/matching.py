"""Which slice of a reference serves a slice of the query where no registration says so: by place and by looks."""

from __future__ import annotations

import numpy as np

from mvg_core.engine.fields import Stack
from mvg_core.retrieval import THUMBNAIL, Choice, DescribedSlices, RetrievalConfig, choose_slices, thumbnails
from mvg_core.slices import SlicePlan

BY_PLACE = RetrievalConfig(n_prompts=1, similarity=0)
BY_PLACE_AND_LOOKS = RetrievalConfig(n_prompts=1)


class Matching:
    """Matches the slices of references to those of a query.

    Args:
        query: its slices.
        by_looks: whether they decide too; else the place alone, as a share of the way through the volume.
    """

    def __init__(self, query: Stack, *, by_looks: bool) -> None:
        self._config = BY_PLACE_AND_LOOKS if by_looks else BY_PLACE
        self._described = _described(query, range(query.n_slices), self._config)

    def of(self, reference: Stack, first: int, last: int) -> list[Choice]:
        """For each slice of the query the best of a reference's slices `first` to `last`, and what that costs."""
        numbers = range(first, last + 1)
        found = choose_slices(self._described, [_described(reference, numbers, self._config)], self._config)
        return [choice._replace(slice=first + choice.slice) for (choice,) in found]


def _described(stack: Stack, numbers: range, config: RetrievalConfig) -> DescribedSlices:
    if config.similarity:
        side = 2 * THUMBNAIL
        looks = thumbnails(np.stack([stack.cut(number, stack.whole, side).image for number in numbers]))
    else:
        looks = np.zeros((len(numbers), 1), np.float32)
    places = SlicePlan.for_volume(stack.volume.geometry, stack.axis).relative_positions
    return DescribedSlices(looks, places[list(numbers)])
