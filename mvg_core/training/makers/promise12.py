"""PROMISE12: the prostate in T2-weighted MR of 50 patients from four centres.

Layout of training_data.zip (https://zenodo.org/records/8026660; the older parts of
https://promise12.grand-challenge.org are named TrainingData_Part1 to 3): `Case00.mhd` with `Case00.raw`,
`Case00_segmentation.mhd` with `Case00_segmentation.raw`; both are read as they are. The test cases have no labels and
are left out. One scan per patient.
"""

from __future__ import annotations

import re
from pathlib import Path

from mvg_core.training.makers.listing import (
    DataSet,
    Download,
    Found,
    files,
    foreground_value,
    segmentation_items,
    subfolders,
)

_CASE = re.compile(r"Case\d\d\.mhd")


def _find(download: Download) -> Found:
    found = Found()
    folders = [download.folder, *subfolders(download.folder)]
    folders += [below for folder in folders[1:] for below in subfolders(folder)]
    images = [path for folder in folders for path in files(folder, (".mhd",)) if _CASE.fullmatch(path.name)]
    # The numbers of the test cases start at 00 again.
    trained = {image.parent for image in images if _label(image).is_file()}
    unlabelled = [image for image in images if image.parent not in trained]
    if trained and unlabelled:
        found.remarks.append(f"{len(unlabelled)} cases in {unlabelled[0].parent} left out: they have no labels")
    found.training = segmentation_items([image for image in images if image.parent in trained], _label,
                                        lambda image: image.stem, found.remarks)
    if found.training:
        found.labels = {foreground_value(item["label"] for item in found.training): "prostate"}
    return found


def _label(image: Path) -> Path:
    return image.with_name(f"{image.stem}_segmentation.mhd")


PROMISE12 = DataSet(
    name="promise12", title="PROMISE12", task="segmentation", modality="MR", labels={1: "prostate"},
    licence="research use, citation mandatory", terms="https://zenodo.org/records/8026660",
    layout="Case00.mhd and Case00_segmentation.mhd (in the folder, or one or two below it)", find=_find)
