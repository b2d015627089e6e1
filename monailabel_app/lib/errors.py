"""Everything that a user can cause becomes an HTTP answer that says what to do."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mvg_core
from fastapi import FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import Response
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from mvg_core.network.errors import CheckpointError
from mvg_core.volume_io import VolumeWriteError
from mvg_core.weights import WeightsError

_OURS = (str(Path(mvg_core.__file__).parent), str(Path(__file__).resolve().parents[1]))
# MONAI Label's class derives from `Exception` only, and has no text of its own.
_HANDLED = (MONAILabelException, ValueError, IndexError, CheckpointError, WeightsError, OSError)


def problem(status: int, message: str) -> HTTPException:
    """An error that reaches the client with its message."""
    return HTTPException(status_code=status, detail=message)


def as_http(error: Exception) -> HTTPException:
    """What a client is told about an error: 4xx where its input was the reason, else 500 without details."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return problem(404, f"{error.msg}: the ids are listed by GET /datastore/?output=all")
    if isinstance(error, MONAILabelException):
        return problem(404, f"{error.msg}: GET /info/ lists what there is")
    if isinstance(error, json.JSONDecodeError):
        return problem(400, f"params must be JSON, and cannot be read: {error}")
    if isinstance(error, (ValueError, IndexError)) and _is_ours(error):
        return problem(422, str(error))
    if isinstance(error, (CheckpointError, WeightsError)):
        return problem(503, str(error))
    if isinstance(error, VolumeWriteError):
        return problem(507, str(error))
    logging.getLogger(__name__).error("unexpected error", exc_info=error)
    return problem(500, f"unexpected {type(error).__name__}; the server's log has the details")


def _is_ours(error: Exception) -> bool:
    """Whether our code raised it, with a message for people; what libraries raise is a defect."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return os.path.abspath(last.filename).startswith(_OURS) and (last.line or "").startswith("raise ")


@contextmanager
def told_to_clients() -> Iterator[None]:
    """Turn errors into HTTP answers."""
    try:
        yield
    except Exception as error:
        raise as_http(error) from error


def install(server: FastAPI) -> None:
    """Have errors answered that are raised before a request reaches the app: no JSON, unknown ids."""
    for kind in _HANDLED:
        server.add_exception_handler(kind, _answer)
    server.add_exception_handler(HTTPException, _without_server_errors)


async def _answer(request: Request, error: Any) -> Response:
    return await http_exception_handler(request, as_http(error))


async def _without_server_errors(request: Request, error: Any) -> Response:
    """MONAI Label answers some mistakes of users with 500 and a message; its clients only look at the message."""
    told = "is provided" in str(error.detail) or "not supported" in str(error.detail)
    if error.status_code == 500 and told:
        error = problem(422, str(error.detail))
    return await http_exception_handler(request, error)
