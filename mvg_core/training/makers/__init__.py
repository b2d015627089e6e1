"""Datalists of public data sets, made from the folders that one gets by downloading and extracting them.

A maker looks at names of files (and at single label maps, where downloads differ), and lists the original files: only
DeepLesion is converted, because it has no label maps. Nothing is downloaded; every list names the licence and the terms
of use that its user has agreed to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mvg_core.training.datalist import write_datalist
from mvg_core.training.makers.acdc import ACDC
from mvg_core.training.makers.amos import AMOS_CT, AMOS_MR
from mvg_core.training.makers.brats import BRATS_GLI, BRATS_GLI_SEGMENTATION, BRATS_LOCAL
from mvg_core.training.makers.btcv import BTCV
from mvg_core.training.makers.chest_xray import CHEST_XRAY
from mvg_core.training.makers.deeplesion import DEEPLESION
from mvg_core.training.makers.left_atrium import LEFT_ATRIUM
from mvg_core.training.makers.listing import (
    SPLITS,
    DataSet,
    Download,
    Progress,
    hold_out,
    to_listing,
)
from mvg_core.training.makers.low_dose_ct import LOW_DOSE_CT
from mvg_core.training.makers.microsegnet import MICROSEGNET
from mvg_core.training.makers.promise12 import PROMISE12
from mvg_core.training.makers.word import WORD

__all__ = ["DATA_SETS", "Made", "find_data_set", "make_datalist"]

DATA_SETS: dict[str, DataSet] = {data_set.name: data_set for data_set in (
    AMOS_CT, AMOS_MR, WORD, BTCV, MICROSEGNET, PROMISE12, BRATS_GLI, BRATS_GLI_SEGMENTATION, BRATS_LOCAL, LOW_DOSE_CT,
    CHEST_XRAY, ACDC, LEFT_ATRIUM, DEEPLESION)}


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        data_set: its facts.
        counts: split -> (items, subjects).
        remarks: what was left out and why, one line each.
    """

    data_set: DataSet
    counts: dict[str, tuple[int, int]]
    remarks: tuple[str, ...]


def find_data_set(name: str) -> DataSet:
    """The data set called `name`.

    Raises:
        ValueError: there is none; the message lists all names.
    """
    if name not in DATA_SETS:
        raise ValueError(f"no maker for a data set {name!r}: choose one of {', '.join(sorted(DATA_SETS))}")
    return DATA_SETS[name]


def make_datalist(name: str, folder: Path, output: Path, *, validation_share: float = 0.1, seed: int = 0,
                  progress: Progress = lambda title, done, total: None) -> Made:
    """Write the datalist of a downloaded data set.

    Args:
        name: one of `DATA_SETS`.
        folder: the extracted download, or a folder at most two levels above it.
        output: JSON file to write; replaced if it exists. Files that must be converted go beside it, into
            `<name of output>_files`.
        validation_share: share of the training subjects to validate on, where the data set has no validation split.
        seed: of that draw.
        progress: told title, done and total of a conversion.

    Raises:
        ValueError: unknown name, a folder that is not this data set, a share out of range.
        FileNotFoundError: no such folder.
        VolumeReadError: a file that had to be looked at cannot be read.
        VolumeWriteError: no space, no permission.
    """
    data_set = find_data_set(name)
    folder, output = Path(folder), Path(output)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder: give the folder of the extracted download")
    hold_out([], validation_share, seed)  # a wrong share is refused before a long conversion
    found = data_set.find(Download(folder, output.with_name(f"{output.stem}_files"), progress))
    if not any(getattr(found, split) for split in SPLITS):
        raise ValueError(f"{folder} is not a download of {data_set.title}, looked for {data_set.layout}"
                         + "".join(f"; {remark}" for remark in found.remarks))
    if not found.validation:
        found.training, found.validation = hold_out(found.training, validation_share, seed)
    write_datalist(output, to_listing(data_set, found), overwrite=True)
    splits = {split: getattr(found, split) for split in SPLITS}
    counts = {split: (len(items), len({item["subject"] for item in items})) for split, items in splits.items()}
    return Made(data_set, counts, tuple(found.remarks))
