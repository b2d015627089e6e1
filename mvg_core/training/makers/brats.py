"""BraTS 2023: adult glioma (GLI) and local synthesis, that is inpainting.

Layout (https://www.synapse.org/Synapse:syn51156910, https://github.com/BraTS-inpainting/2023_challenge):
`ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz`,
the same without seg in ...-ValidationData; and
`ASNR-MICCAI-BraTS2023-Local-Synthesis-Challenge-Training/BraTS-GLI-00000-000/BraTS-GLI-00000-000-*.nii.gz` with
t1n-voided, t1n, mask, mask-healthy, mask-unhealthy. The last number is the visit: visits of a patient stay together.

Synthesis: four images can be paired in twelve directions. A visit is listed with four of them, every contrast once as
source and once as target, and the next visit with the next four, so that all twelve are equally frequent while each
file is read twice only. The direction is told as the item's modality, so that prompts show the direction of their
query. (The paper's own runs pair t1c and t2w alone.)

Inpainting: from t1n-voided to t1n. The voided part covers a healthy region, which is what the challenge scores, and the
tumour, which is in the target too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mvg_core.training.makers.listing import DataSet, Download, Found, Item, count_of, subfolders

CONTRASTS = ("t1n", "t1c", "t2w", "t2f")
LABELS = {1: "necrotic tumour core", 2: "peritumoral oedema", 3: "enhancing tumour"}
TERMS = "https://www.synapse.org/Synapse:syn51156910/wiki/627000"
LICENCE = "CC-BY-NC-4.0, registration needed"

_VISIT = re.compile(r"(BraTS-GLI-\d{5})-\d{3}")
_DEPTH = 3


def _find_synthesis(download: Download) -> Found:
    found = Found()
    for number, visit in enumerate(_visits(download.folder, found, CONTRASTS)):
        items = _split(visit, found)
        for index, source in enumerate(CONTRASTS):
            target = CONTRASTS[(index + 1 + number % (len(CONTRASTS) - 1)) % len(CONTRASTS)]
            items.append({"source": _file(visit, source), "target": _file(visit, target), "subject": _patient(visit),
                          "modality": f"MR {source} to {target}"})
    return found


def _find_segmentation(download: Download) -> Found:
    found = Found()
    for visit in _visits(download.folder, found, (*CONTRASTS, "seg")):
        _split(visit, found).append({"image": {contrast: _file(visit, contrast) for contrast in CONTRASTS},
                                     "label": _file(visit, "seg"), "subject": _patient(visit)})
    return found


def _find_inpainting(download: Download) -> Found:
    found = Found()
    for visit in _visits(download.folder, found, ("t1n-voided", "t1n", "mask", "mask-healthy")):
        _split(visit, found).append({"source": _file(visit, "t1n-voided"), "target": _file(visit, "t1n"),
                                     "mask": _file(visit, "mask"), "scored_mask": _file(visit, "mask-healthy"),
                                     "subject": _patient(visit)})
    return found


def _visits(folder: Path, found: Found, needed: tuple[str, ...]) -> list[Path]:
    """Folders of visits that have all the files needed; the others are counted in the remarks."""
    complete, incomplete, level = [], [], [folder]
    for _ in range(_DEPTH):
        level = [below for above in level for below in subfolders(above)]
        visits = [path for path in level if _VISIT.fullmatch(path.name)]
        level = [path for path in level if not _VISIT.fullmatch(path.name)]
        for visit in visits:
            (complete if all(_file(visit, name).is_file() for name in needed) else incomplete).append(visit)
    if incomplete:
        missing = next(name for name in needed if not _file(incomplete[0], name).is_file())
        found.remarks.append(f"{count_of(incomplete, 'folder')} of visits left out, the first one lacks "
                             f"{_file(incomplete[0], missing)}")
    return complete


def _split(visit: Path, found: Found) -> list[Item]:
    return found.validation if "validation" in visit.parent.name.lower() else found.training


def _file(visit: Path, name: str) -> Path:
    return visit / f"{visit.name}-{name}.nii.gz"


def _patient(visit: Path) -> str:
    match = _VISIT.fullmatch(visit.name)
    assert match is not None  # only such folders are visits
    return match[1]


def _layout(*names: str) -> str:
    return f"BraTS-GLI-00000-000/BraTS-GLI-00000-000-{{{','.join(names)}}}.nii.gz"


BRATS_GLI = DataSet(
    name="brats-gli", title="BraTS-GLI 2023, contrasts", task="synthesis", modality="MR", licence=LICENCE, terms=TERMS,
    layout=_layout(*CONTRASTS), find=_find_synthesis)
BRATS_GLI_SEGMENTATION = DataSet(
    name="brats-gli-segmentation", title="BraTS-GLI 2023, tumours", task="segmentation", modality="MR", labels=LABELS,
    licence=LICENCE, terms=TERMS, layout=_layout(*CONTRASTS, "seg"), find=_find_segmentation)
BRATS_LOCAL = DataSet(
    name="brats-local", title="BraTS 2023 local synthesis (inpainting)", task="inpainting", modality="MR T1",
    licence=LICENCE, terms=TERMS, layout=_layout("t1n-voided", "t1n", "mask", "mask-healthy"), find=_find_inpainting)
