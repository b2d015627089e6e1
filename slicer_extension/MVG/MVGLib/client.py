"""Talks to an MVG server, on this machine or a remote one; standard library and NumPy only.

`Client` makes one call after the other and waits for each. Nothing that waits belongs into the thread of a user
interface: `Client.inBackground` runs any of its calls on a thread of its own, and `Client.follow` watches a job; both
are looked at from a timer with `poll`, which returns within some hundredths of a second. In an application that seldom
lets other Python threads run (3D Slicer), `poll` also gives them their turn, so call it often.

A job is a dictionary, as docs/reference/server.md says:

    {"task": "segmentation", "query": SHA, "references": [{"image": SHA, "label": SHA, "name": "patient 1"}],
     "labels": {"1": "liver"}, "plane": "axial", "preset": "fast"}
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

try:
    from . import wire
except ImportError:  # used as a plain file, outside the package
    import wire  # type: ignore[no-redef]

SHORT_S = 5.0
"""Most seconds that a question of a few bytes waits for its answer."""
LONG_S = 120.0
"""Most seconds without a single byte while volumes travel, or while one slice is computed."""
POLL_S = 0.25
"""Seconds between two looks at a job."""
FINISHED = ("done", "failed", "cancelled")
Progress = Callable[[int, int], None]
"""Called with bytes sent or received, and bytes in all."""


class ServerError(RuntimeError):
    """The server refused, or could not do it; the message says what to do.

    Attributes:
        status: HTTP status; 0 if there was no answer.
        code: short name of the reason, see docs/reference/server.md.
    """

    def __init__(self, message: str, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class ServerUnreachable(ServerError):
    """Nobody answers: the server is not running, hangs, or was killed."""


class WrongProtocol(ServerError):
    """What answers is no MVG server, or speaks another version of the protocol."""


class CallCancelled(RuntimeError):
    """The call was cancelled by its caller."""


@dataclass(frozen=True)
class JobStatus:
    """How far a job is.

    Attributes:
        id: of the job.
        state: queued, running, done, failed or cancelled.
        done: steps done.
        total: steps in all; 0 if not known yet.
        seconds: since it began to run.
        error: why it failed; empty otherwise.
        painted: answers of slices so far; a slice that was painted twice counts twice.
        ahead: jobs that run or wait before it.
        hasResult: whether there is an answer to fetch, be it a part of one.
    """

    id: str
    state: str
    done: int
    total: int
    seconds: float
    error: str
    painted: int
    ahead: int
    hasResult: bool

    @property
    def isFinished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in FINISHED


@dataclass(frozen=True, eq=False)
class Preview:
    """The answer to one slice.

    Attributes:
        number: of the slice along `axis`.
        axis: index axis (0, 1, 2) of the query.
        label: (H, W) labels or, of image-to-image tasks, intensities; the two other index axes in their order.
        confidence: (H, W) float32 from 0 to 1; None for image-to-image tasks.
        seconds: it took the server.
        warnings: about the input.
    """

    number: int
    axis: int
    label: np.ndarray
    confidence: np.ndarray | None
    seconds: float
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class JobNews:
    """What happened since the last look.

    Attributes:
        status: the latest; None before the first answer.
        painted: pairs of slice number and (H, W) answer that are new.
        axis: index axis that the numbers count along; -1 while it is not known.
    """

    status: JobStatus | None
    painted: list[tuple[int, np.ndarray]]
    axis: int


class Client:
    """One server.

    Args:
        url: such as `http://127.0.0.1:8642` or `https://host/mvg`.
        token: what the server asks for; empty if nothing.
        shortSeconds: see `SHORT_S`.
        longSeconds: see `LONG_S`.
        packed: volumes travel deflated; None: unless the server is on this machine.
        caFile: certificates to trust beside those of the system, for servers with their own.

    Raises:
        ValueError: no such URL.
    """

    def __init__(self, url: str, token: str = "", *, shortSeconds: float = SHORT_S, longSeconds: float = LONG_S,
                 packed: bool | None = None, caFile: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is no address of a server: write it as http://HOST:PORT or https://HOST")
        if not token.isascii() or not token.isprintable():
            raise ValueError("the key of the server holds characters that cannot be sent: copy it again")
        self.url = url.rstrip("/")
        self._parts, self._token = parts, token
        self._shortSeconds, self._longSeconds = shortSeconds, longSeconds
        self._packed = not self.isLocal if packed is None else packed
        self._tls = ssl.create_default_context(cafile=caFile) if parts.scheme == "https" else None
        self._limits: dict[str, Any] | None = None

    @property
    def isLocal(self) -> bool:
        """Whether the server is on this machine, so that nothing leaves it."""
        return self._parts.hostname in ("127.0.0.1", "::1", "localhost")

    # --- the server ---

    def health(self) -> dict[str, Any]:
        """Status, protocol, version, and whether it computes; needs no token."""
        return self._json("GET", "/v1/health")

    def capabilities(self) -> dict[str, Any]:
        """Tasks, presets, engine parts, backend, device, weights and limits."""
        found = self._json("GET", "/v1/capabilities")
        self._limits = found.get("limits", {})
        return found

    def shutdown(self) -> None:
        """End a local worker."""
        self._json("POST", "/v1/shutdown")

    # --- volumes ---

    def hasVolume(self, identity: str) -> bool:
        """Whether the server holds a volume."""
        try:
            self._call("HEAD", f"/v1/volumes/{identity}")
        except ServerError as error:
            if error.status == 404:
                return False
            raise
        return True

    def uploadVolume(self, array: np.ndarray, affine: Any, *, progress: Progress | None = None,
                     isCancelled: Callable[[], bool] | None = None) -> str:
        """Send a volume, unless the server has it.

        Args:
            array: (I, J, K); do not change it meanwhile.
            affine: (4, 4), voxel index -> RAS+ mm.
            progress: told bytes sent and bytes in all.
            isCancelled: asked between pieces.

        Returns:
            Its identity.

        Raises:
            wire.WireError: the voxels cannot be sent.
            CallCancelled: on request.
            ServerError: it is too large, or there is no memory for it.
        """
        array = wire.portable(array)
        identity = wire.identity(array, affine)
        if isCancelled is not None and isCancelled():
            raise CallCancelled
        if not self.hasVolume(identity):
            self._checkSize(array.nbytes)
            encoding = "zlib" if self._packed else "raw"
            body = _watched(wire.chunks(array, affine, encoding), wire.length(array, affine), progress, isCancelled)
            headers = {"Content-Type": wire.MEDIA}
            if not self._packed:
                headers["Content-Length"] = str(wire.length(array, affine))
            self._call("PUT", f"/v1/volumes/{identity}", body=body, headers=headers, seconds=self._longSeconds)
        if progress is not None:
            progress(array.nbytes, array.nbytes)
        return identity

    def deleteVolume(self, identity: str) -> None:
        """Let the server forget a volume; no error if it does not know it."""
        try:
            self._call("DELETE", f"/v1/volumes/{identity}")
        except ServerError as error:
            if error.status != 404:
                raise

    # --- slices ---

    def encode(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Prepare for previews of a job: references are checked, registered if need be, and encoded."""
        return self._json("POST", "/v1/encode", _sliceless(job), seconds=self._longSeconds)

    def preview(self, job: Mapping[str, Any], number: int) -> Preview:
        """Solve one slice of the query."""
        started = time.perf_counter()
        answer, headers = self._call("POST", "/v1/preview", headers={"Content-Type": "application/json"},
                                     body=json.dumps({**_sliceless(job), "slice": int(number)}).encode(),
                                     seconds=self._longSeconds)
        end = answer.find(b"\n")
        line = json.loads(answer[:end])
        found = wire.parse(answer[end + 1 : end + 1 + line["bytes"]]).array
        axis = int(line["axis"])
        confidence = None
        if line["confidence"]:
            quantised = wire.parse(answer[end + 1 + line["bytes"]:]).array
            confidence = np.take(quantised, 0, axis=axis).astype(np.float32) / 255
        seconds = float(headers.get("MVG-Seconds", time.perf_counter() - started))
        return Preview(int(number), axis, np.take(found, 0, axis=axis), confidence, seconds, list(line["warnings"]))

    # --- jobs ---

    def submit(self, job: Mapping[str, Any]) -> str:
        """Queue a job; its id.

        Raises:
            ServerError: 404 for a volume that the server does not have (upload it again), 422 for a job that cannot be
                done, 429 if too many wait.
        """
        return str(self._json("POST", "/v1/jobs", job)["id"])

    def status(self, jobId: str) -> JobStatus:
        """How far a job is."""
        return _status(self._json("GET", f"/v1/jobs/{_name(jobId)}"))

    def painted(self, jobId: str, after: int = 0) -> tuple[list[tuple[int, np.ndarray]], int, int]:
        """Slices painted since: pairs of number and (H, W) answer, the axis, and `after` for the next call."""
        body, _ = self._call("GET", f"/v1/jobs/{_name(jobId)}/painted?after={int(after)}", seconds=self._longSeconds)
        return wire.unpack(body)

    def cancel(self, jobId: str) -> None:
        """Stop a job at the next slice; what there is of an answer can be fetched when its state is `cancelled`."""
        self._json("POST", f"/v1/jobs/{_name(jobId)}/cancel")

    def result(self, jobId: str, *, progress: Progress | None = None, isCancelled: Callable[[], bool] | None = None
               ) -> tuple[np.ndarray, np.ndarray]:
        """Answer (I, J, K) and affine (4, 4) of a job that is done, or was cancelled half way.

        Raises:
            ServerError: 409 while it runs, or if there is no answer.
        """
        return self._volume(f"/v1/jobs/{_name(jobId)}/result", progress, isCancelled)

    def confidence(self, jobId: str, *, progress: Progress | None = None,
                   isCancelled: Callable[[], bool] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """How sure a segmentation is: float32 (I, J, K) from 0 to 1 in steps of 1/255, and affine (4, 4)."""
        quantised, affine = self._volume(f"/v1/jobs/{_name(jobId)}/confidence", progress, isCancelled)
        return quantised.astype(np.float32) / 255, affine

    def report(self, jobId: str) -> dict[str, Any]:
        """How the answer came about: slice_quality, suggested_slices, doubtful_slices, warnings ..."""
        return self._json("GET", f"/v1/jobs/{_name(jobId)}/report")

    def deleteJob(self, jobId: str) -> None:
        """Cancel a job if it runs, and let the server forget it; no error if it does not know it."""
        try:
            self._call("DELETE", f"/v1/jobs/{_name(jobId)}")
        except ServerError as error:
            if error.status != 404:
                raise

    # --- without waiting ---

    def inBackground(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> BackgroundCall:
        """Begin a call of this client on a thread of its own, as in `client.inBackground(client.uploadVolume, a, m)`.

        Calls with `progress` and `isCancelled` are given both.
        """
        if getattr(call, "__name__", "") in ("uploadVolume", "result", "confidence"):
            return BackgroundCall(lambda progress, isCancelled: call(
                *arguments, progress=progress, isCancelled=isCancelled, **options))
        return BackgroundCall(lambda progress, isCancelled: call(*arguments, **options))

    def follow(self, jobId: str, everySeconds: float = POLL_S, painted: bool = True) -> JobFollower:
        """Watch a job from a thread of its own; `painted`: fetch slices as they are painted."""
        return JobFollower(self, jobId, everySeconds, painted)

    # --- parts ---

    def _volume(self, path: str, progress: Progress | None, isCancelled: Callable[[], bool] | None
                ) -> tuple[np.ndarray, np.ndarray]:
        # Only the voxels' bytes are counted: what is received is not addressed by its content.
        reader = wire.Reader(hashed=False)
        encoding = "zlib" if self._packed else "raw"

        def take(piece: bytes, _done: int, _total: int) -> None:
            reader.feed(piece)
            if progress is not None:
                progress(reader.received, reader.size)
            if isCancelled is not None and isCancelled():
                raise CallCancelled

        self._call("GET", f"{path}?encoding={encoding}", seconds=self._longSeconds, take=take)
        reader.finish()
        return reader.array, reader.affine

    def _checkSize(self, nBytes: int) -> None:
        """Refuse here what the server would refuse after a long upload."""
        if self._limits is None:
            self.capabilities()
        most = (self._limits or {}).get("volume_bytes")
        if most is not None and nBytes > most:
            raise ServerError(f"the volume has {nBytes / 1e6:.0f} MB, the server takes at most {most / 1e6:.0f} MB: "
                              "crop or resample it", 413, "too_large")

    def _json(self, method: str, path: str, values: Mapping[str, Any] | None = None, seconds: float | None = None
              ) -> dict[str, Any]:
        body = None if values is None else json.dumps(values).encode()
        headers = {} if values is None else {"Content-Type": "application/json"}
        answer, _ = self._call(method, path, body=body, headers=headers, seconds=seconds)
        try:
            return json.loads(answer) if answer else {}
        except ValueError as error:
            raise WrongProtocol(f"the server at {self.url} answered what cannot be read: is it an MVG server?"
                                ) from error

    def _call(self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None,
              seconds: float | None = None, take: Callable[[bytes, int, int], None] | None = None
              ) -> tuple[bytes, Any]:
        """One request: body and headers of its answer; the body goes to `take` piece by piece if that is given."""
        connection = self._connection(self._shortSeconds if seconds is None else seconds)
        sent = {"Authorization": f"Bearer {self._token}", "MVG-Protocol": str(wire.PROTOCOL), **(headers or {})}
        if not self._token:
            del sent["Authorization"]
        try:
            broken = self._send(connection, method, self._parts.path.rstrip("/") + path, body, sent)
            response = connection.getresponse()
            self._checkProtocol(response)
            if response.status >= 400:
                raise _refusal(response.status, response.read(2**20))
            if broken is not None:
                raise broken
            return self._body(response, take), response.headers
        except (ServerError, CallCancelled, wire.WireError):
            raise
        except TimeoutError as error:
            raise ServerUnreachable(f"the server at {self.url} does not answer: it is busy, hangs, or the network is "
                                    "slow", code="timeout") from error
        except ssl.SSLError as error:
            raise ServerUnreachable(f"no secure connection to {self.url} ({error.reason or error}): check the address "
                                    "and the server's certificate", code="tls") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnreachable(f"the server at {self.url} cannot be reached, or ended ({error or 'no answer'}): "
                                    "start it again, or check the address", code="unreachable") from error
        finally:
            connection.close()

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=seconds)

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any,
              headers: Mapping[str, str]) -> Exception | None:
        """Send the request; a server that refuses a large body may close its ear, and what it says is worth hearing."""
        connection.connect()
        try:
            connection.request(method, path, body=body, headers=dict(headers))
        except (BrokenPipeError, ConnectionResetError, ConnectionAbortedError) as error:
            return error
        return None

    def _checkProtocol(self, response: http.client.HTTPResponse) -> None:
        spoken = response.headers.get("MVG-Protocol")
        if spoken is None:
            raise WrongProtocol(f"what answers at {self.url} (status {response.status}) is no MVG server: check the "
                                "address", response.status, "no_mvg_server")
        if spoken != str(wire.PROTOCOL):
            raise WrongProtocol(f"the server at {self.url} speaks protocol {spoken}, this program {wire.PROTOCOL}: "
                                "update the older of the two", response.status, "wrong_protocol")

    def _body(self, response: http.client.HTTPResponse, take: Callable[[bytes, int, int], None] | None) -> bytes:
        if take is None:
            return response.read()
        total, done = int(response.headers.get("Content-Length") or 0), 0
        while piece := response.read(wire.PIECE):
            done += len(piece)
            take(piece, done, total)
        return b""


class BackgroundCall:
    """A call that runs on a thread of its own.

    Args:
        work: is given a function to tell progress to, and one to ask whether to stop.

    Attributes:
        progress: done and total of what is counted; (0, 0) before anything is known.
    """

    def __init__(self, work: Callable[[Progress, Callable[[], bool]], Any]) -> None:
        self.progress = (0, 0)
        self._finished, self._stop = threading.Event(), threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="mvg-call", daemon=True)
        self._thread.start()

    def poll(self, waitSeconds: float = 0.01) -> bool:
        """Whether it has ended; gives the thread so much time to go on."""
        return self._finished.wait(waitSeconds)

    def result(self) -> Any:
        """What the call returned; raises what it raised.

        Raises:
            RuntimeError: it has not ended yet.
        """
        if not self._finished.is_set():
            raise RuntimeError("the call has not ended: ask poll() first")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        """Ask it to stop; a transfer then ends with `CallCancelled`, other calls go to their end."""
        self._stop.set()

    def _run(self, work: Callable[[Progress, Callable[[], bool]], Any]) -> None:
        try:
            self._value = work(self._tell, self._stop.is_set)
        except BaseException as error:
            self._error = error
        finally:
            self._finished.set()

    def _tell(self, done: int, total: int) -> None:
        self.progress = (done, total)


class JobFollower:
    """Watches a job from a thread of its own until it ends, or `close`.

    A few questions that go unanswered are forgiven; then `poll` raises what was wrong.
    """

    FORGIVEN = 3

    def __init__(self, client: Client, jobId: str, everySeconds: float, painted: bool) -> None:
        self.jobId = jobId
        self._client, self._every, self._wanted = client, everySeconds, painted
        self._lock, self._closed, self._news = threading.Lock(), threading.Event(), threading.Event()
        self._status: JobStatus | None = None
        self._painted: dict[int, np.ndarray] = {}
        self._axis, self._after = -1, 0
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="mvg-job", daemon=True).start()

    def poll(self, waitSeconds: float = 0.01) -> JobNews:
        """What is new; gives the thread so much time to go on. Of a slice painted twice only the last is given.

        Raises:
            ServerError: the server is gone, or does not know the job any more.
        """
        self._news.wait(waitSeconds)
        self._news.clear()
        with self._lock:
            painted, self._painted = list(self._painted.items()), {}
            if self._error is not None and not painted:
                raise self._error
            return JobNews(self._status, painted, self._axis)

    def close(self) -> None:
        """Watch no longer; the job goes on."""
        self._closed.set()

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                finished = self._look()
                failures = 0
            except ServerUnreachable as error:
                failures += 1
                # A refused connection means that nobody is there; a slow answer may still come.
                finished = failures >= self.FORGIVEN or error.code != "timeout"
                self._error = error if finished else None
            except Exception as error:
                finished, self._error = True, error
            self._news.set()
            if finished:
                return
            self._closed.wait(self._every)

    def _look(self) -> bool:
        """Ask once; whether the job has ended."""
        status = self._client.status(self.jobId)
        painted: list[tuple[int, np.ndarray]] = []
        axis = self._axis
        while self._wanted and status.painted > self._after:  # only so many come at once
            more, axis, following = self._client.painted(self.jobId, self._after)
            painted += more
            if following <= self._after:
                break
            self._after = following
        with self._lock:
            self._status, self._axis = status, axis
            self._painted.update(painted)
        return status.isFinished


def _watched(pieces: Iterator[Any], total: int, progress: Progress | None, isCancelled: Callable[[], bool] | None
             ) -> Iterator[Any]:
    """Pieces of a body on their way; deflated ones count for what they were read from at the end only."""
    done = 0
    for piece in pieces:
        if isCancelled is not None and isCancelled():
            raise CallCancelled
        yield piece
        done += len(piece)
        if progress is not None:
            progress(min(done, total), total)


def _status(values: Mapping[str, Any]) -> JobStatus:
    return JobStatus(str(values["id"]), str(values["state"]), int(values["done"]), int(values["total"]),
                     float(values["seconds"]), str(values["error"] or ""), int(values["painted"]),
                     int(values["ahead"]), bool(values["has_result"]))


def _refusal(status: int, body: bytes) -> ServerError:
    """The error that an answer stands for."""
    try:
        error = json.loads(body)["error"]
        return ServerError(str(error["message"]), status, str(error["code"]))
    except (ValueError, KeyError, TypeError):
        if status in (401, 403):
            return ServerError("the server does not accept the key: check it", status, "unauthorized")
        return ServerError(f"the server refused (status {status})", status)


def _sliceless(job: Mapping[str, Any]) -> dict[str, Any]:
    """What jobs and previews have in common."""
    return {name: value for name, value in job.items() if name != "slices"}


def _name(jobId: str) -> str:
    return urllib.parse.quote(str(jobId), safe="")
