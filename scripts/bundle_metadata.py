"""Bring what the bundle's metadata takes from elsewhere up to date: version, packages, measured numbers and their plot.

    python scripts/bundle_metadata.py            # rewrite bundle/configs/metadata.json and bundle/docs/performance.png
    python scripts/bundle_metadata.py --check    # only say whether the metadata is up to date; exit code 1 if not

Run it after a new version, a new lock file or new weights.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvg_core import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
METADATA = REPOSITORY / "bundle" / "configs" / "metadata.json"
NUMBERS = REPOSITORY / "bundle" / "models" / "model.numbers.json"
PLOT = REPOSITORY / "bundle" / "docs" / "performance.png"
LOCK = REPOSITORY / "requirements" / "dev.lock"
NOT_OURS = ("slice", "dice_copy", "dice_chained_demons", "psnr_before")
"""Numbers beside those of the network: what it is compared with."""
ROWS = {"dice": "mvg_compact", "dice_chained_demons": "demons, slice to slice", "dice_copy": "copied slice"}


def up_to_date(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with everything replaced that comes from elsewhere."""
    locked = locked_versions()
    packages = {package: locked[package.lower()] for package in metadata["required_packages_version"]}
    return {**metadata, "version": __version__, "monai_version": locked["monai"], "pytorch_version": torch_version(),
            "numpy_version": locked["numpy"], "required_packages_version": packages,
            "eval_metrics": eval_metrics(json.loads(NUMBERS.read_text()))}


def locked_versions() -> dict[str, str]:
    """Version of every package in the lock file, by its name in lower case."""
    # What stands after a semicolon says on which systems a package is installed.
    lines = [line.partition(";")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line]
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


def torch_version() -> str:
    """The version of PyTorch that `make` installs."""
    found = re.search(r"^TORCH \?= torch==(\S+)$", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError("the Makefile pins no version of torch")
    return found[1]


def eval_metrics(numbers: Mapping[str, Any]) -> dict[str, float]:
    """What was measured with the weights, flat: `demo_dice_grey_matter` and so on."""
    flat: dict[str, float] = {}

    def take(part: Mapping[str, Any], prefix: str) -> None:
        for key, value in part.items():
            if key in NOT_OURS:
                continue
            name = f"{prefix}{key}".replace(" ", "_")
            if isinstance(value, Mapping):
                take(value, f"{name}_")
            elif isinstance(value, (int, float)):
                flat[name] = value

    take({key: value for key, value in numbers.items() if key != "checkpoint_sha256"}, "")
    return flat


def draw(numbers: Mapping[str, Any], path: Path) -> None:
    """Bars of the demo's Dice: the network and what needs none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    demo = numbers["demo"]
    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, tissue in enumerate(demo["dice"]):
        values = [demo[row][tissue] for row in ROWS]
        bars = axes.barh([row + 0.38 * (place - 0.5) for row in range(len(ROWS))], values, height=0.36, label=tissue)
        axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set(yticks=range(len(ROWS)), yticklabels=list(ROWS.values()), xlim=(0, 1), xlabel="Dice (3D)",
             title="One labelled slice of MNI152, all others predicted")
    axes.invert_yaxis()
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    checking = parser.parse_args().check
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))
    wanted = up_to_date(metadata)
    stale = [key for key in wanted if wanted[key] != metadata.get(key)]
    if __version__ not in metadata["changelog"]:
        print(f"{METADATA}: the changelog has no entry for version {__version__}: add one")
        return 1
    if not checking:
        METADATA.write_text(json.dumps(wanted, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        draw(json.loads(NUMBERS.read_text()), PLOT)
    print(f"{METADATA}: {'was' if not checking else 'is'} out of date in {', '.join(stale)}" if stale else
          f"{METADATA}: up to date")
    return int(bool(stale) and checking)


if __name__ == "__main__":
    raise SystemExit(main())
