"""Which registrations to believe, where several references were registered to one query: those that agree.

A registration that missed the place is alone with its answer. Those that agree say where to look, and the others are
given a second chance there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mvg_core.references import Reference, labels_in
from mvg_core.registration import Alignment, align
from mvg_core.registration.grids import Box, part_of
from mvg_core.volume import Geometry, Volume

FEWEST = 3
"""Of two that disagree, nobody can say which is right."""
DOUBTFUL = 0.8
"""A registration that agrees with the others less than this share of the best one is tried again where they agree."""
OUTLIER = 0.5
"""One that still agrees less than this is left out."""
MARGIN_MM = 25.0
"""Around what the others agree on, where it is tried again."""
_VOXELS = 48
"""Voxels a side of the grid on which agreement is measured."""


@dataclass(frozen=True)
class Believed:
    """An alignment, and how far others agree with it.

    Attributes:
        alignment: of the reference on the query.
        agreement: mean Dice of its structures with those of the others, as a share of the best one's, 0 to 1; 1 where
            there is nobody to ask.
        missed: what is read of the query lies elsewhere.
    """

    alignment: Alignment
    agreement: float = 1.0
    missed: bool = False


def believed(query: Volume, references: Sequence[Reference], alignments: Sequence[Alignment], *, affine_only: bool
             ) -> list[Believed]:
    """How far to believe each alignment; outliers are registered again where the others agree.

    Args:
        query: the image.
        references: what was registered.
        alignments: of each.
        affine_only: see `align`.
    """
    if len(alignments) < FEWEST:
        return [Believed(alignment) for alignment in alignments]
    found = list(alignments)
    shares = _agreements(query.geometry, references, found)
    outliers = [number for number, share in enumerate(shares) if share < DOUBTFUL]
    box = _common_box(query.geometry, references, found, shares)
    if outliers and box is not None:
        part = Volume(query.array[box], part_of(query.geometry, box))
        for number in outliers:
            again = _again(part, references[number], affine_only)
            found[number] = found[number] if again is None else replace(again, query=query.geometry)
        shares = _agreements(query.geometry, references, found)
    return [Believed(alignment, share) for alignment, share in zip(found, shares, strict=True)]


def _again(part: Volume, reference: Reference, affine_only: bool) -> Alignment | None:
    if part.array.min() == part.array.max():
        return None
    return align(part, reference.image, label=reference.label, affine_only=affine_only)


def _agreements(query: Geometry, references: Sequence[Reference], alignments: Sequence[Alignment]) -> list[float]:
    """Mean Dice of each with the others that show the same labels, as a share of the best; 1 without such others."""
    grid = coarse_grid(query)
    labels = [labels_in(reference.label.array) for reference in references]
    maps = [alignment.label(reference.label, grid).array for reference, alignment in
            zip(references, alignments, strict=True)]
    dice: list[list[float]] = [[] for _ in maps]
    for one, other in itertools.combinations(range(len(maps)), 2):
        shared = sorted(labels[one] & labels[other])
        if shared:  # what only one of them shows says nothing about the other
            masks = [np.isin(maps[number], shared) for number in (one, other)]
            both = 2 * np.count_nonzero(masks[0] & masks[1]) / max(1, sum(np.count_nonzero(mask) for mask in masks))
            dice[one].append(both)
            dice[other].append(both)
    means = [float(np.mean(mine)) if mine else None for mine in dice]
    best = max((mean for mean in means if mean is not None), default=0.0)
    return [1.0 if mean is None or best == 0 else mean / best for mean in means]


def _mask(reference: Reference, alignment: Alignment, grid: Geometry) -> npt.NDArray[np.bool_]:
    structures = reference.label.with_array((reference.label.array > 0).astype(np.uint8))
    return alignment.label(structures, grid).array > 0


def _common_box(query: Geometry, references: Sequence[Reference], alignments: Sequence[Alignment],
                shares: Sequence[float]) -> Box | None:
    """Where most of those that agree expect the structures, with a margin; a box on the query's grid."""
    grid = coarse_grid(query)
    kept = [number for number, share in enumerate(shares) if share >= DOUBTFUL]
    votes = np.sum([_mask(references[number], alignments[number], grid) for number in kept], axis=0)
    marked = np.argwhere(votes * 2 > len(kept))
    if not marked.size:
        return None
    corners = grid.index_to_world(np.array([marked.min(axis=0) - 0.5, marked.max(axis=0) + 0.5]))
    index = query.world_to_index(corners)  # both grids have the same axes
    margin = MARGIN_MM / np.array(query.spacing_mm)
    low = np.maximum(np.floor(index.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(index.max(axis=0) + margin) + 1, query.shape).astype(int)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def coarse_grid(query: Geometry) -> Geometry:
    """A query's grid with fewer voxels, on which regions are compared."""
    shape = [min(n, _VOXELS) for n in query.shape]
    factors = np.array(query.shape) / shape
    affine = query.affine.copy()
    affine[:3, :3] = query.affine[:3, :3] * factors
    affine[:3, 3] = query.index_to_world((factors - 1) / 2)
    return Geometry((shape[0], shape[1], shape[2]), affine)
