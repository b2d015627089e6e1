"""How the answer of an image-to-image task is made from prompts: by a readout of feature maps, or painted as colours.

Shape letters: B slices, S side of a slice, K feature maps, D terms of a readout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from mvg_core.backends import Backend, Encoded, MapBackend
from mvg_core.codecs import ImageCodec
from mvg_core.holes import continued
from mvg_core.prompts import Prompt
from mvg_core.readout import OUTSIDE, Moments, Prior, read
from mvg_core.tasks import Task

Images = npt.NDArray[np.float32]
Holes = npt.NDArray[np.bool_]


class ImagePainter(Protocol):
    """Answers slices of an image-to-image task.

    Attributes:
        keeps_pixels: every image is best given with its own pixels, not resampled to what the network was trained with.
        tiled: images of more pixels than `largest` are best given in tiles, not coarser.
        largest: most pixels a side that are answered as a whole.
        n_prompts: it is worth having so many prompts for a slice, whatever the caller finds enough.
    """

    keeps_pixels: bool
    tiled: bool
    largest: int
    n_prompts: int

    def encode(self, prompt: Prompt) -> Any:
        """What is kept of a prompt."""
        ...

    def merge(self, encoded: Sequence[Any]) -> Any:
        """What several prompts say together."""
        ...

    def paint(self, queries: Images, merged: Any, holes: Holes | None = None) -> Images:
        """Answers (B, S, S) in [0, 1] for queries (B, S, S), black where `holes` (B, S, S) is True."""
        ...


def image_painter(backend: Backend, task: Task, readout: bool = True) -> ImagePainter:
    """The better of the two ways that the network has.

    Args:
        backend: runs the network.
        task: image to image.
        readout: False paints in any case.
    """
    prior = prior_of(backend)
    if prior is None or not readout:
        return ColourPainter(backend, task.kind)
    return ReadoutPainter(cast(MapBackend, backend), prior, task.kind)


def prior_of(backend: Backend) -> Prior | None:
    """See `MapBackend.prior`; a backend that never makes feature maps need not have one."""
    return getattr(backend, "prior", None)


class ColourPainter:
    """The query's label is painted as that of a segmentation is, in grey."""

    keeps_pixels = False
    largest = 512
    n_prompts = 1

    def __init__(self, backend: Backend, kind: str) -> None:
        self._backend = backend
        self.tiled = kind != "denoising"  # noise is removed better coarser, see `benchmarks/results/resolution.md`

    def encode(self, prompt: Prompt) -> Encoded:
        """See `Backend.encode`."""
        return self._backend.encode(prompt.image, ImageCodec().encode(prompt.label))

    def merge(self, encoded: Sequence[Encoded]) -> Encoded:
        """See `Backend.merge`."""
        return self._backend.merge(encoded)

    def paint(self, queries: Images, merged: Encoded, holes: Holes | None = None) -> Images:
        """See `ImagePainter`."""
        return ImageCodec().decode(self._backend.paint(queries, merged))


class ReadoutPainter:
    """A readout of feature maps is fitted to the prompts; holes are filled smoothly first.

    What belongs into a hole is seen from afar, and never sharp: it is looked for at the network's native size.

    Args:
        backend: makes the maps.
        prior: of the readout.
        kind: of the task.
    """

    n_prompts = 24

    def __init__(self, backend: MapBackend, prior: Prior, kind: str) -> None:
        self._backend, self._prior, self._kind = backend, prior, kind
        self.keeps_pixels = self.tiled = kind != "inpainting"
        self.largest = 1024 if self.tiled else backend.size

    def encode(self, prompt: Prompt) -> Moments:
        """Two sums over the pixels of a prompt."""
        image, counts = np.asarray(prompt.image, np.float32)[None], None
        hole = None if prompt.hole is None else prompt.hole[None]
        if hole is not None:
            image, counts = continued(image, hole), np.where(hole[0], 1.0, OUTSIDE)
        return Moments.of(self._backend.maps(image, hole)[0], image[0], prompt.label, counts)

    def merge(self, encoded: Sequence[Moments]) -> npt.NDArray[np.float64]:
        """Weights (D,) of the readout."""
        return Moments.sum(encoded).fit(self._prior, self._kind)

    def paint(self, queries: Images, merged: npt.NDArray[np.float64], holes: Holes | None = None) -> Images:
        """See `ImagePainter`."""
        # One by one, for memory: the maps are many times as large as the image.
        return np.stack([self._answer(query[None], merged, None if holes is None else holes[number : number + 1])
                         for number, query in enumerate(queries)])

    def _answer(self, query: Images, weights: npt.NDArray[np.float64], hole: Holes | None) -> Images:
        shown = query if hole is None else continued(query, hole)
        return read(weights, self._backend.maps(shown, hole)[0], shown[0])
