"""ACDC: the heart in cine MR of 150 patients, labelled at end diastole and end systole.

Layout of ACDC.zip (https://humanheart-project.creatis.insa-lyon.fr/database/#collection/637218c173e9f0047faa00fb):
`ACDC/database/{training,testing}/patient001/patient001_frame01.nii.gz` with `patient001_frame01_gt.nii.gz`; the whole
cine patient001_4d.nii.gz has no labels and is left alone. Two frames per patient; testing (patients 101 to 150) is the
official test split.
"""

from __future__ import annotations

import re
from pathlib import Path

from mvg_core.training.makers.listing import (
    NIFTI,
    DataSet,
    Download,
    Found,
    files,
    locate,
    segmentation_items,
    stem,
    subfolders,
)

LABELS = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

_FRAME = re.compile(r"patient\d{3}_frame\d\d")


def _find(download: Download) -> Found:
    found = Found()
    root = locate(download.folder, "training")
    if root is None:
        return found
    for split, folder in (("training", root / "training"), ("test", root / "testing")):
        images = [path for patient in subfolders(folder) for path in files(patient, NIFTI)
                  if _FRAME.fullmatch(stem(path))]
        getattr(found, split).extend(segmentation_items(images, _label, lambda image: image.parent.name, found.remarks))
    return found


def _label(image: Path) -> Path:
    return image.with_name(image.name.replace(stem(image), f"{stem(image)}_gt", 1))


ACDC = DataSet(
    name="acdc", title="ACDC", task="segmentation", modality="MR cine", labels=LABELS, licence="CC-BY-NC-SA-4.0",
    terms="https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html",
    layout="training/patient001/patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz", find=_find)
