"""The readout of feature maps: fitted to the prompts of an image-to-image task, then applied to the query.

An answer is `sum of w_d x_d` over the D terms of a pixel: K feature maps, the image itself, and 1. The weights minimise
the squared error over the pixels of all prompts, plus `shrinkage |w - prior|^2`. All that has to be kept of a prompt
are two sums, which simply add up over prompts.

Shape letters: B images, K maps, H W pixels, D = K + 2 terms, kinds of task in the order of `PRIOR_OF`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PRIOR_OF = ("denoising", "inpainting", "synthesis")
"""Kinds of task that have a prior of their own."""
N_OWN_TERMS, IMAGE_TERM = 2, -2
"""Terms beside the maps, the last ones: the image, and 1."""
OUTSIDE = 1e-3
"""Weight of a pixel outside the hole, in inpainting: it tells little of what belongs into one."""


@dataclass(frozen=True, eq=False)
class Prior:
    """What is expected of a readout before any prompt is seen.

    Attributes:
        weights: (kinds, D).
        shrinkage: (kinds,) how many squared pixels' worth of evidence it counts.
    """

    weights: npt.NDArray[np.float64]
    shrinkage: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of prompts.

    Attributes:
        products: (D, D) sums of products of terms.
        answers: (D,) sums of products of terms with the answer.
    """

    products: npt.NDArray[np.float64]
    answers: npt.NDArray[np.float64]

    @classmethod
    def of(cls, maps: npt.NDArray[np.float32], image: npt.NDArray[np.float32], label: npt.NDArray[np.float32],
           counts: npt.NDArray[np.floating] | None = None) -> Moments:
        """Of one prompt.

        Args:
            maps: (K, H, W) of the image.
            image: (H, W) in [0, 1].
            label: (H, W) in [0, 1], the answer.
            counts: (H, W) how much each pixel counts; None: all 1.
        """
        terms = _terms(maps, image).astype(np.float64)
        counted = terms if counts is None else terms * counts.reshape(1, -1)
        return cls(counted @ terms.T, counted @ label.reshape(-1).astype(np.float64))

    @classmethod
    def sum(cls, moments: Sequence[Moments]) -> Moments:
        """Of several prompts together."""
        return cls(sum((each.products for each in moments), np.zeros(())),
                   sum((each.answers for each in moments), np.zeros(())))

    def fit(self, prior: Prior, kind: str) -> npt.NDArray[np.float64]:
        """The weights (D,) that explain the prompts best."""
        number = PRIOR_OF.index(kind)
        shrinkage = prior.shrinkage[number]
        return np.linalg.solve(self.products + shrinkage * np.eye(len(self.answers)),
                               self.answers + shrinkage * prior.weights[number])


def read(weights: npt.NDArray[np.float64], maps: npt.NDArray[np.float32], image: npt.NDArray[np.float32]
         ) -> npt.NDArray[np.float32]:
    """The answer (H, W) in [0, 1] for maps (K, H, W) of an image (H, W)."""
    answer = weights.astype(np.float32) @ _terms(maps, image)
    return np.clip(answer, 0, 1).reshape(image.shape)


def _terms(maps: npt.NDArray[np.float32], image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(D, H W)."""
    pixels = np.asarray(image, np.float32).reshape(1, -1)
    return np.concatenate([maps.reshape(len(maps), -1), pixels, np.ones_like(pixels)])
