"""Fits the calibration of the volume engine to validation subjects, and says how well it holds on others.

    python benchmarks/calibration.py [--data ../shared/data] [--threads 1] [--limit 8] [--dry]

Run it again whenever weights or presets change. Runs are shared with `engine.py` and kept, see `engine_runs.py`.
Writes mvg_core/engine/calibration.json (not with --dry), benchmarks/results/calibration.json and .md, and
docs/images/calibration.png.

Each half of every data set's subjects is judged by curves that were fitted to the other half; the shipped curves are
fitted to all. Every run counts alike, whatever its size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from engine_runs import EVIDENCE, REMOTENESS, Run, all_runs, configurations
from scipy.stats import rankdata

from mvg_core.backends import weights_sha256
from mvg_core.engine.calibration import CONSTANTS, KINDS, Calibration, Curve, Kind, log_odds
from mvg_core.evaluation.calibration import N_BINS, Reliability
from mvg_core.predict import Predictor
from mvg_core.report import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "images" / "calibration.png"
PRESETS_TO_FIT = ("fast", "balanced")
"""Both ways of deciding: by the network alone, and with a registration averaged in."""
REGIONS = ("found", "near", "band", "all", "labelled")
"""Voxels given a label; those and what is nearer to them than half their extent; those and the band around true and
found labels; all; those with a label in truth or answer."""
NEAR = -1.0
"""Largest log2(remoteness) of what is near."""
WORTH = 40.0
"""Voxels of one run are worth this many independent ones, for their errors come in patches."""
SLICES: tuple[Kind, Kind] = ("slice", "empty")
_ENOUGH = 10
"""Slices that a curve is fitted to at least."""


def main() -> None:
    """Measure, fit, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=8, help="most cases of each data set")
    parser.add_argument("--dry", action="store_true", help="leave the shipped constants as they are")
    options = parser.parse_args()
    predictor = Predictor.load("mvg_compact", threads=options.threads)
    runs = []
    for run in all_runs(predictor, options.data, options.limit, PRESETS_TO_FIT):
        print(f"{run.use}: {run.case}, {run.config}: Dice {run.dice:.3f}", flush=True)
        runs.append(run)
    report(runs, weights_sha256(predictor.backend), dry=options.dry)


def report(runs: Sequence[Run], weights_sha256: str, *, dry: bool = False) -> None:
    """Fit, judge, and write everything."""
    judged = list(judgements(runs, weights_sha256))
    found = {"weights_sha256": weights_sha256, "runs": len(runs), "subjects": len({run.subject for run in runs}),
             "voxels": voxel_table(judged), "slices": slice_table(judged),
             "other_data": other_data(runs, weights_sha256)}
    if not dry:
        constants = fitted(runs, weights_sha256).to_json()
        write_text(CONSTANTS, json.dumps(constants, indent=1) + "\n")
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "calibration.json", json.dumps(found, indent=1) + "\n")
    write_text(RESULTS / "calibration.md", markdown(found))
    IMAGE.write_bytes(picture(judged))
    print(markdown(found))


# ---------------------------------------------------------------------------------------------------------- the fit


def way_of(run: Run) -> str:
    """How the answer came about."""
    config = configurations()[run.config][0]
    return Calibration.way(run.n_others, is_fused=config.prior in ("fuse", "both"))


def fitted(runs: Sequence[Run], weights_sha256: str) -> Calibration:
    """Curves for every way that occurs in the runs."""
    curves: dict[str, dict[Kind, Curve]] = {}
    for way in sorted({way_of(run) for run in runs}):
        mine = [run for run in runs if way_of(run) == way]
        slices: dict[Kind, Curve] = {}
        for kind in SLICES:  # of a kind that never came up this way, what is known from all
            slices[kind] = slice_curve(mine, kind) or slice_curve(runs, kind) or Curve((0.0,) * len(KINDS[kind]), 2.2)
        curves[way] = {**voxel_curves(mine, slices), **slices}
    shares = [run.beyond[:, 1].sum() / run.beyond.sum() for run in runs if run.beyond.any()]
    return Calibration(curves, round(float(np.mean([*shares, 0.99])), 5), weights_sha256)  # 0.99: nothing is certain


def slice_curve(runs: Sequence[Run], kind: Kind) -> Curve | None:
    """The true Dice of slices by what is known of them; the slices of a run count as ten. None for too few."""
    rows = [(facts.features(), dice, 10 / len(run.facts)) for run in runs
            for facts, dice in zip(run.facts.values(), run.slice_dice, strict=True) if facts.kind == kind]
    if len(rows) < _ENOUGH:
        return None
    features, dice, weight = (np.array(column) for column in zip(*rows, strict=True))
    return Curve.fitted(features, dice, weight)


def voxel_curves(runs: Sequence[Run], slices: Mapping[Kind, Curve]) -> dict[Kind, Curve]:
    """Of voxels in which a label was found, and of background."""
    rows: dict[Kind, list[tuple[list[float], float, float]]] = {"found": [], "background": []}
    for run in runs:
        of_run = list(_voxels(run, slices))
        for kind, found in rows.items():
            mine = [(features, counts) for is_found, features, counts in of_run if is_found == (kind == "found")]
            total = sum(counts.sum() for _, counts in mine)
            found += [(features, counts[1] / counts.sum(), WORTH * counts.sum() / total) for features, counts in mine]
    curves: dict[Kind, Curve] = {}
    for kind, found in rows.items():
        features, share, weight = (np.array(column) for column in zip(*found, strict=True))
        curves[kind] = Curve.fitted(features, share, weight)
    return curves


def _voxels(run: Run, slices: Mapping[Kind, Curve]) -> Iterator[tuple[bool, list[float], npt.NDArray[np.int64]]]:
    """Whether found, features, and (wrong, right) voxels of each bin of each slice that holds any; band or not."""
    n = len(REMOTENESS)
    for facts, counts in zip(run.facts.values(), run.counts, strict=True):
        quality = float(log_odds(slices[facts.kind](facts.features())))
        background = counts[1 : 1 + n] + counts[1 + n :]
        for place in np.flatnonzero(counts[0].any(axis=-1)):
            yield True, [float(EVIDENCE[place]), quality], counts[0, place]
        for zone, place in np.argwhere(background.any(axis=-1)):
            yield False, [float(EVIDENCE[place]), quality, float(REMOTENESS[zone])], background[zone, place]


# ------------------------------------------------------------------------------------------------------- is it true?


class Judged:
    """A run with what curves that do not know its subject say of it.

    Args:
        run: judged.
        calibration: was fitted without its subject.
    """

    def __init__(self, run: Run, calibration: Calibration) -> None:
        self.run, self.way = run, way_of(run)
        self.facts = list(run.facts.values())
        self.dice = [calibration.dice(facts, self.way) for facts in self.facts]
        self.before = {region: self._reliability(region, None) for region in REGIONS}
        self.after = {region: self._reliability(region, calibration) for region in REGIONS}

    def _reliability(self, region: str, calibration: Calibration | None) -> Reliability:
        parts, run, n = [], self.run, len(REMOTENESS)
        lead = np.tanh(EVIDENCE / 2)
        for dice, counts in zip(self.dice, run.counts, strict=True):
            quality = log_odds(dice)
            for zone in range(1 + 2 * n):
                if zone and not _is_in(zone, region):
                    continue
                # Background belongs to the labelled voxels if it is wrong, that is if a label was missed.
                voxels = counts[zone] * [1, 0] if zone and region == "labelled" else counts[zone]
                sure = lead
                if calibration is not None and zone == 0:
                    features = np.column_stack([EVIDENCE, np.full(len(EVIDENCE), quality)])
                    sure = calibration.curves[self.way]["found"](features)
                elif calibration is not None:
                    features = np.column_stack([EVIDENCE, np.full(len(EVIDENCE), quality),
                                                np.full(len(EVIDENCE), REMOTENESS[(zone - 1) % n])])
                    sure = calibration.curves[self.way]["background"](features)
                parts.append(_reliability(sure, voxels))
        if region not in ("found", "near"):
            beyond = {"band": run.beyond[0], "all": run.beyond.sum(axis=0),
                      "labelled": run.beyond.sum(axis=0) * [1, 0]}[region]
            parts.append(_reliability(np.array([1.0 if calibration is None else calibration.beyond]), beyond[None]))
        return Reliability.total(parts)


def _is_in(zone: int, region: str) -> bool:
    """Whether a zone of the background belongs to a region, as a whole or in part."""
    n = len(REMOTENESS)
    if region == "near":
        return REMOTENESS[(zone - 1) % n] < NEAR
    return region in ("all", "labelled") or (region == "band" and zone <= n)


def _reliability(sure: npt.NDArray[np.floating], voxels: npt.NDArray[np.integer]) -> Reliability:
    """Of voxels (bins, wrong or right), each bin with its confidence."""
    place, total = np.minimum((sure * N_BINS).astype(int), N_BINS - 1), voxels.sum(axis=-1)
    n, confidence, right = (np.bincount(place, weights, N_BINS).astype(np.float64)
                                  for weights in (total, total * sure, voxels[:, 1]))
    return Reliability(n, confidence, right)


def judgements(runs: Sequence[Run], weights_sha256: str) -> Iterator[Judged]:
    """Each half of the subjects by curves fitted to the other half."""
    half = halves(runs)
    for number in (0, 1):
        others = [run for run in runs if half[_subject(run)] != number]
        calibration = fitted(others, weights_sha256)
        for run in runs:
            if half[_subject(run)] == number and way_of(run) in calibration.curves:
                yield Judged(run, calibration)


def halves(runs: Iterable[Run]) -> dict[tuple[str, str], int]:
    """(Data set, subject) -> half; the subjects of each data set take turns."""
    found: dict[tuple[str, str], int] = {}
    for run in runs:
        key = _subject(run)
        found.setdefault(key, sum(data == key[0] for data, _ in found) % 2)
    return found


def _subject(run: Run) -> tuple[str, str]:
    return run.data, run.subject


def other_data(runs: Sequence[Run], weights_sha256: str) -> list[dict[str, Any]]:
    """Each data set by curves fitted to the others: what to expect of anatomy and modality never seen."""
    rows = []
    for data in dict.fromkeys(run.data for run in runs):
        others = [run for run in runs if run.data != data]
        if not others:
            continue
        calibration = fitted(others, weights_sha256)
        judged = [Judged(run, calibration) for run in runs if run.data == data and way_of(run) in calibration.curves]
        rows.append({"data": data, **_voxel_row(judged), **_slice_row(judged)})
    return rows


def voxel_table(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Expected calibration error by use and preset, and of all together."""
    return [{"runs of": name, **_voxel_row(mine)} for name, mine in _groups(judged)]


def slice_table(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Expected against true Dice of slices in which something was found."""
    return [{"runs of": name, **_slice_row(mine)} for name, mine in _groups(judged)]


def _groups(judged: Sequence[Judged]) -> Iterator[tuple[str, list[Judged]]]:
    for config in dict.fromkeys(one.run.config for one in judged):
        for use in dict.fromkeys(one.run.use for one in judged):
            mine = [one for one in judged if (one.run.config, one.run.use) == (config, use)]
            if mine:
                yield f"{config}: {use}", mine
        yield f"{config}: all", [one for one in judged if one.run.config == config]
    for name, most in (("one slice", 0), ("1 volume", 1), ("8 volumes", 8)):
        mine = [one for one in judged if one.run.n_others == most]
        if mine:
            yield f"all: {name}", mine
    yield "all", list(judged)


def _voxel_row(judged: Sequence[Judged]) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(judged)}
    for region in REGIONS:
        parts = [one.before[region] for one in judged], [one.after[region] for one in judged]
        row[region] = [round(Reliability.total(part).expected_error, 4) for part in parts]
        if region == "band":
            row["band, each volume"] = [round(float(np.nanmean([one.expected_error for one in part])), 4)
                                        for part in parts]
    return row


def _slice_row(judged: Sequence[Judged]) -> dict[str, Any]:
    rows = [(facts.soft_dice, dice, true) for one in judged
            for facts, dice, true in zip(one.facts, one.dice, one.run.slice_dice, strict=True) if facts.area]
    before, after, truth = (np.array(column) for column in zip(*rows, strict=True))
    return {"slices": len(rows), "mean_dice": round(float(truth.mean()), 3),
            "mean_absolute_error": [round(float(np.abs(one - truth).mean()), 3) for one in (before, after)],
            "pearson": [round(float(np.corrcoef(one, truth)[0, 1]), 3) for one in (before, after)],
            "spearman": [round(float(np.corrcoef(rankdata(one), rankdata(truth))[0, 1]), 3) for one in (before, after)]}


# ---------------------------------------------------------------------------------------------------------- shown


def markdown(found: Mapping[str, Any]) -> str:
    """Tables."""
    def pair(values: Sequence[float], digits: int = 3) -> str:
        return " -> ".join(f"{value:.{digits}f}" for value in values)

    shown = [*REGIONS[:3], "band, each volume", *REGIONS[3:]]
    lines = [f"Before -> after calibration; every subject judged by curves fitted to other subjects. "
             f"{found['runs']} runs, {found['subjects']} subjects, weights {found['weights_sha256'][:8]}.", "",
             "Expected calibration error of voxels", "",
             f"| preset and use | n | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    lines += [f"| {row['runs of']} | {row['n']} | {' | '.join(pair(row[region]) for region in shown)} |"
              for row in found["voxels"]]
    lines += ["", "Expected and true Dice of slices in which something was found", "",
              "| preset and use | slices | true Dice | mean absolute error | Pearson | Spearman |", "|---" * 6 + "|"]
    lines += [f"| {row['runs of']} | {row['slices']} | {row['mean_dice']:.2f} | {pair(row['mean_absolute_error'])} | "
              f"{pair(row['pearson'], 2)} | {pair(row['spearman'], 2)} |" for row in found["slices"]]
    if found["other_data"]:
        lines += ["", "Data sets judged by curves fitted to the others alone", "",
                  "| data | found | near | band | all | mean absolute error of slices | Pearson |", "|---" * 7 + "|"]
        lines += [f"| {row['data']} | {' | '.join(pair(row[region]) for region in REGIONS[:4])} | "
                  f"{pair(row['mean_absolute_error'])} | {pair(row['pearson'], 2)} |" for row in found["other_data"]]
    return "\n".join(lines) + "\n"


def picture(judged: Sequence[Judged]) -> bytes:
    """Reliability around what was found, before and after, and expected against true Dice of slices."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    configs = list(dict.fromkeys(one.run.config for one in judged))
    figure = Figure(figsize=(4.2 * (1 + len(configs)), 3.9), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for column, config in enumerate(configs, start=1):
        axes = figure.add_subplot(1, 1 + len(configs), column)
        axes.plot([0, 1], [0, 1], "--", color="#6b7785", linewidth=1)
        for when, colour in (("before", "#c4590a"), ("after", "#2166ac")):
            total = Reliability.total(getattr(one, when)["near"] for one in judged if one.run.config == config)
            curve = [point for point in total.curve() if point[2] >= 50]
            axes.plot([x for x, *_ in curve], [y for _, y, _ in curve], "o-", color=colour, markersize=4,
                      label=f"{when}: error {total.expected_error:.3f}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", title=f"{config}: voxels near what was found",
                 ylabel="share that is right")
        axes.legend(loc="upper left", frameon=False)
    axes = figure.add_subplot(1, 1 + len(configs), 1 + len(configs))
    axes.plot([0, 1], [0, 1], "--", color="#6b7785", linewidth=1)
    for is_own, colour in ((True, "#2166ac"), (False, "#c4590a")):
        points = [(dice, true) for one in judged if (not one.run.n_others) == is_own and one.run.config == "balanced"
                  for facts, dice, true in zip(one.facts, one.dice, one.run.slice_dice, strict=True) if facts.area]
        axes.plot(*(zip(*points, strict=True) if points else ([], [])), ".", color=colour, markersize=4, alpha=0.6,
                  label="one labelled slice" if is_own else "other subjects")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="expected Dice", ylabel="true Dice", title="balanced: slices")
    axes.legend(loc="upper left", frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue()


if __name__ == "__main__":
    main()
