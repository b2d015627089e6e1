"""Which handlers of others a trainer takes, and what it does about those that would quarrel with it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from monai.handlers.checkpoint_loader import CheckpointLoader
from monai.handlers.lr_schedule_handler import LrScheduleHandler
from monai.handlers.validation_handler import ValidationHandler

from mvg_core.training.validation import HybridEvaluator


def accepted(handlers: Sequence[Any] | None, *, resumed: bool) -> list[Any]:
    """The handlers to attach.

    Args:
        handlers: those that the user gave.
        resumed: the run goes on from its own checkpoint, so that weights from elsewhere must not be loaded over it.

    Raises:
        ValueError: one is no handler, or sets the learning rate, which the configuration does.
    """
    kept = []
    for handler in handlers or ():
        if isinstance(handler, LrScheduleHandler):
            raise ValueError("LrScheduleHandler does not work here, because the configuration sets the learning rate "
                             "of every step: leave it out, and set learning_rate, warm_up and final_rate")
        if not hasattr(handler, "attach"):
            raise ValueError(f"train_handlers must be MONAI or ignite handlers, which can be attached; got {handler!r}")
        if resumed and isinstance(handler, CheckpointLoader):
            warnings.warn("CheckpointLoader is left out: the run goes on from its own last.pt", RuntimeWarning,
                          stacklevel=3)
            continue
        kept.append(handler)
    return kept


def validator_of(handlers: Sequence[Any]) -> HybridEvaluator | None:
    """The evaluator that a `ValidationHandler` among them runs."""
    for handler in handlers:
        if isinstance(handler, ValidationHandler) and isinstance(handler.validator, HybridEvaluator):
            return handler.validator
    return None
