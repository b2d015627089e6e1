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

from mvg_core.demo import Template, load_template
from mvg_core.references import marked_slices
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import write_volume

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests_label"))

from serving import Server, infer, serving  # noqa: E402

OUT = REPOSITORY / "benchmarks" / "results" / "label_server"
N_SLICES = 100
CLIENTS = 4


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="for memory")
    parser.add_argument("--repeats", type=int, default=3, help="of each timed request; the median counts")
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
    """Two whole volumes, of which one is labelled, two small ones, and one painted slice."""
    images, final = folder / "studies", folder / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    template = load_template()
    for name, size in (("large", N_SLICES), ("small", 32)):
        one = _part(template, (128, 128, N_SLICES) if name == "large" else (48, 48, size))
        noise = np.random.default_rng(0).normal(scale=0.01, size=one.image.array.shape).astype(np.float32)
        write_volume(one.image, images / f"{name}.nii.gz")
        write_volume(one.image.with_array(one.image.array[::-1] + noise), images / f"{name}_labelled.nii.gz")
        write_volume(one.truth.with_array(np.ascontiguousarray(one.truth.array[::-1])),
                     final / f"{name}_labelled.nii.gz")
        if name == "large":
            middle = N_SLICES // 2
            painted = np.zeros_like(one.truth.array)
            painted[..., middle] = one.truth.array[..., middle] == 2
            assert marked_slices(painted, 2) == (middle,)
            write_volume(one.truth.with_array(painted), folder / "painted.nii.gz")
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
    def segment(image: str, preset: str) -> None:
        reference = f"{image.split('_')[0]}_labelled"
        answer = infer(server, "mvg_segment", image, output="image", params={"preset": preset, "reference": reference})
        assert answer.status_code == 200, answer.text

    def propagate() -> None:
        answer = infer(server, "mvg_propagate", "large", output="image", label=painted)
        assert answer.status_code == 200, answer.text

    found: dict[str, Any] = {"seconds_to_start": round(server.seconds_to_start, 1)}
    found["first_answer_s"] = _timed(lambda: segment("small", "fast"))
    found["slices"] = N_SLICES
    found["propagate_large_s"] = _median(propagate, repeats)
    for preset in ("plain", "fast", "balanced"):
        found[f"segment_large_{preset}_s"] = _median(lambda preset=preset: segment("large", preset), repeats)
    found["segment_small_fast_s"] = _median(lambda: segment("small", "fast"), repeats)
    found["one_client_per_minute"] = _per_minute(lambda: segment("small", "fast"), 1, 12)
    found["four_clients_per_minute"] = _per_minute(lambda: segment("small", "fast"), CLIENTS, 24)
    found["memory_mb"] = _memory(server, lambda: segment("small", "plain"), n_requests)
    found["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
                        "load": [round(one, 1) for one in os.getloadavg()], "python": platform.python_version()}
    return found


def _memory(server: Server, ask: Callable[[], None], n_requests: int) -> dict[str, float]:
    """Memory of the server after so many requests."""
    found = {"0": round(server.memory_mb(), 1)}
    for number in range(1, n_requests + 1):
        ask()
        if number in (1, 10, 50, 100, 150) or number == n_requests:
            found[str(number)] = round(server.memory_mb(), 1)
    return found


def _per_minute(ask: Callable[[], None], clients: int, count: int) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as crew:
        list(crew.map(lambda _: ask(), range(count)))
    return round(60 * count / (time.perf_counter() - started), 1)


def _median(ask: Callable[[], None], repeats: int) -> float:
    return round(statistics.median(_timed(ask) for _ in range(repeats)), 2)


def _timed(ask: Callable[[], None]) -> float:
    started = time.perf_counter()
    ask()
    return round(time.perf_counter() - started, 2)


def _table(found: dict[str, Any]) -> str:
    n = found["slices"]
    large = f"{n} slices of 128 x 128"
    machine = found["machine"]
    rows = [("server answers after", f"{found['seconds_to_start']} s"),
            ("first answer (32 slices of 48 x 48, by another image, fast)", f"{found['first_answer_s']} s"),
            ("the same later", f"{found['segment_small_fast_s']} s"),
            (f"mvg_propagate, one painted slice of {large}", f"{found['propagate_large_s']} s"),
            *((f"mvg_segment, {large}, by another image, {preset}", f"{found[f'segment_large_{preset}_s']} s")
              for preset in ("plain", "fast", "balanced")),
            ("requests per minute (32 slices of 48 x 48), 1 client", str(found["one_client_per_minute"])),
            (f"the same, {CLIENTS} clients at once", str(found["four_clients_per_minute"])),
            ("memory after so many requests", ", ".join(f"{number}: {mb:.0f} MB"
                                                       for number, mb in found["memory_mb"].items()))]
    title = (f"# MONAI Label server\n\n`make benchmark-label`; {machine['cores']} cores, threads of PyTorch: "
             f"{machine['threads']}, load (processes that want a core) {machine['load'][0]} at the end.\n")
    lines = [title, "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
