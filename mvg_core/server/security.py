"""What every request has to pass: the key, the version of the protocol, and limits. Also the log of requests."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from mvg_core.server import wire
from mvg_core.server.errors import ApiError, refusal
from mvg_core.server.settings import Access, Limits

log = logging.getLogger("mvg.server")
OPEN = ("/v1/health", "/v1/docs", "/v1/openapi.json")
"""What may be read without a key: it says nothing about volumes or jobs."""
_DRAINED = 64 * 2**20
_DRAIN_S = 5.0


class Gate:
    """Lets in what may come in; an ASGI application around another.

    Args:
        app: the application.
        access: who may ask.
        limits: of sizes.
        noticed: called for every request that was let in and asks for more than what is open.
    """

    def __init__(self, app: Any, access: Access, limits: Limits, noticed: Callable[[], None]) -> None:
        self._app, self._access, self._limits, self._noticed = app, access, limits, noticed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), *_HEADERS]
                if status >= 400 and not await body.drain():
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        body = _Body(receive, self._most_bytes(scope))
        try:
            self._check(scope)
            await self._app(scope, body, answer)
        except ApiError as error:
            await refusal(error)(scope, receive, answer)
        finally:
            # Questions after a job come several times a second and say little.
            level = logging.DEBUG if scope["method"] in ("GET", "HEAD") and status < 400 else logging.INFO
            log.log(level, "%s %s %d, %d bytes in, %.0f ms%s", scope["method"], _shown(scope["path"]), status,
                    body.size, 1000 * (time.monotonic() - started), _whom(scope) if status == 401 else "")

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._access.token.encode()):
                raise ApiError(401, "unauthorized", "the key is missing or wrong: send it as `Authorization: Bearer "
                               "KEY`")
            self._noticed()
        spoken = headers.get(b"mvg-protocol", str(wire.PROTOCOL).encode())
        if spoken != str(wire.PROTOCOL).encode():
            raise ApiError(400, "wrong_protocol", f"this server speaks protocol {wire.PROTOCOL}, not the one asked "
                           "for: update the older of the two programs")
        if int(headers.get(b"content-length", b"0")) > self._most_bytes(scope):
            raise _too_large(self._most_bytes(scope))

    def _most_bytes(self, scope: Scope) -> int:
        if scope["method"] == "PUT" and scope["path"].startswith("/v1/volumes/"):
            # Deflated voxels that do not shrink are a little longer.
            return self._limits.volume_bytes + self._limits.volume_bytes // 1000 + 2 * wire.LONGEST
        return self._limits.json_bytes


class _Body:
    """The body of a request on its way: counted, limited, and not waited for forever."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self.size = 0
        self._ended = False

    async def __call__(self) -> Message:
        """The next message."""
        message = await self._receive()
        if message["type"] != "http.request":
            self._ended = True
            return message
        self.size += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self.size > self._most:
            raise _too_large(self._most)
        return message

    async def drain(self) -> bool:
        """Read on a little, because who is cut off while sending does not hear the answer; whether that was the end."""
        start, end = self.size, time.monotonic() + _DRAIN_S
        while not self._ended and self.size - start < _DRAINED and (left := end - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except asyncio.TimeoutError:
                return False
            self.size += len(message.get("body", b""))
            self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return self._ended


_HEADERS = [(b"mvg-protocol", str(wire.PROTOCOL).encode()), (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff")]


def _too_large(most: int) -> ApiError:
    return ApiError(413, "too_large", f"the request is larger than the {most} bytes allowed: send less, or start the "
                    "server with a higher limit")


def _shown(text: str) -> str:
    """For the log: in ASCII, and not longer than it may be."""
    return ascii(text)[1:-1][:120]


def _whom(scope: Scope) -> str:
    """Who was refused, so that somebody who tries keys can be found; a proxy on this machine says for whom it asks."""
    return f", from {_shown(str(scope['client'][0]))}" if scope.get("client") else ""
