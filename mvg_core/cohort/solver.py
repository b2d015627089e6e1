"""What a worker does: load the network once, then solve one case after the other by the code of `mvg predict`."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from mvg_core.cohort.cases import CohortCase, CohortSettings
from mvg_core.cohort.failures import private_traceback, short_reason
from mvg_core.cohort.reader import ExampleReader
from mvg_core.cohort.records import Checksums, Record, record_case
from mvg_core.engine import EngineConfig, VolumeEngine
from mvg_core.report import write_text
from mvg_core.weights import WeightsError, file_sha256, find_weights


@dataclass(frozen=True)
class Outcome:
    """What became of a case: its record, or why there is none."""

    case: str
    record: Record | None = None
    error: str = ""


class CaseSolver:
    """Solves cases with one loaded network.

    Args:
        settings: of the cohort.
        device: to run on.

    Raises:
        WeightsError, CheckpointError, MissingBackendError, ValueError: the network cannot be loaded here.
    """

    def __init__(self, settings: CohortSettings, device: str) -> None:
        path = find_weights(settings.weights)
        if (found := file_sha256(path)) != settings.weights_sha256:
            raise WeightsError(f"{path}: holds other weights here (SHA-256 {found[:12]}...) than where the run was "
                               f"started ({settings.weights_sha256[:12]}...): install the same on every machine")
        self._solver = load_solver(settings.weights, settings.preset, device, settings.threads, settings.parts)
        self._settings, self._checksums, self._reader = settings, Checksums(), ExampleReader()

    def solve(self, case: CohortCase, attempt: int) -> Outcome:
        """Solve a case and write its outputs and, last, its record. Whatever goes wrong is part of the outcome."""
        settings, started = self._settings, time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the reports hold those that matter
                self._reader.begin(case)
                reports = case.job(settings).run(lambda: self._solver, read=self._reader)
            record = record_case(case, settings, self._checksums, reports, time.perf_counter() - started, attempt)
            record.write(settings.record_of(case))
        except Exception as error:
            with contextlib.suppress(OSError):  # of a full disk the error itself tells
                write_text(settings.log_of(case), private_traceback(error))
            return Outcome(case.name, error=short_reason(error))
        settings.log_of(case).unlink(missing_ok=True)
        return Outcome(case.name, record)


def load_solver(weights: str, preset: str, device: str, threads: int, parts: Sequence[str] = ()) -> VolumeEngine:
    """What answers volumes, for `PredictionJob.run`.

    Raises:
        ValueError: no such preset or part, or the device cannot be used.
        MissingBackendError, WeightsError, CheckpointError: see `load_backend`.
    """
    return VolumeEngine.load(weights, EngineConfig.named_values(preset, parts), device=device, threads=threads)


def device_of_worker(device: str, number: int) -> str:
    """The device of a worker on this machine: of several GPUs each takes the next, and begins again with the first."""
    if device not in ("auto", "cuda"):
        return device
    try:
        import torch
    except ImportError:  # ONNX Runtime finds its device itself
        return device
    n_gpus = torch.cuda.device_count()
    return f"cuda:{number % n_gpus}" if n_gpus else device
