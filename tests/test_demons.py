"""Slices bent onto each other: known displacements are found, labels follow, and chains do not drift."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mvg_core.demons import DemonsConfig, SliceWarp, chain, correlation, coverage, register_slices, warp_slice

SIDE = 64
Y, X = np.mgrid[:SIDE, :SIDE].astype(float)


def blobs(dy: float = 0.0, dx: float = 0.0, wave: float = 0.0) -> npt.NDArray[np.float32]:
    """A picture whose content lies `dy` rows further down and `dx` columns further right, bent by a wave."""
    y, x = Y - dy, X - dx - wave * np.sin(Y / SIDE * 2 * np.pi)
    image = 0.1 + 0.6 * (np.hypot(y - 30, (x - 30) * 0.8) < 16) + 0.3 * (np.hypot(y - 26, x - 34) < 6)
    return (image + 0.05 * np.sin(y / 4) * np.cos(x / 5)).clip(0, 1).astype(np.float32)


def disc(dy: float = 0.0, dx: float = 0.0, wave: float = 0.0) -> npt.NDArray[np.uint8]:
    """Label 5: the large blob of `blobs`; label 2: the small one."""
    y, x = Y - dy, X - dx - wave * np.sin(Y / SIDE * 2 * np.pi)
    label = np.where(np.hypot(y - 30, (x - 30) * 0.8) < 16, 5, 0)
    return np.where(np.hypot(y - 26, x - 34) < 6, 2, label).astype(np.uint8)


def dice(first: npt.NDArray, second: npt.NDArray) -> float:
    return float(np.mean([2 * ((first == label) & (second == label)).sum()
                          / ((first == label).sum() + (second == label).sum()) for label in (2, 5)]))


def test_same_slice_is_not_moved() -> None:
    warp = register_slices(blobs(), blobs(), DemonsConfig(match_histogram=False))
    assert np.abs(warp.displacement).max() < 1e-3
    assert warp.similarity == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(warp.label(disc()), disc())


def test_displacement_points_from_the_fixed_to_the_moving_slice() -> None:
    """What lies 3 rows further down and 2 columns further left in the moving slice."""
    warp = register_slices(blobs(), blobs(dy=3, dx=-2))
    inside = np.hypot(Y - 26, X - 34) < 8
    np.testing.assert_allclose(warp.displacement[inside].mean(axis=0), (3, -2), atol=0.5)


def test_label_follows_a_smooth_warp() -> None:
    before = dice(disc(dy=2, wave=4), disc())
    warped = warp_slice(blobs(), blobs(dy=2, wave=4), disc(dy=2, wave=4))
    assert before < 0.8
    assert dice(warped, disc()) > 0.93
    assert warped.dtype == np.uint8


def test_several_resolutions_reach_further_than_one() -> None:
    def reached(iterations: tuple[int, ...]) -> float:
        return dice(warp_slice(blobs(), blobs(dy=9), disc(dy=9), DemonsConfig(iterations)), disc())

    assert reached((8, 8, 8)) > 0.95
    assert reached((24,)) < 0.7


def test_other_brightness_does_not_matter_when_histograms_are_matched() -> None:
    moving = blobs(dy=3) ** 2
    matched, plain = (warp_slice(blobs(), moving, disc(dy=3), DemonsConfig(match_histogram=match))
                      for match in (True, False))
    assert dice(matched, disc()) > 0.93
    assert dice(matched, disc()) > dice(plain, disc())


def test_probabilities_sum_to_one_and_leave_out_what_is_not_asked_for() -> None:
    warp = register_slices(blobs(), blobs(dy=3))
    both, one = warp.probabilities(disc(dy=3), (2, 5)), warp.probabilities(disc(dy=3), (2,))
    np.testing.assert_allclose(both.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(one[..., 1], both[..., 1], atol=1e-6)
    np.testing.assert_allclose(one[..., 0], both[..., 0] + both[..., 2], atol=1e-5)
    assert dice(np.array([0, 2, 5])[both.argmax(axis=-1)], disc()) > 0.93


def test_warp_takes_images_of_many_channels_and_repeats_edges() -> None:
    displacement = np.zeros((4, 5, 2))
    displacement[..., 0] = 1  # one row further down
    image = np.arange(40.0).reshape(4, 5, 2)
    np.testing.assert_allclose(SliceWarp(displacement, 1.0).image(image), image[[1, 2, 3, 3]])
    np.testing.assert_array_equal(SliceWarp(displacement, 1.0).label(image[..., 0].astype(int)),
                                  image[[1, 2, 3, 3], :, 0])


def test_chain_follows_a_structure_that_moves_on() -> None:
    """Two rows a slice, so that the last lies beyond what one registration from the labelled slice would reach."""
    moves = [2.0 * number for number in range(-3, 5)]
    stack = np.stack([blobs(dy=move) for move in moves])
    carried = chain(stack, disc(), 3, (2, 5))
    assert carried.shape == (8, SIDE, SIDE, 3)
    np.testing.assert_array_equal(carried[3], coverage(disc(), (2, 5)))
    np.testing.assert_allclose(carried.sum(axis=-1), 1, atol=1e-4)
    for number, move in enumerate(moves):
        assert dice(np.array([0, 2, 5])[carried[number].argmax(axis=-1)], disc(dy=move)) > 0.85


def test_same_slices_give_the_same_warp() -> None:
    first, second = (register_slices(blobs(), blobs(dy=3)) for _ in range(2))
    np.testing.assert_array_equal(first.displacement, second.displacement)


@pytest.mark.parametrize("flat", [0, 1])
def test_constant_slices_are_not_moved(flat: int) -> None:
    slices = [blobs(), blobs(dy=3)]
    slices[flat] = np.full((SIDE, SIDE), 0.5, np.float32)
    warp = register_slices(slices[0], slices[1])
    assert not warp.displacement.any()
    assert warp.similarity == 0


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 40)])
def test_tiny_slices_are_registered_or_left(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    assert register_slices(random.random(shape), random.random(shape)).displacement.shape == (*shape, 2)


def test_slices_that_cannot_be_registered_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        register_slices(blobs(), blobs()[:-1])
    with pytest.raises(ValueError, match="NaN"):
        register_slices(blobs(), np.full((SIDE, SIDE), np.nan))
    with pytest.raises(ValueError, match="does not fit a warp"):
        register_slices(blobs(), blobs()).label(disc()[:-1])


@pytest.mark.parametrize(("changes", "message"), [
    ({"iterations": ()}, "iterations"), ({"iterations": (-1,)}, "iterations"), ({"smooth": 0}, "smooth"),
    ({"threads": 0}, "threads")])
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemonsConfig(**changes)


def test_correlation_by_hand() -> None:
    assert correlation(np.array([1, 2, 3]), np.array([2, 4, 6])) == pytest.approx(1)
    assert correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert correlation(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == pytest.approx(0)
    assert correlation(np.array([1, 1]), np.array([0, 1])) == 0
