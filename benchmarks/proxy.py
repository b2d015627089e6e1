"""A short training run that compares one choice at a time: mean loss over every 40 steps.

    python benchmarks/proxy.py --data ../shared/data --families painted --steps 120 --warp gentle

Episodes come from the validation lists and are the same for every run with the same settings.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path

import torch

from mvg_core.network import preset
from mvg_core.network.compact import CompactPainter
from mvg_core.training import recipe
from mvg_core.training.augmentation import WarpConfig
from mvg_core.training.episodes import EpisodeSampler
from mvg_core.training.objective import draw_hidden, hybrid_loss
from mvg_core.training.trainer import parameter_groups

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
    episodes = dataclasses.replace(stage.episodes, size=options.size, families=families, warp=WARPS[options.warp])
    sampler = EpisodeSampler(recipe.read_bank(options.data, options.packs, "validation"), episodes, torch.Generator())
    torch.manual_seed(0)
    network = CompactPainter(preset("mvg_compact"))
    optimizer = torch.optim.AdamW(parameter_groups(network, stage.weight_decay), options.learning_rate, (0.9, 0.95))
    generator, sums = torch.Generator(), defaultdict(float)
    for step in range(options.steps):
        sampler.reseed(step)
        batch = sampler.sample(options.batch, 1)
        hidden, masked = draw_hidden(batch.kinds, 2, options.size // network.patch, stage.objective, generator)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 20)
        with torch.autocast("cpu", torch.bfloat16, enabled=not options.float32):
            parts = hybrid_loss(network, batch, hidden, masked, stage.objective)
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), stage.clip)
        optimizer.step()
        for name, part in parts.items():
            sums[name] += float(part.detach()) / 40
        if step % 40 == 39:
            print(step + 1, {name: round(value, 3) for name, value in sums.items()}, flush=True)
            sums.clear()


if __name__ == "__main__":
    main()
