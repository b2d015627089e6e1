"""Ask the questions, row by row; what was answered before is not asked again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.protocol.inputs import prepare
from benchmarks.protocol.keeping import folder_of
from benchmarks.protocol.places import KEPT
from benchmarks.protocol.questions import FEW_SUBJECTS, Question
from benchmarks.protocol.rows import Row
from mvg_core.evaluation.cases import read_cases
from mvg_core.evaluation.results import CaseResult, Failure, by_subject, mean_of_known, metrics_of
from mvg_core.evaluation.runner import evaluate_list

PREPARED = KEPT / "inputs"


@dataclass(frozen=True)
class Asked:
    """What one row answered to one question.

    Attributes:
        results: one for each case and draw.
        failures: cases that could not be solved.
        seconds: that this took now; little, if it was kept.
    """

    results: tuple[CaseResult, ...]
    failures: tuple[Failure, ...]
    seconds: float

    def line(self, question: Question, row: Row) -> str:
        """For people who watch."""
        metric = metrics_of(question.kind)[0]
        value = mean_of_known(list(by_subject(self.results, metric.key, question.region).values()))
        failed = f", {len(self.failures)} FAILED ({self.failures[0].reason})" if self.failures else ""
        return (f"{question.name}: {row.name}: {metric.title} {value:.3f} ({len(self.results)} answers, "
                f"{self.seconds:.0f} s{failed})")


def ask(question: Question, row: Row, data: Path, split: str, *, limit: int | None = None, draws: int | None = None
        ) -> Asked:
    """Let a row answer a question, or read what it answered.

    Args:
        question: what is asked.
        row: who answers.
        data: folder of the data sets.
        split: `test` or `validation`.
        limit: only so many subjects of the list.
        draws: of the examples; None takes those of the question.
    """
    if question.inputs != "whole":
        prepare(question.inputs, data / question.data, PREPARED)
    settings = question.settings(data, PREPARED, split)
    key = row.key(question)
    started = time.perf_counter()
    solver = None

    def solve(*values, **named):  # the row is made when it is first needed: kept answers need no network
        nonlocal solver
        solver = solver or row.make(question)
        return solver(*values, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = evaluate_list(settings, solve, {"row": row.name, "key": key},
                              folder_of(split, question.name, row.name, key),
                              draws=min(draws or question.draws, question.draws),
                              limit=n_cases(settings.listing, split, limit),
                              keep_predictions=question.table == "B" and question.data in FEW_SUBJECTS)
    return Asked(found.results, found.failures, time.perf_counter() - started)


def n_cases(listing: Path, split: str, n_subjects: int | None) -> int | None:
    """How many cases of a list belong to its first subjects; None stands for all."""
    if n_subjects is None:
        return None
    subjects: list[str] = []
    for number, case in enumerate(read_cases(listing, split)):
        if case.subject not in subjects:
            if len(subjects) == n_subjects:
                return number
            subjects.append(case.subject)
    return None


def ask_all(questions: Iterable[Question], rows: Iterable[Row], data: Path, split: str, *, limit: int | None = None,
            draws: int | None = None) -> Iterator[tuple[Question, Row, Asked]]:
    """Every row that suits, question by question."""
    rows = list(rows)
    for question in questions:
        for row in rows:
            if row.suits(question):
                yield question, row, ask(question, row, data, split, limit=limit, draws=draws)
