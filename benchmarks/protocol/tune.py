"""Choose the settings of the classical methods on validation subjects, and write them to tuned.json.

Denoisers: one strength for each data set and noise level. Polynomials: one degree for each pair of contrasts.
Registration: one smoothness for each data set. Each is the best of a short list; the lists and all values are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import rows as rows_module
from benchmarks.protocol.execute import PREPARED, ask, n_cases
from benchmarks.protocol.inputs import prepare
from benchmarks.protocol.places import TUNED
from benchmarks.protocol.questions import Question, all_questions
from benchmarks.protocol.restore_classical import DENOISERS, IntensityMapSolver
from benchmarks.protocol.rows import CLASSICAL_IMAGES, CLASSICAL_SEGMENTATION, UNTUNED_REGISTRATION, Row
from benchmarks.protocol.segment_classical import RegistrationSolver
from mvg_core.evaluation.cases import pair_for, read_cases
from mvg_core.evaluation.queries import with_noise
from mvg_core.evaluation.results import by_subject, mean_of_known, metrics_of
from mvg_core.evaluation.scoring import image_scaling
from mvg_core.report import write_text
from mvg_core.slices import choose_plane
from mvg_core.volume_io import read_volume

STRENGTHS: Mapping[str, Sequence[float]] = {"nlm": (0.4, 0.6, 0.8, 1.0, 1.3), "tv": (0.3, 0.5, 0.8, 1.2, 1.7),
                                            "wavelet": (0.95, 1.1, 1.25, 1.5)}
STRONGER = (1.9, 2.5, 3.5)
DEGREES = (1, 2, 3, 5, 7)
LIMIT = 3
"""Validation subjects."""
EVERY = 3
"""Denoisers are tried on every third slice."""


def tune(data: Path, limit: int | None, only: Sequence[str] | None = None) -> None:
    """Try every setting on validation.

    Args:
        data: folder of the data sets.
        limit: validation subjects of each data set; None takes `LIMIT`.
        only: questions whose name holds one of these texts; others keep what they have.
    """
    chosen: dict[str, Any] = json.loads(TUNED.read_text()) if TUNED.is_file() else {}
    for question in all_questions().values():
        if only and not any(text in question.name for text in only):
            continue
        for name, key, values in _trials(question):
            scores = {json.dumps(value): _score(question, name, value, data, limit or LIMIT) for value in values}
            best = max(scores, key=lambda text: scores[text])
            place = chosen.setdefault(name, {})
            before = place.get(key, {})
            place[key] = {**before, **json.loads(best)} if isinstance(before, dict) and isinstance(
                json.loads(best), dict) else json.loads(best)
            chosen.setdefault("tried", {})[f"{name}, {question.name}"] = {
                text: round(score, 4) for text, score in scores.items()}
            print(f"{question.name}: {name}: {best} of {scores}", flush=True)
            write_text(TUNED, json.dumps(chosen, indent=1, sort_keys=True) + "\n")
    rows_module.tuned.cache_clear()


def _trials(question: Question) -> list[tuple[str, str, Sequence[Any]]]:
    """Row, key in tuned.json, and the values to try."""
    if question.kind == "denoising":
        # The noise of a projection is correlated: it is more than its finest wavelets say.
        more = STRONGER if question.inputs == "low_dose" else ()
        return [(name, question.name, (*STRENGTHS[name], *more)) for name in DENOISERS]
    if question.kind == "synthesis":
        return [("polynomial", question.name, DEGREES)]
    if question.asked.get("one_slice"):
        return [("registration", question.data, [{"slice_smooth": smooth} for smooth in (1.0, 1.5, 2.5)])]
    if question.kind == "segmentation" and question.asked.get("n_references") == 1:
        return [("registration", question.data, [{"smooth": smooth} for smooth in (None, 1.0, 2.0)])]
    return []


def _score(question: Question, name: str, value: Any, data: Path, limit: int) -> float:
    """What a value gives on validation: the higher the better."""
    if name in DENOISERS:
        return _denoised_psnr(question, name, value, data, limit)
    solver = IntensityMapSolver("polynomial", value) if name == "polynomial" else RegistrationSolver(
        {**UNTUNED_REGISTRATION, **value})

    def settings(_: Question) -> Mapping[str, Any]:
        return {"tried": value}

    code = CLASSICAL_SEGMENTATION if name == "registration" else CLASSICAL_IMAGES
    row = Row(f"try_{name}", name, lambda _: True, lambda _: solver, code, settings)
    found = ask(question, row, data, "validation", limit=limit, draws=1)
    if found.failures:
        raise RuntimeError(f"{question.name}: {name} {value} failed: {found.failures[0].reason}")
    metric = metrics_of(question.kind)[0]
    return mean_of_known(list(by_subject(found.results, metric.key, question.region).values()))


def _denoised_psnr(question: Question, name: str, strength: float, data: Path, limit: int) -> float:
    """Mean over subjects, on a few slices of each: there are many values to try."""
    values: dict[str, list[float]] = {}
    for subject, noisy, clean in _noisy_slices(question.name, data, limit):
        error = np.mean((np.clip(DENOISERS[name](noisy, strength), 0, 1) - clean) ** 2)
        values.setdefault(subject, []).append(-10 * math.log10(max(float(error), 1e-10)))
    return mean_of_known([mean_of_known(found) for found in values.values()])


@lru_cache(maxsize=1)
def _noisy_slices(name: str, data: Path, limit: int) -> list[tuple[str, Any, Any]]:
    """Subject, noisy slice and clean slice on [0, 1], as the benchmark makes them."""
    question, found = all_questions()[name], []
    if question.inputs != "whole":
        prepare(question.inputs, data / question.data, PREPARED)
    settings = question.settings(data, PREPARED, "validation")
    cases = read_cases(settings.listing, "validation")
    for case in cases[: n_cases(settings.listing, "validation", limit)]:
        pair = pair_for(case, "denoising", settings.source)
        clean = read_volume(pair.answer)
        noisy = with_noise(clean, settings.sigma, f"{case.name}/0") if pair.is_made else read_volume(pair.image)
        scaling, axis = image_scaling(clean.array, case.name), choose_plane(clean.geometry)
        stacks = [np.moveaxis(scaling.apply(volume.array), axis, 0) for volume in (noisy, clean)]
        found += [(case.subject, *pair_) for pair_ in list(zip(*stacks, strict=True))[1 :: EVERY]]
        found += [] if len(stacks[0]) > 1 else [(case.subject, stacks[0][0], stacks[1][0])]
    return found
