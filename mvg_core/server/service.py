"""Everything that one server holds, and what requests ask of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from fastapi import Request

from mvg_core.server.jobs import Job, JobQueue
from mvg_core.server.models import EncodeModel, JobModel, PreviewModel
from mvg_core.server.settings import Access, Limits
from mvg_core.server.solver import SliceAnswer, Solver, Work
from mvg_core.server.store import VolumeStore

_SEGMENTATION_BYTES, _IMAGE_BYTES = 3, 12
"""Per voxel, of an answer and of its slices on the way: labels twice and confidence; images in up to 8 bytes, and 4."""


class Service:
    """One server.

    Args:
        solver: solves.
        access: who may ask.
        limits: what it takes on.
        end: ends the server.
    """

    def __init__(self, solver: Solver, access: Access, limits: Limits, end: Callable[[], None]) -> None:
        self.solver, self.access, self.limits, self.end = solver, access, limits, end
        self.store = VolumeStore(limits.memory_bytes)
        self.queue = JobQueue(solver, limits)
        self._noticed = time.monotonic()

    def notice(self) -> None:
        """Somebody asked for something."""
        self._noticed = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Since somebody asked for something, or something was computed."""
        if self.queue.is_busy:
            return 0.0
        return time.monotonic() - max(self._noticed, self.queue.last_used)

    def submit(self, work: JobModel) -> Job:
        """Queue a job.

        Raises:
            ApiError: too many wait, a volume is not held, or there is no memory for the answer.
            GeometryError, IndexError, ValueError: it cannot be done.
        """
        self.queue.check_room()
        held, share = ExitStack(), None
        try:
            problem = self.solver.problem(work, held.enter_context(self.store.using(volumes_of(work))))
            per_voxel = _SEGMENTATION_BYTES if problem.task.is_segmentation else _IMAGE_BYTES
            share = self.store.reserve(per_voxel * math.prod(problem.query.geometry.shape))
            slices = None if work.slices is None else (work.slices[0], work.slices[1])
            job = Job(problem, slices, share, held)
            self.queue.submit(job)
        except BaseException:
            held.close()
            if share is not None:
                share.free()
            raise
        return job

    def preview(self, work: PreviewModel) -> SliceAnswer:
        """Solve one slice; on the computing thread."""
        with self.store.using(volumes_of(work)) as volumes:
            return self.solver.preview(self.solver.problem(work, volumes), work.slice)

    def encode(self, work: EncodeModel) -> tuple[float, int | None, list[str]]:
        """Prepare for previews: seconds, axis, warnings; on the computing thread."""
        started = time.perf_counter()
        with self.store.using(volumes_of(work)) as volumes:
            problem = self.solver.problem(work, volumes)
            warnings = self.solver.encode(work, problem)
        return time.perf_counter() - started, problem.axis if work.query else None, warnings


def volumes_of(work: Work) -> Iterable[str]:
    """Every volume that a request names."""
    named = [work.query, work.hole]
    for reference in work.references:
        named += [reference.image, reference.label, reference.hole]
    return [identity for identity in named if identity is not None]


def service_of(request: Request) -> Service:
    """The service that a request was sent to."""
    return request.app.state.service
