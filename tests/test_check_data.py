"""The check of datalists: every defect that was put into a good set is found, named, and the only one found."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from miniature import write_ct, write_label_maps, write_mr, write_pictures
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.cli.check_data import MOST_OF_A_KIND
from mvg_core.training.check_data import check_data
from mvg_core.training.check_report import CheckReport, Finding
from mvg_core.training.datalist import convert_dataset_json, write_datalist
from mvg_core.training.recipe import TRAINING_SETS
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume

SPACING = (1.0, 1.0, 4.0)


class Folder:
    """A small data set that is in order: four subjects, three of them for training.

    Attributes:
        path: of the datalist.
        listing: its content; `save` writes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "list.json"
        items = [self.add(name, number) for number, name in enumerate("abcd")]
        self.listing: dict[str, Any] = {"name": "set", "modality": "MR", "labels": {"1": "block", "2": "rod"},
                                        "training": items[:3], "validation": items[3:]}

    def add(self, name: str, number: int, **changes: np.ndarray) -> dict[str, Any]:
        """Write the files of an item."""
        label = np.zeros((20, 18, 5), np.uint8)
        label[4:14, 4:12, 1:4], label[6:8, 6:8, 1:4] = 1, 2
        image = 100 * label + np.random.default_rng(number).normal(50, 5, label.shape)
        for kind, array in ({"image": image.astype(np.float32), "label": label} | changes).items():
            write_volume(Volume.from_array(array, SPACING), self.folder / f"{name}_{kind}.nii.gz", overwrite=True)
        return {"image": f"{name}_image.nii.gz", "label": f"{name}_label.nii.gz", "subject": name}

    def rewrite(self, name: str, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
        """Replace the voxels of a file, and its affine."""
        path = self.folder / name
        volume = read_volume(path)
        array = change(volume.array.copy())
        geometry = Geometry(array.shape, volume.geometry.affine if affine is None else affine)  # type: ignore[arg-type]
        write_volume(Volume(array, geometry), path, overwrite=True)

    def check(self, **options: Any) -> CheckReport:
        """Save and check."""
        self.path.write_text(json.dumps(self.listing))
        return check_data([self.path], **options)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def only(report: CheckReport) -> Finding:
    """The only finding."""
    assert [(f.severity, f.kind, f.where, f.message) for f in report.findings][1:] == []
    return report.findings[0]


# --- what is in order ---


def test_a_set_in_order_has_no_findings(folder):
    report = folder.check()
    assert report.findings == []
    assert (report.errors, report.warnings, report.lists) == (0, 0, [str(folder.path)])


def test_sizes_and_ranges_worked_by_hand(folder):
    folder.rewrite("b_label.nii.gz", lambda array: np.where(array == 2, 1, array))
    report = folder.check()
    training, validation = report.splits
    assert (training.dataset, training.split, training.items, training.subjects) == ("set", "training", 3, 3)
    assert (training.modalities, training.tasks) == ({"MR": 3}, {"segmentation": 3})
    assert training.shape == ([20, 18, 5], [20, 18, 5])
    assert training.spacing_mm == ([1, 1, 4], [1, 1, 4])
    low, high = training.intensity or (0, 0)
    assert 20 < low < 45
    assert 250 < high < 280
    # Spacing 1 x 1 x 4 mm: axial slices only, 5 of each; 2 x 192 x 192 bytes a slice.
    assert (training.slices, training.megabytes, validation.slices) == (15, 1, 5)
    # block: 10 x 8 x 3 voxels less the rod's 2 x 2 x 3, all of them in b; 4 mm^3 each.
    assert [(c.name, c.numbers, c.split, c.cases, c.voxels, pytest.approx(c.ml)) for c in report.classes] == [
        ("block", [1], "training", 3, 228 + 240 + 228, 0.696 * 4), ("block", [1], "validation", 1, 228, 0.228 * 4),
        ("rod", [2], "training", 2, 24, 0.024 * 4), ("rod", [2], "validation", 1, 12, 0.012 * 4)]


def test_ct_counts_its_two_windows(folder):
    folder.listing["modality"] = "CT"
    for name in "abcd":
        folder.rewrite(f"{name}_image.nii.gz", lambda array: array - 1000)
    report = folder.check()
    assert report.findings == []
    assert report.splits[0].slices == 30


@pytest.mark.parametrize("write", [write_mr, write_ct, write_label_maps, write_pictures])
def test_converted_folders_are_in_order(tmp_path, write):
    write_datalist(tmp_path / "list.json", convert_dataset_json(write(tmp_path / "set")))
    report = check_data([tmp_path / "list.json"])
    assert {finding.kind for finding in report.findings} <= {"no validation", "modality"}
    assert report.errors == 0
    assert report.splits[0].slices > 0


def test_several_processes_find_the_same(folder):
    folder.rewrite("a_image.nii.gz", lambda array: np.full_like(array, np.nan))
    assert folder.check(workers=2).to_json() == folder.check().to_json()


# --- one defect at a time ---


def nan(f: Folder) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array[1, 1, :2] = np.nan
        return array

    f.rewrite("b_image.nii.gz", spoil)


def truncated(f: Folder) -> None:
    content = gzip.decompress((f.folder / "b_image.nii.gz").read_bytes())
    (f.folder / "b_image.nii.gz").write_bytes(gzip.compress(content[:-200]))


def four_dimensional(f: Folder) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 5, 18, 20), np.float32), isVector=False),
                    str(f.folder / "b_image.nii.gz"))


def moved(mm: float) -> np.ndarray:
    affine = np.diag([*SPACING, 1.0])
    affine[0, 3] = mm
    return affine


def flipped(f: Folder) -> None:
    affine = np.diag([-1.0, 1.0, 4.0, 1.0])
    affine[0, 3] = 19
    f.rewrite("b_label.nii.gz", lambda array: array[::-1], affine)


def in_training(f: Folder, number: int, **changes: Any) -> None:
    f.listing["training"][number].update(changes)


def without(f: Folder, key: str) -> None:
    del f.listing["training"][1][key]


def copied(f: Folder, subject: str, split: str = "training") -> None:
    """The image of b, stored once more in another format and number type."""
    image = read_volume(f.folder / "b_image.nii.gz")
    write_volume(image.with_array(image.array.astype(np.float64)), f.folder / "copy.nrrd")
    label = "b_label.nii.gz" if split == "training" else "d_label.nii.gz"
    f.listing[split].append({"image": "copy.nrrd", "label": label, "subject": subject})


def unlabelled(f: Folder, split: str, number: int) -> None:
    for item in f.listing[split]:
        f.rewrite(item["label"], lambda array: np.where(array == number, 0, array))


DEFECTS: dict[str, tuple[Callable[[Folder], Any], str, str, str]] = {
    # files
    "missing image": (lambda f: (f.folder / "b_image.nii.gz").unlink(), "error", "missing file",
                      r"b_image.nii.gz is missing: correct the path, or remove the item"),
    "missing label": (lambda f: (f.folder / "b_label.nii.gz").unlink(), "error", "missing file", "b_label.nii.gz is"),
    "truncated": (truncated, "error", "unreadable", "b_image.nii.gz: not an image that can be read, or damaged"),
    "empty file": (lambda f: (f.folder / "b_image.nii.gz").write_bytes(b""), "error", "unreadable", "empty (0 bytes)"),
    "four dimensions": (four_dimensional, "error", "unreadable", "holds 2 frames, needed one volume"),
    "image is label": (lambda f: in_training(f, 1, label="b_image.nii.gz"), "error", "label", "is image and label at"),
    # image
    "nan": (nan, "error", "not finite", "b_image.nii.gz: holds 2 NaN/Inf voxels"),
    "constant": (lambda f: f.rewrite("b_image.nii.gz", lambda a: np.full_like(a, 7)), "error", "constant image",
                 "every voxel is 7"),
    "not ct": (lambda f: in_training(f, 1, modality="CT (HU)"), "warning", "modality", "no voxel is air (-500 HU"),
    "ct": (lambda f: f.rewrite("b_image.nii.gz", lambda a: a - 1000), "warning", "modality", "taken for air in CT"),
    "unit": (lambda f: [f.rewrite(f"b_{kind}.nii.gz", lambda a: a, np.diag([0.001, 0.001, 0.004, 1]))
                        for kind in ("image", "label")], "warning", "unusual spacing",
             "spacing 0.001 x 0.001 x 0.004 mm, others of this set have about 1 x 1 x 4 mm"),
    # grids
    "spacing": (lambda f: f.rewrite("b_label.nii.gz", lambda a: a, np.diag([1, 1, 8.0, 1])), "error", "grid",
                "does not cover the same place as"),
    "shifted": (lambda f: f.rewrite("b_label.nii.gz", lambda a: a, moved(30)), "error", "grid",
                "same shape and spacing, but 30.00 mm away or turned"),
    "shape": (lambda f: f.rewrite("b_label.nii.gz", lambda a: a[:10]), "error", "grid",
              "shape (10, 18, 5) instead of (20, 18, 5)"),
    "flipped": (flipped, "warning", "grid", "(axes LAS instead of RAS), so training resamples it"),
    "half a voxel": (lambda f: f.rewrite("b_label.nii.gz", lambda a: a, moved(0.5)), "warning", "grid",
                     "0.50 mm away or turned), so training resamples it"),
    # labels
    "unnamed": (lambda f: f.rewrite("b_label.nii.gz", lambda a: np.where(a == 2, 9, a)), "error", "unnamed label",
                "holds label 9 (12 voxels), which 'labels' do not name"),
    "fractions": (lambda f: f.rewrite("b_label.nii.gz", lambda a: a * np.float32(0.3)), "error", "label",
                  "holds fractions such as 0.3"),
    "negative": (lambda f: f.rewrite("b_label.nii.gz", lambda a: -a.astype(np.int16)), "error", "label", "-2 to 0"),
    "empty label": (lambda f: f.rewrite("b_label.nii.gz", np.zeros_like), "warning", "empty label", "no foreground"),
    "unused name": (lambda f: f.listing["labels"].update({"3": "ball"}), "warning", "unused label",
                    "no file shows the label 'ball'"),
    "not trained": (lambda f: unlabelled(f, "training", 2), "warning", "label not trained", "shows the label 'rod'"),
    "not validated": (lambda f: unlabelled(f, "validation", 2), "warning", "label not validated", "the label 'rod'"),
    # splits
    "subject": (lambda f: f.listing["validation"][0].update(subject="a"), "error", "subject on both sides",
                "subject 'a' is in 'training' and in 'validation'"),
    "subject in test": (lambda f: f.listing.update(test=[f.listing["training"][1]]), "error", "subject on both sides",
                        "subject 'b' is in 'training' and in 'test'"),
    "references of the test": (lambda f: f.listing.update(references=f.listing["validation"]), "error",
                               "subject on both sides", "is in 'validation' and in 'references'"),
    "listed twice": (lambda f: f.listing["training"].append(f.listing["training"][1]), "warning", "listed twice",
                     "lists the same files as"),
    "copy": (lambda f: copied(f, "e"), "warning", "duplicate", "remove one, or give both one subject"),
    "copy across": (lambda f: copied(f, "e", "validation"), "error", "duplicate", "and the splits share it: remove"),
    "no validation": (lambda f: f.listing.pop("validation"), "warning", "no validation", "no items in 'validation'"),
    "role": (lambda f: f.listing.update(role="unseen"), "error", "role", "has role 'unseen', only role 'train'"),
    # the list itself
    "no label": (lambda f: without(f, "label"), "error", "item", "has an 'image' but no 'label'"),
    "no image": (lambda f: without(f, "image"), "error", "item", "has a 'label' but no 'image'"),
    "misspelt key": (lambda f: in_training(f, 1, modalty="CT"), "warning", "unknown key", "do you mean 'modality'?"),
    "misspelt split": (lambda f: f.listing.update(refrences=[]), "warning", "unknown key", "do you mean 'references'?"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_found_and_nothing_else(folder, name):
    spoil, severity, kind, message = DEFECTS[name]
    spoil(folder)
    finding = only(folder.check())
    assert (finding.severity, finding.kind) == (severity, kind)
    assert message in finding.message
    assert finding.where.startswith(str(folder.path)) or finding.where == "data set 'set'"
    assert "\n" not in finding.message


def test_findings_name_list_split_number_and_subject(folder):
    (folder.folder / "c_image.nii.gz").write_bytes(b"")
    assert only(folder.check()).where == f"{folder.path}: training[2] (c)"


def test_constant_images_are_no_duplicates_of_each_other(folder):
    for name in "bd":
        folder.rewrite(f"{name}_image.nii.gz", np.zeros_like)
    assert [finding.kind for finding in folder.check().findings] == ["constant image"] * 2


def test_training_may_serve_as_references(folder):
    folder.listing["references"] = folder.listing["training"][:1]
    assert folder.check().findings == []


def test_the_same_scan_under_two_subjects_is_found_by_its_path(folder):
    folder.listing["test"] = [folder.listing["training"][0] | {"subject": "z"}]
    found = {(finding.severity, finding.kind) for finding in folder.check().findings}
    assert found == {("error", "file on both sides")}


def test_files_of_one_name_without_subjects_are_found(folder):
    for name in "ab":
        (folder.folder / name).mkdir()
        for kind in ("image", "label"):
            shutil.copy(folder.folder / f"{name}_{kind}.nii.gz", folder.folder / name / f"{kind}.nii.gz")
    folder.listing["training"] = [{"image": f"{name}/image.nii.gz", "label": f"{name}/label.nii.gz"} for name in "ab"]
    finding = only(folder.check())
    assert (finding.severity, finding.kind) == ("error", "subject")
    assert "give both items a 'subject'" in finding.message


def test_merged_labels_are_counted_where_they_went(folder):
    folder.listing.update(merge={"2": 1}, labels={"1": "block"})
    report = folder.check()
    assert report.findings == []
    assert [(size.name, size.voxels) for size in report.classes] == [("block", 720), ("block", 240)]


def test_labels_are_counted_by_name(folder):
    folder.rewrite("b_label.nii.gz", lambda array: np.array([0, 2, 1], np.uint8)[array])
    in_training(folder, 1, labels={"Block": 2, "rod": 1})
    report = folder.check()
    assert report.findings == []
    assert [(size.numbers, size.cases, size.voxels) for size in report.classes if size.split == "training"] == [
        ([1, 2], 3, 3 * 228), ([1, 2], 3, 36)]


def test_without_names_labels_are_called_by_their_numbers(folder):
    del folder.listing["labels"]
    report = folder.check()
    assert report.findings == []
    assert {size.name for size in report.classes} == {"label 1", "label 2"}


# --- image to image ---


@pytest.fixture
def pairs(folder) -> Folder:
    """Denoising: the images, and the same with more noise."""
    for name in "abcd":
        image = read_volume(folder.folder / f"{name}_image.nii.gz")
        noise = np.random.default_rng(ord(name)).normal(0, 9, image.array.shape).astype(np.float32)
        write_volume(image.with_array(image.array + noise), folder.folder / f"{name}_noisy.nii.gz")
    items = [{"source": f"{name}_noisy.nii.gz", "target": f"{name}_image.nii.gz", "subject": name} for name in "abcd"]
    folder.listing = {"name": "set", "modality": "MR", "task": "denoising", "training": items[:3],
                      "validation": items[3:]}
    return folder


def test_pairs_in_order_have_no_findings(pairs):
    report = pairs.check()
    assert report.findings == []
    assert (report.splits[0].slices, report.splits[0].tasks, report.classes) == (30, {"denoising": 3}, [])


def test_pairs_of_ct_have_one_window(pairs):
    pairs.listing["modality"] = "CT"
    for name in "abcd":
        for kind in ("image", "noisy"):
            pairs.rewrite(f"{name}_{kind}.nii.gz", lambda array: array - 1000)
    report = pairs.check()
    assert report.findings == []
    assert report.splits[0].slices == 30


@pytest.mark.parametrize(
    ("spoil", "severity", "kind"),
    [
        (lambda f: shutil.copy(f.folder / "b_image.nii.gz", f.folder / "b_noisy.nii.gz"), "warning", "identical pair"),
        (lambda f: in_training(f, 1, task="inpainting"), "error", "no hole"),
        (lambda f: f.rewrite("b_noisy.nii.gz", lambda a: a, moved(30)), "error", "grid"),
        (lambda f: without(f, "source"), "error", "item"),
        (lambda f: f.rewrite("b_noisy.nii.gz", lambda a: np.where(a > 200, np.nan, a)), "error", "not finite"),
    ],
)
def test_each_defect_of_a_pair_is_found(pairs, spoil, severity, kind):
    spoil(pairs)
    finding = only(pairs.check())
    assert (finding.severity, finding.kind) == (severity, kind)


def test_the_hole_of_an_inpainting_may_hold_anything(pairs):
    for name in "abcd":
        image = read_volume(pairs.folder / f"{name}_image.nii.gz")
        image.array[5:9, 5:9] = np.nan
        write_volume(image, pairs.folder / f"{name}_noisy.nii.gz", overwrite=True)
    pairs.listing["task"] = "inpainting"
    assert pairs.check().findings == []


def test_a_missing_contrast_does_not_hide_the_others(folder):
    in_training(folder, 1, image={"t1": "b_image.nii.gz", "t2": "none.nii.gz"})
    report = folder.check()
    assert only(report).kind == "missing file"
    assert report.splits[0].slices == 15


def test_contrasts_on_other_grids_are_found(folder):
    write_volume(Volume.from_array(np.arange(60.0).reshape(3, 4, 5)), folder.folder / "t2.nii.gz")
    in_training(folder, 1, image={"t1": "b_image.nii.gz", "t2": "t2.nii.gz"})
    kinds = {finding.kind for finding in folder.check().findings}
    assert kinds == {"different grids", "unusual spacing"}


# --- several lists ---


def test_what_is_wrong_with_one_item_or_list_does_not_hide_the_others(folder, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for name in "ab":
        (folder.folder / f"{name}_image.nii.gz").write_bytes(b"nonsense")
    (folder.folder / "d_label.nii.gz").unlink()
    folder.check()
    report = check_data([tmp_path / "broken.json", tmp_path / "none.json", folder.path])
    assert sorted((finding.kind, Path(finding.where.partition(": ")[0]).name) for finding in report.findings
                  if finding.severity == "error") == [
        ("datalist", "broken.json"), ("datalist", "none.json"), ("missing file", "list.json"),
        ("unreadable", "list.json"), ("unreadable", "list.json")]
    assert report.splits[0].shape == ([20, 18, 5], [20, 18, 5])  # of c


def test_leaks_between_lists_are_found(folder, tmp_path):
    folder.check()
    (tmp_path / "other.json").write_text(json.dumps({"name": "other", "labels": folder.listing["labels"], "test": [
        folder.listing["training"][0]]}))
    report = check_data([folder.path, tmp_path / "other.json"])
    assert {(finding.kind, finding.severity) for finding in report.findings} == {
        ("file on both sides", "error"), ("no training", "warning")}


def test_a_mixture_is_checked_list_by_list(folder, tmp_path):
    folder.check()
    (tmp_path / "mixture.json").write_text(json.dumps({"datalists": [{"path": "list.json", "weight": 2}, "none.json"]}))
    report = check_data([tmp_path / "mixture.json"])
    assert report.lists == [str(folder.path)]
    assert only(report).message.startswith("no datalist ")


def test_errors_come_first(folder):
    del folder.listing["validation"]
    (folder.folder / "b_image.nii.gz").unlink()
    assert [finding.kind for finding in folder.check().findings] == ["missing file", "no validation"]


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "list.json").write_text('{"train": []}')
    assert only(check_data([tmp_path / "list.json"])).kind == "empty"


def test_progress_is_told(folder):
    told: list[tuple[str, int, int]] = []
    folder.check(progress=lambda *now: told.append(now))
    assert told == [("check", done, 4) for done in (1, 2, 3, 4)]


# --- the command ---


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["check-data", *map(str, arguments)])


def test_the_command_shows_what_is_in_order_and_exits_with_0(folder):
    folder.check()
    result = run(folder.path)
    assert result.exit_code == 0
    assert "0 errors, 0 warnings in 4 items of 1 list" in result.output
    for text in ("set", "training", "20 x 18 x 5", "1 x 1 x 4", "block", "3  2.74  684"):
        assert text in result.output


def test_the_command_exits_with_0_on_warnings_and_2_on_errors(folder):
    folder.listing["labels"]["3"] = "ball"
    folder.check()
    result = run(folder.path)
    assert (result.exit_code, "warning: data set 'set': no file shows the label 'ball'" in result.output) == (0, True)
    (folder.folder / "b_image.nii.gz").unlink()
    result = run(folder.path)
    assert result.exit_code == 2
    assert f"error: {folder.path}: training[1] (b): {folder.folder / 'b_image.nii.gz'} is missing" in result.output
    assert "1 error, 1 warning in 4 items of 1 list" in result.output
    assert run(folder.folder / "none.json").exit_code == 2


def test_the_report_is_written_as_json(folder, tmp_path):
    nan(folder)
    report = folder.check()
    assert run(folder.path, "--json", tmp_path / "report.json").exit_code == 2
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert (written["errors"], written["warnings"]) == (1, 0)
    assert written["findings"][0]["kind"] == "not finite"
    assert written["splits"][0]["megabytes"] == 1
    result = run(folder.path, "--json", tmp_path / "report.json")
    assert (result.exit_code, "exists: choose another name" in result.output) == (2, True)
    assert run(folder.path, "--json", tmp_path / "report.json", "--overwrite").exit_code == 2


def test_the_list_itself_is_not_overwritten(folder):
    folder.check()
    before = folder.path.read_bytes()
    result = run(folder.path, "--json", folder.path, "--overwrite")
    assert (result.exit_code, "is read by this run" in result.output) == (2, True)
    assert folder.path.read_bytes() == before


def test_many_findings_of_a_kind_are_counted(folder):
    folder.listing["training"] *= 6
    folder.check()
    result = run(folder.path)
    assert result.output.count("lists the same files as") == MOST_OF_A_KIND
    assert "warning: 5 more of the kind 'listed twice': see --json FILE" in result.output


# --- real data ---


@pytest.mark.shared
@pytest.mark.parametrize("name", ["brain_ms", "breast_us", "carotid_us", "fetal_head_us"])
def test_shared_training_sets_are_in_order(shared_folder, tmp_path, name):
    assert name in TRAINING_SETS
    write_datalist(tmp_path / "list.json", convert_dataset_json(shared_folder / "data" / name))
    report = check_data([tmp_path / "list.json"])
    assert report.errors == 0, report.findings
    listing = json.loads((shared_folder / "data" / name / "dataset.json").read_text())
    assert {split.split: split.items for split in report.splits} == {
        split: len(listing[split]) for split in ("training", "validation") if listing[split]}
    names = {label for number, label in listing["labels"].items() if number != "0"}
    assert {size.name for size in report.classes} == names


@pytest.mark.shared
@pytest.mark.parametrize("name", ["heart_echo", "chest_xray"])
def test_shared_unseen_sets_are_in_order_as_they_are(shared_folder, name):
    report = check_data([shared_folder / "data" / name / "dataset.json"])
    assert report.errors == 0, report.findings
    assert [split.split for split in report.splits] == ["validation", "test", "references"]
