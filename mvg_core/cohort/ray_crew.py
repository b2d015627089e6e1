"""Workers as actors of a Ray cluster, or of a Ray of our own on this machine."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

from mvg_core.cohort.cases import CohortCase, CohortSettings
from mvg_core.cohort.crew import Event

LOCAL = "local"
"""Stands for an address where a Ray of our own is wanted."""
LOOPBACK = "127.0.0.1"
_ONLY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0 Ray listens on the loopback address alone, as it always does on macOS and Windows; on Linux it would take
LOOPBACK for the address that other machines reach it by, whatever is said to `ray.init`."""
_OBJECT_STORE_BYTES = 100_000_000
"""Records and cases travel through it, no volumes."""


def connect(address: str, n_cpus: int) -> bool:
    """Join a Ray cluster, or start Ray here: for this machine alone, without dashboard and usage statistics.

    Args:
        address: `local`, `auto`, HOST:PORT, or ray://HOST:PORT.
        n_cpus: that a Ray of our own may use.

    Returns:
        Whether that was done now; False if this process had joined before.

    Raises:
        RuntimeError: Ray is not installed, or cannot be kept from being reached from other machines.
        ConnectionError: there is no such cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise RuntimeError("--ray needs the package ray: pip install 'mvg-core[ray]' from a checkout or wheel, for "
                           "example `pip install '.[ray]'`")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what will be otherwise in the next version of Ray
        return _start_here(n_cpus) if address == LOCAL else _join(address)


def _start_here(n_cpus: int) -> bool:
    before = os.environ.get(_ONLY_HERE)
    os.environ[_ONLY_HERE] = "0"  # looked at when ray is imported
    try:
        import ray

        if ray.is_initialized():
            return False
        if (found := ray.util.get_node_ip_address()) != LOOPBACK:
            raise RuntimeError(f"Ray was imported before, and would now listen on {found} instead of {LOOPBACK}: set "
                               f"the environment variable {_ONLY_HERE}=0 before Python is started")
        ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, _node_ip_address=LOOPBACK,
                 object_store_memory=_OBJECT_STORE_BYTES, log_to_driver=False, logging_level=logging.ERROR)
    finally:
        os.environ.pop(_ONLY_HERE)
        if before is not None:
            os.environ[_ONLY_HERE] = before
    return True


def _join(address: str) -> bool:
    import ray

    if ray.is_initialized():
        return False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many classes
        raise ConnectionError(f"Ray cluster {address} cannot be joined ({str(error).splitlines()[0]}): start one with "
                              "`ray start --head`, and run on one of its machines") from error
    return True


def disconnect() -> None:
    """Leave the cluster; a Ray of our own ends."""
    import ray

    ray.shutdown()


def resources() -> tuple[int, int, int]:
    """CPUs of the cluster, CPUs of its smallest machine, and GPUs of the cluster."""
    import ray

    machines: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    return sum(cpus), min((n for n in cpus if n), default=1), sum(int(machine.get("GPU", 0)) for machine in machines)


class RayCrew:
    """Actors, each with the network loaded; Ray decides where they live.

    Args:
        settings: of the cohort; its paths must mean the same files on every machine.
        gpus: GPUs of one worker; 0 runs on CPUs.
    """

    def __init__(self, settings: CohortSettings, gpus: int) -> None:
        import ray

        # Ray gives an actor its GPU as the only one it sees.
        self._device = "cuda" if gpus else "cpu"
        self._settings = settings
        self._make: Any = ray.remote(num_cpus=settings.threads, num_gpus=gpus, max_restarts=0)(_Worker)
        self._actors: dict[int, Any] = {}
        self._expected: dict[Any, int] = {}

    def start(self, number: int) -> None:
        """Start a worker."""
        self._actors[number] = actor = self._make.remote(self._settings, number, self._device)
        self._expected[actor.load.remote()] = number

    def give(self, number: int, case: CohortCase, attempt: int) -> None:
        """Give a case to a worker."""
        self._expected[self._actors[number].solve.remote(case, attempt)] = number

    def wait(self) -> list[Event]:
        """Wait until a worker has answered or died."""
        import ray

        answered, _ = ray.wait(list(self._expected), num_returns=1)
        return [self._heard(answer, self._expected.pop(answer)) for answer in answered]

    def close(self) -> None:
        """End all workers."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._expected.clear()

    def _heard(self, answer: Any, number: int) -> Event:
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(answer)
        except RayError as error:
            del self._actors[number]
            return Event("died", number, text=f"lost by Ray ({type(error).__name__})")


class _Worker:
    """Main object of an actor."""

    def __init__(self, settings: CohortSettings, number: int, device: str) -> None:
        self._settings, self._number, self._device = settings, number, device
        self._solver: Any = None

    def load(self) -> Event:
        """Load the network."""
        from mvg_core.cohort.failures import short_reason
        from mvg_core.cohort.solver import CaseSolver

        try:
            self._solver = CaseSolver(self._settings, self._device)
        except Exception as error:
            return Event("unable", self._number, text=short_reason(error))
        return Event("ready", self._number, pid=os.getpid())

    def solve(self, case: CohortCase, attempt: int) -> Event:
        """Solve a case."""
        return Event("solved", self._number, self._solver.solve(case, attempt))
