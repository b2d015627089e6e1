"""The table of results: a row for each case and label, for spreadsheets and statistics."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvg_core.cohort.cases import CohortCase
from mvg_core.cohort.records import Record
from mvg_core.report import temporary_beside, write_text

COLUMNS: dict[str, type] = {
    "case": str, "status": str, "task": str, "frame": int, "label": int, "name": str, "voxels": int,
    "volume_ml": float, "surface_mm2": float, "mean_confidence": float, "seconds": float, "attempts": int,
    "output": str, "warnings": str, "error": str}
"""In this order; an empty cell is not known or does not apply."""


def write_results(out: Path, cases: Sequence[CohortCase], records: Mapping[str, Record], errors: Mapping[str, str]
                  ) -> list[Path]:
    """Write `results.csv`, and `results.parquet` where pyarrow is installed.

    Args:
        out: the cohort's folder.
        cases: of the manifest, in its order.
        records: of finished cases.
        errors: of failed cases.

    Returns:
        The files.

    Raises:
        VolumeWriteError: no space, no permission.
    """
    rows = [row for case in cases for row in _rows(case, records.get(case.name), errors.get(case.name))]
    text = io.StringIO()
    table = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    written = [out / "results.csv"]
    write_text(written[0], text.getvalue())
    if importlib.util.find_spec("pyarrow") is not None:
        written.append(out / "results.parquet")
        _write_parquet(written[1], rows)
    return written


def _rows(case: CohortCase, record: Record | None, error: str | None) -> Iterable[dict[str, Any]]:
    common = {"case": case.name, "task": case.task}
    if record is None:
        yield {**common, "status": "not done" if error is None else "failed", "error": error}
        return
    common |= {"status": "done", "seconds": record.seconds, "attempts": record.attempt}
    for report in record.reports:
        frame = {**common, "frame": report["frame"], "output": report["outputs"]["answer"],
                 "warnings": "; ".join(report["warnings"]) or None}
        found = [{key: value for key, value in label.items() if key in COLUMNS} for label in report["found"]]
        yield from ({**frame, **label} for label in found or [{}])


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    temporary = temporary_beside(path)
    try:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
