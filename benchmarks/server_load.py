"""What a server bears: large volumes, many clients, broken-off uploads, and whether its memory grows.

    python benchmarks/server_load.py [--backend onnx] [--threads 1] [--requests 200]

Starts `mvg serve --worker` with the shipped weights, asks it over loopback, and ends it. Images are made up. Beside
seconds by the clock stand seconds of processor time of the server: those other programs can hardly change. Takes some
minutes; Linux only (memory and processor time are read from /proc).
Writes benchmarks/results/server.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from mvg_core.server import wire

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
LARGE, USUAL = (512, 512, 300), (256, 256, 100)
CLIENTS, ABORTED, PREVIEWS = 8, 40, 12


class Server:
    """A worker process, and what it takes.

    Args:
        options: of `mvg serve`.
    """

    def __init__(self, *options: str) -> None:
        started = time.perf_counter()
        self._process = subprocess.Popen([sys.executable, "-m", "mvg_core", "serve", "--worker", *options], cwd=ROOT,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        said = json.loads(self._process.stdout.readline())
        self.start_s = time.perf_counter() - started
        self.start_cpu_s = self.cpu_s
        self.url, self.headers = said["url"], {"Authorization": f"Bearer {said['token']}"}

    @property
    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self, kind: str = "VmRSS") -> float:
        """Memory now, or `VmHWM`: the most so far; in 10^6 bytes."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(kind):
                return int(line.split()[1]) * 1024 / 1e6
        raise RuntimeError(f"/proc does not tell {kind}")

    def client(self) -> httpx.AsyncClient:
        """Asks it."""
        return httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=300)

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


# --- requests ---


async def upload(client: httpx.AsyncClient, array: np.ndarray) -> str:
    """Send a volume; its identity."""
    identity = wire.identity(array, AFFINE)
    answer = await client.put(f"/v1/volumes/{identity}", content=_pieces(array), headers={
        "Content-Length": str(wire.length(array, AFFINE)), "Content-Type": wire.MEDIA})
    answer.raise_for_status()
    return identity


async def broken_off(client: httpx.AsyncClient, array: np.ndarray, share: float) -> None:
    """Send a part of a volume, and hang up."""
    async def part() -> AsyncIterator[bytes]:
        sent = 0
        for piece in wire.chunks(array, AFFINE):
            if sent > share * array.nbytes:
                raise ConnectionAbortedError
            sent += len(piece)
            yield bytes(piece)

    with contextlib.suppress(ConnectionAbortedError, httpx.HTTPError):
        await client.put(f"/v1/volumes/{wire.identity(array, AFFINE)}", content=part(), headers={
            "Content-Length": str(wire.length(array, AFFINE))})


async def preview(client: httpx.AsyncClient, work: dict[str, Any], number: int) -> float:
    """Ask for one slice; seconds."""
    started = time.perf_counter()
    while True:
        answer = await client.post("/v1/preview", json={**work, "slice": number})
        if answer.status_code != 429:
            break
        await asyncio.sleep(0.05)  # too many wait: as a polite program does
    answer.raise_for_status()
    return time.perf_counter() - started


async def job(client: httpx.AsyncClient, work: dict[str, Any]) -> float:
    """Have some slices solved, fetch the answer, forget the job; seconds."""
    started = time.perf_counter()
    answer = await client.post("/v1/jobs", json=work)
    answer.raise_for_status()
    path = f"/v1/jobs/{answer.json()['id']}"
    while (state := (await client.get(path)).json()["state"]) in ("queued", "running"):
        await asyncio.sleep(0.05)
    if state != "done":
        raise RuntimeError(f"the job is {state}: {(await client.get(path)).json()['error']}")
    (await client.get(f"{path}/result")).raise_for_status()
    await client.delete(path)
    return time.perf_counter() - started


# --- measurements ---


async def large_uploads(server: Server, client: httpx.AsyncClient) -> dict[str, Any]:
    """A volume of 512 x 512 x 300, three times."""
    array = np.random.default_rng(0).integers(-1000, 1000, LARGE).astype(np.int16)
    seconds, cpu = [], []
    for number in range(3):
        array[0, 0, 0] = number
        before, started = server.cpu_s, time.perf_counter()
        identity = await upload(client, array)
        seconds.append(time.perf_counter() - started)
        cpu.append(server.cpu_s - before)
        await client.delete(f"/v1/volumes/{identity}")
    return {"megabytes": array.nbytes / 1e6, "seconds": seconds, "server_cpu_s": cpu}


async def previews(server: Server, client: httpx.AsyncClient) -> tuple[dict[str, Any], dict[str, Any]]:
    """Slices of a usual volume by a slice of its own, and by another subject; and the first of these requests."""
    image, label = subject()
    other, other_label = np.roll(image, 4, 0)[:, :, ::-1].copy(), np.roll(label, 4, 0)[:, :, ::-1].copy()
    query, solved = await upload(client, image), await upload(client, label)
    mine = {"task": "segmentation", "query": query, "plane": 2, "references": [
        {"image": query, "label": solved, "slices": [50]}]}
    shown = {"image": await upload(client, other), "label": await upload(client, other_label)}
    theirs = {**mine, "references": [shown]}
    found = {}
    for name, work in (("own slice", mine), ("other subject", theirs),
                       ("denoising", {"task": "denoising", "query": query, "plane": 2, "references": [
                           {"image": query, "label": query}]})):
        started, before = time.perf_counter(), server.cpu_s
        (await client.post("/v1/encode", json=work)).raise_for_status()
        encode_s, encode_cpu, before = time.perf_counter() - started, server.cpu_s - before, server.cpu_s
        seconds = [await preview(client, work, 40 + number) for number in range(PREVIEWS)]
        found[name] = {"encode_s": encode_s, "encode_cpu_s": encode_cpu, "seconds": seconds,
                       "cpu_s": (server.cpu_s - before) / PREVIEWS}
    return found, mine


async def many_clients(server: Server, work: dict[str, Any]) -> dict[str, Any]:
    """Several clients at once: small questions, then previews."""
    async def ask(client: httpx.AsyncClient, _: int) -> None:
        for _ in range(50):
            (await client.head(f"/v1/volumes/{work['query']}")).raise_for_status()

    async def look(client: httpx.AsyncClient, number: int) -> None:
        for step in range(4):
            await preview(client, work, 30 + number * 4 + step)

    small = await _together(server, ask)
    slices = await _together(server, look)
    return {"clients": CLIENTS, "questions_per_minute": 60 * CLIENTS * 50 / small,
            "previews_per_minute": 60 * CLIENTS * 4 / slices}


async def aborted(server: Server, client: httpx.AsyncClient) -> dict[str, Any]:
    """Uploads that break off at any place; what stays behind."""
    array = np.random.default_rng(1).integers(0, 9, (256, 256, 200)).astype(np.int16)
    before = (await client.get("/v1/capabilities")).json()["memory_used"]
    memory = server.memory_mb()
    for number in range(ABORTED):
        async with server.client() as other:
            await broken_off(other, array, number / ABORTED)
    await asyncio.sleep(0.5)
    after = (await client.get("/v1/capabilities")).json()["memory_used"]
    return {"uploads": ABORTED, "reserved_bytes_left": after - before, "memory_before_mb": memory,
            "memory_after_mb": server.memory_mb()}


async def growth(server: Server, client: httpx.AsyncClient, work: dict[str, Any], requests: int) -> list[float]:
    """Memory while uploads, previews and jobs come, one after the other; at the start and after each tenth."""
    memory, every = [server.memory_mb()], max(1, requests // 10)
    image, _ = subject()
    for number in range(requests):
        if number % 3 == 0:
            image[0, 0, 0] = number
            identity = await upload(client, image)
            await client.delete(f"/v1/volumes/{identity}")
        elif number % 3 == 1:
            await preview(client, work, number % USUAL[2])
        else:
            await job(client, {**work, "slices": [number % 90, number % 90 + 2], "parts": {"memory": 0}})
        if (number + 1) % every == 0:
            memory.append(server.memory_mb())
    return memory


def subject() -> tuple[np.ndarray, np.ndarray]:
    """An image like a CT, and the label map of an organ in it."""
    x, y, z = (np.linspace(-1, 1, n).reshape([-1 if axis == at else 1 for at in range(3)])
               for axis, n in enumerate(USUAL))
    organ = (x - 0.2) ** 2 + (y + 0.1) ** 2 + (0.7 * z) ** 2 < 0.1
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40, -1000) + 60 * organ
    noise = np.random.default_rng(0).normal(0, 15, USUAL)
    return (body + noise).astype(np.int16), organ.astype(np.uint8)


async def _together(server: Server, call: Callable[[httpx.AsyncClient, int], Awaitable[None]]) -> float:
    """Seconds that all clients take."""
    async with contextlib.AsyncExitStack() as open_ones:
        clients = [await open_ones.enter_async_context(server.client()) for _ in range(CLIENTS)]
        started = time.perf_counter()
        await asyncio.gather(*(call(client, number) for number, client in enumerate(clients)))
        return time.perf_counter() - started


async def _pieces(array: np.ndarray) -> AsyncIterator[bytes]:
    for piece in wire.chunks(array, AFFINE):
        yield bytes(piece)


# --- the report ---


async def measure(server: Server, requests: int) -> dict[str, Any]:
    """Everything."""
    async with server.client() as client:
        described = (await client.get("/v1/capabilities")).json()
        found: dict[str, Any] = {
            "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
            "backend": described["backend"], "weights": described["weights"], "load_before": os.getloadavg()[0],
            "start": {"seconds": server.start_s, "cpu_s": server.start_cpu_s, "memory_mb": server.memory_mb()}}
        found["upload"] = await large_uploads(server, client)
        found["previews"], work = await previews(server, client)
        found["clients"] = await many_clients(server, work)
        found["aborted"] = await aborted(server, client)
        found["requests"], found["memory_mb"] = requests, await growth(server, client, work, requests)
        found["memory_peak_mb"], found["load_after"] = server.memory_mb("VmHWM"), os.getloadavg()[0]
    return found


def text_of(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    large, cut, clients = found["upload"], found["aborted"], found["clients"]
    rows = [["what", "seconds", "processor time of the server (s)"],
            ["start until ready", f"{found['start']['seconds']:.1f}", f"{found['start']['cpu_s']:.1f}"],
            [f"upload of {large['megabytes']:.0f} MB, best of 3", f"{min(large['seconds']):.2f}",
             f"{min(large['server_cpu_s']):.2f}"]]
    slices = [["example", "prepared in (s)", "of that processor time", "preview: median (s)", "longest", "processor"],
              *([name, f"{one['encode_s']:.2f}", f"{one['encode_cpu_s']:.2f}",
                 f"{statistics.median(one['seconds']):.2f}", f"{max(one['seconds']):.2f}", f"{one['cpu_s']:.2f}"]
                for name, one in found["previews"].items())]
    load = [["what", "found"],
            [f"small questions a minute, {CLIENTS} clients at once", f"{clients['questions_per_minute']:.0f}"],
            [f"previews a minute, {CLIENTS} clients at once", f"{clients['previews_per_minute']:.0f}"],
            [f"bytes set aside after {cut['uploads']} broken-off uploads", str(cut["reserved_bytes_left"])],
            ["memory before and after them (MB)", f"{cut['memory_before_mb']:.0f}, {cut['memory_after_mb']:.0f}"],
            [f"memory over {found['requests']} requests: uploads, previews, jobs (MB)",
             ", ".join(f"{mb:.0f}" for mb in found["memory_mb"])],
            ["most memory at any time (MB)", f"{found['memory_peak_mb']:.0f}"]]
    return (f"Measured by `benchmarks/server_load.py` over loopback on {found['machine']}; {found['backend']}, "
            f"{found['threads']} thread. Other programs were running (load average {found['load_before']:.1f} before, "
            f"{found['load_after']:.1f} after): processor time is what they can hardly change.\n\n{_table(rows)}\n"
            f"Previews of one slice of {' x '.join(map(str, USUAL))}:\n\n{_table(slices)}\n{_table(load)}")


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="onnx", choices=("auto", "onnx", "torch"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    server = Server("--backend", options.backend, "--threads", str(options.threads))
    try:
        found = {"threads": options.threads, **asyncio.run(measure(server, options.requests))}
    finally:
        server.stop()
    (options.out / "server.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "server.md").write_text(text_of(found), encoding="utf-8")
    print(text_of(found))


if __name__ == "__main__":
    main()
