"""Reading that keeps the solved examples, which most cases of a cohort share."""

from __future__ import annotations

import warnings
from pathlib import Path

from mvg_core.cohort.cases import CohortCase
from mvg_core.cohort.records import stamp_of
from mvg_core.job import read_input
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWarning


class ExampleReader:
    """Reads volumes for a `PredictionJob`; examples that the case before had too are in memory already."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Path, int | None], tuple[str, Volume, list[str]]] = {}
        self._examples: frozenset[Path] = frozenset()

    def begin(self, case: CohortCase) -> None:
        """Forget what this case does not need."""
        self._examples = frozenset(path for pair in case.references for path in pair) - {case.query}
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] in self._examples}

    def __call__(self, path: Path, frame: int | None) -> Volume:
        """A volume, see `read_input`; a kept one warns again."""
        if path not in self._examples:
            return read_input(path, frame)
        stamp, kept = stamp_of(path), self._kept.get((path, frame))
        if kept is None or kept[0] != stamp:
            kept = self._kept[path, frame] = (stamp, *_read(path, frame))
        for remark in kept[2]:
            warnings.warn(remark, VolumeWarning, stacklevel=2)
        return kept[1]


def _read(path: Path, frame: int | None) -> tuple[Volume, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VolumeWarning)
        volume = read_input(path, frame)
    return volume, [str(one.message) for one in caught if issubclass(one.category, VolumeWarning)]
