"""Samples per second of training, where the time goes, memory, and how cost grows with image size and prompts.

    python benchmarks/throughput.py [--threads 2] [--no-large]
    python benchmarks/throughput.py --device cuda --peak-tflops 989 --output runs/throughput     # H100: dense bf16

Training runs through the trainer's own parts: `Learner`, `EpisodeStream` and its loader, on slices made up on the spot.
Every row is measured in a process of its own, so that peak memory is its own, and is the step of median length.
Machines differ and are shared: compare ratios within one run. Some minutes on two quiet cores.

Utilisation is model FLOPs (matrix products and convolutions of one forward and backward pass of an autoregressive
episode, recomputation not counted) x samples per second / `--peak-tflops`. Writes throughput.json, .md and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
STAGES = ("start", "middle", "finish")
SIZES = (64, 96, 128, 192, 256)
PROMPTS = (1, 2, 4, 8)
SIZE_OF_PROMPTS = 96
BATCH = 4
"""Episodes of a step where growth is measured."""
WARM_UP, STEPS, ROUNDS = 2, 6, 5
LARGE = "vit_large"
LARGE_NEEDS_GB = 12
"""Weights, gradients, two moments and the average of 371 M parameters are 7.4 GB, activations 2 GB at batch 1."""
CASES = ("idle", *STAGES, LARGE, "sizes", "prompts", "sizes_large", "flops")


# ------------------------------------------------------------------------------------------------------- what is run


def made_up_bank() -> Any:
    """Two contrasts with labels of 8 subjects, and label maps of 8 others; 12 slices of 192 x 192 of each."""
    import numpy as np
    import torch

    from mvg_core.training import label_maps
    from mvg_core.training.bank import BankBuilder, Owner
    from mvg_core.training.cutting import UNDIRECTED, Stack

    generator, builder = torch.Generator().manual_seed(0), BankBuilder()
    numbers = np.arange(12)
    for subject in range(16):
        maps = label_maps.random_regions(len(numbers), 192, generator)
        labels = maps.numpy().astype(np.uint8)
        has_image = subject < 8
        stacks = []
        for contrast in ("t1", "t2") if has_image else ("labelmap",):
            images = label_maps.paint_contrast(maps[:, None], generator)[:, 0] if has_image else torch.zeros(maps.shape)
            stacks.append(Stack("axial", contrast, UNDIRECTED, numbers, numbers / 11,
                                (images * 255).round().numpy().astype(np.uint8), labels))
        name = "images" if has_image else "maps"
        builder.add(Owner(name, f"s{subject}", f"s{subject}", has_image=has_image), stacks)
    return builder.build()


def stage_config(case: str, device: str, large_batch: int) -> Any:
    """The recipe's stage of this name; for the paper's network its canvas, and batch 1 with recomputation on a CPU."""
    from mvg_core.training.objective import HybridConfig
    from mvg_core.training.recipe import STAGES as RECIPE

    if case != LARGE:
        return RECIPE[case]
    finish = RECIPE["finish"]
    episodes = dataclasses.replace(finish.episodes, size=448, prompts=(1.0,))
    return dataclasses.replace(finish, episodes=episodes, objective=HybridConfig(), batch=large_batch,
                               activation_checkpointing=device == "cpu")


class StepClock:
    """Splits the steps of a `Learner` into forward, backward and optimizer by hooks."""

    def __init__(self, learner: Any, now: Callable[[], float]) -> None:
        self.marks: dict[str, float] = {}

        def mark(name: str) -> Callable[..., None]:
            def set_mark(*_: Any) -> None:
                self.marks[name] = now()
            return set_mark

        learner.objective.register_forward_pre_hook(mark("forward"))
        learner.objective.register_forward_hook(mark("backward"))
        learner.optimizer.register_step_pre_hook(mark("optimizer"))

    def parts(self, started: float, ended: float) -> dict[str, float]:
        """Seconds of a step that ran from `started` to `ended`."""
        marks = self.marks
        # Hiding patches and moving tensors come before the forward pass and are counted with it.
        return {"forward_s": marks["backward"] - started, "backward_s": marks["optimizer"] - marks["backward"],
                "optimizer_s": ended - marks["optimizer"]}


def clock_of(device: str) -> Callable[[], float]:
    """Wall-clock seconds after everything queued on the device is done."""
    import torch

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def measure_training(case: str, device: str, large_batch: int) -> dict[str, Any]:
    """Train for a few steps as the trainer does: episodes come from its loader."""
    import torch

    from mvg_core.network import create_network, preset
    from mvg_core.training.episodes import EpisodeSampler
    from mvg_core.training.learner import Learner
    from mvg_core.training.stream import EpisodeStream, episode_loader

    config = stage_config(case, device, large_batch)
    now, bank = clock_of(device), made_up_bank()
    is_large = case == LARGE
    sampler = EpisodeSampler(bank, config.episodes, torch.Generator(device).manual_seed(0))
    drawing = repeated(lambda: sampler.sample(config.batch), 1 if is_large else STEPS, now)
    learner = Learner(create_network(preset("mvg_vit_large" if is_large else "mvg_compact")), config,
                      torch.device(device))
    clock = StepClock(learner, now)
    batches = iter(episode_loader(EpisodeStream(bank, config, 0, device)))
    # A step of the paper's network takes a minute on a CPU: one to warm up, one that counts.
    warm_up, steps = (1, 1) if is_large and device == "cpu" else (WARM_UP, STEPS)
    rows = []
    for step in range(warm_up + steps):
        before = now()
        draws = next(batches)
        started = now()
        learner.learn(draws, step)
        ended = now()
        rows.append({"waiting_s": started - before, "step_s": ended - before, **clock.parts(started, ended)})
    # All parts of one step, so that they add up: the step of median length.
    median = sorted(rows[warm_up:], key=lambda row: row["step_s"])[steps // 2]
    return median | {
        "network": "vit" if is_large else "compact", "size": config.episodes.size, "batch": config.batch,
        "steps": steps, "precision": config.precision, "activation_checkpointing": config.activation_checkpointing,
        "prompts": list(config.episodes.prompts), "drawing_s": drawing,
        "samples_per_s": config.batch / median["step_s"],
        "parameters": sum(parameter.numel() for parameter in learner.painter.parameters())}


def repeated(call: Callable[[], object], repeats: int, now: Callable[[], float]) -> float:
    """Median seconds of a call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        started = now()
        call()
        times.append(now() - started)
    return statistics.median(times)


def measure_growth(case: str, device: str) -> dict[str, Any]:
    """Seconds per episode of drawing, training and inference of the shipped network, by size or by prompts."""
    import torch

    from mvg_core.network import create_network, preset
    from mvg_core.training.learner import Learner

    now, bank = clock_of(device), made_up_bank()
    learner = Learner(create_network(preset("mvg_compact")), stage_config("start", device, 1), torch.device(device))
    points = [(size, 1) for size in SIZES] if case == "sizes" else [(SIZE_OF_PROMPTS, count) for count in PROMPTS]
    calls = {str(size if case == "sizes" else prompts): growth_calls(learner, bank, size, prompts)
             for size, prompts in points}
    times: dict[str, dict[str, list[float]]] = {key: {name: [] for name in each} for key, each in calls.items()}
    # All points in every round, so that whatever else the machine does meets all of them alike.
    for number in range(1 + ROUNDS):
        for key, each in calls.items():
            for name, call in each.items():
                started = now()
                call()
                if number:  # the first round warms up
                    times[key][name].append((now() - started) / BATCH)
    return {"points": {key: {name: statistics.median(values) for name, values in each.items()}
                       for key, each in times.items()}, "batch": BATCH, "rounds": ROUNDS}


def growth_calls(learner: Any, bank: Any, size: int, prompts: int) -> dict[str, Callable[[], object]]:
    """What is timed at one size and number of prompts, each for `BATCH` episodes."""
    import torch

    from mvg_core.training.episodes import EpisodeConfig, EpisodeSampler

    generator = torch.Generator(learner.device).manual_seed(0)
    sampler = EpisodeSampler(bank, EpisodeConfig(size=size), generator)
    network: Any = learner.painter
    draws = [sampler.sample(BATCH, prompts)]
    images, labels = draws[0].images, draws[0].labels

    def encode() -> Any:
        with torch.inference_mode():
            return network.eval().encode(images[:, 1:], labels[:, 1:])

    encoded = encode()

    def paint() -> Any:
        with torch.inference_mode():
            return network.eval().paint(images[:, 0], encoded)

    return {"drawing_s": lambda: sampler.sample(BATCH, prompts), "training_s": lambda: learner.learn(draws, 0),
            "encoding_s": encode, "painting_s": paint}


def measure_large_sizes(device: str) -> dict[str, Any]:
    """Seconds per slice of inference of the paper's network."""
    import torch

    from mvg_core.network import create_network, preset

    now = clock_of(device)
    network = create_network(preset("mvg_vit_large")).to(device).eval()
    rows = {}
    for size in SIZES:
        image = torch.rand(1, 5, size, size, device=device)
        with torch.inference_mode():
            rows[str(size)] = {"painting_s": repeated(lambda: network(image), 1, now)}  # noqa: B023
    return {"points": rows}


def count_flops() -> dict[str, Any]:
    """FLOPs of one episode, by "size prompts"; counted on tensors without content, so nothing is computed."""
    import torch

    from mvg_core.network import create_network, preset
    from mvg_core.training.recipe import STAGES as RECIPE

    with torch.device("meta"):
        compact, vit = (create_network(preset(name)).train() for name in ("mvg_compact", "mvg_vit_large"))
    stages = [RECIPE[stage].episodes for stage in STAGES]
    trained = {(episodes.size, n + 1) for episodes in stages for n in range(len(episodes.prompts))}
    points = trained | {(size, 1) for size in SIZES} | {(SIZE_OF_PROMPTS, n) for n in PROMPTS}
    return {"compact": {f"{size} {n}": episode_flops(compact, size, n) for size, n in sorted(points)},
            "vit": {f"{vit.config.size} 1": episode_flops(vit, vit.config.size, 1)}}


def episode_flops(network: Any, size: int, prompts: int) -> dict[str, float]:
    """FLOPs of an autoregressive episode: `encoding` (of all prompts), `painting`, and `training` with both ways."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        images, labels = torch.empty(1, 1 + prompts, 1, size, size), torch.empty(1, prompts, 3, size, size)
        encoding = 0.0
        with FlopCounterMode(display=False) as forward:
            if network.config.architecture == "vit":
                patches = size // network.config.patch
                hidden = torch.empty(1, 2, patches, patches, dtype=torch.bool)
                canvas = torch.cat((images[:, 0], images[:, 1], labels[:, 0]), dim=1)
                painted = network(canvas, labels[:, 0], hidden)
            else:
                with FlopCounterMode(display=False) as prompt:
                    encoded = network.encode(images[:, 1:], labels)
                encoding = float(prompt.get_total_flops())
                painted = network.paint(images[:, 0], encoded)
        with FlopCounterMode(display=False) as backward:
            painted.sum().backward()
    both = float(forward.get_total_flops())
    return {"encoding": encoding, "painting": both - encoding, "training": both + float(backward.get_total_flops())}


def measure(case: str, device: str, threads: int, large_batch: int) -> dict[str, Any]:
    """Run one case in this process, with its peak memory in MB."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    if case == "idle":
        import mvg_core.training.learner  # noqa: F401

        made_up_bank()
        result: dict[str, Any] = {}
    elif case in ("sizes", "prompts"):
        result = measure_growth(case, device)
    elif case == "sizes_large":
        result = measure_large_sizes(device)
    elif case == "flops":
        result = count_flops()
    else:
        result = measure_training(case, device, large_batch)
    on_gpu = device != "cpu"
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else peak_resident_mb()
    return result | {"peak_mb": peak, "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
                     "torch": torch.__version__}


def peak_resident_mb() -> float:
    """Peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


# ------------------------------------------------------------------------------------------------------------ results


def run_case(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one case in a fresh process; what went wrong if it failed."""
    command = [sys.executable, __file__, "--case", case, "--threads", str(options.threads), "--device", options.device,
               "--large-batch", str(options.large_batch)]
    print(f"{case} ...", file=sys.stderr, flush=True)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or [f"ended with code {finished.returncode}"]
        return {"failed": lines[-1][:300]}
    return json.loads(finished.stdout.splitlines()[-1])


def free_gb(device: str) -> float:
    """Memory that can be had now, on the device."""
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info(device)[0] / 1e9
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def derived(results: dict[str, Any], peak_tflops: float | None) -> None:
    """Add what follows from what was measured: shares, FLOP/s and utilisation."""
    flops = results["flops"]
    for case in (*STAGES, LARGE):
        row = results.get(case, {})
        if "step_s" not in row:
            continue
        table, weights = flops[row["network"]], row["prompts"]
        each = [table[f"{row['size']} {n}"]["training"] for n in range(1, len(weights) + 1)]
        per_sample = sum(weight * one for weight, one in zip(weights, each, strict=True)) / sum(weights)
        row["memory_mb"] = row["peak_mb"] - results["idle"]["peak_mb"]
        row["gflop_per_sample"] = per_sample / 1e9
        row["tflop_per_s"] = per_sample * row["samples_per_s"] / 1e12
        row["utilisation"] = row["tflop_per_s"] / peak_tflops if peak_tflops else None
        row["waiting_share"] = row["waiting_s"] / row["step_s"]
        row["drawing_share"] = row["drawing_s"] / (row["drawing_s"] + row["step_s"] - row["waiting_s"])


def markdown(results: dict[str, Any], options: argparse.Namespace) -> str:
    """The results as a page of tables."""
    start = results["start"]
    where = f"{options.threads} CPU threads ({start['device']})" if options.device == "cpu" else start["device"]
    lines = [f"Measured by `benchmarks/throughput.py` on {where} ({platform.system()}, Python "
             f"{platform.python_version()}, torch {start['torch']}). Made-up slices; the median of {start['steps']} "
             "steps. The machine may have been busy: compare within a table.", "",
             "## Training", "",
             "One sample is one episode. *Drawing* is the time that episodes take alone, as a share of drawing and "
             "learning one after the other; *waiting* is what is left of it in training, where they are drawn ahead"
             f"{' in a process of their own' if options.device == 'cpu' else ''}.", "",
             "| network | slices | batch | samples per s | drawing | waiting | forward | backward | optimizer | "
             "memory (MB) | GFLOP per sample | GFLOP/s | utilisation |", "|---" * 13 + "|"]
    names = {"start": "mvg_compact, stage start", "middle": "mvg_compact, stage middle",
             "finish": "mvg_compact, stage finish", LARGE: "mvg_vit_large (the paper's network)"}
    for case, name in names.items():
        row = results.get(case)
        if row is None:
            continue
        if "step_s" not in row:
            lines.append(f"| {name} | not measured: {row['failed']} |" + " |" * 11)
            continue
        learning = row["step_s"] - row["waiting_s"]
        shares = " | ".join(f"{row[f'{part}_s'] / learning:.0%}" for part in ("forward", "backward", "optimizer"))
        used = f"{row['utilisation']:.0%}" if row["utilisation"] is not None else "-"
        suffix = ", recomputing" if row["activation_checkpointing"] else ""
        suffix += f", {row['steps']} step" if row["steps"] == 1 else ""
        lines.append(f"| {name}{suffix} | {row['size']} | {row['batch']} | {row['samples_per_s']:.3g} | "
                     f"{row['drawing_share']:.0%} | {row['waiting_share']:.0%} | {shares} | {row['memory_mb']:.0f} | "
                     f"{_short(row['gflop_per_sample'])} | {_short(row['tflop_per_s'] * 1e3)} | {used} |")
    lines += ["", "Memory is the peak beyond Python, torch and the slices" if options.device == "cpu" else
              "Memory is the peak allocated on the GPU"]
    lines[-1] += ("; forward, backward and optimizer are shares of learning. FLOPs are those of the model: "
                  "recomputation and the painting of prompts in the masked objective are not counted.")
    lines += _growth_tables(results)
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _growth_tables(results: dict[str, Any]) -> Iterator[str]:
    """Tables of cost by size and by prompts, relative to the first row."""
    flops = results["flops"]
    for case, title in (("sizes", f"Side of the slice in pixels (1 prompt, batch {BATCH})"),
                        ("prompts", f"Number of prompts ({SIZE_OF_PROMPTS} x {SIZE_OF_PROMPTS}, batch {BATCH})")):
        points = results[case].get("points", {})
        large = results.get("sizes_large", {}).get("points", {}) if case == "sizes" else {}
        yield from ("", f"## {title}", "", "Seconds per episode or slice of mvg_compact, and times the first row."
                    + (" The last column is the paper's network; it takes one prompt." if large else ""), "")
        yield ("| | training | encoding the prompts | painting a slice | drawing | GFLOP of training |"
               + (" mvg_vit_large, painting |" if large else ""))
        yield "|---" * (7 if large else 6) + "|"
        first = next(iter(points.values()), {})
        first_large = next(iter(large.values()), {})
        for key, point in points.items():
            count = flops["compact"][f"{key} 1" if case == "sizes" else f"{SIZE_OF_PROMPTS} {key}"]
            cells = [f"{point[name]:.3g} ({point[name] / first[name]:.1f}x)"
                     for name in ("training_s", "encoding_s", "painting_s", "drawing_s")]
            cells.append(f"{count['training'] / 1e9:.3g}")
            if key in large:
                each = large[key]["painting_s"]
                cells.append(f"{each:.3g} ({each / first_large['painting_s']:.1f}x)")
            yield f"| {key} | " + " | ".join(cells) + " |"


def plot(results: dict[str, Any], path: Path) -> None:
    """Where the time of a step goes, and how cost grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    measured = [case for case in (*STAGES, LARGE) if "step_s" in results.get(case, {})]
    below = [0.0] * len(measured)
    for part in ("waiting", "forward", "backward", "optimizer"):
        shares = [results[case][f"{part}_s"] / results[case]["step_s"] for case in measured]
        left.bar(measured, shares, bottom=below, label=part)
        below = [low + share for low, share in zip(below, shares, strict=True)]
    left.set(title="where the time of a step goes", ylabel="share")
    left.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    for axes, case, label in ((middle, "sizes", "side of the slice (pixels)"), (right, "prompts", "prompts")):
        points = results[case].get("points", {})
        for name in ("training_s", "encoding_s", "painting_s", "drawing_s"):
            axes.plot([int(key) for key in points], [point[name] for point in points.values()], marker="o",
                      label=name.removesuffix("_s"))
        axes.set(title=f"mvg_compact, by {'size' if case == 'sizes' else 'prompts'}", xlabel=label,
                 ylabel="s per episode or slice", xscale="log", yscale="log")
        axes.set_xticks([int(key) for key in points], labels=list(points))
        axes.minorticks_off()
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=80)
    plt.close(figure)


@contextmanager
def timed(results: dict[str, Any]) -> Iterator[None]:
    """Add how long everything took."""
    started = time.perf_counter()
    yield
    results["total_s"] = time.perf_counter() - started


def main() -> None:
    """Measure all cases and write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--peak-tflops", type=float, help="peak of the device in the precision used, for utilisation")
    parser.add_argument("--large-batch", type=int, help="batch of the paper's network: 1 on a CPU, 8 on a GPU")
    parser.add_argument("--no-large", action="store_true", help=f"leave out the paper's network ({LARGE_NEEDS_GB} GB, "
                                                                "some minutes on a CPU)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.large_batch = options.large_batch or (1 if options.device == "cpu" else 8)
    if options.case:
        print(json.dumps(measure(options.case, options.device, options.threads, options.large_batch)))
        return
    cases = [case for case in CASES if not (options.no_large and case in (LARGE, "sizes_large"))]
    results: dict[str, Any] = {"threads": options.threads, "peak_tflops": options.peak_tflops}
    with timed(results):
        for case in cases:
            free = free_gb(options.device)
            results[case] = (
                {"failed": f"needs about {LARGE_NEEDS_GB} GB of memory, {free:.0f} GB are free"}
                if case == LARGE and free < LARGE_NEEDS_GB else run_case(case, options))
            if "failed" in results[case] and case not in (LARGE, "sizes_large"):
                sys.exit(f"{case}: {results[case]['failed']}")
    derived(results, options.peak_tflops)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "throughput.json").write_text(json.dumps(results, indent=1) + "\n")
    text = markdown(results, options)
    (options.output / "throughput.md").write_text(text)
    plot(results, options.output / "throughput.png")
    print(text)


if __name__ == "__main__":
    main()
