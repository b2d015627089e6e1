"""What the server says when it cannot do something."""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

from starlette.responses import Response


class ApiError(Exception):
    """A request that cannot be fulfilled.

    Args:
        status: HTTP status.
        code: short name of the reason.
        message: one sentence for people: what is wrong, and what to do.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class JsonAnswer(Response):
    """JSON in plain ASCII, so that no text can fail to be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """As bytes."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def refusal(error: ApiError) -> JsonAnswer:
    """The answer to a request that was refused."""
    return JsonAnswer({"error": {"code": error.code, "message": error.message}}, error.status)


def words_for(error: BaseException) -> str:
    """One sentence about what went wrong while computing.

    What our own code raises on purpose speaks to the user. Other errors may quote what they worked on, so only their
    kind and place are told.
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory for this: use a smaller volume, fewer references or another preset"
    frames = traceback.extract_tb(error.__traceback__)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if frames and isinstance(error, (ValueError, IndexError, RuntimeError, OSError)):
        last = frames[-1]
        if os.path.abspath(last.filename).startswith(package) and (last.line or "").startswith("raise "):
            return str(error)
    place = f" in {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place}: this looks like a defect in mvg, please report it"
