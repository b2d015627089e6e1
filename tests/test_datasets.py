"""What may be trained on: never an unseen task, a test split, PET or a hippocampus, and no subject twice."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from miniature import FREESURFER_NUMBERS, write_ct, write_label_maps, write_listing, write_mr

from mvg_core.training.bank import build_bank
from mvg_core.training.datasets import RefusedDataError, TrainingSet, read_training_set
from mvg_core.training.recipe import TRAINING_SETS

SPLITS = ("training", "validation", "test", "references")


def test_a_training_set_is_read(tmp_path):
    folder = write_mr(tmp_path / "mr", n_subjects=2)
    found = read_training_set(folder)
    assert (found.name, found.modality, found.labels) == ("mr", "MR", {1: "block", 2: "ball", 3: "rod"})
    assert [item.subject for item in found.items] == ["s0", "s1"]
    assert found.items[1].dataset == "mr"
    assert found.items[1].images == {"t1": folder / "t1" / "s1.nii.gz", "t2": folder / "t2" / "s1.nii.gz"}
    assert found.items[1].label == folder / "label" / "s1.nii.gz"
    assert found.merged_labels == {}
    assert [item.subject for item in read_training_set(folder, "validation").items] == ["s2"]


def test_an_item_may_have_no_label(tmp_path):
    (tmp_path / "mr").mkdir()
    (tmp_path / "mr" / "a.nii").touch()
    write_listing(tmp_path / "mr", {"training": [{"subject": "a", "flair": "a.nii"}]})
    (item,) = read_training_set(tmp_path / "mr").items
    assert item.label is None


# --- refused ---


@pytest.mark.parametrize("role", ["unseen", "Train", None])
def test_other_roles_than_train_are_refused(tmp_path, role):
    write_listing(tmp_path / "heart", {"role": role})
    with pytest.raises(RefusedDataError, match=f"heart has role {role!r}: only role 'train' may be trained on"):
        read_training_set(tmp_path / "heart")


@pytest.mark.parametrize("split", ["test", "references", "all"])
def test_other_splits_are_refused(tmp_path, split):
    write_listing(tmp_path / "mr", {"test": [], "references": []})
    with pytest.raises(RefusedDataError, match=f"split '{split}' of mr is not for training: use one of"):
        read_training_set(tmp_path / "mr", split)


@pytest.mark.parametrize("contrasts", [("pet",), ("ct", "PET")])
def test_pet_is_refused_even_when_asked_for_by_name(tmp_path, contrasts):
    with pytest.raises(RefusedDataError, match=f"ct: contrast {contrasts[-1]!r} belongs to an unseen task"):
        read_training_set(write_ct(tmp_path / "ct"), contrasts=contrasts)


@pytest.mark.parametrize("contrasts", [None, ("ct",)])
def test_pet_is_never_listed(tmp_path, contrasts):
    items = read_training_set(write_ct(tmp_path / "ct"), contrasts=contrasts).items
    assert [set(item.images) for item in items] == [{"ct"}, {"ct"}]


def test_a_missing_listing_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json is missing: a data set folder needs"):
        read_training_set(tmp_path)


@pytest.mark.parametrize("kind", ["t2", "label"])
def test_a_missing_file_is_reported(tmp_path, kind):
    folder = write_mr(tmp_path / "mr", n_subjects=2)
    (folder / kind / "s1.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"s1\.nii\.gz is listed in .*dataset\.json but missing"):
        read_training_set(folder)


# --- contrasts ---


def test_only_the_wanted_contrasts_are_listed(tmp_path):
    folder = write_mr(tmp_path / "mr", n_subjects=2)
    (folder / "t2" / "s0.nii.gz").unlink()  # not wanted, so not missed
    assert [set(item.images) for item in read_training_set(folder, contrasts=("t1",)).items] == [{"t1"}, {"t1"}]


def test_items_without_a_wanted_contrast_do_not_become_label_maps(tmp_path):
    folder = write_mr(tmp_path / "mr", n_subjects=2)
    listing = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    del listing["training"][0]["t2"]
    write_listing(folder, listing)
    assert [item.subject for item in read_training_set(folder, contrasts=("t2",)).items] == ["s1"]
    with pytest.raises(ValueError, match=r"no item of mr, training, has any of the contrasts \('flair',\)"):
        read_training_set(folder, contrasts=("flair",))


# --- hippocampus ---


def test_the_hippocampi_are_merged_into_the_white_matter_of_their_side(tmp_path):
    found = read_training_set(write_label_maps(tmp_path / "maps"))
    assert found.merged_labels == {3: 1, 4: 2}
    assert {old: FREESURFER_NUMBERS[old] for old in found.merged_labels} == {3: 17, 4: 53}
    bank = build_bank([found], size=32)
    unmerged = build_bank([dataclasses.replace(found, merged_labels={})], size=32)
    assert not np.isin(bank.labels, [3, 4]).any()
    for old in found.merged_labels:
        assert (unmerged.labels == old).any()  # they would have been there
    # Pixels that neither merging nor its surroundings touch stay as they are.
    assert np.array_equal(bank.labels == 5, unmerged.labels == 5)


def whole_head(shared_folder: Path) -> TrainingSet:
    return read_training_set(shared_folder / "data" / "head_labelmaps")


@pytest.mark.shared
def test_the_hippocampi_of_the_head_label_maps_are_merged(shared_folder):
    found = whole_head(shared_folder)
    # Hippocampus 17 and 53 -> cerebral white matter 2 and 41, left and right.
    assert {found.labels[old]: found.labels[new] for old, new in found.merged_labels.items()} == {
        "FreeSurfer 17": "FreeSurfer 2",
        "FreeSurfer 53": "FreeSurfer 41",
    }
    assert found.merged_labels == {14: 1, 31: 21}


@pytest.mark.shared
def test_no_hippocampus_is_on_the_slices_of_a_head(shared_folder):
    found = whole_head(shared_folder)
    one = dataclasses.replace(found, items=found.items[:1])
    assert not np.isin(build_bank([one], size=64, stride_2nd=12).labels, [14, 31]).any()
    unmerged = build_bank([dataclasses.replace(one, merged_labels={})], size=64, stride_2nd=12)
    assert all((unmerged.labels == number).any() for number in (14, 31))


# --- the data that the shipped weights are trained on ---


def listings(shared_folder: Path) -> list[Path]:
    found = sorted((shared_folder / "data").glob("*/dataset.json"))
    assert len(found) >= 10
    return found


@pytest.mark.shared
def test_no_subject_and_no_file_is_on_two_sides_of_a_split(shared_folder):
    for path in listings(shared_folder):
        listing = json.loads(path.read_text(encoding="utf-8"))
        for one, other in itertools.combinations([split for split in SPLITS if listing.get(split)], 2):
            subjects = [{entry["subject"] for entry in listing[split]} for split in (one, other)]
            files = [{str(value) for entry in listing[split] for key, value in entry.items() if key != "subject"}
                     for split in (one, other)]
            assert not subjects[0] & subjects[1], (path.parent.name, one, other)
            assert not files[0] & files[1], (path.parent.name, one, other)


@pytest.mark.shared
def test_the_recipe_names_exactly_the_sets_that_may_be_trained_on(shared_folder):
    roles = {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["role"]
             for path in listings(shared_folder)}
    assert {name for name, role in roles.items() if role == "train"} == set(TRAINING_SETS)
    for name in set(roles) - set(TRAINING_SETS):
        for split in ("training", "validation"):
            with pytest.raises(RefusedDataError, match="only role 'train'"):
                read_training_set(shared_folder / "data" / name, split)


@pytest.mark.shared
@pytest.mark.parametrize("split", ["training", "validation"])
def test_no_training_set_lists_pet(shared_folder, split):
    for name in TRAINING_SETS:
        for item in read_training_set(shared_folder / "data" / name, split).items:
            assert not any("pet" in str(path.relative_to(shared_folder)).lower().split("/")
                           or "pet" in contrast.lower() for contrast, path in item.images.items()), item
