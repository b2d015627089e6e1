"""Chest radiographs of Shenzhen and Montgomery County with lung masks.

Layout of the joined set (https://www.kaggle.com/datasets/nikhilpandey360/chest-xray-masks-and-labels; images of the
U.S. National Library of Medicine): `Lung Segmentation/CXR_png/{CHNCXR_0001_0,MCUCXR_0001_0}.png` and
`Lung Segmentation/masks/{CHNCXR_0001_0_mask,MCUCXR_0001_0}.png`, masks 0 and 255. 96 images of Shenzhen have no mask
and are left out. Both lungs are one label. One image per patient; the last digit of a name says whether there is
tuberculosis.
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
    locate,
    segmentation_items,
    stem,
)

_NAME = re.compile(r"(CHNCXR|MCUCXR)_\d{4}_[01]")


def _find(download: Download) -> Found:
    found = Found()
    root = locate(download.folder, "CXR_png", "masks")
    if root is None:
        return found
    images = [path for path in files(root / "CXR_png", (".png",)) if _NAME.fullmatch(path.stem)]
    found.training = segmentation_items(images, lambda image: _mask(root / "masks", image), stem, found.remarks)
    if found.training:
        found.labels = {foreground_value(item["label"] for item in found.training): "lungs"}
    return found


def _mask(folder: Path, image: Path) -> Path:
    return folder / (f"{image.stem}_mask.png" if image.stem.startswith("CHNCXR") else image.name)


CHEST_XRAY = DataSet(
    name="chest-xray", title="Chest X-ray masks (Shenzhen, Montgomery)", task="segmentation", modality="X-ray",
    licence="National Library of Medicine, citation and acknowledgement needed",
    terms="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets",
    layout="CXR_png/CHNCXR_0001_0.png and masks/CHNCXR_0001_0_mask.png", labels={255: "lungs"}, find=_find)
