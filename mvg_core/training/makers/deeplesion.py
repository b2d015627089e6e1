"""DeepLesion: 32,735 lesions on CT slices of 4,427 patients, each measured by a radiologist.

Layout (https://nihcc.app.box.com/v/DeepLesion, its README and FAQ; columns as in DL_info.csv): `DL_info.csv` and
`Images_png/000001_01_01/103.png`; the archives Images_png_01.zip to _56.zip may be extracted in part. Patient, study
and series make the name of the folder; Train_Val_Test (1, 2, 3) is the official split, by patient.

There are no label maps, and the PNG files hold HU + 32768, so the slices with a lesion (the key slices) are converted:
to NIfTI in HU with their spacing, and a label map beside each. Its lesions are drawn from the two RECIST diameters: of
the four quarters between the diameters, each is a quarter of the ellipse through the two end points; the bounding box
limits it. That is an estimate of the outline, not a segmentation by hand. Possibly_noisy rows are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mvg_core.training.makers.listing import DataSet, Download, Found, Item, count_of, locate, subfolders
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume

HU_OFFSET = 32768
LESION = 1
SPLIT_OF = {"1": "training", "2": "validation", "3": "test"}
COLUMNS = ("File_name", "Patient_index", "Key_slice_index", "Measurement_coordinates", "Bounding_boxes",
           "Possibly_noisy", "Spacing_mm_px_", "Train_Val_Test")

_SERIES = re.compile(r"\d{6}_\d\d_\d\d")
_SHORTEST_PX = 0.5


def _find(download: Download) -> Found:
    found = Found()
    root = locate(download.folder, "DL_info.csv")
    if root is None:
        return found
    if download.converted.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"DeepLesion must be converted, and {download.converted} lies in the download: write the list "
                         "somewhere else")
    slices = _slices(root / "DL_info.csv", found)
    series = _series_folders(root)
    present = {name: rows for name, rows in slices.items() if name.rpartition("_")[0] in series}
    if len(present) < len(slices):
        found.remarks.append(f"{len(slices) - len(present)} of {len(slices)} key slices left out: their series are not "
                             f"below {root} (archives that were not extracted?)")
    if present:
        (download.converted / "images").mkdir(parents=True, exist_ok=True)
        (download.converted / "labels").mkdir(exist_ok=True)
    for done, (name, rows) in enumerate(present.items()):
        download.progress("DeepLesion", done, len(present))
        item = _convert(series[name.rpartition("_")[0]], name, rows, download.converted)
        getattr(found, SPLIT_OF[rows[0]["Train_Val_Test"]]).append(item)
    if present:
        download.progress("DeepLesion", len(present), len(present))
    return found


def _slices(path: Path, found: Found) -> dict[str, list[dict[str, str]]]:
    """File name -> rows of DL_info.csv, one for each lesion on the slice; without the noisy ones.

    Raises:
        ValueError: the table lacks a column.
    """
    slices: dict[str, list[dict[str, str]]] = {}
    noisy = 0
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]}: is it the DL_info.csv of DeepLesion?")
        for row in reader:
            if row["Possibly_noisy"].strip() == "1":
                noisy += 1
            else:
                slices.setdefault(row["File_name"].removesuffix(".png"), []).append(row)
    if noisy:
        found.remarks.append(f"{count_of(noisy, 'lesion')} left out: marked as possibly noisy in {path.name}")
    return slices


def _series_folders(root: Path) -> dict[str, Path]:
    """Name of a series -> its folder, in the folder of the table or up to two levels below it."""
    above = [root, *subfolders(root)]
    above += [below for folder in above[1:] if not _SERIES.fullmatch(folder.name) for below in subfolders(folder)]
    candidates = [folder for folder in above if not _SERIES.fullmatch(folder.name)]
    return {one.name: one for folder in candidates for one in subfolders(folder) if _SERIES.fullmatch(one.name)}


def _convert(series: Path, name: str, rows: Sequence[Mapping[str, str]], folder: Path) -> Item:
    """Image and label map of a key slice; kept if an earlier run has written both."""
    image, label = folder / "images" / f"{name}.nii.gz", folder / "labels" / f"{name}.nii.gz"
    # The label is written last: where it is, the image is complete.
    if not label.is_file():
        picture = read_volume(series / f"{int(rows[0]['Key_slice_index']):03d}.png")
        spacing = _numbers(rows[0], "Spacing_mm_px_", 3)
        geometry = Geometry(picture.geometry.shape, picture.geometry.affine @ np.diag([*spacing, 1.0]))
        hu = np.clip(picture.array.astype(np.int32) - HU_OFFSET, -32768, 32767).astype(np.int16)
        write_volume(Volume(hu, geometry), image, overwrite=True)
        shape = (geometry.shape[0], geometry.shape[1])
        mask = np.zeros(shape, bool)
        for row in rows:
            mask |= lesion_mask(_numbers(row, "Measurement_coordinates", 8), _numbers(row, "Bounding_boxes", 4), shape)
        write_volume(Volume((mask[..., None] * LESION).astype(np.uint8), geometry), label, overwrite=True)
    return {"image": image, "label": label, "subject": f"{int(rows[0]['Patient_index']):06d}"}


def _numbers(row: Mapping[str, str], column: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in row[column].split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"DL_info.csv, {row['File_name']}: column {column} holds {row[column]!r}, needed {count} "
                         "numbers: download the table again")
    return values


def lesion_mask(diameters: Sequence[float], box: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
    """Pixels of a lesion, estimated from its RECIST measurement.

    Args:
        diameters: x1, y1, x2, y2 of the longest diameter, then of the one across it; x along columns, y along rows.
        box: x1, y1, x2, y2 that the lesion does not leave.
        shape: (W, H) of the slice.

    Returns:
        (W, H) bool, x first.
    """
    ends = np.asarray(diameters, float).reshape(2, 2, 2)  # (diameter, end, xy)
    along = ends[:, 1] - ends[:, 0]
    lengths = np.linalg.norm(along, axis=1)
    axes = along / np.maximum(lengths, 1e-6)[:, None] if lengths[0] else np.eye(2)
    if abs(np.linalg.det(axes)) < 0.2:  # nearly parallel: a measurement without a second diameter
        axes[1] = [-axes[0, 1], axes[0, 0]]
    # Where the diameters cross, in lengths along each from its first end.
    crossing = np.linalg.solve(np.stack([axes[0], -axes[1]], axis=1), ends[1, 0] - ends[0, 0])
    before = np.clip(crossing, 0, lengths)
    centre = ends[0, 0] + before[0] * axes[0]
    radii = np.maximum([before, lengths - before], _SHORTEST_PX)  # (side, diameter)
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    offsets = np.linalg.solve(axes.T, np.stack([x.ravel() - centre[0], y.ravel() - centre[1]]))  # (diameter, pixels)
    reach = np.where(offsets < 0, radii[0][:, None], radii[1][:, None])
    inside = (((offsets / reach) ** 2).sum(0) <= 1).reshape(shape)
    in_box = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
    return inside & in_box


DEEPLESION = DataSet(
    name="deeplesion", title="DeepLesion", task="segmentation", modality="CT", labels={LESION: "lesion"},
    licence="NIH Clinical Center, citation and acknowledgement needed", terms="https://nihcc.app.box.com/v/DeepLesion",
    layout="DL_info.csv and Images_png/000001_01_01/109.png", find=_find)
