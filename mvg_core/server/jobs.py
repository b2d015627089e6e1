"""Jobs: one computes at a time, others wait, and previews go between two slices."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.engine import Cancelled, Watch
from mvg_core.predict import Prediction
from mvg_core.server.errors import ApiError, words_for
from mvg_core.server.painted import PaintedSlices
from mvg_core.server.settings import Limits
from mvg_core.server.solver import Problem, Solver, quantised
from mvg_core.server.store import Share
from mvg_core.volume import Volume

log = logging.getLogger("mvg.server")
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
FINISHED = (DONE, FAILED, CANCELLED)


class Job:
    """One volume to be solved.

    Args:
        problem: what to solve.
        slices: first and last; None: all.
        share: memory set aside for the answer.
        held: keeps the volumes that it needs; closed at the end.

    Attributes:
        id: of the job.
        state: queued, running, done, failed or cancelled.
        done: steps done.
        total: steps in all; 0 if not known yet.
        error: why it failed.
        painted: answers of slices so far.
        answer: labels or intensities, on the query's grid.
        confidence: u1, 255 is certain.
        report: how the answer came about.
    """

    def __init__(self, problem: Problem, slices: tuple[int, int] | None, share: Share, held: ExitStack) -> None:
        self.id = uuid.uuid4().hex
        self.state = QUEUED
        self.done = self.total = 0
        self.error: str | None = None
        self.axis = problem.axis
        self.painted = PaintedSlices()
        self.answer: Volume | None = None
        self.confidence: npt.NDArray[np.uint8] | None = None
        self.report: dict[str, Any] | None = None
        self._problem: Problem | None = problem
        self._slices, self._share, self._held = slices, share, held
        self._stop = threading.Event()
        self._started = self._ended = 0.0

    @property
    def seconds(self) -> float:
        """Since it began to run."""
        if not self._started:
            return 0.0
        return (self._ended or time.monotonic()) - self._started

    def stop(self) -> None:
        """Ask it to end; a waiting one ends at once."""
        self._stop.set()

    def run(self, solver: Solver, between: Callable[[], None]) -> None:
        """Solve it.

        Args:
            solver: solves.
            between: called between two slices.
        """
        assert self._problem is not None
        self.state, self._started = RUNNING, time.monotonic()

        def cancelled() -> bool:
            between()
            return self._stop.is_set()

        def progress(done: int, total: int) -> None:
            self.done, self.total = done, total

        try:
            self._keep(solver.solve(self._problem, self._slices, Watch(progress, cancelled, self.painted.add)))
            self.finish(DONE)
        except Cancelled as stopped:
            if stopped.partial is not None:
                self._keep(stopped.partial)
            self.finish(CANCELLED)
        except Exception as error:
            self.error = words_for(error)
            log.info("job %s failed: %s", self.id, type(error).__name__)
            self.finish(FAILED)

    def finish(self, state: str) -> None:
        """Let go of what is not needed any more."""
        self._ended = time.monotonic()
        self._held.close()
        self._problem = None
        self.painted.settle(None if self.answer is None else self.answer.array, self.axis)
        kept = [array for array in (self.confidence, None if self.answer is None else self.answer.array)
                if array is not None]
        self._share.shrink(sum(array.nbytes for array in kept))
        self.state = state  # last: whoever sees it finds everything

    def forget(self) -> None:
        """Give back the memory of the answer."""
        self.answer = self.confidence = self.report = None
        self.painted = PaintedSlices()
        self._share.free()

    def _keep(self, found: Prediction) -> None:
        self.confidence = None if found.confidence is None else quantised(found.confidence.array)
        self.report, self.answer = found.provenance, found.volume


class JobQueue:
    """Runs jobs one after the other on a thread of its own.

    Args:
        solver: solves.
        limits: how many may wait, and how many are remembered.
    """

    def __init__(self, solver: Solver, limits: Limits) -> None:
        self._solver, self._limits = solver, limits
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._quick: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._quick_runs = False
        self._changed = threading.Condition()
        self._closed = False
        self.last_used = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="mvg-compute", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running or self._waiting or self._quick or self._quick_runs)

    def check_room(self) -> None:
        """Refuse a job early.

        Raises:
            ApiError: too many wait.
        """
        if len(self._waiting) >= self._limits.waiting_jobs:
            raise ApiError(429, "queue_full", f"{len(self._waiting)} jobs are waiting already: try again when one has "
                           "finished")

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ApiError: too many wait.
        """
        with self._changed:
            self.check_room()
            finished = [one for one in self._jobs.values() if one.state in FINISHED]
            for old in finished[: max(0, len(finished) - self._limits.kept_jobs + 1)]:
                self._remove(old)
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()

    def find(self, job_id: str) -> Job:
        """A job by its id.

        Raises:
            ApiError: there is none.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise ApiError(404, "unknown_job", f"there is no job {job_id[:12]}...: it was deleted, or the server was "
                           "started again; submit it anew")
        return job

    def ahead_of(self, job: Job) -> int:
        """Jobs that run or wait before one."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def cancel(self, job: Job) -> None:
        """Stop a job at the next slice; does nothing if it has ended."""
        with self._changed:
            job.stop()
            if job in self._waiting:
                self._waiting.remove(job)
                job.finish(CANCELLED)

    def delete(self, job: Job) -> None:
        """Cancel a job if it runs, and forget it."""
        self.cancel(job)
        with self._changed:
            self._remove(job)

    def soon(self, call: Callable[[], Any]) -> Future[Any]:
        """Have something computed before the next job, or between two slices of the one that runs.

        Raises:
            ApiError: too much waits already.
        """
        with self._changed:
            if len(self._quick) >= self._limits.waiting_previews:
                raise ApiError(429, "busy", "too many previews are waiting: ask again in a moment")
            future: Future[Any] = Future()
            self._quick.append((future, call))
            self._changed.notify_all()
            return future

    def close(self, seconds: float) -> None:
        """Stop everything; waits so long for the end of what runs."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                job.stop()
            self._changed.notify_all()
        self._thread.join(seconds)

    # --- the computing thread ---

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._quick or self._waiting):
                    self._changed.wait()
                if self._closed:
                    return
                job = None if self._quick else self._waiting.popleft()
                self._running = job
            if job is None:
                self._between()
                continue
            job.run(self._solver, self._between)
            log.info("job %s %s after %.1f s", job.id, job.state, job.seconds)
            self.last_used = time.monotonic()
            with self._changed:
                self._running = None
                if self._jobs.get(job.id) is not job:  # deleted meanwhile
                    job.forget()

    def _between(self) -> None:
        """Compute what should not wait."""
        while self._quick:
            with self._changed:
                future, call = self._quick.popleft()
                self._quick_runs = True
            try:
                if not future.set_running_or_notify_cancel():
                    continue
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
            finally:
                self._quick_runs = False
                self.last_used = time.monotonic()

    def _remove(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        if job.state in FINISHED:
            job.forget()
