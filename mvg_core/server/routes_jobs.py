"""Jobs and previews."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from mvg_core.server import wire
from mvg_core.server.errors import ApiError, JsonAnswer, words_for
from mvg_core.server.jobs import FINISHED, Job
from mvg_core.server.models import EncodedModel, EncodeModel, JobCreated, JobId, JobModel, JobStatusModel, PreviewModel
from mvg_core.server.service import Service, service_of
from mvg_core.server.solver import SliceAnswer
from mvg_core.volume import Volume

router = APIRouter(prefix="/v1", tags=["jobs"])
Identity = Annotated[JobId, Path(description="id of the job")]
Encoding = Annotated[str, Query(pattern="^(raw|zlib)$")]
_BINARY: dict[str, Any] = {"response_class": Response, "responses": {200: {"content": {
    wire.MEDIA: {"schema": {"type": "string", "format": "binary"}}}, "description": "A volume body"}}}
_SLICES: dict[str, Any] = {"response_class": Response, "responses": {200: {"content": {
    "application/x-mvg-slices": {"schema": {"type": "string", "format": "binary"}}}, "description": "Slices"}}}


@router.post("/encode", summary="Prepare for previews")
async def encode(work: EncodeModel, request: Request) -> EncodedModel:
    """References are checked, registered if need be, and encoded. Without a query they are only checked."""
    service: Service = service_of(request)
    seconds, axis, warnings = await _soon(service, lambda: service.encode(work))
    return EncodedModel(seconds=seconds, axis=axis, warnings=warnings)


@router.post("/preview", summary="Solve one slice now", response_class=Response, responses={200: {
    "content": {"application/x-mvg-preview": {"schema": {"type": "string", "format": "binary"}}},
    "description": "A line of JSON, the slice as a volume body, and its confidence as a volume body"}})
async def preview(work: PreviewModel, request: Request) -> Response:
    """On its own: without neighbours, tuning or deformable registration. Goes between two slices of a running job."""
    service: Service = service_of(request)
    found = await _soon(service, lambda: service.preview(work))
    seconds = {"MVG-Seconds": f"{found.seconds:.3f}"}
    return Response(_shown(found), media_type="application/x-mvg-preview", headers=seconds)


@router.post("/jobs", summary="Queue a job", status_code=202)
async def submit(work: JobModel, request: Request) -> JobCreated:
    """One job computes at a time; others wait, and 429 says that too many do."""
    service: Service = service_of(request)
    job = await _checked(lambda: service.submit(work))
    return JobCreated(id=job.id)


@router.get("/jobs/{identity}", summary="How far a job is")
async def status(identity: Identity, request: Request) -> JobStatusModel:
    """The states: queued, running; done, failed, cancelled."""
    service: Service = service_of(request)
    job = service.queue.find(identity)
    return JobStatusModel(id=job.id, state=job.state, done=job.done, total=job.total,  # type: ignore[arg-type]
                          seconds=round(job.seconds, 3), error=job.error, painted=job.painted.count,
                          ahead=service.queue.ahead_of(job), axis=job.axis, has_result=job.answer is not None)


@router.get("/jobs/{identity}/painted", summary="Slices painted since", **_SLICES)
async def painted(identity: Identity, request: Request, after: Annotated[int, Query(ge=0, lt=2**63)] = 0) -> Response:
    """At most 64 of them; `next` is what to ask for then."""
    job = service_of(request).queue.find(identity)
    body = await run_in_threadpool(job.painted.since, after, job.axis)
    return Response(body, media_type="application/x-mvg-slices")


@router.post("/jobs/{identity}/cancel", summary="Stop a job at the next slice", status_code=202)
async def cancel(identity: Identity, request: Request) -> JobCreated:
    """What there is of the answer is kept. Does nothing to a job that has ended."""
    queue = service_of(request).queue
    queue.cancel(queue.find(identity))
    return JobCreated(id=identity)


@router.get("/jobs/{identity}/result", summary="The answer", **_BINARY)
async def result(identity: Identity, request: Request, encoding: Encoding = "raw") -> Response:
    """Also a partial one, of a job that was cancelled."""
    job = _ended(service_of(request).queue.find(identity))
    if job.answer is None:
        raise _nothing(job)
    return _volume(job.answer, encoding)


@router.get("/jobs/{identity}/confidence", summary="How sure the answer is", **_BINARY)
async def confidence(identity: Identity, request: Request, encoding: Encoding = "raw") -> Response:
    """Type u1, 255 is certain; segmentations only."""
    job = _ended(service_of(request).queue.find(identity))
    answer, sure = job.answer, job.confidence
    if answer is None or sure is None:
        raise _nothing(job)
    return _volume(answer.with_array(sure), encoding)


@router.get("/jobs/{identity}/report", summary="How the answer came about", response_model=dict[str, Any])
async def report(identity: Identity, request: Request) -> Response:
    """Expected quality of slices, slices to look at and to label next, warnings, versions, checksum of the weights."""
    job = _ended(service_of(request).queue.find(identity))
    if job.report is None:
        raise _nothing(job)
    return JsonAnswer(job.report)


@router.delete("/jobs/{identity}", summary="Cancel and forget a job", status_code=204)
async def delete(identity: Identity, request: Request) -> Response:
    """Frees the memory of its answer."""
    queue = service_of(request).queue
    queue.delete(queue.find(identity))
    return Response(status_code=204)


# --- parts ---


async def _checked(call: Callable[[], Any]) -> Any:
    """What a call returns that may find fault with the request."""
    try:
        return await run_in_threadpool(call)
    except (ValueError, IndexError) as error:
        raise ApiError(422, "bad_job", words_for(error)) from error


async def _soon(service: Service, call: Callable[[], Any]) -> Any:
    """What the computing thread returns, as soon as it gets to it."""
    future: Future[Any] = service.queue.soon(call)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), service.limits.preview_seconds)
    except asyncio.TimeoutError:
        raise ApiError(503, "busy", "the job that runs left no room for a preview: ask again later") from None
    except ApiError:
        raise
    except (ValueError, IndexError) as error:
        raise ApiError(422, "bad_job", words_for(error)) from error
    except Exception as error:
        raise ApiError(500, "failed", words_for(error)) from error


def _ended(job: Job) -> Job:
    if job.state not in FINISHED:
        raise ApiError(409, "not_finished", f"the job is {job.state}: wait until it is done, or cancel it")
    return job


def _nothing(job: Job) -> ApiError:
    reason = job.error or ("it was cancelled before there was one" if job.state == "cancelled" else
                           "this task has none")
    return ApiError(404, "no_result", f"there is no such answer: {reason}")


def _volume(volume: Volume, encoding: str) -> Response:
    array, affine = wire.portable(volume.array), volume.geometry.affine
    headers = {"Content-Length": str(wire.length(array, affine))} if encoding == "raw" else {}
    return StreamingResponse(wire.chunks(array, affine, encoding), media_type=wire.MEDIA, headers=headers)


def _shown(found: SliceAnswer) -> bytes:
    affine = found.answer.geometry.affine
    answer = b"".join(wire.chunks(found.answer.array, affine, "zlib"))
    sure = b"" if found.confidence is None else b"".join(wire.chunks(found.confidence, affine, "zlib"))
    line = {"slice": found.number, "axis": found.axis, "bytes": len(answer), "confidence": bool(sure),
            "warnings": found.warnings}
    return json.dumps(line).encode() + b"\n" + answer + sure
