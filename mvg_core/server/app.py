"""The application: routes, errors as JSON, and the gate before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mvg_core import __version__
from mvg_core.server import routes_jobs, routes_server, routes_volumes
from mvg_core.server.errors import ApiError, refusal, words_for
from mvg_core.server.models import ErrorModel
from mvg_core.server.security import Gate
from mvg_core.server.service import Service
from mvg_core.server.settings import Access, Limits
from mvg_core.server.solver import Solver

_CLOSE_S = 2.0
_REFUSALS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorModel, "description": "Why not"},
                                              422: {"model": ErrorModel, "description": "It cannot be done"}}
_CODES = {404: "not_found", 405: "wrong_method"}


def create_app(solver: Solver, access: Access, limits: Limits | None = None, end: Callable[[], None] = lambda: None
               ) -> FastAPI:
    """The server as an ASGI application.

    Args:
        solver: solves.
        access: who may ask.
        limits: what it takes on.
        end: ends the server, when its parent asks for that.
    """
    service = Service(solver, access, limits or Limits(), end)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.queue.close(_CLOSE_S)

    app = FastAPI(title="MVG server", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
                  openapi_url="/v1/openapi.json", responses=_REFUSALS, redirect_slashes=False)
    app.state.service = service
    for routes in (routes_server, routes_volumes, routes_jobs):
        app.include_router(routes.router)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _misunderstood)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Gate, access=access, limits=service.limits, noticed=service.notice)
    return app


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(error)


async def _misunderstood(_: Request, error: Exception) -> Response:
    """What is wrong with the first bad part of a request, without repeating what it held."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    return refusal(ApiError(422, "bad_request", f"{where}: {first['msg']}"))


async def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # the body was refused while it was read
        return refusal(error.__cause__)
    return refusal(ApiError(error.status_code, _CODES.get(error.status_code, "bad_request"), str(error.detail)))


async def _failed(_: Request, error: Exception) -> Response:
    return refusal(ApiError(500, "failed", words_for(error)))
