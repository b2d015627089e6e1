"""From kept answers to the rows of the tables: means over subjects, paired differences, spread over examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.protocol.keeping import kept_folder, kept_results
from benchmarks.protocol.questions import FEW_SUBJECTS, Question
from benchmarks.protocol.rows import Row
from benchmarks.protocol.within import within_subjects
from mvg_core.evaluation.calibration import Reliability
from mvg_core.evaluation.results import CaseResult, by_subject, mean_of_known, metrics_of
from mvg_core.evaluation.statistics import Estimate, mean_over_subjects, paired_difference


@dataclass(frozen=True, eq=False)
class Answers:
    """What one row answered to one question.

    Attributes:
        question: what was asked.
        row: who answered.
        results: one for each case and draw.
        folder: where they are kept.
        is_present: they are of the present code and weights.
    """

    question: Question
    row: Row
    results: tuple[CaseResult, ...]
    folder: Any
    is_present: bool

    def subjects(self, metric: str, only: set[str] | None = None) -> dict[str, float]:
        """One value for each subject; with `only`, of these cases and draws."""
        chosen = [result for result in self.results if only is None or result.key in only]
        return by_subject(chosen, metric, self.question.region)

    @property
    def keys(self) -> set[str]:
        """Cases and draws."""
        return {result.key for result in self.results}


Book = Mapping[tuple[str, str], Answers]
"""(question, row) -> answers."""


def read_answers(questions: Sequence[Question], rows: Sequence[Row], split: str) -> Book:
    """Everything that was kept."""
    book = {}
    for question in questions:
        for row in rows:
            if not row.suits(question):
                continue
            folder, is_present = kept_folder(split, question.name, row.name, row.key(question))
            if folder is not None:
                book[question.name, row.name] = Answers(question, row, tuple(kept_results(folder)), folder, is_present)
    return book


def difference(first: Answers, second: Answers, metric: str) -> Estimate:
    """First - second over the cases and draws that both have, paired by subject."""
    both = first.keys & second.keys
    return paired_difference(first.subjects(metric, both), second.subjects(metric, both))


def table_rows(book: Book) -> list[dict[str, Any]]:
    """One dictionary for each question and row."""
    return [_table_row(answers) for answers in book.values()]


def differences(book: Book) -> list[dict[str, Any]]:
    """Each of our rows against each other row, on each question."""
    found = []
    for (name, _), ours in book.items():
        if not ours.row.is_ours:
            continue
        for (other_name, other_row), other in book.items():
            if other_name != name or other.row.is_ours:
                continue
            for metric in metrics_of(ours.question.kind)[:2]:
                found.append({"question": name, "row": ours.row.name, "against": other_row, "metric": metric.key,
                              "paired": ours.question.data != "nerve_us",
                              **difference(ours, other, metric.key).to_json()})
    return found


def _table_row(answers: Answers) -> dict[str, Any]:
    question, results = answers.question, answers.results
    metrics = metrics_of(question.kind)
    timed = [result for result in results if result.n_slices and not math.isnan(result.seconds)]
    n_slices = sum(result.n_slices for result in timed)
    made: dict[str, Any] = {
        "table": question.table, "question": question.name, "data": question.data, "use": question.use,
        "row": answers.row.name, "title": answers.row.title, "is_present": answers.is_present,
        "subjects": len({result.subject for result in results}), "cases": len({result.case for result in results}),
        "draws": len({result.draw for result in results}),
        "metrics": {metric.key: mean_over_subjects(list(answers.subjects(metric.key).values())).to_json()
                    for metric in metrics},
        "seconds_per_slice": round(sum(result.seconds for result in timed) / n_slices, 4) if n_slices else None}
    if made["draws"] > 1:
        made["examples"] = _spread(answers, metrics[0].key)
    if question.data in FEW_SUBJECTS:
        made["each_subject"] = {subject: round(value, 4)
                                for subject, value in answers.subjects(metrics[0].key).items()}
        made["within_subject"] = within_subjects(answers.folder, answers.results)
    if any(result.calibration for result in results):
        made["calibration_error"] = _calibration(results)
    return made


def _spread(answers: Answers, metric: str) -> dict[str, Any]:
    """How much the choice of the example matters: range within a subject, and its worst example."""
    of_subject: dict[str, list[list[float]]] = {}
    for draw in sorted({result.draw for result in answers.results}):
        keys = {result.key for result in answers.results if result.draw == draw}
        for subject, value in answers.subjects(metric, keys).items():
            of_subject.setdefault(subject, []).append([value])
    values = [[value for (value,) in found if not math.isnan(value)] for found in of_subject.values()]
    values = [found for found in values if len(found) > 1]
    return {"range": mean_over_subjects([max(found) - min(found) for found in values]).to_json(),
            "worst": mean_over_subjects([min(found) for found in values]).to_json()}


def _calibration(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Expected calibration error of all voxels, and of those with a label in truth or prediction."""
    found = {}
    for region in ("all", "labelled"):
        of_subject: dict[str, list[Reliability]] = {}
        for result in results:
            if region in result.calibration:
                of_subject.setdefault(result.subject, []).append(result.calibration[region])
        pooled = Reliability.total([part for parts in of_subject.values() for part in parts])
        each = mean_over_subjects([Reliability.total(parts).expected_error for parts in of_subject.values()])
        found[region] = {"pooled": round(pooled.expected_error, 4), "mean_over_subjects": each.to_json()}
    return found


def best_of(book: Book, question: str, rows: Sequence[str], metric: str) -> Answers | None:
    """The strongest of several rows on these very subjects, which favours the baselines."""
    known = [book[question, row] for row in rows if (question, row) in book]
    return max(known, key=lambda one: mean_of_known(list(one.subjects(metric).values())), default=None)
