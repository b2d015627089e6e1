"""Pictures of predictions: colours, slices, titles, and a file that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from mvg_core import preview
from mvg_core.preview import (
    OPACITY,
    TILE,
    draw_preview,
    heat,
    label_colours,
    overlay,
    slices_to_show,
    write_picture,
)
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWriteError

YELLOW, MAGENTA = (255, 255, 0), (255, 0, 255)


def volume(array: np.ndarray) -> Volume:
    return Volume.from_array(array)


def test_labels_get_the_colours_of_the_wide_palette_without_white_by_rank() -> None:
    colours = label_colours([7, 0, 3])
    assert {label: tuple(colour) for label, colour in colours.items()} == {3: YELLOW, 7: MAGENTA}
    many = label_colours(range(1, 60))
    assert tuple(many[1]) == tuple(many[26])
    assert all(tuple(colour) not in ((0, 0, 0), (255, 255, 255)) for colour in many.values())


def test_an_overlay_mixes_inside_and_outlines_in_full_colour() -> None:
    image = np.zeros((5, 5), np.float32)
    label = np.zeros((5, 5), np.uint8)
    label[1:4, 1:4] = 3
    picture = overlay(image, label, label_colours([3]))
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert tuple(picture[1, 2]) == YELLOW
    assert tuple(picture[2, 2]) == (round(OPACITY * 255), round(OPACITY * 255), 0)


def test_confidence_is_bright_where_it_is_low() -> None:
    shown = heat(np.array([[0.0, 0.5, 1.0]], np.float32)).astype(int).sum(axis=-1)[0]
    assert shown[0] > shown[1] > shown[2]


@pytest.mark.parametrize(
    ("labelled", "n_slices", "expected"),
    [
        ([], 6, [0, 1, 2, 3, 4, 5]),
        ([], 12, [1, 3, 5, 7, 9, 11]),
        ([2, 4], 6, [2, 3, 4]),
        ([], 1, [0]),
    ],
)
def test_slices_are_spread_over_the_labelled_range(labelled: list[int], n_slices: int, expected: list[int]) -> None:
    assert slices_to_show(labelled, n_slices) == expected


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_preview_has_a_row_for_everything_that_is_given(axis: int) -> None:
    image = volume(np.random.default_rng(0).random((9, 8, 7)).astype(np.float32))
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:6, 2:6, 2:6] = 4
    sure = volume(np.ones((9, 8, 7), np.float32))
    alone = draw_preview(image, volume(label), axis)
    everything = draw_preview(image, volume(label), axis, confidence=sure, truth=volume(label), names={4: "liver"})
    assert alone.dtype == np.uint8
    assert alone.shape[1:] == everything.shape[1:]
    assert everything.shape[0] - alone.shape[0] == 2 * (TILE + 6) + 30  # two rows more, and the scale of confidence
    assert (alone == YELLOW).all(axis=-1).any()
    own = draw_preview(image, volume(label), axis, colours={4: (9, 8, 7), 5: (1, 1, 1)})
    assert (own == (9, 8, 7)).all(axis=-1).any()
    assert not (own == YELLOW).all(axis=-1).any()


def test_doubtful_slices_are_marked_and_named() -> None:
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:6, 2:6, 2:6] = 4
    image = volume(np.random.default_rng(0).random((9, 8, 7)).astype(np.float32))
    calm, warned = draw_preview(image, volume(label), 2), draw_preview(image, volume(label), 2, doubtful=[3, 4, 40])
    assert warned.shape[0] == calm.shape[0] + 30
    orange = (warned == preview._WARNING).all(axis=-1)
    assert not (calm == preview._WARNING).all(axis=-1).any()
    columns = [orange[:30, 144 + at * (TILE + 6) :][:, : TILE + 6].any() for at in range(4)]
    assert columns == [False, True, True, False]  # slices 2 to 5
    assert orange[-30:].any()
    many = draw_preview(image, volume(label), 2, doubtful=range(0, 400, 2))
    assert many.shape[0] > calm.shape[0] + 5 * 30


@pytest.mark.parametrize(("numbers", "expected"), [
    ([], []), ([3], ["3"]), ([5, 4, 3, 9], ["3-5", "9"]), ([1, 1, 2], ["1-2"]), ([0, 2, 4], ["0", "2", "4"]),
])
def test_following_numbers_become_ranges(numbers: list[int], expected: list[str]) -> None:
    assert preview.ranges(numbers) == expected


def test_images_are_shown_without_colour_also_where_they_are_constant() -> None:
    image = volume(np.random.default_rng(0).random((9, 8, 1)).astype(np.float32))
    picture = draw_preview(image, volume(np.zeros((9, 8, 1), np.float32)), 2, is_label=False)
    tiles = picture[30:, 144:]
    paper = (tiles == preview._PAPER).all(axis=-1)
    assert (tiles[~paper] == tiles[~paper][:, :1]).all()


def test_long_names_and_many_labels_are_wrapped_and_cut() -> None:
    label = (np.arange(40, dtype=np.uint8)).reshape(5, 8, 1)
    names = {number: "a very long name ü" * 3 for number in range(1, 40)}
    picture = draw_preview(volume(label.astype(np.float32)), volume(label), 2, names=names)
    assert picture.shape[0] > 2 * TILE + 20 * 30


def test_letters_are_drawn_where_they_fit() -> None:
    sheet = np.zeros((20, 30, 3), np.uint8)
    preview._write(sheet, "i", 2, 2)  # E 4 4 4 4 4 E in a 5 x 7 grid, each pixel 2 x 2
    assert (sheet[..., 0] > 0).sum() == (3 + 5 + 3) * 4
    preview._write(sheet, "ZZZZZZ", 15, 20)


def test_a_picture_is_stored_as_it_was_drawn(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    write_picture(picture, tmp_path / "p.png")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "p.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_: object, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(sitk, "WriteImage", half)
    with pytest.raises(VolumeWriteError, match=r"p\.png: the picture could not be written"):
        write_picture(np.zeros((3, 3, 3), np.uint8), tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []
