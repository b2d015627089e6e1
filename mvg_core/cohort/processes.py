"""Workers as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from mvg_core.cohort.cases import CohortCase, CohortSettings
from mvg_core.cohort.crew import Event

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
"""What the libraries below us look at when they are loaded."""
_PATIENCE_S = 5.0


class ProcessCrew:
    """Spawned processes, each behind a pipe of its own, so that the death of one takes nothing from the others.

    Args:
        settings: of the cohort.
    """

    def __init__(self, settings: CohortSettings) -> None:
        self._settings = settings
        self._context = get_context("spawn")  # not forked: this process may have threads
        self._workers: dict[int, tuple[Any, Connection]] = {}

    def start(self, number: int) -> None:
        """Start a worker."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._settings, number), daemon=True,
                                        name=f"cohort-{number}")
        with _environment(self._settings.threads), _interrupts_held_back():
            process.start()
        theirs.close()  # so that its end is noticed
        self._workers[number] = (process, ours)

    def give(self, number: int, case: CohortCase, attempt: int) -> None:
        """Give a case to a worker."""
        with contextlib.suppress(OSError):  # it has just died, as `wait` will find
            self._workers[number][1].send((case, attempt))

    def wait(self) -> list[Event]:
        """Wait until a worker says something or dies."""
        numbers: dict[Any, int] = {connection: number for number, (_, connection) in self._workers.items()}
        return [self._heard(numbers[connection]) for connection in wait(list(numbers))]

    def close(self) -> None:
        """End all workers; what they were writing is not left half-written."""
        for process, connection in self._workers.values():
            connection.close()
            process.terminate()
        for process, _ in self._workers.values():
            process.join(_PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._workers.clear()

    def _heard(self, number: int) -> Event:
        process, connection = self._workers[number]
        try:
            return connection.recv()
        except (EOFError, OSError):
            connection.close()
            process.join()
            del self._workers[number]
            return Event("died", number, text=_end_of(process.exitcode))


def _end_of(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"ended by {name}" + (", as systems do that run out of memory" if name == "SIGKILL" else "")
    return f"ended with exit code {exitcode}"


def _work(connection: Connection, settings: CohortSettings, number: int) -> None:
    """Main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from mvg_core.cohort.failures import short_reason
    from mvg_core.cohort.solver import CaseSolver, device_of_worker

    try:
        solver = CaseSolver(settings, device_of_worker(settings.device, number))
    except Exception as error:
        connection.send(Event("unable", number, text=short_reason(error)))
        return
    connection.send(Event("ready", number, pid=os.getpid()))
    with contextlib.suppress(EOFError, OSError):  # the crew is closed
        while True:
            case, attempt = connection.recv()
            connection.send(Event("solved", number, solver.solve(case, attempt)))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(*_: object) -> NoReturn:
    """End past the clean-up, so that no file is left half-written; but once only."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(143)


def _end_with_parent() -> None:
    """Leave no worker behind that nobody listens to, and that would write beside the next run."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Within it, new processes find how many threads they may use."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Within it Ctrl-C waits, and a process that is started never hears of it: not even before it can say so."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
