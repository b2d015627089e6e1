"""Between label maps or images and the colours that the network paints.

A segmentation is painted: every label gets a colour, background is black, and a painted pixel is decoded to the label
with the nearest colour. The farther apart the colours are, the larger the painting error that does no harm.

Sources:
    Grey and random colours: Ren et al. 2024, Medical Vision Generalist, arXiv 2406.05565, "unified output space".
    The wide palette: the corners and face centres of a cube are the farthest apart that 14 points in it can be
    (Joos 2009, On the packing of fourteen congruent spheres in a cube, Geometriae Dedicata 140).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mvg_core.tasks import MAX_LABEL

PaletteKind = Literal["wide", "grey", "random", "binary"]
PALETTE_KINDS: tuple[PaletteKind, ...] = get_args(PaletteKind)

CAPACITY: dict[PaletteKind, int] = {"wide": 26, "grey": 25, "random": 26, "binary": 1}
"""Most labels that a palette of each kind can tell apart, background not counted."""

MAX_LABELS_PER_PASS = 16
"""Most labels painted at once by default; more are painted in groups, see `label_groups`."""

_BLACK, _WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_DRAWS_BEFORE_RESTART = 1000


def palette(kind: PaletteKind, n_labels: int, rng: np.random.Generator | None = None) -> npt.NDArray[np.float32]:
    """The colours of background and `n_labels` labels.

    - `wide`: points of the lattice {0, 0.5, 1}^3 far from each other, white first; 7 labels keep a distance of 1,
      13 of 0.71, 26 of 0.5.
    - `grey`: class k is the grey 10 k / 255, as in the paper.
    - `random`: drawn evenly from the cube, at least half as far apart as the wide palette of the same size.
    - `binary`: one white label.

    Args:
        kind: one of `PALETTE_KINDS`.
        n_labels: number of labels besides the background, from 1 to `CAPACITY[kind]`.
        rng: source of randomness, needed by `random` only.

    Returns:
        float32 (n_labels + 1, 3), RGB in [0, 1]; row 0 is the background, black.

    Raises:
        ValueError: the kind is unknown, it cannot hold so many labels, or `random` came without `rng`.
    """
    if kind not in PALETTE_KINDS:
        raise ValueError(f"palette {kind!r} is unknown: use one of {', '.join(PALETTE_KINDS)}")
    if not 1 <= n_labels <= CAPACITY[kind]:
        raise ValueError(
            f"palette {kind!r} holds 1 to {CAPACITY[kind]} labels, {n_labels} were asked for: "
            "paint more labels in groups (label_groups)"
        )
    if kind == "random":
        if rng is None:
            raise ValueError("palette 'random' needs a random generator: pass rng=numpy.random.default_rng(seed)")
        return _random_colours(n_labels, rng)
    if kind == "grey":
        return np.repeat(np.arange(n_labels + 1, dtype=np.float32)[:, None] * np.float32(10 / 255), 3, axis=1)
    return _WIDE[: n_labels + 1].copy()  # binary is the wide palette of one label


def _wide_colours() -> npt.NDArray[np.float32]:
    """The 27 points of {0, 0.5, 1}^3: black, white, the other corners, face centres, then the rest.

    Corners are 1 apart, corners and face centres 0.71, all points 0.5. (Greedy farthest-point order would take
    (1, 0.5, 0) before the corners and end with less.)
    """
    rest_after = {0: 0, 2: 1}  # number of halves in a colour -> its turn: corners have 0, face centres 2
    colours = itertools.product((0.0, 0.5, 1.0), repeat=3)
    order = sorted(colours, key=lambda c: (c != _BLACK, c != _WHITE, rest_after.get(c.count(0.5), 2), [-x for x in c]))
    return np.array(order, dtype=np.float32)


_WIDE = _wide_colours()


def _random_colours(n_labels: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Black and `n_labels` evenly drawn colours; those too near to an earlier one are drawn again."""
    min_distance = _smallest_distance(_WIDE[: n_labels + 1]) / 2
    while True:  # a start that leaves no room for the last colours is rare, and begun anew
        colours = np.zeros((1, 3), dtype=np.float32)
        for candidate in rng.random((_DRAWS_BEFORE_RESTART, 3), dtype=np.float32):
            if np.linalg.norm(colours - candidate, axis=1).min() >= min_distance:
                colours = np.vstack([colours, candidate])
            if len(colours) == n_labels + 1:
                return colours


def _smallest_distance(colours: npt.NDArray[np.float32]) -> float:
    """Smallest distance between two rows of (C, 3)."""
    first, second = np.triu_indices(len(colours), k=1)
    return float(np.linalg.norm(colours[first] - colours[second], axis=1).min())


@dataclass(frozen=True, eq=False)
class LabelCodec:
    """Paints label maps and reads painted ones.

    Attributes:
        labels: the label numbers, each from 1 to 255, without repetition; 0 is the background and not listed.
        colours: float32 (L + 1, 3), RGB in [0, 1]: of the background, then of `labels` in their order. Kept read-only.
    """

    labels: tuple[int, ...]
    colours: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        labels = _checked_labels(self.labels)
        colours = np.array(self.colours, dtype=np.float32)
        if not labels:
            raise ValueError("a label codec needs at least one label besides the background")
        if colours.shape != (len(labels) + 1, 3):
            raise ValueError(
                f"{len(labels)} labels and the background need colours of shape {(len(labels) + 1, 3)}, "
                f"got {colours.shape}"
            )
        if not (np.all(colours >= 0) and np.all(colours <= 1)):
            raise ValueError("colours must lie in [0, 1]: divide 8-bit colours by 255")
        if _smallest_distance(colours) == 0:
            raise ValueError("two labels have the same colour: every label and the background need their own")
        colours.setflags(write=False)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "colours", colours)

    @classmethod
    def for_labels(
        cls, labels: Iterable[int], kind: PaletteKind = "wide", rng: np.random.Generator | None = None
    ) -> LabelCodec:
        """A codec that gives `labels` the colours of a palette, in their order.

        Raises:
            ValueError: see `palette` and `LabelCodec`.
        """
        numbers = _checked_labels(labels)
        return cls(numbers, palette(kind, len(numbers), rng))

    @property
    def margin(self) -> float:
        """Painting errors (Euclidean, RGB) below this decode to the right label: half the smallest colour distance."""
        return _smallest_distance(self.colours) / 2

    def encode(self, label_map: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Paint a label map.

        Args:
            label_map: integers of any shape (...), holding 0 and `labels` only.

        Returns:
            float32 (..., 3) in [0, 1].

        Raises:
            TypeError: the label map is not of an integer type.
            ValueError: it holds a label that the codec does not know.
        """
        label_map = np.asarray(label_map)
        if not np.issubdtype(label_map.dtype, np.integer):
            raise TypeError(f"a label map holds integers, got {label_map.dtype}: convert it with astype(numpy.uint8)")
        label_map = label_map.astype(np.int64)  # int8 could not be compared with 255
        row_of_label = np.full(MAX_LABEL + 1, -1, dtype=np.int16)
        row_of_label[[0, *self.labels]] = np.arange(len(self.labels) + 1)
        rows = np.where((label_map >= 0) & (label_map <= MAX_LABEL), row_of_label[np.clip(label_map, 0, MAX_LABEL)], -1)
        if np.any(rows < 0):
            unknown = np.unique(label_map[rows < 0]).tolist()
            raise ValueError(
                f"the label map holds labels {unknown} that have no colour (known: {list(self.labels)}): "
                "name them in the task, or set them to 0"
            )
        return self.colours[rows]

    def decode(self, painted: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Read a painted label map: every pixel gets the label with the nearest colour.

        Args:
            painted: RGB (..., 3), nominally in [0, 1].

        Returns:
            The labels, uint8 (...), and the confidence, float32 (...) in [0, 1]: (d2 - d1) / (d2 + d1) of the distances
            d1 to the nearest and d2 to the second nearest colour; 1 at a label's colour, 0 halfway between two.

        Raises:
            ValueError: the last axis is not 3 long, or a value is NaN or infinite.
        """
        painted = _checked_painting(painted)
        nearest = np.full(painted.shape[:-1], np.inf, dtype=np.float32)
        second = nearest
        rows = np.zeros(painted.shape[:-1], dtype=np.uint8)
        for row, squared in enumerate(self._squared_distances(painted)):
            distance = np.sqrt(squared)
            rows[distance < nearest] = row
            second = np.minimum(second, np.maximum(distance, nearest))
            nearest = np.minimum(distance, nearest)
        label_of_row = np.array([0, *self.labels], dtype=np.uint8)
        return label_of_row[rows], (second - nearest) / (second + nearest)

    def probabilities(self, painted: npt.NDArray[np.floating], temperature: float = 0.1) -> npt.NDArray[np.float32]:
        """Soft reading of a painted label map: softmax of -d^2 / temperature over the colours.

        Args:
            painted: RGB (..., 3), nominally in [0, 1].
            temperature: in squared colour distance, above 0; smaller is closer to `decode`.

        Returns:
            float32 (..., L + 1) that sums to 1, background first.

        Raises:
            ValueError: the temperature is not positive, or as in `decode`.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        squared = np.stack(list(self._squared_distances(_checked_painting(painted))), axis=-1)
        weights = np.exp((squared.min(axis=-1, keepdims=True) - squared) / np.float32(temperature))
        return weights / weights.sum(axis=-1, keepdims=True)

    def _squared_distances(self, painted: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        """Squared distances (...) to one colour after the other: a stack times all colours would not fit in memory."""
        red, green, blue = np.ascontiguousarray(np.moveaxis(painted, -1, 0))
        for r, g, b in self.colours:
            yield (red - r) ** 2 + (green - g) ** 2 + (blue - b) ** 2


@dataclass(frozen=True)
class ImageCodec:
    """Paints grey images, for every task whose answer is an image."""

    def encode(self, image: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Three equal channels, float32 (..., 3), of an image (...) in [0, 1]."""
        return np.repeat(np.asarray(image, dtype=np.float32)[..., None], 3, axis=-1)

    def decode(self, painted: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Mean of the channels of (..., 3), clipped to [0, 1]; float32 (...).

        Raises:
            ValueError: the last axis is not 3 long, or a value is NaN or infinite.
        """
        return np.clip(_checked_painting(painted).mean(axis=-1), 0, 1)


def label_groups(labels: Iterable[int], per_pass: int = MAX_LABELS_PER_PASS) -> list[tuple[int, ...]]:
    """Split labels into as few groups as possible, each painted in one pass.

    The groups are as even as possible, because fewer colours lie farther apart: 17 labels become 8 + 9. Order is kept.

    Args:
        labels: label numbers from 1 to 255, without repetition.
        per_pass: most labels in one group.

    Raises:
        ValueError: a label is out of range or listed twice, or `per_pass` is below 1.
    """
    numbers = _checked_labels(labels)
    if per_pass < 1:
        raise ValueError(f"per_pass must be at least 1, got {per_pass}")
    n_groups = -(-len(numbers) // per_pass)
    edges = [len(numbers) * k // n_groups for k in range(n_groups + 1)] if n_groups else [0]
    return [numbers[start:stop] for start, stop in itertools.pairwise(edges)]


def restricted(codec: LabelCodec, shown: Collection[int]) -> LabelCodec | None:
    """The codec without labels that are not shown, whose colours could only be hit by mistake; None without any."""
    rows = [row for row, label in enumerate(codec.labels) if label in shown]
    if not rows:
        return None
    return LabelCodec(tuple(codec.labels[row] for row in rows), codec.colours[[0, *(row + 1 for row in rows)]])


def merge_groups(
    decoded: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Combine the decoded passes of several label groups into one label map.

    A pass knows only its own labels, so "background" there may be a label of another pass: where any pass sees a label,
    the most confident label wins (the earlier pass on a tie). Background needs all passes, and is as sure as the least
    sure of them.

    Args:
        decoded: (label, confidence) of each pass as from `LabelCodec.decode`, all of one shape (...).

    Returns:
        Label uint8 (...) and confidence float32 (...) in [0, 1].

    Raises:
        ValueError: there is nothing to merge, or the shapes differ.
    """
    if not decoded:
        raise ValueError("no decoded label groups to merge: paint at least one")
    shapes = {np.shape(array) for pair in decoded for array in pair}
    if len(shapes) > 1:
        raise ValueError(f"decoded label groups must have one shape, got {sorted(shapes)}")
    label, confidence = decoded[0]
    for other_label, other_confidence in decoded[1:]:
        wins = (other_label > 0) & ((label == 0) | (other_confidence > confidence))
        both_background = (other_label == 0) & (label == 0)
        confidence = np.where(wins, other_confidence, confidence)
        confidence = np.where(both_background, np.minimum(confidence, other_confidence), confidence)
        label = np.where(wins, other_label, label)
    return label, confidence


def _checked_labels(labels: Iterable[int]) -> tuple[int, ...]:
    """`labels` as a tuple of distinct integers from 1 to 255."""
    numbers = tuple(int(label) for label in labels)
    outside = [number for number in numbers if not 1 <= number <= MAX_LABEL]
    if outside:
        raise ValueError(
            f"labels must be from 1 to {MAX_LABEL} (0 is the background), got {outside[:5]}: renumber them"
        )
    if len(set(numbers)) < len(numbers):
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        raise ValueError(f"labels {twice} are listed more than once")
    return numbers


def _checked_painting(painted: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """`painted` as float32 (..., 3)."""
    painted = np.asarray(painted, dtype=np.float32)
    if painted.ndim == 0 or painted.shape[-1] != 3:
        raise ValueError(f"a painting has 3 colour channels last, got shape {painted.shape}")
    if not np.isfinite(painted).all():
        raise ValueError("the painting holds NaN or infinite values: the network failed on this input")
    return painted
