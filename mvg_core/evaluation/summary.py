"""From cases to statements: means over subjects with intervals, spread over draws, confidence, and differences."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvg_core.evaluation.calibration import Reliability
from mvg_core.evaluation.results import (
    CaseResult,
    LabelScore,
    Metric,
    by_subject,
    main_region,
    mean_of_known,
    metrics_of,
    part_of,
    scores_of,
)
from mvg_core.evaluation.runner import Evaluation
from mvg_core.evaluation.statistics import LEVEL, RESAMPLES, mean_over_subjects, paired_difference, rank_correlation
from mvg_core.report import package_versions

N_WORST = 5


def summarise(evaluation: Evaluation, against: Path | None = None) -> dict[str, Any]:
    """All numbers of the report, JSON-serialisable; what is not defined is None.

    Args:
        evaluation: with at least one result.
        against: `metrics.csv` of another evaluation of the same queries, from whose values paired differences are made.

    Raises:
        ValueError: no result, or `against` is of another task or has no query in common.
    """
    results, kind = evaluation.results, evaluation.kind
    if not results:
        raise ValueError("no case was scored, so there is nothing to summarise")
    metrics = metrics_of(kind)
    return {
        "task": kind, "subjects": len({result.subject for result in results}),
        "cases": len({result.case for result in results}), "draws": len({result.draw for result in results}),
        "metrics": {metric.key: _estimate(results, metric.key) for metric in metrics},
        "parts": {part: _part(results, part, metrics) for part in parts_of(results)},
        **({"gain": _gain(results, metrics)} if _has_given(results) else {}),
        **({"draws_spread": _spread(results, metrics[0])} if len({result.draw for result in results}) > 1 else {}),
        **({"confidence": _confidence(results)} if any(result.calibration for result in results) else {}),
        **({"against": _against(results, metrics, against)} if against is not None else {}),
        "worst": [{"subject": subject, metrics[0].key: round(value, 4)}
                  for subject, value in ranked(results)[:N_WORST]],
        "cost": _cost(results),
        "failures": [vars(failure) for failure in evaluation.failures],
        "skipped": dict(evaluation.skipped or {}), "unmatched": {k: list(v) for k, v in (
            evaluation.unmatched or {}).items()},
        "remarks": {result.key: list(result.remarks) for result in results if result.remarks},
        "statistics": {"interval": LEVEL, "method": "percentile bootstrap over subjects", "resamples": RESAMPLES,
                       "seed": 0},
        "settings": dict(evaluation.settings or {}), "versions": package_versions()}


def ranked(results: Sequence[CaseResult]) -> list[tuple[str, float]]:
    """Subjects with their value of the first metric, the worst first; those without a value are left out."""
    metric = metrics_of(results[0].kind)[0]
    values = [(subject, value) for subject, value in by_subject(results, metric.key).items() if not math.isnan(value)]
    return sorted(values, key=lambda pair: pair[1] if metric.higher_is_better else -pair[1])


def parts_of(results: Sequence[CaseResult]) -> list[str]:
    """Labels (numbers as text, ascending) or regions that were scored."""
    found = {part_of(score): None for result in results for score in result.scores}
    return sorted(found, key=int) if results[0].kind == "segmentation" else list(found)


def name_of(results: Sequence[CaseResult], part: str) -> str:
    """What people call a label or region."""
    names = (score.name for result in results for score in result.scores
             if isinstance(score, LabelScore) and part_of(score) == part and score.name)
    return next(names, f"label {part}" if part.isdecimal() else part)


def _estimate(results: Sequence[CaseResult], metric: str, part: str | None = None) -> dict[str, Any]:
    return mean_over_subjects(list(by_subject(results, metric, part).values())).to_json()


def _part(results: Sequence[CaseResult], part: str, metrics: Sequence[Metric]) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": name_of(results, part),
                               "metrics": {metric.key: _estimate(results, metric.key, part) for metric in metrics}}
    scores = [score for result in results for score in scores_of(result, part) if isinstance(score, LabelScore)]
    if not scores:
        return summary
    truth, predicted = (by_subject(results, key, part) for key in ("truth_ml", "volume_ml"))
    return summary | {
        "cases": len(scores),
        "empty": {which: sum(score.empty == which for score in scores) for which in ("both", "truth", "prediction")},
        "truth_ml": _estimate(results, "truth_ml", part), "volume_ml": _estimate(results, "volume_ml", part),
        "volume_difference_ml": paired_difference(predicted, truth).to_json()}


def _has_given(results: Sequence[CaseResult]) -> bool:
    return results[0].kind in ("denoising", "inpainting") and any(
        not math.isnan(getattr(score, "given_psnr_db")) for result in results for score in scores_of(result))  # noqa: B009


def _gain(results: Sequence[CaseResult], metrics: Sequence[Metric]) -> dict[str, Any]:
    """Of each metric: what was given to the network, and how much the answer differs from it (paired)."""
    return {metric.key: {"given": _estimate(results, f"given_{metric.key}"),
                         "difference": paired_difference(by_subject(results, metric.key),
                                                         by_subject(results, f"given_{metric.key}")).to_json()}
            for metric in metrics}


def _spread(results: Sequence[CaseResult], metric: Metric) -> dict[str, Any]:
    """How much the choice of examples matters."""
    draws = sorted({result.draw for result in results})
    of_draw = [by_subject([result for result in results if result.draw == draw], metric.key) for draw in draws]
    by_draw = {subject: [values[subject] for values in of_draw if subject in values and not math.isnan(values[subject])]
               for subject in {subject for values in of_draw for subject in values}}
    known = {subject: values for subject, values in by_draw.items() if values}
    worst = min if metric.higher_is_better else max
    return {"metric": metric.key,
            "mean_of_each_draw": {str(draw): mean_over_subjects(list(values.values())).to_json()
                                  for draw, values in zip(draws, of_draw, strict=True)},
            "range_within_subject": mean_over_subjects([max(v) - min(v) for _, v in sorted(known.items())]).to_json(),
            "worst_draw": mean_over_subjects([worst(v) for _, v in sorted(known.items())]).to_json()}


def _confidence(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Whether confidence tells good subjects from bad ones, and right voxels from wrong ones."""
    dice, sure = by_subject(results, "dice"), by_subject(results, "confidence")
    regions = {name: None for result in results for name in result.calibration}
    summary: dict[str, Any] = {"correlation_with_dice": rank_correlation(
        [dice[subject] for subject in dice], [sure[subject] for subject in dice]).to_json()}
    for region in regions:
        of_subject: dict[str, list[Reliability]] = {}
        for result in results:
            if region in result.calibration:
                of_subject.setdefault(result.subject, []).append(result.calibration[region])
        totals = [Reliability.total(parts) for parts in of_subject.values()]
        summary[region] = {
            "expected_calibration_error": mean_over_subjects([total.expected_error for total in totals]).to_json(),
            "curve": [{"confidence": round(x, 4), "share_right": round(y, 4), "voxels": n}
                      for x, y, n in Reliability.total(totals).curve()]}
    return summary


def _cost(results: Sequence[CaseResult]) -> dict[str, Any]:
    timed = [result for result in results if not math.isnan(result.seconds) and result.n_slices]
    if not timed:
        return {}
    return {"seconds_per_case": round(mean_of_known([result.seconds for result in timed]), 3),
            "seconds_per_slice": round(sum(result.seconds for result in timed) / sum(
                result.n_slices for result in timed), 4)}


def _against(results: Sequence[CaseResult], metrics: Sequence[Metric], path: Path) -> dict[str, Any]:
    """Paired differences, over the queries and labels that both evaluations have."""
    kind, key = results[0].kind, "label" if results[0].kind == "segmentation" else "region"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give the metrics.csv of another evaluation"
                         ) from error
    if not rows or not {"case", "subject", key, metrics[0].key} <= rows[0].keys():
        raise ValueError(f"{path} is no metrics.csv of an evaluation of {kind}: give the one of the same task")
    wanted = None if kind == "segmentation" else main_region(kind)
    differences: dict[str, Any] = {"with": str(path)}
    for metric in metrics:
        theirs = _mean_of_rows([(row["subject"], row["case"], row[key], float(row.get(metric.key) or "nan"))
                                for row in rows if wanted in (None, row[key])])
        ours = _mean_of_rows([(result.subject, result.case, part_of(score), float(getattr(score, metric.key)))
                              for result in results for score in scores_of(result)])
        both = ours.keys() & theirs.keys()
        if not both and metric is metrics[0]:
            raise ValueError(f"{path} has no query and label in common with this evaluation")
        differences[metric.key] = paired_difference(_of_subjects(ours, both), _of_subjects(theirs, both)).to_json()
    return differences


_RowKey = tuple[str, str, str]


def _mean_of_rows(rows: Sequence[tuple[str, str, str, float]]) -> dict[_RowKey, float]:
    """(subject, case, part) -> mean over draws of what counts."""
    values: dict[_RowKey, list[float]] = {}
    for subject, case, part, value in rows:
        if not math.isnan(value):
            values.setdefault((subject, case, part), []).append(value)
    return {key: mean_of_known(numbers) for key, numbers in values.items()}


def _of_subjects(values: Mapping[_RowKey, float], keys: set[_RowKey]) -> dict[str, float]:
    of_subject: dict[str, list[float]] = {}
    for key in keys:
        of_subject.setdefault(key[0], []).append(values[key])
    return {subject: mean_of_known(numbers) for subject, numbers in of_subject.items()}
