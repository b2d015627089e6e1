"""The readout of label maps: fitted to the prompts, then applied to the query.

Of every 4 x 4 pixels the network knows D terms. How much of it a label covers, there and around, are two scores, each a
weighted sum of the terms. The weights minimise the squared error over the pixels of all prompts, plus a ridge; small
structures count more than their few pixels. All that has to be kept of a prompt are sums, which simply add up.

Shape letters: B images, D terms, C = 1 + L classes (background, then the labels), h w = H/4 W/4 pixels, N = h w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

REDUCED = 4
"""Pixels to a side of what has one set of terms."""
SCORES = 2
"""Of every class: how much of a pixel it covers, and how much of the pixels around."""
AROUND = 2
"""Pixels to either side that are around."""
N_PLACE_TERMS = 5
BOUND = 1.5
"""Scores are shares, and never farther than this from a half: beyond all prompts, sums may be anything."""
_LEAST = 1e-3
"""Pixels below which a class was not shown."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """How readouts are fitted; learned with the network.

    Attributes:
        shrinkage: for moments whose weights sum to 1.
        balance: a class of n pixels weighs as much as n to the power of 1 - this, 0 to 1.
    """

    shrinkage: float
    balance: float


@dataclass(frozen=True, eq=False)
class LabelMoments:
    """What is kept of prompts; each is a sum over the pixels of every class by itself.

    Attributes:
        products: (C, D, D) of products of terms.
        answers: (C, D, SCORES C) of products of terms with what was to be scored.
        pixels: (C,) how many.
    """

    products: npt.NDArray[np.float64]
    answers: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.float64]

    @classmethod
    def of(cls, terms: npt.NDArray[np.float32], classes: npt.NDArray[np.integer], n_classes: int) -> LabelMoments:
        """Of one prompt.

        Args:
            terms: (D, h, w).
            classes: (H, W), 0 to C - 1.
            n_classes: C.
        """
        covered = coverage(classes, n_classes)
        flat = terms.reshape(len(terms), -1).astype(np.float64)
        targets = np.stack([covered, around(covered)], axis=1).reshape(-1, flat.shape[1]).astype(np.float64)
        n_terms, n_pixels = len(terms), np.zeros(n_classes)
        products, answers = np.zeros((n_classes, n_terms, n_terms)), np.zeros((n_classes, n_terms, len(targets)))
        for row, share in enumerate(covered.reshape(n_classes, -1)):
            where = np.flatnonzero(share)
            counted = flat[:, where] * share[where]
            products[row], answers[row] = counted @ flat[:, where].T, counted @ targets[:, where].T
            n_pixels[row] = share.sum()
        return cls(products, answers, n_pixels)

    @classmethod
    def sum(cls, moments: Sequence[LabelMoments], weights: Sequence[float] | None = None) -> LabelMoments:
        """Of several prompts together; `weights` say how much each counts."""
        each = [1.0] * len(moments) if weights is None else weights
        return cls(*(sum((weight * getattr(one, name) for one, weight in zip(moments, each, strict=True)), np.zeros(()))
                     for name in ("products", "answers", "pixels")))

    @property
    def shown(self) -> npt.NDArray[np.bool_]:
        """Which classes (C,) any prompt shows."""
        return self.pixels > _LEAST

    def fit(self, ridge: Ridge) -> npt.NDArray[np.float64]:
        """The weights (D, SCORES C) that explain the prompts best."""
        shown = self.shown
        share = np.maximum(self.pixels, _LEAST) / self.pixels.sum()
        counts = np.where(shown, share**-ridge.balance, 0.0)
        counts /= (counts * self.pixels).sum()
        products = np.einsum("c,cde->de", counts, self.products)
        answers = np.einsum("c,cdt->dt", counts, self.answers)
        return np.linalg.solve(products + ridge.shrinkage * np.eye(len(products)), answers)


def scores(weights: npt.NDArray[np.float64], terms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores (C, SCORES, h, w) of terms (D, h, w), within `BOUND` of a half."""
    plain = weights.T.astype(np.float32) @ terms.reshape(len(terms), -1)
    bounded = 0.5 + BOUND * np.tanh((plain - 0.5) / BOUND)
    return bounded.reshape(-1, SCORES, *terms.shape[1:]).astype(np.float32, copy=False)


def highest_others(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """For every row of (R, ...) the highest of all other rows; itself if it is the only one."""
    if len(values) == 1:
        return values
    second, best = np.partition(values, -2, axis=0)[-2:]
    return np.where(values >= best, second, best)


def coverage(classes: npt.NDArray[np.integer], n_classes: int) -> npt.NDArray[np.float32]:
    """How much of every pixel each class covers, (C, h, w), of a map (H, W); sides are multiples of 4."""
    height, width = (side // REDUCED for side in classes.shape)
    blocks = classes.reshape(height, REDUCED, width, REDUCED)
    return np.stack([(blocks == number).mean(axis=(1, 3), dtype=np.float32) for number in range(n_classes)])


def around(covered: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean over (..., h, w) of the pixels up to `AROUND` away; beyond the edge it goes on as at the edge."""
    for axis in (-2, -1):
        sides = [(0, 0)] * covered.ndim
        sides[axis] = (AROUND, AROUND)
        padded = np.pad(covered, sides, mode="edge")
        n, parts = covered.shape[axis], 2 * AROUND + 1
        summed = sum((np.take(padded, range(at, at + n), axis=axis) for at in range(parts)), np.zeros((), np.float32))
        covered = (summed / parts).astype(np.float32)
    return covered
