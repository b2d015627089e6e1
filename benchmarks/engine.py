"""What each part of the volume engine is worth: Dice and seconds of presets, and of "balanced" without its parts.

    python benchmarks/engine.py [--data ../shared/data] [--threads 1] [--limit 8] [--only fast balanced] [--list]

Validation lists only. What was measured with the same weights, source and configuration is kept in
benchmarks/out/engine, so an interrupted run goes on where it was, and calibration.py shares the runs. Seconds are CPU
seconds of the process, registrations included; those are done once for each case and charged to every configuration
that uses them. Means are over subjects, intervals are 95 % bootstrap intervals over subjects, differences from
"balanced" are paired. Writes benchmarks/results/engine.json and .md, and docs/images/engine.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engine_runs import DEMONS, REGISTRATION, USES, Run, all_runs, configurations, source_sha256

from mvg_core.backends import weights_sha256
from mvg_core.engine.config import PRESETS
from mvg_core.evaluation.statistics import mean_over_subjects, paired_difference
from mvg_core.predict import Predictor
from mvg_core.report import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "images" / "engine.png"
BASE = "balanced"


def main() -> None:
    """Measure what is missing, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=8, help="most cases of each data set")
    parser.add_argument("--only", nargs="+", metavar="CONFIG", help="only these configurations, see --list")
    parser.add_argument("--list", action="store_true", help="name the configurations, and stop")
    options = parser.parse_args()
    names = list(configurations())
    if options.list:
        print("\n".join(names))
        return
    unknown = sorted(set(options.only or ()) - set(names))
    if unknown:
        parser.error(f"no configuration {unknown[0]!r}: choose among {', '.join(names)}")
    predictor = Predictor.load("mvg_compact", threads=options.threads)
    runs = []
    for run in all_runs(predictor, options.data, options.limit, options.only):
        print(f"{run.use}: {run.case}, {run.config}: Dice {run.dice:.3f}, {run.cpu_s:.1f} s", flush=True)
        runs.append(run)
    rows = rows_of(runs)
    report = {"weights_sha256": weights_sha256(predictor.backend), "source_sha256": source_sha256(),
              "threads": options.threads, "rows": rows,
              "runs": [{"use": run.use, "case": run.case, "subject": run.subject, "config": run.config,
                        "dice": run.dice, "cpu_s": run.cpu_s} for run in runs]}
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "engine.json", json.dumps(report, indent=1) + "\n")
    write_text(RESULTS / "engine.md", markdown(report))
    IMAGE.write_bytes(picture(rows))
    print(markdown(report))


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each use and configuration."""
    rows = []
    for use in dict.fromkeys(run.use for run in runs):
        base = _by_subject([run for run in runs if (run.use, run.config) == (use, BASE)])
        for config in dict.fromkeys(run.config for run in runs if run.use == use):
            mine = [run for run in runs if (run.use, run.config) == (use, config)]
            dice = _by_subject(mine)
            rows.append({"use": use, "config": config, "cases": len(mine),
                         "dice": mean_over_subjects(list(dice.values())).to_json(),
                         "difference": None if config == BASE else paired_difference(dice, base).to_json(),
                         "cpu_s": round(float(np.mean([run.cpu_s for run in mine])), 2)})
    return rows


def _by_subject(runs: Sequence[Run]) -> dict[str, float]:
    """Mean Dice of each subject's cases."""
    return {subject: float(np.mean([run.dice for run in runs if run.subject == subject]))
            for subject in dict.fromkeys(run.subject for run in runs)}


def markdown(report: Mapping[str, Any]) -> str:
    """A table for each use."""
    lines = [f"Weights {report['weights_sha256'][:8]}, source {report['source_sha256'][:8]}, {report['threads']} "
             "thread; CPU seconds a volume, registrations included.", ""]
    for use in (use.name for use in USES):
        mine = [row for row in report["rows"] if row["use"] == use]
        if not mine:
            continue
        lines += [f"**{use}** ({mine[0]['dice']['n']} subjects, {mine[0]['cases']} cases)", "",
                  "| configuration | Dice [95 %] | minus balanced [95 %] | s |", "|---|---|---|---|"]
        lines += [f"| {row['config']} | {_interval(row['dice'])} | "
                  f"{'' if row['difference'] is None else _interval(row['difference'], '+.3f')} | {row['cpu_s']:.1f} |"
                  for row in mine]
        lines.append("")
    return "\n".join(lines)


def _interval(estimate: Mapping[str, Any], style: str = ".3f") -> str:
    mean, low, high = (math.nan if estimate[key] is None else estimate[key] for key in ("mean", "low", "high"))
    return "-" if math.isnan(mean) else format(mean, style) + (
        "" if math.isnan(low) else f" [{low:{style}}, {high:{style}}]")


def picture(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Dice against seconds, one panel for each use."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    uses = list(dict.fromkeys(row["use"] for row in rows))
    n_columns = min(3, len(uses))
    n_rows = -(-len(uses) // n_columns)
    figure = Figure(figsize=(4.6 * n_columns, 3.5 * n_rows), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for number, use in enumerate(uses, start=1):
        axes = figure.add_subplot(n_rows, n_columns, number)
        for row in (row for row in rows if row["use"] == use):
            name, dice = row["config"], row["dice"]
            is_preset, is_other = name in PRESETS, name in (REGISTRATION, DEMONS)
            colour = "#2166ac" if is_preset else "#c4590a" if is_other else "#9aa5b1"
            if is_preset and dice["low"] is not None:
                axes.plot([row["cpu_s"]] * 2, [dice["low"], dice["high"]], color=colour, linewidth=1, alpha=0.6)
            axes.plot(row["cpu_s"], dice["mean"], "o" if is_preset else "s" if is_other else ".", color=colour)
            if is_preset or is_other:
                axes.annotate(name.split(",")[0], (row["cpu_s"], dice["mean"]), xytext=(5, 4),
                              textcoords="offset points", fontsize=8, color=colour)
        axes.set(xscale="log", title=use, xlabel="CPU seconds a volume", ylabel="Dice")
        axes.title.set_fontsize(10)
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e8ec", linewidth=0.8)
        axes.set_axisbelow(True)
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue()


if __name__ == "__main__":
    main()
