"""WORD: abdominal CT of 150 radiotherapy patients with 16 organs.

Layout of WORD-V0.1.0.zip (https://github.com/HiLab-git/WORD): `{imagesTr,labelsTr,imagesVal,labelsVal,imagesTs}/
word_0002.nii.gz`. The labels of the test images are a file of their own (WORD_V0.1.0_labelsTs.zip in that repository),
to be extracted beside them as labelsTs. One scan per patient; the splits are the official ones.
"""

from __future__ import annotations

from mvg_core.training.makers.listing import NIFTI, DataSet, Download, Found, files, locate, segmentation_items, stem

LABELS = {1: "liver", 2: "spleen", 3: "left kidney", 4: "right kidney", 5: "stomach", 6: "gallbladder", 7: "esophagus",
          8: "pancreas", 9: "duodenum", 10: "colon", 11: "intestine", 12: "adrenal glands", 13: "rectum", 14: "bladder",
          15: "left femoral head", 16: "right femoral head"}
FOLDERS = {"training": ("imagesTr", "labelsTr"), "validation": ("imagesVal", "labelsVal"),
           "test": ("imagesTs", "labelsTs")}


def _find(download: Download) -> Found:
    found = Found()
    root = locate(download.folder, "imagesTr", "labelsTr")
    if root is None:
        return found
    for split, (images, labels) in FOLDERS.items():
        chosen = [path for path in files(root / images, NIFTI) if path.name.startswith("word_")]
        getattr(found, split).extend(segmentation_items(
            chosen, lambda image, labels=labels: root / labels / image.name, stem, found.remarks))
    return found


WORD = DataSet(
    name="word", title="WORD", task="segmentation", modality="CT", labels=LABELS,
    licence="GPL-3.0, academic research only", terms="https://github.com/HiLab-git/WORD",
    layout="imagesTr/word_0002.nii.gz and labelsTr beside it", find=_find)
