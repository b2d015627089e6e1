"""Label maps <-> DICOM segmentations (SEG), by the programs of dcmqi."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from mvg_core.references import labels_in
from mvg_core.resample import resample_to
from mvg_core.tasks import MAX_LABEL
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume
from pydicom import dcmread

MAKER = "MVG"
_LABEL_LENGTH = 64  # of the attribute Segment Label
_COLOURS = ((230, 60, 60), (60, 160, 230), (80, 190, 90), (240, 190, 60), (170, 100, 210), (90, 200, 200))
_TISSUE = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}


def write_seg(label: Volume, names: Mapping[int, str], series: Path, path: Path) -> None:
    """Write a label map as a segmentation of a series.

    Args:
        label: uint8, on the grid of the series, not empty.
        names: label number -> name.
        series: folder of the DICOM files.
        path: ends in .dcm.

    Raises:
        ValueError: the series' headers do not suffice.
    """
    present = sorted(labels_in(label.array))
    segments = [{"labelID": number, "SegmentLabel": f"label {number}", "SegmentDescription": f"label {number}",
                 "SegmentAlgorithmType": "SEMIAUTOMATIC", "SegmentAlgorithmName": MAKER,
                 "SegmentedPropertyCategoryCodeSequence": _TISSUE,
                 "SegmentedPropertyTypeCodeSequence": _TISSUE,
                 "recommendedDisplayRGBValue": _COLOURS[place % len(_COLOURS)]}
                for place, number in enumerate(present)]
    about = {"ContentCreatorName": MAKER, "SeriesDescription": f"Segmentation, {MAKER}", "SeriesNumber": "1000",
             "InstanceNumber": "1", "ContentLabel": "SEGMENTATION", "ContentDescription": "Submitted label map",
             "segmentAttributes": [segments]}
    with tempfile.TemporaryDirectory() as folder:
        image, described = Path(folder) / "label.nii.gz", Path(folder) / "about.json"
        write_volume(label, image)
        described.write_text(json.dumps(about), encoding="utf-8")
        _run("itkimage2segimage", "--inputImageList", image, "--inputDICOMDirectory", series, "--outputDICOM", path,
             "--inputMetadata", described)
    if not path.is_file():
        raise ValueError("no DICOM segmentation can be made of this series: its headers do not suffice")
    _name_segments(path, [names.get(number, f"label {number}") for number in present])


def read_seg(path: Path, grid: Geometry) -> tuple[Volume, dict[int, str]]:
    """A segmentation as a label map.

    Args:
        path: file of one SEG object.
        grid: of the image that it belongs to; a SEG may hold some of its slices only.

    Returns:
        Label map, numbered as the segments are, and number -> name. Where segments overlap, the last one shows.

    Raises:
        ValueError: it cannot be read.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nii",
             "--prefix", "seg")
        names, found = dict[int, str](), np.zeros(grid.shape, np.uint8)
        for described in dcmread(path, stop_before_pixels=True).get("SegmentSequence") or ():
            number, file = int(described.SegmentNumber), folder / f"seg-{described.SegmentNumber}.nii.gz"
            if not file.is_file() or number > MAX_LABEL:
                raise ValueError("the DICOM segmentation cannot be read")
            names[number] = str(described.get("SegmentLabel") or f"label {number}")
            segment = read_volume(file)
            binary = segment.with_array((segment.array > 0).astype(np.uint8))
            found[resample_to(binary, grid, is_label=True).array > 0] = number
    if not names:
        raise ValueError("the DICOM segmentation holds no segments")
    return Volume(found, grid), names


def _name_segments(path: Path, names: Sequence[str]) -> None:
    """Give segments their names: dcmqi takes only those that the series' character set has."""
    found = dcmread(path)
    found.decode()
    found.SpecificCharacterSet = "ISO_IR 192"
    found.ContentTime = f"{datetime.now():%H%M%S.%f}"  # the latest of a series counts, also within a second
    for segment, name in zip(found.SegmentSequence, names, strict=True):
        segment.SegmentLabel = name.replace("\\", "/")[:_LABEL_LENGTH]
    found.save_as(path)


def _run(name: str, *options: object) -> None:
    """Run one of the programs; what it prints holds paths, so it is not kept."""
    program = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if program is None:
        raise ValueError(f"DICOM segmentations need dcmqi, and its program {name} is not there: pip install dcmqi")
    subprocess.run([program, *map(str, options)], check=False, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, timeout=600)
