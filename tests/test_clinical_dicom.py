"""DICOM in, DICOM out: the same voxels on the same grid, exact references, and a patient who is never shown."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.uid import PositronEmissionTomographyImageStorage
from series import ORIGIN, PATIENT, SPACING_MM, turned, write_series

from mvg_core.clinical import dicom_series, source
from mvg_core.clinical.dicom_seg import check_dicom_seg, dicom_seg, write_dicom_seg
from mvg_core.clinical.dicom_series import check_derived_series, check_series_folder, write_derived_series
from mvg_core.clinical.segments import Segment, segments_of
from mvg_core.clinical.source import DicomSource, DicomSourceError, read_source
from mvg_core.clinical.terminology import Code, Terminology
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeReadError, VolumeWriteError, read_volume, to_sitk

SHAPE = (14, 11, 6)  # rows, columns, slices
LIVER = Terminology(Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "10200004", "Liver"),
                    region=Code("SCT", "818983003", "Abdomen"), region_modifier=Code("SCT", "24028007", "Right"))
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def pixels(dtype: str = "int16", low: int = -900, high: int = 1500, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def labels_of(volume: Volume) -> Volume:
    """Two labels, not consecutive, that touch the first and the last slice and every edge."""
    array = np.zeros(volume.geometry.shape, np.uint8)
    array[0:3, 2:9, 0], array[5:, 4:7, 2:4], array[2, 0, -1] = 7, 3, 7
    array[-1, -1, -1] = 3
    return volume.with_array(array)


def read(folder: Path) -> tuple[Volume, DicomSource]:
    volume = read_volume(folder)
    return volume, read_source(folder, volume.geometry)


SEGMENTS = segments_of((3, 7), {3: "Leber größe", 7: "right\tkidney"}, {7: (10, 200, 30)}, {3: LIVER})
GRIDS: dict[str, dict[str, Any]] = {
    "straight": {}, "oblique": {"direction": turned()}, "flipped": {"direction": turned() @ np.diag([1, -1, -1])},
    "sagittal": {"direction": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])}, "tilted": {"shear_mm": 0.8},
    "in order": {"reverse": False}}


# --- segmentations ---


def placed(path: Path) -> dict[tuple[int, ...], str]:
    """Position of every voxel of a DICOM segmentation (LPS, in 0.01 mm) -> its segment description."""
    seg = hd.seg.segread(path)
    found = {}
    for frame, groups in zip(seg.pixel_array.reshape(-1, seg.Rows, seg.Columns), seg.PerFrameFunctionalGroupsSequence,
                             strict=True):
        shared = seg.SharedFunctionalGroupsSequence[0]
        identified = groups if "SegmentIdentificationSequence" in groups else shared
        number = identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        x, y = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
        row_mm, column_mm = shared.PixelMeasuresSequence[0].PixelSpacing
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            position = origin + x * column * column_mm + y * row * row_mm
            found[tuple(np.rint(position * 100).astype(int))] = seg.SegmentSequence[number - 1].SegmentDescription
    return found


def expected(labels: Volume) -> dict[tuple[int, ...], str]:
    index = np.argwhere(labels.array)
    lps = labels.geometry.index_to_world(index) * (-1, -1, 1)
    return {tuple(np.rint(mm * 100).astype(int)): f"label {labels.array[tuple(at)]}"
            for mm, at in zip(lps, index, strict=True)}


@pytest.mark.parametrize("grid", GRIDS)
def test_a_segmentation_lies_where_its_labels_lay(tmp_path: Path, grid: str) -> None:
    uids = write_series(tmp_path / "ct", pixels(), **GRIDS[grid])
    volume, made_from = read(tmp_path / "ct")
    labels = labels_of(volume)
    write_dicom_seg(labels, made_from, SEGMENTS, tmp_path / "seg.dcm", guided=True)
    assert placed(tmp_path / "seg.dcm") == expected(labels)
    assert sorted(os.listdir(tmp_path)) == ["ct", "seg.dcm"]
    # Every frame refers to the one source image in whose plane it lies, and all of them are the series.
    seg = dcmread(tmp_path / "seg.dcm")
    position_of = {str(one.SOPInstanceUID): one.ImagePositionPatient for one in made_from.headers}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        [image] = groups.DerivationImageSequence[0].SourceImageSequence
        assert position_of[image.ReferencedSOPInstanceUID] == groups.PlanePositionSequence[0].ImagePositionPatient
        assert image.SpatialLocationsPreserved == "YES"
    [series] = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == made_from.headers[0].SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence} == set(uids)
    assert [one.SOPInstanceUID for one in made_from.headers] in (uids, uids[::-1])


def test_highdicom_and_simpleitk_read_the_volume_back(tmp_path: Path) -> None:
    # SimpleITK 2.5 misreads the last voxels where their number is no multiple of 8, which images of scanners are.
    write_series(tmp_path / "ct", pixels(shape=(16, 12, 6)), direction=turned())
    volume, made_from = read(tmp_path / "ct")
    array = np.zeros(volume.geometry.shape, np.uint8)
    array[2:8, 3:9, :], array[0, 0, :] = 7, 7
    array[5, 5, 2] = 0
    write_dicom_seg(volume.with_array(array), made_from, SEGMENTS, tmp_path / "seg.dcm", guided=False)
    again = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    order = again.get_affine("LPS") @ np.array([0, 0, 0, 1.0])
    stacked = again.array if np.allclose(order[:3], ORIGIN, atol=1e-3) else again.array[::-1]
    np.testing.assert_array_equal(stacked.transpose(2, 1, 0) * 7, array)
    assert again.spacing == pytest.approx((SPACING_MM[2], SPACING_MM[1], SPACING_MM[0]), abs=1e-4)
    image = sitk.ReadImage(str(tmp_path / "seg.dcm"))  # 0 and 255
    assert (image.GetSize(), image.GetSpacing()) == (volume.geometry.shape, pytest.approx(SPACING_MM, abs=1e-4))
    resampled = sitk.Resample(image, to_sitk(volume.with_array(array)), sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(resampled).transpose(2, 1, 0) > 0, array > 0)


def test_segments_say_what_they_are(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels())
    volume, made_from = read(tmp_path / "ct")
    write_dicom_seg(labels_of(volume), made_from, SEGMENTS, tmp_path / "seg.dcm", guided=True)
    seg = dcmread(tmp_path / "seg.dcm")
    liver, kidney = seg.SegmentSequence
    assert [liver.SegmentNumber, kidney.SegmentNumber] == [1, 2]
    assert [liver.SegmentLabel, kidney.SegmentLabel] == ["Leber größe", "right kidney"]
    assert [liver.SegmentDescription, kidney.SegmentDescription] == ["label 3", "label 7"]
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    region = liver.AnatomicRegionSequence[0]
    assert (region.CodeMeaning, region.AnatomicRegionModifierSequence[0].CodeValue) == ("Abdomen", "24028007")
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    colour = hd.color.CIELabColor.from_dicom_value(kidney.RecommendedDisplayCIELabValue).to_rgb()
    np.testing.assert_allclose(colour, (10, 200, 30), atol=2)
    assert (kidney.SegmentAlgorithmType, kidney.SegmentAlgorithmName) == ("SEMIAUTOMATIC", "mvg-core")
    assert dicom_seg(labels_of(volume), made_from, SEGMENTS, guided=False).SegmentSequence[0].SegmentAlgorithmType == (
        "AUTOMATIC")
    assert (seg.SegmentationType, seg.Modality, seg.SeriesNumber) == ("BINARY", "SEG", 1004)
    assert "for research use only" in seg.SeriesDescription
    assert "for research use only" in seg.ContentDescription


def test_absent_labels_are_no_segments_unless_nothing_was_found(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels())
    volume, made_from = read(tmp_path / "ct")
    array = np.zeros(volume.geometry.shape, np.uint8)
    nothing = dicom_seg(volume.with_array(array), made_from, SEGMENTS, guided=True)
    assert [one.SegmentDescription for one in nothing.SegmentSequence] == ["label 3", "label 7"]
    assert not nothing.pixel_array.any()
    array[0, 0, 0] = 7
    one = dicom_seg(volume.with_array(array), made_from, SEGMENTS, guided=True)
    assert [segment.SegmentDescription for segment in one.SegmentSequence] == ["label 7"]


def test_the_patient_is_carried_over_and_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also values that libraries complain about: no caret in the name, no such sex, no such date."""
    odd: dict[str, Any] = {"PatientName": "ÄnneMüller", "PatientSex": "W", "PatientBirthDate": "02.01.1960",
                           "PatientAge": "sixty"}
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("ignore")
        write_series(tmp_path / "ct", pixels(), **odd)
        caplog.clear()
        warnings.simplefilter("error")
        volume, made_from = read(tmp_path / "ct")
        check_dicom_seg(made_from, SEGMENTS, guided=True)
        write_dicom_seg(labels_of(volume), made_from, SEGMENTS, tmp_path / "seg.dcm", guided=True)
        check_derived_series(volume, made_from, "denoising")
        write_derived_series(volume, made_from, "denoising", tmp_path / "new")
    assert caplog.text == ""
    for path in (tmp_path / "seg.dcm", tmp_path / "new" / "slice00001.dcm"):
        with source.quiet():
            made = dcmread(path)
            for name, value in {**PATIENT, **odd}.items():
                if name != "SpecificCharacterSet":
                    assert made[name].value == value, name
            assert made.StudyInstanceUID == made_from.headers[0].StudyInstanceUID
            assert made.FrameOfReferenceUID == made_from.headers[0].FrameOfReferenceUID


def test_slices_are_matched_by_position_whatever_the_order_of_files(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "ct", pixels(), direction=turned())
    volume, expected_order = read(tmp_path / "ct")
    shuffled = [list((tmp_path / "ct").iterdir())[n] for n in (3, 0, 5, 1, 4, 2)]
    monkeypatch.setattr(source, "dicom_files", lambda *_, **__: shuffled)
    again = read_source(tmp_path / "ct", volume.geometry)
    assert [one.SOPInstanceUID for one in again.headers] == [one.SOPInstanceUID for one in expected_order.headers]


def test_libraries_do_not_complain_about_the_source(tmp_path: Path) -> None:
    """A character set that nobody knows."""
    write_series(tmp_path / "ct", pixels(), PatientName="Doe^Jane", SeriesDescription="Body")
    for path in (tmp_path / "ct").iterdir():
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume, made_from = read(tmp_path / "ct")
        write_dicom_seg(labels_of(volume), made_from, SEGMENTS, tmp_path / "seg.dcm", guided=True)
        write_derived_series(volume, made_from, "denoising", tmp_path / "new")


def test_anonymised_files_need_no_patient(tmp_path: Path) -> None:
    gone: dict[str, Any] = dict.fromkeys((*PATIENT, "SliceThickness", "SeriesNumber", "SeriesDescription"))
    write_series(tmp_path / "ct", pixels(), **gone)
    volume, made_from = read(tmp_path / "ct")
    check_dicom_seg(made_from, SEGMENTS, guided=True)
    write_dicom_seg(labels_of(volume), made_from, SEGMENTS, tmp_path / "seg.dcm", guided=True)
    write_derived_series(volume, made_from, "denoising", tmp_path / "new")
    assert placed(tmp_path / "seg.dcm") == expected(labels_of(volume))
    for path in (tmp_path / "seg.dcm", tmp_path / "new" / "slice00001.dcm"):
        assert not dcmread(path).PatientID
        assert "PatientName" in dcmread(path)  # must be there, may be empty


def test_files_that_pydicom_ships(tmp_path: Path) -> None:
    folder = TEST_FILES / "dicomdirtests" / "98892001" / "CT5N"
    volume, made_from = read(folder)
    labels = labels_of(volume)
    write_dicom_seg(labels, made_from, SEGMENTS, tmp_path / "seg.dcm", guided=True)
    assert placed(tmp_path / "seg.dcm") == expected(labels)
    write_derived_series(volume, made_from, "denoising", tmp_path / "new")
    again = read_volume(tmp_path / "new")
    np.testing.assert_array_equal(again.array, volume.array)
    assert again.geometry.is_close(volume.geometry)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"])
def test_a_single_slice(tmp_path: Path, name: str) -> None:
    volume = read_volume(TEST_FILES / name)
    made_from = read_source(TEST_FILES / name, volume.geometry)
    array = np.zeros(volume.geometry.shape, np.uint8)
    array[3:9, 20:31] = 3
    write_dicom_seg(volume.with_array(array), made_from, SEGMENTS, tmp_path / "seg.dcm", guided=True)
    assert placed(tmp_path / "seg.dcm") == expected(volume.with_array(array))
    check_derived_series(volume, made_from, "denoising")
    write_derived_series(volume, made_from, "denoising", tmp_path / "new")
    np.testing.assert_array_equal(read_volume(tmp_path / "new").array, volume.array)


def test_an_existing_segmentation_is_kept_and_a_failure_leaves_nothing(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "ct", pixels())
    volume, made_from = read(tmp_path / "ct")
    path = tmp_path / "seg.dcm"
    path.write_text("precious")
    with pytest.raises(VolumeWriteError, match="exists"):
        write_dicom_seg(labels_of(volume), made_from, SEGMENTS, path, guided=True)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("SECRET-4711")

    monkeypatch.setattr(hd.seg.Segmentation, "save_as", broken)
    with pytest.raises(VolumeWriteError, match=r"seg\.dcm: the DICOM segmentation could not be made \(ValueError\)$"):
        write_dicom_seg(labels_of(volume), made_from, SEGMENTS, path, guided=True, overwrite=True)
    assert path.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["ct", "seg.dcm"]


# --- derived series ---


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("slope", "intercept", "dtype"),
                         [(1, 0, "int16"), (1, -1024, "uint16"), (0.25, -10.5, "int16")])
def test_a_derived_series_is_read_back_the_same(tmp_path: Path, grid: str, slope: float, intercept: float,
                                                dtype: str) -> None:
    stored = pixels(dtype=dtype, low=0 if dtype == "uint16" else -900)
    uids = write_series(tmp_path / "ct", stored, RescaleSlope=slope, RescaleIntercept=intercept, **GRIDS[grid])
    volume, made_from = read(tmp_path / "ct")
    answer = volume.with_array((volume.array + np.random.default_rng(1).normal(0, 9, volume.array.shape)).astype("f4"))
    check_derived_series(volume, made_from, "denoising")
    write_derived_series(answer, made_from, "denoising", tmp_path / "new")
    again = read_volume(tmp_path / "new")
    assert again.geometry.is_close(volume.geometry)
    np.testing.assert_allclose(again.array, answer.array, atol=slope / 2 + 1e-3)
    for path in (tmp_path / "new").iterdir():
        one = dcmread(path)
        assert (one.RescaleSlope, one.RescaleIntercept) == (slope, intercept)
        [image] = one.SourceImageSequence
        original = made_from.headers[one.InstanceNumber - 1]
        assert image.ReferencedSOPInstanceUID == original.SOPInstanceUID in uids
        assert one.ImagePositionPatient == original.ImagePositionPatient


def test_what_a_derived_image_says_of_itself(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels(), PixelIntensityRelationship="LIN")
    volume, made_from = read(tmp_path / "ct")
    write_derived_series(volume, made_from, "inpainting", tmp_path / "new")
    made = [dcmread(path) for path in sorted((tmp_path / "new").iterdir())]
    [series] = {one.SeriesInstanceUID for one in made}
    assert series != made_from.headers[0].SeriesInstanceUID
    assert len({one.SOPInstanceUID for one in made} | {one.SOPInstanceUID for one in made_from.headers}) == 12
    for one, original in zip(made, made_from.headers, strict=True):
        assert one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID
        assert one.file_meta.MediaStorageSOPClassUID == one.SOPClassUID == original.SOPClassUID
        assert one.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert one.SeriesDescription == "Körper 2.5 (inpainted, for research use only)"
        assert "for research use only" in one.ImageComments
        assert one.DerivationDescription.startswith("inpainted slice by slice by mvg-core")
        assert one.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert one.ContributingEquipmentSequence[-1].ManufacturerModelName == "mvg-core"
        assert one.SeriesNumber == 1004
        assert "PixelIntensityRelationship" not in one
        assert not [element for element in one if element.tag.is_private]
        assert original["Manufacturer"] == one["Manufacturer"]


def test_slices_of_different_slopes_keep_theirs(tmp_path: Path) -> None:
    """PET, and one slice whose values no longer fit."""
    slopes = np.array([0.5, 1, 2, 4, 8, 0.25])
    write_series(tmp_path / "pt", pixels(low=0, high=30000), RescaleSlope=slopes, RescaleIntercept=0, Modality="PT",
                 SOPClassUID=PositronEmissionTomographyImageStorage, direction=turned())
    volume, made_from = read(tmp_path / "pt")
    array = volume.array.astype(np.float32)
    array[0, 0, 5] = 20000
    write_derived_series(volume.with_array(array), made_from, "denoising", tmp_path / "new")
    made = [dcmread(path) for path in sorted((tmp_path / "new").iterdir())]
    assert [float(one.RescaleSlope) for one in made[:5]] == slopes[:5].tolist()
    assert made[5].RescaleSlope > 0.5
    assert {float(one.RescaleIntercept) for one in made} == {0}
    again = read_volume(tmp_path / "new")
    for k, one in enumerate(made):
        np.testing.assert_allclose(again.array[:, :, k], array[:, :, k], atol=float(one.RescaleSlope) / 2 + 1e-3)


def test_numbers_that_16_bits_cannot_hold_get_another_scale(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels(), RescaleSlope=1, RescaleIntercept=-1024)
    volume, made_from = read(tmp_path / "ct")
    array = np.linspace(-5e4, 2e5, volume.array.size, dtype=np.float32).reshape(volume.array.shape)
    write_derived_series(volume.with_array(array), made_from, "denoising", tmp_path / "new")
    again = read_volume(tmp_path / "new")
    np.testing.assert_allclose(again.array, array, atol=2.5e5 / 2**16 + 0.5)
    assert len({dcmread(path).RescaleSlope for path in (tmp_path / "new").iterdir()}) == 1


def test_all_slices_are_stored_in_one_type(tmp_path: Path) -> None:
    """Readers of a whole series take the type of its first file."""
    write_series(tmp_path / "ct", pixels(dtype="uint16", low=0), RescaleSlope=1, RescaleIntercept=0)
    volume, made_from = read(tmp_path / "ct")
    array = volume.array.astype(np.float32)
    array[3, 4, 2] = -7
    write_derived_series(volume.with_array(array), made_from, "denoising", tmp_path / "new")
    assert {dcmread(path).PixelRepresentation for path in (tmp_path / "new").iterdir()} == {1}
    np.testing.assert_array_equal(read_volume(tmp_path / "new").array, array)


@pytest.mark.parametrize("scale", [{}, {"RescaleSlope": 0.01, "RescaleIntercept": 3}], ids=["plain", "scaled"])
def test_mr_keeps_its_scale_or_has_none(tmp_path: Path, scale: dict[str, Any]) -> None:
    write_series(tmp_path / "mr", pixels(low=0), example="MR_small.dcm", direction=turned(), EchoTime=80, **scale)
    volume, made_from = read(tmp_path / "mr")
    write_derived_series(volume, made_from, "denoising", tmp_path / "new")
    np.testing.assert_allclose(read_volume(tmp_path / "new").array, volume.array, atol=1e-4)
    one = dcmread(tmp_path / "new" / "slice00001.dcm")
    assert one.EchoTime == 80
    assert one.get("RescaleSlope") == scale.get("RescaleSlope")


def test_synthesis_in_small_units_gets_a_scale_also_in_mr(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", pixels(low=0), example="MR_small.dcm")
    volume, made_from = read(tmp_path / "mr")
    array = np.linspace(-0.5, 1, volume.array.size, dtype=np.float32).reshape(volume.array.shape)
    write_derived_series(volume.with_array(array), made_from, "synthesis", tmp_path / "new")
    np.testing.assert_allclose(read_volume(tmp_path / "new").array, array, atol=3e-5)


def test_synthesis_forgets_the_contrast_of_the_source(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels(), RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU", KVP=120,
                 ContrastBolusAgent="Iod")
    volume, made_from = read(tmp_path / "ct")
    array = np.linspace(0, 1, volume.array.size, dtype=np.float32).reshape(volume.array.shape)
    check_derived_series(volume, made_from, "synthesis")
    write_derived_series(volume.with_array(array), made_from, "synthesis", tmp_path / "new")
    np.testing.assert_allclose(read_volume(tmp_path / "new").array, array, atol=2e-5)
    one = dcmread(tmp_path / "new" / "slice00003.dcm")
    assert (one.KVP, one.RescaleType) == (None, "US")
    assert "ContrastBolusAgent" not in one
    assert (one.WindowCenter, one.WindowWidth) == (0.5, 1)
    assert "synthesised, for research use only" in one.SeriesDescription


# --- what cannot be done, said before the work ---


def test_missing_places_and_frames_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels(), FrameOfReferenceUID=None)
    volume = read_volume(tmp_path / "ct")
    with pytest.raises(DicomSourceError, match=r"IM\d+\.dcm: lacks FrameOfReferenceUID.*write \.nii\.gz"):
        read_source(tmp_path / "ct", volume.geometry)
    with pytest.raises(DicomSourceError, match=r"rtdose\.dcm: is a multi-frame"):
        read_source(TEST_FILES / "rtdose.dcm", read_volume(TEST_FILES / "rtdose.dcm").geometry)
    radiograph = TEST_FILES / "dicomdirtests" / "77654033" / "CR1"
    with pytest.raises(DicomSourceError, match=r"lacks .*ImagePositionPatient"):
        read_source(radiograph, read_volume(radiograph).geometry)
    (tmp_path / "scan.nii").write_bytes(b"x" * 400)
    with pytest.raises(VolumeReadError, match=r"scan\.nii is no DICOM"):
        read_source(tmp_path / "scan.nii", volume.geometry)


def test_another_grid_and_doubled_instances_are_refused(tmp_path: Path) -> None:
    uids = write_series(tmp_path / "ct", pixels())
    volume = read_volume(tmp_path / "ct")
    moved = volume.geometry.affine.copy()
    moved[2, 3] += SPACING_MM[2]
    for other in (type(volume.geometry)(volume.geometry.shape, moved),
                  type(volume.geometry)((11, 14, 9), volume.geometry.affine),
                  type(volume.geometry)(volume.geometry.shape, volume.geometry.affine[:, [1, 0, 2, 3]])):
        with pytest.raises(DicomSourceError, match=r"voxel grid|do not make the"):
            read_source(tmp_path / "ct", other)
    path = tmp_path / "ct" / "IM0001.dcm"
    one = dcmread(path)
    one.SOPInstanceUID = uids[0]
    one.save_as(path)
    with pytest.raises(DicomSourceError, match="same SOPInstanceUID"):
        read_source(tmp_path / "ct", volume.geometry)
    one.SOPInstanceUID, one.FrameOfReferenceUID = uids[-1], "1.2.3"
    one.save_as(path)
    with pytest.raises(DicomSourceError, match="differ in FrameOfReferenceUID"):
        read_source(tmp_path / "ct", volume.geometry)


def test_headers_that_do_not_suffice_are_found_before_the_work(tmp_path: Path) -> None:
    """A number that is none; its text may be anything, and is not repeated."""
    write_series(tmp_path / "ct", pixels(), SeriesNumber=471100)
    for path in (tmp_path / "ct").iterdir():
        path.write_bytes(path.read_bytes().replace(b"471100", b"SECRET"))
    volume, made_from = read(tmp_path / "ct")
    with pytest.raises(DicomSourceError, match=r"ct: no DICOM segmentation can be made of these files \(ValueError\)"
                       ) as refused:
        check_dicom_seg(made_from, SEGMENTS, guided=True)
    assert "SECRET" not in str(refused.value)
    with pytest.raises(DicomSourceError, match=r"ct: no derived series can be made of these files \(ValueError\)"
                       ) as refused:
        check_derived_series(volume, made_from, "denoising")
    assert "SECRET" not in str(refused.value)
    for path in (tmp_path / "ct").iterdir():
        path.write_bytes(path.read_bytes().replace(b"12.25", b"12,25"))
    with pytest.raises(DicomSourceError, match=r"ct: has headers that cannot be read \(ValueError\)"):
        read_source(tmp_path / "ct", volume.geometry)
    made_from.headers[0].PhotometricInterpretation = "MONOCHROME1"
    with pytest.raises(DicomSourceError, match="holds MONOCHROME1 images"):
        check_derived_series(volume, made_from, "denoising")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None if name == "highdicom" else name)
    with pytest.raises(RuntimeError, match=re.escape("writing DICOM needs highdicom: pip install 'mvg-core[dicom]'")):
        read_source(tmp_path, read_volume(TEST_FILES / "CT_small.dcm").geometry)


# --- folders ---


def test_a_folder_is_filled_once_and_replaced_only_if_it_is_ours(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels())
    volume, made_from = read(tmp_path / "ct")
    folder = tmp_path / "new"
    folder.mkdir()
    write_derived_series(volume, made_from, "denoising", folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(VolumeWriteError, match="is not empty: choose another folder"):
        write_derived_series(volume, made_from, "denoising", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    write_derived_series(volume, made_from, "denoising", folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} != first
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(VolumeWriteError, match=r"holds 'notes\.txt', which is not part"):
        write_derived_series(volume, made_from, "denoising", folder, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["ct", "new"]


def test_the_series_itself_is_never_replaced(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "ct", pixels())
    for folder in (tmp_path / "a" / "ct", tmp_path / "a", tmp_path / "a" / ".." / "a" / "ct"):
        with pytest.raises(VolumeWriteError, match="is read by this run"):
            check_series_folder(folder, tmp_path / "a" / "ct", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(VolumeWriteError, match="is a file"):
        check_series_folder(tmp_path / "file", tmp_path / "a" / "ct", overwrite=True)
    with pytest.raises(VolumeWriteError, match="does not exist: create it first"):
        check_series_folder(tmp_path / "none" / "new", tmp_path / "a" / "ct", overwrite=True)


def test_a_failure_half_way_leaves_the_earlier_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "ct", pixels())
    volume, made_from = read(tmp_path / "ct")
    folder = tmp_path / "new"
    write_derived_series(volume, made_from, "denoising", folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    store, calls = dicom_series._store, []

    def full(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        store(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(dicom_series, "_store", full)
    with pytest.raises(VolumeWriteError, match="No space left on device"):
        write_derived_series(volume, made_from, "denoising", folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert sorted(os.listdir(tmp_path)) == ["ct", "new"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_earlier_series(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "ct", pixels())
    volume, made_from = read(tmp_path / "ct")
    folder = tmp_path / "new"
    write_derived_series(volume, made_from, "denoising", folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace, calls = os.replace, []

    def busy(one: Path, other: Path) -> None:
        calls.append(other)
        if len(calls) == 2:  # the earlier series is aside, the new one is about to take its place
            raise OSError(16, "Device or resource busy")
        replace(one, other)

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(VolumeWriteError, match="Device or resource busy"):
        write_derived_series(volume, made_from, "denoising", folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert sorted(os.listdir(tmp_path)) == ["ct", "new"]


def test_a_segment_name_that_dicom_cannot_hold_is_cut(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", pixels())
    volume, made_from = read(tmp_path / "ct")
    long = [Segment(3, "a\\b" + "c" * 80, (1, 2, 3)), Segment(7, "x", (0, 0, 0))]
    seg = dicom_seg(labels_of(volume), made_from, long, guided=True)
    assert seg.SegmentSequence[0].SegmentLabel == "a/b" + "c" * 61
