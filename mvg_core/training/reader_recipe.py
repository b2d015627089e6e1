"""How the reader of label maps is trained: one command, resumable at any moment.

    python -m mvg_core.training.reader_recipe --data ../shared/data --out runs/reader

It stands beside the network that paints and shares no weights with it, so it needs no earlier stage. Its episodes are
those of segmentation; each is read in the query by weights that are fitted to its prompts (`training.reader_loss`).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mvg_core.network import create_network, preset
from mvg_core.network.checkpoint import load_network
from mvg_core.network.reader import LabelReader
from mvg_core.training.bank import SliceBank
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import EpisodeConfig, Episodes
from mvg_core.training.optimizer import parameter_groups
from mvg_core.training.part_trainer import EVERY, PartTrainer
from mvg_core.training.prompt_tuning import fast_bfloat16
from mvg_core.training.reader_loss import reader_costs
from mvg_core.training.recipe import DATASET_WEIGHTS, MODERATE, read_bank
from mvg_core.training.stream import EpisodeStream, episode_loader

EPISODES = EpisodeConfig(size=128, dataset_weights=DATASET_WEIGHTS, families={"real": 0.6, "painted": 0.4},
                         same_subject=0.35, near=0.4, prompts=(0.25, 0.25, 0.25, 0.25),
                         warp=dataclasses.replace(MODERATE, zoomed=0.6))
_RAMP = 20
"""The average of the weights looks back over 1 / this of the steps so far, until that is as far as `ema` looks."""


@dataclass(frozen=True)
class ReaderConfig:
    """The stage.

    Attributes:
        episodes: what is drawn; `size` is a multiple of 32, no family makes image-to-image episodes.
        batch: episodes of a step.
        steps: of the optimiser.
        learning_rate: highest, after `warm_up` steps; falls to 2 % of it along half a cosine.
        single_rate: how much faster all that is no matrix or kernel learns: biases, norms, gains, the ridge.
        weight_decay: of matrices and kernels.
        ema: decay of the averaged weights, which are kept; lower in the first steps.
        seed: of weights and episodes.

    Raises:
        ValueError: episodes that a reader cannot learn from.
    """

    episodes: EpisodeConfig = field(default_factory=lambda: EPISODES)
    batch: int = 8
    steps: int = 7_500
    learning_rate: float = 1.5e-3
    warm_up: int = 100
    single_rate: float = 3.0
    weight_decay: float = 0.02
    ema: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes.size % 32:
            raise ValueError(f"a reader needs slices with sides that are multiples of 32, got {self.episodes.size}")
        if self.episodes.families.get("restoration"):
            raise ValueError("a reader learns from label maps: leave the family 'restoration' out")


STAGE = ReaderConfig()


class ReaderTrainer(PartTrainer):
    """Trains a reader.

    Args:
        network: trained in place.
        bank: slices of all data sets.
        config: the stage.
        folder: of the run; one that holds a checkpoint is resumed.
        device: where it learns.
    """

    config: ReaderConfig

    def __init__(self, network: LabelReader, bank: SliceBank, config: ReaderConfig, folder: Path, device: str = "cpu"
                 ) -> None:
        self.bank = bank
        decayed, single = parameter_groups(network, config.weight_decay)
        groups = [decayed, {**single, "rate_scale": config.single_rate}]
        super().__init__("reader", network.train(), groups, config, folder, device, average=ramped_average(config.ema),
                         every=EVERY)
        self._next, self._ahead = -1, iter(())

    def costs(self, step: int) -> dict[str, Tensor]:
        """Mean cost of the episodes of a step, and its parts."""
        episodes = self.episodes(step).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            return reader_costs(self.part, episodes.images, episodes.classes)

    def episodes(self, step: int) -> Episodes:
        """The batch of a step, the same whenever it is asked for; those of the steps after it are drawn meanwhile."""
        if step != self._next:
            self._ahead = self._drawn_from(step)
        self._next = step + 1
        return next(self._ahead)

    def _drawn_from(self, step: int) -> Iterator[Episodes]:
        config = self.config
        what = TrainingConfig(episodes=config.episodes, batch=config.batch, iterations=config.steps, seed=config.seed)
        for (episodes,) in episode_loader(EpisodeStream(self.bank, what, step, self.device)):
            yield episodes


def ramped_average(ema: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential average for `AveragedModel` whose decay grows from 2 / 21 to `ema`, so that it starts at once."""

    def update(averaged: list[Tensor], learned: list[Tensor], n_averaged: Tensor) -> None:
        n_before = int(n_averaged)
        decay = min(ema, (n_before + 1) / (n_before + _RAMP))
        get_ema_multi_avg_fn(decay)(averaged, learned, n_averaged)

    return update


def new_reader(initial: Path | None = None) -> LabelReader:
    """A reader that has learned nothing, or that of a weight file.

    Raises:
        ValueError: the file holds another network.
    """
    network = create_network(preset("mvg_reader")) if initial is None else load_network(initial)
    if not isinstance(network, LabelReader):
        raise ValueError(f"{initial} holds a {network.config.architecture!r} network: give weights of a reader")
    return network


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; an existing run is resumed")
    parser.add_argument("--initial", type=Path, help="weights of a reader to start from")
    parser.add_argument("--packs", type=Path, default=Path("packs"), help="cache of cut slices")
    parser.add_argument("--steps", type=int, default=STAGE.steps, help="if not those of the recipe")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, if the steps take longer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(STAGE.seed)
    network = new_reader(options.initial)
    options.out.mkdir(parents=True, exist_ok=True)
    config = ReaderConfig(steps=options.steps)
    bank = read_bank(options.data, options.packs)
    ReaderTrainer(network, bank, config, options.out, options.device).run(options.minutes)


if __name__ == "__main__":
    main()
