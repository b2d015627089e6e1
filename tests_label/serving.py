"""A MONAI Label server in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

REPOSITORY = Path(__file__).resolve().parents[1]
APP = REPOSITORY / "monailabel_app"
START_WITHIN_S = 900  # ten seconds on a machine with nothing else to do


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: without a slash at the end.
        process: of the server.
        studies: folder of the images.
        log: what it printed.
        temporary: its folder for temporary files.
        seconds_to_start: until it answered for the first time.
    """

    url: str
    process: subprocess.Popen
    studies: Path
    log: Path
    temporary: Path
    seconds_to_start: float

    def memory_mb(self) -> float:
        """Memory that the process holds now (10^6 bytes); Linux."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


@contextmanager
def serving(folder: Path, studies: Path | str, conf: Mapping[str, str] | None = None, app: Path = APP,
            environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server on a free port of this machine, wait until it answers, and end it afterwards.

    Args:
        folder: for its log, sessions and temporary files.
        studies: folder of the images, or address of a DICOMweb server.
        conf: `--conf KEY VALUE`.
        app: folder of the app.
        environment: beside this process's own.
    """
    port = free_port()
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    options = [text for key, value in (conf or {}).items() for text in ("--conf", key, value)]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies),
               "--host", "127.0.0.1", "--port", str(port), "--verbose", "WARNING", *options]
    settings = {"PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary),
                "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "MONAI_ZOO_SOURCE": "local",
                "MONAI_LABEL_TRACKING_ENABLED": "false"}
    log = folder / "server.log"
    started = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
                                   env={**os.environ, **settings, **(environment or {})}, start_new_session=True,
                                   preexec_fn=end_with_parent)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield Server(url, process, Path(studies), log, temporary, time.perf_counter() - started)
    finally:
        with suppress(ProcessLookupError):  # a test may have killed it
            os.killpg(process.pid, signal.SIGTERM)  # its trainings too
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            if requests.get(f"{url}/info/", timeout=30).status_code == 200:
                return
        except (requests.ConnectionError, requests.Timeout):
            time.sleep(0.2)
    raise RuntimeError(f"no answer within {START_WITHIN_S} s:\n{log.read_text()[-4000:]}")


def end_with_parent() -> None:
    """Linux: the server ends when the tests are killed, which leaves them no time to end it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def infer(server: Server, model: str, image: str = "", *, params: Mapping | None = None, label: Path | None = None,
          session: str = "", output: str = "") -> requests.Response:
    """POST /infer/MODEL as raw HTTP."""
    query = {"image": image, **({"session_id": session} if session else {}), **({"output": output} if output else {})}
    files = None if label is None else {"label": (label.name, label.read_bytes())}
    return requests.post(f"{server.url}/infer/{model}", params=query, data={"params": json.dumps(params or {})},
                         files=files, timeout=900)


def wait_for(url: str) -> dict[str, Any]:
    """The status of a background task once it is over."""
    deadline = time.monotonic() + 1800
    while time.monotonic() < deadline:
        status = requests.get(url, timeout=900).json()
        if status.get("status") not in ("SUBMITTED", "RUNNING"):
            return status
        time.sleep(0.5)
    raise AssertionError(f"{url} is still running")
