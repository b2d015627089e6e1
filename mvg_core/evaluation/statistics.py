"""Means over subjects, and how sure they are: bootstrap over subjects, paired for differences.

All draws are seeded: the same numbers give the same intervals.

Source: percentile bootstrap, Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST_FOR_INTERVAL = 3
"""Of fewer subjects a bootstrap says nothing."""


@dataclass(frozen=True)
class Estimate:
    """A mean over subjects.

    Attributes:
        mean: NaN without any subject.
        low: lower end of the 95 % interval; NaN with fewer than `FEWEST_FOR_INTERVAL` subjects.
        high: upper end.
        n: number of subjects.
        median: over subjects.
        minimum: over subjects.
        maximum: over subjects.
    """

    mean: float
    low: float
    high: float
    n: int
    median: float = math.nan
    minimum: float = math.nan
    maximum: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; what is not defined is None."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def mean_over_subjects(values: Sequence[float] | npt.NDArray[np.floating], seed: int = 0) -> Estimate:
    """Mean with its bootstrap interval; NaN values do not count.

    Args:
        values: one for each subject.
        seed: of the bootstrap.
    """
    known = _known(values)
    if not known.size:
        return Estimate(math.nan, math.nan, math.nan, 0)
    low, high = _interval(len(known), lambda rows: known[rows].mean(axis=1), seed)
    return Estimate(float(known.mean()), low, high, len(known), float(np.median(known)), float(known.min()),
                    float(known.max()))


def paired_difference(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> Estimate:
    """Mean of first - second over the subjects that both have, with its paired bootstrap interval.

    Args:
        first: value of every subject.
        second: value of every subject.
        seed: of the bootstrap.
    """
    both = sorted(first.keys() & second.keys())
    return mean_over_subjects([first[subject] - second[subject] for subject in both], seed)


def rank_correlation(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Estimate:
    """Spearman's correlation of two values of each subject, with its bootstrap interval.

    NaN where it is not defined: fewer than `FEWEST_FOR_INTERVAL` subjects, or one of the two is constant.

    Args:
        first: one for each subject; pairs with NaN do not count.
        second: one for each subject.
        seed: of the bootstrap.
    """
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    n = pairs.shape[1]
    if n < FEWEST_FOR_INTERVAL or np.ptp(pairs, axis=1).min() == 0:
        return Estimate(math.nan, math.nan, math.nan, n)

    low, high = _interval(n, lambda rows: _spearman(*pairs[:, rows]), seed)
    return Estimate(float(_spearman(*pairs)), low, high, n)


def _spearman(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Correlation of ranks along the last axis, of equal ones their mean; NaN where one of both is constant."""
    x, y = (rankdata(values, axis=-1) for values in (first, second))
    x, y = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (x, y))
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return np.divide((x * y).sum(axis=-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def _interval(n: int, statistic: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.floating]], seed: int,
              resamples: int = RESAMPLES) -> tuple[float, float]:
    """Percentile interval of a statistic of subjects, given rows (resamples, n) of subject numbers."""
    if n < FEWEST_FOR_INTERVAL:
        return math.nan, math.nan
    rows = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.nanpercentile(statistic(rows), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _known(values: Sequence[float] | npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _plain(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else round(value, 6)
