"""A small cohort on disk: a few noisy images with one labelled example each, or of each other."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mvg_core.volume import Volume
from mvg_core.volume_io import write_volume

SHAPE = (20, 24, 6)


def write_scans(folder: Path, names: Sequence[str], shape: tuple[int, int, int] = SHAPE) -> None:
    """`<name>.nii.gz` of each name, and `example.nii.gz` with `example_label.nii.gz` (labels 1 and 5 in all slices)."""
    label = np.zeros(shape, np.uint8)
    label[4:12, 6:14] = 1
    label[13:18, 6:14] = 5
    write_volume(Volume.from_array(label, (1, 1, 2.5)), folder / "example_label.nii.gz")
    for seed, name in enumerate(["example", *names]):
        image = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
        write_volume(Volume.from_array(image, (1, 1, 2.5)), folder / f"{name}.nii.gz")


def write_manifest(path: Path, rows: Sequence[Mapping[str, str]], delimiter: str = ",") -> Path:
    """A CSV file with the columns that the rows have."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return path


def of_example(*names: str) -> list[dict[str, str]]:
    """Rows of scans that all have the same example."""
    return [{"case": name, "query": f"{name}.nii.gz", "reference_image": "example.nii.gz",
             "reference_label": "example_label.nii.gz"} for name in names]
