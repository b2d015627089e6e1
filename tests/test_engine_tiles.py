"""Tiles: cut and blended without a trace, at corresponding places; and borders that are painted again in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.refinement import Refinement, borders, near, refine_slice, tile_size
from mvg_core.engine.tiles import Box, Tiling, content_box, corresponding_corner, prompt_tile
from mvg_core.prompts import Prompt

# --- tiles ---


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    shape = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    size = draw(st.integers(1, 40))
    return Tiling(shape, size, draw(st.integers(0, size - 1)))


@given(tilings(), st.sampled_from([(), (3,)]), st.integers(0, 1000))
def test_tiles_in_which_nothing_changed_give_the_slice_back_exactly(tiling: Tiling, channels: tuple[int, ...],
                                                                    seed: int) -> None:
    image = np.random.default_rng(seed).normal(0, 1000, (*tiling.shape, *channels)).astype(np.float32)
    tiles = tiling.cut(image)
    assert tiles.shape == (len(tiling), tiling.size, tiling.size, *channels)
    np.testing.assert_array_equal(tiling.blend(tiles), image)


@given(tilings(), st.data())
def test_tiles_that_are_missing_show_the_base(tiling: Tiling, data: st.DataObject) -> None:
    image = np.random.default_rng(0).random(tiling.shape).astype(np.float32)
    numbers = data.draw(st.lists(st.integers(0, len(tiling) - 1), unique=True))
    np.testing.assert_array_equal(tiling.blend(tiling.cut(image, numbers), numbers, base=image), image)


@given(tilings())
def test_neighbours_share_what_was_asked_for_and_the_slice_is_covered(tiling: Tiling) -> None:
    for axis, side in enumerate(tiling.shape):
        starts = sorted({corner[axis] for corner in tiling.corners})
        assert starts[0] == 0
        assert starts[-1] + tiling.size >= side
        assert starts[-1] == max(0, side - tiling.size)
        assert all(left + tiling.size - right >= tiling.overlap
                   for left, right in pairwise(starts))


def test_one_tile_passes_over_into_the_next_smoothly() -> None:
    tiling = Tiling((1, 12), 8, 4)
    assert tiling.corners == ((0, 0), (0, 4))
    blended = tiling.blend(np.stack([np.zeros((8, 8)), np.ones((8, 8))]))[0]
    # squared sine of an eighth, three eighths ... of a right angle
    expected = [0, 0, 0, 0, *np.sin(np.pi / 2 * np.array([1, 3, 5, 7]) / 8) ** 2, 1, 1, 1, 1]
    np.testing.assert_allclose(blended, expected, atol=1e-6)
    assert np.abs(np.diff(blended)).max() < 0.4  # a seam would be a step of 1


def test_a_broken_base_is_not_seen_where_tiles_are() -> None:
    tiling = Tiling((40, 40), 13, 7)
    image = np.ones((40, 40), np.float32)
    np.testing.assert_array_equal(tiling.blend(tiling.cut(image), base=image * np.nan), image)


def test_useless_tiles_are_refused() -> None:
    for shape, size, overlap in (((0, 5), 4, 1), ((5, 5), 0, 0), ((5, 5), 4, 4), ((5, 5), 4, -1)):
        with pytest.raises(ValueError, match="at least"):
            Tiling(shape, size, overlap)
    tiling = Tiling((5, 5), 4, 1)
    with pytest.raises(ValueError, match=r"slice has shape \(4, 5\), the tiling was made for \(5, 5\)"):
        tiling.cut(np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"tiles have shape \(2, 4, 4\), needed \(4, 4, 4\)"):
        tiling.blend(np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="2 of 4 tiles were given"):
        tiling.blend(np.zeros((2, 4, 4)), [0, 1])


# --- corresponding places ---


def test_content_is_what_is_not_black() -> None:
    image = np.zeros((2, 10, 12))
    image[0, 2:5, 3] = 0.5
    image[1, 4:7, 8] = 1
    assert content_box(image) == Box(2, 7, 3, 9)
    assert content_box(np.zeros((4, 6))) == Box(0, 4, 0, 6)


def test_tiles_of_another_subject_lie_at_the_same_relative_place() -> None:
    slender, broad = Box(0, 100, 40, 60), Box(0, 100, 10, 90)
    # A tile around column 55 is three quarters across the slender one: column 70 of the broad one.
    assert corresponding_corner((30, 45), 20, slender, broad, (100, 100)) == (30, 60)
    assert corresponding_corner((30, 45), 20, slender, slender, (100, 100)) == (30, 45)
    assert corresponding_corner((80, 0), 20, slender, broad, (100, 100)) == (80, 0)  # not beyond the slice
    assert corresponding_corner((30, 45), 20, slender, slender, (10, 10)) == (0, 0)  # a slice smaller than the tile


def test_a_prompt_is_cut_with_all_its_parts() -> None:
    image = np.linspace(0, 1, 36).reshape(6, 6)
    prompt = Prompt(image, (image > 0.5).astype(np.uint8), "a", 0.25, image > 0.9)
    tile = prompt_tile(prompt, (3, 4), 4)
    np.testing.assert_allclose(tile.image[:3, :2], image[3:, 4:], atol=1e-6)
    assert (tile.image[3:] == 0).all()
    assert tile.hole is not None
    assert (tile.hole.sum(), tile.label.sum()) == ((image[3:, 4:] > 0.9).sum(), (image[3:, 4:] > 0.5).sum())
    assert (tile.subject, tile.position_mm) == ("a", 0.25)


# --- borders painted again ---


class Threshold:
    """Knows the truth: white where the query is bright; remembers what it was shown."""

    name, checkpoint_sha256, size = "oracle", "", 16

    def __init__(self) -> None:
        self.card: dict[str, Any] = {}
        self.encoded: list[tuple[np.ndarray, np.ndarray]] = []
        self.painted = 0

    def encode(self, image: np.ndarray, label: np.ndarray) -> Any:
        self.encoded.append((image, label))
        return [image]

    def merge(self, encoded: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
        return list(encoded)

    def paint(self, queries: np.ndarray, encoded: Any) -> np.ndarray:
        self.painted += len(queries)
        return np.repeat((queries > 0.5).astype(np.float32)[..., None], 3, axis=-1)


def disc(side: int, radius: float, centre: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return ((y - centre) ** 2 + (x - centre) ** 2 < radius ** 2).astype(np.uint8)


def test_a_border_is_painted_again_and_the_rest_is_left() -> None:
    truth, guess = disc(96, 20, 40), disc(96, 18, 40)
    backend = Threshold()
    painter = SlicePainter(backend, [1])
    coarse = painter.one_hot(guess) * 0.9 + 0.05
    example = Example(truth.astype(np.float32), truth)
    settings = Refinement(size=32, overlap=0.25, band=8, share=1)
    found = refine_slice(painter, truth.astype(np.float32), coarse, [example], settings)
    np.testing.assert_array_equal(painter.decide(found), truth)
    far = near(borders(guess), 8) == 0
    np.testing.assert_array_equal(found[far], coarse[far])
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert backend.painted < len(Tiling((96, 96), 32, 8))  # tiles without a border are not painted


def test_half_a_share_is_the_mean_of_both_at_the_border() -> None:
    truth, guess = disc(64, 20, 30), disc(64, 19, 30)
    painter = SlicePainter(Threshold(), [1])
    example, coarse = Example(truth.astype(np.float32), truth), painter.one_hot(guess)
    whole, half = (refine_slice(painter, truth.astype(np.float32), coarse, [example],
                                Refinement(size=64, overlap=0, share=share)) for share in (1, 0.5))
    np.testing.assert_allclose(half, (whole + coarse) / 2, atol=1e-6)


def test_tiles_of_examples_show_the_same_part_of_the_structure() -> None:
    here, there = disc(96, 20, 30), disc(96, 20, 60)
    backend = Threshold()
    painter = SlicePainter(backend, [1])
    refine_slice(painter, here.astype(np.float32), painter.one_hot(here), [Example(there.astype(np.float32), there)],
                 Refinement(size=32, overlap=0))
    tiling = Tiling((96, 96), 32, 0)
    expected = [tile for tile in tiling.cut(here.astype(np.float32)) if 0 < tile.sum() < 32 * 32]
    assert len(backend.encoded) == len(expected) >= 4
    for (image, _), tile in zip(backend.encoded, expected, strict=True):
        np.testing.assert_array_equal(image, tile)


def test_without_a_draft_tiles_whose_labels_no_example_shows_are_left() -> None:
    label = disc(64, 20, 30)
    painter = SlicePainter(Threshold(), [1])
    query, coarse = np.zeros((64, 64), np.float32), painter.one_hot(label)
    empty = Example(query, np.zeros_like(label))
    np.testing.assert_array_equal(refine_slice(painter, query, coarse, [empty], Refinement(share=1)), coarse)
    drafted = refine_slice(painter, query, coarse, [empty], Refinement(share=1, draft=True))
    assert (drafted[borders(label)][:, 0] > 0.9).all()  # the network says: nothing bright here


def test_tiles_are_as_large_as_the_structures() -> None:
    assert [tile_size(disc(400, radius, 200)) for radius in (10, 50.5, 190)] == [64, 96, 256]
    assert tile_size(np.zeros((9, 9), np.uint8)) == 64
    truth, backend = disc(400, 50.5, 200), Threshold()
    painter = SlicePainter(backend, [1])
    refine_slice(painter, truth.astype(np.float32), painter.one_hot(truth), [Example(truth.astype(np.float32), truth)])
    assert {image.shape for image, _ in backend.encoded} == {(96, 96)}


def test_a_slice_without_borders_stays_as_it_is() -> None:
    backend = Threshold()
    painter = SlicePainter(backend, [1])
    coarse = painter.one_hot(np.zeros((40, 40), np.uint8))
    example = Example(np.ones((40, 40), np.float32), disc(40, 9, 20))
    np.testing.assert_array_equal(refine_slice(painter, np.zeros((40, 40), np.float32), coarse, [example]), coarse)
    assert backend.painted == 0


def test_what_does_not_fit_together_is_refused() -> None:
    painter = SlicePainter(Threshold(), [1])
    query = np.zeros((32, 32), np.float32)
    with pytest.raises(ValueError, match=r"have shape \(32, 32, 3\), needed \(32, 32, 2\)"):
        refine_slice(painter, query, np.zeros((32, 32, 3), np.float32), [Example(query, query.astype(np.uint8))])
    with pytest.raises(ValueError, match="no example"):
        refine_slice(painter, query, np.zeros((32, 32, 2), np.float32), [])
    wrong: list[tuple[dict[str, Any], str]] = [({"size": 20}, "multiple of 16"), ({"overlap": 1}, "overlap"),
                                               ({"band": 0}, "band"), ({"share": 1.5}, "share")]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            Refinement(**changes)
