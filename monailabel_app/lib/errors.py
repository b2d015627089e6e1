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

import monailabel.endpoints
import mvg_core
import requests
from fastapi import FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import Response
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from mvg_core.network.errors import CheckpointError
from mvg_core.volume_io import VolumeWriteError
from mvg_core.weights import WeightsError

_OURS = (str(Path(mvg_core.__file__).parent), str(Path(__file__).resolve().parents[1]))
# MONAI Label's class derives from `Exception` only, and has no text of its own.
_HANDLED = (MONAILabelException, ValueError, TypeError, AttributeError, LookupError, CheckpointError, WeightsError,
            OSError)
_NO_OBJECT = 'what is sent as params or info must be a JSON object, such as {"preset": "fast"}'
_ENDPOINTS = Path(monailabel.endpoints.__file__).parent


def problem(status: int, message: str) -> HTTPException:
    """An error that reaches the client with its message."""
    return HTTPException(status_code=status, detail=message)


def as_object(params: Any) -> dict[str, Any]:
    """What a client sent as parameters, if it is a JSON object.

    Raises:
        HTTPException: it is something else.
    """
    if not isinstance(params, dict):
        raise problem(422, _NO_OBJECT)
    return params


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
    if isinstance(error, (TypeError, AttributeError, KeyError)) and _is_of_request(error):
        return problem(422, _NO_OBJECT)
    if isinstance(error, FileNotFoundError) and error.filename == "nvidia-smi":
        return problem(404, "this machine has no NVIDIA GPU, or its tools are not installed")
    if isinstance(error, (CheckpointError, WeightsError)):
        return problem(503, str(error))
    if isinstance(error, VolumeWriteError):
        return problem(507, str(error))
    if isinstance(error, requests.RequestException):
        return problem(502, _of_remote(error))
    logging.getLogger(__name__).error("unexpected error", exc_info=error)
    return problem(500, f"unexpected {type(error).__name__}; the server's log has the details")


def _of_remote(error: requests.RequestException) -> str:
    """What is said when another server, from which images come, is the reason."""
    if error.response is None:
        return ("the DICOMweb server that the images come from does not answer: start it, or start this server with "
                "the address of one that runs")
    status = error.response.status_code
    return f"the DICOMweb server that the images come from answered {status}" + (
        ": set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD" if status in (401, 403) else
        ": see its log")


def _is_of_request(error: Exception) -> bool:
    """Whether MONAI Label itself could do nothing with the parameters, before they reached us."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).parent == _ENDPOINTS


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
    told = any(words in str(error.detail) for words in ("is provided", "not supported", "NOT configured"))
    if error.status_code == 500 and told:
        error = problem(422, str(error.detail))
    return await http_exception_handler(request, error)
