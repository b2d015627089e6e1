"""Makers of datalists, each on a miniature folder of the true layout with files that are really read."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import downloads
import numpy as np
import pytest
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.tasks import TASK_KINDS
from mvg_core.training.cutting import UNDIRECTED
from mvg_core.training.datalist import read_datalist
from mvg_core.training.makers import DATA_SETS, make_datalist
from mvg_core.training.makers.deeplesion import lesion_mask
from mvg_core.training.makers.listing import foreground_value, hold_out
from mvg_core.training.slice_dataset import SliceDataset
from mvg_core.volume_io import read_volume

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = ("training", "validation", "test")

# Items (subjects) of training, validation and test in the miniature folders, with a third of the training subjects
# held out where there is no validation split.
COUNTS = {
    "amos-ct": ((3, 3), (1, 1), (0, 0)),
    "amos-mr": ((2, 2), (1, 1), (0, 0)),
    "word": ((3, 3), (1, 1), (2, 2)),
    "btcv": ((2, 2), (1, 1), (0, 0)),
    "microsegnet": ((2, 2), (1, 1), (2, 2)),
    "promise12": ((3, 3), (1, 1), (0, 0)),
    "brats-gli": ((16, 3), (4, 1), (0, 0)),
    "brats-gli-segmentation": (None, None, (0, 0)),  # 3 or 2 visits, by whose patient is held out
    "brats-local": (None, None, (0, 0)),
    "low-dose-ct": ((2, 2), (1, 1), (0, 0)),
    "chest-xray": ((3, 3), (1, 1), (0, 0)),
    "acdc": ((4, 2), (2, 1), (4, 2)),
    "la": ((2, 2), (1, 1), (1, 1)),
    "deeplesion": ((2, 1), (1, 1), (1, 1)),
}


# Lines on what is left out of the miniature folders: unlabelled tests, incomplete visits, single series, noisy lesions.
REMARKS = {"amos-ct": 1, "amos-mr": 1, "promise12": 1, "brats-gli-segmentation": 1, "brats-local": 1, "low-dose-ct": 1,
           "chest-xray": 1, "deeplesion": 2}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> datalist of every data set; the download of `name` is in the folder `name` beside it."""
    folder = tmp_path_factory.mktemp("downloads")
    lists = {}
    for name, write in downloads.WRITERS.items():
        lists[name] = folder / f"{name}.json"
        found = make_datalist(name, write(folder / name), lists[name], validation_share=1 / 3)
        assert len(found.remarks) == REMARKS.get(name, 0), (name, found.remarks)
    return lists


def items_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {split: read_datalist(path, split, allow_missing=True) for split in SPLITS}


def paths_of(item: dict[str, Any]) -> list[str]:
    if "source" in item:
        return [item["source"], item["target"]]
    images = item["image"].values() if isinstance(item["image"], dict) else [item["image"]]
    return [*images, item["label"]]


def mvg(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["make-datalist", *map(str, arguments)])


# --- all of them ---


def test_every_data_set_of_the_paper_has_a_maker_and_a_miniature():
    assert len(DATA_SETS) == 14  # the paper's 13; BraTS-GLI for two tasks
    assert set(downloads.WRITERS) == set(DATA_SETS) == set(COUNTS)


@pytest.mark.parametrize("name", DATA_SETS)
def test_all_files_are_read_and_fit_each_other(made, name):
    for item in itertools.chain.from_iterable(items_of(made[name]).values()):
        first, *others = [read_volume(path) for path in paths_of(item)]
        assert all(other.geometry.is_close(first.geometry) for other in others)
        if item["task"] == "segmentation":
            values = set(np.unique(others[-1].array).tolist()) - {0}
            assert values
            assert values <= set(item["labels"])
            assert first.array.std() > 0


@pytest.mark.parametrize("name", DATA_SETS)
def test_items_and_subjects_are_counted(made, name):
    for split, expected in zip(SPLITS, COUNTS[name], strict=True):
        items = items_of(made[name])[split]
        if expected is not None:
            assert (len(items), len({item["subject"] for item in items})) == expected, split


@pytest.mark.parametrize("name", DATA_SETS)
def test_no_subject_is_on_two_sides(made, name):
    splits = items_of(made[name])
    for one, other in itertools.combinations(SPLITS, 2):
        assert not {item["subject"] for item in splits[one]} & {item["subject"] for item in splits[other]}
        assert not {path for item in splits[one] for path in paths_of(item)} & {
            path for item in splits[other] for path in paths_of(item)}


@pytest.mark.parametrize("name", DATA_SETS)
def test_slices_are_cut_of_it(made, name):
    data = read_datalist(made[name], "training")
    bank = SliceDataset(data, size=32).bank
    facts = DATA_SETS[name]
    assert set(np.unique(bank.subject)) == set(range(len({item["subject"] for item in data})))
    assert set(np.unique(bank.kind[bank.direction != UNDIRECTED])) == (
        set() if facts.task == "segmentation" else {TASK_KINDS.index(facts.task)})
    found = set(np.unique(bank.labels).tolist()) - {0}
    assert found <= set(data[0]["labels"])
    assert bool(found) is (facts.task == "segmentation")


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_check_of_lists_finds_no_error(made, name):
    result = CliRunner().invoke(app, ["check-data", str(made[name])])
    assert result.exit_code == 0, result.output
    assert "0 errors" in result.output


def test_prompts_of_brats_show_the_direction_of_their_query(made):
    data = read_datalist(made["brats-gli"], "training")
    bank = SliceDataset(data, size=32).bank
    directions = {item["modality"] for item in data}
    assert len(directions) == 12
    assert len(np.unique(bank.group)) == len(directions) * 3 * 2  # planes, and source and target


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_list_says_what_it_is_and_under_which_terms(made, name):
    listing, facts = json.loads(made[name].read_text(encoding="utf-8")), DATA_SETS[name]
    assert (listing["name"], listing["task"], listing["modality"]) == (name, facts.task, facts.modality)
    assert listing["licence"] == facts.licence
    assert listing["terms_of_use"].startswith("https://")
    assert ("labels" in listing) is (facts.task == "segmentation")


@pytest.mark.parametrize("name", DATA_SETS)
def test_other_data_sets_are_refused_with_what_was_looked_for(made, tmp_path, name):
    others = [other for other in made if downloads.WRITERS[other] is not downloads.WRITERS[name]]
    assert len(others) >= 12
    for other in others:
        with pytest.raises(ValueError, match=r"is not a download of .*, looked for ") as caught:
            make_datalist(name, made[other].parent / other, tmp_path / "list.json")
        assert DATA_SETS[name].layout in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_download_is_left_as_it_was(tmp_path, name):
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in (tmp_path / "d").rglob("*")}

    downloads.WRITERS[name](tmp_path / "d")
    before = state()
    make_datalist(name, tmp_path / "d", tmp_path / "list.json")
    assert state() == before


# --- what is particular to one ---


def test_amos_is_split_by_modality(made):
    ct, mr = ({item["subject"] for split in items_of(made[f"amos-{kind}"]).values() for item in split}
              for kind in ("ct", "mr"))
    assert ct == {"amos_0001", "amos_0004", "amos_0005", "amos_0008"}
    assert mr == {"amos_0507", "amos_0510", "amos_0540"}


@pytest.mark.parametrize(("number", "is_ct"), [(500, True), (501, False)])
def test_amos_counts_ct_up_to_500(tmp_path, number, is_ct):
    for folder in ("imagesTr", "labelsTr"):
        downloads.nifti(tmp_path / "d" / folder / f"amos_{number:04d}.nii.gz", downloads.label_array(0))
    name = "amos-ct" if is_ct else "amos-mr"
    assert make_datalist(name, tmp_path / "d", tmp_path / "list.json").counts["training"] == (1, 1)


def test_images_without_labels_are_left_out_with_a_remark(tmp_path):
    found = make_datalist("word", downloads.write_word(tmp_path / "d", test_labels=False), tmp_path / "list.json")
    assert found.counts["test"] == (0, 0)
    (remark,) = found.remarks
    assert "2 images in" in remark
    assert "word_0014.nii.gz" in remark


def test_btcv_names_images_and_labels_differently(made, tmp_path):
    for item in items_of(made["btcv"])["training"]:
        assert Path(item["label"]).name == f"label{item['subject']}.nii.gz"
        assert Path(item["image"]).name == f"img{item['subject']}.nii.gz"
    training = made["btcv"].parent / "btcv" / "RawData" / "Training"
    assert make_datalist("btcv", training, tmp_path / "list.json").counts["training"] == (2, 2)


def test_microsegnet_takes_the_expert(made):
    for item in itertools.chain.from_iterable(items_of(made["microsegnet"]).values()):
        assert Path(item["label"]).name.startswith("expert_annotation_")
        assert Path(item["label"]).name.removeprefix("expert_annotation_") == (
            Path(item["image"]).name.removeprefix("microUS_"))


def test_promise12_leaves_out_test_cases_that_have_the_numbers_of_training_cases(made, tmp_path):
    cases = [item for split in items_of(made["promise12"]).values() for item in split]
    assert {Path(item["image"]).parent.name for item in cases} == {"training_data"}
    in_parts = make_datalist("promise12", downloads.write_promise12(tmp_path / "d", parts=True), tmp_path / "list.json")
    assert (in_parts.counts["training"], in_parts.counts["validation"]) == ((3, 3), (1, 1))
    (remark,) = in_parts.remarks
    assert "2 cases in" in remark


def test_the_number_of_a_binary_label_is_read_from_a_file(made, tmp_path):
    assert items_of(made["la"])["training"][0]["labels"] == {255: "left atrium"}
    assert items_of(made["promise12"])["training"][0]["labels"] == {1: "prostate"}
    downloads.itk(tmp_path / "empty.nrrd", downloads.label_array(0, ()))
    downloads.itk(tmp_path / "full.nrrd", 7 * downloads.label_array(0))
    assert foreground_value([tmp_path / "empty.nrrd", tmp_path / "full.nrrd"]) == 7
    with pytest.raises(ValueError, match="all 1 label maps are empty"):
        foreground_value([tmp_path / "empty.nrrd"])


def test_brats_pairs_every_contrast_with_every_other(tmp_path):
    visits = [f"{number:05d}-000" for number in range(6)]
    for visit, name in itertools.product(visits, ("t1n", "t1c", "t2w", "t2f")):
        downloads.rubbish(tmp_path / "d" / f"BraTS-GLI-{visit}" / f"BraTS-GLI-{visit}-{name}.nii.gz")
    make_datalist("brats-gli", tmp_path / "d", tmp_path / "list.json", validation_share=0)
    items = items_of(tmp_path / "list.json")["training"]
    directions = Counter(item["modality"] for item in items)
    assert len(directions) == 12
    assert set(directions.values()) == {2}
    for item in items:
        source, target = (item[key].rpartition("-")[2].removesuffix(".nii.gz") for key in ("source", "target"))
        assert item["modality"] == f"MR {source} to {target}"
    for key in ("source", "target"):
        assert set(Counter(item[key] for item in items).values()) == {1}


def test_visits_of_a_patient_stay_together(made):
    for name in ("brats-gli-segmentation", "brats-local"):
        sides = {item["subject"]: split for split, items in items_of(made[name]).items() for item in items}
        assert set(sides) == {"BraTS-GLI-00000", "BraTS-GLI-00002", "BraTS-GLI-00003"}
        assert len(items_of(made[name])[sides["BraTS-GLI-00000"]]) >= 2  # its two visits


def test_brats_validation_data_without_tumours_validate_the_synthesis_only(made):
    assert {item["subject"] for item in items_of(made["brats-gli"])["validation"]} == {"BraTS-GLI-00001"}
    segmented = [item["subject"] for split in items_of(made["brats-gli-segmentation"]).values() for item in split]
    assert "BraTS-GLI-00001" not in segmented


def test_brats_local_fills_the_voided_part(made):
    item = items_of(made["brats-local"])["training"][0]
    source, target, mask = (read_volume(item[key]).array for key in ("source", "target", "mask"))
    assert item["task"] == "inpainting"
    assert (mask > 0).any()
    assert np.array_equal(source != target, (mask > 0) & (target != 0))


def test_low_dose_is_the_source_of_its_own_patient(made):
    listing = items_of(made["low-dose-ct"])
    assert {item["subject"] for split in listing.values() for item in split} == {"C004", "L004", "N012"}
    for item in itertools.chain.from_iterable(listing.values()):
        assert item["task"] == "denoising"
        assert f"/{item['subject']}/" in item["source"]
        assert f"/{item['subject']}/" in item["target"]
        assert item["modality"] == {"C": "CT chest", "L": "CT abdomen", "N": "CT head"}[item["subject"][0]]
        noisy, clean = read_volume(item["source"]).array, read_volume(item["target"]).array
        air = clean < -500
        assert noisy[air].std() > 3 * clean[air].std()


def test_low_dose_scans_without_a_partner_are_named(tmp_path):
    found = make_datalist("low-dose-ct", downloads.write_low_dose_ct(tmp_path / "d"), tmp_path / "list.json")
    assert ["1 series left out" in remark and "L299" in remark for remark in found.remarks] == [True]


def test_folders_of_projections_are_not_opened(tmp_path, monkeypatch):
    downloads.write_low_dose_ct(tmp_path / "d")
    opened, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": opened.append(str(path)) or scandir(path))
    make_datalist("low-dose-ct", tmp_path / "d", tmp_path / "list.json")
    assert any("dose images" in path for path in opened)
    assert not any("dose projections" in path for path in opened)


def test_doses_without_a_patient_are_no_download(tmp_path):
    for kind in ("full", "quarter"):
        downloads.dicom(tmp_path / "d" / f"{kind}_1mm", downloads.image_array(0, downloads.CT))
    with pytest.raises(ValueError, match="is not a download of Low-dose CT"):
        make_datalist("low-dose-ct", tmp_path / "d", tmp_path / "list.json")


def test_a_second_series_of_a_patient_is_named(tmp_path):
    study = downloads.write_low_dose_ct(tmp_path / "d") / "manifest-1648648375084/LDCT-and-Projection-data/L004/other"
    downloads.dicom(study / "1.000000-Low Dose Images-00001", downloads.image_array(0, downloads.CT))
    found = make_datalist("low-dose-ct", tmp_path / "d", tmp_path / "list.json")
    assert any("patient L004 has another such series" in remark for remark in found.remarks)


def test_the_files_of_the_challenge_are_listed_by_thickness(tmp_path):
    made = make_datalist("low-dose-ct", downloads.write_low_dose_challenge(tmp_path / "d"), tmp_path / "list.json")
    assert (made.counts["training"], made.counts["validation"]) == ((4, 2), (2, 1))
    for item in itertools.chain.from_iterable(items_of(tmp_path / "list.json").values()):
        assert item["source"].replace("quarter", "full") == item["target"]
    item = read_datalist(tmp_path / "list.json", "training")[0]
    air = read_volume(item["target"]).array < -500
    assert read_volume(item["source"]).array[air].std() > 3 * read_volume(item["target"]).array[air].std()


def test_one_patient_of_the_challenge_is_enough(tmp_path):
    for kind in ("full", "quarter"):
        downloads.dicom(tmp_path / "L067" / f"{kind}_3mm", downloads.image_array(0, downloads.CT), "{:04d}.IMA")
    made = make_datalist("low-dose-ct", tmp_path / "L067", tmp_path / "list.json")
    assert (made.counts["training"], made.counts["validation"]) == ((1, 1), (0, 0))
    assert read_datalist(tmp_path / "list.json", "training")[0]["subject"] == "L067"


def test_acdc_lists_both_frames_and_not_the_cine(made):
    for item in itertools.chain.from_iterable(items_of(made["acdc"]).values()):
        assert item["label"] == item["image"].replace(".nii.gz", "_gt.nii.gz")
        assert "_frame" in item["image"]
    frames = Counter(item["subject"] for item in items_of(made["acdc"])["test"])
    assert frames == {"patient101": 2, "patient102": 2}


def test_a_scan_of_the_atrium_without_image_is_named(tmp_path):
    downloads.write_left_atrium(tmp_path / "d")
    (tmp_path / "d" / "Training Set" / "1D7CUD1955YZPGK8XHJX" / "lgemri.nrrd").unlink()
    found = make_datalist("la", tmp_path / "d", tmp_path / "list.json")
    assert found.counts["training"] == (1, 1)
    (remark,) = found.remarks
    assert "1D7CUD1955YZPGK8XHJX left out: no lgemri.nrrd" in remark


# --- DeepLesion ---


@pytest.fixture
def deeplesion(tmp_path: Path) -> Path:
    return downloads.write_deeplesion(tmp_path / "d")


def test_deeplesion_becomes_hounsfield_units_with_spacing(made):
    item = next(item for item in items_of(made["deeplesion"])["training"] if "000001_01_01_109" in item["image"])
    image, label = read_volume(item["image"]), read_volume(item["label"])
    assert (image.array.min(), image.array.max()) == (-1000, 90)
    np.testing.assert_allclose(image.geometry.spacing_mm, (0.8, 0.8, 5.0), rtol=1e-6)
    assert Path(item["image"]).parents[1].name == "deeplesion_files"
    # Both lesions; the bright region is at columns 20..40, rows 25..35, and the first ellipse lies in it.
    assert label.array[30, 30, 0] == label.array[53, 10, 0] == 1
    assert image.array[label.array > 0].mean() > 75
    # Shown like the picture: columns run to the patient's left, rows to the back.
    assert image.geometry.axis_codes[:2] == ("L", "P")


def test_deeplesion_says_what_it_left_out(deeplesion, tmp_path):
    found = make_datalist("deeplesion", deeplesion, tmp_path / "list.json")
    assert found.counts == {"training": (2, 1), "validation": (1, 1), "test": (1, 1)}
    assert any("1 lesion left out: marked as possibly noisy" in remark for remark in found.remarks)
    assert any("1 of 5 key slices left out" in remark for remark in found.remarks)


def test_deeplesion_goes_on_where_it_was_interrupted(deeplesion, tmp_path):
    make_datalist("deeplesion", deeplesion, tmp_path / "list.json")
    kept, redone = (tmp_path / "list_files" / "labels" / f"{name}.nii.gz"
                    for name in ("000001_01_01_109", "000002_01_01_021"))
    before = kept.stat().st_mtime_ns
    redone.unlink()
    steps: list[tuple[int, int]] = []
    make_datalist("deeplesion", deeplesion, tmp_path / "list.json",
                  progress=lambda title, done, total: steps.append((done, total)))
    assert redone.is_file()
    assert kept.stat().st_mtime_ns == before
    assert steps == [(done, 4) for done in range(5)]


def test_deeplesion_is_never_converted_into_the_download(deeplesion):
    with pytest.raises(ValueError, match="lies in the download: write the list somewhere else"):
        make_datalist("deeplesion", deeplesion, deeplesion / "list.json")
    assert not (deeplesion / "list_files").exists()


def test_archives_of_deeplesion_extracted_one_by_one(deeplesion, tmp_path):
    (deeplesion / "Images_png_01").mkdir()
    shutil.move(deeplesion / "Images_png", deeplesion / "Images_png_01" / "Images_png")
    assert make_datalist("deeplesion", deeplesion, tmp_path / "list.json").counts["training"] == (2, 1)


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("Bounding_boxes", "Boxes", "has no column Bounding_boxes"),
    ("15, 20, 45, 40", "15, 20, 45", "column Bounding_boxes holds '15, 20, 45', needed 4 numbers"),
    ("0.8, 0.8, 5", "0.8, x, 5", "column Spacing_mm_px_ holds '0.8, x, 5', needed 3 numbers"),
])
def test_a_damaged_table_of_lesions_is_named(deeplesion, tmp_path, old, new, expected):
    table = deeplesion / "DL_info.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"DL_info\.csv") as caught:
        make_datalist("deeplesion", deeplesion, tmp_path / "list.json")
    assert expected in str(caught.value)


def test_a_lesion_is_the_ellipse_of_its_diameters():
    mask = lesion_mask((20, 30, 40, 30, 30, 25, 30, 35), (0, 0, 63, 63), (64, 64))
    x, y = np.indices((64, 64))
    assert np.array_equal(mask, ((x - 30) / 10) ** 2 + ((y - 30) / 5) ** 2 <= 1)


def test_a_lesion_reaches_the_ends_of_diameters_that_cross_off_centre():
    # They cross at (25, 30): 5 to the left, 15 to the right, 2 up, 8 down.
    mask = lesion_mask((20, 30, 40, 30, 25, 28, 25, 38), (0, 0, 63, 63), (64, 64))
    for x, y in ((20, 30), (40, 30), (25, 28), (25, 38)):
        assert mask[x, y]
    for x, y in ((19, 30), (41, 30), (25, 27), (25, 39)):
        assert not mask[x, y]
    assert mask.sum() == pytest.approx(np.pi * (5 + 15) * (2 + 8) / 4, rel=0.1)


def test_a_tilted_lesion_and_its_box():
    ends = (20, 20, 40, 40, 35, 25, 25, 35)
    mask = lesion_mask(ends, (0, 0, 63, 63), (64, 64))
    assert mask.sum() == pytest.approx(np.pi * np.hypot(10, 10) * np.hypot(5, 5), rel=0.1)
    boxed = lesion_mask(ends, (20, 20, 30, 40), (64, 64))
    x, y = np.indices((64, 64))
    assert np.array_equal(boxed, mask & (x >= 20) & (x <= 30) & (y >= 20) & (y <= 40))


def test_a_lesion_without_a_second_diameter_is_not_lost():
    assert lesion_mask((20, 30, 40, 30, 22, 30, 38, 30), (0, 0, 63, 63), (64, 64))[30, 30]
    assert lesion_mask((20, 30, 20, 30, 20, 30, 20, 30), (0, 0, 63, 63), (64, 64))[20, 30]


# --- splits, folders and paths ---


def test_held_out_subjects_depend_on_the_seed_alone():
    items = [{"subject": f"s{number // 2}"} for number in range(40)]
    training, validation = hold_out(items, 0.2, 0)
    assert len(validation) == 8
    assert len(training) == 32
    assert hold_out(items[::-1], 0.2, 0)[1][::-1] == validation
    assert hold_out(items, 0.2, 1)[1] != validation
    assert hold_out(items, 0, 0) == (items, [])
    assert hold_out(items[:2], 0.5, 0) == (items[:2], [])


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("name", ["btcv", "word"])  # without and with a validation split
def test_a_share_out_of_range_is_refused(tmp_path, name, share):
    downloads.WRITERS[name](tmp_path / "d")
    with pytest.raises(ValueError, match="share of subjects for validation must be at least 0 and below 1"):
        make_datalist(name, tmp_path / "d", tmp_path / "list.json", validation_share=share)


def test_an_official_validation_split_is_not_enlarged(made):
    assert {item["subject"] for item in items_of(made["word"])["validation"]} == {"word_0001"}


@pytest.mark.parametrize("below", ["", "ACDC", "ACDC/database"])
def test_the_data_may_lie_up_to_two_levels_deeper(tmp_path, below):
    downloads.write_acdc(tmp_path / "d")
    assert make_datalist("acdc", tmp_path / "d" / below, tmp_path / "list.json").counts["test"] == (4, 2)


def test_what_macos_adds_to_archives_is_no_second_copy(tmp_path):
    downloads.write_word(tmp_path / "d" / "extracted")
    for folder in ("__MACOSX", ".Trashes"):
        downloads.rubbish(tmp_path / "d" / folder / "WORD-V0.1.0" / "imagesTr" / "._word_0002.nii.gz")
        downloads.rubbish(tmp_path / "d" / folder / "WORD-V0.1.0" / "labelsTr" / "._word_0002.nii.gz")
    assert make_datalist("word", tmp_path / "d", tmp_path / "list.json").counts["training"] == (3, 3)


def test_two_copies_of_a_data_set_are_refused(tmp_path):
    downloads.write_word(tmp_path / "d" / "one")
    downloads.write_word(tmp_path / "d" / "two")
    with pytest.raises(ValueError, match=r"holds the data set 2 times"):
        make_datalist("word", tmp_path / "d", tmp_path / "list.json")


def test_paths_are_relative_beside_the_data_and_absolute_elsewhere(tmp_path):
    downloads.write_btcv(tmp_path / "data" / "btcv")
    for output, relative in ((tmp_path / "data" / "list.json", True), (tmp_path / "lists" / "list.json", False)):
        output.parent.mkdir(exist_ok=True)
        make_datalist("btcv", tmp_path / "data" / "btcv", output)
        written = json.loads(output.read_text())["training"][0]["image"]
        assert Path(written).is_absolute() is not relative
        assert Path(read_datalist(output, "training")[0]["image"]).is_file()


# --- the command ---


def test_the_command_writes_the_list_and_says_what_is_in_it(tmp_path):
    downloads.write_word(tmp_path / "d", test_labels=False)
    result = mvg("word", tmp_path / "d", "--output", tmp_path / "list.json")
    assert result.exit_code == 0, result.output
    assert "training: 3 items of 3 subjects" in result.output
    assert "Note: 2 images" in result.output
    assert DATA_SETS["word"].terms in result.output
    assert len(read_datalist(tmp_path / "list.json", "validation")) == 1
    again = mvg("word", tmp_path / "d", "--output", tmp_path / "list.json")
    assert again.exit_code == 2
    assert "exists" in again.output
    assert mvg("word", tmp_path / "d", "--output", tmp_path / "list.json", "--overwrite").exit_code == 0


def test_the_share_and_the_seed_are_passed_on(tmp_path):
    downloads.write_btcv(tmp_path / "d")
    assert mvg("btcv", tmp_path / "d", "--output", tmp_path / "none.json", "--validation-share", 0).exit_code == 0
    assert not items_of(tmp_path / "none.json")["validation"]
    held_out = set()
    for seed in range(8):
        output = tmp_path / f"{seed}.json"
        assert mvg("btcv", tmp_path / "d", "--output", output, "--seed", seed).exit_code == 0
        held_out |= {item["subject"] for item in items_of(output)["validation"]}
    assert len(held_out) > 1


@pytest.mark.parametrize(("name", "folder", "output", "expected"), [
    ("ACDC ", "d", "list.json", "no maker for a data set 'ACDC ': choose one of acdc, amos-ct"),
    ("acdc", "nowhere", "list.json", "nowhere: no such folder"),
    ("acdc", "d", "list.json", "is not a download of ACDC, looked for training/patient001"),
    ("acdc", "d", "list.txt", "list.txt: cannot write this kind of file: choose .json"),
    ("acdc", "d", "nowhere/list.json", "does not exist: create it first"),
])
def test_bad_input_is_answered_in_one_line(tmp_path, name, folder, output, expected):
    (tmp_path / "d").mkdir()
    result = mvg(name, tmp_path / folder, "--output", tmp_path / output)
    assert result.exit_code == 2
    assert expected in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.json"))


# --- the page ---


def test_the_page_of_data_sets_tells_what_the_makers_say():
    page = (REPOSITORY / "docs" / "reference" / "data-sets.md").read_text(encoding="utf-8")
    rows = {cells[0].strip("` "): row for row in page.splitlines() if row.startswith("| `")
            for cells in [row.strip("|").split("|")]}
    assert set(rows) == set(DATA_SETS)
    for name, facts in DATA_SETS.items():
        assert facts.task in rows[name]
        assert facts.licence in rows[name]
        assert facts.terms in rows[name]
