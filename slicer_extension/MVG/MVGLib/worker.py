"""The local worker: an MVG server as a child process that computes for this program alone.

`Worker` starts it, reads the one line of JSON that it prints when it is ready, notices when it dies or hangs, and ends
it together with everything it started. Nothing here waits, except `stop`, for some seconds at most: look at `poll` from
a timer. Standard library only.

    worker = Worker([sys.executable, "-m", "mvg_core", "serve", "--worker"])
    worker.start()
    ...                                  # from a timer:
    if worker.poll() == READY:
        worker.client.submit(job)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from . import wire
    from .client import BackgroundCall, Client, ServerUnreachable
except ImportError:  # used as a plain file, outside the package
    import wire  # type: ignore[no-redef]
    from client import BackgroundCall, Client, ServerUnreachable  # type: ignore[no-redef]

STOPPED, STARTING, READY, HUNG, DEAD = "stopped", "starting", "ready", "hung", "dead"
"""States of a worker: not started, or ended on request or for want of work; on its way; answers; alive but silent; gone
without being asked."""

START_S = 120.0
"""Most seconds from start to the line of JSON: the first start of a day reads everything from disk."""
CHECK_S = 2.0
"""Seconds between two questions after its health."""
SILENT_S = 20.0
"""A worker that has not answered for so long hangs."""
END_S = 3.0
"""Seconds to end by itself before it is killed."""
_LOG_LINES = 20


class WorkerError(RuntimeError):
    """The worker could not be started, or is not what was expected; the message says what to do."""


class Worker:
    """One worker process.

    Args:
        command: program and arguments that run `mvg serve --worker`.
        environment: of the process; None: that of this one.
        folder: in which it runs; None: that of this one.
        startSeconds: see `START_S`.
        checkSeconds: see `CHECK_S`.
        silentSeconds: see `SILENT_S`.

    Attributes:
        state: as of the last `poll`.
        error: why it is dead or hung, in a sentence; empty otherwise.
        client: talks to it; None while it is not ready.
        pid: of the server itself, which a launcher may have started; None before it is ready.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None,
                 folder: str | os.PathLike[str] | None = None, startSeconds: float = START_S,
                 checkSeconds: float = CHECK_S, silentSeconds: float = SILENT_S) -> None:
        self.command = [os.fspath(word) for word in command]
        self._environment = None if environment is None else dict(environment)
        self._folder = folder
        self._startSeconds, self._checkSeconds, self._silentSeconds = startSeconds, checkSeconds, silentSeconds
        self.state, self.error = STOPPED, ""
        self.client: Client | None = None
        self.pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._files: Path | None = None
        self._question: BackgroundCall | None = None
        self._log = ""

    def start(self) -> None:
        """Begin; it is ready when `poll` says so. Does nothing if it runs already.

        Raises:
            WorkerError: the program cannot be run.
        """
        if self.state in (STARTING, READY, HUNG) and self.poll() not in (DEAD, STOPPED):
            return
        self._clear()
        # Files, not pipes: nobody has to read them for the worker to go on, and looking at one never waits.
        self._files = Path(tempfile.mkdtemp(prefix="mvg-worker-"))
        try:
            with open(self._files / "answer", "wb") as answer, open(self._files / "log", "wb") as log:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=answer, stderr=log, env=self._environment,
                    cwd=self._folder, **_ownGroup())
        except OSError as error:
            self._clear()
            self.state, self.error = DEAD, f"{self.command[0]} cannot be run ({error.strerror or error})"
            raise WorkerError(f"{self.error}: check that MVG is installed") from error
        self.state, self.error = STARTING, ""
        self._started = self._asked = time.monotonic()
        self._silentSince: float | None = None

    def poll(self, waitSeconds: float = 0.0) -> str:
        """Its state now. Returns at once, or after `waitSeconds`, which give its health check a turn."""
        if self._process is None:
            return self.state
        if self._process.poll() == 0 and self.state != STARTING:  # it had nothing to do for long
            self.stop()
            return self.state
        if self._process.poll() is not None:
            return self._dead(f"the worker ended unexpectedly (exit code {self._process.returncode})")
        if self.state == STARTING:
            return self._look()
        return self._check(waitSeconds)

    def waitUntilReady(self, seconds: float | None = None) -> Client:
        """Start it if need be, wait, and return its client; for scripts, not for the thread of a user interface.

        Raises:
            WorkerError: it did not get ready; says why.
        """
        self.start()
        end = time.monotonic() + (self._startSeconds if seconds is None else seconds)
        while self.poll() == STARTING and time.monotonic() < end:
            time.sleep(0.02)
        if self.state != READY or self.client is None:
            raise WorkerError(f"{self.error or 'the worker is not ready yet'}. {self.log()}".strip())
        return self.client

    def stop(self, seconds: float = END_S) -> None:
        """End it and everything it started: by asking, and after so many seconds by force."""
        process = self._process
        if process is not None:
            # Closing its input is asking: it ends when its parent is gone.
            with contextlib.suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            self._killTree()
        self._clear()
        self.state, self.error = STOPPED, ""

    def kill(self) -> None:
        """End it and everything it started at once."""
        self.stop(0)

    def restart(self) -> None:
        """End it at once if it runs, and start it again."""
        self.kill()
        self.start()

    def log(self, lines: int = _LOG_LINES) -> str:
        """The last lines it wrote for people; ids, sizes and times, nothing of patients."""
        if self._files is not None:
            with contextlib.suppress(OSError), open(self._files / "log", "rb") as file:
                file.seek(max(0, os.path.getsize(self._files / "log") - 2**16))
                self._log = file.read().decode("utf-8", "replace")
        return "\n".join(self._log.splitlines()[-lines:])

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- parts ---

    def _look(self) -> str:
        """Whether the line of JSON has come."""
        assert self._files is not None
        line = (self._files / "answer").read_bytes()
        if b"\n" in line:
            try:
                self._greet(json.loads(line[: line.index(b"\n")]))
            except (ValueError, KeyError, TypeError):
                return self._dead("the worker did not say where it is: MVG and this module may be of different "
                                  "versions")
            return self.state
        if time.monotonic() - self._started > self._startSeconds:
            return self._dead(f"the worker was not ready after {self._startSeconds:.0f} s")
        return STARTING

    def _greet(self, said: Mapping[str, Any]) -> None:
        if said["protocol"] != wire.PROTOCOL:
            self._dead(f"the worker speaks protocol {said['protocol']}, this module {wire.PROTOCOL}: update the older "
                       "of the two")
            return
        self.client, self.pid = Client(said["url"], said["token"]), int(said["pid"])
        self.state = READY
        self._asked = time.monotonic()
        assert self._files is not None
        with contextlib.suppress(OSError):  # it holds the token; nobody needs it any more
            os.truncate(self._files / "answer", 0)

    def _check(self, waitSeconds: float) -> str:
        """Ask after its health now and then, on another thread."""
        now = time.monotonic()
        if self._question is not None and self._question.poll(waitSeconds):
            try:
                self._question.result()
                self._silentSince, self.state, self.error = None, READY, ""
            except ServerUnreachable:
                pass
            except Exception as error:
                return self._dead(f"the worker is not what it should be ({error})")
            self._question = None
        if self._question is None and now - self._asked >= self._checkSeconds and self.client is not None:
            self._question, self._asked = self.client.inBackground(self.client.health), now
            self._silentSince = now if self._silentSince is None else self._silentSince
        if self._silentSince is not None and now - self._silentSince > self._silentSeconds:
            self.state = HUNG
            self.error = f"the worker has not answered for {now - self._silentSince:.0f} s: wait, or start it again"
        return self.state

    def _dead(self, reason: str) -> str:
        """Note the reason, and leave nothing behind."""
        self.log()
        self._killTree()
        self._clear(keepLog=True)
        self.state, self.error = DEAD, reason
        return DEAD

    def _killTree(self) -> None:
        """End the process and its children, whatever state they are in."""
        process = self._process
        if process is None:
            return
        if sys.platform == "win32":
            # Only while it lives, when nothing else can have its number. A server whose launcher is gone ends by
            # itself, because nobody holds its input any more.
            if process.poll() is None:
                _taskkill(process.pid)
                with contextlib.suppress(OSError):  # if that failed: at least the process itself
                    process.kill()
        else:
            # Its own group and session: children stay in it when their parent is gone.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)

    def _clear(self, keepLog: bool = False) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
        self._process = self._files = self._question = self.client = self.pid = None
        if not keepLog:
            self._log = ""


def _taskkill(pid: int) -> None:
    """End a process of Windows and its children. A console of its own would flash up; others may lie in the folder."""
    program = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "taskkill.exe")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([program, "/F", "/T", "/PID", str(pid)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, creationflags=subprocess.CREATE_NO_WINDOW, timeout=END_S, check=False)


def _ownGroup() -> dict[str, Any]:
    """So that the worker can be ended together with its children."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}
