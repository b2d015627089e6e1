"""What is found out once and needed again: encoded prompts, and how references lie on queries.

Previews of neighbouring slices, and a job after its previews, ask for the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.backends import Backend, Encoded
from mvg_core.recent import Recent
from mvg_core.registration import Alignment, align
from mvg_core.volume import Volume


class RememberingBackend:
    """A backend that keeps what it encoded last.

    Args:
        backend: runs the network.
        most_bytes: of kept prompts.
    """

    def __init__(self, backend: Backend, most_bytes: int) -> None:
        self.backend, self._most = backend, most_bytes
        self.name, self.size = backend.name, backend.size
        self.checkpoint_sha256, self.card = backend.checkpoint_sha256, backend.card
        self._kept: OrderedDict[bytes, tuple[Encoded, int]] = OrderedDict()
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.float32]) -> Encoded:
        """Encode one prompt, or remember it."""
        key = _digest(image, label)
        if key not in self._kept:
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


class Registrations:
    """Remembers how references lie on queries.

    Args:
        most: pairs that are remembered.
    """

    def __init__(self, most: int = 32) -> None:
        self._found: Recent[Alignment] = Recent(most)

    def between(self, identities: dict[int, str]) -> Callable[..., Alignment]:
        """A stand-in for `registration.align`.

        Args:
            identities: of images, by the `id` of their array.
        """

        def register(query: Volume, image: Volume, *, label: Volume, affine_only: bool) -> Alignment:
            key = (identities[id(query.array)], identities[id(image.array)], _digest(label.array), affine_only)
            return self._found.get(key, lambda: align(query, image, label=label, affine_only=affine_only))

        return register


def _digest(*arrays: npt.NDArray) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.digest()
