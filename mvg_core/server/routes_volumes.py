"""Volumes: asked for, uploaded once, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from mvg_core.server import wire
from mvg_core.server.errors import ApiError, JsonAnswer
from mvg_core.server.models import Sha, VolumeModel
from mvg_core.server.service import Service, service_of
from mvg_core.server.store import Share
from mvg_core.volume import Geometry, GeometryError, Volume

router = APIRouter(prefix="/v1/volumes", tags=["volumes"])
Identity = Annotated[Sha, Path(description="SHA-256 of the volume")]
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    wire.MEDIA: {"schema": {"type": "string", "format": "binary"}}}}}


@router.head("/{identity}", summary="Whether a volume is held", status_code=200)
async def known(identity: Identity, request: Request) -> Response:
    """404 if it has to be uploaded."""
    if identity not in service_of(request).store:
        raise ApiError(404, "unknown_volume", "this volume is not held: upload it")
    return Response(status_code=200)


@router.put("/{identity}", summary="Upload a volume once", status_code=201, response_model=VolumeModel,
            openapi_extra=_BODY, responses={200: {"model": VolumeModel, "description": "It was held already"}})
async def upload(identity: Identity, request: Request) -> Response:
    """The body is a volume body; its identity must be the one in the address."""
    service: Service = service_of(request)
    if request.headers.get("content-type", wire.MEDIA).partition(";")[0].strip().lower() != wire.MEDIA:
        raise ApiError(415, "wrong_media_type", f"a volume is sent as {wire.MEDIA}")
    reader = wire.Reader(service.limits.volume_bytes)
    share: Share | None = None
    kept = False
    try:
        async for piece in _pieces(request, service.limits.upload_seconds):
            reader.feed(piece)
            if share is None and reader.shape is not None:
                share = service.store.reserve(reader.size)
        reader.finish()
        if reader.identity != identity:
            raise ApiError(422, "wrong_hash", f"the body is volume {reader.identity}, not the one in the address: it "
                           "was damaged on the way, or the SHA-256 was worked out differently")
        volume = Volume(reader.array, Geometry(reader.array.shape, reader.affine))
        assert share is not None
        is_new = service.store.put(identity, volume, share)
        kept = True
    except ClientDisconnect:
        raise ApiError(400, "aborted", "the upload was broken off") from None
    except wire.WireTooLarge as error:
        raise ApiError(413, "too_large", str(error)) from error
    except (wire.WireError, GeometryError) as error:
        raise ApiError(422, "bad_volume", str(error)) from error
    finally:
        if share is not None and not kept:
            share.free()
    return JsonAnswer({"id": identity, "bytes": reader.size}, 201 if is_new else 200)


@router.delete("/{identity}", summary="Forget a volume", status_code=204)
async def forget(identity: Identity, request: Request) -> Response:
    """Refused while a job needs it."""
    service_of(request).store.delete(identity)
    return Response(status_code=204)


async def _pieces(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives; given up when nothing comes."""
    stream = request.stream()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream, b""), seconds)
        except asyncio.TimeoutError:
            raise ApiError(408, "too_slow", f"nothing came for {seconds:.0f} s: send the volume again") from None
        if not piece:
            return
        yield piece
