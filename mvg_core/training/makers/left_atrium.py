"""LA: the left atrium in late gadolinium MR, Atrial Segmentation Challenge 2018.

Layout (https://www.cardiacatlas.org/atriaseg2018-challenge/atria-seg-data/): `Training Set/<20 letters>/lgemri.nrrd`
with `laendo.nrrd` (the cavity, 0 and 255), 100 scans; `Testing Set` likewise, 54 scans, the official test split.
lawall.nrrd, the wall, was no task of the challenge. The 154 scans are of 60 patients (Xiong et al. 2021, Medical Image
Analysis 67:101832), but names do not tell whose they are: every scan counts as a subject, so scans of one patient may
be on both sides of a split.
"""

from __future__ import annotations

from mvg_core.training.makers.listing import (
    DataSet,
    Download,
    Found,
    foreground_value,
    locate,
    segmentation_items,
    subfolders,
)

IMAGE, LABEL = "lgemri.nrrd", "laendo.nrrd"


def _find(download: Download) -> Found:
    found = Found()
    root = locate(download.folder, "Training Set")
    if root is None:
        return found
    for split, folder in (("training", root / "Training Set"), ("test", root / "Testing Set")):
        images = [scan / IMAGE for scan in subfolders(folder)]
        found.remarks += [f"{image.parent} left out: no {IMAGE}" for image in images if not image.is_file()]
        images = [image for image in images if image.is_file()]
        getattr(found, split).extend(segmentation_items(
            images, lambda image: image.with_name(LABEL), lambda image: image.parent.name, found.remarks))
    if found.training:
        found.labels = {foreground_value(item["label"] for item in found.training): "left atrium"}
    return found


LEFT_ATRIUM = DataSet(
    name="la", title="LA (Atrial Segmentation Challenge 2018)", task="segmentation", modality="MR late gadolinium",
    licence="terms of the challenge", terms="https://www.cardiacatlas.org/atriaseg2018-challenge/atria-seg-data/",
    layout=f"Training Set/<scan>/{IMAGE} and {LABEL}", labels={255: "left atrium"}, find=_find)
