"""Painted images as derived DICOM series: one file for each slice of the source, in a folder of its own.

The files keep the source's SOP class, patient, study and place in space, and say what they are: derived secondary
images, for research use only, made from the instance that they refer to.
"""

from __future__ import annotations

import copy
import datetime
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from mvg_core import __version__
from mvg_core.clinical.dicom_seg import series_number
from mvg_core.clinical.source import (
    MAKER,
    PATIENT_AND_STUDY,
    RESEARCH_USE,
    DicomSource,
    DicomSourceError,
    error_kind,
    quiet,
)
from mvg_core.report import check_folder
from mvg_core.tasks import TaskKind
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWriteError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DONE = {"denoising": "denoised", "inpainting": "inpainted", "synthesis": "synthesised"}
_FILE_NAME = "slice{:05d}.dcm"
_PET = "PositronEmissionTomographyImageStorage"
_LEVELS_ENOUGH = 1000
"""A synthesised image needs at least so many different values between its darkest and its brightest voxel."""
# What describes the source's own pixels, or was computed from them.
_OF_OLD_PIXELS = (
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "SmallestImagePixelValue", "LargestImagePixelValue",
    "SmallestPixelValueInSeries", "LargestPixelValueInSeries", "PixelPaddingRangeLimit", "PixelPaddingValue",
    "IconImageSequence", "ModalityLUTSequence", "VOILUTSequence", "RealWorldValueMappingSequence",
    "PixelIntensityRelationship", "DigitalSignaturesSequence", "MACParametersSequence", "ReferencedImageSequence",
    "StorageMediaFileSetUID", "OriginalAttributesSequence", "NumberOfFrames")
# What a synthesised image of another contrast no longer has, though optional or allowed to be empty.
_OF_OLD_CONTRAST = ("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "EchoTrainLength", "ScanOptions", "KVP",
                    "SequenceName", "DiffusionBValue", "ContrastBolusAgent", "ProtocolName", "WindowCenter",
                    "WindowWidth", "WindowCenterWidthExplanation")
_TYPE_2 = ("EchoTime", "RepetitionTime", "EchoTrainLength", "ScanOptions", "KVP")


@dataclass(frozen=True)
class PixelScale:
    """Value = slope * stored + intercept, as DICOM's modality LUT has it."""

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def of(cls, header: Dataset) -> PixelScale:
        """The scale that a file names, and that `read_volume` applies, whatever the modality."""
        return cls(float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0))


def is_series_folder(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether an output names a folder for a series: no suffix, or an existing folder that is not named like a file."""
    return not path.suffix or (path.is_dir() and not path.name.lower().endswith(suffixes))


def check_series_folder(folder: Path, source: Path, *, overwrite: bool) -> None:
    """Find out before a long run whether the folder can be made, or replaced, after it.

    Raises:
        VolumeWriteError: it exists and is not empty (with `overwrite`: holds other files than a derived series), it is
            the source's folder, or its parent is missing or not writable.
    """
    if folder.resolve() == source.resolve() or folder.resolve() in source.resolve().parents:
        raise VolumeWriteError(f"{folder} is read by this run, and would be replaced: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise VolumeWriteError(f"{folder} is a file: a derived DICOM series goes into a folder, choose another name")
    if folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir())
        if names and not overwrite:
            raise VolumeWriteError(f"{folder} is not empty: choose another folder, or replace an earlier series with "
                                   "--overwrite")
        other = [name for name in names if not _is_ours(name)]
        if other:
            raise VolumeWriteError(f"{folder} holds {other[0]!r}, which is not part of a derived series, so it is not "
                                   "replaced: choose another folder")
    check_folder(folder.resolve().parent, f"{folder}: ")


def check_derived_series(query: Volume, source: DicomSource, task: TaskKind) -> None:
    """Make the first image from the query itself, so that what is wrong with the source shows before a long run.

    Args:
        query: the volume that was read from the source.
        source: the series.
        task: what will be done.

    Raises:
        DicomSourceError: colour, more than 16 bits, or damaged headers.
    """
    for header in source.headers:
        if int(header.get("SamplesPerPixel") or 1) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
            raise DicomSourceError(f"{source.path}: holds {header.get('PhotometricInterpretation')} images, a derived "
                                   "series is made from MONOCHROME2 only: write .nii.gz instead")
        if header.get("BitsAllocated") not in (8, 16):
            raise DicomSourceError(f"{source.path}: has {header.get('BitsAllocated')} bits a pixel, a derived series "
                                   "is made from 8 or 16: write .nii.gz instead")
    try:
        with quiet():
            first = query.with_array(query.array.astype(np.float32, copy=False))
            next(iter(_instances(first, source, task))).save_as(io.BytesIO(), enforce_file_format=True)
    except Exception as error:
        raise DicomSourceError(f"{source.path}: no derived series can be made of these files ({error_kind(error)}): "
                               "write .nii.gz instead") from error


def write_derived_series(image: Volume, source: DicomSource, task: TaskKind, folder: Path, *,
                         overwrite: bool = False) -> None:
    """Write an image on the grid of a DICOM series as a new series, so that `folder` holds all of it or is untouched.

    Args:
        image: the answer, in the units of the volume read from the source (synthesis: of the target).
        source: the series.
        task: what was done.
        folder: is made; see `check_series_folder`.
        overwrite: replace a derived series.

    Raises:
        VolumeWriteError: see `check_series_folder`; no space.
    """
    check_series_folder(folder, source.path, overwrite=overwrite)
    temporary, before = (folder.with_name(f".{uuid4().hex}") for _ in range(2))
    try:
        temporary.mkdir()
        with quiet():
            for number, instance in enumerate(_instances(image, source, task), start=1):
                instance.save_as(temporary / _FILE_NAME.format(number), enforce_file_format=True)
        if folder.is_dir():
            os.replace(folder, before)
        os.replace(temporary, folder)
    except OSError as error:
        raise VolumeWriteError(f"{folder}: could not be written ({error.strerror}): check free space and write "
                               f"permission of {folder.parent}") from error
    except Exception as error:
        raise VolumeWriteError(f"{folder}: the series could not be made ({error_kind(error)})") from error
    finally:
        if before.is_dir() and not folder.exists():
            os.replace(before, folder)
        for leftover in (temporary, before):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_ours(name: str) -> bool:
    return name.startswith("slice") and name.endswith(".dcm") and name[5:-4].isdecimal()


# ------------------------------------------------------------------------------------------------------------- images


def _instances(image: Volume, source: DicomSource, task: TaskKind) -> Iterator[Dataset]:
    """One dataset for each slice, in the order of the voxel grid."""
    from pydicom.uid import generate_uid

    series, now = generate_uid(), datetime.datetime.now()
    scales = _scales(image, source, task)
    kind = _stored_type(image, source, scales)
    for k, (header, scale) in enumerate(zip(source.headers, scales, strict=True)):
        derived = _header(header, task)
        derived.SeriesInstanceUID, derived.SOPInstanceUID = series, generate_uid()
        derived.SeriesNumber, derived.InstanceNumber = series_number(source), k + 1
        for name in ("Series", "InstanceCreation", "Content"):
            setattr(derived, f"{name}Date", now.strftime("%Y%m%d"))
            setattr(derived, f"{name}Time", now.strftime("%H%M%S.%f"))
        _store(derived, _stored(image.array[:, :, k].T, scale), kind, scale)
        if task == "synthesis":
            _set_window(derived, float(image.array.min()), float(image.array.max()))
        derived.file_meta = _file_meta(derived)
        yield derived


def _header(header: Dataset, task: TaskKind) -> Dataset:
    """The source's header with what the new pixels make wrong taken out, and where they come from put in."""
    from pydicom.dataset import Dataset

    # A new one, because a dataset read from a file remembers its byte order, and cannot be written in another.
    derived = Dataset()
    for element in header:
        drawn = element.tag.group & 0xFF00 in (0x5000, 0x6000)  # curves and overlays
        if not (element.tag.is_private or drawn or element.keyword in _OF_OLD_PIXELS):
            derived.add(copy.deepcopy(element))
    for name in PATIENT_AND_STUDY:
        if name not in derived:
            setattr(derived, name, None)
    if task == "synthesis":
        _forget_contrast(derived)
    _say_what_it_is(derived, header, task)
    return derived


def _forget_contrast(derived: Dataset) -> None:
    for name in _OF_OLD_CONTRAST:
        if name in derived:
            if name in _TYPE_2:
                setattr(derived, name, None)
            else:
                delattr(derived, name)


def _say_what_it_is(derived: Dataset, header: Dataset, task: TaskKind) -> None:
    """PS3.3, C.7.6.1: image type, derivation and source of a derived image."""
    done = _DONE[task]
    derived.ImageType = ["DERIVED", "SECONDARY", *list(header.get("ImageType") or [])[2:]]
    marking = f" ({done}, {RESEARCH_USE})"
    derived.SeriesDescription = f"{str(header.get('SeriesDescription') or '')[:64 - len(marking)]}{marking}".strip()
    derived.ImageComments = f"Derived image, {done} by {MAKER} {__version__}, {RESEARCH_USE}, not for diagnosis"
    derived.DerivationDescription = (f"{done} slice by slice by {MAKER} {__version__}, a neural network that was shown "
                                     f"examples; {RESEARCH_USE}")
    source = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID,
                   SpatialLocationsPreserved="YES", PurposeOfReferenceCodeSequence=[
                       _code("121322", "Source image for image processing operation")])
    derived.SourceImageSequence = [source]
    derived.ContributingEquipmentSequence = [*(header.get("ContributingEquipmentSequence") or []), _item(
        PurposeOfReferenceCodeSequence=[_code("109102", "Processing Equipment")], Manufacturer=MAKER,
        ManufacturerModelName=MAKER, SoftwareVersions=__version__,
        ContributionDescription=f"{done}, {RESEARCH_USE}")]


def _file_meta(derived: Dataset) -> Any:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = derived.SOPClassUID, derived.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


# ------------------------------------------------------------------------------------------------------------- pixels


def _scales(image: Volume, source: DicomSource, task: TaskKind) -> list[PixelScale]:
    """The scale of each slice: the source's if 16 bits hold the values in it, else one made for them.

    One for all slices unless the source itself has several (PET), because some readers know only one.
    """
    scales = [PixelScale.of(header) for header in source.headers]
    is_pet = source.headers[0].SOPClassUID.keyword == _PET
    if len(set(scales)) == 1 or task == "synthesis":
        return [_scale_for(image.array, scales[0], is_pet, task)] * len(scales)
    return [_scale_for(image.array[:, :, k], scale, is_pet, task) for k, scale in enumerate(scales)]


def _scale_for(values: npt.NDArray, scale: PixelScale, is_pet: bool, task: TaskKind) -> PixelScale:
    low, high = float(values.min()), float(values.max())
    largest = max(abs(high - scale.intercept), abs(low - scale.intercept)) / abs(scale.slope)
    fine = task != "synthesis" or (high - low) / abs(scale.slope) >= _LEVELS_ENOUGH
    if largest < 2**15 and fine:
        return scale
    if is_pet:  # PS3.3, C.8.9.4: its intercept is 0
        return PixelScale(_slope(max(abs(low), abs(high)) / (2**15 - 2)), 0.0)
    return PixelScale(_slope((high - low) / (2**15 - 2)), float(_decimal(low)))


def _slope(number: float) -> float:
    """The nearest number that DICOM's 16 characters can say, 1 for 0."""
    return float(_decimal(number)) or 1.0


def _stored(values: npt.NDArray, scale: PixelScale) -> npt.NDArray[np.float64]:
    return np.rint((values.astype(np.float64) - scale.intercept) / scale.slope)


def _stored_type(image: Volume, source: DicomSource, scales: list[PixelScale]) -> np.dtype:
    """Signed or not, the same for all slices: as the source unless the values need the other."""
    ends = [_stored(np.array([image.array[:, :, k].min(), image.array[:, :, k].max()]), scale)
            for k, scale in enumerate(scales)]
    low, high = np.min(ends), np.max(ends)
    was_signed = source.headers[0].get("PixelRepresentation") == 1
    signed = low < 0 if high < 2**15 and not was_signed else was_signed and high < 2**15
    return np.dtype("<i2" if signed else "<u2")


def _store(derived: Dataset, stored: npt.NDArray[np.float64], kind: np.dtype, scale: PixelScale) -> None:
    """Put the pixels in as 16-bit numbers; what these cannot hold becomes the nearest that they can."""
    limits = np.iinfo(kind)
    derived.PixelRepresentation = int(kind.kind == "i")
    derived.BitsAllocated, derived.BitsStored, derived.HighBit = 16, 16, 15
    derived.SamplesPerPixel, derived.PhotometricInterpretation = 1, "MONOCHROME2"
    derived.Rows, derived.Columns = stored.shape
    if scale != PixelScale() or "RescaleSlope" in derived:
        derived.RescaleSlope, derived.RescaleIntercept = _decimal(scale.slope), _decimal(scale.intercept)
    derived["PixelData"] = _pixel_data(np.clip(stored, limits.min, limits.max).astype(kind).tobytes())


def _pixel_data(content: bytes) -> Any:
    from pydicom.dataelem import DataElement

    return DataElement(0x7FE00010, "OW", content)


def _set_window(derived: Dataset, low: float, high: float) -> None:
    if derived.Modality == "CT":
        derived.RescaleType = "US"  # unspecified: nobody promises Hounsfield units
    derived.WindowCenter, derived.WindowWidth = _decimal((low + high) / 2), _decimal(max(high - low, 1.0))


def _decimal(number: float) -> Any:
    from pydicom.valuerep import DS

    return DS(float(number), auto_format=True)


def _code(value: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=meaning)


def _item(**attributes: Any) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item
