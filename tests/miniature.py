"""Data sets, slices and networks that are small enough to be made on the spot."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvg_core.network.compact import CompactPainter
from mvg_core.network.config import NetworkConfig
from mvg_core.training.bank import SliceBank, build_bank
from mvg_core.training.datasets import read_training_set
from mvg_core.volume import Volume
from mvg_core.volume_io import write_volume

TINY = NetworkConfig(
    size=32, widths=(8, 8, 16, 32, 32), heads=1, depth=1, mlp_ratio=2.0, slots=8, patch=16, position_grid=2
)

# As in head_labelmaps: consecutive numbers, and the FreeSurfer number of each. 17 and 53 are the hippocampi.
FREESURFER_NUMBERS = {1: 2, 2: 41, 3: 17, 4: 53, 5: 16}


def tiny_painter(config: NetworkConfig = TINY, seed: int = 0) -> CompactPainter:
    """A network none of whose layers is silent, as those that start at zero would be."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = CompactPainter(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def write_listing(folder: Path, listing: Mapping[str, Any]) -> Path:
    """A `dataset.json`, with what is not given as in a training set without items."""
    folder.mkdir(parents=True, exist_ok=True)
    complete = {"role": "train", "modality": "MR", "labels": {}, "training": [], "validation": [], "test": []}
    (folder / "dataset.json").write_text(json.dumps({**complete, **listing}), encoding="utf-8")
    return folder


def phantom(subject: int, shape: tuple[int, int, int] = (26, 24, 22)) -> np.ndarray:
    """Label map uint8: a block 1 in it a ball 2, and a rod 3; a little elsewhere in every subject."""
    i, j, k = np.indices(shape)
    labels = np.zeros(shape, np.uint8)
    labels[3:-3, 3:-3, 3:-3] = 1
    centre = np.array(shape) / 2 + (subject % 3 - 1)
    labels[(i - centre[0]) ** 2 + (j - centre[1]) ** 2 + (k - centre[2]) ** 2 < 25] = 2
    labels[5:8, 5 + subject % 2 : 9 + subject % 2, 3:-3] = 3
    return labels


def write_mr(folder: Path, n_subjects: int = 3) -> Path:
    """Two co-registered contrasts with labels, isotropic; the last subject validates."""
    entries = []
    for subject in range(n_subjects + 1):
        labels = phantom(subject)
        grey = np.random.default_rng(subject).normal(0, 3, labels.shape).astype(np.float32)
        # Dark at label 0 in both; otherwise the contrasts order the labels differently.
        t1, t2 = np.array([0, 100, 200, 50]), np.array([0, 150, 40, 90])
        files = {"t1": t1[labels] + grey, "t2": t2[labels] + grey, "label": labels}
        entries.append({"subject": f"s{subject}"} | _write_all(folder, f"s{subject}", files, (1.0, 1.0, 1.0)))
    return write_listing(folder, {"labels": {"1": "block", "2": "ball", "3": "rod"}, "training": entries[:-1],
                                  "validation": entries[-1:]})


def write_ct(folder: Path, n_subjects: int = 2) -> Path:
    """CT in HU with thick slices, and a PET beside it."""
    entries = []
    for subject in range(n_subjects):
        labels = phantom(subject, (28, 28, 8))
        files = {"ct": np.array([-1000, 40, 80, 700], np.float32)[labels], "pet": 100 * labels.astype(np.float32),
                 "label": labels}
        entries.append({"subject": f"c{subject}"} | _write_all(folder, f"c{subject}", files, (1.0, 1.0, 4.0)))
    return write_listing(folder, {"modality": "CT and PET", "training": entries})


def write_label_maps(folder: Path, n_subjects: int = 2) -> Path:
    """Label maps without images, numbered as `FREESURFER_NUMBERS` says."""
    entries = []
    for subject in range(n_subjects):
        labels = phantom(subject)  # 1, 2, 3
        labels[-8:-4, 6:18, 6:18] = 4
        labels[10:16, 4:7, 6:18] = 5
        entries.append({"subject": f"m{subject}"} | _write_all(folder, f"m{subject}", {"label": labels}, (1., 1., 1.)))
    return write_listing(folder, {"freesurfer_number_of_label": {str(k): v for k, v in FREESURFER_NUMBERS.items()},
                                  "training": entries})


def write_pictures(folder: Path, n_subjects: int = 3) -> Path:
    """Two-dimensional images with one label."""
    entries = []
    for subject in range(n_subjects):
        label = (phantom(subject, (30, 24, 12))[:, :, 6:7] == 2).astype(np.uint8)
        files = {"image": (60 + 120 * label).astype(np.uint8), "label": label}
        entries.append({"subject": f"p{subject}"} | _write_all(folder, f"p{subject}", files, (1., 1., 1.), ".png"))
    return write_listing(folder, {"modality": "ultrasound", "training": entries})


def _write_all(folder: Path, subject: str, files: Mapping[str, np.ndarray], spacing_mm: tuple[float, float, float],
               suffix: str = ".nii.gz") -> dict[str, str]:
    paths = {}
    for name, array in files.items():
        paths[name] = f"{name}/{subject}{suffix}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_volume(Volume.from_array(array, spacing_mm), folder / paths[name])
    return paths


@functools.cache
def tiny_bank() -> SliceBank:
    """Slices of 32 x 32 of all the data sets above."""
    with tempfile.TemporaryDirectory() as folder:
        writers = {"mr": write_mr, "ct": write_ct, "maps": write_label_maps, "pictures": write_pictures}
        sets = [read_training_set(write(Path(folder) / name)) for name, write in writers.items()]
        return build_bank(sets, size=32, stride_2nd=2)
