"""Eight slices of every volume, for the image-to-image tasks; and the same as low-dose CT.

Written once. All contrasts of an item are brought onto the grid of the first, and the same slices are taken from each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol.keeping import key_of
from benchmarks.protocol.low_dose import low_dose_slice
from mvg_core.evaluation.cases import REFERENCE_SPLITS, Case, read_cases
from mvg_core.evaluation.queries import thinned
from mvg_core.report import write_text
from mvg_core.resample import resample_to
from mvg_core.slices import choose_plane
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume

MOST_SLICES = 8
CODE: Mapping[str, tuple[str, ...]] = {
    "whole": (), "thinned": ("benchmarks/protocol/inputs.py",),
    "low_dose": ("benchmarks/protocol/inputs.py", "benchmarks/protocol/low_dose.py")}
"""What decides each kind of inputs."""
SPLITS = (*REFERENCE_SPLITS, "validation", "test")


def prepare(kind: str, data: Path, out: Path) -> Path:
    """Write what a kind of inputs needs of one data set, unless it is there and made by the same code.

    Args:
        kind: `thinned` or `low_dose`.
        data: folder of the data set.
        out: folder of prepared inputs.

    Returns:
        The folder that holds its `dataset.json`.
    """
    folder = out / kind / data.name
    made_by = key_of(CODE[kind], {"data": (data / "dataset.json").read_text()})
    path = folder / "dataset.json"
    if path.is_file() and json.loads(path.read_text()).get("made_by") == made_by:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    listing = json.loads((data / "dataset.json").read_text())
    fresh: dict[str, Any] = {"name": data.name, "made_by": made_by,
                             "labels": {"0": "background", "1": "any"}}
    for split in SPLITS:
        if listing.get(split):
            write = _thinned_item if kind == "thinned" else _low_dose_item
            fresh[split] = [write(case, folder) for case in read_cases(data / "dataset.json", split)]
    write_text(path, json.dumps(fresh, indent=1) + "\n")  # last: it says that all is there
    return folder


def _thinned_item(case: Case, folder: Path) -> dict[str, Any]:
    images = _on_one_grid(case)
    paths = {name: _written(image, folder, f"{case.name}_{name}") for name, image in images.items()}
    if len(paths) == 1:
        return {"subject": case.subject, "image": next(iter(paths.values())), "task": "denoising"}
    return {"subject": case.subject, **paths, "task": "denoising"}


def _low_dose_item(case: Case, folder: Path) -> dict[str, Any]:
    image = read_volume(case.images.get("image") or case.images["ct"])
    axis = image.geometry.anatomical_axis("axial")
    full = thinned(image, axis, MOST_SLICES)
    pixel_mm = [full.geometry.spacing_mm[other] for other in range(3) if other != axis]
    if not np.isclose(*pixel_mm, rtol=0.01):
        raise ValueError(f"{case.name}: slices have pixels of {pixel_mm} mm, square ones are needed for a projection")
    seed = int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:8], "big")
    random = np.random.default_rng(seed)
    noisy = np.stack([low_dose_slice(one, pixel_mm[0], random) for one in np.moveaxis(full.array, axis, 0)], axis)
    return {"subject": case.subject, "task": "denoising",
            "source": _written(full.with_array(noisy), folder, f"{case.name}_low"),
            "target": _written(full, folder, f"{case.name}_full")}


def _on_one_grid(case: Case) -> Mapping[str, Volume]:
    """The contrasts of an item on the grid of its CT, or of the first; at most so many slices of each."""
    images = {name: read_volume(path) for name, path in case.images.items()}
    grid = images.get("ct", next(iter(images.values()))).geometry
    axis = choose_plane(grid)
    return {name: thinned(image if image.geometry.is_close(grid) else
                          resample_to(image, grid, is_label=False, fill=float(image.array.min())), axis, MOST_SLICES)
            for name, image in images.items()}


def _written(volume: Volume, folder: Path, name: str) -> str:
    write_volume(volume.with_array(volume.array.astype(np.float32)), folder / f"{name}.nii.gz", overwrite=True)
    return f"{name}.nii.gz"
