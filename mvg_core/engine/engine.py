"""The engine: a query volume and solved examples -> an answer in 3D, by the parts that its configuration names."""

from __future__ import annotations

import copy
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mvg_core import __version__
from mvg_core.backends import BackendChoice, reader_sha256, weights_sha256
from mvg_core.engine.answer import VolumeAnswer
from mvg_core.engine.calibration import Calibration
from mvg_core.engine.config import PRESETS, EngineConfig
from mvg_core.engine.images import solve_images
from mvg_core.engine.segmentation import SegmentationRun
from mvg_core.engine.watch import Cancelled, Watch
from mvg_core.precision import Precision
from mvg_core.predict import Prediction, PredictionWarning, Predictor
from mvg_core.references import Reference
from mvg_core.registration import Alignment, align
from mvg_core.tasks import Task
from mvg_core.tuning import TuningConfig
from mvg_core.volume import Volume


class VolumeEngine:
    """Solves volumes.

    Args:
        predictor: holds the network and its colours.
        config: which parts are used; a name stands for a preset.
        register: finds how a reference lies on the query, as `registration.align` does; who solves a pair more than
            once may keep what was found.
    """

    def __init__(self, predictor: Predictor, config: EngineConfig | str = "balanced",
                 register: Callable[..., Alignment] = align) -> None:
        self.predictor, self.register = predictor, register
        self.config = EngineConfig.preset(config) if isinstance(config, str) else config

    @classmethod
    def load(cls, weights: str | os.PathLike[str] = "mvg_compact", config: EngineConfig | str = "balanced", *,
             backend: BackendChoice = "auto", device: str = "auto", threads: int | None = None,
             precision: Precision = "auto", **settings: Any) -> VolumeEngine:
        """Load weights by name or path; `settings` go to `Predictor`.

        Raises:
            ValueError: no such preset.
            MissingBackendError, WeightsError, CheckpointError: see `load_backend`.
        """
        config = EngineConfig.preset(config) if isinstance(config, str) else config
        return cls(Predictor.load(weights, backend=backend, device=device, threads=threads, precision=precision,
                                  **settings), config)

    def solve(self, query: Volume, references: Reference | Sequence[Reference], task: Task | None = None, *,
              plane: str | int = "auto", hole: Volume | None = None, window: tuple[float, float] | None = None,
              slices: tuple[int, int] | None = None, watch: Watch | None = None) -> Prediction:
        """Answer a volume.

        Args:
            query: what to solve.
            references: see `Predictor.predict_volume`.
            task: see `Predictor.predict_volume`.
            plane: see `Predictor.predict_volume`.
            hole: see `Predictor.predict_volume`.
            window: see `Predictor.predict_volume`.
            slices: see `Predictor.predict_volume`; on the way to them others may have to be solved, unless `memory` is
                0 and `prior` off.
            watch: looks on, and may stop.

        Returns:
            The answer on the query's own grid.

        Raises:
            Cancelled: `watch` stopped it; holds the partial answer.
            GeometryError, IndexError, ValueError: see `Predictor.predict_volume`.
        """
        started = time.perf_counter()
        watch = watch or Watch()
        references = [references] if isinstance(references, Reference) else list(references)
        if not references:
            raise ValueError("no reference given: the network needs at least one solved example")
        task = task or Task.segmentation()
        if task.is_segmentation and hole is not None:
            raise ValueError(f"a hole belongs to inpainting, not to {task.kind}: leave it out")
        if task.is_segmentation and not self.config.is_plain:
            run = SegmentationRun(self.predictor, self.config, query, references, task, plane, window, slices,
                                  self.register)
            return self._segment(query, run, watch, started)
        predictor = copy.copy(self.predictor)
        predictor.tuning = TuningConfig(self.config.tuning) if self.config.tuning else predictor.tuning
        if task.is_segmentation:
            return self._plain(predictor, query, references, task, plane, window, slices, watch)
        return solve_images(predictor, query, references, task, plane=plane, hole=hole, window=window,
                            slices=slices, watch=watch)

    def _plain(self, predictor: Predictor, query: Volume, references: list[Reference], task: Task, plane: str | int,
               window: tuple[float, float] | None, slices: tuple[int, int] | None, watch: Watch) -> Prediction:
        """By the predictor alone, and tidied if asked for."""
        if self.config.n_prompts != PRESETS["plain"].n_prompts:
            predictor.n_prompts = self.config.n_prompts
        watch.check()
        found = predictor.predict_volume(query, references, task, plane=plane, window=window, slices=slices,
                                         progress=watch.check_and_tell)
        engine: dict[str, Any] = {"engine": self.config.to_json()}
        if (self.config.largest_component or self.config.fill_holes) and found.confidence is not None:
            run = SegmentationRun(self.predictor, self.config, query, references, task, plane, window)
            answer = VolumeAnswer(found.volume.array, found.confidence.array)
            run.tidy(answer)
            found, engine["cleanup"] = replace(found, volume=query.with_array(answer.label)), run.cleanup
        return replace(found, provenance={**found.provenance, **engine})

    def _segment(self, query: Volume, run: SegmentationRun, watch: Watch, started: float) -> Prediction:
        for message in run.warnings:
            warnings.warn(message, PredictionWarning, stacklevel=3)
        try:
            answer = run.solve(watch)
        except Cancelled:
            partial = run.partial()
            raise Cancelled(None if partial is None else self._prediction(query, run, partial, started)) from None
        return self._prediction(query, run, answer, started)

    def _prediction(self, query: Volume, run: SegmentationRun, answer: VolumeAnswer, started: float) -> Prediction:
        run.calibrate(answer)
        seconds = time.perf_counter() - started
        painted = max(1, len(answer.quality))
        provenance = {
            "task": "segmentation", **run.described(answer), "seconds": round(seconds, 3),
            "seconds_per_slice": round(seconds / painted, 4), "warnings": run.warnings,
            "engine": self.config.to_json(), "backend": self.predictor.backend.name,
            "checkpoint_sha256": self.predictor.backend.checkpoint_sha256,
            "reader_sha256": reader_sha256(self.predictor.backend),
            "calibration": Calibration.shipped().described(weights_sha256(self.predictor.backend)),
            "versions": {"mvg-core": __version__, "python": platform.python_version(), "numpy": np.__version__}}
        return Prediction(query.with_array(answer.label), query.with_array(answer.confidence), provenance)

