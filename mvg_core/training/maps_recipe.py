"""How the feature maps of the shipped weights are trained: one command, resumable at any moment.

    python -m mvg_core.training.maps_recipe --data ../shared/data --out runs/maps --initial runs/finish/weights.pt

Everything else in the network stays as it is, so segmentations do not change. Slices are not resampled: noise and
sharpness are those of the images as they come.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mvg_core.network import preset
from mvg_core.network.checkpoint import load_network
from mvg_core.network.compact import CompactPainter
from mvg_core.readout import PRIOR_OF
from mvg_core.training.datasets import read_training_set
from mvg_core.training.native_slices import NativeSlices, cut_native
from mvg_core.training.part_trainer import EVERY, PartTrainer
from mvg_core.training.prompt_tuning import fast_bfloat16
from mvg_core.training.readout_loss import readout_costs
from mvg_core.training.recipe import TRAINING_SETS
from mvg_core.training.restorations import Restorations, RestorationSampler

DATASET_WEIGHTS = {"brain_ms": 2.5, "headneck_ct": 2.0, "fetal_head_us": 1.5, "sarcoma_ct_pet_mr": 1.5,
                   "breast_us": 0.5, "carotid_us": 0.4}


@dataclass(frozen=True)
class MapsConfig:
    """The stage.

    Attributes:
        side: of the crops in pixels, a multiple of 16.
        episodes: of each task in a step; beside them one of blur, lower resolution, shading or an intensity curve.
        steps: of the optimiser.
        learning_rate: highest, after `warm_up` steps; falls to 2 % of it along half a cosine.
        prior_rate: how much faster the prior of the readout learns, and its shrinkage.
        weight_decay: of the weights of the maps.
        ema: decay of the averaged weights, which are kept.
        seed: of weights and episodes.
    """

    side: int = 112
    episodes: tuple[tuple[str, int], ...] = (("noise", 4), ("holes", 4), ("contrast", 2))
    steps: int = 10_000
    learning_rate: float = 1.2e-3
    warm_up: int = 100
    prior_rate: tuple[float, float] = (3.0, 20.0)
    weight_decay: float = 1e-4
    ema: float = 0.998
    seed: int = 0


STAGE = MapsConfig()
OTHER_TASKS = ("blur", "resolution", "shading", "curve")


class MapsTrainer(PartTrainer):
    """Trains feature maps.

    Args:
        network: whose maps are trained, in place.
        slices: of all data sets.
        config: the stage.
        folder: of the run; one that holds a checkpoint is resumed.
        device: where it learns.
    """

    config: MapsConfig

    def __init__(self, network: CompactPainter, slices: NativeSlices, config: MapsConfig, folder: Path,
                 device: str = "cpu") -> None:
        self.network, self.slices = network, slices
        maps: Any = network.maps
        own = (maps.prior, maps.log_shrinkage)
        rest = [parameter for parameter in maps.parameters() if all(parameter is not each for each in own)]
        groups = [{"params": rest, "weight_decay": config.weight_decay},
                  *({"params": [each], "weight_decay": 0.0, "rate_scale": scale}
                    for each, scale in zip(own, config.prior_rate, strict=True))]
        super().__init__("maps", maps, groups, config, folder, device, average=get_ema_multi_avg_fn(config.ema),
                         every=EVERY)

    def costs(self, step: int) -> dict[str, Tensor]:
        """The mean cost of the episodes of a step, and of every prior's tasks."""
        shown, answers, counts, holes, priors = (part.to(self.device) for part in self.episodes(step))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            costs = readout_costs(self.part, shown, answers, counts, holes, priors)
        return {"loss": costs.mean(), **_by_prior(costs.detach(), priors)}

    def episodes(self, step: int) -> Restorations:
        """The batch of a step, the same whenever it is asked for."""
        # A sampler for every step: whoever resumes draws what would have been drawn.
        sampler = RestorationSampler(self.slices, self.config.side, DATASET_WEIGHTS, self.config.seed + 7919 * step)
        n_images = int(sampler.numpy.integers(2, 4))
        other = str(sampler.numpy.choice(OTHER_TASKS))
        return Restorations.cat([sampler.draw(task, number, n_images)
                                 for task, number in (*self.config.episodes, (other, 1))])

    def averaged(self) -> CompactPainter:
        """The network with the averaged maps."""
        kept = CompactPainter(self.network.config)
        kept.load_state_dict(self.network.state_dict())
        kept.maps.load_state_dict(self.average.module.state_dict())
        return kept


def with_maps(path: Path) -> CompactPainter:
    """The network of a weight file, with new feature maps if it makes none."""
    found = load_network(path)
    if found.config.maps:
        return found  # type: ignore[return-value]
    network = CompactPainter(preset("mvg_compact"))
    missing = network.load_state_dict({name: value for name, value in found.state_dict().items()
                                       if isinstance(value, Tensor) and not name.startswith("_")}, strict=False)
    if missing.unexpected_keys or any(not name.startswith(("maps.", "_")) for name in missing.missing_keys):
        raise ValueError(f"{path} holds another network than mvg_compact: train that first")
    network.card = found.card
    return network


def _by_prior(costs: Tensor, priors: Tensor) -> dict[str, Tensor]:
    return {kind: costs[priors == number].mean() for number, kind in enumerate(PRIOR_OF)}


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; an existing run is resumed")
    parser.add_argument("--initial", type=Path, required=True, help="weights of the rest of the network")
    parser.add_argument("--packs", type=Path, default=Path("packs"), help="cache of cut slices")
    parser.add_argument("--steps", type=int, default=STAGE.steps, help="if not those of the recipe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(STAGE.seed)
    network = with_maps(options.initial)
    options.out.mkdir(parents=True, exist_ok=True)
    config = MapsConfig(steps=options.steps)
    MapsTrainer(network, read_slices(options.data, options.packs), config, options.out, options.device).run()


def read_slices(data_folder: Path, cache: Path, split: str = "training") -> NativeSlices:
    """The slices of all training sets with their own pixels, cut once and kept in `cache`."""
    path = cache / f"native_{split}.npz"
    if not path.is_file():
        sets = [read_training_set(data_folder / name, split) for name in TRAINING_SETS]
        cache.mkdir(parents=True, exist_ok=True)
        cut_native([training_set for training_set in sets if training_set.items]).save(path)
    return NativeSlices.load(path)


if __name__ == "__main__":
    main()
