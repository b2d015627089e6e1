"""A report of an evaluation: CSV for tables, JSON for programs, one HTML page and one Markdown page for people."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvg_core.evaluation.plots import draw_boxes, draw_confidence, draw_examples, need_matplotlib
from mvg_core.evaluation.results import Metric, main_region, metrics_of, to_csv
from mvg_core.evaluation.runner import CASES, Evaluation, make_folder
from mvg_core.evaluation.summary import summarise
from mvg_core.report import temporary_beside, write_report, write_text
from mvg_core.volume_io import VolumeWriteError

FILES = {"table": "metrics.csv", "summary": "summary.json", "page": "report.html", "text": "report.md"}
PLOTS = "plots"
PRIVACY = ("This page and the folders beside it may show images of patients, and file names may name them: treat them "
           "like the data they were made from.")
_CAPTIONS = {
    "boxes": "Every point is a subject (mean over its images and draws). Box: quartiles; line in it: median; diamond: "
             "mean.",
    "examples": "One slice of the best, the median and the worst subject.",
    "confidence": "Confidence is the lead of the best label over the second, not a probability. On the dashed line it "
                  "could be read as one."}
_MOST_LISTED = 20

Table = tuple[list[str], list[list[str]]]


def write_evaluation(evaluation: Evaluation, out: Path, *, against: Path | None = None) -> dict[str, Any]:
    """Write `FILES` and the plots into a folder, replacing those of an earlier report.

    Args:
        evaluation: with at least one result.
        out: folder; holds the pictures of the cases in its folder `cases`.
        against: `metrics.csv` of another evaluation, see `summarise`.

    Returns:
        The content of summary.json.

    Raises:
        ValueError: no result, or `against` does not fit.
        RuntimeError: matplotlib is not installed.
        VolumeWriteError: the folder cannot be written to.
    """
    need_matplotlib()
    summary = summarise(evaluation, against)
    plots = {"boxes": draw_boxes(evaluation.results), "examples": draw_examples(evaluation.results, out / CASES),
             "confidence": draw_confidence(evaluation.results)}
    drawn = {name: content for name, content in plots.items() if content is not None}
    make_folder(out / PLOTS)
    for name, content in drawn.items():
        _write_bytes(out / PLOTS / f"{name}.png", content)
    write_text(out / FILES["table"], to_csv(evaluation.results))
    write_report(out / FILES["summary"], summary)
    write_text(out / FILES["text"], as_markdown(summary, list(drawn)))
    write_text(out / FILES["page"], as_html(summary, drawn))
    return summary


def as_markdown(summary: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The report as Markdown; its plots are the files in the folder `plots`."""
    lines = [f"# {_title(summary)}", "", _headline(summary), "", f"*{PRIVACY}*"]
    for heading, (columns, rows) in _tables(summary).items():
        lines += ["", f"## {heading}", "", _markdown_row(columns), _markdown_row(["---"] * len(columns)),
                  *(_markdown_row(row) for row in rows)]
        lines += [line for plot in plots if heading == _PLOT_AFTER[plot]
                  for line in ("", f"![{plot}]({PLOTS}/{plot}.png)", "", _CAPTIONS[plot])]
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(summary)), ""])


def as_html(summary: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The report as one HTML page that needs no other file and no network."""
    body = [f"<h1>{html.escape(_title(summary))}</h1>", f"<p class=lead>{html.escape(_headline(summary))}</p>",
            f"<p class=privacy>{html.escape(PRIVACY)}</p>"]
    for heading, (columns, rows) in _tables(summary).items():
        body.append(f"<h2>{html.escape(heading)}</h2>")
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        body.append(f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>")
        body += [f'<figure><img alt="{plot}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
                 f"<figcaption>{html.escape(_CAPTIONS[plot])}</figcaption></figure>"
                 for plot, content in plots.items() if heading == _PLOT_AFTER[plot]]
    body.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in _notes(summary)) + "</ul>")
    return (f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{html.escape(_title(summary))}</title>"
            f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n")


# ----------------------------------------------------------------------------------------------------------- content

_SCORES, _WORST, _CONFIDENCE = "Scores", "Worst subjects", "Confidence"
_PLOT_AFTER = {"boxes": _SCORES, "examples": _WORST, "confidence": _CONFIDENCE}


def _title(summary: Mapping[str, Any]) -> str:
    return f"Evaluation: {summary['task']}"


def _headline(summary: Mapping[str, Any]) -> str:
    metric = metrics_of(summary["task"])[0]
    where = "" if summary["task"] == "segmentation" else f" ({main_region(summary['task'])})"
    draws = f", {summary['draws']} draws of references each" if summary["draws"] > 1 else ""
    failed = f" {len(summary['failures'])} cases failed and are not in these numbers." if summary["failures"] else ""
    return (f"{metric.title}{where}: {_shown(summary['metrics'][metric.key], metric)}, mean over {_count(summary)}"
            f"{draws}.{failed}")


def _count(summary: Mapping[str, Any]) -> str:
    return f"{summary['subjects']} subjects ({summary['cases']} cases)"


def _tables(summary: Mapping[str, Any]) -> dict[str, Table]:
    tables = {_SCORES: _scores(summary)}
    if "gain" in summary:
        tables["Against what was given"] = _gain(summary)
    if "against" in summary:
        tables[f"Difference to {summary['against']['with']}"] = _differences(summary)
    if "draws_spread" in summary:
        tables["Choice of references"] = _draws(summary)
    tables[_WORST] = _worst(summary)
    if "confidence" in summary:
        tables[_CONFIDENCE] = _confidence(summary)
    if summary["failures"]:
        tables["Failed cases"] = (["case", "draw", "reason"], [[one["case"], str(one["draw"]), one["reason"]]
                                                              for one in summary["failures"]])
    if summary["skipped"]:
        tables["Items that the task does not concern"] = (["case", "reason"], [
            [case, reason] for case, reason in summary["skipped"].items()])
    for what, files in summary["unmatched"].items():
        if files:
            tables[what.capitalize()] = (["file"], [[name] for name in files])
    if summary["remarks"]:
        tables["Remarks"] = (["case", "remark"], [[case, remark] for case, remarks in summary["remarks"].items()
                                                  for remark in remarks][:_MOST_LISTED])
    return tables


def _scores(summary: Mapping[str, Any]) -> Table:
    metrics = [metric for metric in metrics_of(summary["task"]) if summary["metrics"][metric.key]["n"]]
    is_labels = summary["task"] == "segmentation"
    rows = []
    for part in summary["parts"].values():
        row = [part["name"], *(_shown(part["metrics"][metric.key], metric) for metric in metrics)]
        if is_labels:
            empty = part["empty"]
            row += [str(part["metrics"]["dice"]["n"]), f"{empty['prediction']} / {empty['truth']} / {empty['both']}",
                    _volumes(part)]
        rows.append(row)
    if is_labels and len(rows) > 1:
        rows.append(["all labels", *(_shown(summary["metrics"][metric.key], metric) for metric in metrics),
                     str(summary["metrics"]["dice"]["n"]), "", ""])
    if is_labels:
        return ["label", *(metric.title for metric in metrics), "subjects", "missed / invented / absent",
                "volume - truth (ml)"], rows
    return ["region", *(metric.title for metric in metrics)], rows


def _volumes(part: Mapping[str, Any]) -> str:
    difference, truth = part["volume_difference_ml"], part["truth_ml"]["mean"]
    if difference["mean"] is None:
        return "-"
    return f"{difference['mean']:+.2f} of {truth:.2f}"


def _gain(summary: Mapping[str, Any]) -> Table:
    return ["metric", "given", "answer", "answer - given (paired)"], [
        [metric.title, _shown(summary["gain"][metric.key]["given"], metric), _shown(
            summary["metrics"][metric.key], metric), _shown(summary["gain"][metric.key]["difference"], metric, "+")]
        for metric in metrics_of(summary["task"])]


def _differences(summary: Mapping[str, Any]) -> Table:
    rows = [(metric, summary["against"][metric.key]) for metric in metrics_of(summary["task"])]
    return ["metric", "this - other (paired)", "subjects"], [
        [metric.title, _shown(difference, metric, "+"), str(difference["n"])] for metric, difference in rows
        if difference["n"]]


def _draws(summary: Mapping[str, Any]) -> Table:
    spread = summary["draws_spread"]
    metric = next(one for one in metrics_of(summary["task"]) if one.key == spread["metric"])
    rows = [[f"draw {draw}", _shown(estimate, metric)] for draw, estimate in spread["mean_of_each_draw"].items()]
    return ["", metric.title], [*rows, ["worst draw of each subject", _shown(spread["worst_draw"], metric)],
                                ["largest - smallest within a subject", _shown(spread["range_within_subject"], metric)]]


def _worst(summary: Mapping[str, Any]) -> Table:
    metric = metrics_of(summary["task"])[0]
    return ["subject", metric.title], [[row["subject"], f"{row[metric.key]:.{metric.digits}f}"]
                                       for row in summary["worst"]]


def _confidence(summary: Mapping[str, Any]) -> Table:
    numbers, three = summary["confidence"], Metric("", "", True, 3)
    rows = [["rank correlation of confidence and Dice over subjects", _shown(numbers["correlation_with_dice"], three)]]
    for region, title in (("all", "all voxels"), ("labelled", "voxels with a label")):
        if region in numbers:
            rows.append([f"expected calibration error, {title}", _shown(
                numbers[region]["expected_calibration_error"], three)])
    return ["", "value"], rows


def _notes(summary: Mapping[str, Any]) -> list[str]:
    statistics = summary["statistics"]
    notes = [f"Brackets: {statistics['interval']:.0%} intervals, {statistics['method']} ({statistics['resamples']} "
             "resamples, seeded); none are given for fewer than 3 subjects."]
    if summary["task"] == "segmentation":
        notes.append("Missed: the prediction lacks a label that is there (Dice 0, HD95 the grid's diagonal); invented: "
                     "it has one that is not there (the same); absent: neither has it (not counted).")
        settings = summary["settings"]
        notes.append(f"NSD tolerance {settings.get('tolerance_mm', 2.0):g} mm. Distances are left out for pictures, "
                     "which have no spacing.")
    else:
        notes.append("Images are compared on [0, 1] after scaling by the target: CT from -1000 to 1000 HU, everything "
                     "else by its percentiles 0.5 and 99.5; clipped.")
    if summary["cost"]:
        notes.append(f"{summary['cost']['seconds_per_slice']:.2f} s per slice, "
                     f"{summary['cost']['seconds_per_case']:.1f} s per case.")
    unused = {"sigma"} if summary["task"] != "denoising" else set()
    unused |= {"tolerance_mm", "distances"} if summary["task"] != "segmentation" else set()
    shown = {key: value for key, value in summary["settings"].items()
             if value not in (None, "", {}) and key not in unused}
    notes.append("Settings: " + ", ".join(f"{key} {value}" for key, value in shown.items()))
    return [*notes, "Versions: " + ", ".join(f"{name} {version}" for name, version in summary["versions"].items())]


def _shown(estimate: Mapping[str, Any], metric: Metric, sign: str = "") -> str:
    if estimate["mean"] is None:
        return "-"
    digits = metric.digits
    text = f"{estimate['mean']:{sign}.{digits}f}"
    if estimate["low"] is None:
        return text
    return f"{text} [{estimate['low']:{sign}.{digits}f}, {estimate['high']:{sign}.{digits}f}]"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _write_bytes(path: Path, content: bytes) -> None:
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise VolumeWriteError(f"{path}: could not be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1c2530;max-width:1080px;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:1.8rem 0 .5rem}.lead{font-size:1.15rem;margin:.4rem 0}"
    ".privacy{background:#fff4e0;border-left:4px solid #c4590a;padding:.5rem .8rem}.wide{overflow-x:auto}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{text-align:left;padding:.25rem .9rem .25rem 0;border-bottom:1px solid #e4e8ec;vertical-align:top}"
    "th{color:#6b7785;font-weight:600}figure{margin:1rem 0}img{max-width:100%;height:auto}"
    "figcaption,ul{color:#6b7785;font-size:.9rem}ul{padding-left:1.2rem}li{overflow-wrap:anywhere}")
