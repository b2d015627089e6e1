"""Solved examples, and which of them serves which slice of the query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.tasks import Task

_ROUNDING = 1e-4
"""Interpolated images may leave [0, 1] by this much."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One solved example: an image and its label.

    Attributes:
        image: float32 (H, W) in [0, 1].
        label: (H, W); integers for a segmentation, float32 in [0, 1] where the answer is an image.
        subject: whom the image shows, so that nobody is on both sides of a split.
        position_mm: where the slice lies along its normal, in the scale that the caller also uses for the query (mm,
            or 0 to 1 between subjects); None where positions mean nothing, as in 2D images.
        hole: bool (H, W), True where the image is missing; inpainting only.
    """

    image: npt.NDArray[np.floating]
    label: npt.NDArray[Any]
    subject: str = ""
    position_mm: float | None = None
    hole: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        image, label = np.asarray(self.image, dtype=np.float32), np.asarray(self.label)
        if image.ndim != 2 or image.size == 0:
            raise ValueError(f"{self._name} image must be one slice (H, W), got shape {image.shape}")
        if label.shape != image.shape:
            raise ValueError(
                f"{self._name} has an image of shape {image.shape} and a label of shape {label.shape}: "
                "bring them onto one grid"
            )
        _check_unit_range(image, f"{self._name} image")
        if label.dtype == bool:
            label = label.astype(np.uint8)
        if not np.issubdtype(label.dtype, np.integer):
            label = label.astype(np.float32)
            _check_unit_range(label, f"{self._name} label")
        if self.position_mm is not None and not math.isfinite(self.position_mm):
            raise ValueError(f"{self._name} has position {self.position_mm}: use a number, or None if it has none")
        if self.hole is not None and (self.hole.shape != image.shape or self.hole.dtype != bool):
            raise ValueError(
                f"{self._name} hole must be bool of shape {image.shape}, got {self.hole.dtype} of shape "
                f"{self.hole.shape}"
            )
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "label", label)

    @property
    def _name(self) -> str:
        return f"prompt {self.subject!r}"

    @property
    def is_segmented(self) -> bool:
        """True: the label is a label map; False: it is an image."""
        return np.issubdtype(self.label.dtype, np.integer)


@dataclass(frozen=True)
class Support:
    """The prompts given together, all of one task and one size.

    Attributes:
        prompts: at least one.
        task: what the prompts show.
    """

    prompts: tuple[Prompt, ...]
    task: Task

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise ValueError("the support is empty: give at least one prompt")
        sizes = sorted({prompt.image.shape for prompt in self.prompts})
        if len(sizes) > 1:
            raise ValueError(f"prompts must have one size, got {sizes}: extract them with one network size")
        for prompt in self.prompts:
            if prompt.is_segmented != self.task.is_segmentation:
                needed = "an integer label map" if self.task.is_segmentation else "an image in [0, 1] (floating point)"
                raise ValueError(
                    f"task {self.task.kind!r} needs {needed} as prompt label, but prompt "
                    f"{prompt.subject!r} has {prompt.label.dtype}"
                )


def choose(support: Support, position: float | None, n: int) -> tuple[int, ...]:
    """Which prompts serve a query slice: the nearest in position, see `nearest`.

    Args:
        support: the prompts to choose from.
        position: of the query slice, on the scale of `Prompt.position_mm`; None if unknown.
        n: how many prompts to choose; all, if the support has fewer.

    Returns:
        Indices into `support.prompts`, the nearest first.

    Raises:
        ValueError: `n` is below 1 or the position is not finite.
    """
    return nearest([prompt.position_mm for prompt in support.prompts], position, n)


def nearest(positions: Sequence[float | None], position: float | None, n: int) -> tuple[int, ...]:
    """Which of several positions are nearest to that of a query slice.

    Positions are compared as they are: the caller gives prompts and query on one scale. Those that are None come last;
    ties, and queries without a position, go by order.

    Args:
        positions: of the prompts; None where unknown.
        position: of the query slice; None if unknown.
        n: how many to choose; all, if there are fewer.

    Returns:
        Indices into `positions`, the nearest first.

    Raises:
        ValueError: `n` is below 1 or the position is not finite.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: a query cannot be painted without a prompt")
    if position is not None and not math.isfinite(position):
        raise ValueError(f"the query's position is {position}: use a number, or None if it has none")

    def distance(index: int) -> float:
        at = positions[index]
        return math.inf if at is None or position is None else abs(at - position)

    return tuple(sorted(range(len(positions)), key=distance)[:n])  # sorted is stable: ties keep their order


def _check_unit_range(image: npt.NDArray[np.float32], name: str) -> None:
    low, high = float(image.min()), float(image.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also refuses NaN
        raise ValueError(f"{name} must lie in [0, 1], got {low:g} to {high:g}: scale it (IntensityScaling.apply)")
