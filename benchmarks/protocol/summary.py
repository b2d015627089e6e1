"""The numbers that were to be reached, and whether they were.

Every entry says by which rule its two verdicts follow from its numbers:

    value            value >= must
    value_below      value < must
    difference       value - baseline, over the subjects of both, >= must
    difference_low   lower end of the paired 95 % interval of that difference > must
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.protocol.questions import PICTURES, RESTORED, SIGMAS
from benchmarks.protocol.tables import Answers, Book, best_of, difference
from mvg_core.evaluation.results import mean_of_known
from mvg_core.evaluation.statistics import FEWEST_FOR_INTERVAL, Estimate, mean_over_subjects

Rule = Literal["value", "value_below", "difference", "difference_low"]
ENGINE, CHAINED = "engine_balanced", "network_chained"
DENOISERS = ("nlm", "tv", "wavelet")


@dataclass(frozen=True)
class Goal:
    """One number to reach.

    Attributes:
        id: unique.
        measure: for people.
        questions: over whose subjects the mean is taken; the data sets count alike.
        row: whose number it is.
        metric: `dice`, `psnr_db`, `ssim`.
        baselines: the strongest of these rows is the baseline, for each question; empty for none.
        must: and `must_rule`: see above.
        aim: and `aim_rule`, against `aim_baseline` if given.
    """

    id: str
    measure: str
    questions: tuple[str, ...]
    row: str
    metric: str
    baselines: tuple[str, ...]
    must: float
    must_rule: Rule
    aim: float
    aim_rule: Rule = "value"
    aim_baseline: str | None = None


def goals() -> list[Goal]:
    """The table of numbers to reach."""
    registration = ("registration",)
    acdc, hippocampus = "heart_acdc", "hippocampus_t1"
    found = [
        Goal("acdc_slice", "heart_acdc, one slice -> volume, Dice, full engine", (f"{acdc}_slice",), ENGINE, "dice",
             registration, 0.0, "difference_low", 0.90),
        Goal("acdc_slice_network", "heart_acdc, one slice -> volume, Dice, network with chaining", (f"{acdc}_slice",),
             CHAINED, "dice", registration, 0.70, "value", 0.85),
        Goal("acdc_volume_k1", "heart_acdc, one volume -> new subject, Dice", (f"{acdc}_volume_k1",), ENGINE, "dice",
             registration, 0.50, "value", 0.80),
        Goal("acdc_volume_k8", "heart_acdc, 8 volumes -> new subject, Dice", (f"{acdc}_volume_k8",), ENGINE, "dice",
             registration, 0.60, "value", 0.85),
        Goal("hippocampus_volume_k1", "hippocampus_t1, one volume -> new subject, Dice", (f"{hippocampus}_volume_k1",),
             ENGINE, "dice", registration, 0.0, "difference_low", 0.84),
        Goal("hippocampus_volume_k8", "hippocampus_t1, 8 volumes -> new subject, Dice", (f"{hippocampus}_volume_k8",),
             ENGINE, "dice", registration, 0.78, "value", 0.86),
        Goal("headneck_volume_k1", "headneck_ct, one volume -> new subject, mean Dice of organs",
             ("headneck_ct_volume_k1",), ENGINE, "dice", ("unet",), -0.10, "difference", -0.03, "difference", "unet")]
    for data in PICTURES:
        # Without subject identifiers, nothing is paired.
        rule: Rule = "difference" if data == "nerve_us" else "difference_low"
        found.append(Goal(f"{data}_k8", f"{data}, 8 pictures -> new subject, Dice", (f"{data}_k8",), ENGINE, "dice",
                          ("copy", "registration"), 0.0, rule, 0.0, rule, "universeg"))
    for sigma in SIGMAS:
        found += _restoration(f"denoising_{sigma:g}", f"denoising, sigma {sigma:g}, PSNR (dB)",
                              [f"{data}_noise_{sigma:g}" for data in RESTORED], DENOISERS, 3.0)
    found += _restoration("low_dose_ct", "simulated low-dose CT, PSNR (dB)",
                          ["headneck_ct_low_dose", "sarcoma_ct_pet_mr_low_dose"], DENOISERS, 3.0)
    found += _restoration("inpainting", "inpainting, hole only, PSNR (dB)", [f"{data}_inpaint" for data in RESTORED],
                          ("biharmonic",), 4.0)
    for pair in ("t1_t2", "t1_flair", "t2_t1"):
        arrow = pair.upper().replace("_", " -> ")
        for metric, title in (("psnr_db", "PSNR (dB)"), ("ssim", "SSIM")):
            found.append(Goal(f"brain_{pair}_{metric}", f"brain_ms, {arrow}, {title}", (f"brain_{pair}",), ENGINE,
                              metric, ("polynomial",), 0.0, "difference", -0.5 if metric == "psnr_db" else 0.0,
                              "difference", "unet"))
    return found


def _restoration(name: str, measure: str, questions: Sequence[str], baselines: tuple[str, ...], aim: float
                 ) -> list[Goal]:
    """All data sets together, then each by itself."""
    together = Goal(name, f"{measure}, mean of {len(questions)} data sets", tuple(questions), ENGINE, "psnr_db",
                    baselines, 1.0, "difference", aim, "difference")
    return [together, *(Goal(f"{name}_{question}", f"{measure}, {question}", (question,), ENGINE, "psnr_db", baselines,
                             1.0, "difference", aim, "difference") for question in questions)]


def measure(goal: Goal, book: Book) -> dict[str, Any]:
    """The entry of one goal; numbers that are not known yet are None, and so are the verdicts that need them."""
    ours = [book.get((question, goal.row)) for question in goal.questions]
    theirs = [best_of(book, question, goal.baselines, goal.metric) for question in goal.questions]
    value = _mean(ours, goal.metric)
    entry: dict[str, Any] = {
        "id": goal.id, "measure": goal.measure, "value": value.mean, "low": value.low, "high": value.high,
        "baseline": ", ".join(dict.fromkeys(one.row.name for one in theirs if one is not None)) or None,
        "baseline_value": _mean(theirs, goal.metric, ours).mean, "must": goal.must, "aim": goal.aim,
        **_difference(ours, theirs, goal.metric), "must_rule": goal.must_rule, "aim_rule": goal.aim_rule,
        "subjects": value.n, "is_present": all(one is not None and one.is_present for one in ours)}
    aimed = entry
    if goal.aim_baseline is not None:
        others = [book.get((question, goal.aim_baseline)) for question in goal.questions]
        more = _difference(ours, others, goal.metric)
        entry |= {"aim_baseline": goal.aim_baseline, **{f"aim_{key}": number for key, number in more.items()}}
        aimed = {**entry, **more}
    entry = {key: None if isinstance(number, float) and math.isnan(number) else number
             for key, number in entry.items()}
    return entry | {"met_must": verdict(goal.must_rule, goal.must, entry),
                    "met_aim": verdict(goal.aim_rule, goal.aim, aimed)}


def verdict(rule: Rule, limit: float, numbers: Mapping[str, Any]) -> bool | None:
    """Whether a rule holds; None if its number is not known."""
    number = numbers["value" if rule == "value_below" else rule]
    if number is None or math.isnan(number):
        return None
    if rule == "value_below":
        return bool(number < limit)
    return bool(number > limit) if rule == "difference_low" else bool(number >= limit)


def _mean(answers: Sequence[Answers | None], metric: str, beside: Sequence[Answers | None] | None = None) -> Estimate:
    """Over subjects; of several data sets the mean of their means, with the subjects of each drawn by themselves.

    Only what `beside`, if it is given, answered too.
    """
    groups = []
    for one, other in zip(answers, beside or answers, strict=True):
        if one is None or other is None:
            return Estimate(math.nan, math.nan, math.nan, 0)
        groups.append(list(one.subjects(metric, one.keys & other.keys).values()))
    return _pooled(groups)


def _difference(ours: Sequence[Answers | None], theirs: Sequence[Answers | None], metric: str) -> dict[str, float]:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if len(pairs) < len(ours):
        return {"difference": math.nan, "difference_low": math.nan, "difference_high": math.nan}
    if len(pairs) == 1:
        found = difference(*pairs[0], metric)
    else:
        found = _pooled([_differences(a, b, metric) for a, b in pairs])
    return {"difference": found.mean, "difference_low": found.low, "difference_high": found.high}


def _differences(first: Answers, second: Answers, metric: str) -> list[float]:
    both = first.keys & second.keys
    mine, its = first.subjects(metric, both), second.subjects(metric, both)
    return [mine[subject] - its[subject] for subject in sorted(mine.keys() & its.keys())]


def _pooled(groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = 10_000) -> Estimate:
    if len(groups) == 1:
        return mean_over_subjects(groups[0], seed)
    arrays = [np.array([value for value in group if not math.isnan(value)]) for group in groups]
    if not all(array.size for array in arrays):
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = mean_of_known([float(array.mean()) for array in arrays])
    n = sum(array.size for array in arrays)
    if min(array.size for array in arrays) < FEWEST_FOR_INTERVAL:
        return Estimate(mean, math.nan, math.nan, n)
    random = np.random.default_rng(seed)
    drawn = np.mean([array[random.integers(array.size, size=(resamples, array.size))].mean(axis=1)
                     for array in arrays], axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean, float(low), float(high), n)


def statements(book: Book, prompt_use: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What is not a mean over subjects of a table."""
    found: list[dict[str, Any]] = [
        {"id": "hybrid", "measure": "hybrid against masked-only and autoregressive-only, with seeds", "value": None,
         "must": True, "aim": None, "evidence": "benchmarks/results/table_c.md", "met_must": None, "met_aim": None}]
    evidence = "benchmarks/results/prompt_use.json"
    for name, measure_ in (("label_decides", "another label in the prompt changes the answer accordingly"),
                           ("unrelated_prompt", "an unrelated prompt lowers the confidence")):
        value = None if prompt_use is None else bool(prompt_use[name]["shown"])
        found.append({"id": name, "measure": measure_, "value": value, "must": True, "aim": None, "evidence": evidence,
                      "met_must": value, "met_aim": None})
    for data in ("heart_acdc", "hippocampus_t1"):
        for use in ("slice", "volume_k1", "volume_k8"):
            found.append(_calibration_entry(f"{data}_{use}", book))
    return found


def _calibration_entry(question: str, book: Book) -> dict[str, Any]:
    from benchmarks.protocol.tables import table_rows

    answers = book.get((question, ENGINE))
    rows = [] if answers is None else table_rows({(question, ENGINE): answers})
    error = rows[0].get("calibration_error", {}).get("all", {}) if rows else {}
    value, each = error.get("pooled"), error.get("mean_over_subjects", {})
    entry = {"id": f"calibration_{question}", "measure": f"{question}, expected calibration error of all voxels",
             "value": value, "low": each.get("low"), "high": each.get("high"), "baseline": None, "baseline_value": None,
             "must": 0.05, "aim": None, "must_rule": "value_below"}
    return entry | {"met_must": None if value is None else verdict("value_below", 0.05, entry), "met_aim": None}
