"""`mvg check-data`: what is wrong with datalists, before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mvg_core.cli.application import app
from mvg_core.cli.terminal import Command, Debug, Overwrite, progress_bars, show_line

if TYPE_CHECKING:
    from mvg_core.training.check_report import ClassSize, Finding, SplitSummary

MOST_OF_A_KIND = 10
"""Findings of one kind that are shown; the JSON file has all."""
LONGEST_NAME = 24
LOG_WIDTH = 200
"""Characters of a line where no terminal says how many there are."""


@app.command(cls=Command)
def check_data(
    lists: Annotated[list[Path], typer.Argument(metavar="LIST", help="Datalists (JSON), checked together.")],
    json_file: Annotated[Path | None, typer.Option(
        "--json", metavar="FILE", help="Also write everything that was found as JSON.")] = None,
    workers: Annotated[int, typer.Option(
        metavar="N", min=0, help="Processes that read files; each needs memory for one item.")] = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Look for what is wrong with datalists before training: leaks between splits, missing files, grids, labels."""
    from mvg_core.report import check_outputs, write_report
    from mvg_core.training.check_data import check_data as check

    if json_file is not None:
        check_outputs([(json_file, (".json",))], inputs=lists, overwrite=overwrite)
    with progress_bars("items") as progress:
        report = check(lists, progress, workers=workers)
    if json_file is not None:
        write_report(json_file, report.to_json())
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    if report.splits:
        console.print(_split_table(report.splits))
    if report.classes:
        console.print(_class_table(report.classes))
    _show_findings(report.findings)
    items = sum(split.items for split in report.splits)
    show_line(f"{_count(report.errors, 'error')}, {_count(report.warnings, 'warning')} in {_count(items, 'item')} of "
              f"{_count(len(report.lists), 'list')}")
    if json_file is not None:
        show_line(f"report: {json_file}")
    if report.errors:
        raise typer.Exit(2)


def _split_table(splits: list[SplitSummary]) -> Table:
    table = Table("data set", "split", "items", "subjects", "modality", "task", "shape", "spacing (mm)", "intensity",
                  "slices", "MB", box=None, pad_edge=False)
    for row in splits:
        intensity = "-" if row.intensity is None else _range(*(f"{end:.4g}" for end in row.intensity))
        table.add_row(row.dataset, row.split, str(row.items), str(row.subjects), _mix(row.modalities), _mix(row.tasks),
                      _ranges(row.shape, "d"), _ranges(row.spacing_mm, ".3g"), intensity, str(row.slices),
                      str(row.megabytes))
    return table


def _class_table(classes: list[ClassSize]) -> Table:
    splits = list(dict.fromkeys(row.split for row in classes))
    table = Table("data set", "label", "name", *(f"{split}: cases, ml, voxels" for split in splits), box=None,
                  pad_edge=False)
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in classes:
        label, ml = ", ".join(map(str, row.numbers)), f"{row.ml:.0f}" if row.ml >= 100 else f"{row.ml:.3g}"
        rows.setdefault((row.dataset, label, row.name), {})[row.split] = f"{row.cases}  {ml}  {row.voxels}"
    for (dataset, label, name), sizes in rows.items():
        table.add_row(dataset, label, name, *(sizes.get(split, "-") for split in splits))
    return table


def _show_findings(findings: list[Finding]) -> None:
    shown: dict[tuple[str, str], int] = {}
    for finding in findings:
        kind = (finding.severity, finding.kind)
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= MOST_OF_A_KIND:
            show_line(f"{finding.severity}: {finding.where}: {finding.message}")
    for (severity, kind), count in shown.items():
        if count > MOST_OF_A_KIND:
            show_line(f"{severity}: {count - MOST_OF_A_KIND} more of the kind '{kind}': see --json FILE")


def _mix(counts: dict[str, int]) -> str:
    """'CT', or 'CT 20, MR 4'."""
    names = {name: name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME - 3]}..." for name in counts}
    if len(counts) == 1:
        return next(iter(names.values())) or "-"
    return ", ".join(f"{names[name] or '?'} {count}" for name, count in counts.items())


def _ranges(ends: tuple[list, list] | None, form: str) -> str:
    """'512 x 512 x 80-120'."""
    if ends is None:
        return "-"
    return " x ".join(_range(format(low, form), format(high, form)) for low, high in zip(*ends, strict=True))


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}" if "-" in low + high else f"{low}-{high}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
