"""The episodes of every step, drawn from its number alone, so that a resumed run goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mvg_core.training.bank import SliceBank
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import Episodes, EpisodeSampler

DRAW_STRIDE = 1_000_000_007
"""Between the seeds of the draws of one step; larger than any number of steps."""


def bank_of(dataset: Any) -> SliceBank:
    """The slices of a data set: a `SliceBank`, or whatever has one as its `bank`.

    Raises:
        ValueError: it is neither.
    """
    bank = dataset if isinstance(dataset, SliceBank) else getattr(dataset, "bank", None)
    if not isinstance(bank, SliceBank):
        raise ValueError(f"a SliceDataset or SliceBank is needed, got {type(dataset).__name__}")
    return bank


def step_seed(seed: int, factor: int, step: int, draw: int) -> int:
    """The seed of one draw of one step, for the purpose that has this factor."""
    return seed * factor + step + draw * DRAW_STRIDE


class EpisodeStream(IterableDataset):
    """What one process is given for every step: a tuple of `accumulate` batches of episodes.

    Args:
        bank: slices.
        config: of the stage.
        first: number of the first step.
        device: where episodes are made.
        rank: number of this process. Its draws are rank x accumulate and those that follow, so several processes see
            what one process with more draws would see.

    Raises:
        ValueError: the bank has nothing for these episodes.
    """

    def __init__(self, bank: SliceBank, config: TrainingConfig, first: int = 0, device: torch.device | str = "cpu",
                 rank: int = 0) -> None:
        super().__init__()
        self.config, self.first, self.device = config, first, device
        self.draws = draw_numbers(config, rank)
        # Made here, so that what it refuses is refused before a process for it is started.
        self.sampler = EpisodeSampler(bank, config.episodes, torch.Generator(device))

    def __iter__(self) -> Iterator[tuple[Episodes, ...]]:
        for step in range(self.first, self.config.iterations):
            yield tuple(self._draw(step, draw) for draw in self.draws)

    def _draw(self, step: int, draw: int) -> Episodes:
        self.sampler.reseed(step_seed(self.config.seed, 1_000_003, step, draw))
        return self.sampler.sample(self.config.batch)


def draw_numbers(config: TrainingConfig, rank: int) -> Sequence[int]:
    """Which draws of a step belong to a process."""
    return range(rank * config.accumulate, (rank + 1) * config.accumulate)


def episode_loader(stream: EpisodeStream) -> DataLoader:
    """Draws on a CPU in a process of its own, a few steps ahead; on a GPU in this process."""
    on_cpu = torch.device(stream.device).type == "cpu"
    return DataLoader(stream, batch_size=None, num_workers=1 if on_cpu else 0, prefetch_factor=4 if on_cpu else None)
