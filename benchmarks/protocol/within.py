"""How sure a mean over the slices of one subject is, where there are too few subjects for anything else.

Neighbouring slices are alike, so blocks of them are drawn: a circular block bootstrap (Politis and Romano 1992).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.evaluation.cases import UnsuitableItemError, pair_for, read_cases
from mvg_core.evaluation.results import CaseResult
from mvg_core.evaluation.runner import PREDICTIONS, SETTINGS
from mvg_core.evaluation.scoring import image_scaling
from mvg_core.slices import choose_plane
from mvg_core.volume_io import read_volume

BLOCK = 2
RESAMPLES = 2_000


def within_subjects(folder: Path, results: Sequence[CaseResult]) -> dict[str, Any]:
    """PSNR over the slices of each subject with its interval "within subject"; empty without predictions.

    Args:
        folder: of `evaluate_list`, with its predictions kept.
        results: of this folder.
    """
    truths = _targets(json.loads((folder / SETTINGS).read_text()))
    found = {}
    for result in results:
        path = folder / PREDICTIONS / f"{result.key}.nii.gz"
        if not path.is_file() or result.case not in truths:
            continue
        errors = squared_errors(path, truths[result.case])
        low, high = block_bootstrap(errors)
        found[result.key] = {"slices": len(errors), "psnr_db": round(psnr(errors.mean()), 3),
                             "low": round(low, 3), "high": round(high, 3)}
    return found


def block_bootstrap(errors: npt.NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the PSNR of mean squared errors (N,) of neighbouring slices."""
    random, n = np.random.default_rng(seed), len(errors)
    starts = random.integers(n, size=(RESAMPLES, -(-n // BLOCK)))
    rows = ((starts[..., None] + np.arange(BLOCK)) % n).reshape(RESAMPLES, -1)[:, :n]
    low, high = np.percentile([psnr(each) for each in errors[rows].mean(axis=1)], [2.5, 97.5])
    return float(low), float(high)


def squared_errors(prediction: Path, target: Path) -> npt.NDArray[np.float64]:
    """Mean squared error of each slice (N,), on [0, 1]."""
    painted, truth = read_volume(prediction), read_volume(target)
    scaling = image_scaling(truth.array, str(target))
    difference = scaling.apply(painted.array).astype(np.float64) - scaling.apply(truth.array)
    return (np.moveaxis(difference, choose_plane(truth.geometry), 0) ** 2).mean(axis=(1, 2))


def psnr(squared_error: float) -> float:
    """In dB, at most 100."""
    return float(min(100.0, -10 * np.log10(max(squared_error, 1e-10))))


def _targets(settings: dict[str, Any]) -> dict[str, Path]:
    """Case -> file of its clean image or target."""
    listing, kind = Path(settings["listing"]), settings["kind"]
    if kind == "inpainting":
        return {}  # its score is of the hole alone, which is not kept
    found = {}
    for case in read_cases(listing, settings["split"]):
        with suppress(UnsuitableItemError):  # an item without this contrast
            found[case.name] = pair_for(case, kind, settings["source"], settings["target"]).answer
    return found
