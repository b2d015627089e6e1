"""What a running server answers: to good requests what the library would, to bad ones an error that says what to do.

One process with tiny memory and a short queue serves all tests; about 20 s.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# MVGLib is found by tests/server_process.py.
from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance  # any bytes are no volume
from server_process import (
    AFFINE,
    CallCancelled,
    Client,
    ServerError,
    ServerUnreachable,
    WrongProtocol,
    new_worker,
    subject,
    wait_for,
    wait_for_job,
)
from tiny import write_weights

from mvg_core.engine import VolumeEngine
from mvg_core.references import Reference
from mvg_core.server import routes_jobs, routes_server, routes_volumes, wire
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, Volume

SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
MEMORY_MB, UPLOAD_MB, QUEUE = 40, 8, 2
IMAGE, LABEL = subject()
OTHER, OTHER_LABEL = subject(14, seed=1, shift=2)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("server") / "tiny.pt")


@pytest.fixture(scope="session")
def running(weights: Path) -> Iterator[Any]:
    with new_worker(weights, "--memory", str(MEMORY_MB), "--max-upload", str(UPLOAD_MB), "--queue", str(QUEUE)) as one:
        one.waitUntilReady()
        yield one


@pytest.fixture
def client(running: Any) -> Client:
    return Client(running.client.url, running.client._token, longSeconds=60)


@pytest.fixture(scope="session")
def engine(weights: Path) -> VolumeEngine:
    return VolumeEngine.load(weights, "fast", threads=1)


def volume(array: np.ndarray) -> Volume:
    return Volume(array, Geometry(array.shape, AFFINE))


def own_slice_job(client: Client, **changes: Any) -> dict[str, Any]:
    """Slice 6 of the query is solved."""
    query, label = client.uploadVolume(IMAGE, AFFINE), client.uploadVolume(LABEL, AFFINE)
    return {"task": "segmentation", "query": query, "labels": {"3": "block"}, "plane": 2, "preset": "fast",
            "references": [{"image": query, "label": label, "slices": [6]}], **changes}


def other_subject_job(client: Client, **changes: Any) -> dict[str, Any]:
    image, label = client.uploadVolume(OTHER, AFFINE), client.uploadVolume(OTHER_LABEL, AFFINE)
    return own_slice_job(client, references=[{"image": image, "label": label, "name": "other"}], **changes)


def long_job(client: Client) -> dict[str, Any]:
    """One that takes many seconds."""
    image, label = subject(600)
    query, solved = client.uploadVolume(image, AFFINE), client.uploadVolume(label, AFFINE)
    return own_slice_job(client, query=query, references=[{"image": query, "label": solved, "slices": [300]}],
                         parts={"stop_after": 0, "focus": 0.0})


def raw(client: Client, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
        ) -> tuple[int, bytes, Any]:
    """A request as any program could send it: status, body and headers of the answer."""
    connection = http.client.HTTPConnection(client._parts.netloc, timeout=30)
    token = client._token if token is None else token
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def code_of(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message"}
    assert error["message"]
    return error["code"]


# --- the answers ---


def test_a_segmentation_equals_the_librarys_own(client: Client, engine: VolumeEngine) -> None:
    job = client.submit(own_slice_job(client))
    status = wait_for_job(client, job)
    assert (status.state, status.error, status.hasResult) == ("done", "", True)
    expected = engine.solve(volume(IMAGE), Reference(volume(IMAGE), volume(LABEL), slices=(6,)),
                            Task.segmentation({3: "block"}), plane=2)
    array, affine = client.result(job)
    assert array.dtype == np.uint8
    assert np.array_equal(array, expected.volume.array)
    assert np.array_equal(affine, AFFINE)
    assert np.array_equal(array[..., 6], LABEL[..., 6])
    sure, _ = client.confidence(job)
    assert expected.confidence is not None
    assert np.abs(sure - expected.confidence.array).max() <= 0.5 / 255 + 1e-6
    report = client.report(job)
    assert {"slice_quality", "suggested_slices", "doubtful_slices", "warnings"} <= set(report)
    assert report["labelled_slices"] == [6]


def test_other_subjects_are_registered_as_the_library_does(client: Client, engine: VolumeEngine) -> None:
    job = client.submit(other_subject_job(client))
    assert wait_for_job(client, job).state == "done"
    expected = engine.solve(volume(IMAGE), Reference(volume(OTHER), volume(OTHER_LABEL), "other"),
                            Task.segmentation({3: "block"}), plane=2)
    assert np.array_equal(client.result(job)[0], expected.volume.array)
    assert expected.volume.array.any()


def test_a_prepared_preview_does_not_register_again(client: Client) -> None:
    work = other_subject_job(client, window=[0.0, 300.0])
    client.encode(work)
    started = time.process_time()
    first = client.preview(work, 5)
    again = client.preview(work, 5)
    assert time.process_time() - started < 5
    assert first.label.shape == (40, 36)
    assert (first.axis, first.number) == (2, 5)
    assert np.array_equal(first.label, again.label)
    assert first.confidence is not None
    assert first.confidence.shape == (40, 36)


def test_a_preview_is_the_slice_of_the_library(client: Client, weights: Path) -> None:
    from mvg_core.engine import EngineConfig

    plain = VolumeEngine.load(weights, EngineConfig.preset("fast", memory=0), threads=1)
    for number in (4, 9):
        expected = plain.solve(volume(IMAGE), Reference(volume(IMAGE), volume(LABEL), slices=(6,)),
                               Task.segmentation({3: "block"}), plane=2, slices=(number, number))
        assert np.array_equal(client.preview(own_slice_job(client), number).label, expected.volume.array[..., number])


@pytest.mark.parametrize("axis", [0, 1])
def test_previews_of_other_axes_have_their_shape(client: Client, axis: int) -> None:
    found = client.preview(own_slice_job(client, plane=axis, references=[
        {**own_slice_job(client)["references"][0], "slices": [18]}]), 15)
    assert found.axis == axis
    assert found.label.shape == tuple(np.delete(IMAGE.shape, axis))


@pytest.mark.parametrize("task", ["denoising", "synthesis", "inpainting"])
def test_images_are_painted_as_by_the_library(client: Client, engine: VolumeEngine, task: Any) -> None:
    hole = np.zeros(IMAGE.shape, np.uint8)
    hole[15:20, 15:20, 4:8] = 1
    query, target = client.uploadVolume(IMAGE, AFFINE), client.uploadVolume(OTHER, AFFINE)
    given = client.uploadVolume(hole, AFFINE) if task == "inpainting" else None
    work = {"task": task, "query": query, "references": [{"image": target, "label": target}], "plane": "axial",
            "hole": given, "slices": [3, 8]}
    job = client.submit(work)
    assert wait_for_job(client, job).error == ""
    expected = engine.solve(volume(IMAGE), Reference(volume(OTHER), volume(OTHER)), Task(task), plane="axial",
                            hole=volume(hole) if given else None, slices=(3, 8))
    assert np.array_equal(client.result(job)[0], expected.volume.array)
    with pytest.raises(ServerError) as refused:
        client.confidence(job)
    assert (refused.value.status, refused.value.code) == (404, "no_result")
    preview = client.preview({name: value for name, value in work.items() if name != "slices"}, 5)
    assert preview.label.dtype == np.float32
    assert preview.confidence is None


def test_the_answer_grows_slice_by_slice(client: Client) -> None:
    job = client.submit(own_slice_job(client))
    follower = client.follow(job, everySeconds=0.01)
    seen: dict[int, np.ndarray] = {}
    axis = -1

    def ended() -> bool:
        nonlocal axis
        news = follower.poll()
        seen.update(news.painted)
        axis = news.axis
        return news.status is not None and news.status.isFinished

    wait_for(ended)
    seen.update(follower.poll().painted)
    result = client.result(job)[0]
    assert axis == 2
    assert set(np.flatnonzero(result.any(axis=(0, 1)))) - {6} <= set(seen)
    assert all(np.array_equal(result[..., number], answer) for number, answer in seen.items())


def test_answers_travel_deflated_too(client: Client, running: Any) -> None:
    job = client.submit(own_slice_job(client))
    wait_for_job(client, job)
    packing = Client(client.url, client._token, packed=True)
    assert np.array_equal(packing.result(job)[0], client.result(job)[0])
    array = np.arange(60_000, dtype=np.int16).reshape(30, 40, 50)
    seen: list[tuple[int, int]] = []
    identity = packing.uploadVolume(array, AFFINE, progress=lambda *step: seen.append(step))
    assert client.hasVolume(identity)
    assert seen[-1] == (array.nbytes, array.nbytes)


def test_capabilities_say_what_there_is(client: Client, weights: Path) -> None:
    from mvg_core.weights import file_sha256

    found = client.capabilities()
    assert found["tasks"] == ["segmentation", "denoising", "inpainting", "synthesis"]
    assert list(found["presets"]) == ["plain", "fast", "balanced", "accurate"]
    assert found["presets"]["fast"]["size"] == 128
    assert found["limits"]["volume_bytes"] == UPLOAD_MB * 10**6
    assert found["weights"]["sha256"] == file_sha256(weights)
    assert (found["backend"], found["device"]) == ("torch", "cpu")
    assert client.health()["protocol"] == wire.PROTOCOL


# --- the key and the version ---


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/v1/capabilities"), ("HEAD", f"/v1/volumes/{'0' * 64}"), ("PUT", f"/v1/volumes/{'0' * 64}"),
    ("POST", "/v1/jobs"), ("POST", "/v1/preview"), ("POST", "/v1/encode"), ("GET", f"/v1/jobs/{'0' * 32}"),
    ("POST", "/v1/shutdown"), ("GET", "/nowhere")])
def test_nothing_is_done_without_the_key(client: Client, method: str, path: str) -> None:
    for token in ("", "wrong", client._token[:-1], client._token + "x"):
        status, body, headers = raw(client, method, path, token=token)
        assert (status, headers["MVG-Protocol"]) == (401, "1")
        assert method == "HEAD" or code_of(body) == "unauthorized"


def test_the_client_says_that_the_key_is_wrong(client: Client) -> None:
    with pytest.raises(ServerError, match="key") as refused:
        Client(client.url, "wrong").capabilities()
    assert refused.value.status == 401
    assert Client(client.url).health()["status"] == "ok"  # needs none


def test_other_versions_of_the_protocol_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    status, body, headers = raw(client, "GET", "/v1/capabilities", **{"MVG-Protocol": "2"})
    assert (status, code_of(body), headers["MVG-Protocol"]) == (400, "wrong_protocol", "1")
    import MVGLib.wire

    monkeypatch.setattr(MVGLib.wire, "PROTOCOL", 2)
    with pytest.raises(WrongProtocol, match=r"speaks protocol 1, this program 2"):
        client.health()


def test_another_program_is_not_taken_for_a_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def answer() -> None:
            talk, _ = listening.accept()
            talk.recv(1000)
            talk.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            talk.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(WrongProtocol, match="no MVG server"):
            Client(f"http://127.0.0.1:{listening.getsockname()[1]}").health()


def test_who_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        silent = Client(f"http://127.0.0.1:{listening.getsockname()[1]}", shortSeconds=0.2)
        started = time.monotonic()
        with pytest.raises(ServerUnreachable) as gone:
            silent.health()
        assert (gone.value.code, time.monotonic() - started < 5) == ("timeout", True)
    with pytest.raises(ServerUnreachable, match="start it again"):
        silent.health()


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://", "http://host/?a=1"])
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address of a server"):
        Client(url)


def test_the_list_of_requests_is_a_page(client: Client) -> None:
    status, page, headers = raw(client, "GET", "/v1/docs", token="")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/html")
    assert b"/v1/jobs/{identity}/painted" in page
    assert b"http" not in page.replace(b"over HTTP", b"")  # loads nothing from elsewhere


# --- uploads ---


def test_a_volume_is_uploaded_once(client: Client) -> None:
    array = IMAGE + np.int16(1)
    identity = wire.identity(array, AFFINE)
    assert not client.hasVolume(identity)
    call = client.inBackground(client.uploadVolume, array, AFFINE)
    wait_for(call.poll)
    assert call.result() == identity
    assert call.progress == (array.nbytes, array.nbytes)
    assert client.hasVolume(identity)
    status, body, _ = raw(client, "PUT", f"/v1/volumes/{identity}", b"".join(wire.chunks(array, AFFINE)))
    assert (status, json.loads(body)) == (200, {"id": identity, "bytes": array.nbytes})
    client.deleteVolume(identity)
    client.deleteVolume(identity)
    assert not client.hasVolume(identity)


def test_a_volume_under_another_hash_is_refused(client: Client) -> None:
    other = wire.identity(IMAGE, np.eye(4))
    status, body, _ = raw(client, "PUT", f"/v1/volumes/{other}", b"".join(wire.chunks(IMAGE, AFFINE)))
    assert (status, code_of(body)) == (422, "wrong_hash")
    assert not client.hasVolume(other)


@pytest.mark.parametrize(("body", "status", "code"), [
    (b"", 422, "bad_volume"),
    (b"nonsense", 422, "bad_volume"),
    (b"".join(wire.chunks(IMAGE, AFFINE))[:-9], 422, "bad_volume"),
    (b"".join(wire.chunks(IMAGE, np.zeros((4, 4)))), 422, "bad_volume"),  # no grid
    (wire.head(np.broadcast_to(np.int16(0), (2000, 2000, 2)), AFFINE), 413, "too_large"),
    (bytes(UPLOAD_MB * 10**6 + 10**6), 413, "too_large")])
def test_bad_bodies_are_refused_and_leave_nothing(client: Client, body: bytes, status: int, code: str) -> None:
    before = client.capabilities()
    address = wire.identity(IMAGE, np.zeros((4, 4))) if len(body) > 1000 else "0" * 64
    found, answer, _ = raw(client, "PUT", f"/v1/volumes/{address}", body)
    assert (found, code_of(answer)) == (status, code)
    after = client.capabilities()
    assert (after["memory_used"], after["volumes"]) == (before["memory_used"], before["volumes"])


def test_an_endless_body_is_cut_off(client: Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10**9:
            sent += 2**18
            yield bytes(2**18)

    with contextlib.suppress(OSError, http.client.HTTPException):
        assert raw(client, "PUT", f"/v1/volumes/{'0' * 64}", endless())[0] == 422
    assert sent < 2 * 10**8
    assert client.health()["status"] == "ok"


@pytest.mark.parametrize("chunked", [False, True])
def test_other_requests_may_not_be_large(client: Client, chunked: bool) -> None:
    spaces = b" " * (2**21)
    body = (piece for piece in [spaces]) if chunked else spaces
    status, answer, _ = raw(client, "POST", "/v1/jobs", body, **{"Content-Type": "application/json"})
    assert (status, code_of(answer)) == (413, "too_large")


def test_the_client_does_not_begin_what_is_too_large(client: Client) -> None:
    with pytest.raises(ServerError, match="crop") as refused:
        client.uploadVolume(np.zeros((300, 300, 100), np.uint8), AFFINE)
    assert refused.value.status == 413


def test_a_broken_off_upload_leaves_nothing(client: Client) -> None:
    before = client.capabilities()["memory_used"]
    array = np.zeros((100, 100, 300), np.int16)
    body = b"".join(wire.chunks(array, AFFINE))
    for part in (4, 60, len(body) // 2, len(body) - 1):
        talk = socket.create_connection((client._parts.hostname, client._parts.port))
        talk.sendall(f"PUT /v1/volumes/{wire.identity(array, AFFINE)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                     f"{client._token}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:part])
        talk.close()
    wait_for(lambda: client.capabilities()["memory_used"] == before)
    assert not client.hasVolume(wire.identity(array, AFFINE))


def test_an_upload_can_be_cancelled(client: Client) -> None:
    before = client.capabilities()["memory_used"]
    array = np.random.default_rng(3).integers(0, 9, (200, 200, 90)).astype(np.int16)
    with pytest.raises(CallCancelled):
        client.uploadVolume(array, AFFINE, isCancelled=iter([False, False, False, True]).__next__)
    wait_for(lambda: client.capabilities()["memory_used"] == before)
    assert not client.hasVolume(wire.identity(array, AFFINE))


def test_the_least_recently_used_volumes_make_room(client: Client) -> None:
    def large(value: int) -> np.ndarray:
        return np.full((100, 100, 375), value, np.int16)  # 7.5 MB: five fill the memory

    held = [client.uploadVolume(large(value), AFFINE) for value in range(4)]
    assert client.hasVolume(held[0])  # used again
    held += [client.uploadVolume(large(value), AFFINE) for value in (4, 5)]
    assert client.capabilities()["memory_used"] <= MEMORY_MB * 10**6
    assert [client.hasVolume(one) for one in held] == [True, False, True, True, True, True]


def test_without_memory_nothing_is_promised(client: Client) -> None:
    thin = np.zeros((4000, 1000, 1), np.uint8)
    thin[:50] = np.arange(50, dtype=np.uint8)[:, None, None]
    query = client.uploadVolume(thin, AFFINE)
    work = {"task": "denoising", "query": query, "references": [{"image": query, "label": query}]}
    with pytest.raises(ServerError, match="no memory") as refused:
        client.submit(work)  # 48 MB
    assert refused.value.status == 507
    client.deleteVolume(query)  # nobody uses it


@pytest.mark.parametrize("path", [
    "/v1/volumes/../../../etc/passwd", "/v1/volumes/..%2f..%2fetc%2fpasswd", "/v1/volumes/%00", "/v1/jobs/../health",
    f"/v1/volumes/{'0' * 63}g", f"/v1/volumes/{'A' * 64}", f"/v1/volumes/{'0' * 64}/", "//v1/health", "/etc/passwd",
    f"/v1/volumes/{'0' * 64}%0a", "/v1/jobs/%2e%2e/result", "/v1/jobs/%ff%fe", "/../v1/capabilities"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_paths_lead_nowhere_else(client: Client, path: str, method: str) -> None:
    status, body, _ = raw(client, method, path, b"x")
    assert status in (404, 405, 422)
    assert b"root:" not in body
    code_of(body)


# --- jobs ---


@pytest.mark.parametrize(("changes", "message"), [
    ({"task": "magic"}, "task"),
    ({"query": "0" * 64}, "upload it"),
    ({"query": "../../etc/passwd"}, "query"),
    ({"references": []}, "references"),
    ({"labels": {"256": "x"}}, "labels"),
    ({"labels": {"0": "x"}}, "labels"),
    ({"plane": 3}, "plane"),
    ({"plane": "up"}, "plane"),
    ({"slices": [3]}, "slices"),
    ({"slices": [5, 3]}, "lower number first"),
    ({"slices": [0, 12]}, "they are 0 to 11"),
    ({"window": [5.0, 5.0]}, "window"),
    ({"window": [float("nan"), 1.0]}, "window"),
    ({"preset": "best"}, "preset"),
    ({"parts": {"nonsense": 1}}, "no part 'nonsense'"),
    ({"parts": {"focus": "large"}}, "focus needs a number"),
    ({"parts": {"size": 1_600_000}}, "at most 1024"),
    ({"parts": {"tuning": 10**9}}, "at most 1000"),
    ({"more": 1}, "more")])
def test_jobs_that_cannot_be_done_are_refused(client: Client, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError, match=message) as refused:
        client.submit(own_slice_job(client, **changes))
    assert refused.value.status in (404, 422)


def test_what_only_the_computation_finds_out_fails_with_words(client: Client) -> None:
    empty = client.uploadVolume(np.zeros(IMAGE.shape, np.uint8), AFFINE)
    work = own_slice_job(client, labels={})
    work["references"][0].update(label=empty, name="patient \u00fc")
    status = wait_for_job(client, client.submit(work))
    assert (status.state, status.hasResult) == ("failed", False)
    assert "is empty: label at least one slice" in status.error
    with pytest.raises(ServerError, match="is empty") as refused:
        client.result(status.id)
    assert refused.value.status == 404
    with pytest.raises(ServerError, match="is empty") as refused:
        client.preview(work, 3)
    assert refused.value.status == 422


def test_bodies_that_are_no_json_are_refused(client: Client) -> None:
    for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"task": "segmentation"}', b"[" * 100_000,
                 b'{"labels": {"\\ud800": "x"}}', b'{"query": "\\ud800"}'):
        status, answer, _ = raw(client, "POST", "/v1/jobs", body, **{"Content-Type": "application/json"})
        assert status in (400, 422)
        assert code_of(answer) == "bad_request"


def test_the_queue_has_an_end_and_jobs_can_be_cancelled(client: Client) -> None:
    work = long_job(client)
    running = client.submit(work)
    wait_for(lambda: client.status(running).done > 3)
    waiting = [client.submit(work) for _ in range(QUEUE)]
    assert [client.status(job).ahead for job in waiting] == [1, 2]
    assert client.health()["busy"] is True
    with pytest.raises(ServerError, match="waiting already") as full:
        client.submit(work)
    assert (full.value.status, full.value.code) == (429, "queue_full")
    with pytest.raises(ServerError) as early:
        client.result(running)
    assert (early.value.status, early.value.code) == (409, "not_finished")
    with pytest.raises(ServerError) as needed:
        client.deleteVolume(work["query"])
    assert (needed.value.status, needed.value.code) == (409, "in_use")

    # A preview goes between two slices of the job that runs.
    before = client.status(running)
    assert client.preview({**own_slice_job(client)}, 4).label.shape == (40, 36)
    assert before.state == client.status(running).state == "running"

    client.cancel(waiting[0])
    status = client.status(waiting[0])
    assert (status.state, status.hasResult, status.seconds) == ("cancelled", False, 0)
    client.deleteJob(waiting[1])
    with pytest.raises(ServerError) as forgotten:
        client.status(waiting[1])
    assert (forgotten.value.status, forgotten.value.code) == (404, "unknown_job")
    client.deleteJob(waiting[1])

    client.cancel(running)
    status = wait_for_job(client, running)
    assert (status.state, status.hasResult) == ("cancelled", True)
    assert 0 < status.done < status.total
    partial = client.result(running)[0]
    assert partial.shape == (40, 36, 600)
    painted = {number for number, _ in _all_painted(client, running)}
    assert 0 < len(painted) < 599
    assert set(np.flatnonzero(partial.any(axis=(0, 1)))) <= painted | {300}
    assert client.report(running)["labelled_slices"] == [300]
    client.cancel(running)  # does no harm
    wait_for(lambda: not client.health()["busy"])
    used = client.capabilities()["memory_used"]
    client.deleteJob(running)
    assert client.capabilities()["memory_used"] == used - partial.nbytes * 2
    client.deleteVolume(work["query"])


def _all_painted(client: Client, job: str) -> list[tuple[int, np.ndarray]]:
    found, after = [], 0
    while True:
        pairs, _, following = client.painted(job, after)
        found += pairs
        if following == after:
            return found
        after = following


def test_a_deleted_job_gives_its_memory_back_while_it_runs(client: Client) -> None:
    work = long_job(client)
    used = client.capabilities()["memory_used"]
    job = client.submit(work)
    wait_for(lambda: client.status(job).done > 2)
    client.deleteJob(job)
    wait_for(lambda: client.capabilities()["memory_used"] == used and not client.health()["busy"])


def test_clients_at_the_same_time_get_their_own_answers(client: Client, engine: VolumeEngine) -> None:
    def solve(solved: int) -> np.ndarray:
        mine = Client(client.url, client._token, longSeconds=60)
        work = own_slice_job(mine, slices=[4, 8])
        work["references"][0]["slices"] = [solved]
        while True:
            with contextlib.suppress(ServerError):  # the queue is full
                job = mine.submit(work)
                break
            time.sleep(0.1)
        assert wait_for_job(mine, job).state == "done"
        mine.preview(work, 5)
        return mine.result(job)[0]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(solve, range(4, 10)))
    for solved, answer in zip(range(4, 10), answers, strict=True):
        expected = engine.solve(volume(IMAGE), Reference(volume(IMAGE), volume(LABEL), slices=(solved,)),
                                Task.segmentation({3: "block"}), plane=2, slices=(4, 8))
        assert np.array_equal(answer, expected.volume.array)


def test_the_log_holds_no_names(running: Any, client: Client) -> None:
    work = own_slice_job(client, labels={"3": "Geheimnis"})
    work["references"][0]["name"] = "Mustermann^Max"
    wait_for_job(client, client.submit(work))
    log = running.log(10_000)
    assert "POST /v1/jobs 202" in log
    assert "Mustermann" not in log
    assert "Geheimnis" not in log
    assert client._token not in log


# --- whatever fits the description, and whatever does not ---


def operations() -> list[tuple[str, str]]:
    """Every request that the server describes, but the one that ends it."""
    described = FastAPI()
    for routes in (routes_server, routes_volumes, routes_jobs):
        described.include_router(routes.router)
    return [(method, path) for path, found in described.openapi()["paths"].items() for method in found
            if path != "/v1/shutdown"]


@schemathesis.serializer(wire.MEDIA)
def _as_it_is(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="session")
def api(running: Any) -> Any:
    found = schemathesis.openapi.from_dict(json.loads(raw(running.client, "GET", "/v1/openapi.json")[1]))
    found.config.update(base_url=running.client.url)
    return found


@pytest.mark.parametrize(("method", "path"), operations())
def test_the_description_is_true(api: Any, running: Any, method: str, path: str) -> None:
    @given(api[path][method].as_strategy())
    @settings(max_examples=6, derandomize=True, suppress_health_check=SLOW, deadline=None)
    def check(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {running.client._token}"}, timeout=60,
                               excluded_checks=[positive_data_acceptance] if method == "put" else [])

    check()


def test_only_a_worker_is_shut_down_by_request(client: Client, running: Any) -> None:
    """The last test of this file: it ends the server."""
    client.shutdown()
    wait_for(lambda: running.poll() == "stopped")
    assert running.error == ""
