"""Paints and reads single slices of a segmentation by examples, and keeps the examples that come again encoded.

Shape letters: S side of the network's square; L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mvg_core.backends import Backend, Encoded, reader_of
from mvg_core.codecs import LabelCodec, PaletteKind, label_groups, restricted
from mvg_core.label_reader import LabelReading
from mvg_core.label_readout import LabelMoments
from mvg_core.recent import Recent


@dataclass(frozen=True, eq=False)
class Example:
    """A solved slice as the network sees it.

    Attributes:
        image: float32 (S, S) in [0, 1].
        label: integers (S, S).
        key: under which it may be kept encoded; None: it will not come again.
        weight: how much it counts beside others.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.integer]
    key: Hashable | None = None
    weight: float = 1.0


class SlicePainter:
    """Labels of slices by examples.

    Args:
        backend: runs the network.
        labels: that can occur, ascending.
        palette: their colours.
        cached: most examples kept encoded.
        share: of the readout in an answer, 0 to 1; the rest is painted. 0 if the backend has no reader.

    Attributes:
        reading: of the labels; None where nothing is read.
    """

    def __init__(self, backend: Backend, labels: Sequence[int], palette: PaletteKind = "wide", cached: int = 64,
                 share: float = 0.0) -> None:
        self.backend, self.labels = backend, tuple(labels)
        reader = reader_of(backend)
        self.share = 0.0 if reader is None else share
        self.reading = LabelReading(reader, labels) if reader is not None and share else None
        self._moments: Recent[LabelMoments] = Recent(cached)
        self._codecs = [LabelCodec.for_labels(group, palette) for group in label_groups(self.labels)]
        self._encoded: Recent[Encoded] = Recent(cached * max(1, len(self._codecs)))
        self._rows = {label: row for row, label in enumerate(self.labels, start=1)}

    def solve(self, query: npt.NDArray[np.float32], examples: Sequence[Example]) -> npt.NDArray[np.float32]:
        """Probabilities of background and of every label, (S, S, 1 + L), painted and read.

        Args:
            query: (S, S) in [0, 1].
            examples: at least one.
        """
        return self.mixed(lambda: self.paint(query, examples), lambda: self.read(query, examples))

    def mixed(self, paint: Callable[[], npt.NDArray[np.float32]], read: Callable[[], npt.NDArray[np.float32]],
              share: float | None = None) -> npt.NDArray[np.float32]:
        """What is painted and what is read, by their shares; what has none is not made."""
        share = self.share if share is None else share
        if share == 0:
            return paint()
        if share == 1:
            return read()
        return ((1 - share) * paint() + share * read()).astype(np.float32)

    def read(self, query: npt.NDArray[np.float32], examples: Sequence[Example]) -> npt.NDArray[np.float32]:
        """The same as `solve`, read only."""
        assert self.reading is not None  # nothing has a share of what cannot be
        moments = [self.moments_of(example) for example in examples]
        merged = LabelMoments.sum(moments, [example.weight for example in examples])
        return self.reading.read(query[None], merged)[0]

    def paint(self, query: npt.NDArray[np.float32], examples: Sequence[Example]) -> npt.NDArray[np.float32]:
        """The same as `solve`, painted only; 0 for labels that no example shows."""
        result = np.zeros((*query.shape, 1 + len(self.labels)), np.float32)
        result[..., 0] = 1
        shown = [set(np.unique(example.label).tolist()) for example in examples]
        for number, codec in enumerate(self._codecs):
            known = restricted(codec, set().union(*shown))
            if known is None:
                continue
            encoded = [self._encode(example, codec, number) for example in examples]
            merged = self.backend.merge(encoded, [example.weight for example in examples])
            probabilities = known.probabilities(self.backend.paint(query[None], merged)[0])
            result[..., 0] = np.minimum(result[..., 0], probabilities[..., 0])
            result[..., [self._rows[label] for label in known.labels]] = probabilities[..., 1:]
        return result / result.sum(axis=-1, keepdims=True) if len(self._codecs) > 1 else result

    def decide(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """The most probable label (...) of probabilities (..., 1 + L)."""
        return np.array([0, *self.labels], np.uint8)[probabilities.argmax(axis=-1)]

    def one_hot(self, label: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Probabilities (..., 1 + L) that are sure of a label map (...)."""
        return (label[..., None] == np.array([0, *self.labels])).astype(np.float32)

    def moments_of(self, example: Example) -> LabelMoments:
        """What is kept of an example to read by it."""
        assert self.reading is not None
        reading = self.reading

        def make() -> LabelMoments:
            return reading.encode(example.image, example.label)

        return make() if example.key is None else self._moments.get(example.key, make)

    def _encode(self, example: Example, codec: LabelCodec, number: int) -> Encoded:
        def make() -> Encoded:
            label = np.where(np.isin(example.label, codec.labels), example.label, 0)
            return self.backend.encode(example.image, codec.encode(label))

        return make() if example.key is None else self._encoded.get((example.key, number), make)

