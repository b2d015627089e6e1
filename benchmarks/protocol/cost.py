"""Table D: what an answer costs, of every network in one run.

    python -m benchmarks.protocol cost

Every network runs in a process of its own on one thread, so that peak memory is its own. Seconds are CPU seconds: the
machine may be busy with other work. FLOPs are multiplications and additions, counted by PyTorch.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.protocol.places import RESULTS, ROOT
from mvg_core.report import write_text

SLICES = 150
"""Of the volume whose cost is given: one encoding of the examples, then so many slices."""
TITLES = {
    "idle": "Python and PyTorch alone",
    "mvg_compact_1": "mvg_compact, 192 x 192, 1 example", "mvg_compact_8": "mvg_compact, 192 x 192, 8 examples",
    "vit_large": "mvg_vit_large (reference architecture), canvas 896 x 448",
    "universeg_1": "UniverSeg's architecture, 128 x 128, 1 example",
    "universeg_8": "UniverSeg's architecture, 128 x 128, 8 examples",
    "universeg_64": "UniverSeg's architecture, 128 x 128, 64 examples", "unet": "U-Net (MONAI), 192 x 192"}


def measure(name: str) -> dict[str, Any]:
    """Run one network in this process."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        if name == "idle":
            return {}
        if name.startswith("mvg_compact"):
            return _compact(int(name.rsplit("_", 1)[1]))
        if name == "vit_large":
            from mvg_core.network import create_network, preset

            network = create_network(preset("mvg_vit_large")).eval()
            return _network(network, lambda: network(torch.rand(1, 5, 448, 448)), repeats=1)
        if name == "unet":
            from benchmarks.protocol.learned import unet

            network = unet(1, 2).eval()
            return _network(network, lambda: network(torch.rand(1, 1, 192, 192)))
        from benchmarks.protocol.universeg import UniverSeg

        network, n = UniverSeg().eval(), int(name.rsplit("_", 1)[1])
        images = torch.rand(1, n, 1, 128, 128)
        return _network(network, lambda: network(torch.rand(1, 1, 128, 128), images, images.round()), repeats=2)


def _compact(n_examples: int) -> dict[str, Any]:
    import torch

    from mvg_core.network import preset
    from mvg_core.network.compact import CompactPainter

    network = CompactPainter(preset("mvg_compact")).eval()
    images, labels = torch.rand(1, n_examples, 1, 192, 192), torch.rand(1, n_examples, 3, 192, 192)
    encoded = network.encode(images, labels)
    found = _network(network, lambda: network.paint(torch.rand(1, 1, 192, 192), encoded))
    once = _network(network, lambda: network.encode(images, labels))
    return {**found, "encode_s": once["slice_s"], "encode_gflop": once["gflop"]}


def _network(network: Any, run: Callable[[], object], repeats: int = 5) -> dict[str, Any]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return {"slice_s": round(sorted(seconds)[len(seconds) // 2], 4),
            "gflop": round(counter.get_total_flops() / 1e9, 2),
            "million_parameters": round(sum(one.numel() for one in network.parameters()) / 1e6, 2)}


def table() -> dict[str, Any]:
    """Every network, each in a process of its own."""
    rows = {}
    for name in TITLES:
        command = [sys.executable, "-m", "benchmarks.protocol.cost", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, rows[name], flush=True)
    return {"machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, 1 thread",
            "slices": SLICES, "rows": rows}


def markdown(made: Mapping[str, Any]) -> str:
    """As a table."""
    lines = [f"{made['machine']}; CPU seconds. A volume has {made['slices']} slices: examples are encoded once where "
             "the network can do so, and again for every slice where it cannot.", "",
             "| network | parameters (M) | GFLOP a slice | s a slice | s a volume | peak memory beyond Python (MB) |",
             "|---|---|---|---|---|---|"]
    idle = made["rows"]["idle"]["peak_mb"]
    for name, row in made["rows"].items():
        if name == "idle":
            continue
        volume = row.get("encode_s", 0) + made["slices"] * row["slice_s"]
        lines.append(f"| {TITLES[name]} | {row['million_parameters']:.2f} | {row['gflop']:.1f} | "
                     f"{row['slice_s']:.3f} | {volume:.1f} | {row['peak_mb'] - idle:.0f} |")
    return "\n".join([*lines, ""])


def write() -> None:
    """Measure, and write table_d."""
    made = table()
    write_text(RESULTS / "table_d.json", json.dumps(made, indent=1) + "\n")
    write_text(RESULTS / "table_d.md", markdown(made))
    print(markdown(made))


if __name__ == "__main__":
    result = measure(sys.argv[1])
    result["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result))
