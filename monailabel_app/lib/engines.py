"""The network and its engine, loaded once; examples that were encoded before are not encoded again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mvg_core.backends import Encoded, TorchBackend, load_backend
from mvg_core.engine import EngineConfig, VolumeEngine
from mvg_core.predict import Predictor
from mvg_core.weights import find_weights

MOST_BYTES = 192 * 10**6


class RememberingBackend(TorchBackend):
    """A backend that knows examples by the checksum of what the network sees of them.

    Args:
        backend: whose network is used.
        most_bytes: of encoded examples that are kept.

    Attributes:
        hits: examples that were known.
        misses: examples that had to be encoded.
    """

    def __init__(self, backend: TorchBackend, most_bytes: int = MOST_BYTES) -> None:
        vars(self).update(vars(backend))
        self._most_bytes, self._bytes, self._kept = most_bytes, 0, OrderedDict[bytes, Encoded]()
        self.hits = self.misses = 0

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.float32]) -> Encoded:
        """See `TorchBackend.encode`."""
        digest = hashlib.sha256(str(image.shape).encode())
        for array in (image, label):
            digest.update(np.ascontiguousarray(array, np.float32).data)
        key = digest.digest()
        if key in self._kept:
            self.hits += 1
            self._kept.move_to_end(key)
        else:
            self.misses += 1
            self._kept[key] = super().encode(image, label)
            self._bytes += n_bytes(self._kept[key])
            while len(self._kept) > 1 and self._bytes > self._most_bytes:
                self._bytes -= n_bytes(self._kept.popitem(last=False)[1])
        return self._kept[key]


def n_bytes(encoded: Encoded) -> int:
    """Memory of an encoded example."""
    return sum(tensor.nbytes for tensor in encoded)


class Engines:
    """Loads weights when they are first needed, and again when the file changed.

    Args:
        device: torch device or `auto`.
        threads: most CPU threads; None leaves the choice to PyTorch.
    """

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        self._device, self._threads = device, threads
        self._loaded: tuple[tuple, Predictor] | None = None

    def engine(self, weights: str | Path, config: EngineConfig) -> VolumeEngine:
        """The engine with these weights.

        Raises:
            WeightsError, CheckpointError: see `load_backend`.
        """
        path = find_weights(weights)
        key = str(path), path.stat().st_mtime_ns
        if self._loaded is None or self._loaded[0] != key:
            backend = load_backend(path, backend="torch", device=self._device, threads=self._threads)
            assert isinstance(backend, TorchBackend)  # asked for
            self._loaded = key, Predictor(RememberingBackend(backend))
        return VolumeEngine(self._loaded[1], config)

    def facts(self) -> dict[str, Any]:
        """How many examples were encoded, and how many were known, since the weights were loaded."""
        backend = None if self._loaded is None else self._loaded[1].backend
        if not isinstance(backend, RememberingBackend):
            return {}
        return {"encoded": backend.misses, "reused": backend.hits}
