"""A backend that remembers the prompts it encoded.

Previews of neighbouring slices, the job after them, and the next query of a session show the same examples.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mvg_core.backends import Backend, Encoded, MapBackend
from mvg_core.image_painter import prior_of
from mvg_core.readout import Prior


class RememberingBackend:
    """A backend that keeps what it encoded last, known by the checksum of what the network sees of a prompt.

    Whatever else is asked of it, it passes on, so that it can stand wherever the backend itself could.

    Args:
        backend: runs the network.
        most_bytes: of kept prompts; the latest one is kept in any case.

    Attributes:
        hits: prompts that were known.
        misses: prompts that had to be encoded.
    """

    def __init__(self, backend: Backend, most_bytes: int) -> None:
        self.backend, self._most = backend, most_bytes
        self.name, self.size = backend.name, backend.size
        self.checkpoint_sha256, self.card = backend.checkpoint_sha256, backend.card
        self._kept: OrderedDict[str, tuple[Encoded, int]] = OrderedDict()
        self._bytes = self.hits = self.misses = 0

    def __getattr__(self, name: str) -> Any:
        if name == "backend":  # a copy that is not filled yet: asking it for its backend would never end
            raise AttributeError(name)
        return getattr(self.backend, name)

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.float32]) -> Encoded:
        """Encode one prompt, or remember it."""
        key = checksum(image, label)
        if key in self._kept:
            self.hits += 1
        else:
            self.misses += 1
            encoded = self.backend.encode(image, label)
            size = sum(int(part.nbytes) for part in encoded)
            self._kept[key] = encoded, size
            self._bytes += size
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][1]
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def merge(self, encoded: Sequence[Encoded], weights: Sequence[float] | None = None) -> Encoded:
        """See `Backend.merge`."""
        return self.backend.merge(encoded, weights)

    def paint(self, queries: npt.NDArray[np.float32], encoded: Encoded) -> npt.NDArray[np.float32]:
        """See `Backend.paint`."""
        return self.backend.paint(queries, encoded)

    @property
    def prior(self) -> Prior | None:
        """See `MapBackend.prior`."""
        return prior_of(self.backend)

    def maps(self, images: npt.NDArray[np.float32], holes: npt.NDArray[np.bool_] | None = None
             ) -> npt.NDArray[np.float32]:
        """See `MapBackend.maps`."""
        return cast(MapBackend, self.backend).maps(images, holes)


def checksum(*arrays: npt.NDArray) -> str:
    """SHA-256 of arrays: of their values, shapes and types."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
