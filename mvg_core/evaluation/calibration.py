"""Does confidence tell the truth? Voxels in bins of confidence, and the share of them that is right.

The confidence of a prediction here is the lead of the most probable label over the second, 0 to 1, and no probability.
The curve shows whether it may be read as one.

Source: expected calibration error with bins of equal width, Guo et al. 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

N_BINS = 10


@dataclass(frozen=True, eq=False)
class Reliability:
    """Voxels counted by confidence; those of several subjects add up.

    Attributes:
        voxels: (bins,) number of voxels.
        confidence: (bins,) sum of their confidence.
        right: (bins,) how many of them have the true label.
    """

    voxels: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]

    @classmethod
    def of(cls, confidence: npt.NDArray[np.floating], is_right: npt.NDArray[np.bool_]) -> Reliability:
        """Count voxels.

        Args:
            confidence: (...) in [0, 1].
            is_right: (...) whether the label is the true one.

        Raises:
            ValueError: the shapes differ, or a confidence is NaN or outside [0, 1].
        """
        sure, right = np.asarray(confidence, dtype=np.float64).ravel(), np.asarray(is_right).ravel()
        if sure.shape != right.shape:
            raise ValueError(f"{sure.size} confidences came with {right.size} labels: give one each")
        if sure.size and not (sure.min() >= 0 and sure.max() <= 1):  # also refuses NaN
            raise ValueError(f"confidence must lie in [0, 1], got {sure.min():g} to {sure.max():g}")
        place = np.minimum((sure * N_BINS).astype(np.intp), N_BINS - 1)  # 1.0 belongs to the last bin
        sums = [np.bincount(place, weights, N_BINS).astype(np.float64) for weights in (np.ones_like(sure), sure, right)]
        return cls(*sums)

    @classmethod
    def total(cls, parts: Iterable[Reliability]) -> Reliability:
        """All voxels of several subjects."""
        nothing = cls(*(np.zeros(N_BINS) for _ in range(3)))
        return sum(parts, nothing)

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.voxels + other.voxels, self.confidence + other.confidence, self.right + other.right)

    @property
    def expected_error(self) -> float:
        """Expected calibration error: |share right - mean confidence| of the bins, weighted by voxels; NaN of none."""
        n = self.voxels.sum()
        return float(np.abs(self.right - self.confidence).sum() / n) if n else math.nan

    def curve(self) -> list[tuple[float, float, int]]:
        """(mean confidence, share right, voxels) of each bin that holds any."""
        return [(float(self.confidence[k] / n), float(self.right[k] / n), int(n))
                for k, n in enumerate(self.voxels) if n]

    def to_json(self) -> dict[str, Sequence[float]]:
        """Plain numbers."""
        return {"voxels": self.voxels.tolist(), "confidence": self.confidence.tolist(), "right": self.right.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reliability:
        """The inverse of `to_json`."""
        return cls(*(np.array(values[key], dtype=np.float64) for key in ("voxels", "confidence", "right")))
