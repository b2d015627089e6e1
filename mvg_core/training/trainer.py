"""The training loop: MONAI's engine around the hybrid objective, with averaged weights and safe checkpoints."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines.trainer import SupervisedTrainer
from monai.utils.misc import set_determinism
from torch import nn

from mvg_core.training import distributed
from mvg_core.training.checkpoints import RunFolder, same_step_everywhere
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import Episodes
from mvg_core.training.handlers import accepted, validator_of
from mvg_core.training.learner import Learner
from mvg_core.training.objective import hybrid_loss
from mvg_core.training.record import Record
from mvg_core.training.stream import EpisodeStream, bank_of, episode_loader
from mvg_core.training.tracking import Display, say_errors_once
from mvg_core.training.validation import HybridEvaluator

__all__ = ["HybridTrainer", "TrainingConfig"]

HOPELESS = 50
"""Steps in a row without a finite gradient after which training stops."""


class HybridTrainer(SupervisedTrainer):
    """Trains a network on episodes; one epoch is `config.epoch_length` steps, a validation and a checkpoint.

    In the folder `out` it keeps `last.pt` (everything needed to resume), `weights.pt` (averaged weights, half
    precision), `best.pt` (those of the best validation), `record.jsonl` and `validation.jsonl`, and `panels`. A run
    whose `last.pt` is there is resumed, with the same losses as if it had not been interrupted.

    After every step `state.output` is a list with one dictionary: `loss`, its parts `segmentation` and `image`, the
    gradient's `norm`, and `skipped` (1 where the gradient was not finite and no step was taken).

    Args:
        network: changed in place; not wrapped for several processes.
        dataset: `SliceDataset` or `SliceBank` to draw episodes from.
        config: the stage.
        out: folder of the run.
        device: torch device; episodes are drawn there too when it is a GPU.
        max_epochs: takes the place of `config.iterations`: so many times `epoch_length` steps.
        validator: scores the averaged network after every epoch, unless a `ValidationHandler` says when.
        train_handlers: MONAI or ignite handlers; those on `EPOCH_COMPLETED` run after the validation, whose metrics are
            in `state.metrics`, and before the checkpoint.

    Raises:
        CheckpointError: `last.pt` is damaged or belongs to another network or configuration.
        ValueError: the configuration, data set or a handler does not fit.
    """

    def __init__(self, network: nn.Module, dataset: Any, config: TrainingConfig, out: Path | str,
                 device: torch.device | str = "cpu", *, max_epochs: int | None = None,
                 validator: HybridEvaluator | None = None, train_handlers: Sequence | None = None) -> None:
        if max_epochs is not None:
            config = dataclasses.replace(config, iterations=max_epochs * config.epoch_length)
        self.config, self.folder = config, RunFolder(out)
        device = torch.device(device)
        bank = bank_of(dataset)
        self.learner = Learner(network, config, device)
        self.best = {"score": -math.inf, "step": 0, "since": 0}
        self.first = self._resume()
        stream = EpisodeStream(bank, config, self.first, device, distributed.rank())
        super().__init__(
            device=device, max_epochs=max(1, math.ceil(config.iterations / config.epoch_length)),
            train_data_loader=episode_loader(stream), network=self.painter, optimizer=self.learner.optimizer,
            loss_function=hybrid_loss, epoch_length=config.epoch_length, decollate=False)
        self.state.epoch, self.state.iteration = self.first // config.epoch_length, self.first
        say_errors_once(self)
        self._display = Display()
        self._record: Record | None = None  # while it runs
        self._hopeless = 0
        handlers = accepted(train_handlers, resumed=self.first > 0)
        self.validator = validator or validator_of(handlers)
        self._attach(handlers)

    def _attach(self, handlers: Sequence[Any]) -> None:
        """Attach what happens, in this order: own records, validation, handlers of others, checkpoint."""
        self.add_event_handler(Events.ITERATION_COMPLETED, HybridTrainer._finish_step)
        if self.validator is not None:
            self._adopt(self.validator)
            if self.validator is not validator_of(handlers):
                self.add_event_handler(Events.EPOCH_COMPLETED, HybridTrainer._validate)
        self._register_handlers(handlers)
        self.add_event_handler(Events.EPOCH_COMPLETED, HybridTrainer._finish_epoch)

    @property
    def painter(self) -> Any:
        """The network that learns."""
        return self.learner.painter

    @property
    def average(self) -> Any:
        """The averaged network, as the `module` of an `AveragedModel`."""
        return self.learner.average

    def run(self) -> None:
        """Train up to `config.iterations` steps, those before a resume included; a finished run is left as it is."""
        if self.state.iteration >= self.config.iterations or self._is_patience_over():
            return
        set_determinism(self.config.seed)
        self._record = Record(self.folder.path, self.first, self.config.report_every, self._display.say)
        self._display.start(self.first, self.config.iterations)
        try:
            super().run()
        finally:
            self._display.stop()
            self._record = None

    def _iteration(self, engine: SupervisedTrainer, batchdata: Sequence[Episodes]) -> list[dict]:  # type: ignore[override]
        return [self.learner.learn(batchdata, self.state.iteration - 1)]

    def _finish_step(self) -> None:
        step, costs = self.state.iteration, self.state.output[0]
        if self._record is not None:
            self._record.add(step, costs, self.optimizer.param_groups[-1]["lr"])
        self._display.step(step, costs["loss"])
        self._hopeless = self._hopeless + 1 if costs["skipped"] else 0
        if self._hopeless == HOPELESS:
            raise RuntimeError(f"no finite gradient in {HOPELESS} steps in a row, up to step {step}: start again with "
                               "a lower learning_rate, or with precision fp32")
        if step >= self.config.iterations and step % self.config.epoch_length:
            self.terminate_epoch()  # the last epoch is a short one

    # ------------------------------------------------------------------ validation

    def _adopt(self, validator: HybridEvaluator) -> None:
        """Let a validator score the averaged network and report here."""
        validator.network = self.learner.averaged
        if validator.panels is None:
            validator.panels = self.folder.path / "panels"
        self.state.key_metric_name = validator.state.key_metric_name
        if self.best["step"]:
            for engine in (self, validator):
                engine.state.best_metric, engine.state.best_metric_epoch = self.best["score"], self._best_epoch()
        validator.add_event_handler(Events.STARTED, self._tell_step)
        validator.add_event_handler(Events.COMPLETED, self._judge)

    def _tell_step(self, validator: HybridEvaluator) -> None:
        validator.step = self.state.iteration

    def _validate(self) -> None:
        if self.validator is not None:
            self.validator.run(self.state.epoch)

    def _judge(self, validator: HybridEvaluator) -> None:
        """Keep the averaged weights if they are the best so far; nothing when the validator is run by itself."""
        if self._record is None:
            return
        scores = distributed.agreed(dict(validator.state.metrics))
        self.state.metrics.update(scores)
        self._record.add_validation(self.state.iteration, scores)
        self.best["since"] += 1
        if scores["score"] > self.best["score"]:
            self.folder.write_weights(self.learner.averaged, self.folder.best)
            self.best = {"score": scores["score"], "step": self.state.iteration, "since": 0}
        self.state.best_metric, self.state.best_metric_epoch = self.best["score"], self._best_epoch()

    def _best_epoch(self) -> int:
        return math.ceil(self.best["step"] / self.config.epoch_length) if self.best["step"] else -1

    def _is_patience_over(self) -> bool:
        return 0 < self.config.patience <= self.best["since"]

    # ------------------------------------------------------------------ checkpoints

    def _finish_epoch(self) -> None:
        self.save()
        if self._is_patience_over():
            self._display.console.print(f"no better score in {self.best['since']} validations: the best was at step "
                                        f"{self.best['step']}, training ends")
            self.terminate()

    def save(self) -> None:
        """Write `weights.pt`, then `last.pt`, which makes the checkpoint valid; each is replaced only once complete.

        Raises:
            CheckpointError: no space, or no permission; the files of the checkpoint before are kept.
        """
        self.folder.write_weights(self.learner.averaged, self.folder.weights)
        self.folder.write_last({**self.learner.state_dict(), "step": self.state.iteration, "best": self.best,
                                "processes": distributed.n_processes(), "config": json.dumps(self.config.to_json())})

    def _resume(self) -> int:
        """Take over everything from `last.pt`; the number of steps that are done."""
        stored = self.folder.read_last(self.config)
        step = 0 if stored is None else int(stored["step"])
        same_step_everywhere(step, self.folder.path)
        if stored is not None:
            self.folder.restore(self.learner, stored)
            self.best |= stored.get("best", {})
            logging.getLogger(__name__).info("resumed at step %d from %s", step, self.folder.last)
        return step
