"""Write the tables: JSON and Markdown in benchmarks/results, plots and pictures in docs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.protocol import ablations, page
from benchmarks.protocol.network_rows import COMPARED_ONLY, described_weights
from benchmarks.protocol.places import KEPT, PAGE, RESULTS
from benchmarks.protocol.questions import all_questions
from benchmarks.protocol.rows import all_rows
from benchmarks.protocol.summary import goals, measure, statements
from benchmarks.protocol.tables import Book, differences, read_answers, table_rows
from mvg_core.evaluation.results import Metric, metrics_of
from mvg_core.evaluation.statistics import LEVEL, RESAMPLES
from mvg_core.report import write_text

PROMPT_USE = "prompt_use.json"


def write_report(split: str, data: Path) -> None:
    """Read what was kept, and write everything that is made of it.

    The tables of the test lists go into the repository, those of other lists beside the answers.
    """
    book = read_answers(list(all_questions().values()), list(all_rows().values()), split)
    if not book:
        raise ValueError(f"no answers of the {split} lists are kept: run `python -m benchmarks.protocol run --list "
                         f"{split}` first")
    out = RESULTS if split == "test" else KEPT / "reports" / split
    out.mkdir(parents=True, exist_ok=True)
    main = {key: answers for key, answers in book.items() if key[1] not in COMPARED_ONLY}
    for table in "AB":
        rows = [row for row in table_rows(main) if row["table"] == table]
        report = {"list": split, "weights": dict(described_weights()), "interval": LEVEL, "resamples": RESAMPLES,
                  "rows": rows, "differences": [one for one in differences(main) if any(
                      one["question"] == row["question"] for row in rows)]}
        _write(out / f"table_{table.lower()}", report, markdown(report))
    _write(out / "table_c", ablations.table(book, split), ablations.markdown(ablations.table(book, split)))
    summary = summary_of(main, split)
    _write(out / "summary", summary, summary_markdown(summary))
    if split == "test":
        write_text(PAGE, page.page(main, summary))
    print(summary_markdown(summary))


def summary_of(book: Book, split: str) -> dict[str, Any]:
    """The content of summary.json."""
    path = RESULTS / PROMPT_USE
    prompt_use = json.loads(path.read_text()) if path.is_file() else None
    return {"list": split, "weights": dict(described_weights()),
            "measures": [_rounded(measure(goal, book)) for goal in goals()] + statements(book, prompt_use)}


def markdown(report: Mapping[str, Any]) -> str:
    """A table for each question."""
    lines = [f"List `{report['list']}`; weights {report['weights']['sha256'][:8]}. Mean over subjects [95 % bootstrap "
             "interval over subjects]. Rows marked * were made by an earlier state of code or weights.", ""]
    for question in dict.fromkeys(row["question"] for row in report["rows"]):
        mine = [row for row in report["rows"] if row["question"] == question]
        lines += ["", f"**{mine[0]['data']}: {mine[0]['use']}** ({question})", ""]
        metrics = [metric for metric in _metrics(mine[0]) if any(
            row["metrics"][metric.key]["mean"] is not None for row in mine)]
        lines += ["| row | subjects | " + " | ".join(metric.title for metric in metrics) + " | s a slice |",
                  "|---" * (len(metrics) + 3) + "|"]
        lines += [_line(row, metrics) for row in mine]
        lines += _notes(mine, report["differences"])
    return "\n".join([*lines, ""])


def _metrics(row: Mapping[str, Any]) -> Sequence[Metric]:
    return metrics_of("segmentation" if row["table"] == "A" else "denoising")


def _line(row: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    cells = [interval(row["metrics"][metric.key], f".{metric.digits}f") for metric in metrics]
    star = "" if row["is_present"] else " *"
    subjects = f"{row['subjects']}" + (f" ({row['draws']} examples each)" if row["draws"] > 1 else "")
    seconds = "" if row["seconds_per_slice"] is None else f"{row['seconds_per_slice']:.3f}"
    return f"| {row['title']}{star} | {subjects} | " + " | ".join(cells) + f" | {seconds} |"


def _notes(rows: Sequence[Mapping[str, Any]], differences_: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for one in differences_:
        if one["question"] == rows[0]["question"] and one["metric"] in ("dice", "psnr_db") and one["paired"]:
            digits = ".3f" if one["metric"] == "dice" else ".2f"
            if one["row"] == "engine_balanced":
                notes.append(f"- {one['row']} - {one['against']}: {interval(one, '+' + digits)}")
    for row in rows:
        if "examples" in row:
            notes.append(f"- {row['row']}: range over examples within a subject "
                         f"{interval(row['examples']['range'], '.3f')}, worst example "
                         f"{interval(row['examples']['worst'], '.3f')}")
        if "each_subject" in row:
            values = ", ".join(f"{subject} {value:.2f}" for subject, value in row["each_subject"].items())
            notes.append(f"- {row['row']}, every subject: {values}")
    return ["", *notes] if notes else []


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """One line for each number that was to be reached."""
    lines = [f"List `{summary['list']}`; weights {summary['weights']['sha256'][:8]}. Rules: `value` compares the "
             "value, `difference` value - baseline, `difference_low` the lower end of its paired 95 % interval.", "",
             "| measure | value [95 %] | baseline | difference [95 %] | must | met | aim | met |",
             "|---" * 8 + "|"]
    for one in summary["measures"]:
        if "difference" in one:
            digits = ".2f" if "dB" in one["measure"] else ".3f"
            own = interval({"mean": one["value"], "low": one["low"], "high": one["high"]}, digits)
            gap = interval({"mean": one["difference"], "low": one["difference_low"], "high": one["difference_high"]},
                           "+" + digits)
            base = "" if one["baseline_value"] is None else f"{one['baseline']} {one['baseline_value']:{digits}}"
            must, aim = (f"{one[f'{name}_rule']} {one[name]:g} | {_verdict(one[f'met_{name}'])}"
                         for name in ("must", "aim"))
            lines.append(f"| {one['measure']} | {own} | {base} | {gap} | {must} | {aim} |")
        else:
            lines.append(f"| {one['measure']} | {one['value']} | | | {one['must']} | {_verdict(one['met_must'])} | | |")
    return "\n".join([*lines, ""])


def interval(estimate: Mapping[str, Any], style: str) -> str:
    """`0.717 [0.650, 0.780]`."""
    mean, low, high = (estimate[key] for key in ("mean", "low", "high"))
    if mean is None:
        return "-"
    return format(mean, style) + ("" if low is None or high is None else f" [{low:{style}}, {high:{style}}]")


def _verdict(met: bool | None) -> str:
    return "not measured" if met is None else "yes" if met else "**no**"


def _rounded(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in entry.items()}


def _write(path: Path, content: Mapping[str, Any], text: str) -> None:
    write_text(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    write_text(path.with_suffix(".md"), text)
