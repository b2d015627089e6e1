"""Image files and DICOM folders <-> `Volume`. The only place that turns LPS (DICOM, ITK) into RAS+ and back.

NIfTI goes through nibabel, which keeps sheared grids and notices truncated files (ITK 5.4 returns noise instead);
everything else goes through SimpleITK.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.fileholders import FileHolder

from mvg_core.volume import Geometry, Volume

READABLE = "NIfTI (.nii, .nii.gz), NRRD, MHA/MHD, DICOM (file or folder), PNG, JPEG"

_NIFTI = (".nii", ".nii.gz")
_JPEG = (".jpg", ".jpeg")
# Formats without a patient: their resolution tags are about printing, so the spacing is 1.
PICTURES = (".png", *_JPEG, ".bmp", ".tif", ".tiff")

_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Rec. ITU-R BT.601, section 2.5.1: luminance of red, green, blue.
_LUMINANCE = np.array([0.299, 0.587, 0.114])
# "ITK ERROR: PNGImageIO(0x55f0c0de): " says nothing to the reader of a message.
_LIBRARY_PREFIX = re.compile(r"^(sitk::ERROR|ITK ERROR):\s*(\w+\(0x[0-9a-f]+\):\s*)?")
_MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}
_NIFTI1_LARGEST_AXIS = 32767

# DICOM slices: closer than this is the same position; a step off by more than this share is a missing slice.
_SAME_POSITION_MM = 1e-3
_UNEVEN_STEP = 0.05
_SAME_ORIENTATION = 1e-4


class VolumeReadError(ValueError):
    """A file or folder that is not a readable volume; the message has the path, what was found and what to do."""


class VolumeWriteError(OSError):
    """A volume that could not be written; nothing is left behind."""


class VolumeWarning(UserWarning):
    """Something about a file that changes what is seen, though the file can be read."""


@dataclass
class _Loaded:
    """Voxels (I, J, K) or (I, J, K, channels) with their affine (RAS+), and what the user should know."""

    array: np.ndarray
    affine: np.ndarray
    remarks: list[str] = field(default_factory=list)


class _Opened(NamedTuple):
    """A file whose header was read: how many frames it has, and how to read one of them."""

    n_frames: int
    load: Callable[[int], _Loaded]


def read_volume(path: str | os.PathLike[str], *, frame: int | None = None) -> Volume:
    """Read one volume; the number type of the file is kept.

    Colour becomes luminance (with a `VolumeWarning` unless all three channels are the same). A picture (PNG, JPEG)
    becomes a volume (width, height, 1) with unit spacing, index i along its columns, j along its rows, so that an axial
    slice looks like the picture.

    Args:
        path: NIfTI, NRRD, MHA/MHD, DICOM file or folder of one DICOM series, PNG, JPEG.
        frame: which frame of a file that holds several, counted from 0.

    Raises:
        VolumeReadError: missing, damaged, truncated or empty; several frames and none chosen; several DICOM series;
            DICOM slices that do not form an even stack.
    """
    path = Path(path)
    opened = _open(path)
    number = _checked_frame(path, opened.n_frames, frame)
    try:
        loaded = opened.load(number)
    except Exception as error:
        raise _read_error(path, error) from error
    grey, remark = _grey(loaded.array)
    for text in [*loaded.remarks, *remark]:
        warnings.warn(f"{path}: {text}", VolumeWarning, stacklevel=2)
    try:
        return Volume(_native(grey), Geometry(_three(grey.shape), _with_thickness(loaded.affine)))
    except ValueError as error:
        raise VolumeReadError(f"{path}: {error}") from error


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of frames in a file or DICOM folder, from its headers; 1 for an ordinary volume.

    Raises:
        VolumeReadError: as `read_volume`.
    """
    return _open(Path(path)).n_frames


def write_volume(volume: Volume, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a volume so that `path` either holds all of it or is untouched.

    Booleans are stored as uint8, 16-bit floats as 32-bit, and 64-bit integers as 32-bit where the values allow it.

    Args:
        volume: any grid; sheared grids keep their shear.
        path: ends in .nii, .nii.gz, .nrrd, .mha or, for a volume of one slice with whole numbers 0..65535, .png
            (written as the slice is displayed; a picture keeps no spacing).
        overwrite: replace an existing file.

    Raises:
        VolumeWriteError: unknown suffix, existing file, folder missing or not writable, voxels that the format cannot
            hold.
    """
    path = Path(path)
    write = _WRITERS.get(_suffix(path))
    if write is None:
        raise VolumeWriteError(f"{path}: cannot write this kind of file: choose {', '.join(_WRITERS)}")
    write_whole(path, lambda temporary: write(volume, temporary), overwrite=overwrite)


def write_whole(path: Path, write: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Let `write` write a file so that `path` either holds all of it or is untouched.

    Args:
        path: the file to be.
        write: is given another name in the same folder, with the same suffix.
        overwrite: replace an existing file.

    Raises:
        VolumeWriteError: existing file, folder missing or not writable, `write` failed.
    """
    if path.is_dir():
        raise VolumeWriteError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise VolumeWriteError(f"{path}: folder {path.parent} does not exist: create it first")
    if path.exists() and not overwrite:
        raise VolumeWriteError(f"{path} exists: choose another name, or replace it with --overwrite (overwrite=True)")
    # In the same folder, so that the last step is a rename and cannot stop half way.
    temporary = path.with_name(f".{uuid4().hex}{_suffix(path)}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except VolumeWriteError as error:
        raise VolumeWriteError(f"{path}: {error}") from error
    except Exception as error:
        raise VolumeWriteError(
            f"{path}: could not be written ({_reason(error)}): check free space and write permission of {path.parent}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def dicom_files(path: str | os.PathLike[str], *, frame: int | None = None) -> list[Path]:
    """The files that `read_volume` reads one volume from: one for each slice, or one with all of them.

    Args:
        path: DICOM file or folder of one DICOM series.
        frame: as for `read_volume`; None where there is only one.

    Raises:
        VolumeReadError: not DICOM; a folder that `read_volume` refuses.
    """
    path = Path(path)
    if path.is_dir():
        files = _files_of_only_series(path)
        return [Path(one[frame or 0].path) for one in _dicom_stack(path, files)] if len(files) > 1 else [Path(files[0])]
    with path.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            raise VolumeReadError(f"{path} is no DICOM file or folder")
    return [path]


def ras_from_lps(mm: np.ndarray) -> np.ndarray:
    """Positions or directions (..., 3) of DICOM and ITK (LPS) in the world of `Geometry` (RAS+); its own inverse."""
    return np.asarray(mm, dtype=np.float64) * np.diag(_RAS_FROM_LPS)[:3]


def to_sitk(volume: Volume) -> sitk.Image:
    """The volume as a SimpleITK image (LPS); voxels are copied, in a type that ITK knows."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(_storable(volume.array).transpose(2, 1, 0)))
    geometry = volume.geometry
    image.SetSpacing(geometry.spacing_mm)
    image.SetDirection((_RAS_FROM_LPS[:3, :3] @ geometry.direction).ravel().tolist())
    image.SetOrigin((_RAS_FROM_LPS @ geometry.affine)[:3, 3].tolist())
    return image


def from_sitk(image: sitk.Image) -> Volume:
    """A SimpleITK image (LPS) of one channel, 2D or 3D, as a volume; voxels are copied.

    Raises:
        ValueError: more than one channel or more than three axes.
    """
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() > 3:
        raise ValueError(
            f"image has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} channels,"
            " needed at most 3 axes and 1 channel: pick one frame or channel first"
        )
    loaded = _from_itk(image)
    return Volume(loaded.array, Geometry(_three(loaded.array.shape), loaded.affine))


# ------------------------------------------------------------------------------------------------------------ reading


def _open(path: Path) -> _Opened:
    if not path.exists():
        raise VolumeReadError(f"{path}: no such file or folder: check the spelling, and that its drive is connected")
    try:
        if path.is_dir():
            return _open_dicom_folder(path)
        if path.stat().st_size == 0:
            raise VolumeReadError(f"{path}: the file is empty (0 bytes): copy or export it again")
        return _open_nifti(path) if _suffix(path) in _NIFTI else _open_itk(path)
    except VolumeReadError:
        raise
    except Exception as error:
        raise _read_error(path, error) from error


def _checked_frame(path: Path, n_frames: int, frame: int | None) -> int:
    if frame is None:
        if n_frames > 1:
            raise VolumeReadError(
                f"{path}: holds {n_frames} frames, needed one volume: choose one, frame=0 to frame={n_frames - 1}"
            )
        return 0
    if not 0 <= frame < n_frames:
        raise VolumeReadError(f"{path}: has no frame {frame}: it holds {n_frames}, numbered from 0 to {n_frames - 1}")
    return frame


def _open_nifti(path: Path) -> _Opened:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one too
        raise VolumeReadError(f"{path}: found {type(image).__name__}, needed NIfTI: rename or convert it")
    n_frames = math.prod(image.shape[3:])
    if n_frames == 0:
        raise VolumeReadError(f"{path}: its header says shape {image.shape}, no voxels: export it again")
    return _Opened(n_frames, lambda frame: _load_nifti(path, type(image), frame))


def _load_nifti(path: Path, kind: type[nib.Nifti1Image], frame: int) -> _Loaded:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as stream:
        image = kind.from_file_map({"image": FileHolder(fileobj=stream)})
        later = np.unravel_index(frame, image.shape[3:], order="F") if len(image.shape) > 3 else ()
        array = np.asarray(image.dataobj[(..., *(int(n) for n in later))])
        # Only the end of a gzip stream has the checksum.
        while stream.read(2**20):
            pass
    header = image.header
    if array.dtype.names:  # RGB24, RGBA32
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
        array = array.reshape(*(*image.shape, 1, 1)[:3], array.shape[-1])
    else:
        array = array.reshape((*image.shape, 1, 1)[:3])
    stored = header.get_data_dtype()
    if array.dtype == np.float64 and stored.kind in "iu" and stored.itemsize <= 2:
        array = array.astype(np.float32)  # scaled 16-bit numbers: float32 has digits enough
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(str(header.get_xyzt_units()[0]), 1.0)
    remarks = []
    if header["qform_code"] == 0 and header["sform_code"] == 0:
        remarks.append("stores no orientation (qform and sform are 0): left and right may be swapped")
    return _Loaded(array, affine, remarks)


def _open_itk(path: Path) -> _Opened:
    if _suffix(path) in _JPEG:
        _check_jpeg_is_complete(path)
    if _suffix(path) == ".png":
        _check_png_has_no_grey_alpha(path)
    reader = _header(str(path))
    if _tag(reader, "0008|0060") == "SEG":
        raise VolumeReadError(f"{path}: is a DICOM segmentation, not an image: convert it to NIfTI first")
    later = reader.GetSize()[3:]
    channels = reader.GetNumberOfComponents()
    if later and channels > 1:
        raise VolumeReadError(
            f"{path}: holds {math.prod(later)} frames of {channels} channels: convert it to one channel"
        )
    if later:
        return _Opened(math.prod(later), lambda frame: _load_itk_frame(reader, frame))
    if channels > 1 and not _is_colour(reader):
        return _Opened(channels, lambda frame: _load_itk_channel(reader, frame))
    return _Opened(1, lambda _: _load_itk(reader))


def _is_colour(reader: sitk.ImageFileReader) -> bool:
    """Red, green, blue (and opacity); other channels are frames of a series."""
    unsigned = reader.GetPixelID() in (sitk.sitkVectorUInt8, sitk.sitkVectorUInt16)
    return unsigned and reader.GetNumberOfComponents() in (3, 4)


def _load_itk(reader: sitk.ImageFileReader) -> _Loaded:
    image = reader.Execute()
    loaded = _from_itk(image)
    if _suffix(Path(reader.GetFileName())) in PICTURES:
        loaded.affine = _RAS_FROM_LPS.copy()
    return loaded


def _load_itk_channel(reader: sitk.ImageFileReader, frame: int) -> _Loaded:
    return _from_itk(sitk.VectorIndexSelectionCast(reader.Execute(), frame))


def _load_itk_frame(reader: sitk.ImageFileReader, frame: int) -> _Loaded:
    size = reader.GetSize()
    later = np.unravel_index(frame, size[3:], order="F")
    reader.SetExtractIndex([0, 0, 0, *(int(n) for n in later)])
    reader.SetExtractSize([*size[:3], *(0 for _ in later)])
    return _from_itk(reader.Execute())


def _from_itk(image: sitk.Image) -> _Loaded:
    """A 2D or 3D image with any number of channels."""
    array = sitk.GetArrayFromImage(image)
    n_axes = image.GetDimension()
    array = array.transpose(*reversed(range(n_axes)), *range(n_axes, array.ndim))
    affine = np.eye(4)
    affine[:n_axes, :n_axes] = np.reshape(image.GetDirection(), (n_axes, n_axes)) * np.array(image.GetSpacing())
    affine[:n_axes, 3] = image.GetOrigin()
    if n_axes == 2:
        array = array[:, :, None]
    return _Loaded(array, _RAS_FROM_LPS @ affine)


def _check_jpeg_is_complete(path: Path) -> None:
    """ITK fills what is missing of a JPEG with grey; the end marker tells whether anything is missing."""
    content = path.read_bytes()
    if not content.startswith(b"\xff\xd8"):
        return  # not a JPEG at all: the reader says so
    position = 2
    # Headers may embed a thumbnail with an end marker of its own: skip them to the start of scan.
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    if b"\xff\xd9" not in content[position:]:
        raise VolumeReadError(f"{path}: the JPEG ends before its end marker, so it is truncated: copy it again")


def _check_png_has_no_grey_alpha(path: Path) -> None:
    """ITK cannot read grey with transparency, and its message does not say so."""
    with path.open("rb") as stream:
        head = stream.read(26)
    # PNG specification, 11.2.1: byte 25 is the colour type, 4 is greyscale with alpha.
    if head.startswith(b"\x89PNG") and head[25:] == b"\x04":
        raise VolumeReadError(f"{path}: is a grey PNG with transparency: save it without transparency")


def _grey(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(I, J, K[, channels]) -> (I, J, K) of the same type, and a remark when colours were lost."""
    if array.ndim == 3:
        return array, []
    if (array[..., :1] == array[..., 1:3]).all():
        return array[..., 0], []
    luminance = np.rint(array[..., :3] @ _LUMINANCE)
    remark = (
        "colour image turned into luminance (Rec. 601); if it is a label map, store it with one grey value per label"
    )
    return luminance.astype(array.dtype), [remark]


def _with_thickness(affine: np.ndarray) -> np.ndarray:
    """A file of one slice may give its thickness as 0: then the third axis becomes the unit normal."""
    if np.any(affine[:3, 2]) or not np.isfinite(affine).all():
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    if length == 0:
        return affine
    affine = affine.copy()
    affine[:3, 2] = normal / length
    return affine


def _native(array: np.ndarray) -> np.ndarray:
    """The same numbers in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    i, j, k = shape
    return i, j, k


# -------------------------------------------------------------------------------------------------------------- DICOM


class _DicomSlice(NamedTuple):
    path: str
    size: tuple[int, ...]
    grid: np.ndarray  # (12,) direction and spacing, which all slices share
    origin: np.ndarray  # (3,) LPS mm
    number: int


def _open_dicom_folder(path: Path) -> _Opened:
    files = _files_of_only_series(path)
    if len(files) == 1:
        return _open_itk(Path(files[0]))
    stack = _dicom_stack(path, files)
    return _Opened(len(stack[0]), lambda frame: _load_dicom([position[frame] for position in stack]))


def _dicom_stack(path: Path, files: list[str]) -> list[list[_DicomSlice]]:
    """The slices of a series by position, at every position its frames; VolumeReadError if they form no stack."""
    slices = [_read_dicom_header(name) for name in files]
    first = slices[0]
    for other in slices[1:]:
        if other.size != first.size or not np.allclose(other.grid, first.grid, atol=_SAME_ORIENTATION, rtol=0):
            raise VolumeReadError(
                f"{path}: {Path(first.path).name} and {Path(other.path).name} have different size, spacing or"
                " orientation (a localizer?): keep only slices of one stack in the folder"
            )
    if first.size[2] != 1:
        raise VolumeReadError(f"{path}: holds {len(files)} multi-frame files: give one of the files instead")
    return _stack(path, slices)


def _files_of_only_series(path: Path) -> list[str]:
    """The files of the only image series in a folder, or VolumeReadError listing what is there."""
    found: dict[str, list[str]] = {}
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path)):
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), uid)
        found[uid] = list(files)
    if not found:
        n_files = sum(entry.is_file() for entry in path.iterdir())
        n_folders = sum(entry.is_dir() for entry in path.iterdir())
        raise VolumeReadError(
            f"{path}: no DICOM images in this folder (it holds {n_files} files, {n_folders} folders):"
            " give the folder that directly contains one series"
        )
    if len(found) > 1:
        lines = [f"  {uid}: {_describe_series(files)}, {len(files)} files" for uid, files in found.items()]
        raise VolumeReadError(
            f"{path}: holds {len(found)} DICOM series, needed one: move each to a folder of its own\n"
            + "\n".join(lines)
        )
    files = next(iter(found.values()))
    _check_all_slices_are_known(path, files)
    return files


def _describe_series(files: list[str]) -> str:
    """Modality and description of a series, nothing about the patient."""
    reader = _header(files[0])
    return " ".join(_tag(reader, tag) or "?" for tag in ("0008|0060", "0008|103e"))


def _check_all_slices_are_known(path: Path, files: list[str]) -> None:
    """GDCM passes over damaged files without a word, and the stack would lack a slice.

    Raises:
        VolumeReadError: a file of the same kind as the series (by its SOP class, which stands at its beginning) is not
            among `files`.
    """
    kind = re.compile(re.escape(_tag(_header(files[0]), "0008|0016").encode()) + rb"[^0-9.]")
    known = {Path(name).name for name in files}
    for entry in sorted(path.iterdir()):
        if entry.name in known or not entry.is_file():
            continue
        with entry.open("rb") as stream:
            beginning = stream.read(1024)
        if beginning[128:132] == b"DICM" and kind.search(beginning):
            raise VolumeReadError(f"{path}: {entry.name} is damaged or truncated: copy it again, or remove it")


def _read_dicom_header(name: str) -> _DicomSlice:
    reader = _header(name)
    number = _tag(reader, "0020|0013")
    return _DicomSlice(
        name,
        reader.GetSize(),
        np.array([*reader.GetDirection(), *reader.GetSpacing()]),
        np.array(reader.GetOrigin()),
        int(number) if number.lstrip("-").isdigit() else 0,
    )


def _header(name: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    return reader


def _tag(reader: sitk.ImageFileReader, tag: str) -> str:
    return reader.GetMetaData(tag).strip().strip("\0") if reader.HasMetaDataKey(tag) else ""


def _stack(path: Path, slices: list[_DicomSlice]) -> list[list[_DicomSlice]]:
    """Slices by position along the normal; at every position the frames in the order of their numbers.

    Raises:
        VolumeReadError: unequal numbers of frames, or steps that differ (a missing slice).
    """
    normal = slices[0].grid[:9].reshape(3, 3)[:, 2]
    by_position: list[list[_DicomSlice]] = []
    for one in sorted(slices, key=lambda one: float(one.origin @ normal)):
        if by_position and abs(float((one.origin - by_position[-1][0].origin) @ normal)) < _SAME_POSITION_MM:
            by_position[-1].append(one)
        else:
            by_position.append([one])
    counts = {len(frames) for frames in by_position}
    if len(counts) > 1:
        raise VolumeReadError(
            f"{path}: some slice positions have {min(counts)} files, others {max(counts)}:"
            " files are missing or doubled, export the series again"
        )
    _check_even_steps(path, np.array([frames[0].origin for frames in by_position]))
    return [sorted(frames, key=lambda one: one.number) for frames in by_position]


def _check_even_steps(path: Path, origins: np.ndarray) -> None:
    """Slices must follow each other along one line in equal steps (a tilted gantry may shift them sideways)."""
    steps = np.diff(origins, axis=0)
    if len(steps) < 2:
        return
    typical = np.median(steps, axis=0)
    off = np.linalg.norm(steps - typical, axis=1)
    worst = int(np.argmax(off))
    if off[worst] > _UNEVEN_STEP * np.linalg.norm(typical):
        raise VolumeReadError(
            f"{path}: slices {worst + 1} and {worst + 2} are {np.linalg.norm(steps[worst]):.2f} mm apart, others"
            f" {np.linalg.norm(typical):.2f} mm: restore the missing files, or resample the series to even slices first"
        )


def _load_dicom(stack: list[_DicomSlice]) -> _Loaded:
    """One file after the other, because rescaling may differ from slice to slice (PET)."""
    loaded = [_from_itk(sitk.ReadImage(one.path)) for one in stack]
    affine = loaded[0].affine
    if len(stack) > 1:
        step = (stack[-1].origin - stack[0].origin) / (len(stack) - 1)
        affine[:3, 2] = _RAS_FROM_LPS[:3, :3] @ step
    # Slices are stacked first and the axes moved afterwards, which keeps each slice together in memory.
    return _Loaded(np.moveaxis(np.stack([one.array[:, :, 0] for one in loaded]), 0, 2), affine)


# ------------------------------------------------------------------------------------------------------------ writing


def _write_nifti(volume: Volume, path: Path) -> None:
    array, geometry = _storable(volume.array), volume.geometry
    kind = nib.Nifti2Image if max(geometry.shape) > _NIFTI1_LARGEST_AXIS else nib.Nifti1Image
    image = kind(array, geometry.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(geometry.affine, code=1)
    square = np.allclose(geometry.direction.T @ geometry.direction, np.eye(3), atol=1e-6)
    # A qform is a rotation and cannot say what a sheared grid is.
    image.set_qform(geometry.affine if square else None, code=1 if square else 0)
    nib.save(image, path)


def _write_itk(volume: Volume, path: Path) -> None:
    sitk.WriteImage(to_sitk(volume), str(path), useCompression=True)


def _write_png(volume: Volume, path: Path) -> None:
    geometry = volume.geometry
    flat = [
        axis for axis in map(geometry.anatomical_axis, ("axial", "coronal", "sagittal")) if geometry.shape[axis] == 1
    ]
    if not flat:
        raise VolumeWriteError(f"a PNG holds one slice, the volume has shape {geometry.shape}: write .nii.gz instead")
    shown = geometry.display(flat[0])
    picture = volume.array.transpose(flat[0], shown.row_axis, shown.column_axis)[0]
    picture = picture[:: -1 if shown.flip_rows else 1, :: -1 if shown.flip_columns else 1]
    low, high = picture.min(), picture.max()
    if not (low >= 0 and high <= 65535 and np.array_equal(picture, np.round(picture))):
        raise VolumeWriteError(
            f"a PNG holds whole numbers from 0 to 65535, the volume goes from {low} to {high} as {picture.dtype}:"
            " rescale and round it, or write .nii.gz instead"
        )
    picture = np.ascontiguousarray(picture, dtype=np.uint8 if high <= 255 else np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(path))


def _storable(array: np.ndarray) -> np.ndarray:
    """The same values in a type that every image format and viewer knows."""
    array = _native(array)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        return array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64, copy=False)
    if array.dtype.itemsize == 8:
        small = np.iinfo(np.int32)
        if array.min() >= small.min and array.max() <= small.max:
            return array.astype(np.int32)
    return array


_WRITERS: dict[str, Callable[[Volume, Path], None]] = {
    ".nii": _write_nifti,
    ".nii.gz": _write_nifti,
    ".nrrd": _write_itk,
    ".mha": _write_itk,
    ".png": _write_png,
}


def _suffix(path: Path) -> str:
    """'.nii.gz' for both letters cases, otherwise the last suffix."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _read_error(path: Path, error: Exception) -> VolumeReadError:
    if isinstance(error, MemoryError):
        return VolumeReadError(f"{path}: does not fit into memory, or its header is damaged: {_reason(error)}")
    return VolumeReadError(
        f"{path}: not an image that can be read, or damaged or truncated ({_reason(error)}):"
        f" copy or export it again; readable are {READABLE}"
    )


def _reason(error: Exception) -> str:
    """What a library said, on one line and without its source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "/SimpleITK" not in line]
    reason = _LIBRARY_PREFIX.sub("", lines[-1]) if lines else ""
    return reason[:300] or type(error).__name__
