"""MicroSegNet: the prostate in micro-ultrasound of 75 patients.

Layout of Micro_Ultrasound_Prostate_Segmentation_Dataset.zip (https://zenodo.org/records/10475293, description):
`{train,test}/micro_ultrasound_scans/microUS_train_01.nii.gz` with
`{train,test}/expert_annotations/expert_annotation_train_01.nii.gz`. The annotations by non-experts, students and a
second clinician are left alone. One scan per patient; train and test are the official ones.
"""

from __future__ import annotations

from pathlib import Path

from mvg_core.training.makers.listing import (
    NIFTI,
    DataSet,
    Download,
    Found,
    files,
    foreground_value,
    locate,
    segmentation_items,
    stem,
)

SCANS, EXPERT = "micro_ultrasound_scans", "expert_annotations"


def _find(download: Download) -> Found:
    found = Found()
    root = locate(download.folder, f"train/{SCANS}", f"train/{EXPERT}")
    if root is None:
        return found
    for split, folder in (("training", root / "train"), ("test", root / "test")):
        images = [path for path in files(folder / SCANS, NIFTI) if path.name.startswith("microUS_")]
        getattr(found, split).extend(segmentation_items(images, _expert, stem, found.remarks))
    if found.training:
        found.labels = {foreground_value(item["label"] for item in found.training): "prostate"}
    return found


def _expert(image: Path) -> Path:
    return image.parents[1] / EXPERT / image.name.replace("microUS_", "expert_annotation_", 1)


MICROSEGNET = DataSet(
    name="microsegnet", title="MicroSegNet", task="segmentation", modality="ultrasound", licence="CC-BY-4.0",
    terms="https://zenodo.org/records/10475293",
    layout=f"train/{SCANS}/microUS_train_01.nii.gz and train/{EXPERT}/expert_annotation_train_01.nii.gz",
    labels={1: "prostate"}, find=_find)
