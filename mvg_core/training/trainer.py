"""The training loop: MONAI's engine around the hybrid objective, with averaged weights and safe checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Events
from monai.engines.trainer import SupervisedTrainer
from monai.utils.enums import CommonKeys
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from mvg_core.network.checkpoint import ConfiguredModule, load_safely, save_atomically, save_weights
from mvg_core.network.compact import CompactPainter
from mvg_core.training.bank import SliceBank
from mvg_core.training.episodes import EpisodeConfig, Episodes, EpisodeSampler
from mvg_core.training.objective import HybridConfig, draw_hidden, hybrid_loss


@dataclass(frozen=True)
class TrainingConfig:
    """One stage of training.

    Attributes:
        episodes: what is drawn.
        objective: how it is hidden and weighted.
        batch: episodes for each step.
        iterations: steps of this stage.
        learning_rate: at the top of the schedule.
        final_rate: learning rate at the end of the cosine, relative to the top; 1 keeps it constant.
        warm_up: steps of linear warm-up.
        weight_decay: of matrices and kernels; norms, biases and position embeddings get none.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are the ones that ship.
        seed: of weights and episodes.
        mixed_precision: bf16 autocast.
        checkpoint_every: steps between checkpoints.
        report_every: steps between lines of the record.
    """

    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    objective: HybridConfig = field(default_factory=HybridConfig)
    batch: int = 16
    iterations: int = 5000
    learning_rate: float = 1e-3
    final_rate: float = 0.02
    warm_up: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    mixed_precision: bool = True
    checkpoint_every: int = 250
    report_every: int = 50


class EpisodeStream(IterableDataset):
    """Batches of episodes, one for each step.

    Step k is the same whenever it is drawn, so a resumed run goes on as if it had not been interrupted.
    """

    def __init__(self, bank: SliceBank, config: TrainingConfig, first: int = 0, device: str = "cpu") -> None:
        super().__init__()
        self.bank, self.config, self.first, self.device = bank, config, first, device

    def __iter__(self) -> Iterator[Episodes]:
        generator = torch.Generator(self.device)
        sampler = EpisodeSampler(self.bank, self.config.episodes, generator)
        for step in range(self.first, self.config.iterations):
            sampler.reseed(self.config.seed * 1_000_003 + step)
            yield sampler.sample(self.config.batch)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to `final_rate` of the top, at step 0, 1, ..."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    share = (step - config.warm_up) / max(1, config.iterations - config.warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)


def parameter_groups(network: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels, leave norms, biases and position embeddings alone."""
    named = list(network.named_parameters())
    plain = [p for name, p in named if p.ndim < 2 or "position" in name]
    decayed = [p for name, p in named if not (p.ndim < 2 or "position" in name)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class HybridTrainer(SupervisedTrainer):
    """Trains a network on episodes; one epoch is one checkpoint interval.

    Args:
        network: changed in place.
        bank: training slices.
        config: the stage.
        out: existing folder for `last.pt` (everything needed to resume), `weights.pt` (averaged weights) and
            `record.jsonl`. A run whose `last.pt` is there is resumed.
        device: torch device; episodes are drawn there too when it is a GPU.

    Raises:
        CheckpointError: `last.pt` is damaged or belongs to another network.
    """

    def __init__(self, network: CompactPainter, bank: SliceBank, config: TrainingConfig, out: Path,
                 device: str = "cpu") -> None:
        self.config, self.out = config, out
        self.painter = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        optimizer = torch.optim.AdamW(parameter_groups(network, config.weight_decay), lr=config.learning_rate,
                                      betas=(0.9, 0.95))
        first = 0
        if (out / "last.pt").is_file():
            first = self._resume(optimizer, device)
        stream = EpisodeStream(bank, config, first, device)
        loader = DataLoader(stream, batch_size=None, num_workers=1 if device == "cpu" else 0,
                            prefetch_factor=4 if device == "cpu" else None)
        super().__init__(
            device=device, max_epochs=max(1, math.ceil(config.iterations / config.checkpoint_every)),
            train_data_loader=loader, network=network, optimizer=optimizer, loss_function=hybrid_loss,
            epoch_length=config.checkpoint_every, decollate=False)
        self.generator = torch.Generator(device)
        self.first = first
        self._started = time.perf_counter()
        self.state.epoch = first // config.checkpoint_every
        self.state.iteration = first
        self._sums: dict[str, float] = {}
        self._summed = 0
        self.add_event_handler(Events.ITERATION_COMPLETED, HybridTrainer._record)
        self.add_event_handler(Events.ITERATION_COMPLETED, HybridTrainer._finish_step)

    def run(self) -> None:
        """Train up to `config.iterations` steps, those before a resume included; a finished run is left as it is."""
        if self.state.iteration < self.config.iterations:
            super().run()

    def _iteration(self, engine: SupervisedTrainer, batchdata: Episodes) -> dict[str, Any]:  # type: ignore[override]
        config, step = self.config, self.state.iteration - 1
        episodes = batchdata.to(self.state.device)
        self.generator.manual_seed(config.seed * 7_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        n_images, patches = episodes.images.shape[1], episodes.images.shape[-1] // self.painter.config.patch
        hidden, masked = draw_hidden(episodes.kinds, n_images, patches, config.objective, self.generator)
        self.painter.train()
        with torch.autocast(self.state.device.type, torch.bfloat16, enabled=config.mixed_precision):
            parts = hybrid_loss(self.painter, episodes, hidden, masked, config.objective)
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.painter.parameters(), config.clip)
        if torch.isfinite(norm):  # one bad batch must not poison the weights
            self.optimizer.step()
            self.average.update_parameters(self.painter)
        return {CommonKeys.LOSS: parts["loss"].item(), "norm": norm.item(),
                "segmentation": parts["segmentation"].item(), "image": parts["image"].item()}

    def _record(self) -> None:
        """Means since the last line, every `report_every` steps."""
        step = self.state.iteration
        for name, value in self.state.output.items():
            self._sums[str(name)] = self._sums.get(str(name), 0.0) + float(value)
        self._summed += 1
        if step % self.config.report_every == 0:
            line = {"step": step, **{name: round(total / self._summed, 5) for name, total in self._sums.items()},
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "steps_per_s": round((step - self.first) / (time.perf_counter() - self._started), 3)}
            self._sums.clear()
            self._summed = 0
            with open(self.out / "record.jsonl", "a") as record:
                record.write(json.dumps(line) + "\n")
            print(line, flush=True)

    def _finish_step(self) -> None:
        step, config = self.state.iteration, self.config
        is_last = step >= config.iterations
        if is_last or step % config.checkpoint_every == 0:
            self.save()
        if is_last and step % config.checkpoint_every:
            self.terminate_epoch()  # the last epoch is a short one

    def save(self) -> None:
        """Write `last.pt` and `weights.pt`, each replaced only once complete."""
        save_atomically({"network": self.painter.state_dict(), "average": self.average.state_dict(),
                         "optimizer": self.optimizer.state_dict(), "step": self.state.iteration,
                         "config": json.dumps(asdict(self.config))}, self.out / "last.pt")
        save_weights(cast(ConfiguredModule, self.average.module), self.out / "weights.pt")

    def _resume(self, optimizer: torch.optim.Optimizer, device: str) -> int:
        """Take over everything from `last.pt`; the number of steps that are done."""
        stored = load_safely(self.out / "last.pt", device)
        self.painter.load_state_dict(stored["network"])
        self.average.load_state_dict(stored["average"])
        optimizer.load_state_dict(stored["optimizer"])
        return int(stored["step"])

