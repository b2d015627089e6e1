"""Which reference slices serve which query slice, on descriptors made by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mvg_core.retrieval import (
    DescribedSlices,
    Descriptors,
    RetrievalConfig,
    choose_slices,
    similarity,
    thumbnails,
)

LOOKS = RetrievalConfig(n_prompts=1, position=0, similarity=1, monotone=False)
PLACES = RetrievalConfig(n_prompts=1, position=1, similarity=0, monotone=False)
BOTH = RetrievalConfig(n_prompts=1, position=1, similarity=1)


def angles(*degrees: float) -> npt.NDArray[np.float32]:
    """Slices that look as different as the angles between them."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def chosen(query: DescribedSlices, references: list[DescribedSlices], config: RetrievalConfig) -> list:
    return [[(choice.reference, choice.slice) for choice in choices]
            for choices in choose_slices(query, references, config)]


def test_looks_decide_where_positions_do_not_count() -> None:
    query = DescribedSlices(angles(0, 40, 80), np.array([0.0, 0.5, 1.0]))
    reference = DescribedSlices(angles(85, 5, 41), np.array([0.0, 0.5, 1.0]))
    assert chosen(query, [reference], LOOKS) == [[(0, 1)], [(0, 2)], [(0, 0)]]
    assert chosen(query, [reference], PLACES) == [[(0, 0)], [(0, 1)], [(0, 2)]]


def test_cost_is_the_weighted_sum_worked_by_hand() -> None:
    query = DescribedSlices(angles(0), np.array([0.25]))
    reference = DescribedSlices(angles(60), np.array([0.75]))
    config = RetrievalConfig(position=2.0, similarity=0.5)
    assert choose_slices(query, [reference], config)[0][0].cost == pytest.approx(2 * 0.5 + 0.5 * (1 - 0.5))


def test_other_field_of_view_is_found_by_looks() -> None:
    """The reference shows only the upper half of what the query shows, so relative positions are wrong."""
    query = DescribedSlices(angles(*range(0, 101, 10)), np.linspace(0, 1, 11))
    reference = DescribedSlices(angles(50, 60, 70, 80, 90, 100), np.linspace(0, 1, 6))
    found = chosen(query, [reference], RetrievalConfig(n_prompts=1, position=0.01))
    assert [slices[0][1] for slices in found] == [0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]


def test_neighbours_are_matched_in_order() -> None:
    """The second slice of the query looks most like the last of the reference, but its neighbours do not."""
    query = DescribedSlices(angles(0, 88, 40, 60), np.linspace(0, 1, 4))
    reference = DescribedSlices(angles(0, 20, 40, 60, 90), np.linspace(0, 1, 5))
    free = chosen(query, [reference], LOOKS)
    ordered = chosen(query, [reference], RetrievalConfig(n_prompts=1, position=0))
    assert [slices[0][1] for slices in free] == [0, 4, 2, 3]
    assert [slices[0][1] for slices in ordered] == [0, 3, 3, 3]  # costs 0.18; 0, 2, 2, 3 would cost 0.33


def test_reversed_storage_of_a_reference_makes_no_difference() -> None:
    query = DescribedSlices(angles(0, 30, 60), np.array([0.0, 0.5, 1.0]))
    stored = DescribedSlices(angles(60, 30, 0), np.array([1.0, 0.5, 0.0]))
    assert chosen(query, [stored], RetrievalConfig(n_prompts=1, position=0.1)) == [[(0, 2)], [(0, 1)], [(0, 0)]]


def test_every_reference_gives_one_before_any_gives_two() -> None:
    query = DescribedSlices(angles(0), np.array([0.5]))
    near = DescribedSlices(angles(2, 1, 3), np.array([0.4, 0.5, 0.6]))
    far = DescribedSlices(angles(70, 60), np.array([0.0, 0.5]))
    config = RetrievalConfig(n_prompts=4)
    assert chosen(query, [far, near], config) == [[(1, 1), (0, 1), (1, 0), (0, 0)]]
    assert chosen(query, [far, near], RetrievalConfig(n_prompts=1)) == [[(1, 1)]]


def test_fewer_slices_than_asked_for_are_all_taken() -> None:
    query = DescribedSlices(angles(0, 10), np.array([0.0, 1.0]))
    found = chosen(query, [DescribedSlices(angles(0, 10), np.array([0.0, 1.0]))], RetrievalConfig(n_prompts=8))
    assert [sorted(slices) for slices in found] == [[(0, 0), (0, 1)]] * 2


def test_pictures_have_no_positions() -> None:
    query = DescribedSlices(angles(50))
    assert chosen(query, [DescribedSlices(angles(0)), DescribedSlices(angles(45))], BOTH) == [[(1, 0)]]


def test_no_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="no reference"):
        choose_slices(DescribedSlices(angles(0)), [], BOTH)


# --- descriptors ---


def test_similarity_by_hand() -> None:
    found = similarity(np.array([[1, 0], [3, 4]], np.float32), np.array([[2, 0], [0, 1], [0, 0]], np.float32))
    np.testing.assert_allclose(found, [[1, 0, 0], [0.6, 0.8, 0]], atol=1e-6)


def test_thumbnails_are_block_means_without_their_mean() -> None:
    image = np.zeros((1, 4, 4), np.float32)
    image[0, :2, :2] = [[0.2, 0.4], [0.4, 0.6]]  # mean 0.4
    np.testing.assert_allclose(thumbnails(image, side=2), [[0.3, -0.1, -0.1, -0.1]], atol=1e-6)


def test_thumbnails_do_not_mind_brightness_and_contrast() -> None:
    images = np.random.default_rng(0).random((2, 48, 48)).astype(np.float32)
    dull = (0.2 + 0.3 * images).astype(np.float32)
    np.testing.assert_allclose(np.diag(similarity(thumbnails(images), thumbnails(dull))), 1, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 17, 50])
def test_thumbnails_of_any_size(size: int) -> None:
    assert thumbnails(np.ones((3, size, size)), side=16).shape == (3, min(size, 16) ** 2)


def test_slices_are_described_once() -> None:
    calls = []

    def describe(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        calls.append(len(images))
        return thumbnails(images)

    descriptors = Descriptors(describe, most=2)
    images = [np.random.default_rng(seed).random((3, 8, 8)) for seed in range(3)]
    first = descriptors.of(images[0])
    assert descriptors.of(images[0].copy()) is first
    for image in images[1:]:
        descriptors.of(image)
    descriptors.of(images[0])  # was forgotten
    assert calls == [3, 3, 3, 3]


def test_changed_slices_are_described_again() -> None:
    descriptors = Descriptors()
    images = np.random.default_rng(0).random((2, 8, 8)).astype(np.float32)
    before = descriptors.of(images).copy()
    images[1] = 1 - images[1]
    assert not np.allclose(descriptors.of(images)[1], before[1])


@pytest.mark.parametrize(("descriptors", "positions"), [
    (np.zeros((0, 2)), None), (np.zeros(3), None), (np.full((1, 2), np.nan), None), (np.ones((2, 2)), np.zeros(3)),
    (np.ones((2, 2)), np.array([0, np.inf]))])
def test_descriptions_are_checked(descriptors: npt.NDArray, positions: npt.NDArray | None) -> None:
    with pytest.raises(ValueError, match=r"descriptors must be|finite positions"):
        DescribedSlices(descriptors, positions)


def test_descriptors_of_different_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="describe all slices in one way"):
        similarity(np.ones((1, 2), np.float32), np.ones((1, 3), np.float32))


@pytest.mark.parametrize("changes", [{"n_prompts": 0}, {"position": -1}, {"similarity": 2},
                                     {"position": 0, "similarity": 0}])
def test_settings_are_checked(changes: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        RetrievalConfig(**changes)
