"""Files and DICOM folders: geometry to 0.1 micrometre, and a clear message for everything that is broken."""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.cifti2.cifti2_axes import BrainModelAxis, ScalarAxis
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from mvg_core import volume_io
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import (
    VolumeReadError,
    VolumeWarning,
    VolumeWriteError,
    count_frames,
    from_sitk,
    read_volume,
    to_sitk,
    write_volume,
)

SUFFIXES_3D = (".nii", ".nii.gz", ".nrrd", ".mha")


def numbered(shape: tuple[int, ...] = (4, 5, 6), dtype: str | type = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def affine(direction: np.ndarray, spacing_mm: tuple[float, float, float] = (0.71234567, 1 / 3, 4.1)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = direction * spacing_mm
    result[:3, 3] = (-123.456789, 87.6543211, 1000 / 3)
    return result


def oblique(degrees: float = 20) -> np.ndarray:
    angle = np.deg2rad(degrees)
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return about_z @ about_z[[2, 0, 1]][:, [2, 0, 1]]


def corner_error_mm(one: Geometry, other: Geometry) -> float:
    corners = np.array(list(product(*((0, n - 1) for n in one.shape))))
    return float(np.linalg.norm(one.index_to_world(corners) - other.index_to_world(corners), axis=1).max())


# --- round trips ---


@pytest.mark.parametrize("suffix", SUFFIXES_3D)
@pytest.mark.parametrize("turn", [np.eye(3), oblique(), oblique(45), oblique(180)], ids=["straight", "20", "45", "180"])
def test_round_trip_keeps_voxels_and_geometry(tmp_path: Path, suffix: str, turn: np.ndarray) -> None:
    orders = list(permutations(range(3)))
    for number, signs in enumerate(product((1.0, -1.0), repeat=3)):
        direction = turn @ np.eye(3)[:, list(orders[number % 6])] * signs
        volume = Volume(numbered(), Geometry((4, 5, 6), affine(direction)))
        path = tmp_path / f"{number}{suffix}"
        write_volume(volume, path)
        again = read_volume(path)
        np.testing.assert_array_equal(again.array, volume.array)
        assert again.array.dtype == np.int16
        assert corner_error_mm(again.geometry, volume.geometry) < 1e-4
        # other programs must see the same place: ITK's own reading of the file, in LPS
        itk = from_sitk(sitk.ReadImage(str(path)))
        assert corner_error_mm(itk.geometry, volume.geometry) < 1e-3


@pytest.mark.parametrize("suffix", SUFFIXES_3D)
def test_all_48_orientations_survive(tmp_path: Path, suffix: str) -> None:
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        geometry = Geometry((2, 3, 4), affine(np.eye(3)[:, list(order)] * signs))
        write_volume(Volume(numbered((2, 3, 4), np.uint8), geometry), tmp_path / f"v{suffix}", overwrite=True)
        again = read_volume(tmp_path / f"v{suffix}").geometry
        assert again.axis_codes == geometry.axis_codes
        assert corner_error_mm(again, geometry) < 1e-4


@pytest.mark.parametrize("suffix", SUFFIXES_3D)
def test_sheared_grids_keep_their_shear(tmp_path: Path, suffix: str) -> None:
    sheared = affine(oblique())
    sheared[:3, 2] += (0.5, -0.8, 0.3)
    volume = Volume(numbered(), Geometry((4, 5, 6), sheared))
    write_volume(volume, tmp_path / f"v{suffix}")
    assert corner_error_mm(read_volume(tmp_path / f"v{suffix}").geometry, volume.geometry) < 1e-4


@pytest.mark.parametrize("suffix", SUFFIXES_3D)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 4, 1), (1, 5, 4), (4, 1, 5), (7, 1, 1)])
def test_thin_volumes(tmp_path: Path, suffix: str, shape: tuple[int, int, int]) -> None:
    volume = Volume(numbered(shape), Geometry(shape, affine(oblique())))
    write_volume(volume, tmp_path / f"v{suffix}")
    again = read_volume(tmp_path / f"v{suffix}")
    np.testing.assert_array_equal(again.array, volume.array)
    assert again.geometry.is_close(volume.geometry)


@pytest.mark.parametrize("suffix", SUFFIXES_3D)
@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("uint8", "uint8"),
        ("int8", "int8"),
        ("int16", "int16"),
        ("uint16", "uint16"),
        ("int32", "int32"),
        ("uint32", "uint32"),
        ("float32", "float32"),
        ("float64", "float64"),
        (">i2", "int16"),
        (">f4", "float32"),
        ("bool", "uint8"),
        ("float16", "float32"),
        ("int64", "int32"),
        ("uint64", "int32"),
    ],
)
def test_number_types(tmp_path: Path, suffix: str, stored: str, read: str) -> None:
    volume = Volume.from_array(numbered((3, 4, 2), stored))
    write_volume(volume, tmp_path / f"v{suffix}")
    again = read_volume(tmp_path / f"v{suffix}").array
    assert again.dtype == np.dtype(read)
    np.testing.assert_array_equal(again, volume.array)


@pytest.mark.parametrize("suffix", SUFFIXES_3D)
def test_large_64_bit_numbers_stay(tmp_path: Path, suffix: str) -> None:
    array = np.array([[[2**40, -5]]])
    write_volume(Volume.from_array(array), tmp_path / f"v{suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"v{suffix}").array, array)


def test_more_voxels_along_an_axis_than_nifti1_can_count(tmp_path: Path) -> None:
    volume = Volume.from_array(np.ones((40000, 1, 1), np.uint8))
    write_volume(volume, tmp_path / "long.nii")
    assert read_volume(tmp_path / "long.nii").geometry.is_close(volume.geometry)


# --- the world of other programs ---


def test_itk_origin_and_direction_are_turned_from_lps_to_ras(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 3, 2), np.uint8))  # ITK's arrays are K, J, I
    image.SetOrigin((10, 20, 30))
    image.SetSpacing((1, 2, 3))
    for name in ("v.nrrd", "v.mha", "v.mhd", "v.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
        volume = read_volume(tmp_path / name)
        assert volume.geometry.shape == (2, 3, 4)
        np.testing.assert_allclose(
            volume.geometry.affine, [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]], atol=1e-5
        )


def test_sitk_conversion_both_ways() -> None:
    volume = Volume(numbered(), Geometry((4, 5, 6), affine(oblique())))
    image = to_sitk(volume)
    assert image.GetSize() == (4, 5, 6)
    assert image[1, 2, 3] == volume.array[1, 2, 3]
    lps = image.TransformIndexToPhysicalPoint((1, 2, 3))
    np.testing.assert_allclose(np.array(lps) * (-1, -1, 1), volume.geometry.index_to_world((1, 2, 3)))
    again = from_sitk(image)
    np.testing.assert_array_equal(again.array, volume.array)
    assert again.geometry.is_close(volume.geometry, tolerance_mm=1e-9)
    picture = from_sitk(sitk.GetImageFromArray(np.array([[1, 2, 3], [4, 5, 6]])))
    np.testing.assert_array_equal(picture.array[:, :, 0], [[1, 4], [2, 5], [3, 6]])
    with pytest.raises(ValueError, match="3 channels"):
        from_sitk(sitk.Image([2, 2], sitk.sitkVectorUInt8, 3))
    with pytest.raises(ValueError, match="4 axes"):
        from_sitk(sitk.Image([2, 2, 2, 2], sitk.sitkUInt8))


def nifti(array: np.ndarray, path: Path, **header: object) -> Path:
    """A file of 1 x 2 x 3 mm voxels; header fields are changed in the bytes, as no library would write them."""
    nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])).to_filename(path)
    if header:
        fields = np.frombuffer(path.read_bytes()[:348], dtype=nib.Nifti1Header.template_dtype).copy()
        for name, value in header.items():
            fields[name] = value
        path.write_bytes(fields.tobytes() + path.read_bytes()[348:])
    return path


def test_scaled_nifti_is_read_in_its_units(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered((2, 2, 2)), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    image.to_filename(tmp_path / "scaled.nii.gz")
    stored = nib.load(tmp_path / "scaled.nii.gz")
    assert isinstance(stored, nib.Nifti1Image)
    volume = read_volume(tmp_path / "scaled.nii.gz")
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, np.asarray(stored.dataobj), rtol=1e-6)


def test_nifti_in_metres_or_micrometres(tmp_path: Path) -> None:
    for unit, factor in (("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)):
        image = nib.Nifti1Image(numbered((2, 2, 2)), np.diag([1.0, 2.0, 3.0, 1.0]))
        image.header.set_xyzt_units(unit)
        image.to_filename(tmp_path / "v.nii")
        np.testing.assert_allclose(read_volume(tmp_path / "v.nii").geometry.spacing_mm, np.array([1, 2, 3]) * factor)


def test_nifti_without_orientation_warns(tmp_path: Path) -> None:
    path = nifti(numbered((2, 2, 2)), tmp_path / "v.nii", sform_code=0, qform_code=0)
    with pytest.warns(VolumeWarning, match=r"v\.nii: stores no orientation.*left and right may be swapped"):
        read_volume(path)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 1, 1), (3,)])
def test_nifti_with_fewer_or_more_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    volume = read_volume(nifti(numbered(shape), tmp_path / "v.nii"))
    np.testing.assert_array_equal(volume.array, numbered(shape).reshape((*shape, 1, 1)[:3]))


def test_slice_of_no_thickness_gets_one(tmp_path: Path) -> None:
    path = nifti(numbered((3, 4, 1)), tmp_path / "v.nii", srow_z=[0, 0, 0, 5])
    np.testing.assert_array_equal(read_volume(path).geometry.affine[2], [0, 0, 1, 5])
    path = nifti(numbered((3, 4, 1)), tmp_path / "v.nii", sform_code=0, qform_code=1, pixdim=[1, 1, 2, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(read_volume(path).geometry.spacing_mm, (1, 2, 1))


# --- frames ---


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.nrrd", "v.mha"])
def test_one_of_several_frames(tmp_path: Path, name: str) -> None:
    frames = numbered((2, 3, 4, 5))
    path = tmp_path / name
    if ".nii" in name:
        nifti(frames, path)
    else:
        image = sitk.JoinSeries([to_sitk(Volume.from_array(frames[..., t], (1, 2, 3))) for t in range(5)])
        sitk.WriteImage(image, str(path))
    assert count_frames(path) == 5
    for frame in (0, 3, 4):
        volume = read_volume(path, frame=frame)
        np.testing.assert_array_equal(volume.array, frames[..., frame])
        assert volume.geometry.spacing_mm == pytest.approx((1, 2, 3))
        assert volume.geometry.axis_codes == ("R", "A", "S")
    with pytest.raises(VolumeReadError, match=r"holds 5 frames.*frame=0 to frame=4"):
        read_volume(path)
    for frame in (5, -1):
        with pytest.raises(VolumeReadError, match=f"no frame {frame}: it holds 5, numbered from 0 to 4"):
            read_volume(path, frame=frame)


def test_frames_stored_as_channels(tmp_path: Path) -> None:
    """3D Slicer writes sequences so."""
    frames = numbered((2, 3, 4, 5))
    image = sitk.GetImageFromArray(np.ascontiguousarray(frames.transpose(2, 1, 0, 3)), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "v.nrrd"))
    assert count_frames(tmp_path / "v.nrrd") == 5
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nrrd", frame=2).array, frames[..., 2])


def test_frames_of_several_channels_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([2, 2, 2, 3], sitk.sitkVectorFloat32, 2), str(tmp_path / "v.nrrd"))
    with pytest.raises(VolumeReadError, match="3 frames of 2 channels"):
        read_volume(tmp_path / "v.nrrd")


def test_five_axes_count_in_storage_order(tmp_path: Path) -> None:
    frames = numbered((2, 2, 2, 3, 4))
    path = nifti(frames, tmp_path / "v.nii")
    assert count_frames(path) == 12
    np.testing.assert_array_equal(read_volume(path, frame=4).array, frames[..., 1, 1])


def test_an_ordinary_volume_has_one_frame(tmp_path: Path) -> None:
    path = nifti(numbered(), tmp_path / "v.nii")
    assert count_frames(path) == 1
    np.testing.assert_array_equal(read_volume(path, frame=0).array, numbered())
    with pytest.raises(VolumeReadError, match="no frame 1"):
        read_volume(path, frame=1)


# --- pictures ---


PICTURE = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)  # 2 rows, 3 columns


def picture(path: Path, array: np.ndarray = PICTURE) -> Path:
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 3)
    image.SetSpacing((0.3, 0.3))  # a resolution for printing
    sitk.WriteImage(image, str(path), imageIO={"png": "PNGImageIO"}.get(path.suffix[1:], ""))
    return path


def test_picture_becomes_one_slice_with_columns_first(tmp_path: Path) -> None:
    volume = read_volume(picture(tmp_path / "p.png"))
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array[:, :, 0], PICTURE.T)
    np.testing.assert_array_equal(volume.geometry.affine, np.diag([-1, -1, 1, 1]))
    assert volume.geometry.axis_codes == ("L", "P", "S")
    shown = volume.geometry.display(2)
    assert shown == (1, 0, False, False)


def test_upper_case_suffix_and_jpeg(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8) * 2
    picture(tmp_path / "p.jpg", smooth).rename(tmp_path / "P.JPG")
    volume = read_volume(tmp_path / "P.JPG")
    assert volume.geometry.spacing_mm == (1, 1, 1)
    np.testing.assert_allclose(volume.array[:, :, 0].astype(int), smooth.T, atol=4)


def test_colour_becomes_luminance_with_a_warning(tmp_path: Path) -> None:
    colour = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 10, 10]]], np.uint8)
    with pytest.warns(VolumeWarning, match=r"c\.png: colour image turned into luminance.*label map"):
        volume = read_volume(picture(tmp_path / "c.png", colour))
    assert volume.array.dtype == np.uint8
    # 0.299, 0.587 and 0.114 of 255
    np.testing.assert_array_equal(volume.array[:, 0, 0], [76, 150, 29, 255, 10])


def test_grey_stored_as_colour_is_kept_without_a_warning(tmp_path: Path) -> None:
    opaque = np.full((2, 3), 255, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for channels in ([PICTURE] * 3, [*[PICTURE] * 3, opaque]):
            volume = read_volume(picture(tmp_path / "g.png", np.stack(channels, axis=-1)))
            np.testing.assert_array_equal(volume.array[:, :, 0], PICTURE.T)


def test_grey_with_transparency_is_refused_with_advice(tmp_path: Path) -> None:
    path = picture(tmp_path / "g.png", np.stack([PICTURE, PICTURE], axis=-1))
    assert_unreadable(path, "grey PNG with transparency: save it without")


def test_16_bit_picture(tmp_path: Path) -> None:
    volume = read_volume(picture(tmp_path / "p.png", PICTURE.astype(np.uint16) * 1000))
    assert volume.array.dtype == np.uint16
    assert volume.array[2, 1, 0] == 60000


def test_colour_nifti(tmp_path: Path) -> None:
    rgb = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"] = 255
    nib.Nifti1Image(rgb, np.eye(4)).to_filename(tmp_path / "rgb.nii.gz")
    with pytest.warns(VolumeWarning, match="luminance"):
        volume = read_volume(tmp_path / "rgb.nii.gz")
    assert (volume.array == 76).all()
    assert volume.array.shape == (2, 2, 2)


def test_png_is_written_as_it_is_displayed(tmp_path: Path) -> None:
    for name, geometry, array in (
        ("lps", Geometry((3, 2, 1), np.diag([-1, -1, 1, 1])), PICTURE.T[:, :, None]),
        ("ras", Geometry((3, 2, 1), np.diag([1, 1, 1, 1])), PICTURE.T[::-1, ::-1, None]),
        # one coronal slice: i to Left, k to Superior
        ("coronal", Geometry((3, 1, 2), np.diag([-1, 1, 1, 1])), PICTURE[::-1].T[:, None, :]),
    ):
        write_volume(Volume(array, geometry), tmp_path / f"{name}.png")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{name}.png"))), PICTURE)


def test_png_round_trip_and_types(tmp_path: Path) -> None:
    for array, stored in ((PICTURE, "uint8"), (PICTURE.astype(int) * 1000, "uint16"), (PICTURE > 20, "uint8")):
        volume = Volume(array.T[:, :, None], Geometry((3, 2, 1), np.diag([-1, -1, 1, 1])))
        write_volume(volume, tmp_path / "p.png", overwrite=True)
        again = read_volume(tmp_path / "p.png")
        assert again.array.dtype == np.dtype(stored)
        np.testing.assert_array_equal(again.array, volume.array)
        assert again.geometry.is_close(volume.geometry)
    whole = Volume.from_array(PICTURE.astype(float))
    write_volume(whole, tmp_path / "f.png")
    assert read_volume(tmp_path / "f.png").array.dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((2, 2, 2), np.uint8), "a PNG holds one slice"),
        (np.full((2, 2, 1), 0.5), "whole numbers from 0 to 65535"),
        (np.full((2, 2, 1), -1), "whole numbers"),
        (np.full((2, 2, 1), 65536), "whole numbers"),
        (np.full((2, 2, 1), np.nan), "whole numbers"),
    ],
)
def test_what_a_png_cannot_hold(tmp_path: Path, array: np.ndarray, complaint: str) -> None:
    with pytest.raises(VolumeWriteError, match=complaint):
        write_volume(Volume.from_array(array), tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


# --- DICOM ---


def example(name: str) -> str:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return str(path)


def test_dicom_file_agrees_with_its_tags() -> None:
    for name in ("CT_small.dcm", "MR_small.dcm"):
        tags = pydicom.dcmread(example(name))
        volume = read_volume(example(name))
        assert volume.geometry.shape == (tags.Columns, tags.Rows, 1)
        hounsfield = tags.pixel_array * float(tags.get("RescaleSlope", 1)) + float(tags.get("RescaleIntercept", 0))
        np.testing.assert_array_equal(volume.array[:, :, 0], hounsfield.T)
        x, y, z = tags.ImagePositionPatient
        np.testing.assert_allclose(volume.geometry.index_to_world((0, 0, 0)), (-x, -y, z), atol=1e-6)
        assert volume.geometry.axis_codes == ("L", "P", "S")
        assert volume.geometry.spacing_mm[1] == pytest.approx(tags.PixelSpacing[0])
        assert volume.array.dtype.kind == "i"


def test_colour_dicom() -> None:
    with pytest.warns(VolumeWarning, match="luminance"):
        volume = read_volume(example("SC_rgb_small_odd.dcm"))
    expected = np.rint(pydicom.dcmread(example("SC_rgb_small_odd.dcm")).pixel_array @ [0.299, 0.587, 0.114])
    np.testing.assert_array_equal(volume.array[:, :, 0], expected.T)


def dicom_series(
    folder: Path,
    positions: list[tuple[float, float, float]],
    *,
    number_of: Callable[[int], int] = lambda n: n,
    **tags: object,
) -> Path:
    """CT slices whose voxels are all equal to their number; patient 'SECRET^NAME'."""
    folder.mkdir(exist_ok=True)
    uid = generate_uid()
    for n, position in enumerate(positions):
        one = pydicom.dcmread(example("CT_small.dcm"))
        one.PatientName = "SECRET^NAME"
        one.SeriesInstanceUID, one.SOPInstanceUID = uid, generate_uid()
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.ImagePositionPatient = [str(x) for x in position]
        one.InstanceNumber = number_of(n)
        one.RescaleIntercept, one.RescaleSlope = "0", "1"
        one.Rows, one.Columns = 3, 4
        one.PixelSpacing = ["2", "1"]  # rows are 2 mm apart
        one.PixelData = np.full((3, 4), n, np.int16).tobytes()
        for name, value in tags.items():
            setattr(one, name, value)
        one.save_as(folder / f"{(7 * n) % 1000:03d}{n}.dcm")
    return folder


def test_dicom_series_is_sorted_by_position(tmp_path: Path) -> None:
    heights = [10.0, 2.5, 7.5, 5.0, 0.0]
    volume = read_volume(dicom_series(tmp_path / "s", [(1, 2, z) for z in heights]))
    assert volume.geometry.shape == (4, 3, 5)
    np.testing.assert_array_equal(volume.array[0, 0], [4, 1, 3, 2, 0])
    np.testing.assert_allclose(
        volume.geometry.affine, [[-1, 0, 0, -1], [0, -2, 0, -2], [0, 0, 2.5, 0], [0, 0, 0, 1]], atol=1e-9
    )


def test_tilted_gantry_is_kept_as_shear(tmp_path: Path) -> None:
    """ITK's series reader would straighten it and misplace every slice."""
    volume = read_volume(dicom_series(tmp_path / "s", [(0, 0.5 * n, 3 * n) for n in range(4)]))
    np.testing.assert_allclose(volume.geometry.affine[:3, 2], (0, -0.5, 3), atol=1e-9)


def test_slices_may_be_rescaled_differently(tmp_path: Path) -> None:
    """As in PET."""
    dicom_series(tmp_path / "s", [(0, 0, z) for z in range(3)])
    for path in (tmp_path / "s").iterdir():
        one = pydicom.dcmread(path)
        one.RescaleSlope = str([1, 0.5, 0.25][one.InstanceNumber])
        one.save_as(path)
    volume = read_volume(tmp_path / "s")
    np.testing.assert_allclose(volume.array[0, 0], [0, 0.5, 0.5])


def test_missing_dicom_slice_is_reported(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path / "s", [(0, 0, z) for z in (0, 2, 4, 8, 10)])
    with pytest.raises(
        VolumeReadError, match=r"slices 3 and 4 are 4\.00 mm apart, others 2\.00 mm: restore the missing"
    ):
        read_volume(folder)


def test_two_dicom_slices_need_no_equal_steps(tmp_path: Path) -> None:
    assert read_volume(dicom_series(tmp_path / "s", [(0, 0, 0), (0, 0, 7)])).geometry.spacing_mm[2] == 7


def test_dicom_series_over_time(tmp_path: Path) -> None:
    positions = [(0.0, 0.0, float(z)) for _ in range(3) for z in (0, 5)]
    folder = dicom_series(tmp_path / "s", positions, number_of=lambda n: 10 - n)
    assert count_frames(folder) == 3
    # instance numbers run backwards: the last written files are the first frame
    np.testing.assert_array_equal(read_volume(folder, frame=0).array[0, 0], [4, 5])
    np.testing.assert_array_equal(read_volume(folder, frame=2).array[0, 0], [0, 1])
    with pytest.raises(VolumeReadError, match="holds 3 frames"):
        read_volume(folder)
    (folder / "0000.dcm").unlink()
    with pytest.raises(VolumeReadError, match="some slice positions have 2 files, others 3"):
        read_volume(folder)


def test_dicom_frames_of_one_slice(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path / "s", [(0, 0, 8)] * 3)
    assert count_frames(folder) == 3
    volume = read_volume(folder, frame=1)
    assert volume.geometry.shape == (4, 3, 1)
    assert (volume.array == 1).all()


def test_truncated_slice_at_the_end_of_a_series_is_noticed(tmp_path: Path) -> None:
    """Nothing else would tell: the other slices are even."""
    folder = dicom_series(tmp_path / "s", [(0, 0, z) for z in range(4)])
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        del one.DataSetTrailingPadding
        one.save_as(path)
    read_volume(folder)
    last = folder / "0213.dcm"
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(VolumeReadError, match=r"0213\.dcm is damaged or truncated: copy it again"):
        read_volume(folder)


def test_several_dicom_series_are_listed_without_patient_data(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    dicom_series(folder, [(0, 0, 0), (0, 0, 1)], SeriesDescription="thin", SeriesNumber=1)
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(".first"))
    dicom_series(folder, [(0, 0, 0)], SeriesDescription="thick", SeriesNumber=2)
    with pytest.raises(VolumeReadError) as caught:
        read_volume(folder)
    message = str(caught.value)
    assert "holds 2 DICOM series, needed one: move each to a folder of its own" in message
    assert "CT thin, 2 files" in message
    assert "CT thick, 1 files" in message
    assert "SECRET" not in message
    with pytest.raises(VolumeReadError, match="holds 2 DICOM series"):
        count_frames(folder)


def test_localizer_in_the_series_is_reported(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path / "s", [(0, 0, z) for z in range(3)])
    path = next(folder.iterdir())
    for name, value in (("PixelSpacing", ["1", "1"]), ("ImageOrientationPatient", list("100001"))):
        one = pydicom.dcmread(path)
        setattr(one, name, value)
        one.save_as(path)
        with pytest.raises(VolumeReadError, match="different size, spacing or orientation"):
            read_volume(folder)


def test_reports_beside_the_images_do_not_matter(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path / "s", [(0, 0, 0), (0, 0, 1)])
    for name in ("rtstruct.dcm", "test-SR.dcm"):
        (folder / name).write_bytes(Path(example(name)).read_bytes())
    (folder / "notes.txt").write_text("hello")
    assert read_volume(folder).geometry.shape == (4, 3, 2)


def test_folder_of_one_dicom_file(tmp_path: Path) -> None:
    folder = dicom_series(tmp_path / "s", [(0, 0, 3)])
    assert read_volume(folder).geometry.shape == (4, 3, 1)
    assert count_frames(folder) == 1


def test_several_multi_frame_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for name in ("a.dcm", "b.dcm"):
        one = pydicom.dcmread(example("rtdose.dcm"))
        one.SOPInstanceUID = generate_uid()
        one.save_as(folder / name)
    with pytest.raises(VolumeReadError, match="2 multi-frame files: give one of the files"):
        read_volume(folder)


def test_dicom_segmentation_is_refused() -> None:
    with pytest.raises(VolumeReadError, match="is a DICOM segmentation, not an image"):
        read_volume(example("liver_1frame.dcm"))


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(VolumeReadError, match=r"no DICOM images.*0 files, 0 folders"):
        read_volume(tmp_path)
    dicom_series(tmp_path / "inner", [(0, 0, 0)])
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(VolumeReadError, match=r"1 files, 1 folders\): give the folder that directly contains"):
        read_volume(tmp_path)


# --- what cannot be read ---


def assert_unreadable(path: Path, complaint: str) -> None:
    with pytest.raises(VolumeReadError, match=complaint) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "/SimpleITK" not in str(caught.value)
    assert "(0x" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    assert_unreadable(tmp_path / "none.nii", "no such file or folder: check the spelling")
    with pytest.raises(VolumeReadError, match="no such file"):
        count_frames(tmp_path / "none.nii")


@pytest.mark.parametrize("suffix", ["", ".txt", ".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".dcm"])
def test_empty_and_foreign_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.touch()
    assert_unreadable(path, r"empty \(0 bytes\)")
    path.write_text("this is not an image, " * 100)
    assert_unreadable(path, "damaged or truncated.*readable are NIfTI")


@pytest.mark.parametrize("suffix", [*SUFFIXES_3D, ".png", ".jpg", ".dcm"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"v{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 8)).astype(np.uint8)
    if suffix == ".dcm":
        path.write_bytes(Path(example("CT_small.dcm")).read_bytes())
    elif suffix in (".png", ".jpg"):
        picture(path, noise[..., 0])
    else:
        write_volume(Volume.from_array(noise), path)
    read_volume(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert_unreadable(path, "truncated")


def test_truncated_uncompressed_files(tmp_path: Path) -> None:
    for name in ("v.nrrd", "v.mha"):
        path = tmp_path / name
        sitk.WriteImage(to_sitk(Volume.from_array(numbered((20, 20, 20)))), str(path), useCompression=False)
        path.write_bytes(path.read_bytes()[:-100])
        assert_unreadable(path, "truncated")
    sitk.WriteImage(to_sitk(Volume.from_array(numbered())), str(tmp_path / "w.mhd"))
    (tmp_path / "w.raw").unlink()
    assert_unreadable(tmp_path / "w.mhd", "damaged or truncated")


def test_one_flipped_bit_in_a_gzip_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    # stored, not compressed: any byte may change without breaking the stream, only the checksum tells
    write_volume(Volume.from_array(np.zeros((40, 40, 40), np.uint8)), tmp_path / "v.nii")
    content = bytearray(gzip.compress((tmp_path / "v.nii").read_bytes(), compresslevel=0))
    path.write_bytes(content)
    read_volume(path)
    content[5000] ^= 1
    path.write_bytes(content)
    assert_unreadable(path, "damaged")


def test_jpeg_with_a_thumbnail_and_trailing_bytes(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.jpg", np.full((16, 16), 99, np.uint8))
    content = path.read_bytes()
    thumbnail = b"\xff\xe1" + (2 + len(content)).to_bytes(2, "big") + content
    path.write_bytes(content[:2] + thumbnail + content[2:] + b"appended by a camera")
    read_volume(path)
    path.write_bytes((content[:2] + thumbnail + content[2:])[:-10])
    assert_unreadable(path, "ends before its end marker")


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_singular_affine_is_reported_with_the_path(tmp_path: Path, bad: float) -> None:
    path = nifti(numbered(), tmp_path / "v.nii", srow_x=[bad, 0, 0, 0], sform_code=2)
    assert_unreadable(path, "repair the file's orientation header")


def test_parallel_in_plane_axes_are_reported(tmp_path: Path) -> None:
    path = nifti(numbered(), tmp_path / "v.nii", srow_x=[1, 1, 0, 0], srow_y=[0, 0, 0, 0], srow_z=[0, 0, 0, 0])
    assert_unreadable(path, "singular")


def test_header_without_voxels(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    assert_unreadable(nifti(np.zeros((2, 2, 2, 3)), path, dim=[4, 2, 2, 2, 0, 1, 1, 1]), "no voxels")
    assert_unreadable(nifti(np.zeros((2, 2, 2)), path, dim=[3, 0, 2, 2, 1, 1, 1, 1]), "at least one voxel")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    assert_unreadable(nifti(np.ones((2, 2, 2), np.complex64), tmp_path / "v.nii"), "convert them to integers or real")


def test_other_formats_of_nibabel_are_no_nifti(tmp_path: Path) -> None:
    axes = ScalarAxis(["x"]), BrainModelAxis.from_mask(np.ones((2, 2, 2)), affine=np.eye(4))
    nib.Cifti2Image(np.zeros((1, 8), np.float32), axes).to_filename(tmp_path / "x.dscalar.nii")
    assert_unreadable(tmp_path / "x.dscalar.nii", "found Cifti2Image, needed NIfTI")
    zeros = np.zeros((2, 2, 2), np.float32)
    nib.MGHImage(zeros, np.eye(4)).to_filename(tmp_path / "a.mgh")  # pyright: ignore[reportArgumentType]
    (tmp_path / "a.mgh").rename(tmp_path / "a.nii")
    assert_unreadable(tmp_path / "a.nii", "damaged or truncated")


def test_a_header_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("Unable to allocate 8 TiB")

    path = nifti(numbered(), tmp_path / "v.nii")
    monkeypatch.setattr(volume_io, "_load_nifti", no_memory)
    assert_unreadable(path, "does not fit into memory, or its header is damaged: Unable to allocate 8 TiB")


# --- what cannot be written ---


VOLUME = Volume.from_array(numbered())


def test_existing_file_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    path.write_text("precious")
    with pytest.raises(VolumeWriteError, match=r"v\.nii\.gz exists: choose another name.*--overwrite"):
        write_volume(VOLUME, path)
    assert path.read_text() == "precious"
    write_volume(VOLUME, path, overwrite=True)
    np.testing.assert_array_equal(read_volume(path).array, VOLUME.array)
    assert os.listdir(tmp_path) == ["v.nii.gz"]


@pytest.mark.parametrize("suffix", [*SUFFIXES_3D, ".png"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"v{suffix}"
    path.write_text("precious")

    def disk_full(_: Volume, temporary: Path) -> None:
        temporary.write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(volume_io._WRITERS, suffix, disk_full)
    with pytest.raises(VolumeWriteError, match=r"could not be written.*No space left on device.*free space"):
        write_volume(VOLUME, path, overwrite=True)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == [path.name]


def test_a_user_who_interrupts_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Volume, temporary: Path) -> None:
        temporary.write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setitem(volume_io._WRITERS, ".nii", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_volume(VOLUME, tmp_path / "v.nii")
    assert not os.listdir(tmp_path)


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file appears by a rename in the same folder, when all of it is written."""
    seen = []
    replace = os.replace

    def watched(temporary: Path, path: Path) -> None:
        seen.append((temporary.parent, path.exists(), read_volume(temporary).geometry.shape))
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", watched)
    write_volume(VOLUME, tmp_path / "v.nii.gz")
    assert seen == [(tmp_path, False, (4, 5, 6))]


def test_unknown_suffix_folder_and_missing_folder(tmp_path: Path) -> None:
    for name in ("v.dcm", "v.jpg", "v", "v.mhd"):
        with pytest.raises(VolumeWriteError, match=r"choose \.nii, \.nii\.gz, \.nrrd, \.mha, \.png"):
            write_volume(VOLUME, tmp_path / name)
    (tmp_path / "d.nii").mkdir()
    with pytest.raises(VolumeWriteError, match="is a folder"):
        write_volume(VOLUME, tmp_path / "d.nii", overwrite=True)
    with pytest.raises(VolumeWriteError, match="does not exist: create it first"):
        write_volume(VOLUME, tmp_path / "none" / "v.nii")


@pytest.mark.parametrize("suffix", SUFFIXES_3D)
def test_unwritable_folder(tmp_path: Path, suffix: str) -> None:
    folder = Path("/proc/self")  # nobody can create a file here, not even root
    if not folder.is_dir():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
    with pytest.raises(VolumeWriteError, match="check free space and write permission"):
        write_volume(VOLUME, folder / f"v{suffix}")


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "touched").touch()
    write_volume(VOLUME, tmp_path / "v.nii")
    assert (tmp_path / "v.nii").stat().st_mode == (tmp_path / "touched").stat().st_mode


def test_umlauts_and_spaces_in_paths(tmp_path: Path) -> None:
    folder = tmp_path / "Köln 心臓"
    folder.mkdir()
    for suffix in SUFFIXES_3D:
        write_volume(VOLUME, folder / f"größe 1{suffix}")
        np.testing.assert_array_equal(read_volume(str(folder / f"größe 1{suffix}")).array, VOLUME.array)
