"""Intensities to [0, 1] and back, with the two numbers that did it kept for later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

ScalingKind = Literal["window", "percentile"]
Modality = Literal["auto", "ct", "other"]

# Air is -1000 HU and no other modality stores numbers this far below zero.
CT_AIR_BELOW_HU = -500.0
CT_WINDOW_HU = (-200.0, 300.0)

# Percentiles of this many voxels differ from those of the whole volume by less than a grey level of 255.
_PERCENTILE_SAMPLE = 2**22


@dataclass(frozen=True)
class IntensityScaling:
    """A linear map of [low, high] onto [0, 1].

    Attributes:
        low: intensity that becomes 0, in the units of the image.
        high: intensity that becomes 1; greater than `low`.
        kind: where the two numbers come from; 'window' is the same for every image (CT), 'percentile' is this image's.

    Raises:
        ValueError: the limits are not finite, or `low` is not below `high`, or the kind is unknown.
    """

    low: float
    high: float
    kind: ScalingKind

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if not np.isfinite(self.high - self.low) or self.low >= self.high:
            raise ValueError(f"intensity limits must be finite with low < high, got low {self.low}, high {self.high}")
        if self.kind not in get_args(ScalingKind):
            raise ValueError(f"unknown scaling kind {self.kind!r}: use one of {', '.join(get_args(ScalingKind))}")

    @classmethod
    def from_window(cls, low: float, high: float) -> IntensityScaling:
        """Fixed limits in the units of the image (HU for CT)."""
        return cls(low, high, "window")

    @classmethod
    def mean(cls, scalings: Sequence[IntensityScaling]) -> IntensityScaling:
        """The middle of several, for an image whose own is not known; all of one kind."""
        return cls(float(np.mean([each.low for each in scalings])), float(np.mean([each.high for each in scalings])),
                   scalings[0].kind)

    @classmethod
    def from_percentiles(cls, array: np.ndarray, low: float = 0.5, high: float = 99.5) -> IntensityScaling:
        """Limits at two percentiles of this image; from a regular subset of the voxels where it is huge.

        When both percentiles are equal (nearly all voxels have one value), the smallest and largest value serve.

        Args:
            array: (...) real numbers, any shape.
            low: lower percentile, 0 to 100.
            high: upper percentile, above `low`.

        Raises:
            ValueError: the image is empty, constant, or holds NaN/Inf; or not 0 <= low < high <= 100.
        """
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must be 0 <= low < high <= 100, got {low} and {high}")
        array = np.asarray(array)
        if array.size == 0:
            raise ValueError("the image has no voxels: check how it was cropped or read")
        check_finite(array, "image")
        lower, upper = np.percentile(_subset(array).astype(np.float64), (low, high))
        if lower >= upper:
            lower, upper = array.min(), array.max()
        if lower >= upper:
            raise ValueError(
                f"the image is constant (every voxel is {lower}): nothing can be seen in it;"
                " check the file, or pass an intensity window"
            )
        return cls(float(lower), float(upper), "percentile")

    @classmethod
    def for_volume(
        cls, array: np.ndarray, modality: Modality = "auto", window: tuple[float, float] | None = None
    ) -> IntensityScaling:
        """The scaling an image gets when nobody chose one: the CT window for CT, percentiles otherwise.

        Args:
            array: (I, J, K) in the units of the file.
            modality: 'auto' looks for air in HU; 'ct' and 'other' decide.
            window: limits in the units of the image; overrules `modality`.

        Raises:
            ValueError: the image holds NaN/Inf, is constant (percentiles only), or the modality is unknown.
        """
        if modality not in get_args(Modality):
            raise ValueError(f"unknown modality {modality!r}: use one of {', '.join(get_args(Modality))}")
        check_finite(array, "image")
        if window is not None:
            return cls.from_window(*window)
        if modality == "ct" or (modality == "auto" and looks_like_ct(array)):
            return cls.from_window(*CT_WINDOW_HU)
        return cls.from_percentiles(array)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """(...) any numbers -> (...) float32 in [0, 1]; beyond the limits is clipped, NaN stays NaN."""
        array = np.asarray(array)
        # 64-bit numbers may need more digits than float32 has before the limits are taken off.
        wide = np.float64 if array.dtype.itemsize > 4 or array.dtype in (np.int32, np.uint32) else np.float32
        scaled = array.astype(wide)
        scaled -= wide(self.low)
        scaled /= wide(self.high - self.low)
        return np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32, copy=False)

    def invert(self, array: np.ndarray) -> np.ndarray:
        """(...) in [0, 1] -> (...) float32 in the units of the image; what `apply` clipped stays clipped."""
        return (np.asarray(array, dtype=np.float64) * (self.high - self.low) + self.low).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and strings for a report or a checkpoint."""
        return {"low": self.low, "high": self.high, "kind": self.kind}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> IntensityScaling:
        """The inverse of `to_json`.

        Raises:
            ValueError: a key is missing or unknown.
        """
        if set(values) != {"low", "high", "kind"}:
            raise ValueError(f"an intensity scaling needs the keys low, high, kind; got {', '.join(sorted(values))}")
        return cls(values["low"], values["high"], values["kind"])


def looks_like_ct(array: np.ndarray) -> bool:
    """Whether the image reaches -500 or below, which only air in Hounsfield units does."""
    array = np.asarray(array)
    return bool(array.size and array.min() <= CT_AIR_BELOW_HU)


def check_finite(array: np.ndarray, name: str) -> None:
    """Refuse an array (...) that holds NaN or infinite numbers.

    Args:
        array: any shape and type.
        name: what the array is, for the message.

    Raises:
        ValueError: says how many voxels are not finite, and what to do.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fc":
        return
    n_bad = sum(slab.size - int(np.count_nonzero(np.isfinite(slab))) for (slab,) in slabs(array))
    if n_bad:
        raise ValueError(
            f"'{name}' holds {n_bad} NaN/Inf voxels: replace them before use, for example with"
            " numpy.nan_to_num or by the value of air"
        )


def slabs(array: np.ndarray, *others: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays of one shape piece by piece and in step, so that work on huge ones needs no second copy.

    Args:
        array: (...) decides along which axis is cut.
        others: arrays of the same shape; they may be written to.

    Yields:
        Views, one of each array.
    """
    if array.ndim < 2 or array.size <= _PERCENTILE_SAMPLE:
        yield (array, *others)
        return
    axis = int(np.argmax(array.strides))  # pieces along the slowest axis are contiguous
    yield from zip(*(np.moveaxis(each, axis, 0) for each in (array, *others)), strict=True)


def _subset(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel along every axis, so that at most about `_PERCENTILE_SAMPLE` remain; always the same ones."""
    step = 1
    picked = array
    while picked.size > _PERCENTILE_SAMPLE:
        step += 1
        picked = array[(slice(None, None, step),) * array.ndim]
    return picked
