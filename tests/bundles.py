"""A copy of the bundle with a tiny network, and data that is small enough to train and predict in seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from miniature import TINY, phantom
from tiny import write_weights

from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import write_volume

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLE = REPOSITORY / "bundle"
CONFIGS = BUNDLE / "configs"
SHAPE = (26, 24, 22)
LABELS = {1: "block", 2: "ball", 3: "rod"}

NETWORK: dict[str, Any] = {f"network_def#config#{name}": getattr(TINY, name) for name in (
    "size", "heads", "depth", "mlp_ratio", "slots", "position_grid")} | {
        "network_def#config#widths": [*TINY.widths], "network_def#config#maps": TINY.maps}
TRAINING: dict[str, Any] = {
    "training#episodes#size": 32, "training#batch": 2, "training#epoch_length": 2, "training#validation_episodes": 2,
    "training#warm_up": 1, "train#dataset#size": 32, "validate#dataset#size": 32, "train#trainer#max_epochs": 1}
"""Overrides for a network and a training of seconds."""


def oblique_affine() -> np.ndarray:
    """Turned about two axes, anisotropic, one axis reversed, away from the origin."""
    a, b = 0.3, -0.2
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([-1.2, 1.0, 1.5])
    affine[:3, 3] = 5, -7, 11
    return affine


def subject(number: int) -> tuple[Volume, Volume]:
    """Image and label map of a phantom."""
    labels = phantom(number, SHAPE)
    noise = np.random.default_rng(number).normal(0, 3, SHAPE)
    image = (np.array([0, 100, 200, 50])[labels] + noise).astype(np.float32)
    geometry = Geometry(SHAPE, oblique_affine())
    return Volume(image, geometry), Volume(labels, geometry)


def write_data(folder: Path) -> Path:
    """Two subjects to train, one to validate, two to test and one as reference, and their datalist."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(6):
        for kind, volume in zip(("image", "label"), subject(number), strict=True):
            write_volume(volume, folder / f"{kind}{number}.nii.gz")
        items.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz", "subject": f"s{number}"})
    listing = {"name": "phantoms", "modality": "MR", "labels": {str(k): v for k, v in LABELS.items()},
               "training": items[:2], "validation": items[2:3], "test": items[3:5], "references": items[5:]}
    path = folder / "datalist.json"
    path.write_text(json.dumps(listing), encoding="utf-8")
    return path


def copy_bundle(folder: Path) -> Path:
    """The bundle with tiny weights instead of its own, and without reference cases."""
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("*.pt*", "prompts", "eval", "data", "*.ts"))
    write_weights(folder / "models" / "model.pt", TINY)
    return folder


def as_arguments(overrides: dict[str, Any]) -> list[str]:
    """Overrides as they stand on a command line."""
    return [text for name, value in overrides.items() for text in (f"--{name}", f"{value}")]


def run(*arguments: object, cwd: Path, launcher: Sequence[str] = ("-m", "monai.bundle")
        ) -> subprocess.CompletedProcess[str]:
    """A stock command in a process of its own, without network."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "no_proxy": "", "http_proxy": "http://localhost:9",
                                "https_proxy": "http://localhost:9"}
    return subprocess.run([sys.executable, "-W", "ignore", *launcher, *(str(one) for one in arguments)], cwd=cwd,
                          env=environment, capture_output=True, text=True, check=False)
