"""DICOM series made of volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mvg_core.volume import Volume
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid


def write_series(folder: Path, volume: Volume, patient: str = "test") -> str:
    """Write a volume as an MR series of a study of its own; its Series Instance UID."""
    folder.mkdir(parents=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.geometry.affine
    spacing_mm = volume.geometry.spacing_mm
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    scaled = np.rint(volume.array / volume.array.max() * 1000).astype("<u2")
    for number in range(scaled.shape[2]):
        one = dcmread(str(get_testdata_file("MR_small.dcm")))
        one.PatientID = one.PatientName = patient
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.SOPInstanceUID, one.InstanceNumber = generate_uid(), number + 1
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.Columns, one.Rows = scaled.shape[:2]
        one.PixelSpacing = [round(spacing_mm[1], 6), round(spacing_mm[0], 6)]
        one.ImageOrientationPatient = [round(float(x), 8) for axis in (0, 1)
                                       for x in affine[:3, axis] / spacing_mm[axis]]
        one.ImagePositionPatient = [round(float(x), 6) for x in affine[:3] @ [0, 0, number, 1]]
        one.SliceThickness = round(spacing_mm[2], 6)
        for name in ("SpacingBetweenSlices", "SliceLocation"):
            if name in one:
                delattr(one, name)
        one.PixelRepresentation, one.BitsAllocated, one.BitsStored, one.HighBit = 0, 16, 16, 15
        one.PixelData = np.ascontiguousarray(scaled[:, :, number].T).tobytes()
        one.save_as(folder / f"{number:03d}.dcm")
    return str(series)
