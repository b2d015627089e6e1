"""Seconds per slice and peak memory of the shipped network, beside the paper's network in the same run.

    python benchmarks/speed.py [--threads 2] [--no-large]

Every network is measured in a process of its own, so that peak memory is its own. Machines differ: compare the ratios.
Writes benchmarks/results/speed.json and speed.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CASES = ("idle", "compact", "compact_encode", "compact_8_prompts", "compact_volume", "compact_512", "vit_large")


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of a call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measure(case: str, threads: int) -> dict[str, float]:
    """Run one case in this process."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    if case == "idle":
        return {}
    if case == "vit_large":
        from mvg_core.network import create_network, preset

        network = create_network(preset("mvg_vit_large")).eval()
        image = torch.rand(1, 5, 448, 448)
        with torch.inference_mode():
            return {"seconds_per_slice": seconds(lambda: network(image), 2)}

    from mvg_core.backends import TorchBackend
    from mvg_core.predict import Predictor
    from mvg_core.references import Reference
    from mvg_core.volume import Volume

    predictor = Predictor.load("mvg_compact", device="cpu", threads=threads)
    backend = predictor.backend
    assert isinstance(backend, TorchBackend)
    if case in ("compact_volume", "compact_512"):
        side, slices = (512, 24) if case == "compact_512" else (192, 150)
        axis = np.linspace(-1, 1, side)
        disc = (axis[:, None] ** 2 + axis ** 2 < 0.3)[..., None] * np.ones(slices)
        image = Volume.from_array((disc + random.normal(0, 0.1, disc.shape)).astype(np.float32), (1, 1, 3))
        label = np.zeros(disc.shape, np.uint8)
        label[..., slices // 2] = disc[..., slices // 2]
        reference = Reference(image, image.with_array(label))
        elapsed = seconds(lambda: predictor.predict_volume(image, reference), 1)
        return {"seconds_per_slice": elapsed / slices, "seconds": elapsed, "slices": slices,
                "input_mb": (image.array.nbytes + label.nbytes) / 1e6}
    size = backend.size
    image, label = random.random((size, size), np.float32), random.random((size, size, 3), np.float32)
    if case == "compact_encode":
        return {"seconds_per_slice": seconds(lambda: backend.encode(image, label), 10)}
    encoded = backend.merge([backend.encode(image, label)] * (8 if case == "compact_8_prompts" else 1))
    queries = random.random((8, size, size), np.float32)
    return {"seconds_per_slice": seconds(lambda: backend.paint(queries, encoded), 5) / 8}


def run_case(case: str, threads: int) -> dict[str, float]:
    """Run one case in a fresh process; adds its peak memory."""
    command = [sys.executable, __file__, "--case", case, "--threads", str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def table(results: dict[str, dict[str, float]], threads: int) -> str:
    """The results as a Markdown table."""
    names = {"compact": "mvg_compact, one slice at its native size, 1 encoded prompt",
             "compact_encode": "mvg_compact, encoding one prompt (once for all slices)",
             "compact_8_prompts": "mvg_compact, one slice, 8 encoded prompts",
             "compact_volume": "mvg_compact, whole pipeline, 192 x 192 x 150 volume",
             "compact_512": "mvg_compact, whole pipeline, 512 x 512 x 24 volume",
             "vit_large": "mvg_vit_large (the paper's network), one slice, canvas 896 x 448"}
    idle = results["idle"]["peak_mb"]
    lines = [f"Measured by `benchmarks/speed.py` on {threads} threads of {platform.machine()} "
             f"({platform.system()}, Python {platform.python_version()}).", "",
             "| what | s per slice | relative to mvg_compact | peak memory beyond Python + torch + input (MB) |",
             "|---|---|---|---|"]
    base = results["compact"]["seconds_per_slice"]
    for case, label in names.items():
        if case in results:
            r = results[case]
            memory = r["peak_mb"] - idle - r.get("input_mb", 0.0)
            each = r["seconds_per_slice"]
            lines.append(f"| {label} | {each:.3f} | {each / base:.1f} | {memory:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all cases and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-large", action="store_true", help="leave out the paper's network (2.6 GB, a minute)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        result = measure(options.case, options.threads)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    cases = [case for case in CASES if not (options.no_large and case == "vit_large")]
    results = {case: run_case(case, options.threads) for case in cases}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps({"threads": options.threads, "cases": results}, indent=2) + "\n")
    text = table(results, options.threads)
    (RESULTS / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
