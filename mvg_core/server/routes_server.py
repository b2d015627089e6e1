"""Greeting, abilities, and the end."""

from __future__ import annotations

import html
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from mvg_core import __version__
from mvg_core.server import wire
from mvg_core.server.errors import ApiError
from mvg_core.server.models import HealthModel
from mvg_core.server.service import Service, service_of

router = APIRouter(prefix="/v1", tags=["server"])


@router.get("/health", summary="Whether the server lives")
async def health(request: Request) -> HealthModel:
    """Needs no key, and answers at once, also while a job computes."""
    return HealthModel(status="ok", protocol=wire.PROTOCOL, version=__version__, busy=service_of(request).queue.is_busy)


@router.get("/capabilities", summary="What the server can do")
async def capabilities(request: Request) -> dict[str, Any]:
    """Tasks, presets with the engine's parts, backend, device, weights, and limits."""
    service: Service = service_of(request)
    return {"protocol": wire.PROTOCOL, "version": __version__, **service.solver.described(),
            "limits": service.limits.to_json(), "memory_used": service.store.taken, "volumes": len(service.store),
            "dtypes": list(wire.DTYPES), "encodings": list(wire.ENCODINGS)}


@router.post("/shutdown", summary="End a local worker", status_code=202)
async def shutdown(request: Request) -> dict[str, str]:
    """Refused by servers that were not started as the worker of one program."""
    service: Service = service_of(request)
    if not service.access.is_worker:
        raise ApiError(403, "no_worker", "this server is not the worker of one program: who started it ends it")
    service.end()
    return {"status": "ending"}


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The list of requests as a page that loads nothing from elsewhere."""
    schema = request.app.openapi()
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation.get('summary', ''))}. {html.escape(operation.get('description', ''))}</td></tr>"
        for path, operations in schema["paths"].items() for method, operation in operations.items())
    return HTMLResponse(f"<!doctype html><title>MVG server</title><h1>MVG server, protocol {wire.PROTOCOL}</h1>"
                        f"<p>The whole description: <a href='openapi.json'>openapi.json</a></p><table>{rows}</table>")
