"""Time and memory of the MONAI Label server, over HTTP on this machine.

    make benchmark-label

Images are parts of the brain template that nilearn ships, at 1 mm; every request goes through a real server process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests

import mvg_core
from mvg_core.demo import Template, load_template
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import write_volume

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests_label"))

from serving import Server, infer, serving  # noqa: E402

OUT = REPOSITORY / "benchmarks" / "results" / "label_server"
N_SLICES = 100
CLIENTS = 4
N_SMALL = 10


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="for memory")
    parser.add_argument("--repeats", type=int, default=3, help="of each timed request")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        label = _studies(folder)
        with serving(folder, folder / "studies", {"prompts": str(folder / "prompts")}) as server:
            found = _measure(server, label, options.requests, options.repeats)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(_table(found), encoding="utf-8")
    print(_table(found))


def _studies(folder: Path) -> Path:
    """A large and several small volumes, of each size a labelled one, and one painted slice of the large one."""
    images, final = folder / "studies", folder / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    template, generator = load_template(), np.random.default_rng(0)
    for name, size in (("large", (128, 128, N_SLICES)), ("small", (48, 48, 32))):
        one = _part(template, size)
        for number in range(N_SMALL if name == "small" else 1):
            noise = generator.normal(scale=0.01 * number, size=size).astype(np.float32)
            write_volume(one.image.with_array(one.image.array + noise),
                         images / (f"small_{number}.nii.gz" if name == "small" else "large.nii.gz"))
        noise = generator.normal(scale=0.01, size=size).astype(np.float32)
        write_volume(one.image.with_array(one.image.array[::-1] + noise), images / f"{name}_labelled.nii.gz")
        write_volume(one.truth.with_array(np.ascontiguousarray(one.truth.array[::-1])),
                     final / f"{name}_labelled.nii.gz")
    middle, truth = N_SLICES // 2, _part(template, (128, 128, N_SLICES)).truth
    painted = np.zeros_like(truth.array)
    painted[..., middle] = truth.array[..., middle] == 2
    write_volume(truth.with_array(painted), folder / "painted.nii.gz")
    return folder / "painted.nii.gz"


def _part(template: Template, size: tuple[int, int, int]) -> Template:
    """The middle of the template."""
    first = [(n - m) // 2 for n, m in zip(template.image.array.shape, size, strict=True)]
    box = tuple(slice(start, start + n) for start, n in zip(first, size, strict=True))
    affine = template.image.geometry.affine.copy()
    affine[:3, 3] = (affine @ [*first, 1])[:3]
    grid = Geometry(size, affine)
    return Template(Volume(np.ascontiguousarray(template.image.array[box]), grid),
                    Volume(np.ascontiguousarray(template.truth.array[box]), grid))


def _measure(server: Server, painted: Path, n_requests: int, repeats: int) -> dict[str, Any]:
    def ask(model: str, image: str, label: Path | None = None, **params: Any) -> requests.Response:
        answer = infer(server, model, image, output="json", params=params, label=label)
        assert answer.status_code == 200, answer.text
        return answer

    def small(preset: str = "fast", number: int = 0) -> requests.Response:
        return ask("mvg_segment", f"small_{number}", preset=preset, reference="small_labelled")

    load_before = os.getloadavg()[0]
    found: dict[str, Any] = {"seconds_to_start": round(server.seconds_to_start, 1), "slices": N_SLICES,
                             "repeats": repeats, "requests": n_requests}
    found["first_answer"] = _timed(server, small, 1)
    found["small_fast"] = _timed(server, small, repeats)
    found["propagate_large"] = _timed(server, lambda: ask("mvg_propagate", "large", painted), repeats)
    for preset in ("plain", "fast", "balanced"):
        params = {"preset": preset, "reference": "large_labelled"}
        found[f"segment_large_{preset}"] = _timed(
            server, lambda params=params: ask("mvg_segment", "large", **params), repeats)
    found["one_client_per_minute"] = _per_minute(small, 1, 12)
    found["four_clients_per_minute"] = _per_minute(small, CLIENTS, 24)
    found["memory_mb"] = _memory(server, lambda number: small("plain", number % N_SMALL), n_requests)
    found["weights"] = small("plain").json()["checkpoint_sha256"]
    found["version"] = mvg_core.__version__
    found["machine"] = {"processor": platform.machine(), "cores": os.cpu_count(),
                        "threads": os.environ.get("OMP_NUM_THREADS", "all"), "python": platform.python_version(),
                        "load": [round(load_before, 1), round(os.getloadavg()[0], 1)]}
    return found


def _memory(server: Server, ask: Callable[[int], object], n_requests: int) -> dict[str, float]:
    """Memory of the server after so many requests."""
    found = {"0": round(server.memory_mb(), 1)}
    for number in range(1, n_requests + 1):
        ask(number)
        if number in (1, 10, 50, 100, 150) or number == n_requests:
            found[str(number)] = round(server.memory_mb(), 1)
    return found


def _per_minute(ask: Callable[[], object], clients: int, count: int) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as crew:
        list(crew.map(lambda _: ask(), range(count)))
    return round(60 * count / (time.perf_counter() - started), 1)


def _timed(server: Server, ask: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds of the first request, of the median one, and processor time of the server for one."""
    seconds, before = [], _processor_s(server)
    for _ in range(repeats):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    return {"first_s": round(seconds[0], 2), "median_s": round(statistics.median(seconds), 2),
            "processor_s": round((_processor_s(server) - before) / repeats, 2)}


def _processor_s(server: Server) -> float:
    """Processor time of the server so far; Linux."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _table(found: dict[str, Any]) -> str:
    large, small = f"{found['slices']} slices of 128 x 128", "32 slices of 48 x 48"
    machine = found["machine"]
    timed = [(f"first answer after the start: mvg_segment, {small}, by another image, fast", "first_answer"),
             ("the same later", "small_fast"), (f"mvg_propagate, one painted slice of {large}", "propagate_large"),
             *((f"mvg_segment, {large}, by another image, {preset}", f"segment_large_{preset}")
               for preset in ("plain", "fast", "balanced"))]
    rows = [(f"requests a minute, 1 client: mvg_segment, {small}, fast", str(found["one_client_per_minute"])),
            (f"the same, {CLIENTS} clients at once", str(found["four_clients_per_minute"])),
            (f"memory (MB) after so many requests: mvg_segment, plain, {N_SMALL} images of {small} by turns",
             ", ".join(f"{number}: {mb:.0f}" for number, mb in found["memory_mb"].items()))]
    lines = ["# MONAI Label server", "",
             f"`make benchmark-label`: MVG {found['version']}, weights {found['weights'][:12]}, "
             f"{machine['processor']}, {machine['cores']} cores, "
             f"threads of PyTorch: {machine['threads']}, Python {machine['python']}; "
             f"load (processes that want a core) {machine['load'][0]} before, {machine['load'][1]} after. "
             f"The server answers {found['seconds_to_start']} s after it was started.", "",
             f"| request | first (s) | median of {found['repeats']} (s) | processor time of the server (s) |",
             "|---|---|---|---|",
             *(f"| {what} | {found[key]['first_s']} | {'' if key == 'first_answer' else found[key]['median_s']} | "
               f"{found[key]['processor_s']} |" for what, key in timed), "",
             "After the first request of a kind the reference is known, and is not encoded again.", "",
             "| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
