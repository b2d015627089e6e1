"""Which slices of the references serve which slice of the query: by where they lie, and by what they look like.

Positions alone mislead where volumes show different parts of the body; looks alone confuse places that look alike. Both
together, and neighbours of the query matched to neighbours in the reference, do better than either; how much is in
docs/explanation/registration-prior.md.

Shape letters: N slices of the query, M of a reference, S side of a slice, D numbers that describe a slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mvg_core.recent import Recent

THUMBNAIL = 16
"""Side of the picture that stands for a slice where no network describes it."""
Describe = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class RetrievalConfig:
    """What decides.

    Attributes:
        n_prompts: slices that serve one slice of the query.
        position: how much it costs to lie elsewhere: what the whole length of a volume costs, where to look completely
            unlike costs 1. 0 ignores positions.
        similarity: how much looks count, 0 to 1; 0 ignores them.
        monotone: whether following slices of the query must be matched to following slices of a reference.

    Raises:
        ValueError: a number is out of range, or nothing would decide.
    """

    n_prompts: int = 3
    position: float = 1.0
    similarity: float = 1.0
    monotone: bool = True

    def __post_init__(self) -> None:
        if self.n_prompts < 1:
            raise ValueError(f"n_prompts must be at least 1, got {self.n_prompts}")
        if not (self.position >= 0 and 0 <= self.similarity <= 1) or self.position + self.similarity == 0:
            raise ValueError(f"position must be 0 or more and similarity from 0 to 1, and not both 0; got "
                             f"{self.position} and {self.similarity}")


@dataclass(frozen=True, eq=False)
class DescribedSlices:
    """Slices of one volume, as far as the choice needs them.

    Attributes:
        descriptors: float32 (N, D); compared by cosine.
        positions: (N,) on one scale for the query and all references, for example 0 to 1; None where unknown, as in
            pictures.

    Raises:
        ValueError: there are not as many positions as descriptors, or numbers are not finite.
    """

    descriptors: npt.NDArray[np.float32]
    positions: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        descriptors = np.asarray(self.descriptors, np.float32)
        if descriptors.ndim != 2 or not len(descriptors) or not np.isfinite(descriptors).all():
            raise ValueError(f"descriptors must be finite numbers (N, D) of at least one slice, got shape "
                             f"{descriptors.shape}")
        object.__setattr__(self, "descriptors", descriptors)
        if self.positions is not None:
            positions = np.asarray(self.positions, np.float64)
            if positions.shape != (len(descriptors),) or not np.isfinite(positions).all():
                raise ValueError(f"{len(descriptors)} slices need as many finite positions, got {positions}")
            object.__setattr__(self, "positions", positions)


class Choice(NamedTuple):
    """A reference's slice that serves a slice of the query.

    Attributes:
        reference: number of the reference.
        slice: number among its described slices.
        cost: 0 for the same slice in the same place, more for others.
    """

    reference: int
    slice: int
    cost: float


def choose_slices(query: DescribedSlices, references: Sequence[DescribedSlices], config: RetrievalConfig
                  ) -> list[tuple[Choice, ...]]:
    """The slices that serve each slice of the query.

    Every reference first gives the slice that matches best, the best references coming first; only when all have given
    one does any give a second, a neighbour of its first. So the prompts of a slice differ as subjects do.

    Args:
        query: its slices in their order along the axis.
        references: at least one; slices in the same direction along the axis.
        config: what decides.

    Returns:
        For each slice of the query its choices, the best first; fewer than `n_prompts` if there are no more.

    Raises:
        ValueError: no reference, or descriptors of different kinds.
    """
    if not references:
        raise ValueError("no reference given: there is nothing to choose from")
    costs = [_costs(query, reference, config) for reference in references]
    matches = [_in_order(cost, query, reference) if config.monotone else cost.argmin(axis=1)
               for cost, reference in zip(costs, references, strict=True)]
    return [_best(number, costs, matches, config.n_prompts) for number in range(len(query.descriptors))]


def similarity(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cosine of descriptors (N, D) and (M, D): (N, M), -1 to 1; 0 where one is nothing but zeros."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"descriptors have {first.shape[1]} and {second.shape[1]} numbers: describe all slices in one "
                         "way")
    return _normalised(first) @ _normalised(second).T


def thumbnails(images: npt.NDArray[np.floating], side: int = THUMBNAIL) -> npt.NDArray[np.float32]:
    """Slices as small pictures without their mean brightness.

    Args:
        images: (N, S, S) in [0, 1].
        side: of the pictures; at most S.

    Returns:
        float32 (N, side^2).
    """
    images = np.asarray(images, np.float32)
    side = min(side, images.shape[1])
    edges = np.linspace(0, images.shape[1], side + 1).astype(int)
    small = np.add.reduceat(np.add.reduceat(images, edges[:-1], axis=1), edges[:-1], axis=2)
    small /= np.diff(edges)[:, None] * np.diff(edges)[None]
    flat = small.reshape(len(images), -1)
    return flat - flat.mean(axis=1, keepdims=True)


class Descriptors:
    """Describes slices, and remembers those of recent volumes by their checksum.

    Args:
        describe: (N, S, S) in [0, 1] -> (N, D); for example `Backend.describe`. None makes thumbnails.
        most: volumes remembered.
    """

    def __init__(self, describe: Describe | None = None, most: int = 64) -> None:
        self._describe = describe or thumbnails
        self._recent: Recent[npt.NDArray[np.float32]] = Recent(most)

    def of(self, images: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Descriptors (N, D) of slices (N, S, S); the same array describes the same slices."""
        images = np.ascontiguousarray(images, np.float32)
        key = (images.shape, hashlib.blake2b(images.data, digest_size=16).digest())
        return self._recent.get(key, lambda: self._describe(images))


def _costs(query: DescribedSlices, reference: DescribedSlices, config: RetrievalConfig) -> npt.NDArray[np.float64]:
    """What it costs to serve each slice of the query (N) by each of the reference (M)."""
    costs = np.zeros((len(query.descriptors), len(reference.descriptors)))
    if config.similarity:
        costs += config.similarity * (1 - similarity(query.descriptors, reference.descriptors))
    if config.position and query.positions is not None and reference.positions is not None:
        costs += config.position * np.abs(query.positions[:, None] - reference.positions[None])
    return costs


def _in_order(costs: npt.NDArray[np.float64], query: DescribedSlices, reference: DescribedSlices
              ) -> npt.NDArray[np.intp]:
    """(N,) the cheapest slices of a reference that never step back as the query steps on."""
    backwards = _falls(query) != _falls(reference)
    costs = costs[:, ::-1] if backwards else costs
    total = np.empty_like(costs)
    total[0] = costs[0]
    for number in range(1, len(costs)):
        total[number] = costs[number] + np.minimum.accumulate(total[number - 1])
    match = np.empty(len(costs), np.intp)
    last = costs.shape[1] - 1
    for number in range(len(costs) - 1, -1, -1):
        last = match[number] = int(np.argmin(total[number, : last + 1]))
    return costs.shape[1] - 1 - match if backwards else match


def _falls(slices: DescribedSlices) -> bool:
    positions: Any = slices.positions
    return positions is not None and len(positions) > 1 and positions[-1] < positions[0]


def _best(number: int, costs: Sequence[npt.NDArray[np.float64]], matches: Sequence[npt.NDArray[np.intp]], n: int
          ) -> tuple[Choice, ...]:
    """Choices for one slice: a first of every reference, then a second of every reference, and so on."""
    ranked = []
    for reference, (cost, match) in enumerate(zip(costs, matches, strict=True)):
        # Neighbours of the match, the nearest first; of two equally near the cheaper.
        order = sorted(range(cost.shape[1]), key=lambda at: (abs(at - match[number]), cost[number, at]))
        ranked += [(turn, float(cost[number, at]), reference, at) for turn, at in enumerate(order[:n])]
    return tuple(Choice(reference, at, cost) for _, cost, reference, at in sorted(ranked)[:n])


def _normalised(descriptors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return (descriptors / np.where(length > 0, length, 1)).astype(np.float32)
