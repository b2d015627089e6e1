"""Low-dose CT of the Mayo Clinic: the same scan at full dose and at simulated low dose.

Two layouts. LDCT-and-Projection-data (https://www.cancerimagingarchive.net/collection/ldct-and-projection-data, 299
patients C... chest, L... abdomen, N... head): `L004/08-21-2018-84608/1.000000-Full dose images-59704/1-01.dcm` beside
`1.000000-Low Dose Images-35583`; projections are left alone, scans without low-dose images (GE scanners) left out.
Low Dose CT Grand Challenge 2016 (https://www.aapm.org/grandchallenge/lowdosect, 10 training patients):
`full_1mm/L067/full_1mm/*.IMA` beside `quarter_1mm/L067/quarter_1mm/*.IMA`, or `L067/full_3mm` beside
`L067/quarter_3mm`; thicknesses and kernels are listed separately. DICOM folders are read as they are. The region of the
body is told as the item's modality, so that prompts show it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mvg_core.training.makers.listing import DataSet, Download, Found, subfolders

REGIONS = {"C": "chest", "L": "abdomen", "N": "head"}

_ARCHIVE = re.compile(r"(full|low) dose images", re.IGNORECASE)
_PROJECTIONS = re.compile(r"dose projections", re.IGNORECASE)
_CHALLENGE = re.compile(r"(full|quarter)(_\dmm(?:_sharp)?)", re.IGNORECASE)
_PATIENT = re.compile(r"[CLN]\d{3}")
_DEPTH = 6


def _find(download: Download) -> Found:
    found = Found()
    full: dict[tuple[str, ...], Path] = {}
    low: dict[tuple[str, ...], Path] = {}
    for folder in _series(download.folder, _DEPTH):
        described = _describe(folder.relative_to(download.folder), download.folder.name)
        if described is None:
            continue
        is_full, key = described
        if key in (full if is_full else low):
            found.remarks.append(f"{folder} left out: patient {key[0]} has another such series")
            continue
        (full if is_full else low)[key] = folder
    for key in sorted(full.keys() & low.keys()):
        found.training.append({"source": low[key], "target": full[key], "subject": key[0],
                               "modality": f"CT {REGIONS[key[0][0]]}"})
    single = sorted(full.keys() ^ low.keys())
    if single:
        folder = (full | low)[single[0]]
        found.remarks.append(f"{len(single)} series left out: no partner of the other dose (the first is {folder})")
    return found


def _series(folder: Path, depth: int) -> Iterator[Path]:
    """Folders that hold files; those of projections, which hold thousands, are not opened."""
    below = subfolders(folder)
    if not below:
        with os.scandir(folder) as entries:
            if any(entry.is_file() for entry in entries):
                yield folder
    elif depth:
        for one in below:
            if not _PROJECTIONS.search(one.name):
                yield from _series(one, depth - 1)


def _describe(relative: Path, root: str) -> tuple[bool, tuple[str, ...]] | None:
    """Whether a folder holds full dose, and what it shares with its partner, the patient first; None for other data."""
    # Somebody may give the folder of one patient.
    parts = [root, *relative.parts]
    patients = [part for part in parts if _PATIENT.fullmatch(part)]
    if not patients:
        return None
    archive = _ARCHIVE.search(parts[-1])
    if archive:
        return archive[1].lower() == "full", (patients[-1],)
    doses = [match for part in parts if (match := _CHALLENGE.fullmatch(part))]
    if not doses:
        return None
    shared = tuple(_CHALLENGE.sub(r"dose\2", part) for part in relative.parts)
    return doses[-1][1].lower() == "full", (patients[-1], *shared)


LOW_DOSE_CT = DataSet(
    name="low-dose-ct", title="Low-dose CT (AAPM, Mayo Clinic)", task="denoising", modality="CT",
    licence="CC-BY-4.0, TCIA data usage policy",
    terms="https://www.cancerimagingarchive.net/collection/ldct-and-projection-data",
    layout="L004/<study>/1.000000-Full dose images-... beside 1.000000-Low Dose Images-..., or full_1mm/L067 beside "
           "quarter_1mm/L067, with DICOM files", find=_find)
