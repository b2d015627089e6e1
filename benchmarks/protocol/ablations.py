"""Table C, as far as it needs no training: parts of the engine on and off, and the number of prompts.

What would have to be trained is listed as not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.protocol.network_rows import COMPARED_ONLY
from benchmarks.protocol.tables import Book, difference
from mvg_core.evaluation.statistics import mean_over_subjects

BASE = "engine_balanced"
PROMPTS_BASE = "engine_8_prompts"
NOT_RUN = (
    "masked-only, autoregressive-only and hybrid training at equal episodes, 3 seeds",
    "grey, random, binary and palette colours", "smooth-L1 alone and with Dice",
    "all tasks together and one task alone", "with and without synthetic episodes", "25, 50 and 100 % of the data")


def table(book: Book, split: str) -> dict[str, Any]:
    """Every compared row beside the engine that it was changed from."""
    rows = []
    for (question, name), answers in book.items():
        if name not in COMPARED_ONLY:
            continue
        base = book.get((question, PROMPTS_BASE if name.endswith("_prompts") else BASE))
        base = None if name == PROMPTS_BASE else base
        estimate = mean_over_subjects(list(answers.subjects("dice").values()))
        rows.append({"question": question, "row": name, "title": answers.row.title, "is_present": answers.is_present,
                     "dice": estimate.to_json(), "against": None if base is None else base.row.name,
                     "difference": None if base is None else difference(answers, base, "dice").to_json()})
    return {"list": split, "rows": rows, "not_run": list(NOT_RUN)}


def markdown(made: Mapping[str, Any]) -> str:
    """The table, and what is missing from it."""
    from benchmarks.protocol.report import interval

    lines = [f"List `{made['list']}`. Dice, mean over subjects [95 % interval]; differences are paired.", "",
             "| question | changed | Dice | minus | difference |", "|---|---|---|---|---|"]
    lines += [f"| {row['question']} | {row['title']} | {interval(row['dice'], '.3f')} | {row['against'] or ''} | "
              f"{'' if row['difference'] is None else interval(row['difference'], '+.3f')} |" for row in made["rows"]]
    return "\n".join([*lines, "", "Not run:", "", *(f"- {name}" for name in made["not_run"]), ""])
