"""A second, finer look at the borders of a segmented slice.

The whole slice is painted at the network's size, and its answer is brought to finer pixels. Tiles along the borders
are then painted again at these pixels, beside the same part of the examples, and blended in.

Shape letters: H W pixels of the slice; S side of a tile; L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.tiles import Box, Tiling, content_box, corresponding_corner, tile_at

SIZES = (64, 256)
"""Smallest and largest side of a tile in pixels."""


@dataclass(frozen=True)
class Refinement:
    """How borders are painted again.

    Attributes:
        size: side of a tile in pixels, a multiple of 16; None takes that of the structures, see `tile_size`.
        overlap: share of a tile's side that neighbouring tiles have in common, 0 to below 1.
        band: pixels to either side of a border within which the answer may change; less and less towards its end.
        draft: the query itself with its coarse label is one more example.
        share: of the finer answer at a border, 0 to 1; the rest is the coarse one.

    Raises:
        ValueError: a value out of its range.
    """

    size: int | None = None
    overlap: float = 1 / 3
    band: int = 12
    draft: bool = False
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.size is not None and (self.size < 16 or self.size % 16):
            raise ValueError(f"tiles have a side that is a multiple of 16, got {self.size}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be from 0 to below 1, got {self.overlap}")
        if self.band < 1:
            raise ValueError(f"band must be at least 1 pixel, got {self.band}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share}")


def refine_slice(painter: SlicePainter, query: npt.NDArray[np.float32], coarse: npt.NDArray[np.float32],
                 examples: Sequence[Example], settings: Refinement | None = None) -> npt.NDArray[np.float32]:
    """Paint the borders of a segmented slice again, in tiles at the slice's own pixels.

    Tiles of the examples are taken where they show the same part of the structures: at the same relative place in the
    bounding box of the foreground. A tile in which the examples do not show all that the coarse answer shows is left as
    it is, unless the draft shows it.

    Args:
        painter: paints tiles; its labels are those of `coarse`.
        query: (H, W) in [0, 1], at (nearly) the resolution of the image.
        coarse: (H, W, 1 + L) probabilities of background and labels on the same pixels.
        examples: solved slices of the same pixel size, of any number of pixels; at least one.
        settings: see `Refinement`; None takes its defaults.

    Returns:
        Probabilities (H, W, 1 + L); those of `coarse` away from borders.

    Raises:
        ValueError: shapes that do not belong together, or no examples.
    """
    settings = settings or Refinement()
    if coarse.shape != (*query.shape, 1 + len(painter.labels)):
        raise ValueError(f"coarse probabilities have shape {coarse.shape}, needed "
                         f"{(*query.shape, 1 + len(painter.labels))}: bring them to the pixels of the query")
    if not examples:
        raise ValueError("no example given: borders are painted by examples, as the whole slice is")
    label = painter.decide(coarse)
    border = borders(label)
    size = settings.size or tile_size(label)
    tiling = Tiling((query.shape[0], query.shape[1]), size, int(size * settings.overlap))
    queries, labels = tiling.cut(query), tiling.cut(label)
    painted, numbers = [], []
    for number in np.flatnonzero(tiling.cut(border).any(axis=(1, 2))).tolist():
        shown = _tiles(examples, tiling.corners[number], size, query, label)
        if settings.draft:
            shown.append(Example(queries[number], labels[number]))
        if _labels(labels[number]) <= set().union(*(_labels(example.label) for example in shown)):
            painted.append(painter.paint(queries[number], shown))
            numbers.append(number)
    if not numbers:
        return coarse
    fine = tiling.blend(np.stack(painted), numbers, base=coarse)
    weight = settings.share * near(border, settings.band)[..., None]
    return (coarse + weight * (fine - coarse)).astype(np.float32)


def tile_size(label: npt.NDArray[np.integer]) -> int:
    """Side of tiles that suits a label map (H, W): the longer side of the foreground, within `SIZES`, in steps of 16.

    A tile that shows less of the structures is ambiguous, one that shows much more around them wastes pixels.
    """
    if not label.any():
        return SIZES[0]
    top, bottom, left, right = content_box(label > 0)
    return int(np.clip(round(max(bottom - top, right - left) / 16) * 16, *SIZES))


def borders(label: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Pixels of a label map (H, W) that have a neighbour of another label, to the side, above or below."""
    border = np.zeros(label.shape, bool)
    for axis in (0, 1):
        change = np.diff(label, axis=axis) != 0
        for side in (slice(1, None), slice(None, -1)):
            border[(side, slice(None)) if axis == 0 else (slice(None), side)] |= change
    return border


def near(marked: npt.NDArray[np.bool_], distance: int) -> npt.NDArray[np.float32]:
    """1 at marked pixels (H, W), less and less around them, 0 from `distance` pixels on (the longer of both sides)."""
    weight = marked.astype(np.float32)
    reached = marked
    for step in range(1, distance):
        reached = _grown(reached)
        weight = np.maximum(weight, reached * np.float32(1 - step / distance))
    return weight


def _grown(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    height, width = marked.shape
    padded = np.pad(marked, 1)
    return np.logical_or.reduce([padded[down : down + height, right : right + width]
                                 for down, right in product(range(3), repeat=2)])


def _tiles(examples: Sequence[Example], corner: tuple[int, int], size: int, query: npt.NDArray[np.float32],
           label: npt.NDArray[np.integer]) -> list[Example]:
    """The part of every example that shows what a tile of the query shows."""
    tiles = []
    for example in examples:
        boxes = _boxes(query, label, example)
        place = corresponding_corner(corner, size, *boxes, example.image.shape)  # type: ignore[arg-type]
        tiles.append(replace(example, image=tile_at(example.image, place, size),
                             label=tile_at(example.label, place, size),
                             key=None if example.key is None else (example.key, place, size)))
    return tiles


def _boxes(query: npt.NDArray[np.float32], label: npt.NDArray[np.integer], example: Example) -> tuple[Box, Box]:
    """What corresponds in both: the foreground, or without any the images."""
    if label.any() and example.label.any():
        return content_box(label > 0), content_box(example.label > 0)
    return content_box(query), content_box(example.image)


def _labels(label: npt.NDArray[np.integer]) -> set[int]:
    return set(np.unique(label).tolist()) - {0}
