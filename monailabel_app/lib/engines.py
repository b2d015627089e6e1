"""The network and its engine, loaded once; examples that were encoded before are not encoded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mvg_core.backends import load_backend
from mvg_core.engine import EngineConfig, VolumeEngine
from mvg_core.predict import Predictor
from mvg_core.remembering import RememberingBackend
from mvg_core.weights import find_weights

MOST_BYTES = 192 * 10**6


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
            self._loaded = key, Predictor(RememberingBackend(backend, MOST_BYTES))
        return VolumeEngine(self._loaded[1], config)

    def facts(self) -> dict[str, Any]:
        """How many examples were encoded, and how many were known, since the weights were loaded."""
        backend = None if self._loaded is None else self._loaded[1].backend
        if not isinstance(backend, RememberingBackend):
            return {}
        return {"encoded": backend.misses, "reused": backend.hits}
