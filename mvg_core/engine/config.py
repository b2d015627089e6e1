"""Which parts of the volume engine are used, and how hard it tries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

Prior = Literal["off", "draft", "fuse", "both"]
PresetName = Literal["plain", "fast", "balanced", "accurate"]


@dataclass(frozen=True)
class EngineConfig:
    """The parts of the engine; each can be switched off by itself.

    Attributes:
        focus: side of the field of view as a multiple of the structures' longest side; 0 shows whole slices.
        size: most pixels a side of the network's square; fewer are taken where the field of view has fewer voxels. A
            multiple of 16.
        memory: slices predicted just before that serve as prompts beside the labelled ones; 0 uses none.
        trust: how much they count beside a labelled slice, times their expected quality, 0 to 1.
        n_prompts: most labelled slices that serve one slice.
        prior: a registration's guess: `draft` shows it to the network as an example, `fuse` averages it with the
            network's answer, `both` does both, `off` goes without.
        prior_weight: share of the registration in that average, 0 to 1.
        reading: other subjects: share of the readout in the network's answer, 0 to 1, where the weights come with a
            reader; the rest is painted.
        judge: three or more other subjects: how well they are painted and read by each other decides on that share.
        own_reading: the same where labelled slices of the query itself are continued.
        locate: other subjects: an affine registration says where the structures are to be expected.
        retrieval: other subjects that no registration places: looks decide too which of their slices serve, not
            only the share of the way through the volume.
        passes: other subjects: how often the answer is painted; from the second time on, the field of view follows the
            answer before, and its neighbours serve as prompts.
        ensemble: other subjects: answers by different examples that are averaged; they share the references.
        planes: 1 slices one plane; 3 averages axial, coronal and sagittal where the voxels are nearly cubes.
        stop_after: slices without the structures after which propagation ends in that direction; 0 never ends it.
        tuning: steps of tuning a copy of the network on the examples; 0 does not.
        largest_component: keep the largest connected part of each label only.
        fill_holes: fill holes of each label.

    Raises:
        ValueError: a value out of its range.
    """

    focus: float = 1.3
    size: int = 192
    memory: int = 1
    trust: float = 1.0
    n_prompts: int = 3
    prior: Prior = "off"
    prior_weight: float = 0.5
    reading: float = 1.0
    own_reading: float = 0.5
    judge: bool = True
    locate: bool = True
    retrieval: bool = True
    passes: int = 1
    ensemble: int = 1
    planes: int = 1
    stop_after: int = 2
    tuning: int = 0
    largest_component: bool = False
    fill_holes: bool = False

    def __post_init__(self) -> None:
        for name, least in (("size", 16), ("memory", 0), ("n_prompts", 1), ("passes", 1), ("ensemble", 1),
                            ("stop_after", 0), ("tuning", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("trust", "prior_weight", "reading", "own_reading"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.size % 16:
            raise ValueError(f"size must be a multiple of 16, got {self.size}")
        if not (self.focus == 0 or (math.isfinite(self.focus) and self.focus >= 1)):
            raise ValueError(f"focus must be 0 or at least 1, got {self.focus}")
        if self.planes not in (1, 3):
            raise ValueError(f"planes must be 1 or 3, got {self.planes}")
        if self.prior not in get_args(Prior):
            raise ValueError(f"prior {self.prior!r} is unknown: use one of {', '.join(get_args(Prior))}")

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the network itself is used, and perhaps tuning and clean-up."""
        chosen = replace(self, tuning=0, n_prompts=_PLAIN.n_prompts, largest_component=False, fill_holes=False)
        return chosen == _PLAIN

    @classmethod
    def preset(cls, name: str, **changes: Any) -> EngineConfig:
        """A preset, with changes.

        Raises:
            ValueError: no such preset or part.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
        unknown = sorted(set(changes) - {one.name for one in fields(cls)})
        if unknown:
            known = ", ".join(one.name for one in fields(cls))
            raise ValueError(f"the engine has no part {unknown[0]!r}, only {known}")
        return replace(PRESETS[name], **changes)

    @classmethod
    def named_values(cls, name: str, texts: Sequence[str]) -> EngineConfig:
        """A preset, with changes written as `part=value`.

        Raises:
            ValueError: no such preset or part, or a value of another kind.
        """
        kinds = {one.name: type(one.default) for one in fields(cls)}
        changes: dict[str, Any] = {}
        for text in texts:
            part, _, value = text.partition("=")
            if part not in kinds:
                raise ValueError(f"the engine has no part {part!r}: use {', '.join(kinds)}, as in focus=2.2")
            changes[part] = _parsed(part, value, kinds[part])
        return cls.preset(name, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _parsed(part: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{part} is true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{part} needs a number such as {getattr(EngineConfig, part)}, got {text!r}") from None


_PLAIN = EngineConfig(focus=0, size=192, memory=0, locate=False, stop_after=0)

PRESETS: Mapping[str, EngineConfig] = MappingProxyType({
    "plain": _PLAIN,
    "fast": EngineConfig(size=128),
    "balanced": EngineConfig(prior="both", prior_weight=0.4, n_prompts=8, passes=2),
    "accurate": EngineConfig(prior="both", prior_weight=0.4, n_prompts=8, passes=2, tuning=100),
})
"""`plain` paints every slice on its own and whole, at the network's native size; the others are ordered by the time
that they take. What each part is worth: docs/explanation/volume-engine.md."""
