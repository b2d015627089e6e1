"""Overlapping square tiles of a slice, and the slice from its tiles without a seam.

Along rows as along columns, the weights of the tiles that share a pixel rise and fall smoothly and sum to one, so tiles
in which nothing was changed give the slice back, bit for bit.

Shape letters: H W pixels of a slice; T tiles; S side of a tile; C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvg_core.prompts import Prompt

DARKEST = 0.05
"""On [0, 1], what is not brighter shows nothing."""


class Box(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of a slice, the last ones not included."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Tiling:
    """How a slice is cut.

    Attributes:
        shape: (H, W) of the slice; it may be smaller than a tile.
        size: side S of a tile in pixels.
        overlap: pixels that neighbouring tiles share at least; less than `size`.

    Raises:
        ValueError: a number is out of range.
    """

    shape: tuple[int, int]
    size: int
    overlap: int

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"a slice has two sides of at least one pixel, got {self.shape}")
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise ValueError(f"tiles need a side of at least 1 and an overlap from 0 to below it, got side {self.size} "
                             f"and overlap {self.overlap}")

    def __len__(self) -> int:
        return len(self.corners)

    @cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """First row and column of every tile, row by row."""
        rows, columns = (_starts(side, self.size, self.overlap) for side in self.shape)
        return tuple(product(rows, columns))

    def cut(self, image: npt.NDArray, numbers: Iterable[int] | None = None, *, fill: float = 0) -> npt.NDArray:
        """Tiles of a slice.

        Args:
            image: (H, W) or (H, W, C).
            numbers: which tiles; None for all.
            fill: value of what lies beyond a slice that is smaller than a tile.

        Returns:
            (T, S, S) or (T, S, S, C) in the type of the image.

        Raises:
            ValueError: the image does not have the shape of the tiling.
        """
        self._check(image.shape[:2])
        chosen = self.corners if numbers is None else [self.corners[number] for number in numbers]
        tiles = np.full((len(chosen), self.size, self.size, *image.shape[2:]), fill, image.dtype)
        for tile, (row, column) in zip(tiles, chosen, strict=True):
            part = image[row : row + self.size, column : column + self.size]
            tile[: part.shape[0], : part.shape[1]] = part
        return tiles

    def weights(self, number: int) -> npt.NDArray[np.float64]:
        """(h, w) what a tile contributes to each of its pixels that lie in the slice; over all tiles they sum to 1."""
        row, column = self.corners[number]
        rows, columns = (_weights(side, self.size, self.overlap) for side in self.shape)
        return np.outer(rows[row][row : row + self.size], columns[column][column : column + self.size])

    def blend(self, tiles: npt.NDArray, numbers: Sequence[int] | None = None, *,
              base: npt.NDArray | None = None) -> npt.NDArray[np.float32]:
        """The inverse of `cut`.

        Args:
            tiles: (T, S, S) or (T, S, S, C).
            numbers: which tiles these are; None for all.
            base: (H, W) or (H, W, C), what is seen where tiles are missing; needed if some are.

        Returns:
            float32 (H, W) or (H, W, C). Tiles of float32 in which nothing was changed give back what was cut, exactly.

        Raises:
            ValueError: the number or the shape of the tiles is wrong, or some are missing and there is no base.
        """
        chosen = range(len(self)) if numbers is None else numbers
        if tiles.shape[:3] != (len(chosen), self.size, self.size):
            raise ValueError(f"tiles have shape {tiles.shape}, needed ({len(chosen)}, {self.size}, {self.size}) with "
                             "at most one axis of channels after it")
        channels = tiles.shape[3:]
        # float64: sums of weights are off by less than float32 can tell.
        blended, covered = np.zeros((*self.shape, *channels)), np.zeros(self.shape)
        for tile, number in zip(tiles, chosen, strict=True):
            row, column = self.corners[number]
            weight = self.weights(number)
            height, width = weight.shape
            part = slice(row, row + height), slice(column, column + width)
            covered[part] += weight
            blended[part] += tile[:height, :width] * _over(weight, channels)
        if base is not None:
            self._check(base.shape[:2])
            # By selection where nothing is missing: no share of a base that may hold NaN.
            missing = np.where(covered > 1 - 1e-9, 0, 1 - covered)
            np.add(blended, base * _over(missing, channels), out=blended, where=_over(missing > 0, channels))
        elif set(chosen) != set(range(len(self))):
            raise ValueError(f"{len(set(chosen))} of {len(self)} tiles were given: give all, or a base for the others")
        return blended.astype(np.float32)

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != tuple(self.shape):
            raise ValueError(f"slice has shape {tuple(shape)}, the tiling was made for {tuple(self.shape)}")


def content_box(image: npt.NDArray[np.floating] | npt.NDArray[np.bool_]) -> Box:
    """The part of (..., H, W) in [0, 1] in which any slice shows something; all of it where none does."""
    height, width = image.shape[-2:]
    seen = (image > DARKEST).reshape(-1, height, width)
    rows, columns = np.flatnonzero(seen.any(axis=(0, 2))), np.flatnonzero(seen.any(axis=(0, 1)))
    if not rows.size:
        return Box(0, height, 0, width)
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def corresponding_corner(corner: tuple[int, int], size: int, here: Box, there: Box, shape: tuple[int, int]
                         ) -> tuple[int, int]:
    """Where another slice shows what a tile shows.

    The tile's centre keeps its relative position in the box of what is seen, so that the left lung of a slender
    subject is compared with the left lung of a broad one. Scale stays as it is.

    Args:
        corner: of the tile in its own slice.
        size: side of the tile.
        here: what is seen in its own slice.
        there: what is seen in the other slice.
        shape: (H, W) of the other slice.

    Returns:
        Corner of the tile in the other slice, moved as little as is needed to lie in it.
    """
    found = []
    for axis, start in enumerate(corner):
        low, high = here[2 * axis], here[2 * axis + 1]
        other_low, other_high = there[2 * axis], there[2 * axis + 1]
        share = (start + size / 2 - low) / (high - low)
        middle = other_low + share * (other_high - other_low)
        found.append(int(np.clip(round(middle - size / 2), 0, max(0, shape[axis] - size))))
    return found[0], found[1]


def tile_at(image: npt.NDArray, corner: tuple[int, int], size: int) -> npt.NDArray:
    """The tile (S, S) of a slice (H, W) that starts at a corner; 0 beyond the slice's border."""
    tile = np.zeros((size, size), image.dtype)
    part = image[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    tile[: part.shape[0], : part.shape[1]] = part
    return tile


def prompt_tile(prompt: Prompt, corner: tuple[int, int], size: int) -> Prompt:
    """The part of a prompt that starts at a corner."""
    hole = None if prompt.hole is None else tile_at(prompt.hole, corner, size)
    return Prompt(tile_at(prompt.image, corner, size), tile_at(prompt.label, corner, size), prompt.subject,
                  prompt.position_mm, hole)


def _starts(side: int, size: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one side: as few as reach, evenly spread."""
    if side <= size:
        return [0]
    n_tiles = -(-(side - overlap) // (size - overlap))
    return [round(number * (side - size) / (n_tiles - 1)) for number in range(n_tiles)]


def _weights(side: int, size: int, overlap: int) -> dict[int, npt.NDArray[np.float64]]:
    """First pixel of each tile along one side -> its weight (side,) at every pixel; in sum 1 everywhere.

    Between neighbours the weight passes over as a squared sine, over all that they share.
    """
    starts = _starts(side, size, overlap)
    pixels = np.arange(side) + 0.5
    rising = [np.ones(side)]
    for left, right in pairwise(starts):
        shared = left + size - right
        share = np.clip((pixels - right) / shared, 0, 1) if shared else (pixels > right).astype(float)
        rising.append(np.sin(share * np.pi / 2) ** 2)
    rising.append(np.zeros(side))
    return {start: rising[number] - rising[number + 1] for number, start in enumerate(starts)}


def _over(weight: npt.NDArray, channels: tuple[int, ...]) -> npt.NDArray:
    """(h, w) for all channels."""
    return weight[..., None] if channels else weight
