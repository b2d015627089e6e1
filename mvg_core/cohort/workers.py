"""How many workers there are, and how many threads each of them has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

WORKER_BYTES = 2_000_000_000
"""About what a worker needs: network and libraries 0.5 GB, a CT with its examples and answer."""
MOST_WORKERS = 8
"""By default; more of them mostly wait for the same disk."""
_THREADS_ON_CLUSTER = 2
_MOST_THREADS_ON_CLUSTER = 8


@dataclass(frozen=True)
class Workforce:
    """Workers, and CPU threads of each."""

    workers: int
    threads: int


def workforce_here(n_cases: int, workers: int | None, threads: int | None) -> Workforce:
    """Workers of this machine: by default one for each core and each 2 GB of free memory, 8 at most.

    Args:
        n_cases: to be solved; there are never more workers.
        workers: wanted number.
        threads: of all workers together; None takes the cores that this process may use.
    """
    threads = threads or usable_cores()
    if workers is None:
        memory = free_memory_bytes()
        by_memory = MOST_WORKERS if memory is None else int(memory // WORKER_BYTES)
        workers = max(1, min(threads, by_memory, MOST_WORKERS))
    workers = max(1, min(workers, n_cases))
    return Workforce(workers, max(1, threads // workers))


def workforce_on_cluster(n_cases: int, workers: int | None, threads: int | None, *, cpus: int, cpus_of_smallest: int,
                         gpus: int) -> Workforce:
    """Workers of a cluster: by default one for each GPU, or one for every two CPUs; never more than fit at once.

    Args:
        n_cases: to be solved.
        workers: wanted number.
        threads: of all workers together; None takes all CPUs.
        cpus: of all machines.
        cpus_of_smallest: of the machine with fewest; a worker must fit there.
        gpus: of all machines, one for each worker; 0 if they are not used.
    """
    threads = min(threads or cpus, cpus)
    if workers is None:
        workers = gpus or threads // _THREADS_ON_CLUSTER
    workers = max(1, min(workers, n_cases, gpus or threads))
    each = min(threads // workers, cpus_of_smallest, _MOST_THREADS_ON_CLUSTER)
    return Workforce(workers, max(1, each))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that is available here, within the limit of a container; None where the system does not tell.

    Args:
        root: of the file system that the system's numbers are read from.
    """
    free = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(1024 * int(line.split()[1]))
        group = root / "sys/fs/cgroup"
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(free)) if free else None
