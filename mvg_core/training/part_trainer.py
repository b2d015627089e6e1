"""Trains one part of what is shipped by itself, resumable at any moment: the loop of every such stage.

What a step learns depends on the configuration and its number alone, so whoever is interrupted goes on from the last
checkpoint as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mvg_core.network.checkpoint import ConfiguredModule, load_safely, save_atomically, save_weights
from mvg_core.training.record import Record

EVERY = 200
"""Steps between checkpoints."""
FINAL_RATE = 0.02
"""Learning rate at the end, relative to the highest."""
CLIP = 1.0
"""Largest gradient norm."""
BETAS = (0.9, 0.98)


class PartTrainer(ABC):
    """Trains a part.

    Args:
        name: of the part, under which checkpoints hold it.
        part: trained in place; goes to the device.
        groups: of its parameters, as for AdamW; `rate_scale` says how much faster than the others a group learns.
        config: a dataclass with `steps`, `learning_rate` (the highest, after `warm_up` steps; falls along half a
            cosine) and whatever else the stage depends on.
        folder: of the run; one that holds a checkpoint is resumed.
        device: where it learns.
        average: how the averaged weights follow the learned ones, see `AveragedModel`.
        every: steps between checkpoints.

    Attributes:
        average: the part with averaged weights, which are kept.
    """

    def __init__(self, name: str, part: nn.Module, groups: Sequence[dict[str, Any]], config: Any, folder: Path,
                 device: str, *, average: Callable[..., None], every: int = EVERY) -> None:
        self.config, self.folder, self.device = config, folder, torch.device(device)
        self.part = part.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._name, self._every = name, every
        self._scales = [group.get("rate_scale", 1.0) for group in groups]
        self.optimizer = torch.optim.AdamW(list(groups), lr=config.learning_rate, betas=BETAS)
        self.average = AveragedModel(self.part, multi_avg_fn=average)
        self._limit, self._before, self._started = math.inf, 0.0, time.perf_counter()

    @abstractmethod
    def costs(self, step: int) -> dict[str, Tensor]:
        """What the episodes of a step cost: `loss`, which is learned from, and whatever is worth a record."""

    def averaged(self) -> ConfiguredModule:
        """The network that is kept, with the averaged part."""
        return self.average.module  # type: ignore[return-value]

    def run(self, minutes: float = math.inf) -> None:
        """Train to the last step; `weights.pt` then holds what is kept.

        Args:
            minutes: to train for in all, earlier starts of the run counted in, if the steps take longer: the learning
                rate falls accordingly. What such a run learns depends on how fast the machine is.
        """
        first = self._resume()
        self._limit, self._started = 60 * minutes, time.perf_counter()
        record = Record(self.folder, first, 50, lambda line: print(json.dumps(line), flush=True))
        step, over = first, self._done(first) >= 1
        while not over:
            costs = self.learn(step)
            step += 1
            record.add(step, costs, self.optimizer.param_groups[0]["lr"])
            over = self._done(step) >= 1
            if over or step % self._every == 0:
                self._save(step)
        print(f"{self.folder / 'weights.pt'}: {self._seconds():.0f} s")

    def learn(self, step: int) -> dict[str, float]:
        """Take one step; what it cost."""
        self._set_rate(step)
        costs = self.costs(step)
        self.optimizer.zero_grad(set_to_none=True)
        costs["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.part.parameters(), CLIP)
        finite = bool(torch.isfinite(norm))
        if finite:  # one bad batch must not poison the weights
            self.optimizer.step()
            self.average.update_parameters(self.part)
        numbers = {name: cost.item() for name, cost in costs.items()}
        return {**numbers, "norm": norm.item(), "skipped": float(not finite)}

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def _done(self, step: int) -> float:
        """The share of the stage that is over before a step, 0 to 1."""
        return max(step / self.config.steps, min(1.0, self._seconds() / self._limit))

    def _set_rate(self, step: int) -> None:
        falling = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * self._done(step)))
        rate = self.config.learning_rate * min(1.0, (step + 1) / self.config.warm_up) * falling
        for group, scale in zip(self.optimizer.param_groups, self._scales, strict=True):
            group["lr"] = rate * scale

    def _resume(self) -> int:
        path = self.folder / "last.pt"
        if not path.is_file():
            return 0
        stored = load_safely(path)
        if json.loads(stored["config"]) != json.loads(json.dumps(asdict(self.config))):
            raise ValueError(f"{path} belongs to another run: train in another folder, or move it away")
        self.part.load_state_dict(stored[self._name])
        self.average.load_state_dict(stored["average"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self._before = float(stored.get("seconds", 0.0))
        return int(stored["step"])

    def _save(self, step: int) -> None:
        save_atomically({self._name: self.part.state_dict(), "average": self.average.state_dict(), "step": step,
                         "optimizer": self.optimizer.state_dict(), "config": json.dumps(asdict(self.config)),
                         "seconds": self._seconds()}, self.folder / "last.pt")
        save_weights(self.averaged(), self.folder / "weights.pt")
