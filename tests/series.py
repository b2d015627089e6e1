"""DICOM series made in a test: any orientation, any order of files, with a patient in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID, generate_uid

PATIENT: dict[str, Any] = {
    "PatientName": "Müller^Änne", "PatientID": "SECRET-4711", "PatientBirthDate": "19600102", "PatientSex": "F",
    "AccessionNumber": "ACC-0815", "StudyID": "S1", "StudyDate": "20200102", "StudyTime": "101500",
    "ReferringPhysicianName": "Doe^Jane", "SpecificCharacterSet": "ISO_IR 100", "StudyDescription": "Abdomen"}
SPACING_MM = (0.7, 1.3, 2.5)
"""Between columns, rows and slices."""
ORIGIN = (-31.5, 12.25, 40.0)


def turned(degrees: float = 25) -> np.ndarray:
    """Directions (3, 3) of an oblique series: of columns, rows and slices."""
    angle = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return about_x @ about_x[[1, 2, 0]][:, [1, 2, 0]]


def write_series(folder: Path, stored: npt.NDArray, *, direction: np.ndarray | None = None, shear_mm: float = 0.0,
                 example: str = "CT_small.dcm", reverse: bool = True, **changes: Any) -> list[str]:
    """Write stored pixels (rows, columns, slices); return the SOPInstanceUIDs of the slices along the normal.

    Names of files and instance numbers run against the positions, if `reverse`.

    Args:
        folder: is made.
        stored: whole numbers.
        direction: (3, 3), its columns are the directions (LPS) of rows, columns and slices; None is straight.
        shear_mm: how far each slice is shifted along its rows (tilted gantry).
        example: of pydicom, gives all other attributes.
        reverse: see above.
        changes: attributes of all files; None takes one out.
    """
    folder.mkdir(parents=True)
    axes = np.eye(3) if direction is None else direction
    n_slices, series, study, place = stored.shape[2], generate_uid(), generate_uid(), generate_uid()
    uids = [str(generate_uid()) for _ in range(n_slices)]
    for k in range(n_slices):
        one = dcmread(str(get_testdata_file(example, download=False)))
        position = np.array(ORIGIN) + k * SPACING_MM[2] * axes[:, 2] + k * shear_mm * axes[:, 0]
        order = n_slices - k if reverse else k + 1
        attributes = {
            **PATIENT, "SeriesInstanceUID": series, "StudyInstanceUID": study, "FrameOfReferenceUID": place,
            "SOPInstanceUID": uids[k], "InstanceNumber": order, "SeriesNumber": 4, "SeriesDescription": "Körper 2.5",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "ImagePositionPatient": [round(x, 6) for x in position],
            "ImageOrientationPatient": [round(x, 8) for x in axes[:, :2].T.ravel()], "SliceThickness": SPACING_MM[2],
            "PixelSpacing": [SPACING_MM[1], SPACING_MM[0]], "Rows": stored.shape[0], "Columns": stored.shape[1],
            "SpacingBetweenSlices": None, "SliceLocation": None, "PixelRepresentation": int(stored.dtype.kind == "i"),
            "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelPaddingValue": None, **changes}
        for name, value in attributes.items():
            if value is not None:
                setattr(one, name, value[k] if isinstance(value, np.ndarray) else value)
            elif name in one:
                delattr(one, name)
        one.file_meta.MediaStorageSOPInstanceUID = UID(uids[k])
        one.PixelData = np.ascontiguousarray(stored[:, :, k]).astype(stored.dtype.newbyteorder("<")).tobytes()
        one.save_as(folder / f"IM{order:04d}.dcm")
    return uids
