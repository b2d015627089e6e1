"""A short training run that compares one choice at a time: the trainer's own record, a line for every 40 steps.

    python benchmarks/proxy.py --data ../shared/data --families painted --steps 120 --warp gentle

Episodes come from the validation lists and are the same for every run with the same settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from mvg_core.network import preset
from mvg_core.network.compact import CompactPainter
from mvg_core.training import recipe
from mvg_core.training.augmentation import WarpConfig
from mvg_core.training.trainer import HybridTrainer

WARPS = {"large": WarpConfig(), "moderate": recipe.MODERATE, "gentle": recipe.GENTLE}


def main() -> None:
    """Train for a few steps and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--packs", type=Path, default=Path("packs"))
    parser.add_argument("--families", nargs="+", default=["real", "painted", "restoration"])
    parser.add_argument("--warp", choices=WARPS, default="gentle")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--float32", action="store_true", help="without bf16 autocast")
    options = parser.parse_args()
    stage = recipe.STAGES["start"]
    families = {name: stage.episodes.families[name] for name in options.families}
    episodes = dataclasses.replace(stage.episodes, size=options.size, families=families, warp=WARPS[options.warp],
                                   prompts=(1.0,))
    config = dataclasses.replace(stage, episodes=episodes, batch=options.batch, iterations=options.steps, warm_up=20,
                                 learning_rate=options.learning_rate, precision="fp32" if options.float32 else "bf16",
                                 report_every=40)
    bank = recipe.read_bank(options.data, options.packs, "validation")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        HybridTrainer(CompactPainter(preset("mvg_compact")), bank, config, Path(folder)).run()


if __name__ == "__main__":
    main()
