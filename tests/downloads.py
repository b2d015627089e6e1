"""Miniature copies of public downloads: the true folders and names, tiny images in the true formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

SHAPE = (20, 18, 6)
CT, MR = (-1000.0, 40.0, 500.0), (0.0, 80.0, 400.0)
"""Intensity outside, inside, and how much brighter the structures are."""


def label_array(seed: int, values: Iterable[int] = (1,), shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A box for each value, elsewhere in every scan."""
    labels = np.zeros(shape, np.uint8)
    for number, value in enumerate(values):
        labels[3 + seed % 3 + number : 9 + number, 4 + 4 * (number % 3) : 8 + 4 * (number % 3), 1:] = value
    return labels


def image_array(seed: int, levels: tuple[float, float, float] = MR, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A bright block around the boxes, with noise; the same anatomy for the same seed."""
    outside, inside, brighter = levels
    image = np.full(shape, outside)
    image[1:-1, 1:-1] = inside + brighter * (label_array(seed, (1,), shape)[1:-1, 1:-1] > 0)
    return image + np.random.default_rng(seed).normal(0, 3, shape)


def nifti(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float] = (1.5, 1.5, 5.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if array.dtype == np.uint8 else np.int16
    nib.save(nib.Nifti1Image(array.astype(kind), np.diag([*spacing_mm, 1.0])), path)


def itk(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float] = (0.625, 0.625, 2.5)) -> None:
    """NRRD, or MHD with its raw file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if array.dtype == np.uint8 else np.int16
    image = sitk.GetImageFromArray(array.astype(kind).transpose(2, 1, 0))
    image.SetSpacing(spacing_mm)
    sitk.WriteImage(image, str(path))


def png(path: Path, array: np.ndarray) -> None:
    """(H, W) uint8 or uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def dicom(folder: Path, array: np.ndarray, name: str = "1-{:02d}.dcm") -> None:
    """A series of the first three CT slices of (W, H, n), in HU."""
    folder.mkdir(parents=True, exist_ok=True)
    one, uid = pydicom.dcmread(str(get_testdata_file("CT_small.dcm"))), generate_uid()
    for number in range(3):
        one.SeriesInstanceUID, one.SOPInstanceUID = uid, generate_uid()
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.ImagePositionPatient = ["0", "0", str(5.0 * number)]
        one.InstanceNumber = number + 1
        one.RescaleIntercept, one.RescaleSlope = "-1024", "1"
        one.Columns, one.Rows = array.shape[:2]
        one.PixelSpacing = ["1.5", "1.5"]
        one.PixelData = (array[:, :, number].T + 1024).round().clip(0).astype(np.int16).tobytes()
        one.save_as(folder / name.format(number + 1))


def rubbish(path: Path) -> None:
    """A file that no maker may list: macOS and Windows leave such beside the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0rubbish")


def write_amos(folder: Path) -> Path:
    root = folder / "amos22"
    splits = {"Tr": (1, 4, 5, 507, 510), "Va": (8, 540), "Ts": (2, 600)}
    for split, numbers in splits.items():
        for number in numbers:
            levels = CT if number <= 500 else MR
            nifti(root / f"images{split}" / f"amos_{number:04d}.nii.gz", image_array(number, levels))
            if split != "Ts":
                nifti(root / f"labels{split}" / f"amos_{number:04d}.nii.gz", label_array(number, (1, 6, 15)))
    (root / "dataset.json").write_text(json.dumps({"name": "AMOS", "labels": {"1": "spleen"}}))
    for kind in ("images", "labels"):
        rubbish(root / f"{kind}Tr" / "._amos_0001.nii.gz")
    return folder


def write_word(folder: Path, test_labels: bool = True) -> Path:
    root = folder / "WORD-V0.1.0"
    for split, numbers in {"Tr": (2, 3, 6), "Val": (1,), "Ts": (14, 15)}.items():
        for number in numbers:
            nifti(root / f"images{split}" / f"word_{number:04d}.nii.gz", image_array(number, CT))
            if split != "Ts" or test_labels:
                nifti(root / f"labels{split}" / f"word_{number:04d}.nii.gz", label_array(number, (1, 16)))
    (root / "dataset.json").write_text("{}")
    for kind in ("images", "labels"):
        rubbish(root / f"{kind}Tr" / "._word_0002.nii.gz")
    return folder


def write_btcv(folder: Path) -> Path:
    for number in (1, 2, 40):
        nifti(folder / "RawData/Training/img" / f"img{number:04d}.nii.gz", image_array(number, CT))
        nifti(folder / "RawData/Training/label" / f"label{number:04d}.nii.gz", label_array(number, (1, 13)))
    nifti(folder / "RawData/Testing/img/img0061.nii.gz", image_array(61, CT))
    for kind in ("img", "label"):
        rubbish(folder / "RawData/Training" / kind / f"._{kind}0001.nii.gz")
    return folder


def write_microsegnet(folder: Path) -> Path:
    root = folder / "Micro_Ultrasound_Prostate_Segmentation_Dataset"
    for split, numbers, others in (("train", (1, 2, 3), ("non_expert",)), ("test", (1, 2), ("clinician",))):
        for number in numbers:
            at = root / split
            seed = number + 10 * (split == "test")
            nifti(at / "micro_ultrasound_scans" / f"microUS_{split}_{number:02d}.nii.gz", image_array(seed))
            for who in ("expert", *others):
                name = f"{who.replace('_', '')}_annotation_{split}_{number:02d}.nii.gz"
                nifti(at / f"{who}_annotations" / name, label_array(seed))
    for name in ("micro_ultrasound_scans/._microUS_train_01", "expert_annotations/._expert_annotation_train_01"):
        rubbish(root / "train" / f"{name}.nii.gz")
    return folder


def write_promise12(folder: Path, parts: bool = False) -> Path:
    for number in range(4):
        at = folder / (f"TrainingData_Part{1 + number // 2}" if parts else "training_data")
        itk(at / f"Case{number:02d}.mhd", image_array(number))
        itk(at / f"Case{number:02d}_segmentation.mhd", label_array(number))
    for number in range(2):
        itk(folder / "test_data" / f"Case{number:02d}.mhd", image_array(number))
    return folder


BRATS_VISITS = ("00000-000", "00000-001", "00002-000", "00003-000")


def write_brats_gli(folder: Path) -> Path:
    root = folder / "ASNR-MICCAI-BraTS2023-GLI-Challenge"
    for at, visits, names in ((f"{root}-TrainingData", BRATS_VISITS, ("t1n", "t1c", "t2w", "t2f", "seg")),
                              (f"{root}-ValidationData", ("00001-000",), ("t1n", "t1c", "t2w", "t2f"))):
        for visit in visits:
            for number, name in enumerate(names):
                array = image_array(int(visit[:5])) * (1 + number / 4)
                nifti(Path(at) / f"BraTS-GLI-{visit}" / f"BraTS-GLI-{visit}-{name}.nii.gz",
                      label_array(int(visit[:5]), (1, 2, 3)) if name == "seg" else array, (1.0, 1.0, 1.0))
    return folder


def write_brats_local(folder: Path) -> Path:
    root = folder / "ASNR-MICCAI-BraTS2023-Local-Synthesis-Challenge"
    for number, visit in enumerate(BRATS_VISITS):
        hole = label_array(number)
        case = Path(f"{root}-Training") / f"BraTS-GLI-{visit}" / f"BraTS-GLI-{visit}"
        image = image_array(number)
        for name, array in {"t1n": image, "t1n-voided": image * (hole == 0), "mask": hole, "mask-healthy": hole,
                            "mask-unhealthy": 0 * hole}.items():
            nifti(Path(f"{case}-{name}.nii.gz"), array, (1.0, 1.0, 1.0))
    case = Path(f"{root}-Validation") / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000"
    nifti(Path(f"{case}-t1n-voided.nii.gz"), image_array(1), (1.0, 1.0, 1.0))
    nifti(Path(f"{case}-mask.nii.gz"), label_array(1), (1.0, 1.0, 1.0))
    return folder


def write_low_dose_ct(folder: Path) -> Path:
    """The archive: three patients with both doses, one with full dose only, and projections."""
    root = folder / "manifest-1648648375084" / "LDCT-and-Projection-data"
    noise = np.random.default_rng(0).normal(0, 60, SHAPE)
    for number, patient in enumerate(("C004", "L004", "N012")):
        study = root / patient / f"08-21-2018-8460{number}"
        dicom(study / f"1.000000-Full dose images-5970{number}", image_array(number, CT))
        dicom(study / f"1.000000-Low Dose Images-3558{number}", image_array(number, CT) + noise)
        rubbish(root / patient / "08-21-2018-10971" / "1.000000-Full dose projections-24362" / "1-00001.dcm")
    dicom(root / "L299" / "12-23-2021-NA-NA-31304" / "1.000000-Full Dose Images-29696", image_array(5, CT))
    rubbish(folder / "manifest-1648648375084" / "metadata.csv")
    return folder


def write_low_dose_challenge(folder: Path) -> Path:
    """The challenge: IMA files, two thicknesses."""
    noise = np.random.default_rng(0).normal(0, 60, SHAPE)
    for number, patient in enumerate(("L067", "L096", "L109")):
        for kind, add in (("full", 0), ("quarter", noise)):
            name = f"{patient}_{'FD' if kind == 'full' else 'QD'}_1_1.CT.0001.{{:04d}}.IMA"
            at = folder / "Training_Image_Data" / "1mm B30" / f"{kind}_1mm" / patient / f"{kind}_1mm"
            dicom(at, image_array(number, CT) + add, name)
        for kind, add in (("full", 0), ("quarter", noise)):
            at = folder / "Training_Image_Data" / "3mm D45" / f"{kind}_3mm_sharp" / patient / f"{kind}_3mm_sharp"
            dicom(at, image_array(number, CT) + add, f"{patient}_1_1.CT.0002.{{:04d}}.IMA")
    return folder


def write_chest_xray(folder: Path) -> Path:
    root = folder / "Lung Segmentation"
    names = ("CHNCXR_0001_0", "CHNCXR_0327_1", "MCUCXR_0001_0", "MCUCXR_0104_1", "CHNCXR_0025_0")
    for number, name in enumerate(names):
        png(root / "CXR_png" / f"{name}.png", image_array(number, (10, 90, 80))[:, :, 3].clip(0, 255).astype(np.uint8))
        if name != "CHNCXR_0025_0":  # one of the 96 without a mask
            mask = f"{name}_mask" if name.startswith("CHN") else name
            png(root / "masks" / f"{mask}.png", 255 * label_array(number)[:, :, 3])
    rubbish(root / "CXR_png" / "Thumbs.db")
    for kind in ("CXR_png", "masks"):
        rubbish(root / kind / "._CHNCXR_0001_0.png")
    png(root / "test" / "CHNCXR_0025_0.png", np.zeros((4, 4), np.uint8))
    rubbish(root / "ClinicalReadings" / "CHNCXR_0001_0.txt")
    return folder


def write_acdc(folder: Path) -> Path:
    for split, patients in (("training", (1, 2, 3)), ("testing", (101, 102))):
        for patient in patients:
            at = folder / "ACDC" / "database" / split / f"patient{patient:03d}"
            for frame in (1, 12):
                nifti(at / f"{at.name}_frame{frame:02d}.nii.gz", image_array(patient), (1.4, 1.4, 10.0))
                nifti(at / f"{at.name}_frame{frame:02d}_gt.nii.gz", label_array(patient, (1, 2, 3)), (1.4, 1.4, 10.0))
            nifti(at / f"{at.name}_4d.nii.gz", np.zeros((*SHAPE, 2), np.uint8), (1.4, 1.4, 10.0))
            rubbish(at / "Info.cfg")
        rubbish(folder / "ACDC" / "database" / split / "MANDATORY_CITATION.md")
    return folder


def write_left_atrium(folder: Path) -> Path:
    for split, names in (("Training Set", ("0RZDK210BSMWAA6467LU", "1D7CUD1955YZPGK8XHJX", "2XVKUWTRVSUOD6DQKY8D")),
                         ("Testing Set", ("4498JFQI05AAG1J1XCXS",))):
        for number, name in enumerate(names, 10 * (split == "Testing Set")):
            at = folder / split / name
            itk(at / "lgemri.nrrd", image_array(number).clip(0, 255))
            itk(at / "laendo.nrrd", 255 * label_array(number))
            itk(at / "lawall.nrrd", 255 * label_array(number + 1))
            rubbish(at / "desktop.ini")
    return folder


LESIONS = (
    # file, patient, slice, diameters, box, noisy, split
    ("000001_01_01_109", 1, 109, "20, 30, 40, 30, 30, 25, 30, 35", "15, 20, 45, 40", 0, 1),
    ("000001_01_01_109", 1, 109, "50, 10, 56, 10, 53, 8, 53, 12", "45, 3, 61, 17", 0, 1),
    ("000001_02_01_014", 1, 14, "20, 30, 40, 30, 30, 25, 30, 35", "15, 20, 45, 40", 0, 1),
    ("000002_01_01_021", 2, 21, "20, 30, 40, 30, 30, 25, 30, 35", "15, 20, 45, 40", 0, 2),
    ("000003_01_01_007", 3, 7, "20, 30, 40, 30, 30, 25, 30, 35", "15, 20, 45, 40", 0, 3),
    ("000004_01_01_050", 4, 50, "20, 30, 40, 30, 30, 25, 30, 35", "15, 20, 45, 40", 1, 1),
    ("000005_01_01_060", 5, 60, "20, 30, 40, 30, 30, 25, 30, 35", "15, 20, 45, 40", 0, 1),
)
"""000001_01_01_109 has two lesions, 000004 is noisy, 000005 was not extracted."""


def write_deeplesion(folder: Path) -> Path:
    columns = ("File_name", "Patient_index", "Study_index", "Series_ID", "Key_slice_index", "Measurement_coordinates",
               "Bounding_boxes", "Lesion_diameters_Pixel_", "Normalized_lesion_location", "Coarse_lesion_type",
               "Possibly_noisy", "Slice_range", "Spacing_mm_px_", "Image_size", "DICOM_windows", "Patient_gender",
               "Patient_age", "Train_Val_Test")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "DL_info.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for name, patient, number, diameters, box, noisy, split in LESIONS:
            writer.writerow((f"{name}.png", patient, 1, 1, number, diameters, box, "20, 10", "0.4, 0.3, 0.4", 3, noisy,
                             f"{number - 1}, {number + 1}", "0.8, 0.8, 5", "64, 64", "-175, 275", "F", 62, split))
    for name in dict.fromkeys(lesion[0] for lesion in LESIONS):
        series, _, number = name.rpartition("_")
        if series != "000005_01_01":
            for neighbour in (-1, 0, 1):
                slice_hu = np.full((64, 64), -1000.0)
                slice_hu[4:60, 4:60] = 40 + neighbour
                slice_hu[25:36, 20:41] = 90
                slice_hu[5:9, 5:9] = 10 * int(series[:6]) + int(number) % 10  # no two are the same
                png(folder / "Images_png" / series / f"{int(number) + neighbour:03d}.png",
                    (slice_hu + 32768).astype(np.uint16))
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "amos-ct": write_amos, "amos-mr": write_amos, "word": write_word, "btcv": write_btcv,
    "microsegnet": write_microsegnet, "promise12": write_promise12, "brats-gli": write_brats_gli,
    "brats-gli-segmentation": write_brats_gli, "brats-local": write_brats_local, "low-dose-ct": write_low_dose_ct,
    "chest-xray": write_chest_xray, "acdc": write_acdc, "la": write_left_atrium, "deeplesion": write_deeplesion}
