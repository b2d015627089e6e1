"""How the shipped weights are trained: three stages, one command each, resumable at any moment.

    python -m mvg_core.training.recipe start --data ../shared/data --out runs/start
    python -m mvg_core.training.recipe middle --data ../shared/data --out runs/middle --initial runs/start/weights.pt
    python -m mvg_core.training.recipe finish --data ../shared/data --out runs/finish --initial runs/middle/weights.pt

Slices grow from 64 to 96 to the native 192 pixels: reading a prompt is learned at any size, and small slices are cheap.
The first two stages have a constant learning rate, so each can be stopped whenever there is no more time
(`--iterations`); the last one lowers it.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from mvg_core.network import preset
from mvg_core.network.checkpoint import read_state
from mvg_core.network.compact import CompactPainter
from mvg_core.training.augmentation import WarpConfig
from mvg_core.training.bank import SliceBank, build_bank
from mvg_core.training.datasets import read_training_set
from mvg_core.training.episodes import KINDS, EpisodeConfig
from mvg_core.training.objective import HybridConfig
from mvg_core.training.trainer import HybridTrainer, TrainingConfig

TRAINING_SETS = ("brain_fetal_atlas", "brain_ms", "breast_us", "carotid_us", "fetal_head_us", "head_labelmaps",
                 "headneck_ct", "nerve_us", "sarcoma_ct_pet_mr")

DATASET_WEIGHTS = {"brain_fetal_atlas": 2.0, "headneck_ct": 3.0, "nerve_us": 1.5, "breast_us": 0.7, "carotid_us": 0.5,
                   "brain_ms": 0.5}

# 30 % of the image-to-image episodes are masked, not 90 % as in the paper: inference is autoregressive, and a small
# network has no episodes to spare.
OBJECTIVE = HybridConfig(masked_share={kind: 0.0 if kind == "segmentation" else 0.3 for kind in KINDS})

# Large warps first make a network wait long for its first success: it starts with nearly aligned slices.
GENTLE = WarpConfig(zoom=1.5, rotation_deg=10, shift=0.05, scale=0.1, jitter=0.3, elastic=0.015)
MODERATE = WarpConfig(zoom=6.0, zoomed=0.85, rotation_deg=15, shift=0.08, scale=0.2, jitter=0.35, elastic=0.025)

LATER = EpisodeConfig(dataset_weights=DATASET_WEIGHTS, warp=MODERATE, prompts=(0.5, 0.3, 0.2), drafts=0.5,
                      families={"real": 0.4, "painted": 0.2, "restoration": 0.4})

STAGES: dict[str, TrainingConfig] = {
    "start": TrainingConfig(
        episodes=EpisodeConfig(size=64, dataset_weights=DATASET_WEIGHTS, warp=GENTLE), objective=OBJECTIVE,
        batch=16, iterations=40_000, learning_rate=1.5e-3, final_rate=1.0, warm_up=150),
    "middle": TrainingConfig(
        episodes=dataclasses.replace(LATER, size=96), objective=OBJECTIVE,
        batch=16, iterations=20_000, learning_rate=1.2e-3, final_rate=1.0, warm_up=50, seed=1),
    "focus": TrainingConfig(
        episodes=dataclasses.replace(LATER, size=96, prompts=(0.25, 0.45, 0.3), drafts=0.6, copied=0.4,
                                     warp=dataclasses.replace(MODERATE, zoomed=0.75),
                                     families={"real": 0.5, "painted": 0.2, "restoration": 0.3}), objective=OBJECTIVE,
        batch=16, iterations=40_000, learning_rate=1.2e-3, final_rate=1.0, warm_up=50, seed=5),
    "finish": TrainingConfig(
        episodes=dataclasses.replace(LATER, size=192), objective=OBJECTIVE,
        batch=8, iterations=300, learning_rate=1e-3, warm_up=20, ema=0.98, seed=2),
}


def read_bank(data_folder: Path, cache: Path, split: str = "training") -> SliceBank:
    """The slices of all training sets, cut once and kept in `cache`."""
    path = cache / f"{split}.npz"
    if not path.is_file():
        sets = [read_training_set(data_folder / name, split) for name in TRAINING_SETS]
        cache.mkdir(parents=True, exist_ok=True)
        build_bank([training_set for training_set in sets if training_set.items]).save(path)
    return SliceBank.load(path)


def main() -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; an existing run is resumed")
    parser.add_argument("--initial", type=Path, help="weights to start from")
    parser.add_argument("--packs", type=Path, default=Path("packs"), help="cache of cut slices")
    parser.add_argument("--iterations", type=int, help="steps, if not those of the recipe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    config = STAGES[options.stage]
    if options.iterations:
        config = dataclasses.replace(config, iterations=options.iterations)
    torch.manual_seed(config.seed)
    network = CompactPainter(preset("mvg_compact"))
    if options.initial:
        network.load_state_dict(read_state(options.initial))
    options.out.mkdir(parents=True, exist_ok=True)
    bank = read_bank(options.data, options.packs)
    HybridTrainer(network, bank, config, options.out, options.device).run()


if __name__ == "__main__":
    main()
