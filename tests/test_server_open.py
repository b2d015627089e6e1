"""A server that other machines can reach: who is let in, under which addresses and names, and what a browser may do.

One process of `mvg serve --host 0.0.0.0`, asked through the machine's own addresses as another machine would; 20 s.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# MVGLib is found by tests/server_process.py.
from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import (
    AFFINE,
    ENVIRONMENT,
    Client,
    ServerError,
    ServerUnreachable,
    new_worker,
    subject,
    wait_for,
    wait_for_job,
)
from tiny import write_weights

from mvg_core.server import wire
from mvg_core.server.process import Start, _line, _listen
from mvg_core.server.settings import Limits

KEY = "a-key-of-the-laboratory-0123456789"
UPLOAD_MB = 2


@dataclass(frozen=True)
class Running:
    """A server that was started by hand."""

    said: dict[str, Any]
    port: int
    log: Path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("open") / "tiny.pt")


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[Running]:
    """Started as the guide says, on a free port."""
    folder = weights.parent
    (folder / "key").write_text(KEY + "\n")
    command = [sys.executable, "-m", "mvg_core", "serve", "--host", "0.0.0.0", "--port", "0", "--threads", "1",
               "--key-file", str(folder / "key"), "--weights", str(weights), "--max-upload", str(UPLOAD_MB)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                   env=ENVIRONMENT)
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        yield Running(said, int(said["url"].rpartition(":")[2]), folder / "log")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130), "ended by Ctrl+C"
        assert b"Traceback" not in (folder / "log").read_bytes()
    finally:
        process.kill()
        process.wait()


def outer_address() -> str:
    """This machine's address as others know it; another one of the loopback where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing: only asks which way it would go
            found = asking.getsockname()[0]
        except OSError:
            found = ""
    return found if found and not found.startswith("127.") else "127.0.0.2"


def ask(server: Running, method: str, path: str, host: str = "", body: bytes | None = None, **headers: Any
        ) -> tuple[int, bytes, http.client.HTTPMessage]:
    """A request with exactly these headers."""
    connection = http.client.HTTPConnection(host or outer_address(), server.port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def client_of(server: Running, key: str = KEY, host: str = "") -> Client:
    return Client(f"http://{host or outer_address()}:{server.port}", key)


# --- another machine ---


def test_it_says_where_it_is_and_keeps_the_key_to_itself(server: Running) -> None:
    assert set(server.said) == {"url", "pid", "protocol"}
    assert server.said["url"] == f"http://127.0.0.1:{server.port}", "0.0.0.0 is no address to go to"
    assert Client(server.said["url"], KEY).capabilities()["limits"]["volume_bytes"] == UPLOAD_MB * 10**6
    wait_for(lambda: "reverse proxy with TLS" in server.log.read_text())


@pytest.mark.parametrize("host", ["127.0.0.2", outer_address()])
def test_with_the_key_another_machine_gets_its_answer(server: Running, host: str) -> None:
    image, label = subject()
    client = client_of(server, host=host)
    assert not client.isLocal
    query = client.uploadVolume(image, AFFINE)  # deflated, as it goes through a network
    job = client.submit({"task": "segmentation", "query": query, "plane": 2, "slices": [4, 8], "references": [
        {"image": query, "label": client.uploadVolume(label, AFFINE), "slices": [6]}]})
    assert wait_for_job(client, job).error == ""
    array, affine = client.result(job)
    assert np.array_equal(array[..., 6], label[..., 6])
    assert np.array_equal(affine, AFFINE)


@pytest.mark.parametrize("header", [
    None, "", "Bearer", "Bearer ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Bearer {KEY.upper()}", f"Bearer  {KEY}",
    f"Basic {KEY}", KEY, f"Bearer {KEY}, Bearer {KEY}", "Bearer \xff\xfe"])
def test_without_exactly_the_key_nothing_is_told(server: Running, header: str | None) -> None:
    given: dict[str, Any] = {} if header is None else {"Authorization": header}
    for method, path in (("GET", "/v1/capabilities"), ("POST", "/v1/jobs"), ("GET", f"/v1/capabilities?key={KEY}"),
                         ("GET", "/"), ("DELETE", f"/v1/volumes/{'0' * 64}"), ("POST", "/v1/shutdown")):
        status, body, _ = ask(server, method, path, **given)
        assert (status, json.loads(body)["error"]["code"]) == (401, "unauthorized")
        assert KEY.encode() not in body


def test_what_is_open_says_nothing_of_volumes_and_jobs(server: Running) -> None:
    status, body, _ = ask(server, "GET", "/v1/health")
    assert (status, set(json.loads(body))) == (200, {"status", "protocol", "version", "busy"})
    for path in ("/v1/docs", "/v1/openapi.json"):
        assert ask(server, "GET", path)[0] == 200


def test_who_has_no_key_uploads_nothing(server: Running) -> None:
    before = client_of(server).capabilities()
    body = b"".join(wire.chunks(np.zeros((50, 50, 50), np.uint8), AFFINE))
    identity = wire.identity(np.zeros((50, 50, 50), np.uint8), AFFINE)
    assert ask(server, "PUT", f"/v1/volumes/{identity}", body=body, Content_Type=wire.MEDIA)[0] == 401
    after = client_of(server).capabilities()
    assert (after["volumes"], after["memory_used"]) == (before["volumes"], before["memory_used"])


def test_uploads_from_elsewhere_are_limited(server: Running) -> None:
    client = client_of(server)
    large = np.random.default_rng(0).integers(0, 255, (150, 150, 100), np.uint8)  # 2.25 MB
    with pytest.raises(ServerError, match="crop or resample") as refused:
        client.uploadVolume(large, AFFINE)
    assert (refused.value.status, refused.value.code) == (413, "too_large")
    # Packed so small that its length says nothing: what it unpacks to counts.
    bomb = np.zeros((1000, 1000, 100), np.uint8)
    body = b"".join(bytes(piece) for piece in wire.chunks(bomb, AFFINE, "zlib"))
    assert len(body) < 10**6
    status, answer, _ = ask(server, "PUT", f"/v1/volumes/{wire.identity(bomb, AFFINE)}", body=body,
                            Authorization=f"Bearer {KEY}", Content_Type=wire.MEDIA)
    assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large")
    assert not client.hasVolume(wire.identity(bomb, AFFINE))


def test_nobody_ends_it_from_elsewhere(server: Running) -> None:
    with pytest.raises(ServerError, match="who started it ends it") as refused:
        client_of(server).shutdown()
    assert refused.value.status == 403
    assert client_of(server).health()["status"] == "ok"


def test_wrong_keys_are_noted_with_the_address_and_not_with_the_key(server: Running) -> None:
    with pytest.raises(ServerError, match="key"):
        client_of(server, "guessed-key-0123456789", "127.0.0.2").capabilities()
    wait_for(lambda: "GET /v1/capabilities 401" in server.log.read_text())
    text = server.log.read_text()
    assert "from 127.0." in text
    assert "guessed-key" not in text
    assert KEY not in text
    # Behind a proxy on the same machine the proxy says who asked, in any words.
    ask(server, "GET", "/v1/jobs/a", host="127.0.0.1", X_Forwarded_For="203.0.113.7")
    wait_for(lambda: "from 203.0.113.7" in server.log.read_text())
    ask(server, "GET", "/v1/jobs/b", host="127.0.0.1", X_Forwarded_For="x\x1b[31m" + "y" * 500)
    wait_for(lambda: "/v1/jobs/b 401" in server.log.read_text())
    assert "\x1b" not in server.log.read_text()
    assert "y" * 200 not in server.log.read_text()


# --- behind TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mvg",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key", "-out", folder / "crt"],
                   check=True, capture_output=True)
    (folder / "both").write_bytes((folder / "key").read_bytes() + (folder / "crt").read_bytes())
    return folder / "both"


@pytest.fixture(scope="module")
def proxy(server: Running, certificate: Path) -> Iterator[str]:
    """What stands before the server in the guide: takes TLS, passes plain HTTP on. Its address."""
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(certificate)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(2**16):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def serve(talk: socket.socket) -> None:
        with contextlib.suppress(OSError), secured.wrap_socket(talk, server_side=True) as outer, \
                socket.create_connection(("127.0.0.1", server.port)) as inner:
            threading.Thread(target=pump, args=(outer, inner), daemon=True).start()
            pump(inner, outer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def test_the_client_works_through_tls(proxy: str, certificate: Path) -> None:
    client = Client(proxy, KEY, caFile=str(certificate.with_name("crt")), packed=True)
    image, label = subject()
    query = client.uploadVolume(image, AFFINE)
    preview = client.preview({"task": "segmentation", "query": query, "plane": 2, "references": [
        {"image": query, "label": client.uploadVolume(label, AFFINE), "slices": [6]}]}, 6)
    assert np.array_equal(preview.label, label[..., 6])
    with pytest.raises(ServerError, match="key"):
        Client(proxy, "wrong", caFile=str(certificate.with_name("crt"))).capabilities()


def test_a_certificate_that_nobody_vouches_for_gets_no_key(proxy: str) -> None:
    with pytest.raises(ServerUnreachable, match="certificate") as refused:
        Client(proxy, KEY).capabilities()
    assert refused.value.code == "tls"


# --- names, browsers, and other oddities ---


@pytest.mark.parametrize("name", ["evil.example.org", "127.0.0.1:1", "", "[::1]", "a" * 300, "mvg.example.org:443"])
def test_the_name_by_which_it_is_called_opens_nothing(server: Running, name: str) -> None:
    """A web page that gives its own name this machine's address (DNS rebinding) still has no key."""
    status, body, _ = ask(server, "GET", "/v1/capabilities", Host=name)
    assert (status, json.loads(body)["error"]["code"]) == (401, "unauthorized")
    status, body, headers = ask(server, "GET", "/v1/capabilities", Host=name, Authorization=f"Bearer {KEY}")
    assert status == 200, "behind a proxy it is called by the proxy's name"
    assert not name or name.encode() not in body
    assert "Location" not in headers


@pytest.mark.parametrize("path", ["/v1/health", "/v1/capabilities", f"/v1/volumes/{'0' * 64}"])
def test_web_pages_of_others_may_not_read_it(server: Running, path: str) -> None:
    asked: dict[str, Any] = {"Origin": "https://evil.example.org", "Access-Control-Request-Method": "PUT",
                             "Access-Control-Request-Headers": "authorization"}
    status, _, headers = ask(server, "OPTIONS", path, **asked)
    assert status in (401, 405), "a browser asks before, and is not allowed"
    _, _, plain = ask(server, "GET", path, Origin="https://evil.example.org", Authorization=f"Bearer {KEY}")
    for found in (headers, plain):
        assert not [name for name in found if name.lower().startswith("access-control-")]
        assert "Set-Cookie" not in found, "a browser would send it along for any page"
    assert plain["Cache-Control"] == "no-store"
    assert plain["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("request_line", [
    b"GET /v1/capabilities HTTP/1.1\r\n\r\n",  # no Host
    b"GET http://evil.example.org/v1/capabilities HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT evil.example.org:443 HTTP/1.1\r\nHost: evil.example.org\r\n\r\n",
    b"GET /v1/capabilities HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /v1/jobs HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    b"PUT /v1/volumes/" + b"0" * 64 + b" HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"PUT /v1/volumes/" + b"0" * 64 + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody who speaks TLS
    b"\x00\r\n\r\n"])
def test_odd_requests_are_refused_and_do_no_harm(server: Running, request_line: bytes) -> None:
    with socket.create_connection((outer_address(), server.port), timeout=10) as talk:
        talk.sendall(request_line)
        talk.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := talk.recv(2**16):
            answer += piece
            if len(answer) > 10**6:
                break
    status = int(answer.split(b" ", 2)[1]) if answer else 400
    assert status >= 400
    assert client_of(server).health()["status"] == "ok"


def test_endless_headers_are_cut_off(server: Running) -> None:
    sent = 0
    with socket.create_connection((outer_address(), server.port), timeout=10) as talk, contextlib.suppress(OSError):
        talk.sendall(b"GET /v1/health HTTP/1.1\r\nHost: a\r\nX: ")
        while sent < 10**8:
            talk.sendall(b"y" * 2**16)
            sent += 2**16
    assert sent < 5 * 10**7, "more than what the buffers on the way hold"
    assert client_of(server).health()["status"] == "ok"


def test_headers_are_limited_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself uvicorn would choose httptools where that is installed, which limits no header."""
    from mvg_core.server import process

    chosen: list[dict[str, Any]] = []

    class Enough(Exception):
        """Nothing needs to be served."""

    def config(_: Any, **options: Any) -> None:
        chosen.append(options)
        raise Enough

    monkeypatch.setattr(process.uvicorn, "Config", config)
    monkeypatch.setattr(process, "create_app", lambda *_: None)
    with pytest.raises(Enough):
        process.serve(None, Start(), Limits())  # type: ignore[arg-type]
    assert chosen[0]["http"] == "h11"


# --- who is not let in at all ---


def test_without_host_only_this_machine_can_reach_it(weights: Path) -> None:
    with new_worker(weights) as worker:
        port = worker.waitUntilReady()._parts.port
        for host in ("127.0.0.2", outer_address()):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((host, port), timeout=5)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "127.0.0.2", "example.org", "127.1"])
def test_a_key_is_needed_wherever_else_it_listens(host: str) -> None:
    with pytest.raises(ValueError, match="a key is needed"):
        Start(host).check()
    Start(host, key=KEY).check()


@pytest.mark.parametrize(("host", "address"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("::", "[::1]")])
def test_the_address_that_is_said_can_be_gone_to(host: str, address: str) -> None:
    try:
        listening = _listen(host, 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listening:
        port = listening.getsockname()[1]
        assert json.loads(_line(Start(host, key=KEY), listening, KEY))["url"] == f"http://{address}:{port}"
        socket.create_connection((address.strip("[]"), port), timeout=5).close()


def test_on_windows_nobody_else_can_take_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    # Any option that can be read back stands for the one of Windows.
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
    with _listen("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    monkeypatch.delattr(socket, "SO_EXCLUSIVEADDRUSE")
    with _listen("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
