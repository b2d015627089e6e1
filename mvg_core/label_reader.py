"""Reads the labels of slices by solved slices: a readout of the network's terms is fitted to them (`label_readout`).

Shape letters: S side of a slice, B slices, L labels, C = 1 + L classes, D terms, h = S / 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mvg_core.label_readout import REDUCED, LabelMoments, highest_others, scores
from mvg_core.reader_backends import SIDE_MULTIPLE, Reader, Seen


class LabelReading:
    """Labels of slices by examples.

    Args:
        reader: looks at images.
        labels: that can occur, ascending.
    """

    def __init__(self, reader: Reader, labels: Sequence[int]) -> None:
        self._reader, self.labels = reader, tuple(labels)
        self._class_of = np.zeros(256, np.intp)
        self._class_of[list(self.labels)] = np.arange(1, 1 + len(self.labels))

    def look(self, images: npt.NDArray[np.float32]) -> Seen:
        """At slices (B, S, S) in [0, 1]."""
        side, rest = images.shape[-1], -images.shape[-1] % SIDE_MULTIPLE
        seen = self._reader.look(np.pad(images, [(0, 0), (0, rest), (0, rest)]))
        shown = side // REDUCED
        return Seen(seen.terms[..., :shown, :shown], seen.coarse, seen.fine)

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.integer]) -> LabelMoments:
        """What a prompt says: image (S, S) in [0, 1] and label map (S, S); labels not read count as background."""
        return LabelMoments.of(self.look(image[None]).terms[0], self._class_of[label], 1 + len(self.labels))

    def read(self, images: npt.NDArray[np.float32], prompts: LabelMoments) -> npt.NDArray[np.float32]:
        """Probabilities of background and every label (B, S, S, C) of images (B, S, S); 0 where no prompt shows it."""
        return self.read_seen(self.look(images), prompts, images.shape[-1])

    def read_seen(self, seen: Seen, prompts: LabelMoments, side: int) -> npt.NDArray[np.float32]:
        """The same of what is known of slices of this side."""
        shown = np.flatnonzero(prompts.shown)
        found = np.zeros((len(seen.terms), side, side, 1 + len(self.labels)), np.float32)
        if not len(shown):
            found[..., 0] = 1
            return found
        weights = prompts.fit(self._reader.ridge)
        rest = (-side % SIDE_MULTIPLE) // REDUCED
        for number, terms in enumerate(seen.terms):
            values = scores(weights, terms)[shown]
            others = highest_others(values)
            sides = [(0, 0), (0, 0), (0, rest), (0, rest)]
            logits = self._reader.outlines(np.pad(values, sides, mode="edge"), np.pad(others, sides, mode="edge"), seen,
                                           number)[:, :side, :side]
            likely = np.exp(logits - logits.max(axis=0))
            found[number][..., shown] = np.moveaxis(likely / likely.sum(axis=0), 0, -1)
        return found
