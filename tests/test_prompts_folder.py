"""The folder of reference cases: what is kept of a case, how it is read back, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bundles import LABELS, oblique_affine, subject
from typer.testing import CliRunner

from mvg_core.bundle.prompts_folder import Case, PromptsError, add_case, common_task, read_cases, remove_case
from mvg_core.cli import app
from mvg_core.demo import load_template, reference_slice
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, GeometryError, Volume
from mvg_core.volume_io import VolumeReadError, read_volume, write_volume


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Image and label map of a phantom, with a name in the image's header."""
    image, label = subject(0)
    paths = {"image": tmp_path / "scan.nii.gz", "label": tmp_path / "label.nii.gz"}
    stored = nib.Nifti1Image(image.array, image.geometry.affine)
    stored.header["descrip"] = b"DOE^JANE"
    nib.save(stored, paths["image"])
    write_volume(label, paths["label"])
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "prompts"


def mvg(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- what is kept ---


def test_a_case_comes_back_as_it_was_added(folder: Path, files: dict[str, Path]) -> None:
    added = add_case(folder, files["image"], files["label"], name="a", labels={**LABELS, 9: "not in it"}, slices=[3, 5])
    assert read_cases(folder) == (added,)
    assert added.labels == LABELS
    reference, (image, label) = added.read(), subject(0)
    np.testing.assert_array_equal(reference.image.array, image.array)
    np.testing.assert_array_equal(reference.label.array, label.array)
    assert reference.image.geometry.is_close(image.geometry)
    assert reference.slices == (3, 5)


def test_nothing_of_the_header_but_the_grid_is_kept(folder: Path, files: dict[str, Path]) -> None:
    case = add_case(folder, files["image"], files["label"], name="a")
    before, after = (nib.Nifti1Image.from_filename(path) for path in (files["image"], case.image))
    assert b"DOE" in before.header.binaryblock
    assert b"DOE" not in after.header.binaryblock
    np.testing.assert_allclose(np.asarray(after.affine), oblique_affine(), atol=1e-5)


def test_paths_are_relative_so_that_the_folder_can_be_moved(folder: Path, files: dict[str, Path]) -> None:
    add_case(folder, files["image"], files["label"], name="a")
    os.rename(folder, folder.with_name("elsewhere"))
    assert read_cases(folder.with_name("elsewhere"))[0].read().name == "a"


def test_a_label_map_on_another_grid_is_brought_onto_the_image(folder: Path, tmp_path: Path) -> None:
    image, label = subject(0)
    shifted = oblique_affine()
    shifted[:3, 3] += shifted[:3, :3] @ (2, 0, 0)
    part = Volume(label.array[2:], Geometry((24, 24, 22), shifted))
    case = add_case(folder, image, part, name="a")
    assert read_volume(case.label).geometry.is_close(image.geometry)
    np.testing.assert_array_equal(read_volume(case.label).array[3:], label.array[3:])


def test_labels_without_a_name_are_called_by_their_number(folder: Path, files: dict[str, Path]) -> None:
    case = add_case(folder, files["image"], files["label"], name="a", labels={2: "ball"})
    assert case.labels == {1: "label 1", 2: "ball", 3: "label 3"}


def test_a_case_can_be_replaced_by_its_own_files(folder: Path, files: dict[str, Path]) -> None:
    case = add_case(folder, files["image"], files["label"], name="a")
    add_case(folder, files["image"], files["label"], name="b")
    add_case(folder, case.image, case.label, name="a", labels=LABELS, overwrite=True)
    assert [(case.name, len(case.labels)) for case in read_cases(folder)] == [("b", 0), ("a", 3)]


def test_removing_a_case_deletes_its_files_and_no_others(folder: Path, files: dict[str, Path]) -> None:
    for name in ("a", "b"):
        add_case(folder, files["image"], files["label"], name=name)
    remove_case(folder, "a")
    assert [case.name for case in read_cases(folder)] == ["b"]
    assert sorted(path.name for path in folder.iterdir()) == ["b", "prompts.json"]


@pytest.mark.parametrize("name", ["../x", "x"])
def test_removing_a_case_that_was_written_by_hand_deletes_nothing(folder: Path, files: dict[str, Path], name: str
                                                                  ) -> None:
    (folder / name).mkdir(parents=True)
    entry = {"name": name, "image": str(files["image"]), "label": str(files["label"])}
    (folder / "prompts.json").write_text(json.dumps({"cases": [entry]}))
    remove_case(folder, name)
    assert read_cases(folder) == ()
    assert files["image"].is_file()
    assert (folder / name).is_dir()


def test_a_hole_and_the_task_are_kept(folder: Path) -> None:
    image, label = subject(0)
    mask = folder.parent / "mask.nii.gz"
    write_volume(label.with_array((label.array == 2).astype(np.uint8)), mask)
    case = add_case(folder, image, image, name="a", task="inpainting", hole=mask)
    (read,) = read_cases(folder)
    assert (read.task, read.hole) == ("inpainting", case.hole)
    hole = read.read().hole
    assert hole is not None
    assert hole.array.sum() == (label.array == 2).sum()


def test_merged_labels_are_read_as_one(files: dict[str, Path]) -> None:
    case = Case("a", files["image"], files["label"], merge={3: 1, 2: 0})
    assert set(np.unique(case.read().label.array)) == {0, 1}


# --- several cases ---


def case_of(name: str, labels: dict[int, str], task: Any = "segmentation") -> Case:
    return Case(name, Path("i"), Path("l"), task, labels)


def test_names_of_all_cases_are_known_together() -> None:
    assert common_task([case_of("a", {1: "liver"}), case_of("b", {1: "liver", 2: "spleen"})]) == Task.segmentation(
        {1: "liver", 2: "spleen"})


def test_a_case_without_names_lets_all_its_labels_count() -> None:
    assert common_task([case_of("a", {1: "liver"}), case_of("b", {})]) == Task.segmentation()


def test_one_number_with_two_names_is_refused() -> None:
    with pytest.raises(PromptsError, match="case 'a' calls label 1 'liver', case 'b' calls it 'spleen'"):
        common_task([case_of("a", {1: "liver"}), case_of("b", {1: "spleen"})])


def test_two_tasks_are_refused() -> None:
    with pytest.raises(PromptsError, match=r"several tasks \(denoising, segmentation\)"):
        common_task([case_of("a", {}), case_of("b", {}, "denoising")])


# --- what is refused; nothing is left behind ---


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "-x"])
def test_names_that_are_no_file_names_are_refused(folder: Path, files: dict[str, Path], name: str) -> None:
    with pytest.raises(PromptsError, match="cannot be the name of a case"):
        add_case(folder, files["image"], files["label"], name=name)
    assert not folder.exists()


def test_a_name_that_is_taken_is_refused(folder: Path, files: dict[str, Path]) -> None:
    add_case(folder, files["image"], files["label"], name="a")
    with pytest.raises(PromptsError, match="has a case 'a' already"):
        add_case(folder, files["image"], files["label"], name="a")


def test_examples_that_cannot_serve_are_refused_and_leave_nothing(folder: Path, files: dict[str, Path]) -> None:
    image, label = subject(0)
    far = oblique_affine()
    far[:3, 3] += 1000
    refused: list[tuple[Any, Any, type[Exception], str]] = [
        (files["image"], folder / "none.nii.gz", VolumeReadError, "no such file"),
        (image, label.with_array(label.array * 0), ValueError, "label is empty"),
        (image, label.with_array(label.array / 2), ValueError, "fractions"),
        (image.with_array(image.array * 0), label, ValueError, "constant"),
        (image, Volume(label.array, Geometry(label.geometry.shape, far)), GeometryError, "do not overlap")]
    for picture, answer, kind, words in refused:
        with pytest.raises(kind, match=words):
            add_case(folder, picture, answer, name="a")
        assert not folder.exists()


def test_names_of_labels_belong_to_segmentation(folder: Path) -> None:
    image, _ = subject(0)
    with pytest.raises(PromptsError, match="names of labels belong to segmentation"):
        add_case(folder, image, image, name="a", task="denoising", labels=LABELS)


def test_a_failed_write_keeps_the_older_case(folder: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
                                             ) -> None:
    add_case(folder, files["image"], files["label"], name="a", labels=LABELS)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("mvg_core.bundle.prompts_folder.write_volume", full)
    with pytest.raises(OSError, match="no space left"):
        add_case(folder, files["image"], files["label"], name="a", overwrite=True)
    assert read_cases(folder)[0].read().label.array.any()
    assert sorted(path.name for path in folder.iterdir()) == ["a", "prompts.json"]


@pytest.mark.parametrize(("content", "words"), [
    ("{", "cannot be understood"),
    ("[]", "cannot be understood"),
    ('{"cases": [{"name": "a", "image": "i"}]}', "case 1 cannot be understood ('label' is missing)"),
    ('{"cases": [{"name": "a", "image": "i", "label": "l", "lable": 1}]}', "unknown key 'lable'"),
    ('{"cases": [{"name": "a", "image": "i", "label": "l", "task": "magic"}]}', "task kind 'magic' is unknown"),
    ('{"cases": [{"name": "a", "image": "i", "label": "l", "labels": {"300": "x"}}]}', "label 300 is outside"),
    ('{"cases": [{"name": "a", "image": "i", "label": "l"}, {"name": "a", "image": "i", "label": "l"}]}',
     "two cases with the name 'a'"),
    ('{"cases": ["a"]}', "case 1 cannot be understood"),
])
def test_a_list_that_makes_no_sense_is_refused_by_its_path(folder: Path, content: str, words: str) -> None:
    folder.mkdir()
    (folder / "prompts.json").write_text(content)
    with pytest.raises(PromptsError) as caught:
        read_cases(folder)
    assert str(folder / "prompts.json") in str(caught.value)
    assert words in str(caught.value)


# --- the command ---


def test_the_command_adds_lists_and_removes(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"1": "block", "2": "ball"}))
    added = mvg("prompts", "add", files["image"], files["label"], "--folder", folder, "--labels", names)
    assert added.exit_code == 0, added.output
    assert mvg("prompts", "list", "--folder", folder).output.split("\n")[1].split() == [
        "scan", "segmentation", "1", "block,", "2", "ball,", "3", "label", "3"]
    assert mvg("prompts", "remove", "scan", "--folder", folder).exit_code == 0
    assert "has no reference case: mvg prompts add" in mvg("prompts", "list", "--folder", folder).output


@pytest.mark.parametrize(("arguments", "words"), [
    (("remove", "scan"), "has no case 'scan': it has none"),
    (("add", "none.nii.gz", "none.nii.gz"), "no such file"),
])
def test_the_command_refuses_in_one_line(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    result = mvg("prompts", *arguments, "--folder", folder)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_the_folder_is_that_of_the_bundle_here(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                               ) -> None:
    inside = tmp_path / "work" / "bundle"
    (inside / "configs").mkdir(parents=True)
    (inside / "configs" / "inference.json").touch()
    for here in (inside, inside.parent):
        monkeypatch.chdir(here)
        assert mvg("prompts", "add", files["image"], files["label"], "--name", here.name).exit_code == 0
    assert [case.name for case in read_cases(inside / "prompts")] == ["bundle", "work"]


def test_the_demo_case_is_the_brain_template_with_one_labelled_slice(folder: Path) -> None:
    result = mvg("prompts", "demo", "--folder", folder)
    assert result.exit_code == 0, result.output
    (case,) = read_cases(folder)
    reference, template = case.read(), load_template()
    number = reference_slice(template.truth.array)
    np.testing.assert_array_equal(reference.label.array[:, :, number], template.truth.array[:, :, number])
    assert np.flatnonzero(reference.label.array.any((0, 1))).tolist() == [number]
    assert case.labels == {1: "grey matter", 2: "white matter"}
