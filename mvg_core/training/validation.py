"""Validation during training: the same episodes every time, solved from their prompts alone.

Shape letters: B episodes, S prompts, L labels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines.evaluator import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.metrics.meandice import compute_dice
from monai.metrics.regression import PSNRMetric, SSIMMetric
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mvg_core.training import distributed
from mvg_core.training.bank import SliceBank
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import EpisodeConfig, Episodes, EpisodeSampler
from mvg_core.training.learner import AUTOCAST
from mvg_core.training.panels import Panels
from mvg_core.training.stream import bank_of
from mvg_core.training.tracking import say_errors_once

BATCH = 8
SEED = 20_240_609
"""Of validation episodes, whatever the seed of the training: runs with other seeds can be compared."""
MEASURES = ("score", "dice", "ssim", "psnr")


class HybridEvaluator(SupervisedEvaluator):
    """Scores a network on episodes of fixed seed.

    The metrics are means over episodes: `dice` (of segmentations: mean over the labels that the prompts show, where a
    label that is neither there nor painted counts 1), `ssim` and `psnr` in dB (of image-to-image episodes), and the
    key metric `score`, the Dice or SSIM of every episode.

    `state.output` is a list with a dictionary for each episode: `image` (1, H, W), `label` (3, H, W) and `pred`
    (3, H, W) in [0, 1], and its numbers.

    Args:
        network: what is scored; a `HybridTrainer` puts its averaged network here.
        dataset: `SliceDataset` or `SliceBank` of subjects that are not trained on.
        config: of the training; its `episodes`, `precision` and `validation_episodes` are used.
        device: torch device.
        val_handlers: MONAI handlers.
        panels: folder for pictures of some episodes, `step_000250.png` and so on.

    Raises:
        ValueError: `dataset` is no data set, or holds nothing to validate on.
    """

    def __init__(self, network: nn.Module, dataset: Any, config: TrainingConfig, device: torch.device | str = "cpu", *,
                 val_handlers: Sequence | None = None, panels: Path | str | None = None) -> None:
        self.config = config
        self.panels = Path(panels) if panels is not None else None
        self.step = 0
        episodes = ValidationEpisodes(bank_of(dataset), config)
        super().__init__(
            device=torch.device(device), val_data_loader=DataLoader(episodes, batch_size=None), network=network,
            epoch_length=len(episodes), decollate=False, key_val_metric={"score": EpisodeMean("score")},
            additional_metrics={name: EpisodeMean(name) for name in MEASURES[1:]})
        say_errors_once(self)
        self._drawn = Panels()
        self.add_event_handler(Events.STARTED, self._start_panels)
        self.add_event_handler(Events.COMPLETED, self._write_panels)
        self._register_handlers(val_handlers or ())

    def _iteration(self, engine: SupervisedEvaluator, batchdata: Episodes) -> list[dict]:  # type: ignore[override]
        episodes, precision = batchdata.to(self.state.device), self.config.precision
        with self.mode(self.network), torch.autocast(self.state.device.type, AUTOCAST[precision],
                                                     enabled=precision != "fp32"):
            painted = self.inferer(stacked(episodes), self.network).float()
        numbers = measures(painted, episodes)
        self.state.output = [
            {"image": episodes.images[b, 0], "label": episodes.labels[b, 0], "pred": painted[b].clamp(0, 1),
             **{name: float(values[b]) for name, values in numbers.items()}}
            for b in range(len(painted))]
        if self.panels is not None:
            self._drawn.add(episodes, self.state.output)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _start_panels(self) -> None:
        self._drawn = Panels()

    def _write_panels(self) -> None:
        if self.panels is not None and distributed.rank() == 0:
            self._drawn.write(self.panels / f"step_{self.step:06d}.png")


class ValidationEpisodes(IterableDataset):
    """The batches of a validation, the same every time."""

    def __init__(self, bank: SliceBank, config: TrainingConfig) -> None:
        super().__init__()
        self.bank, self.count = bank, config.validation_episodes
        self.episodes = dataclasses.replace(config.episodes, families=families_to_validate(bank, config.episodes))

    def __len__(self) -> int:
        return math.ceil(self.count / BATCH)

    def __iter__(self) -> Iterator[Episodes]:
        sampler = EpisodeSampler(self.bank, self.episodes, torch.Generator())
        for number in range(len(self)):
            sampler.reseed(SEED + number)
            yield sampler.sample(min(BATCH, self.count - number * BATCH))


def families_to_validate(bank: SliceBank, episodes: EpisodeConfig) -> dict[str, float]:
    """The families of training that show real images of this bank; all of training's, if none does.

    Raises:
        ValueError: the bank holds no slice.
    """
    if not len(bank.images):
        raise ValueError("there are no slices to validate on: give the validation list items, or train without one")
    real = {"real": bool((bank.labelled & bank.has_image).any()), "restoration": bool(bank.has_image.any())}
    chosen = {name: weight for name, weight in episodes.families.items() if weight > 0 and real.get(name, False)}
    return chosen or dict(episodes.families)


def stacked(episodes: Episodes) -> Tensor:
    """The one-tensor input of a network (B, 1 + 4 S, H, W): the query, then each prompt's image and painted label."""
    prompts = torch.cat([episodes.images[:, 1:], episodes.labels[:, 1:]], dim=2)
    return torch.cat([episodes.images[:, 0], prompts.flatten(1, 2)], dim=1)


def measures(painted: Tensor, episodes: Episodes) -> dict[str, Tensor]:
    """`MEASURES` of every episode (B,); NaN where one does not apply.

    Args:
        painted: answers (B, 3, H, W).
        episodes: what was asked.
    """
    is_segmentation = episodes.kinds == 0
    found = {name: painted.new_full((len(painted),), math.nan) for name in MEASURES}
    rows = is_segmentation.nonzero()[:, 0]
    if len(rows):
        found["dice"][rows] = episode_dice(painted[rows], episodes.classes[rows, 0], episodes.palette[rows],
                                           episodes.in_palette[rows])
    rows = (~is_segmentation).nonzero()[:, 0]
    if len(rows):
        answer = painted[rows].mean(1, keepdim=True).clamp(0, 1)
        target = episodes.labels[rows, 0].mean(1, keepdim=True)
        found["ssim"][rows] = SSIMMetric(spatial_dims=2, data_range=1.0)(answer, target)[:, 0]  # type: ignore[index]
        found["psnr"][rows] = PSNRMetric(max_val=1.0)(answer, target)[:, 0]  # type: ignore[index]
    found["score"] = torch.where(is_segmentation, found["dice"], found["ssim"])
    return found


def episode_dice(painted: Tensor, classes: Tensor, palette: Tensor, in_palette: Tensor) -> Tensor:
    """Mean Dice over the labels of each episode's palette (B,); 1 for a label that is neither there nor painted.

    Args:
        painted: (B, 3, H, W), decoded to the nearest colour in use.
        classes: true rows of the palette (B, H, W).
        palette: (B, 1 + L, 3).
        in_palette: (B, 1 + L), rows in use.
    """
    distance = ((painted[:, None] - palette[..., None, None]) ** 2).sum(2)  # (B, 1 + L, H, W)
    decoded = distance.masked_fill(~in_palette[..., None, None], math.inf).argmin(1)
    rows = torch.arange(palette.shape[1], device=painted.device)[:, None, None]
    dice = compute_dice(decoded[:, None] == rows, classes[:, None] == rows, include_background=False,
                        ignore_empty=False)
    used = in_palette[:, 1:]
    return (dice * used).sum(1) / used.sum(1).clamp_min(1)


class EpisodeMean(Metric):
    """Mean of one number over the episodes that have it; NaN if none has.

    Every process validates all episodes, so nothing is exchanged.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._values: list[float] = []
        super().__init__()

    def reset(self) -> None:
        """Forget what was seen."""
        self._values = []

    def update(self, output: list[dict[str, Any]]) -> None:
        """Take in the episodes of a batch."""
        self._values += [episode[self.name] for episode in output if not math.isnan(episode[self.name])]

    def compute(self) -> float:
        """The mean."""
        return sum(self._values) / len(self._values) if self._values else math.nan


