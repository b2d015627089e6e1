"""Label maps as DICOM segmentations (SEG) of the series that they belong to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvg_core import __version__
from mvg_core.clinical.segments import Segment
from mvg_core.clinical.source import (
    MAKER,
    PATIENT_AND_STUDY,
    RESEARCH_USE,
    DicomSource,
    DicomSourceError,
    error_kind,
    quiet,
)
from mvg_core.clinical.terminology import Code
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWriteError, write_whole

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SERIES_NUMBER_OFFSET = 1000
"""Added to the source's series number, so that what was made from a series is listed after the scanner's own."""
_LABEL_LENGTH = 64


def check_dicom_seg(source: DicomSource, segments: Sequence[Segment], *, guided: bool) -> None:
    """Make a segmentation with one voxel, so that what is wrong with the source shows before a long run.

    Args:
        source: the series.
        segments: at least one.
        guided: see `write_dicom_seg`.

    Raises:
        DicomSourceError: the source's headers do not suffice.
    """
    labels = np.zeros(source.geometry.shape, np.uint8)
    labels[0, 0, 0] = segments[0].label
    try:
        with quiet():
            dicom_seg(Volume(labels, source.geometry), source, segments, guided=guided)
    except Exception as error:
        raise DicomSourceError(f"{source.path}: no DICOM segmentation can be made of these files "
                               f"({error_kind(error)}): write .seg.nrrd instead") from error


def write_dicom_seg(labels: Volume, source: DicomSource, segments: Sequence[Segment], path: Path, *, guided: bool,
                    overwrite: bool = False) -> None:
    """Write a label map as a DICOM segmentation (one binary segment for each label that has voxels).

    Segments are numbered from 1 in the order of their labels, as the standard wants; "label N" in the attribute Segment
    Description keeps the number of the label map. Without any voxel all segments are there, and empty.

    Args:
        labels: label map on the grid of the source.
        source: the series.
        segments: what the labels are; every label that occurs.
        path: ends in .dcm.
        guided: whether the user labelled slices of this very series (semi-automatic) or not (automatic).
        overwrite: replace an existing file.

    Raises:
        VolumeWriteError: see `write_volume`.
    """
    def write(temporary: Path) -> None:
        try:
            with quiet():
                dicom_seg(labels, source, segments, guided=guided).save_as(temporary, enforce_file_format=True)
        except OSError:
            raise
        except Exception as error:
            raise VolumeWriteError(f"the DICOM segmentation could not be made ({error_kind(error)})") from error

    write_whole(path, write, overwrite=overwrite)


def dicom_seg(labels: Volume, source: DicomSource, segments: Sequence[Segment], *, guided: bool) -> Dataset:
    """The segmentation as a dataset; see `write_dicom_seg`."""
    import highdicom as hd

    occurs = np.bincount(labels.array.ravel(), minlength=256) > 0
    shown = [segment for segment in segments if occurs[segment.label]] or list(segments)
    number_of = np.zeros(256, np.uint8)
    number_of[[segment.label for segment in shown]] = np.arange(1, len(shown) + 1)
    seg = hd.seg.Segmentation(
        source_images=_plain_headers(source),
        pixel_array=number_of[labels.array.transpose(2, 1, 0)],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(segment, number, guided) for number, segment in enumerate(shown, start=1)],
        series_instance_uid=hd.UID(), series_number=series_number(source), series_description=f"Segmentation, "
        f"{RESEARCH_USE}", sop_instance_uid=hd.UID(), instance_number=1, manufacturer=MAKER,
        manufacturer_model_name=MAKER, software_versions=__version__, device_serial_number=__version__,
        content_label="SEGMENTATION", content_description=f"Made by {MAKER} {__version__}, {RESEARCH_USE}",
        specific_character_set="ISO_IR 192", omit_empty_frames=bool(occurs[1:].any()))
    seg.ImageComments = f"Derived by {MAKER} {__version__}, {RESEARCH_USE}"
    for name in (*PATIENT_AND_STUDY, "PatientAge", "PatientSize", "PatientWeight", "StudyDescription",
                 "PatientIdentityRemoved", "DeidentificationMethod"):
        if name in source.headers[0]:
            seg[name] = copy.deepcopy(source.headers[0][name])
    return seg


def series_number(source: DicomSource) -> int:
    """A number for a series made from the source."""
    number = source.headers[0].get("SeriesNumber")
    return SERIES_NUMBER_OFFSET + max(int(number or 0), 0)


def _plain_headers(source: DicomSource) -> list[Dataset]:
    """What highdicom reads of the source, and nothing else: no patient, one orientation, all that it needs."""
    from pydicom.dataset import Dataset

    first = source.headers[0]
    headers = []
    for original in source.headers:
        header = Dataset()
        for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
                     "PositionReferenceIndicator", "Modality", "Rows", "Columns", "ImagePositionPatient",
                     "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if name in original:
                header[name] = original[name]
        for name in PATIENT_AND_STUDY:
            setattr(header, name, None)
        header.ImageOrientationPatient, header.PixelSpacing = first.ImageOrientationPatient, first.PixelSpacing
        header.SliceThickness = first.get("SliceThickness") or _decimal(source.geometry.spacing_mm[2])
        if len(source.headers) > 1:
            header.SpacingBetweenSlices = _decimal(source.spacing_mm)
        headers.append(header)
    return headers


def _description(segment: Segment, number: int, guided: bool) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    kinds = hd.seg.SegmentAlgorithmTypeValues
    known = segment.terminology
    described = hd.seg.SegmentDescription(
        segment_number=number, segment_label=segment.name.replace("\\", "/")[:_LABEL_LENGTH],
        segmented_property_category=_concept(known.category), segmented_property_type=_concept(known.type),
        algorithm_type=kinds.SEMIAUTOMATIC if guided else kinds.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=MAKER, version=__version__, family=codes.cid7162.ArtificialIntelligence),
        anatomic_regions=[_concept(known.region)] if known.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour))
    described.SegmentDescription = f"label {segment.label}"
    if known.type_modifier:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            _concept(known.type_modifier)]
    if known.region_modifier:
        described.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_concept(known.region_modifier)]
    return described


def _concept(code: Code) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _decimal(number: float) -> Any:
    from pydicom.valuerep import DS

    return DS(number, auto_format=True)
