"""From requests to the volume engine and back."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.backends import BackendChoice, reader_sha256
from mvg_core.engine import PRESETS, EngineConfig, VolumeEngine, Watch
from mvg_core.precision import Precision
from mvg_core.predict import Prediction, Predictor
from mvg_core.references import Reference, choose_axis, slice_range
from mvg_core.remembering import RememberingBackend
from mvg_core.server.memo import Registrations
from mvg_core.server.models import EncodeModel, JobModel, PreviewModel, WorkModel
from mvg_core.server.settings import MB
from mvg_core.tasks import TASK_KINDS, Task
from mvg_core.volume import Volume

_KEPT_PROMPTS = 512 * MB
_MOST = {"size": 1024, "memory": 64, "n_prompts": 64, "passes": 8, "ensemble": 16, "tuning": 1000}
"""What a request may ask of the parts of the engine: nobody needs more, and the machine is shared."""
Work = WorkModel | EncodeModel


@dataclass(frozen=True, eq=False)
class Problem:
    """A request as the engine takes it.

    Attributes:
        query: the query.
        references: at least one.
        task: what to do.
        axis: index axis of the query along which slices are taken.
        hole: of the query; inpainting only.
        window: intensities shown as black and white.
        config: parts of the engine.
        identities: of the images, by the `id` of their array.
    """

    query: Volume
    references: tuple[Reference, ...]
    task: Task
    axis: int
    hole: Volume | None
    window: tuple[float, float] | None
    config: EngineConfig
    identities: dict[int, str]


@dataclass(frozen=True, eq=False)
class SliceAnswer:
    """The answer to one slice, as thin volumes.

    Attributes:
        number: of the slice.
        axis: index axis along which it is counted.
        answer: labels or intensities.
        confidence: u1, 255 is certain; None for image-to-image tasks.
        warnings: about the input.
        seconds: it took.
    """

    number: int
    axis: int
    answer: Volume
    confidence: npt.NDArray[np.uint8] | None
    warnings: list[str]
    seconds: float


class Solver:
    """Holds the network, and what is worth keeping between requests. For one thread at a time.

    Args:
        predictor: holds the network.
        weights: their name, for people.
    """

    def __init__(self, predictor: Predictor, weights: str = "") -> None:
        self._predictor, self.weights = copy.copy(predictor), weights
        self._predictor.backend = RememberingBackend(predictor.backend, _KEPT_PROMPTS)
        self._registrations = Registrations()

    @classmethod
    def load(cls, weights: str, *, backend: BackendChoice = "auto", device: str = "auto", threads: int | None = None,
             precision: Precision = "auto") -> Solver:
        """Load weights by name or path.

        Raises:
            MissingBackendError, WeightsError, CheckpointError: see `load_backend`.
        """
        return cls(Predictor.load(weights, backend=backend, device=device, threads=threads, precision=precision),
                   weights)

    def described(self) -> dict[str, Any]:
        """What it can do, for `capabilities`."""
        backend = self._predictor.backend
        card = backend.card
        return {"tasks": list(TASK_KINDS), "presets": {name: config.to_json() for name, config in PRESETS.items()},
                "backend": backend.name, "device": str(getattr(backend, "device", "cpu")),
                "precision": getattr(backend, "precision", "fp32"),
                "weights": {"name": self.weights, "sha256": backend.checkpoint_sha256,
                            "reader_sha256": reader_sha256(backend), "size": backend.size,
                            "licence": card.get("licence", card.get("license"))}}

    def problem(self, work: Work, volumes: Mapping[str, Volume]) -> Problem:
        """What a request asks for; nothing is computed.

        Args:
            work: the request.
            volumes: every volume it names.

        Raises:
            GeometryError, IndexError, ValueError: it cannot be done; says what to do.
        """
        task = Task(work.task, {int(number): name for number, name in work.labels.items()})
        config = EngineConfig.named_values(work.preset, [f"{part}={value}" for part, value in work.parts.items()])
        _check_bounds(config)
        references = tuple(self._reference(number, work, volumes) for number in range(len(work.references)))
        query = volumes[work.query] if work.query else references[0].image
        window = None if work.window is None else (work.window[0], work.window[1])
        if window is not None and window[0] >= window[1]:
            raise ValueError(f"window must be from low to high, got {window[0]:g} to {window[1]:g}")
        axis = choose_axis(self._deciding(references, query, task, work.plane), query.geometry, task, work.plane)
        if isinstance(work, JobModel) and work.slices is not None:
            slice_range((work.slices[0], work.slices[1]), query.geometry.shape[axis])
        if isinstance(work, (PreviewModel, EncodeModel)) and work.slice is not None:
            slice_range((work.slice, work.slice), query.geometry.shape[axis])
        identities = {id(volume.array): identity for identity, volume in volumes.items()}
        return Problem(query, references, task, axis, None if work.hole is None else volumes[work.hole], window, config,
                       identities)

    def solve(self, problem: Problem, slices: tuple[int, int] | None, watch: Watch | None = None) -> Prediction:
        """Solve a problem, or some slices of it.

        Raises:
            Cancelled: with what there is.
            GeometryError, IndexError, ValueError: it cannot be done; says what to do.
        """
        engine = VolumeEngine(self._predictor, problem.config, self._registrations.between(problem.identities))
        return engine.solve(problem.query, problem.references, problem.task, plane=problem.axis, hole=problem.hole,
                            window=problem.window, slices=slices, watch=watch)

    def preview(self, problem: Problem, number: int) -> SliceAnswer:
        """Solve one slice at once: on its own, without what takes long.

        Raises:
            GeometryError, IndexError, ValueError: it cannot be done; says what to do.
        """
        started = time.perf_counter()
        quick = replace(problem, config=quickened(problem.config))
        found = self.solve(quick, (number, number))
        at = [slice(None)] * 3
        at[problem.axis] = slice(number, number + 1)
        affine = problem.query.geometry.affine.copy()
        affine[:3, 3] = problem.query.geometry.index_to_world([number if axis == problem.axis else 0
                                                               for axis in range(3)])
        answer = found.volume.array[tuple(at)]
        thin = Volume(answer, type(problem.query.geometry)(answer.shape, affine))
        confidence = None if found.confidence is None else quantised(found.confidence.array[tuple(at)])
        return SliceAnswer(number, problem.axis, thin, confidence, list(found.provenance.get("warnings", [])),
                           time.perf_counter() - started)

    def encode(self, work: Work, problem: Problem) -> list[str]:
        """Find out what previews need; warnings about the input.

        Raises:
            GeometryError, ValueError: a reference cannot be used; says what to do.
        """
        for reference in problem.references:
            reference.checked(problem.task)
        if work.query is None:
            return []
        number = getattr(work, "slice", None)
        if number is None:
            number = problem.query.geometry.shape[problem.axis] // 2
        return self.preview(problem, number).warnings

    def _reference(self, number: int, work: Work, volumes: Mapping[str, Volume]) -> Reference:
        given = work.references[number]
        slices = None if given.slices is None else tuple(given.slices)
        return Reference(volumes[given.image], volumes[given.label], given.name or f"reference {number + 1}", slices,
                         None if given.hole is None else volumes[given.hole])

    @staticmethod
    def _deciding(references: tuple[Reference, ...], query: Volume, task: Task, plane: str | int) -> list[Reference]:
        """The reference that decides on the plane, if one has to: the query's own slices before others."""
        if plane != "auto":
            return []
        return [min(references, key=lambda reference: reference.image is not query).checked(task)]


def _check_bounds(config: EngineConfig) -> None:
    for part, most in _MOST.items():
        if getattr(config, part) > most:
            raise ValueError(f"{part} may be at most {most} here, got {getattr(config, part)}")


def quickened(config: EngineConfig) -> EngineConfig:
    """A configuration for one slice: no neighbours, no tuning, one plane, one pass, no bending."""
    return replace(config, memory=0, tuning=0, planes=1, passes=1, ensemble=1, prior="off", largest_component=False,
                   fill_holes=False)


def quantised(confidence: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Confidence from 0 to 1 as 0 to 255: as much as a picture shows, in a quarter of the memory."""
    return np.rint(confidence * np.float32(255)).astype(np.uint8)
