"""Clean-up of label maps, on maps small enough to be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from mvg_core.cleanup import CleanupConfig, LabelCleanup, clean_up
from mvg_core.volume import Geometry, Volume

VOXEL_MM = (2.0, 1.0, 5.0)
VOXEL_ML = 0.01
OBLIQUE = np.array([[0.0, -1.0, 0.0, 5.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def volume(array: npt.NDArray) -> Volume:
    return Volume.from_array(array.astype(np.uint8), VOXEL_MM)


def with_pieces() -> npt.NDArray:
    """Label 1: 27 voxels, 8 voxels and 1 voxel; label 2: 4 voxels in one row."""
    array = np.zeros((12, 12, 8), np.uint8)
    array[1:4, 1:4, 1:4] = 1
    array[6:8, 6:8, 1:3] = 1
    array[10, 10, 6] = 1
    array[1:5, 10, 6] = 2
    return array


def with_hole() -> npt.NDArray:
    """Label 3 as a box of 5 x 5 x 5 voxels around a hole of 3 x 3 x 3."""
    array = np.zeros((9, 9, 9), np.uint8)
    array[2:7, 2:7, 2:7] = 3
    array[3:6, 3:6, 3:6] = 0
    return array


def test_nothing_is_changed_by_default() -> None:
    array = with_pieces()
    tidied, report = clean_up(volume(array), CleanupConfig())
    np.testing.assert_array_equal(tidied.array, array)
    assert report == ()
    assert CleanupConfig().is_off


def test_largest_piece_of_each_label_stays_and_the_rest_is_counted() -> None:
    tidied, report = clean_up(volume(with_pieces()), CleanupConfig(largest_component=True))
    expected = with_pieces()
    expected[6:, 6:] = 0
    np.testing.assert_array_equal(tidied.array, expected)
    assert report == (LabelCleanup(1, 3, 2, 9, 0, 0, 0.09, 0.0),
                      LabelCleanup(2, 1, 0, 0, 0, 0, 0.0, 0.0))
    assert [each.changed for each in report] == [True, False]
    assert report[0].to_json()["removed_voxels"] == 9


def test_the_input_is_left_alone() -> None:
    array = with_pieces()
    clean_up(volume(array), CleanupConfig(largest_component=True, fill_holes=True))
    np.testing.assert_array_equal(array, with_pieces())


def test_of_equal_pieces_the_first_stays() -> None:
    array = np.zeros((6, 3, 3), np.uint8)
    array[1], array[4] = 5, 5
    tidied, _ = clean_up(volume(array), CleanupConfig(largest_component=True))
    assert tidied.array[1].all()
    assert not tidied.array[4].any()


def test_pieces_that_share_a_corner_are_one() -> None:
    array = np.zeros((4, 4, 4), np.uint8)
    array[1, 1, 1] = array[2, 2, 2] = 1
    tidied, report = clean_up(volume(array), CleanupConfig(largest_component=True))
    np.testing.assert_array_equal(tidied.array, array)
    assert report[0].pieces == 1


@pytest.mark.parametrize(("smallest_ml", "left"), [(0.01, 36), (0.011, 35), (0.08, 35), (0.081, 27), (0.28, 0)])
def test_pieces_below_a_volume_go(smallest_ml: float, left: int) -> None:
    """The pieces of label 1 hold 0.27, 0.08 and 0.01 ml."""
    tidied, _ = clean_up(volume(with_pieces()), CleanupConfig(smallest_ml=smallest_ml))
    assert (tidied.array == 1).sum() == left


def test_volume_of_a_voxel_is_that_of_the_oblique_grid() -> None:
    array = with_pieces()
    _, report = clean_up(Volume(array, Geometry(array.shape, OBLIQUE)), CleanupConfig(largest_component=True))
    assert report[0].removed_ml == pytest.approx(9 * VOXEL_ML)


def test_hole_is_filled_and_counted() -> None:
    tidied, report = clean_up(volume(with_hole()), CleanupConfig(fill_holes=True))
    assert (tidied.array == 3).sum() == 125
    assert report == (LabelCleanup(3, 1, 0, 0, 1, 27, 0.0, 0.27),)


def test_open_hole_is_none() -> None:
    array = with_hole()
    array[4, 4, :3] = 0
    tidied, report = clean_up(volume(array), CleanupConfig(fill_holes=True))
    np.testing.assert_array_equal(tidied.array, array)
    assert report[0].filled_holes == 0


def test_hole_at_the_edge_of_the_volume_is_none() -> None:
    array = with_hole()[:, :, 4:]
    tidied, _ = clean_up(volume(array), CleanupConfig(fill_holes=True))
    np.testing.assert_array_equal(tidied.array, array)


def test_way_out_over_a_corner_is_none() -> None:
    array = with_hole()
    array[2, 2, 2] = 0  # touches the hole's corner only
    tidied, _ = clean_up(volume(array), CleanupConfig(fill_holes=True))
    assert tidied.array[4, 4, 4] == 3
    assert tidied.array[2, 2, 2] == 0


def test_labels_inside_a_label_are_no_hole_and_what_they_enclose_is_theirs() -> None:
    array = with_hole()
    array[3:6, 3:6, 3:6] = 7
    array[4, 4, 4] = 0
    tidied, report = clean_up(volume(array), CleanupConfig(fill_holes=True))
    assert (tidied.array == 7).sum() == 27
    assert (tidied.array == 3).sum() == 98
    assert [each.added_voxels for each in report] == [0, 1]


def test_hole_between_labels_goes_to_the_one_on_most_faces() -> None:
    array = np.full((5, 5, 5), 1, np.uint8)
    array[:, :, 3:] = 2
    array[2, 2, 2] = 0  # five faces to 1, one to 2
    tidied, _ = clean_up(volume(array), CleanupConfig(fill_holes=True))
    assert tidied.array[2, 2, 2] == 1


def test_holes_above_a_volume_stay() -> None:
    for most, filled in ((0.26, 0), (0.27, 27)):
        _, report = clean_up(volume(with_hole()), CleanupConfig(fill_holes=True, largest_hole_ml=most))
        assert report[0].added_voxels == filled


def test_pieces_go_before_holes_are_filled() -> None:
    array = with_hole()
    array[4, 4, 4] = 3  # a speck inside the hole
    tidied, report = clean_up(volume(array), CleanupConfig(largest_component=True, fill_holes=True))
    assert (tidied.array == 3).sum() == 125
    assert (report[0].removed_voxels, report[0].added_voxels) == (1, 27)


def test_only_the_labels_asked_for_are_tidied() -> None:
    array = with_pieces()
    array[8, 1, 6] = 2
    tidied, report = clean_up(volume(array), CleanupConfig(largest_component=True, fill_holes=True, labels=(2,)))
    assert (tidied.array == 1).sum() == 36
    assert (tidied.array == 2).sum() == 4
    assert [each.label for each in report] == [2]


def test_holes_of_labels_not_asked_for_stay() -> None:
    array = with_hole()
    array[0, 0, 0] = 1
    tidied, _ = clean_up(volume(array), CleanupConfig(fill_holes=True, labels=(1,)))
    assert tidied.array[4, 4, 4] == 0


def test_one_slice_is_tidied_in_its_plane() -> None:
    tidied, report = clean_up(Volume.from_array(with_hole()[:, :, 4]), CleanupConfig(fill_holes=True))
    assert (tidied.array == 3).sum() == 25
    assert report[0].added_voxels == 9
    assert report[0].added_ml is None


def test_pictures_have_no_millilitres() -> None:
    picture = Volume.from_array(with_hole()[:, :, 4])
    for config in (CleanupConfig(smallest_ml=1), CleanupConfig(fill_holes=True, largest_hole_ml=1)):
        with pytest.raises(ValueError, match="mean nothing in a picture"):
            clean_up(picture, config)


def test_empty_label_map_stays_empty() -> None:
    tidied, report = clean_up(volume(np.zeros((3, 3, 3))), CleanupConfig(largest_component=True, fill_holes=True))
    assert not tidied.array.any()
    assert report == ()


@pytest.mark.parametrize("number", [-1.0, math.nan])
def test_sizes_must_be_sizes(number: float) -> None:
    with pytest.raises(ValueError, match="smallest_ml must be 0 ml or more"):
        CleanupConfig(smallest_ml=number)
    with pytest.raises(ValueError, match="largest_hole_ml must be 0 ml or more"):
        CleanupConfig(largest_hole_ml=number)


def test_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="fractions"):
        clean_up(Volume.from_array(np.full((3, 3, 3), 0.5)), CleanupConfig(largest_component=True))
