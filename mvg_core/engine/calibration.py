"""From how far a label leads to the probability that it is right; from a slice's looks to the Dice to expect of it.

Logistic curves over a few features, fitted to validation subjects by `benchmarks/calibration.py`, which writes
`calibration.json` beside this file. Other weights than those that were measured get the same curves, and the report
says so: see docs/explanation/uncertainty.md.

Sources: logistic calibration, Platt 1999, Probabilistic outputs for support vector machines; what calibration means for
networks, Guo et al. 2017, arXiv 1706.04599.

Shape letters: N slices; h w the two in-plane axes of a slice; F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mvg_core.engine.answer import VolumeAnswer
from mvg_core.engine.consensus import FEWEST

CONSTANTS = Path(__file__).with_name("calibration.json")
MOST_EVIDENCE = 10.0
"""A lead is worth at most this much: single precision tells no larger ones apart."""
_MOST_LEAD = float(np.tanh(MOST_EVIDENCE / 2))
_LEAST, _MOST = 0.01, 0.99
"""Dice values are kept off 0 and 1, whose log odds are infinite."""
_NEAREST, _FARTHEST = 0.02, 5.0
_STEPS = 60
"""Newton's method takes under ten."""
Kind = Literal["found", "background", "slice", "empty"]
KINDS: Mapping[Kind, tuple[str, ...]] = {
    "found": ("evidence", "slice"), "background": ("evidence", "slice", "remoteness"),
    "slice": ("soft_dice", "overlap", "distance", "end", "match"), "empty": ("soft_dice", "distance", "match")}
"""What each curve looks at; all but the last two kinds are about voxels."""


@dataclass(frozen=True)
class SliceFacts:
    """What can be told of the answer to one slice without the truth.

    Attributes:
        soft_dice: see `SliceQuality.expected`.
        area: voxels found.
        overlap: Dice of its labels with those of the slice before on the way from the nearest labelled slice; without
            labelled slices the mean of both neighbours.
        distance: slices to the nearest labelled one, as a share of the slices in which something was found; 0 without
            labelled slices.
        end: 0 in the middle of what was found, 1 at its ends, more beyond.
        match: see `VolumeAnswer.match`; one half where nothing was registered.
    """

    soft_dice: float
    area: int
    overlap: float
    distance: float
    end: float
    match: float = 0.5

    def features(self) -> npt.NDArray[np.float64]:
        """What its curve looks at, in the order of `KINDS`; more is better."""
        odds, match, far = log_odds(self.soft_dice), log_odds(self.match), np.log1p(10 * self.distance)
        if not self.area:
            return np.array([odds, -far, match])
        return np.array([odds, log_odds(self.overlap), -far, -min(self.end, 2.0), match])

    @property
    def kind(self) -> Kind:
        """Of the curve."""
        return "slice" if self.area else "empty"


def facts_of(answer: VolumeAnswer, axis: int, solved: Sequence[int]) -> dict[int, SliceFacts]:
    """Facts of every predicted slice, by number.

    Args:
        answer: not calibrated.
        axis: along which slices are taken.
        solved: slices that were labelled by hand.
    """
    labels = np.ascontiguousarray(np.moveaxis(answer.label, axis, 0))  # slices are read several times
    marked = np.flatnonzero(labels.any(axis=(1, 2)))
    first, last = (int(marked[0]), int(marked[-1])) if marked.size else (0, len(labels) - 1)
    facts = {}
    for number, quality in sorted(answer.quality.items()):
        nearest = min(solved, key=lambda at: abs(at - number), default=number)
        steps = [-1, 1] if nearest == number else [int(np.sign(nearest - number))]
        beside = [labels[number + step] for step in steps if 0 <= number + step < len(labels)]
        facts[number] = SliceFacts(
            quality.expected, quality.area, float(np.mean([_dice(labels[number], other) for other in beside] or [0])),
            abs(number - nearest) / (last - first + 1),
            abs(number - (first + last) / 2) / max(1.0, (last - first) / 2), answer.match)
    return facts


def evidence_of(lead: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The lead of a label as log odds: exactly that of the better label where there are two."""
    lead = np.clip(lead, 0, _MOST_LEAD).astype(np.float32, copy=False)
    return np.log((1 + lead) / (1 - lead))


def remoteness_of(found: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """How far voxels of a slice (h, w) are from what was found in it: steps, as a multiple of the found area's side.

    Returns:
        float32 (h, w), from `_NEAREST` to `_FARTHEST`; the farthest everywhere if nothing was found.
    """
    if not found.any():
        return np.full(found.shape, _FARTHEST, np.float32)
    steps = np.where(found, np.float32(0), np.float32(sum(found.shape)))
    for axis in (0, 1):  # distances along rows and columns add up, so one axis after the other is exact
        along = np.arange(found.shape[axis], dtype=np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        ahead = np.minimum.accumulate(steps - along, axis=axis) + along
        behind = np.flip(np.minimum.accumulate(np.flip(steps + along, axis), axis=axis), axis) - along
        steps = np.minimum(ahead, behind)
    return np.clip(steps / np.sqrt(np.count_nonzero(found)), _NEAREST, _FARTHEST).astype(np.float32)


def log_odds(share: Any) -> Any:
    """Of shares (...), kept off 0 and 1."""
    share = np.clip(share, _LEAST, _MOST)
    return np.log(share / (1 - share))


@dataclass(frozen=True)
class Curve:
    """A logistic curve.

    Attributes:
        weights: of the features.
        offset: added.
    """

    weights: tuple[float, ...]
    offset: float

    def __call__(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Probabilities (...) of features (..., F)."""
        return _logistic(self.odds(*np.moveaxis(features, -1, 0)))

    def odds(self, *features: Any) -> Any:
        """Log odds, of features one by one."""
        return sum((weight * feature for weight, feature in zip(self.weights, features, strict=True)), self.offset)

    @classmethod
    def fitted(cls, features: npt.NDArray[np.floating], share: npt.NDArray[np.floating],
               weight: npt.NDArray[np.floating], ridge: float = 0.3) -> Curve:
        """The most likely curve whose weights are all 0 or more: more of a feature never makes a label less likely.

        Args:
            features: (M, F).
            share: (M,) what was right, 0 to 1.
            weight: (M,) how much each counts, for example in voxels or slices.
            ridge: pulls the weights to 0, as much as so many observations; the offset is free.
        """
        free = list(range(features.shape[1]))
        while True:
            design = np.column_stack([features[:, free], np.ones(len(features))])
            found = _newton(design, share, weight, ridge)
            wrong = [row for row, value in zip(free, found, strict=False) if value < 0]
            if not wrong:
                break
            free = [row for row in free if row not in wrong]
        weights = np.zeros(features.shape[1])
        weights[free] = found[:-1]
        return cls(tuple(round(float(value), 4) for value in weights), round(float(found[-1]), 4))


@dataclass(frozen=True)
class Calibration:
    """Curves for every way in which an answer can come about.

    Attributes:
        curves: way (whose labels: "own", of "few others", who cannot be compared with each other, or of "many others";
            "fused" with a registration's answer, or the "network" alone) -> kind -> curve.
        beyond: probability that a voxel that was never painted is background.
        weights_sha256: of the network that was measured.
    """

    curves: Mapping[str, Mapping[Kind, Curve]]
    beyond: float
    weights_sha256: str

    @staticmethod
    def way(n_others: int, *, is_fused: bool) -> str:
        """The key of `curves` for so many references of other subjects."""
        whose = "own" if not n_others else "few others" if n_others < FEWEST else "many others"
        return f"{whose}, {'fused' if is_fused else 'network'}"

    def apply(self, answer: VolumeAnswer, axis: int, solved: Sequence[int], way: str) -> None:
        """Turn confidence into probabilities, and tell the Dice to expect of every slice; labels stay as they are.

        Args:
            answer: not calibrated yet; changed in place, because a volume is large.
            axis: along which slices are taken.
            solved: slices that were labelled by hand, which are right by definition.
            way: see `curves`.
        """
        labels = np.ascontiguousarray(np.moveaxis(answer.label, axis, 0))
        confidence = np.moveaxis(answer.confidence, axis, 0)
        facts, nearest = facts_of(answer, axis, solved), nearest_found(labels)
        for number in sorted(set(range(len(labels))) - set(solved)):
            sure = np.full(labels.shape[1:], self.beyond, np.float32)
            if number in facts:
                dice = self.dice(facts[number], way)
                answer.quality[number] = replace(answer.quality[number], dice=dice)
                lead, label = np.ascontiguousarray(confidence[number]), labels[number]
                found = labels[nearest[number]] > 0
                box = painted_box(lead, label, found)
                sure[box] = self.probabilities(lead[box], label[box], remoteness_of(found[box]), dice, way)
            confidence[number] = sure
        confidence[list(solved)] = 1

    def dice(self, facts: SliceFacts, way: str) -> float:
        """Of a slice, to be expected."""
        return float(self.curves[way][facts.kind](facts.features()))

    def probabilities(self, lead: npt.NDArray[np.floating], label: npt.NDArray[np.integer],
                      remoteness: npt.NDArray[np.floating], dice: float, way: str) -> npt.NDArray[np.float32]:
        """That the label of each voxel (...) of a slice is right, if `dice` is expected of it."""
        evidence, quality = evidence_of(lead), float(log_odds(dice))
        found = self.curves[way]["found"].odds(evidence, quality)
        background = self.curves[way]["background"].odds(evidence, quality, np.log2(remoteness))
        return _logistic(np.where(label > 0, found, background))

    def described(self, weights_sha256: str) -> dict[str, Any]:
        """For a report: which network was measured, and whether it is the one that answers."""
        return {"weights_sha256": self.weights_sha256, "is_of_these_weights": self.weights_sha256 == weights_sha256}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_json`."""
        curves = {way: {kind: Curve(tuple(one["weights"]), one["offset"]) for kind, one in kinds.items()}
                  for way, kinds in values["curves"].items()}
        return cls(curves, values["beyond"], values["weights_sha256"])  # type: ignore[arg-type]

    @classmethod
    def shipped(cls) -> Calibration:
        """The constants in `calibration.json`."""
        return _shipped()


def nearest_found(labels: npt.NDArray[np.integer]) -> list[int]:
    """For each slice of (N, h, w) the nearest one in which something was found; itself if nothing was anywhere.

    It says where a structure would be that was missed.
    """
    marked = np.flatnonzero(labels.any(axis=(1, 2)))
    return [int(marked[np.argmin(np.abs(marked - number))]) if marked.size else number for number in range(len(labels))]


def painted_box(lead: npt.NDArray[np.floating], label: npt.NDArray[np.integer], found: npt.NDArray[np.bool_]
                ) -> tuple[slice, slice]:
    """The smallest box around what was painted of a slice (h, w), which is less than certain, and what was found."""
    marked = (lead < 1) | (label > 0) | found
    sides = [np.flatnonzero(marked.any(axis=other)) for other in (1, 0)]
    if not sides[0].size:
        return slice(0), slice(0)
    return slice(int(sides[0][0]), int(sides[0][-1]) + 1), slice(int(sides[1][0]), int(sides[1][-1]) + 1)


@lru_cache(maxsize=1)
def _shipped() -> Calibration:
    return Calibration.from_json(json.loads(CONSTANTS.read_text(encoding="utf-8")))


def _newton(design: npt.NDArray[np.floating], share: npt.NDArray[np.floating], weight: npt.NDArray[np.floating],
            ridge: float) -> npt.NDArray[np.float64]:
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 1e-6
    found = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        expected = _logistic(design @ found)
        gradient = design.T @ (weight * (expected - share)) + penalty * found
        curvature = (design * (weight * expected * (1 - expected))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        found -= step * min(1.0, 3 / max(1e-9, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-7:
            break
    return found


def _logistic(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def _dice(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> float:
    size = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero((one == other) & (one > 0)) / size if size else 0.0
