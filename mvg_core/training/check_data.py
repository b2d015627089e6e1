"""What is wrong with datalists, found before training starts; and what they hold, for people and as JSON.

Reads every file once. One that cannot be read is reported and does not stop the check of the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from os import PathLike
from pathlib import Path
from typing import Any

from mvg_core.training.check_across import Entry, class_findings, class_sizes, findings_across, split_summaries
from mvg_core.training.check_items import ItemFacts, inspect_item
from mvg_core.training.check_report import CheckReport, Finding
from mvg_core.training.datalist import SPLITS, Datalist, Item, clash_message, files_of, open_datalists

Progress = Callable[[str, int, int], None]
"""Called with a title, the items done, and their number."""

_LIST_KEYS = ("name", "modality", "task", "labels", "merge", "licence", "weight", "role", *SPLITS)
_ITEM_KEYS = ("image", "label", "source", "target", "subject", "modality", "task", "labels", "merge", "weight")


def check_data(mixtures: Iterable[str | PathLike[str]], progress: Progress | None = None, *, workers: int = 0
               ) -> CheckReport:
    """Check datalists together.

    Args:
        mixtures: datalists, or JSON files that name several.
        progress: told about every item.
        workers: processes that read files; 0 reads in this one. They are started anew, so a script that asks for them
            needs `if __name__ == "__main__":` around what it does.

    Raises:
        RuntimeError: a reading process died, for lack of memory as a rule.
    """
    report, findings = CheckReport(), []
    lists: list[Datalist] = []
    for mixture in mixtures:
        lists += open_datalists(mixture, lambda error, mixture=mixture: findings.append(
            Finding("error", "datalist", str(mixture), str(error))))
    report.lists = [str(one.path) for one in lists]
    for one in lists:
        findings += _of_list(one)
    waiting = [entry for one in lists for entry in _usable(one, findings)]
    entries = list(_inspected(waiting, progress, workers))
    for entry in entries:
        findings += [Finding("error", "missing file", entry.where, f"{file} is missing: correct the path, or remove "
                             "the item") for file in entry.missing]
        findings += [Finding(problem.severity, problem.kind, entry.where, problem.message)
                     for problem in entry.facts.problems]
    findings += findings_across(entries)
    report.splits = list(split_summaries(entries))
    report.classes = list(class_sizes(entries))
    findings += class_findings(report.classes)
    report.findings = sorted(findings, key=lambda finding: finding.severity)  # "error" before "warning"
    return report


# ------------------------------------------------------------------------------------------------------------- lists


def _of_list(one: Datalist) -> Iterator[Finding]:
    """What a list says of all its items, and which splits it has."""
    where = str(one.path)
    filled = [split for split in SPLITS if one.listing.get(split)]
    if not filled:
        yield Finding("error", "empty", where, f"has no items: add a list 'training' of items ({', '.join(SPLITS)} are "
                      "looked at)")
    elif "training" in filled:
        try:
            one.check_role()
        except ValueError as error:
            yield Finding("error", "role", where, str(error))
        if "validation" not in filled:
            yield Finding("warning", "no validation", where, "has no items in 'validation': list some subjects there, "
                          "or no best checkpoint can be chosen")
    elif "references" not in filled:
        yield Finding("warning", "no training", where, "has no items in 'training'")
    yield from _misspelt(one.listing, _LIST_KEYS, where)


def _misspelt(given: Mapping[str, Any], known: Sequence[str], where: str) -> Iterator[Finding]:
    """Keys that look like known ones; others are people's own."""
    for key in given:
        near = difflib.get_close_matches(str(key), [name for name in known if name not in given], 1, 0.8)
        if key not in known and near:
            yield Finding("warning", "unknown key", where, f"key {key!r} is not used: do you mean {near[0]!r}?")


def _usable(one: Datalist, findings: list[Finding]) -> Iterator[Entry]:
    """The items that say what they are an example of; the others become findings."""
    for split in SPLITS:
        items: dict[int, Item] = {}
        for number, given in enumerate(one.listing.get(split) or []):
            where = one.where(split, number)
            if isinstance(given, Mapping):
                findings += _misspelt(given, _ITEM_KEYS, where)
            try:
                items[number] = one.item(split, number)
            except ValueError as error:
                findings.append(Finding("error", "item", where, str(error).removeprefix(f"{where}: ")))
        for number, other in one.clashing_subjects(split, items):
            findings.append(Finding("error", "subject", one.where(split, number), clash_message(split, other)))
        for number, item in items.items():
            missing = tuple(file for file in files_of(item) if not Path(file).exists())
            yield Entry(one.where(split, number), split, item, missing, ItemFacts())


def _inspected(waiting: Sequence[Entry], progress: Progress | None, workers: int) -> Iterator[Entry]:
    """The entries with what their files hold."""
    items = [_without_missing(entry) for entry in waiting]
    with ExitStack() as stack:
        facts: Iterable[ItemFacts] = map(inspect_item, items)
        if workers > 0:
            pool = ProcessPoolExecutor(workers, get_context("spawn"))  # not forked: this process may have threads
            stack.callback(pool.shutdown, cancel_futures=True)
            facts = pool.map(inspect_item, items)
        try:
            for done, (entry, found) in enumerate(zip(waiting, facts, strict=True), start=1):
                yield replace(entry, facts=found)
                if progress is not None:
                    progress("check", done, len(waiting))
        except BrokenProcessPool as error:
            raise RuntimeError("a process that reads files died, for lack of memory as a rule: try fewer workers"
                               ) from error


def _without_missing(entry: Entry) -> Item:
    """The item as far as its files are there."""
    item = dict(entry.item)
    for key in ("image", "label", "source", "target"):
        value = item.get(key)
        if isinstance(value, Mapping):
            item[key] = {name: path for name, path in value.items() if path not in entry.missing}
        elif value in entry.missing:
            item[key] = None
    return item
