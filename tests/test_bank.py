"""The slices that are trained on: cut as in inference, and numbered so that episodes find what belongs together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from miniature import (
    phantom,
    tiny_bank,
    write_ct,
    write_label_maps,
    write_listing,
    write_mr,
    write_pictures,
)

from mvg_core.intensity import IntensityScaling
from mvg_core.slices import SlicePlan
from mvg_core.training.bank import SliceBank, build_bank
from mvg_core.training.datasets import read_training_set
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume

MR, CT, MAPS, PICTURES = range(4)


@pytest.fixture(scope="module")
def bank() -> SliceBank:
    return tiny_bank()


def rows_of(bank: SliceBank, **columns: int) -> np.ndarray:
    return np.flatnonzero(np.all([getattr(bank, name) == value for name, value in columns.items()], axis=0))


def test_every_column_has_a_row_for_each_slice(bank):
    count = len(bank.images)
    lengths = {field.name: len(getattr(bank, field.name)) for field in dataclasses.fields(bank)}
    assert lengths == {name: 4 if name in ("names", "weights") else count for name in lengths}
    assert (bank.images.dtype, bank.labels.dtype) == (np.uint8, np.uint8)
    assert bank.images.shape == bank.labels.shape == (count, 32, 32)
    assert bank.names.tolist() == ["mr", "ct", "maps", "pictures"]


def test_save_and_load(bank, tmp_path):
    bank.save(tmp_path / "bank.npz")
    loaded = SliceBank.load(tmp_path / "bank.npz")
    for field in dataclasses.fields(bank):
        assert np.array_equal(getattr(loaded, field.name), getattr(bank, field.name))
    assert [path.name for path in tmp_path.iterdir()] == ["bank.npz"]


def test_banks_saved_before_pairs_had_a_direction_are_loaded(bank, tmp_path):
    older = {field.name: getattr(bank, field.name) for field in dataclasses.fields(bank)}
    for name in ("direction", "kind", "weights"):
        del older[name]
    np.savez(tmp_path / "old.npz", **older)
    loaded = SliceBank.load(tmp_path / "old.npz")
    assert not loaded.direction.any()
    assert not loaded.kind.any()
    assert loaded.weights.tolist() == [1, 1, 1, 1]
    assert np.array_equal(loaded.stack, bank.stack)


def test_slices_are_those_of_inference(tmp_path):
    found = read_training_set(write_mr(tmp_path / "mr", n_subjects=1), contrasts=("t1",))
    bank = build_bank([found], size=32, stride_2nd=3)
    volume = read_volume(found.items[0].images["t1"])
    label = read_volume(tmp_path / "mr" / "label" / "s0.nii.gz")
    scaling = IntensityScaling.for_volume(volume.array)
    axial = bank.stack == 0
    plan = SlicePlan.for_volume(volume.geometry, "axial", size=32)
    assert set(bank.number[axial]) <= set(range(0, plan.n_slices, 3))
    for image, shown, number, relative in zip(bank.images[axial], bank.labels[axial], bank.number[axial],
                                              bank.relative[axial], strict=True):
        cut = scaling.apply(plan.extract(volume.array, [number], fill=scaling.low))[0]
        assert np.abs(image - 255 * cut).max() < 0.51
        assert np.array_equal(shown, plan.extract_label(label.array, [number])[0])
        assert relative == pytest.approx(plan.relative_positions[number])


def test_subjects_stacks_and_groups(bank):
    # mr: 3 subjects x 3 planes x 2 contrasts; stacks of a group belong to different subjects.
    assert len(np.unique(bank.stack[bank.dataset == MR])) == 18
    assert len(np.unique(bank.group[bank.dataset == MR])) == 6
    assert np.unique(bank.subject[bank.dataset == MR]).tolist() == [0, 1, 2]
    for stack in np.unique(bank.stack):
        rows = rows_of(bank, stack=stack)
        assert len(np.unique(bank.subject[rows])) == len(np.unique(bank.group[rows])) == 1
        assert (np.diff(bank.number[rows]) > 0).all()
        assert ((bank.relative[rows] >= 0) & (bank.relative[rows] <= 1)).all()
    for group in np.unique(bank.group):
        rows = rows_of(bank, group=group)
        assert len(np.unique(bank.dataset[rows])) == 1
        assert len(np.unique(bank.stack[rows])) == len(np.unique(bank.subject[rows]))
    assert len(np.unique(bank.subject)) == 3 + 2 + 2 + 3


def test_contrasts_of_one_place_share_a_site(bank):
    rows = np.flatnonzero(bank.dataset == MR)
    sites, counts = np.unique(bank.site[rows], return_counts=True)
    assert (counts == 2).mean() > 0.9  # a slice may be too empty in one contrast
    for site in sites[counts == 2]:
        one, other = rows_of(bank, site=site)
        assert np.array_equal(bank.labels[one], bank.labels[other])
        assert bank.group[one] != bank.group[other]
        assert (bank.subject[one], bank.number[one]) == (bank.subject[other], bank.number[other])


def test_ct_is_kept_in_two_windows_and_cut_in_its_own_plane_only(bank):
    rows = np.flatnonzero(bank.dataset == CT)
    assert len(np.unique(bank.group[rows])) == 2
    narrow, wide = (rows[bank.group[rows] == group] for group in np.unique(bank.group[rows]))
    soft, bone = bank.labels[narrow] == 1, bank.labels[narrow] == 3
    # (40 + 200) / 500 and (40 + 1000) / 2000; bone at 700 HU is past the narrow window.
    assert np.median(bank.images[narrow][soft]) == pytest.approx(255 * 0.48, abs=1)
    assert np.median(bank.images[wide][soft]) == pytest.approx(255 * 0.52, abs=1)
    assert np.median(bank.images[narrow][bone]) == 255
    assert np.median(bank.images[wide][bone]) == pytest.approx(255 * 0.85, abs=1)


def test_label_maps_are_black_and_marked(bank):
    maps = bank.dataset == MAPS
    assert not bank.images[maps].any()
    assert not bank.has_image[maps].any()
    assert bank.has_image[~maps].all()
    assert bank.labelled[maps].all()


def test_pictures_are_stacks_of_one_slice_in_one_group(bank):
    rows = np.flatnonzero(bank.dataset == PICTURES)
    assert len(rows) == len(np.unique(bank.stack[rows])) == 3
    assert len(np.unique(bank.group[rows])) == 1


def test_slices_that_show_nothing_are_left_out(tmp_path):
    image = np.zeros((16, 16, 16), np.float32)
    image[4:12, 4:12, 5:9] = 1.0
    (tmp_path / "mr").mkdir()
    write_volume(Volume.from_array(image), tmp_path / "mr" / "a.nii.gz")
    write_listing(tmp_path / "mr", {"training": [{"subject": "a", "t1": "a.nii.gz"}]})
    bank = build_bank([read_training_set(tmp_path / "mr")], size=16, stride_2nd=1)
    assert bank.number[bank.stack == 0].tolist() == [5, 6, 7, 8]
    assert not bank.labelled.any()


@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [
        ((1.0, 1.0, 1.2), {"axial": 3, "coronal": 3, "sagittal": 3}),  # isotropic: every 3rd of each
        ((1.0, 1.0, 2.0), {"axial": 1, "coronal": 3, "sagittal": 3}),
        ((1.0, 1.0, 4.0), {"axial": 1}),
        ((4.0, 1.0, 1.0), {"sagittal": 1}),
    ],
)
def test_planes_depend_on_the_spacing(tmp_path, spacing_mm, expected):
    (tmp_path / "mr").mkdir()
    write_volume(Volume.from_array(phantom(0).astype(np.float32), spacing_mm), tmp_path / "mr" / "a.nii.gz")
    write_listing(tmp_path / "mr", {"training": [{"subject": "a", "t1": "a.nii.gz"}]})
    bank = build_bank([read_training_set(tmp_path / "mr")], size=32, stride_2nd=3)
    steps = [int(np.diff(bank.number[bank.stack == stack]).min()) for stack in np.unique(bank.stack)]
    assert steps == list(expected.values())


def test_files_on_different_grids_are_refused(tmp_path):
    folder = write_mr(tmp_path / "mr", n_subjects=1)
    write_volume(Volume.from_array(phantom(0)[1:]), folder / "t2" / "s0.nii.gz", overwrite=True)
    with pytest.raises(ValueError, match=r"t2.s0\.nii\.gz and the other files of subject s0 have different grids"):
        build_bank([read_training_set(folder)], size=32)


@pytest.mark.parametrize(("value", "message"), [(0.5, "fractions such as 0.5"), (300, "labels are 0")])
def test_what_is_no_label_map_is_refused(tmp_path, value, message):
    folder = write_mr(tmp_path / "mr", n_subjects=1)
    label = phantom(0).astype(np.float32)
    label[4, 4, 4] = value
    write_volume(Volume.from_array(label), folder / "label" / "s0.nii.gz", overwrite=True)
    with pytest.raises(ValueError, match=message):
        build_bank([read_training_set(folder)], size=32)


def test_the_same_names_in_two_sets_are_other_subjects_and_groups(tmp_path):
    sets = [read_training_set(write_pictures(tmp_path / name)) for name in ("first", "second")]
    bank = build_bank(sets, size=32)
    assert len(np.unique(bank.subject)) == 6
    assert bank.group.tolist() == bank.dataset.tolist() == [0, 0, 0, 1, 1, 1]


def test_sets_of_all_kinds_are_numbered_apart(tmp_path):
    writers = (write_mr, write_ct, write_label_maps)
    sets = [read_training_set(write(tmp_path / write.__name__)) for write in writers]
    bank = build_bank(sets, size=32)
    for column in ("stack", "group", "subject", "site"):
        values = getattr(bank, column)
        assert all(len(np.unique(bank.dataset[values == value])) == 1 for value in np.unique(values))
