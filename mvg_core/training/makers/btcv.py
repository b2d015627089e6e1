"""BTCV abdomen ("Synapse"): 30 labelled portal venous CT with 13 organs.

Layout of Abdomen/RawData.zip (https://www.synapse.org/Synapse:syn3193805/wiki/217789):
`RawData/Training/{img/img0001.nii.gz,label/label0001.nii.gz}`; `RawData/Testing` has no labels and is left out. The
folders averaged-training-* on the same page are other data (registered averages). One scan per patient.
"""

from __future__ import annotations

from pathlib import Path

from mvg_core.training.makers.listing import NIFTI, DataSet, Download, Found, files, locate, segmentation_items, stem

LABELS = {1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "esophagus", 6: "liver", 7: "stomach",
          8: "aorta", 9: "inferior vena cava", 10: "portal and splenic veins", 11: "pancreas",
          12: "right adrenal gland", 13: "left adrenal gland"}


def _find(download: Download) -> Found:
    found = Found()
    root = locate(download.folder, "Training/img", "Training/label") or locate(download.folder, "img", "label", depth=0)
    if root is None:
        return found
    training = root / "Training" if (root / "Training").is_dir() else root
    images = [path for path in files(training / "img", NIFTI) if path.name.startswith("img")]
    found.training = segmentation_items(
        images, lambda image: training / "label" / image.name.replace("img", "label", 1), _subject, found.remarks)
    return found


def _subject(image: Path) -> str:
    return stem(image).removeprefix("img")


BTCV = DataSet(
    name="btcv", title="BTCV abdomen (Synapse)", task="segmentation", modality="CT", labels=LABELS,
    licence="Synapse terms, registration needed", terms="https://www.synapse.org/Synapse:syn3193805/wiki/217789",
    layout="RawData/Training/img/img0001.nii.gz and RawData/Training/label/label0001.nii.gz", find=_find)
