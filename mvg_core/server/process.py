"""The server as a process: its socket, the line that says where it is, and when it ends."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from mvg_core.predict import PredictionWarning
from mvg_core.server import wire
from mvg_core.server.app import create_app
from mvg_core.server.settings import Access, Limits
from mvg_core.server.solver import Solver

KEY_VARIABLE = "MVG_API_KEY"
SHORTEST_KEY = 16
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean all of a machine's own, and the one by which the machine reaches itself then."""
_ORPHAN_S = 2.0
_IDLE_CHECK_S = 1.0


@dataclass(frozen=True)
class Start:
    """How a server is started.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        is_worker: child of a program: it ends when its input closes, and may be shut down by a request.
        idle_minutes: without work after which it ends; None: never.
        key: that requests must bring; empty: a random one is made, on this machine only.
    """

    host: str = "127.0.0.1"
    port: int = 0
    is_worker: bool = False
    idle_minutes: float | None = None
    key: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in _LOOPBACK

    def check(self) -> None:
        """Refuse to let other machines in without a key.

        Raises:
            ValueError: there is none.
        """
        if not self.is_local and not self.key:
            raise ValueError(f"other machines can reach {self.host}, so a key is needed: pass --key-file, or set "
                             f"{KEY_VARIABLE}")


def read_key(key_file: Path | None) -> str:
    """The key that requests must bring, from a file or the environment; empty if there is none.

    Raises:
        ValueError: it is too short, or cannot be sent in a header.
        OSError: the file cannot be read.
    """
    if key_file is not None:
        if not key_file.is_file():
            raise FileNotFoundError(f"{key_file} is no file: write a key of at least {SHORTEST_KEY} characters into it")
        key, source = key_file.read_text(encoding="utf-8", errors="replace").strip(), str(key_file)
    else:
        key, source = os.environ.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE
        if not key:
            return ""
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"the key in {source} must have at least {SHORTEST_KEY} printable ASCII characters without "
                         "spaces: make one with `python -c \"import secrets; print(secrets.token_urlsafe(32))\"`")
    return key


def serve(solver: Solver, start: Start, limits: Limits) -> None:
    """Serve until the end; says on the standard output where, as one line of JSON, when it is ready.

    Raises:
        ValueError: other machines could reach it, and there is no key.
        OSError: the address cannot be listened on.
    """
    start.check()
    # Warnings name the references, and those may be called after patients; answers carry them.
    warnings.simplefilter("ignore", PredictionWarning)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("mvg.server").setLevel(logging.INFO)
    key = start.key or secrets.token_urlsafe(32)
    listening = _listen(start.host, start.port)
    # h11, also where httptools is installed: that takes headers of any length.
    server = _Server(uvicorn.Config(
        create_app(solver, Access(key, start.is_worker), limits, lambda: server.end()), http="h11", ws="none",
        log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=3, timeout_keep_alive=30))
    server.line = _line(start, listening, key)
    if start.is_worker:
        threading.Thread(target=_end_with_parent, args=(server, _parents_pipe()), name="mvg-parent",
                         daemon=True).start()
    if start.idle_minutes is not None:
        threading.Thread(target=_end_when_idle, args=(server, 60 * start.idle_minutes), name="mvg-idle",
                         daemon=True).start()
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    line = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        print(self.line, flush=True)

    def end(self) -> None:
        """Finish what is being answered, and end."""
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        # To be started again at once after an end. On Windows this option would let another program take the port, and
        # with it the key, while the server runs; there is one that forbids it instead.
        option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
        listening.setsockopt(socket.SOL_SOCKET, option, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be listened on ({error.strerror or error}): choose another --port or "
                      "--host") from error
    return listening


def _line(start: Start, listening: socket.socket, key: str) -> str:
    """Where the server is; the key only if nobody knows it yet."""
    host = _EVERYWHERE.get(start.host, start.host)
    host = f"[{host}]" if ":" in host else host
    said = {"url": f"http://{host}:{listening.getsockname()[1]}", "pid": os.getpid(), "protocol": wire.PROTOCOL}
    return json.dumps(said if start.key else {**said, "token": key})


def _parents_pipe() -> int:
    """Our input under another number; what was the standard input is empty from now on.

    On Windows, who waits for the standard input holds up every library that looks at it while it is loaded, as OpenBLAS
    and Fortran's run time do (python/cpython#78961, numpy/numpy#24290): SciPy would never be imported.
    """
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _end_with_parent(server: _Server, pipe: int) -> None:
    """Wait until the parent closes our input or is gone; it has the other end of a pipe that says nothing."""
    while os.read(pipe, 2**16):
        pass
    server.end()
    # Nobody will fetch what is being computed.
    time.sleep(_ORPHAN_S)
    os._exit(0)


def _end_when_idle(server: _Server, seconds: float) -> None:
    service = server.config.app.state.service  # type: ignore[union-attr]
    while service.idle_seconds < seconds:
        time.sleep(min(_IDLE_CHECK_S, seconds))
    server.end()
