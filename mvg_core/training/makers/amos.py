"""AMOS 2022: abdominal CT and MR with 15 organs.

Layout of amos22.zip (https://zenodo.org/records/7155725, its readme.md; https://amos22.grand-challenge.org):
`amos22/{imagesTr,labelsTr,imagesVa,labelsVa,imagesTs}/amos_0001.nii.gz`. Numbers up to 500 are CT, above MR. One scan
per patient. The labels of imagesTs were never in the archive; where somebody has them as labelsTs, they are listed.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from mvg_core.training.makers.listing import NIFTI, DataSet, Download, Found, files, locate, segmentation_items, stem

LAST_CT = 500
LABELS = {1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "esophagus", 6: "liver", 7: "stomach",
          8: "aorta", 9: "inferior vena cava", 10: "pancreas", 11: "right adrenal gland", 12: "left adrenal gland",
          13: "duodenum", 14: "bladder", 15: "prostate or uterus"}
FOLDERS = {"training": ("imagesTr", "labelsTr"), "validation": ("imagesVa", "labelsVa"),
           "test": ("imagesTs", "labelsTs")}

_NAME = re.compile(r"amos_(\d{4})\.nii(\.gz)?")


def _find(download: Download, *, ct: bool) -> Found:
    found = Found()
    root = locate(download.folder, "imagesTr", "labelsTr")
    if root is None:
        return found
    for split, (images, labels) in FOLDERS.items():
        chosen = [path for path in files(root / images, NIFTI) if _is_ct(path) is ct]
        getattr(found, split).extend(segmentation_items(
            chosen, lambda image, labels=labels: root / labels / image.name, stem, found.remarks))
    return found


def _is_ct(path: Path) -> bool | None:
    """None for files that are not of this data set."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) <= LAST_CT if match else None


def _data_set(kind: str, *, ct: bool) -> DataSet:
    return DataSet(
        name=f"amos-{kind.lower()}", title=f"AMOS 2022, {kind}", task="segmentation", modality=kind, labels=LABELS,
        licence="CC-BY-4.0", terms="https://zenodo.org/records/7155725",
        layout=f"imagesTr/amos_{'0001' if ct else '0507'}.nii.gz and labelsTr beside it", find=partial(_find, ct=ct))


AMOS_CT = _data_set("CT", ct=True)
AMOS_MR = _data_set("MR", ct=False)
