"""The answer to a volume, filled slice by slice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mvg_core.engine.fields import Cut
from mvg_core.engine.quality import SliceQuality


@dataclass(eq=False)
class VolumeAnswer:
    """Labels of a volume and how sure they are.

    Attributes:
        label: uint8 (I, J, K).
        confidence: float32 (I, J, K) in [0, 1]: the lead of the label's probability over the second;
            after `Calibration.apply` the probability that the label is right.
        quality: of the slices that were predicted, by number.
        ended: slices at which the structures had ended.
        match: how well the best registered reference lies on the query, 0 to 1; one half where nothing was registered.
        probabilities: float16 (I, J, K, L), without background; None where nobody needs them.
    """

    label: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    quality: dict[int, SliceQuality] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    match: float = 0.5
    probabilities: npt.NDArray[np.float16] | None = None

    @classmethod
    def empty(cls, shape: tuple[int, int, int], kept_labels: int = 0) -> VolumeAnswer:
        """Background everywhere, for certain; with `kept_labels` the probabilities of so many labels are kept."""
        kept = np.zeros((*shape, kept_labels), np.float16) if kept_labels else None
        return cls(np.zeros(shape, np.uint8), np.ones(shape, np.float32), probabilities=kept)

    def copy(self) -> VolumeAnswer:
        """The same once more."""
        kept = None if self.probabilities is None else self.probabilities.copy()
        return VolumeAnswer(self.label.copy(), self.confidence.copy(), dict(self.quality), list(self.ended), self.match,
                            kept)

    def write(self, number: int, cut: Cut, probabilities: npt.NDArray[np.float32], label: npt.NDArray[np.uint8],
              quality: SliceQuality) -> None:
        """Enter the answer to a slice: probabilities (h', w', 1 + L) and label (h', w') of the cut's box.

        Around the box is background, whatever was entered there before.
        """
        parts = [(self.label, label, 0), (self.confidence, lead(probabilities), 1)]
        if self.probabilities is not None:
            parts.append((self.probabilities, probabilities[..., 1:], 0))
        for array, values, around in parts:
            whole = cut.stack.slice_of(array, number)
            if number in self.quality:
                whole[...] = around
            whole[cut.box] = values
        self.quality[number] = quality


def lead(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """By how much the most probable of (..., 1 + L) leads over the second, 0 to 1."""
    if probabilities.shape[-1] == 1:  # nothing but background
        return np.ones(probabilities.shape[:-1], np.float32)
    top = np.partition(probabilities, -2, axis=-1)[..., -2:]
    return np.clip(top[..., 1] - top[..., 0], 0, 1).astype(np.float32)
