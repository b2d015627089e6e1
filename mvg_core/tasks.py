"""What is to be done with an image. A task's kind alone decides codec, interpolation, loss weighting and metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal, get_args

TaskKind = Literal["segmentation", "denoising", "inpainting", "synthesis"]
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

MAX_LABEL = 255
"""Largest label number; label maps fit into uint8."""


@dataclass(frozen=True)
class Task:
    """One task: its kind and, for a segmentation, its labels.

    Attributes:
        kind: one of `TASK_KINDS`.
        labels: segmentation only, label number (1 to 255) -> name. 0 may be named too, it is always the background.
            Empty means: the labels that the prompts show.
        colours: segmentation only, label number -> (red, green, blue), 0 to 255, for display.
    """

    kind: TaskKind
    labels: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[int, tuple[int, int, int]] | None = None

    def __post_init__(self) -> None:
        if self.kind not in TASK_KINDS:
            raise ValueError(f"task kind {self.kind!r} is unknown: use one of {', '.join(TASK_KINDS)}")
        if not self.is_segmentation and (self.labels or self.colours):
            raise ValueError(f"task kind {self.kind!r} paints an image and has no labels: leave labels and colours out")
        _check_labels(self.labels)
        _check_colours(self.colours or {}, self.labels)
        # Copies: what the caller changes later stays outside.
        object.__setattr__(self, "labels", {int(label): name for label, name in self.labels.items()})
        if self.colours is not None:
            object.__setattr__(self, "colours", {int(label): tuple(colour) for label, colour in self.colours.items()})

    @classmethod
    def segmentation(
        cls, labels: Mapping[int, str] | None = None, colours: Mapping[int, tuple[int, int, int]] | None = None
    ) -> Task:
        """Paint the labels of the prompts onto the query."""
        return cls("segmentation", labels or {}, colours)

    @classmethod
    def denoising(cls) -> Task:
        """Remove noise."""
        return cls("denoising")

    @classmethod
    def inpainting(cls) -> Task:
        """Fill holes."""
        return cls("inpainting")

    @classmethod
    def synthesis(cls) -> Task:
        """Turn one modality or contrast into another."""
        return cls("synthesis")

    @property
    def is_segmentation(self) -> bool:
        """True: the answer is a label map; False: it is an image."""
        return self.kind == "segmentation"

    @property
    def interpolation(self) -> Literal["nearest", "linear"]:
        """How answers are resampled: label maps by nearest neighbour, images linearly."""
        return "nearest" if self.is_segmentation else "linear"

    @property
    def foreground(self) -> tuple[int, ...]:
        """The label numbers without background, ascending."""
        return tuple(sorted(label for label in self.labels if label != 0))


def _check_labels(labels: Mapping[int, str]) -> None:
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, Integral):
            raise ValueError(f"label {label!r} is not an integer: map numbers to names, e.g. {{1: 'liver'}}")
        if not 0 <= label <= MAX_LABEL:
            raise ValueError(
                f"label {label} is outside 0 to {MAX_LABEL}: a task has at most {MAX_LABEL} labels "
                "beside the background, renumber or split them"
            )


def _check_colours(colours: Mapping[int, tuple[int, int, int]], labels: Mapping[int, str]) -> None:
    for label, colour in colours.items():
        if label not in labels:
            raise ValueError(f"colour given for label {label}, which the task does not have: {sorted(labels)}")
        if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
            raise ValueError(f"colour of label {label} must be three integers from 0 to 255, got {colour}")
