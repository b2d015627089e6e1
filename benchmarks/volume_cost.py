"""What a slice and a volume cost: by slices, prompts, size, backend and precision, beside the paper's network.

    python benchmarks/volume_cost.py [--threads 2] [--no-large]

Every case runs in a process of its own, so that its peak memory is its own. The time of a point is the smallest of
some repeats, because other programs can only add to it; points that are compared with each other take turns. Images
are made up. ONNX files are made for the run, unless they are beside the weights. Takes about four minutes.
Writes benchmarks/results/volume_cost.json and .md, and docs/images/volume_cost.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "volume_cost.png"
RUNS = {"torch fp32": ("torch", "fp32"), "torch bf16": ("torch", "bf16"), "onnx fp32": ("onnx", "fp32")}
SLICES, PROMPTS, SIDES = (10, 20, 40, 80, 150), (1, 2, 4, 8, 16), (192, 256, 384, 512)
CT = (512, 512, 150)
PRESETS = ("plain", "fast", "balanced")
TARGETS = {"s per slice": 0.05, "s per 150 slices": 10.0, "8 prompts": 1.3, "MB beyond the volume": 1000.0}


# --- measuring, in a process of its own ---


def fastest(calls: Mapping[Hashable, Callable[[], object]], repeats: int) -> dict[Hashable, float]:
    """Least wall-clock seconds of each call; they take turns, after a round that does not count."""
    best: dict[Hashable, float] = {}
    for number in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if number:
                best[name] = min(elapsed, best.get(name, elapsed))
    return best


def backend_of(run: str, threads: int) -> Any:
    """The shipped network in one of `RUNS`."""
    from mvg_core.backends import load_backend

    backend, precision = RUNS[run]
    return load_backend("mvg_compact", backend=backend, device="cpu",  # type: ignore[arg-type]
                        threads=threads, precision=precision)  # type: ignore[arg-type]


def encoded(backend: Any, side: int, n_prompts: int) -> Any:
    """Random prompts, encoded and joined."""
    import numpy as np

    random = np.random.default_rng(0)
    one = backend.encode(random.random((side, side), np.float32), random.random((side, side, 3), np.float32))
    return backend.merge([one] * n_prompts)


def volume(shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """A made-up CT (int16) with two structures, and the reference that shows them in the middle slice."""
    import numpy as np

    from mvg_core.references import Reference
    from mvg_core.volume import Volume

    random = np.random.default_rng(0)
    y, x = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])
    array, label = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    for k in range(shape[2]):
        wide = 1 - 0.3 * abs(2 * k / shape[2] - 1)
        image = np.where(y**2 + x**2 < 0.7, 20.0, -1000)
        image[(y - 0.2) ** 2 + (x + 0.3) ** 2 < 0.08 * wide] = 150
        image[(y + 0.3) ** 2 + (x - 0.2) ** 2 < 0.05 * wide] = -80
        array[..., k] = image + random.normal(0, 10, shape[:2])
    middle = shape[2] // 2
    label[..., middle] = (array[..., middle] > 90) + 2 * ((array[..., middle] < -40) & (array[..., middle] > -200))
    ct = Volume.from_array(array, (0.7 * 512 / shape[0], 0.7 * 512 / shape[1], 2))
    return ct, Reference(ct, ct.with_array(label))


def by_slices(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """Whole pipeline of volumes of native size."""
    from mvg_core.predict import Predictor

    predictor = Predictor(backend_of(run, threads))
    side = predictor.backend.size
    pairs = {count: volume((side, side, count)) for count in SLICES}
    predictor.predict_volume(*pairs[SLICES[0]])
    found = {}
    for count, pair in pairs.items():
        n_repeats = repeats if count < 50 else 1
        found[str(count)] = min(_seconds(lambda p=pair: predictor.predict_volume(*p)) for _ in range(n_repeats))
    return {"seconds": found}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def by_prompts(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """Painting a slice of native size by more and more encoded prompts."""
    import numpy as np

    backend = backend_of(run, threads)
    queries = np.random.default_rng(1).random((4, backend.size, backend.size), np.float32)
    known = {count: encoded(backend, backend.size, count) for count in PROMPTS}
    times = fastest({count: lambda e=each: backend.paint(queries, e) for count, each in known.items()}, repeats + 2)
    return {"seconds_per_slice": {str(count): seconds / len(queries) for count, seconds in times.items()}}


def by_side(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """Encoding a prompt and painting a slice, by the side of the network's square."""
    import numpy as np

    backend = backend_of(run, threads)
    random, found = np.random.default_rng(1), {}
    for side in SIDES:
        image, label = random.random((side, side), np.float32), random.random((side, side, 3), np.float32)
        known = encoded(backend, side, 1)
        count = max(1, 4 * backend.size**2 // side**2)
        queries = random.random((count, side, side), np.float32)
        times = fastest({"encode": lambda i=image, x=label: backend.encode(i, x),
                         "paint": lambda q=queries, e=known: backend.paint(q, e)}, repeats)
        found[str(side)] = {"encode": times["encode"], "paint": times["paint"] / count}
    return {"seconds_per_slice": found}


def ct(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """A CT of 512 x 512 x 150, whole pipeline, answer at full resolution."""
    from mvg_core.predict import Predictor

    predictor = Predictor(backend_of(run, threads))
    query, reference = volume(CT)
    seconds = _seconds(lambda: predictor.predict_volume(query, reference))
    return {"seconds": seconds, "volume_mb": (query.array.nbytes + reference.label.array.nbytes) / 1e6}


def limited(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """The same with a limit of memory: what it foresees, and what it takes."""
    from mvg_core.memory import resident_mb
    from mvg_core.predict import Predictor

    query, reference = volume((512, 512, 60))
    backend = backend_of(run, threads)
    limit = round(resident_mb() + query.array.size * 5 / 1e6 + 250)
    predictor = Predictor(backend, max_memory_mb=limit, block=16)
    chosen = predictor.within_memory(backend.size, query.array.size, 2)
    seconds = _seconds(lambda: predictor.predict_volume(query, reference))
    return {"limit_mb": limit, "block": chosen.block, "cached_prompts": chosen.cached_prompts, "seconds": seconds}


def presets(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """The engine's presets on 30 slices of 512 x 512."""
    from mvg_core.engine.engine import VolumeEngine
    from mvg_core.predict import Predictor

    predictor = Predictor(backend_of(run, threads))
    query, reference = volume((512, 512, 30))
    found = {}
    for name in PRESETS:
        engine = VolumeEngine(predictor, name)
        found[name] = _seconds(lambda e=engine: e.solve(query, reference)) / query.array.shape[2]
    return {"seconds_per_slice": found}


def idle(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """The backend alone, loaded."""
    from mvg_core.predict import Predictor

    Predictor(backend_of(run, threads))
    return {}


def large(run: str, threads: int, repeats: int) -> dict[str, Any]:
    """One slice by the paper's network on its canvas of 896 x 448."""
    import torch

    from mvg_core.network import create_network, preset

    torch.set_num_threads(threads)
    network = create_network(preset("mvg_vit_large")).eval()
    image = torch.rand(1, 5, 448, 448)
    with torch.inference_mode():
        return {"seconds_per_slice": _seconds(lambda: network(image))}


CASES: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    "idle": idle, "by_slices": by_slices, "by_prompts": by_prompts, "by_side": by_side, "ct": ct, "limited": limited,
    "presets": presets, "large": large}


def run_case(case: str, run: str, options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """One case in a fresh process; adds its peak memory, or says why it failed."""
    print(f"{case}, {run} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--case", case, "--run", run, "--threads", str(options.threads), "--repeats",
               str(options.repeats)]
    environment = {**os.environ, "MVG_HOME": str(home), "OMP_NUM_THREADS": str(options.threads)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode != 0:
        return {"failed": finished.stderr.strip().splitlines()[-1][:200]}
    return json.loads(finished.stdout.splitlines()[-1])


def export(home: Path) -> None:
    """ONNX files of the shipped weights where `load_backend` finds them, if it does not already."""
    from mvg_core.backends import load_backend
    from mvg_core.network.checkpoint import load_network
    from mvg_core.network.export import export_onnx
    from mvg_core.weights import WeightsError, file_sha256, find_weights

    try:
        load_backend("mvg_compact", backend="onnx", device="cpu")
    except WeightsError:
        path = find_weights("mvg_compact")
        export_onnx(load_network(path), home / "onnx", checkpoint_sha256=file_sha256(path))


# --- telling ---


def number(value: float) -> str:
    """Seconds with as many digits as say something."""
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    runs = list(results["runs"])
    lines = [f"Measured by `benchmarks/volume_cost.py` on {results['threads']} threads of {platform.machine()} "
             f"({platform.system()}, Python {platform.python_version()}). Made-up images; the smallest of "
             f"{results['repeats']} repeats. Other programs can only have made it slower: compare within a table.", ""]
    for title, rows in (("Targets", targets(results)), ("Slices", slices_table(results, runs)),
                        ("Encoded prompts, 192 x 192", prompts_table(results, runs)),
                        ("Side of the network's square, 1 prompt", sides_table(results, runs)),
                        ("CT of 512 x 512 x 150, whole pipeline", ct_table(results, runs)),
                        ("Limit of memory (`--max-memory`), 512 x 512 x 60", limit_table(results, runs)),
                        ("Presets of the engine, 512 x 512 x 30", presets_table(results, runs))):
        if rows:
            lines += [f"## {title}", "", *rows, ""]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(row) + " |" for row in rows)]


def targets(results: dict[str, Any]) -> list[str]:
    """What was aimed at, and what came of it."""
    rows = []
    for run, found in results["runs"].items():
        each = found["by_side"].get("seconds_per_slice", {}).get("192", {}).get("paint")
        many = found["by_slices"].get("seconds", {})
        prompts = found["by_prompts"].get("seconds_per_slice", {})
        rows.append([run, number(each) if each else "-", number(many["150"]) if "150" in many else "-",
                     f"{prompts['8'] / prompts['1']:.2f}" if prompts else "-",
                     f"{beyond_volume(found):.0f}" if "volume_mb" in found["ct"] else "-",
                     f"{results['large']['seconds_per_slice'] / each:.0f}" if each and "seconds_per_slice" in
                     results["large"] else "-"])
    rows.append(["target", *(f"at most {value:g}" for value in TARGETS.values()), ""])
    large_s = results["large"].get("seconds_per_slice")
    told = [f"One slice by the paper's network (mvg_vit_large, canvas 896 x 448) took {large_s:.1f} s in the same run, "
            f"and {results['large']['peak_mb']:.0f} MB.", ""] if large_s else []
    return [*told, *_table(["", "s for a 192 x 192 slice", "s for 150 of them, whole pipeline", "8 prompts / 1 prompt",
                            "CT 512 x 512 x 150: MB beyond volume", "mvg_vit_large / this"], rows)]


def beyond_volume(found: dict[str, Any]) -> float:
    """Peak memory of the CT without its own voxels and labels, program included."""
    return found["ct"]["peak_mb"] - found["ct"]["volume_mb"]


def slices_table(results: dict[str, Any], runs: list[str]) -> list[str]:
    """Seconds of volumes, and of each of their slices."""
    rows = []
    for count in map(str, SLICES):
        times = [results["runs"][run]["by_slices"].get("seconds", {}).get(count) for run in runs]
        rows.append([count, *(f"{number(t)} ({t / int(count):.3f} each)" if t else "-" for t in times)])
    return _table(["slices of 192 x 192", *(f"{run} (s)" for run in runs)], rows)


def prompts_table(results: dict[str, Any], runs: list[str]) -> list[str]:
    """Seconds a slice, and times one prompt."""
    rows = []
    for count in map(str, PROMPTS):
        found = [results["runs"][run]["by_prompts"].get("seconds_per_slice", {}) for run in runs]
        rows.append([count, *(f"{f[count]:.3f} ({f[count] / f['1']:.2f}x)" if f else "-" for f in found)])
    return _table(["prompts", *(f"{run} (s per slice)" for run in runs)], rows)


def sides_table(results: dict[str, Any], runs: list[str]) -> list[str]:
    """Seconds to paint a slice and to encode a prompt."""
    rows = []
    for side in map(str, SIDES):
        found = [results["runs"][run]["by_side"].get("seconds_per_slice", {}).get(side) for run in runs]
        rows.append([side, *(f"{number(f['paint'])} / {number(f['encode'])}" if f else "-" for f in found)])
    return _table(["side", *(f"{run}: paint / encode (s)" for run in runs)], rows)


def ct_table(results: dict[str, Any], runs: list[str]) -> list[str]:
    """Time and memory of the CT."""
    rows = []
    for run in runs:
        found = results["runs"][run]
        if "seconds" in found["ct"]:
            rows.append([run, number(found["ct"]["seconds"]), f"{found['ct']['seconds'] / CT[2]:.3f}",
                         f"{found['ct']['peak_mb']:.0f}", f"{found['idle']['peak_mb']:.0f}",
                         f"{found['ct']['volume_mb']:.0f}", f"{beyond_volume(found):.0f}"])
    return _table(["", "s", "s per slice", "peak MB", "of it: program and network", "image and label",
                   "beyond image and label"], rows)


def limit_table(results: dict[str, Any], runs: list[str]) -> list[str]:
    """What a limit chooses, and whether it holds."""
    rows = []
    for run in runs:
        found = results["runs"][run]["limited"]
        if "limit_mb" in found:
            rows.append([run, str(found["limit_mb"]), str(found["block"]), str(found["cached_prompts"]),
                         f"{found['peak_mb']:.0f}"])
    return _table(["", "limit (MB)", "slices at once", "prompts kept", "peak MB"], rows)


def presets_table(results: dict[str, Any], runs: list[str]) -> list[str]:
    """Seconds a slice of every preset."""
    rows = [[name, *(number(found["seconds_per_slice"][name]) if "seconds_per_slice" in found else "-"
                     for found in (results["runs"][run]["presets"] for run in runs))] for name in PRESETS]
    return _table(["preset", *(f"{run} (s per slice)" for run in runs)], rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """Cost by slices, prompts and size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for run, found in results["runs"].items():
        seconds = found["by_slices"].get("seconds", {})
        left.plot([int(key) for key in seconds], list(seconds.values()), marker="o", label=run)
        each = found["by_prompts"].get("seconds_per_slice", {})
        middle.plot([int(key) for key in each], [value / each["1"] for value in each.values()], marker="o", label=run)
        sides = found["by_side"].get("seconds_per_slice", {})
        right.plot([int(key) for key in sides], [value["paint"] for value in sides.values()], marker="o", label=run)
    left.axline((0, 0), (150, TARGETS["s per 150 slices"]), color="grey", linestyle=":", label="10 s for 150")
    left.set(title="whole pipeline, 192 x 192", xlabel="slices", ylabel="s")
    middle.axhline(TARGETS["8 prompts"], color="grey", linestyle=":", label="1.3 times")
    middle.set(title="more encoded prompts, 192 x 192", xlabel="prompts", ylabel="times one prompt", ylim=(0, None))
    right.set(title="side of the network's square", xlabel="pixels", ylabel="s per slice", yscale="log")
    if "seconds_per_slice" in results["large"]:
        right.axhline(results["large"]["seconds_per_slice"], color="black", linestyle="--", label="mvg_vit_large")
    for axes in (left, middle, right):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Measure all cases, write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-large", action="store_true", help="leave out the paper's network (2.6 GB, half a minute)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=RUNS, default="torch fp32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        result = CASES[options.case](options.run, options.threads, options.repeats)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps(result))
        return
    started = time.perf_counter()
    results: dict[str, Any] = {"threads": options.threads, "repeats": options.repeats, "runs": {}}
    with tempfile.TemporaryDirectory(prefix="mvg-volume-cost-") as home:
        export(Path(home))
        for run in RUNS:
            results["runs"][run] = {case: run_case(case, run, options, Path(home)) for case in CASES if case != "large"}
        results["large"] = {} if options.no_large else run_case("large", "torch fp32", options, Path(home))
    results["total_s"] = round(time.perf_counter() - started)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "volume_cost.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "volume_cost.md").write_text(page(results))
    draw(results, options.picture)
    print(page(results))
    failed = [f"{case}, {run}: {found['failed']}" for run, cases in results["runs"].items()
              for case, found in cases.items() if "failed" in found]
    if failed:
        sys.exit("not measured:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
