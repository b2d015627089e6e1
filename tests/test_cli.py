"""The command line with real files: what it writes, what it says when something is wrong, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import typer
from tiny import TINY, write_weights
from typer.testing import CliRunner

from mvg_core import __version__, report, volume_io
from mvg_core.cli import app
from mvg_core.job import numbered
from mvg_core.network import create_network
from mvg_core.network.config import PRESETS, NetworkConfig
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "cli_options.json"
SHAPE = (20, 24, 6)
LABELLED = 3
TINY_VIT = NetworkConfig(architecture="vit", size=16, widths=(16,), heads=2, depth=3, patch=8, position_grid=2,
                         merge_after=1, feature_blocks=(1, 2), decoder_width=4)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.pt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """image.nii.gz, label.nii.gz (one slice of it labelled), other.nii.gz and other_label.nii.gz; empty otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERM", "dumb")
    for seed, name in enumerate(("image", "other")):
        write_volume(Volume.from_array(image_array(seed), (1, 1, 2.5)), f"{name}.nii.gz")
    write_volume(Volume.from_array(label_array(), (1, 1, 2.5)), "label.nii.gz")
    whole = np.repeat(label_array()[:, :, LABELLED, None], SHAPE[2], axis=2)
    write_volume(Volume.from_array(whole, (1, 1, 2.5)), "other_label.nii.gz")
    return tmp_path


def image_array(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.float32)


def label_array() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[4:12, 6:14, LABELLED] = 1
    label[13:18, 6:14, LABELLED] = 5
    return label


def save(array: np.ndarray, name: str, affine: np.ndarray | None = None) -> str:
    """A NIfTI file of any number of axes."""
    nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2.5, 1]) if affine is None else affine), name)
    return name


def mvg(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def predict(weights: Path, folder: Path) -> Callable[..., Any]:
    """`mvg predict` with what it needs, unless told otherwise."""

    def run(*more: object, query: str = "image.nii.gz", references: tuple[str, ...] = ("image.nii.gz", "label.nii.gz"),
            output: str = "out.nii.gz", task: str = "segmentation") -> Any:
        pairs = [word for pair in zip(references[::2], references[1::2], strict=True)
                 for word in ("--reference", *pair)]
        return mvg("predict", query, *pairs, "--task", task, "--output", output, "--weights", weights, "--threads", 1,
                   *more)

    return run


def said(result: Any) -> str:
    """Everything that was printed, on one line."""
    return re.sub(r"[\s│]+", " ", result.output)


def refused(result: Any, *expected: str) -> None:
    """Exit code 2, a message with all of this, no traceback, and no file that was not there."""
    message = said(result)
    for text in expected:
        assert text in message, message
    assert "Traceback" not in message
    assert result.exit_code == 2, message
    assert not Path("out.nii.gz").exists()
    assert not [path for path in Path.cwd().rglob(".*") if path.is_file()]


def files() -> set[str]:
    return {str(path.relative_to(Path.cwd())) for path in Path.cwd().rglob("*") if path.is_file()}


# --- what works ---


def test_one_labelled_slice_becomes_a_volume_with_all_outputs(predict: Callable[..., Any]) -> None:
    Path("names.json").write_text('{"1": "left lobe", "9": "unused"}')
    before = files()
    result = predict("--confidence", "sure.nii.gz", "--preview", "look.png", "--report", "report.json",
                     "--names", "names.json")
    assert result.exit_code == 0, result.output
    assert files() - before == {"out.nii.gz", "sure.nii.gz", "look.png", "report.json"}
    image, answer, sure = (read_volume(name) for name in ("image.nii.gz", "out.nii.gz", "sure.nii.gz"))
    assert answer.geometry.is_close(image.geometry)
    assert answer.array.dtype == np.uint8
    assert set(np.unique(answer.array)) <= {0, 1, 5}
    assert np.array_equal(answer.array[:, :, LABELLED], label_array()[:, :, LABELLED])
    assert sure.array.min() >= 0
    assert sure.array.max() <= 1
    assert sitk.ReadImage("look.png").GetNumberOfComponentsPerPixel() == 3
    written = json.loads(Path("report.json").read_text())
    assert written["labels"] == {"1": "left lobe", "5": "label 5"}
    assert written["query"] == "image.nii.gz"
    assert written["references"] == [{"name": "reference 1", "image": "image.nii.gz", "label": "label.nii.gz"}]
    assert written["prompts"] == [{"reference": "reference 1", "slices": [LABELLED]}]
    assert len(written["checkpoint_sha256"]) == 64
    assert written["versions"]["mvg-core"] == __version__
    row, inside = written["found"][0], answer.array == 1
    assert (row["label"], row["voxels"]) == (1, inside.sum())
    assert row["volume_ml"] == pytest.approx(inside.sum() * 2.5e-3, abs=1e-4)
    assert row["mean_confidence"] == pytest.approx(sure.array[inside].mean(), abs=1e-4)
    assert "left lobe" in result.output
    assert "out.nii.gz" in result.output


def test_references_of_other_images_and_equals_signs(predict: Callable[..., Any]) -> None:
    result = predict("--reference=image.nii.gz", "label.nii.gz", "--plane", "axial", "--report", "r.json",
                     references=("other.nii.gz", "other_label.nii.gz"))
    assert result.exit_code == 0, result.output
    prompts = json.loads(Path("r.json").read_text())["prompts"]
    used = [(prompt["reference"], len(prompt["slices"])) for prompt in prompts]
    assert used == [("reference 2", 1), ("reference 1", 6)]


def test_named_slices_alone_are_the_example(predict: Callable[..., Any]) -> None:
    result = predict("--reference-slices", "1, 4", "--report", "r.json", "--plane", "axial",
                     references=("other.nii.gz", "other_label.nii.gz"))
    assert result.exit_code == 0, result.output
    assert [prompt["slices"] for prompt in json.loads(Path("r.json").read_text())["prompts"]] == [[1, 4]]


@pytest.mark.parametrize("task", ["denoising", "inpainting", "synthesis"])
def test_images_are_painted_by_example(predict: Callable[..., Any], task: str) -> None:
    hole = np.zeros(SHAPE, np.uint8)
    hole[8:10, 8:10, 2] = 1
    save(hole, "hole.nii.gz")
    options = ["--hole", "hole.nii.gz"] if task == "inpainting" else []
    result = predict(*options, "--preview", "look.png", "--report", "r.json", task=task,
                     references=("other.nii.gz", "other.nii.gz"))
    assert result.exit_code == 0, result.output
    answer = read_volume("out.nii.gz").array
    assert answer.dtype == np.float32
    if task == "inpainting":
        assert np.array_equal(answer[hole == 0], image_array()[hole == 0])
        assert not np.array_equal(answer[hole == 1], image_array()[hole == 1])
    assert json.loads(Path("r.json").read_text())["found"] == []


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".seg.nrrd", ".mha"])
def test_other_formats_keep_the_grid(predict: Callable[..., Any], suffix: str) -> None:
    assert predict(output=f"out{suffix}").exit_code == 0
    assert read_volume(f"out{suffix}").geometry.is_close(read_volume("image.nii.gz").geometry)


def test_a_window_and_overwriting(predict: Callable[..., Any]) -> None:
    Path("out.nii.gz").write_bytes(b"old")
    result = predict("--window", "50", "150", "--overwrite", "--report", "r.json")
    assert result.exit_code == 0, result.output
    assert read_volume("out.nii.gz").array.shape == SHAPE
    intensity = json.loads(Path("r.json").read_text())["intensity"]
    assert (intensity["low"], intensity["high"]) == (50, 150)


def test_pictures_in_colour_are_read_as_luminance_with_a_warning(predict: Callable[..., Any]) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (18, 22, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), "colour.png")
    label = np.zeros((18, 22), np.uint8)
    label[4:9, 4:9] = 1
    sitk.WriteImage(sitk.GetImageFromArray(label), "label.png")
    result = predict("--report", "r.json", query="colour.png", references=("colour.png", "label.png"), output="out.png")
    assert result.exit_code == 0, result.output
    assert result.output.count("Warning:") == 1
    assert "luminance" in said(result)
    assert "luminance" in json.loads(Path("r.json").read_text())["warnings"][0]
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage("out.png")), label)


def test_a_picture_without_noise_is_a_picture_again(predict: Callable[..., Any]) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (18, 22)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(grey), "grey.png")
    result = predict(query="grey.png", references=("grey.png", "grey.png"), output="out.png", task="denoising")
    assert result.exit_code == 0, result.output
    assert sitk.ReadImage("out.png").GetSize() == (22, 18)


@pytest.mark.parametrize("shape", [(20, 24, 1), (20, 1, 6), (1, 24, 6), (20, 24, 2), (1, 1, 6), (3, 2, 1)])
def test_thin_volumes(predict: Callable[..., Any], shape: tuple[int, int, int]) -> None:
    save(np.random.default_rng(0).random(shape).astype(np.float32), "thin.nii.gz")
    label = np.zeros(shape, np.uint8)
    label[: (shape[0] + 1) // 2, : (shape[1] + 1) // 2, shape[2] // 2] = 1
    save(label, "thin_label.nii.gz")
    result = predict(query="thin.nii.gz", references=("thin.nii.gz", "thin_label.nii.gz"))
    assert result.exit_code == 0, result.output
    assert read_volume("out.nii.gz").array.shape == shape


def test_a_label_on_another_grid_is_resampled_where_they_overlap(predict: Callable[..., Any]) -> None:
    finer = np.repeat(np.repeat(label_array(), 2, axis=0), 2, axis=1)
    save(finer, "finer.nii.gz", np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 2.5, 0], [0, 0, 0, 1.0]]))
    result = predict(references=("image.nii.gz", "finer.nii.gz"))
    assert result.exit_code == 0, result.output
    assert np.array_equal(read_volume("out.nii.gz").array[:, :, LABELLED], label_array()[:, :, LABELLED])


def test_whole_numbers_stored_as_fractions_are_a_label_map(predict: Callable[..., Any]) -> None:
    save(label_array().astype(np.float64), "float.nii.gz")
    assert predict(references=("image.nii.gz", "float.nii.gz")).exit_code == 0


def test_a_reference_of_another_modality_is_used_with_a_warning(predict: Callable[..., Any]) -> None:
    ct = image_array(2)
    ct[:4] = -1000
    save(ct, "ct.nii.gz")
    result = predict("--report", "r.json", references=("ct.nii.gz", "label.nii.gz"))
    assert result.exit_code == 0, result.output
    assert "Warning:" in result.output
    assert "CT" in said(result)
    assert "CT" in json.loads(Path("r.json").read_text())["warnings"][0]


# --- several frames ---


@pytest.fixture
def cine(folder: Path) -> np.ndarray:
    """cine.nii.gz with three frames."""
    array = np.stack([image_array(seed) for seed in (0, 7, 8)], axis=-1)
    save(array, "cine.nii.gz")
    return array


def test_one_frame_is_chosen(predict: Callable[..., Any], cine: np.ndarray) -> None:
    result = predict("--frame", 2, "--report", "r.json", query="cine.nii.gz",
                     references=("cine.nii.gz", "label.nii.gz"))
    assert result.exit_code == 0, result.output
    answer = read_volume("out.nii.gz").array  # the example was taken from the same frame, so its labels are kept
    assert np.array_equal(answer[:, :, LABELLED], label_array()[:, :, LABELLED])
    assert json.loads(Path("r.json").read_text())["frame"] == 2


def test_all_frames_are_written_one_by_one(predict: Callable[..., Any], cine: np.ndarray) -> None:
    before = files()
    result = predict("--frame", "all", "--reference-frame", 1, "--confidence", "sure.nrrd", "--report", "r.json",
                     query="cine.nii.gz", references=("cine.nii.gz", "label.nii.gz"))
    assert result.exit_code == 0, result.output
    numbers = ("000", "001", "002")
    assert files() - before == {"r.json", *(f"out_frame{n}.nii.gz" for n in numbers),
                                *(f"sure_frame{n}.nrrd" for n in numbers)}
    labelled = [read_volume(f"out_frame{n}.nii.gz").array[:, :, LABELLED] for n in numbers]
    kept = [np.array_equal(label, label_array()[:, :, LABELLED]) for label in labelled]
    assert kept == [False, True, False]
    assert [one["frame"] for one in json.loads(Path("r.json").read_text())["frames"]] == [0, 1, 2]


def test_frames_that_are_not_chosen_or_not_there_are_named(predict: Callable[..., Any], cine: np.ndarray) -> None:
    refused(predict(query="cine.nii.gz"), "cine.nii.gz", "3 frames", "0 to 2", "--frame")
    refused(predict("--frame", 3, query="cine.nii.gz"), "cine.nii.gz", "no frame 3", "0 to 2")
    refused(predict("--frame", "first", query="cine.nii.gz"), "first", "'all'")
    refused(predict("--frame", 1), "image.nii.gz", "no frame 1", "it holds 1")
    refused(predict("--frame", "all", query="cine.nii.gz", references=("cine.nii.gz", "label.nii.gz")),
            "cine.nii.gz", "--reference-frame")
    refused(predict(references=("cine.nii.gz", "label.nii.gz")), "cine.nii.gz", "--reference-frame")


@pytest.mark.parametrize(("name", "expected"), [
    ("a.nii.gz", "a_frame007.nii.gz"), ("a.b.nrrd", "a.b_frame007.nrrd"), ("A.SEG.NRRD", "A_frame007.SEG.NRRD"),
])
def test_the_number_of_a_frame_stands_before_the_suffix(name: str, expected: str) -> None:
    assert numbered(Path("x") / name, 7) == Path("x") / expected


# --- bad images ---


def test_missing_empty_and_damaged_files_are_named(predict: Callable[..., Any]) -> None:
    refused(predict(query="nothing.nii.gz"), "nothing.nii.gz", "no such file")
    Path("empty.nii.gz").touch()
    refused(predict(query="empty.nii.gz"), "empty.nii.gz", "0 bytes")
    Path("text.nii.gz").write_text("no image")
    refused(predict(references=("image.nii.gz", "text.nii.gz")), "text.nii.gz")
    content = Path("image.nii.gz").read_bytes()
    Path("half.nii.gz").write_bytes(content[: len(content) // 2])
    refused(predict(query="half.nii.gz"), "half.nii.gz", "truncated")
    refused(predict(references=("half.nii.gz", "label.nii.gz")), "half.nii.gz", "truncated")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(predict: Callable[..., Any], bad: float) -> None:
    image = image_array()
    image[0, 0, :2] = bad
    save(image, "bad.nii.gz")
    refused(predict(query="bad.nii.gz"), "bad.nii.gz", "2 NaN/Inf voxels")
    refused(predict(references=("bad.nii.gz", "label.nii.gz")), "bad.nii.gz", "2 NaN/Inf voxels")


def test_constant_images_are_refused(predict: Callable[..., Any]) -> None:
    save(np.full(SHAPE, 7, np.int16), "flat.nii.gz")
    refused(predict(query="flat.nii.gz"), "flat.nii.gz", "constant")
    refused(predict(references=("flat.nii.gz", "label.nii.gz")), "flat.nii.gz", "reference 1", "constant")


def test_a_singular_affine_is_refused(predict: Callable[..., Any]) -> None:
    image = nib.Nifti1Image(image_array(), None)
    image.header["sform_code"] = 1
    for row, values in (("srow_x", (1, 0, 0, 0)), ("srow_y", (0, 0, 0, 0)), ("srow_z", (0, 0, 1, 0))):
        image.header[row] = values
    image.header["qform_code"] = 0
    nib.save(image, "singular.nii.gz")
    refused(predict(query="singular.nii.gz"), "singular.nii.gz")


# --- bad labels ---


@pytest.mark.parametrize(("label", "expected"), [
    (np.zeros(SHAPE, np.uint8), "empty"),
    (label_array() * 0.3, "fraction"),
    (-label_array().astype(np.int16), "from -5 to 0"),
    (label_array().astype(np.int16) * 100, "500"),
])
def test_unusable_labels_are_refused(predict: Callable[..., Any], label: np.ndarray, expected: str) -> None:
    save(label, "bad.nii.gz")
    refused(predict(references=("image.nii.gz", "bad.nii.gz")), "bad.nii.gz", expected)


def test_a_label_elsewhere_in_space_is_refused(predict: Callable[..., Any]) -> None:
    affine = np.diag([1, 1, 2.5, 1.0])
    affine[:3, 3] = 500
    save(label_array(), "far.nii.gz", affine)
    refused(predict(references=("image.nii.gz", "far.nii.gz")), "far.nii.gz", "overlap")


def test_a_hole_on_another_grid_is_refused(predict: Callable[..., Any]) -> None:
    save(np.ones((4, 4, 4), np.uint8), "hole.nii.gz")
    refused(predict("--hole", "hole.nii.gz", task="inpainting", references=("other.nii.gz", "other.nii.gz")),
            "hole", "grid")


# --- bad options ---


def test_options_that_contradict_each_other_are_refused_before_the_work(predict: Callable[..., Any]) -> None:
    refused(predict("--hole", "label.nii.gz"), "--hole belongs to inpainting")
    refused(predict(task="inpainting"), "--hole MASK")
    refused(predict("--confidence", "c.nii.gz", task="denoising"), "--confidence belongs to segmentation")
    refused(predict("--names", "n.json", task="synthesis"), "--names belongs to segmentation")
    refused(predict("--reference-slices", "1", references=("image.nii.gz", "label.nii.gz") * 2), "--reference-slices")
    refused(predict("--reference-slices", "1;2"), "1;2")
    refused(predict("--reference-slices", "1,99"), "99", "0 to 5")
    refused(predict("--window", "5", "5"), "5")
    refused(predict(task="magic"), "magic", "segmentation")
    refused(predict("--plane", "up"), "up", "axial")
    refused(predict("--threads", "0"), "--threads")
    refused(predict("--device", "toaster"), "toaster")


def test_a_reference_is_two_files(weights: Path, folder: Path) -> None:
    rest = ("--task", "segmentation", "--output", "out.nii.gz")
    refused(mvg("predict", "image.nii.gz", "--reference", "image.nii.gz", *rest), "--reference IMAGE LABEL")
    refused(mvg("predict", "image.nii.gz", *rest, "--reference"), "--reference IMAGE LABEL")
    refused(mvg("predict", "image.nii.gz", *rest), "--reference")
    refused(mvg("predict", "--reference", "image.nii.gz", "label.nii.gz", *rest), "QUERY")


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("n.json", "{", "neither JSON nor YAML"),
    ("n.json", "[1, 2]", "holds a list"),
    ("n.yaml", "liver: 1", "'liver': 1"),
    ("n.yaml", "", "NoneType"),
    ("n.txt", "# nothing\n", "holds no names"),
    ("n.ctbl", "# Color\n0 Background 0 0 0 0\nliver 1\n", "line 3"),
    ("n.ctbl", None, "cannot be read"),
])
def test_names_that_cannot_be_read(predict: Callable[..., Any], name: str, content: str | None, expected: str) -> None:
    if content is not None:
        Path(name).write_text(content)
    refused(predict("--names", name), name, expected)


@pytest.mark.parametrize(("name", "content"), [
    ("n.json", '{"1": "left lobe", "5": "tumour", "300": "beyond"}'),
    ("n.yaml", "1: left lobe\n5: tumour\n"),
    ("n.ctbl", "# Slicer\n0 Background 0 0 0 0\n1 left lobe 10 20 30 255\n5 tumour 1 2 3 255\n300 beyond 1 1 1 1\n"),
    ("n.txt", "1 left lobe\n5 tumour\n"),
])
def test_names_in_all_forms(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    names, colours = report.read_names(tmp_path / name)
    assert {number: names[number] for number in (1, 5)} == {1: "left lobe", 5: "tumour"}
    assert 300 not in names
    if name.endswith("ctbl"):
        assert colours == {0: (0, 0, 0), 1: (10, 20, 30), 5: (1, 2, 3)}


# --- outputs ---


def test_outputs_are_checked_before_the_work(predict: Callable[..., Any]) -> None:
    Path("there.json").write_text("{}")
    Path("there.nrrd").write_text("old")
    for options, expected in (
        ({"output": "there.nrrd"}, "--overwrite"),
        ({"output": "nowhere/out.nii.gz"}, "does not exist"),
        ({"output": "out.docx"}, ".nii.gz"),
        ({"output": "home.nii.gz"}, "is a folder"),
        ({"output": "out.png"}, "one slice"),
    ):
        Path("home.nii.gz").mkdir(exist_ok=True)
        refused(predict(**options), options["output"], expected)
    refused(predict("--report", "there.json"), "there.json", "--overwrite")
    refused(predict("--report", "r.txt"), "r.txt", ".json")
    refused(predict("--preview", "p.jpg"), "p.jpg", ".png")
    refused(predict("--confidence", "c.png"), "c.png", ".nii.gz")
    refused(predict("--confidence", "out.nii.gz"), "two outputs")
    refused(predict("--overwrite", output="image.nii.gz"), "image.nii.gz", "read by this run")
    assert read_volume("image.nii.gz").array.shape == SHAPE
    assert Path("there.nrrd").read_text() == "old"


def test_a_picture_cannot_hold_fractions(predict: Callable[..., Any]) -> None:
    save(np.random.default_rng(0).random((8, 9, 1)).astype(np.float32), "flat.nii.gz")
    refused(predict(query="flat.nii.gz", references=("flat.nii.gz", "flat.nii.gz"), task="denoising",
                    output="answer.png"), "answer.png", "whole numbers")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which nobody can write")
def test_an_unwritable_folder_is_noticed_before_the_work(predict: Callable[..., Any]) -> None:
    refused(predict(output="/proc/out.nii.gz"), "/proc", "cannot be written to")


def test_if_a_later_file_fails_the_answer_is_kept(predict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr(sitk, "WriteImage", full)
    result = predict("--preview", "look.png")
    assert result.exit_code == 2
    assert "look.png" in result.output
    assert "free space" in result.output
    assert read_volume("out.nii.gz").array.shape == SHAPE
    assert not Path("look.png").exists()


def test_a_report_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(volume_io.VolumeWriteError, match=r"r.json: could not be written \(No space"):
        report.write_report(tmp_path / "r.json", {})
    assert list(tmp_path.iterdir()) == []


def test_the_suffixes_checked_before_are_those_that_can_be_written() -> None:
    assert set(report.VOLUME_SUFFIXES) == set(volume_io._WRITERS)


# --- weights ---


def test_wrong_and_tampered_weights_are_refused(predict: Callable[..., Any], weights: Path) -> None:
    refused(predict("--weights", "nonsense"), "nonsense")
    Path("text.pt").write_text("no weights")
    refused(predict("--weights", "text.pt"), "text.pt")
    torch.save({"layer": torch.zeros(2)}, "other.pt")
    refused(predict("--weights", "other.pt"), "other.pt", "convert-checkpoint")
    torch.save({"code": os.system}, "code.pt")
    refused(predict("--weights", "code.pt"), "code.pt")
    shutil.copy(weights, "changed.pt")
    shutil.copy(f"{weights}.sha256", "changed.pt.sha256")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    Path("changed.pt").write_bytes(content)
    refused(predict("--weights", "changed.pt"), "changed.pt", "SHA-256")


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in the current folder, for what cannot be tried inside this one."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False,
                          env=environment)


PREDICT = ("predict", "image.nii.gz", "--reference", "image.nii.gz", "label.nii.gz", "--task", "segmentation",
           "--output", "out.nii.gz", "--report", "r.json", "--weights")


def test_without_torch_one_line_says_what_to_install(folder: Path, weights: Path) -> None:
    script = ("import sys\nsys.modules['torch'] = sys.modules['onnxruntime'] = None\n"
              "from mvg_core.cli import main\nmain()")
    before = files()
    for arguments in ((*PREDICT, str(weights)), ("convert-checkpoint", str(weights), "out.pt")):
        finished = run_script(script, *arguments)
        assert finished.returncode == 2, finished.stderr
        assert "pip install" in finished.stderr
        assert len(finished.stderr.strip().splitlines()) == 1
    assert files() == before


# --- interruptions and defects ---


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("moment", ["predicting", "writing"])
def test_an_interrupted_run_leaves_no_file(folder: Path, weights: Path, moment: str, number: str, code: int) -> None:
    patch = {
        "predicting": "from mvg_core.network.compact import CompactPainter\n"
                      "CompactPainter.paint = lambda *_: os.kill(os.getpid(), signal.NUMBER)\n",
        "writing": "import nibabel\n"
                   "def half(image, path):\n"
                   "    open(path, 'wb').write(b'half')\n"
                   "    os.kill(os.getpid(), signal.NUMBER)\n"
                   "nibabel.save = half\n",
    }[moment].replace("NUMBER", number)
    before = files()
    finished = run_script(f"import os, signal\n{patch}from mvg_core.cli import main\nmain()", *PREDICT, str(weights))
    assert finished.returncode == code, finished.stderr
    assert "Traceback" not in finished.stderr
    assert files() == before
    if number == "SIGINT":
        assert "Interrupted" in finished.stderr


def test_a_defect_is_reported_as_one(predict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        np.add(np.zeros(3), np.zeros(4))  # a ValueError that is nobody's message

    monkeypatch.setattr("mvg_core.engine.VolumeEngine.solve", broken)
    result = predict()
    assert result.exit_code == 1
    assert "ValueError" in result.output
    assert "report" in result.output
    assert "Traceback" not in result.output
    result = predict("--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.output


def test_a_message_comes_with_its_traceback_if_asked(predict: Callable[..., Any]) -> None:
    result = predict("--debug", query="nothing.nii.gz")
    assert result.exit_code == 2
    assert "Traceback" in result.output


# --- info, conversion, export ---


def test_info_says_what_the_weights_are(weights: Path, folder: Path) -> None:
    result = mvg("info", "--json", "--weights", weights)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["network"] == TINY.to_json()
    assert facts["card"] == {"licence": "none", "seed": 0}
    assert facts["weights"]["sha256"] == weights.with_name("tiny.pt.sha256").read_text().split()[0]
    assert facts["parameters"] == sum(p.numel() for p in create_network(TINY).parameters())
    assert facts["versions"]["numpy"] == np.__version__
    text = mvg("info", "--weights", weights).output
    assert "licence: none" in text
    assert "architecture: compact" in text


def test_info_without_weights_still_names_the_versions(folder: Path) -> None:
    result = mvg("info", "--weights", "nonsense")
    assert result.exit_code == 2
    assert f"mvg-core: {__version__}" in result.output
    assert "nonsense" in result.output


@pytest.fixture
def painter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """painter.pth, a checkpoint as other projects save them, and a preset that it fits."""
    monkeypatch.setitem(PRESETS, "tiny_vit", TINY_VIT)
    state = {name: value for name, value in create_network(TINY_VIT).state_dict().items() if name != "_extra_state"}
    torch.save({"model": state | {"decoder.extra": torch.zeros(1)}}, "painter.pth")
    state.pop("cls_token", None)
    torch.save({"model": {name: value for name, value in state.items() if "decoder" not in name}}, "part.pth")
    return folder


def test_a_checkpoint_is_converted_with_a_report(painter: Path) -> None:
    result = mvg("convert-checkpoint", "painter.pth", "new.pt", "--preset", "tiny_vit")
    assert result.exit_code == 0, result.output
    assert "1 unused" in result.output
    assert "decoder.extra" in result.output
    facts = json.loads(mvg("info", "--json", "--weights", "new.pt").stdout)
    assert facts["card"]["converted_from"] == "painter.pth"
    assert facts["network"]["architecture"] == "vit"
    refused(mvg("convert-checkpoint", "painter.pth", "new.pt", "--preset", "tiny_vit"), "new.pt", "--overwrite")


def test_an_incomplete_checkpoint_is_refused_unless_allowed(painter: Path) -> None:
    arguments = ("convert-checkpoint", "part.pth", "new.pt", "--preset", "tiny_vit")
    result = mvg(*arguments)
    refused(result, "missing", "--allow-missing")
    assert not Path("new.pt").exists()
    assert mvg(*arguments, "--allow-missing").exit_code == 0
    assert Path("new.pt").exists()


def test_bad_conversions_are_refused(painter: Path) -> None:
    refused(mvg("convert-checkpoint", "nothing.pth", "new.pt"), "nothing.pth")
    refused(mvg("convert-checkpoint", "painter.pth", "new.pt", "--preset", "magic"), "magic", "mvg_vit_large")
    refused(mvg("convert-checkpoint", "painter.pth", "new.pt", "--preset", "mvg_compact"), "vit")
    refused(mvg("convert-checkpoint", "painter.pth", "new.onnx"), ".pt")


def test_exported_safetensors_predict(folder: Path, weights: Path) -> None:
    refused(mvg("export-safetensors", "w.pt", "--weights", weights), ".safetensors")
    result = mvg("export-safetensors", "w.safetensors", "--weights", weights)
    assert result.exit_code == 0, result.output
    refused(mvg("export-safetensors", "w.safetensors", "--weights", weights), "--overwrite")
    result = mvg(*PREDICT, "w.safetensors")
    assert result.exit_code == 0, result.output


def test_exported_files_predict_without_torch(folder: Path, weights: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    result = mvg("export-onnx", "--weights", weights)
    assert result.exit_code == 0, result.output
    assert {"home/onnx/model_prompt.onnx", "home/onnx/model_query.onnx"} <= files()
    refused(mvg("export-onnx", "--weights", weights), "--overwrite")
    script = "import sys\nsys.modules['torch'] = None\nfrom mvg_core.cli import main\nmain()"
    finished = run_script(script, *PREDICT, str(weights))
    assert finished.returncode == 0, finished.stderr
    assert json.loads(Path("r.json").read_text())["backend"].startswith("onnx")
    told = run_script(script, "info", "--json", "--weights", str(weights))
    assert json.loads(told.stdout)["card"] == {"licence": "none", "seed": 0}


# --- the command itself ---


def test_the_version_is_printed() -> None:
    result = mvg("--version")
    assert (result.exit_code, result.stdout) == (0, f"mvg {__version__}\n")


def test_help_comes_at_once_and_without_heavy_packages() -> None:
    script = ("import sys\nfrom mvg_core.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
              "print(*sorted({'torch', 'SimpleITK', 'nibabel', 'numpy', 'yaml'} & set(sys.modules)), file=sys.stderr)")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        finished = run_script(script, "--help")
        times.append(time.perf_counter() - start)
        assert "convert-checkpoint" in finished.stdout
        assert finished.stderr.strip() == ""
    # Half a second on a free machine; the test only has to notice another order of magnitude on a busy one.
    assert min(times) < 5


def test_python_m_is_the_command() -> None:
    finished = subprocess.run([sys.executable, "-m", "mvg_core", "--version"], cwd=REPOSITORY, capture_output=True,
                              text=True, check=False)
    assert finished.stdout == f"mvg {__version__}\n"


def options() -> dict[str, dict[str, bool]]:
    """For each command its options and arguments, and whether they are required."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: {"/".join(p.opts): bool(p.required) for p in command.params if p.name != "help"}
            for name, command in sorted(commands.items())}


def test_options_are_frozen() -> None:
    """Scripts of users depend on them. To add one, add it to the file; to remove one, say so in CHANGELOG."""
    assert options() == json.loads(GOLDEN.read_text())


def test_geometry_survives_an_oblique_grid(predict: Callable[..., Any]) -> None:
    turned = np.array([[0.9, -0.3, 0.1, 5], [0.3, 0.9, 0, -7], [-0.1, 0.05, 2, 11], [0, 0, 0, 1.0]])
    save(image_array(), "oblique.nii.gz", turned)
    save(label_array(), "oblique_label.nii.gz", turned)
    result = predict(query="oblique.nii.gz", references=("oblique.nii.gz", "oblique_label.nii.gz"))
    assert result.exit_code == 0, result.output
    assert read_volume("out.nii.gz").geometry.is_close(Geometry(SHAPE, turned))
