"""Several patients with the truth: real ones where ../shared is, else documented warps of one brain template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mvg_core.demo import load_template
from mvg_core.resample import resample_to
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume
from scipy import ndimage

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HIPPOCAMPUS = SHARED / "hippocampus_t1"
WARP_MM = 6.0
"""Largest shift of the template's warps."""


@dataclass(frozen=True, eq=False)
class Patient:
    """An image with its truth.

    Attributes:
        name: id of the image on the server.
        image: as it is.
        truth: label map on the same grid.
    """

    name: str
    image: Volume
    truth: Volume


@dataclass(frozen=True, eq=False)
class Patients:
    """Those to label, and those to answer.

    Attributes:
        labelled: five; the first is for the prompts folder.
        queries: two.
        names: label number -> name.
        source: for reports.
    """

    labelled: tuple[Patient, ...]
    queries: tuple[Patient, ...]
    names: dict[int, str]
    source: str


def patients() -> Patients:
    """Of ../shared if it is there; else warps."""
    return _real() if HIPPOCAMPUS.is_dir() else _warped()


def _real() -> Patients:
    listing = json.loads((HIPPOCAMPUS / "dataset.json").read_text(encoding="utf-8"))

    def read(items: Sequence[dict]) -> tuple[Patient, ...]:
        return tuple(Patient(item["subject"], read_volume(HIPPOCAMPUS / item["image"]),
                             read_volume(HIPPOCAMPUS / item["label"])) for item in items)

    names = {int(number): name for number, name in listing["labels"].items() if int(number)}
    return Patients(read(listing["references"][:5]), read(listing["validation"][:2]), names,
                    "hippocampus_t1 of ../shared")


def _warped() -> Patients:
    """A part of the template at 2 mm, shifted smoothly by up to `WARP_MM` in a way of its own for each patient."""
    template = load_template()
    coarse = _coarse(template.image.geometry)
    image = resample_to(template.image, coarse, is_label=False)
    truth = resample_to(template.truth, coarse, is_label=True)
    made = tuple(_warp(image, truth, seed) for seed in range(7))
    return Patients(made[:5], made[5:], {1: "grey matter", 2: "white matter"}, "warps of nilearn's MNI152 template")


def _coarse(grid: Geometry) -> Geometry:
    affine = grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (grid.affine @ [60, 80, 70, 1])[:3]
    return Geometry((44, 44, 24), affine)


def _warp(image: Volume, truth: Volume, seed: int) -> Patient:
    generator = np.random.default_rng(seed)
    shape, spacing_mm = image.array.shape, image.geometry.spacing_mm
    shifts = []
    for axis in range(3):
        field = ndimage.zoom(generator.normal(size=(4, 4, 4)), [n / 4 for n in shape], order=3)
        shifts.append(field / np.abs(field).max() * WARP_MM / spacing_mm[axis])
    where = np.indices(shape) + np.array(shifts)
    warped = ndimage.map_coordinates(image.array, where, order=1, mode="nearest").astype(np.float32)
    noisy = warped + generator.normal(scale=0.01, size=shape).astype(np.float32)
    label = ndimage.map_coordinates(truth.array, where, order=0, mode="nearest")
    return Patient(f"warp_{seed}", image.with_array(noisy), truth.with_array(label))


def dice(answer: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice of the truth's labels."""
    labels = [int(label) for label in np.unique(truth) if label]
    return float(np.mean([2 * np.count_nonzero((answer == label) & (truth == label))
                          / max(1, np.count_nonzero(answer == label) + np.count_nonzero(truth == label))
                          for label in labels]))
