"""How good an answer probably is, without the truth: of every slice, and which slice to label next.

Source of the expected Dice: the Dice between a decision and the probabilities that it was made from, as in soft Dice
losses (Milletari et al. 2016, V-Net, arXiv 1606.04797).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_QUALITY = 0.3
"""An answer expected to be worse than this misleads more than it helps as a prompt."""
REACH = 0.15
"""A labelled slice helps its neighbours up to about this share of the slices around it."""


@dataclass(frozen=True)
class SliceQuality:
    """What is known of the answer to one slice.

    Attributes:
        expected: 0 to 1; of the Dice if something was found, else how sure it is that nothing is there; as the network
            sees it, which is mostly too much.
        area: voxels found.
        dice: to be expected by experience, see `Calibration`; None before that was asked.
    """

    expected: float
    area: int
    dice: float | None = None

    @property
    def expected_dice(self) -> float:
        """By experience, if known."""
        return self.expected if self.dice is None else self.dice


def quality_of(probabilities: npt.NDArray[np.float32], label: npt.NDArray[np.integer]) -> SliceQuality:
    """Quality of a decision (h, w) made from probabilities (h, w, 1 + L)."""
    foreground = 1 - probabilities[..., 0]
    found = label > 0
    area = int(np.count_nonzero(found))
    if not area:
        return SliceQuality(float(1 - foreground.max(initial=0)), 0)
    return SliceQuality(float(2 * foreground[found].sum() / (foreground.sum() + area)), area)


def suggestions(quality: Mapping[int, SliceQuality], solved: Sequence[int], n_slices: int, most: int = 3) -> list[int]:
    """Slices that would help most if they were labelled next, the best first.

    A label helps its own slice completely and the slices around it less with distance; what there is to gain of a slice
    is what is probably wrong in it.

    Args:
        quality: of every slice that was predicted, by its number.
        solved: slices that are labelled already.
        n_slices: of the volume.
        most: how many to name.
    """
    numbers = [number for number in sorted(quality) if quality[number].area and number not in solved]
    reach = max(1.0, REACH * n_slices)
    wrong = {number: (1 - quality[number].expected_dice) * quality[number].area for number in numbers}
    named: list[int] = []
    while numbers and len(named) < most:
        gain = {at: sum(lost * float(np.exp(-abs(at - number) / reach)) for number, lost in wrong.items())
                for at in numbers if at not in named}
        if not gain or max(gain.values()) <= 0:
            break
        best = max(gain, key=lambda at: gain[at])
        named.append(best)
        wrong = {number: lost * (1 - float(np.exp(-abs(best - number) / reach))) for number, lost in wrong.items()}
    return named
