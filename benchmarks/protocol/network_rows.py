"""Our network: alone, chained from slice to slice, and with everything that the volume engine adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.protocol.questions import VOLUMES, Question
from benchmarks.protocol.rows import NETWORK, Row
from mvg_core.backends import together
from mvg_core.engine import EngineConfig, VolumeEngine
from mvg_core.predict import Prediction, Predictor
from mvg_core.reader_backends import reader_beside
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Volume
from mvg_core.weights import file_sha256, find_weights

WEIGHTS = "mvg_compact"


class EngineSolver:
    """The engine with a configuration."""

    def __init__(self, config: EngineConfig) -> None:
        self._engine = VolumeEngine(_predictor(), config)

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        return self._engine.solve(query, references, task, plane=plane, hole=hole)


class AloneSolver:
    """The network on every slice by itself."""

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        return _predictor().predict_volume(query, references, task, plane=plane, hole=hole)


def network_rows() -> list[Row]:
    """The rows of the tables, then those that are only compared with them (table C)."""
    balanced = EngineConfig.preset("balanced")

    def engine(name: str, title: str, config: EngineConfig, suits: Callable[[Question], bool]) -> Row:
        return Row(name, title, suits, lambda _: EngineSolver(config), NETWORK,
                   lambda _: {"weights": weights_sha256(), "config": config.to_json()}, is_ours=True)

    def segments(question: Question) -> bool:
        return question.kind == "segmentation"

    def always(_: Question) -> bool:
        return True

    alone = Row("network_alone", "our network alone", always, lambda _: AloneSolver(), NETWORK,
                lambda _: {"weights": weights_sha256()}, is_ours=True)
    fast = EngineConfig.preset("fast", prior="off")
    return [alone, engine("network_chained", "our network, chained, without registration", fast, segments),
            engine("engine_balanced", "our full engine (balanced)", balanced, always),
            engine("engine_no_prior", "balanced without registration prior",
                   EngineConfig.preset("balanced", prior="off"), lambda question: question.data in VOLUMES),
            engine("engine_no_chaining", "balanced without chaining",
                   EngineConfig.preset("balanced", memory=0), lambda question: bool(question.asked.get("one_slice"))),
            *(engine(f"engine_{n}_prompts", f"balanced without any registration, {n} prompts a slice",
                     EngineConfig.preset("balanced", prior="off", locate=False, n_prompts=n),
                     lambda question: question.name in COUNTED) for n in N_PROMPTS)]


N_PROMPTS = (1, 2, 4, 8)
COUNTED = ("heart_acdc_volume_k8", "hippocampus_t1_volume_k8")
"""Questions on which the number of prompts is tried."""
COMPARED_ONLY = ("engine_no_prior", "engine_no_chaining", *(f"engine_{n}_prompts" for n in N_PROMPTS))
"""Rows of table C."""


@lru_cache(maxsize=1)
def weights_sha256() -> str:
    """See `backends.weights_sha256`; nothing is loaded for it."""
    path = Path(find_weights(WEIGHTS))
    beside = reader_beside(path)
    return together(file_sha256(path), "" if beside is None else file_sha256(beside))


@lru_cache(maxsize=1)
def _predictor() -> Predictor:
    return Predictor.load(WEIGHTS, threads=1)


def make_engine(preset: str) -> VolumeEngine:
    """With the weights that the rows use."""
    return VolumeEngine(_predictor(), preset)


def described_weights() -> Mapping[str, Any]:
    """For the report."""
    return {"name": WEIGHTS, "sha256": weights_sha256()}
