"""The DICOM files that a query was read from: their headers, slice by slice, checked against the voxel grid.

What is made from them carries the patient's data on, as DICOM requires; none of it is ever shown or logged.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvg_core.volume import Geometry
from mvg_core.volume_io import dicom_files, ras_from_lps

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RESEARCH_USE = "for research use only"
MAKER = "mvg-core"

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "FrameOfReferenceUID",
           "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsStored")
_SHARED = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# PS3.3, C.7.1.1 and C.7.2.1, type 2: must be there, and may be empty. Anonymised files often lack them.
PATIENT_AND_STUDY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                     "StudyDate", "StudyTime", "ReferringPhysicianName")
_INSTEAD = "write .nii.gz or .seg.nrrd instead"


class DicomSourceError(ValueError):
    """Files from which no DICOM answer can be made; the message says why, and what to do."""


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The images behind a volume.

    Attributes:
        path: file or folder.
        headers: without pixels; number k is slice k of the volume, whose rows are the image's columns.
        geometry: of the volume.
    """

    path: Path
    headers: tuple[Dataset, ...]
    geometry: Geometry

    @property
    def spacing_mm(self) -> float:
        """Distance of slices along their normal."""
        normal = np.cross(self.geometry.direction[:, 0], self.geometry.direction[:, 1])
        return abs(float(normal @ self.geometry.affine[:3, 2]))


def need_dicom_packages() -> None:
    """Refuse early what cannot work without them.

    Raises:
        RuntimeError: pydicom or highdicom is not installed.
    """
    missing = [name for name in ("pydicom", "highdicom") if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"writing DICOM needs {' and '.join(missing)}: pip install 'mvg-core[dicom]' from a "
                           "checkout or wheel, for example `pip install '.[dicom]'`")


def read_source(path: Path, geometry: Geometry, frame: int | None = None) -> DicomSource:
    """Read the headers behind a volume, and give each voxel slice the file that lies there in space.

    Args:
        path: DICOM file or folder, as given to `read_volume`.
        geometry: of the volume that `read_volume` returned.
        frame: as given to `read_volume`.

    Raises:
        VolumeReadError: not DICOM.
        DicomSourceError: several frames in a file, an attribute is missing, or the files do not fit the grid.
        RuntimeError: an extra is missing.
    """
    need_dicom_packages()
    from pydicom import dcmread

    files = dicom_files(path, frame=frame)
    try:
        with quiet():
            headers = [(file, dcmread(file, stop_before_pixels=True)) for file in files]
            for file, header in headers:
                _check_header(file, header)
            _check_series(path, [header for _, header in headers])
            return DicomSource(path, tuple(_by_slice(path, headers, geometry)), geometry)
    except DicomSourceError:
        raise
    except Exception as error:
        raise DicomSourceError(f"{path}: has headers that cannot be read ({error_kind(error)}): {_INSTEAD}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from complaining about values of the source, which are the patient's data."""
    from pydicom.config import disable_value_validation

    # `logging.disable` reaches every logger of a library, however deep.
    before = logging.root.manager.disable
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def error_kind(error: Exception) -> str:
    """What went wrong, without the message of a library, which may quote what stands in the source."""
    name = getattr(error, "name", None)
    return f"{type(error).__name__}: {name}" if isinstance(error, AttributeError) and name else type(error).__name__


def _check_header(file: Path, header: Dataset) -> None:
    n_frames = int(header.get("NumberOfFrames") or 1)
    if n_frames > 1 or "PerFrameFunctionalGroupsSequence" in header:
        raise DicomSourceError(f"{file}: is a multi-frame (enhanced) image, DICOM answers are made from series of "
                               f"single slices only: {_INSTEAD}")
    missing = [name for name in _NEEDED if header.get(name) in (None, "")]
    if missing:
        raise DicomSourceError(f"{file}: lacks {', '.join(missing)}, which a DICOM answer must refer to (pictures such "
                               f"as ultrasound have no place in space): {_INSTEAD}")


def _check_series(path: Path, headers: Sequence[Dataset]) -> None:
    for name in _SHARED:
        if len({header.get(name) for header in headers}) > 1:
            raise DicomSourceError(f"{path}: its files differ in {name}, needed one series of one study: separate them")
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise DicomSourceError(f"{path}: several files have the same SOPInstanceUID: export the series again")


def _by_slice(path: Path, headers: Sequence[tuple[Path, Dataset]], geometry: Geometry) -> list[Dataset]:
    """The header of each slice, by position in space; never by the order or number of files."""
    placed: dict[int, Dataset] = {}
    for file, header in headers:
        size = (int(header.Columns), int(header.Rows))
        index = geometry.world_to_index(ras_from_lps(header.ImagePositionPatient))
        i, j, k = (int(n) for n in np.rint(index))
        along = np.reshape(ras_from_lps(np.reshape(header.ImageOrientationPatient, (2, 3))), (2, 3))
        turned = not np.allclose(along, geometry.direction[:, :2].T, atol=1e-3)
        if (i, j) != (0, 0) or turned or size != geometry.shape[:2] or k in placed:
            raise DicomSourceError(f"{file}: does not lie on a slice of the voxel grid that was read from {path} "
                                   f"(at {np.round(index, 2).tolist()}): {_INSTEAD}")
        placed[k] = header
    if sorted(placed) != list(range(geometry.shape[2])):
        raise DicomSourceError(f"{path}: its {len(placed)} files do not make the {geometry.shape[2]} slices that were "
                               f"read: {_INSTEAD}")
    return [placed[k] for k in range(geometry.shape[2])]
