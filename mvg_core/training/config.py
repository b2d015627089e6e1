"""Everything that one stage of training is told, checked once and stored beside its weights."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mvg_core.training.episodes import EpisodeConfig
from mvg_core.training.objective import HybridConfig

Precision = Literal["bf16", "fp16", "fp32"]
Parallel = Literal["ddp", "fsdp"]

MAY_CHANGE = frozenset({
    "iterations", "final_rate", "warm_up", "accumulate", "epoch_length", "report_every", "validation_episodes",
    "patience", "precision", "activation_checkpointing", "compile", "parallel"})
"""Fields that may differ when a run is resumed: they change its length, cost or reports, not what is learned.

The draws of a step, `accumulate` x number of processes, must stay the same."""


@dataclass(frozen=True)
class TrainingConfig:
    """One stage of training.

    Attributes:
        episodes: what is drawn.
        objective: how it is hidden and weighted.
        batch: episodes of one draw, which go through the network together.
        accumulate: draws of one step. A step sees `batch` x `accumulate` x number of processes episodes, and costs what
            one batch of all of them would cost.
        iterations: steps of this stage.
        epoch_length: steps between checkpoints; each is followed by a validation.
        learning_rate: at the top of the schedule.
        final_rate: learning rate at the end of the cosine, relative to the top; 1 keeps it constant.
        warm_up: steps of linear warm-up.
        layer_decay: learning rate of a layer of a vision transformer, relative to the one after it; 1 treats all alike.
        weight_decay: of matrices and kernels; norms, biases, tokens and position embeddings get none.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are the ones that ship.
        seed: of episodes, hidden patches and stochastic depth.
        precision: of the forward pass: `bf16` or `fp16` autocast, or `fp32`. Weights are always float32.
        activation_checkpointing: recompute the blocks of a vision transformer backwards: slower, far less memory.
        compile: run the network through `torch.compile`.
        parallel: with several processes, each holds the whole network (`ddp`) or a part of it (`fsdp`).
        report_every: steps between lines of the record.
        validation_episodes: episodes of one validation.
        patience: validations without a better score after which training ends; 0 never ends it.

    Raises:
        ValueError: a value is out of range.
    """

    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    objective: HybridConfig = field(default_factory=HybridConfig)
    batch: int = 16
    accumulate: int = 1
    iterations: int = 5000
    epoch_length: int = 250
    learning_rate: float = 1e-3
    final_rate: float = 0.02
    warm_up: int = 200
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    precision: Precision = "bf16"
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: Parallel = "ddp"
    report_every: int = 50
    validation_episodes: int = 64
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "iterations", "epoch_length", "report_every", "validation_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warm_up", "patience", "seed", "weight_decay", "final_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "layer_decay"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        for name, known in (("precision", typing.get_args(Precision)), ("parallel", typing.get_args(Parallel))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.precision == "fp16" and self.parallel == "fsdp":
            raise ValueError("precision fp16 does not work with parallel fsdp: use bf16, which needs no loss scaling")

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary that `from_json` turns back into an equal configuration."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TrainingConfig:
        """Rebuild a configuration, also one that was stored before fields were renamed.

        Raises:
            ValueError: a field is unknown or a value is out of range.
        """
        fields = dict(fields)
        if "mixed_precision" in fields:
            fields["precision"] = "bf16" if fields.pop("mixed_precision") else "fp32"
        if "checkpoint_every" in fields:
            fields["epoch_length"] = fields.pop("checkpoint_every")
        return _rebuilt(cls, fields, "training configuration")

    def differences(self, other: TrainingConfig) -> list[str]:
        """What another configuration says otherwise, of the fields that may not change when a run is resumed."""
        ours, theirs = _flat(self.to_json()), _flat(other.to_json())
        names = [name for name in ours | theirs if name.partition(".")[0] not in MAY_CHANGE]
        return [f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names
                if ours.get(name) != theirs.get(name)]


def _rebuilt(kind: type, fields: Mapping[str, Any], title: str) -> Any:
    """A dataclass from JSON: nested dataclasses rebuilt, lists back to tuples where the field is one."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(fields) - set(hints))
    if unknown:
        raise ValueError(f"{title} has unknown fields {unknown}; known: {sorted(hints)}")
    values = {}
    for name, value in fields.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = _rebuilt(typing.cast(type, hints[name]), value, f"{title}, {name},")
        elif typing.get_origin(hints[name]) is tuple and isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return kind(**values)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
