"""`mvg predict` from DICOM to DICOM, and to a segmentation of 3D Slicer, with a real (tiny) network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from series import turned, write_series
from tiny import write_weights
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.clinical import source
from mvg_core.volume_io import read_volume, write_volume

SHAPE = (24, 20, 5)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.pt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ct/ (an oblique series), label.nii.gz (one slice of it), clean.nii.gz (a target) and names.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERM", "dumb")
    stored = np.random.default_rng(0).normal(1100, 60, SHAPE).astype(np.uint16)
    write_series(tmp_path / "ct", stored, direction=turned(), RescaleSlope=1, RescaleIntercept=-1024)
    volume = read_volume("ct")
    label = np.zeros(volume.geometry.shape, np.uint8)
    label[3:9, 4:12, 2], label[11:17, 4:12, 2] = 2, 9
    write_volume(volume.with_array(label), "label.nii.gz")
    write_volume(volume.with_array(volume.array.astype(np.float32)), "clean.nii.gz")
    names = {"2": {"name": "liver", "color": [221, 130, 101], "terminology": {
        "category": ["SCT", "123037004", "Anatomical Structure"], "type": ["SCT", "10200004", "Liver"]}}, "9": "spleen"}
    Path("names.json").write_text(json.dumps(names))
    return tmp_path


@pytest.fixture
def predict(weights: Path, folder: Path) -> Callable[..., Any]:
    def run(output: str, *more: object, task: str = "segmentation", label: str = "label.nii.gz", query: str = "ct"
            ) -> Any:
        arguments = ["predict", query, "--reference", query, label, "--task", task, "--output", output, "--weights",
                     weights, "--device", "cpu", *more]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def said(result: Any) -> str:
    return " ".join(result.output.split())


def refused(result: Any, *expected: str) -> None:
    assert result.exit_code == 2, result.output
    for text in expected:
        assert text in said(result)


def test_dicom_in_segmentation_out(predict: Callable[..., Any], folder: Path) -> None:
    assert predict("plain.nii.gz").exit_code == 0
    result = predict("seg.dcm", "--names", "names.json", "--report", "r.json", "--color-table", "labels.ctbl")
    assert result.exit_code == 0, result.output
    labels, seg = read_volume("plain.nii.gz"), dcmread("seg.dcm")
    array, k_of = np.zeros(labels.geometry.shape, np.uint8), {}
    volume = read_volume("ct")
    for one in source.read_source(Path("ct"), volume.geometry).headers:
        k_of[one.SOPInstanceUID] = len(k_of)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        k = k_of[groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        segment = seg.SegmentSequence[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        array[:, :, k][frame.T == 1] = int(segment.SegmentDescription.removeprefix("label "))
    np.testing.assert_array_equal(array, labels.array)
    assert seg.SegmentSequence[0].SegmentLabel == "liver"
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    report = json.loads(Path("r.json").read_text())
    assert report["outputs"]["answer"] == "seg.dcm"
    assert [row["label"] for row in report["found"]] == [2, 9]
    assert all(row["surface_mm2"] > 0 and row["volume_ml"] > 0 for row in report["found"])
    assert "surface (mm2)" in result.output
    assert f"{report['found'][0]['surface_mm2']:.0f}" in result.output
    assert "SECRET" not in result.output + Path("r.json").read_text()
    assert Path("labels.ctbl").read_text().splitlines()[3:] == ["2 liver 221 130 101 255",
                                                              Path("labels.ctbl").read_text().splitlines()[4]]


def test_dicom_in_derived_series_out(predict: Callable[..., Any]) -> None:
    assert predict("plain.nii.gz", task="denoising", label="clean.nii.gz").exit_code == 0
    result = predict("new/", "--report", "r.json", task="denoising", label="clean.nii.gz")
    assert result.exit_code == 0, result.output
    expected, made = read_volume("plain.nii.gz"), read_volume("new")
    assert made.geometry.is_close(expected.geometry)
    np.testing.assert_allclose(made.array, expected.array, atol=0.51)
    assert json.loads(Path("r.json").read_text())["outputs"]["answer"] == "new"
    assert "SECRET" not in result.output + Path("r.json").read_text()
    refused(predict("new", task="denoising", label="clean.nii.gz"), "new is not empty")
    assert predict("new", "--overwrite", task="denoising", label="clean.nii.gz").exit_code == 0


def test_a_slicer_segmentation_out(predict: Callable[..., Any]) -> None:
    assert predict("plain.nii.gz").exit_code == 0
    assert predict("a.seg.nrrd", "--names", "names.json").exit_code == 0
    np.testing.assert_array_equal(read_volume("a.seg.nrrd").array, read_volume("plain.nii.gz").array)
    image = sitk.ReadImage("a.seg.nrrd")
    assert [image.GetMetaData(f"Segment{n}_Name") for n in range(2)] == ["liver", "spleen"]
    assert [image.GetMetaData(f"Segment{n}_LabelValue") for n in range(2)] == ["2", "9"]
    assert "SCT^10200004^Liver" in image.GetMetaData("Segment0_Tags")


def test_what_an_output_cannot_be_is_said_before_the_work(predict: Callable[..., Any],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr("mvg_core.predict.Predictor.load", never)
    before = set(os.listdir())
    images = {"task": "denoising", "label": "clean.nii.gz"}
    refused(predict("folder"), "folder: names no kind of file: choose .nii, .nii.gz", ".dcm")
    refused(predict("a.dcm", **images), "a derived DICOM series has a file for each slice", "for example a")
    refused(predict("a.seg.nrrd", **images), "a .seg.nrrd holds a segmentation, denoising makes an image")
    refused(predict("ct", **images), "ct is read by this run")
    refused(predict("ct/seg.dcm"), "would lie among the slices of ct")
    refused(predict("seg.dcm", query="clean.nii.gz"), "seg.dcm: a DICOM segmentation is written for a DICOM QUERY only",
            "clean.nii.gz is no DICOM file or folder: choose .nii")
    refused(predict("new", query="clean.nii.gz", **images), "new: a folder is written for a DICOM QUERY only")
    refused(predict("none/new", **images), "none does not exist: create it first")
    refused(predict("a.nii.gz", "--color-table", "a.ctbl", **images), "--color-table belongs to segmentation")
    refused(predict("a.nii.gz", "--color-table", "a.csv"), "choose .ctbl, .txt")
    for path in Path("ct").iterdir():
        one = dcmread(path)
        del one.FrameOfReferenceUID
        one.save_as(path)
    refused(predict("seg.dcm"), "lacks FrameOfReferenceUID")
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda _: None)
    refused(predict("seg.dcm"), "writing DICOM needs pydicom and highdicom", "mvg-core[dicom]")
    assert set(os.listdir()) == before


def test_frames_of_a_series_refer_to_their_own_files(predict: Callable[..., Any], folder: Path) -> None:
    """Two series over time in one folder: the same positions twice, told apart by their instance numbers."""
    stored = np.random.default_rng(5).integers(0, 900, SHAPE).astype(np.uint16)
    first = write_series(folder / "cine", stored, direction=turned(), SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2",
                         FrameOfReferenceUID="1.4", RescaleIntercept=0, reverse=False)
    second = write_series(folder / "later", stored + 50, direction=turned(), SeriesInstanceUID="1.2.3",
                          StudyInstanceUID="1.2", FrameOfReferenceUID="1.4", RescaleIntercept=0, reverse=False)
    for path in sorted((folder / "later").iterdir()):
        one = dcmread(path)
        one.InstanceNumber += 100
        one.save_as(folder / "cine" / f"late_{path.name}")
    for frame, uids in enumerate((first, second)):
        volume = read_volume("cine", frame=frame)
        made_from = source.read_source(Path("cine"), volume.geometry, frame)
        assert {one.SOPInstanceUID for one in made_from.headers} == set(uids)
    write_volume(read_volume("label.nii.gz"), "here.nii.gz")
    result = predict("seg.dcm", "--frame", "all", "--reference-frame", "0", query="cine", label="here.nii.gz")
    assert result.exit_code == 0, result.output
    for name, uids in (("seg_frame000.dcm", first), ("seg_frame001.dcm", second)):
        [series] = dcmread(name).ReferencedSeriesSequence
        assert {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence} == set(uids)
