"""A server as users have it: another process, reached over HTTP by the client of the Slicer module."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# MVGLib is found by tests/server_process.py.
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY / "slicer_extension" / "MVG") not in sys.path:
    sys.path.insert(0, str(REPOSITORY / "slicer_extension" / "MVG"))

from MVGLib.client import (  # noqa: E402
    CallCancelled,
    Client,
    JobStatus,
    ServerError,
    ServerUnreachable,
    WrongProtocol,
)
from MVGLib.worker import Worker, WorkerError  # noqa: E402

__all__ = ["AFFINE", "CallCancelled", "Client", "ServerError", "ServerUnreachable", "Worker", "WorkerError",
           "WrongProtocol", "new_worker", "subject", "wait_for", "wait_for_job"]

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
AFFINE = np.array([[0.0, -1.5, 0, 40], [1.25, 0, 0.1, -20], [0, 0, 3, 7], [0, 0, 0, 1]])


def new_worker(weights: Path, *options: str, **settings: float) -> Worker:
    """A worker with the tiny network, not yet started."""
    command = [sys.executable, "-m", "mvg_core", "serve", "--worker", "--threads", "1", "--weights", str(weights)]
    return Worker([*command, *options], environment=ENVIRONMENT, **settings)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Look again and again; fails when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.02)


def wait_for_job(one: Client, job: str, seconds: float = 120.0) -> JobStatus:
    """The status of a job when it has ended."""
    wait_for(lambda: one.status(job).isFinished, seconds)
    return one.status(job)


def subject(slices: int = 12, seed: int = 0, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image (40, 36, slices) with a bright block, and its label map."""
    noise = np.random.default_rng(seed).normal(100, 5, (40, 36, slices))
    label = np.zeros((40, 36, slices), np.uint8)
    label[12 + shift : 28 + shift, 10:24, slices // 6 : slices - slices // 6] = 3
    return (noise + 80 * (label > 0)).astype(np.int16), label
