"""The pictures of the report: box plots, best / median / worst, reliability, confidence against score."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from mvg_core.evaluation.calibration import N_BINS, Reliability
from mvg_core.evaluation.pictures import COLOURS, LARGEST_ERROR
from mvg_core.evaluation.results import CaseResult, Metric, by_subject, metrics_of, part_of
from mvg_core.evaluation.summary import name_of, parts_of, ranked

_INK, _FAINT, _BLUE, _ORANGE = "#1c2530", "#6b7785", "#2166ac", "#c4590a"
_REGION_TITLES = {"all": "all voxels", "labelled": "voxels with a label in truth or prediction"}
_MOST_NAMED_COLOURS = 12


def need_matplotlib() -> None:
    """Refuse early what cannot be drawn.

    Raises:
        RuntimeError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("the report's plots need matplotlib: pip install 'mvg-core[train,demo]' from a checkout or "
                           "wheel, for example `pip install '.[train,demo]'`")


def draw_boxes(results: Sequence[CaseResult]) -> bytes:
    """For each metric and label (or region) the subjects as points, their quartiles as a box, and their mean."""
    rows = _rows(results)
    shown = [metric for metric in metrics_of(results[0].kind)
             if any(np.isfinite(values[metric.key]).any() for _, values in rows)]
    height = 1.1 + 0.42 * len(rows)
    figure = _figure(11, height)
    for column, metric in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), column)
        _draw_metric(axes, metric, [values[metric.key] for _, values in rows])
        axes.set_yticks(range(len(rows)), [title for title, _ in rows] if column == 1 else [""] * len(rows))
        axes.set_ylim(len(rows) - 0.45, -0.55)
    return _png(figure)


def draw_examples(results: Sequence[CaseResult], folder: Path) -> bytes | None:
    """One slice of the best, the median and the worst subject; None if no picture was kept.

    Args:
        results: of an evaluation.
        folder: holds the pictures of the cases, by their keys.
    """
    order = ranked(results)
    if not order:
        return None
    kind, metric = results[0].kind, metrics_of(results[0].kind)[0]
    places = dict.fromkeys((len(order) - 1, (len(order) - 1) // 2, 0))  # of a few subjects, some are the same
    titles = dict(zip(places, ("best", "median", "worst") if len(places) == 3 else ("best", "worst"), strict=False))
    strips = [(f"{titles[place]}: {order[place][0]}, {metric.title} {order[place][1]:.{metric.digits}f}",
               _strip(results, order[place][0], folder)) for place in places]
    strips = [(title, strip) for title, strip in strips if strip is not None]
    if not strips:
        return None
    n_tiles = max(strip.shape[1] // strip.shape[0] for _, strip in strips)
    used = _used_labels(results) if kind == "segmentation" else []
    figure = _figure(2.6 * n_tiles, 2.95 * len(strips) + (0.4 if used else 0.05))
    tiles = ("image", "truth", "prediction", "confidence") if kind == "segmentation" else (
        "shown", "painted", "target", f"error (bright: {LARGEST_ERROR:g} or more)")
    for number, (title, strip) in enumerate(strips, start=1):
        axes = figure.add_subplot(len(strips), 1, number)
        axes.imshow(strip, interpolation="nearest")
        for k in range(1, strip.shape[1] // strip.shape[0]):
            axes.axvline(k * strip.shape[0] - 0.5, color="white", linewidth=3)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
        axes.set_xticks([(k + 0.5) * strip.shape[0] for k in range(strip.shape[1] // strip.shape[0])],
                        tiles[: strip.shape[1] // strip.shape[0]])
        axes.set_yticks([])
        axes.tick_params(length=0, colors=_FAINT)
        axes.spines[:].set_visible(False)
    if used:
        _draw_legend(figure, results, used)
    return _png(figure)


def draw_confidence(results: Sequence[CaseResult]) -> bytes | None:
    """Reliability of all and of labelled voxels, and score against mean confidence of each subject; None without."""
    regions = list(dict.fromkeys(name for result in results for name in result.calibration))
    if not regions:
        return None
    figure = _figure(11, 3.9)
    for column, region in enumerate(regions, start=1):
        total = Reliability.total(result.calibration[region] for result in results if region in result.calibration)
        _draw_reliability(figure.add_subplot(1, len(regions) + 1, column), total, _REGION_TITLES.get(region, region))
    _draw_scatter(figure.add_subplot(1, len(regions) + 1, len(regions) + 1), results)
    return _png(figure)


def _rows(results: Sequence[CaseResult]) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Title and, for each metric, the values of all subjects."""
    metrics, rows = metrics_of(results[0].kind), []
    for part in parts_of(results):
        values = {metric.key: np.array(list(by_subject(results, metric.key, part).values())) for metric in metrics}
        rows.append((name_of(results, part), values))
        if results[0].kind != "segmentation":
            given = {metric.key: np.array(list(by_subject(results, f"given_{metric.key}", part).values()))
                     for metric in metrics}
            if any(np.isfinite(one).any() for one in given.values()):
                rows.append((f"{name_of(results, part)}, as given", given))
    return rows


def _draw_metric(axes: Any, metric: Metric, rows: Sequence[np.ndarray]) -> None:
    random = np.random.default_rng(0)
    for number, values in enumerate(rows):
        known = values[np.isfinite(values)]
        if not known.size:
            axes.text(0.02, number, "not counted", transform=axes.get_yaxis_transform(), va="center", fontsize=8,
                      color=_FAINT)
            continue
        low, first, median, third, high = np.percentile(known, [0, 25, 50, 75, 100])
        axes.plot([low, high], [number, number], color=_FAINT, linewidth=1)
        axes.barh(number, third - first, left=first, height=0.55, facecolor="white", edgecolor=_FAINT, zorder=2)
        axes.plot([median, median], [number - 0.275, number + 0.275], color=_INK, linewidth=1.6, zorder=3)
        axes.scatter(known, number + random.uniform(-0.16, 0.16, known.size), s=13, color=_BLUE, alpha=0.65,
                     linewidth=0, zorder=4)
        axes.scatter([known.mean()], [number], marker="D", s=26, color=_ORANGE, zorder=5)
    better = "higher" if metric.higher_is_better else "lower"
    axes.set_title(f"{metric.title}\n{better} is better", fontsize=10, color=_INK)
    if metric.key in ("dice", "iou", "nsd", "empty_slices_filled"):
        axes.set_xlim(-0.03, 1.03)
    _plain(axes)


def _draw_reliability(axes: Any, total: Reliability, title: str) -> None:
    curve = total.curve()
    n_voxels = sum(n for *_, n in curve)
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle="--")
    for x, y, n in curve:
        centre = (min(int(x * N_BINS), N_BINS - 1) + 0.5) / N_BINS
        axes.bar(centre, y, width=0.8 / N_BINS, color=_BLUE, alpha=0.25)
        axes.text(centre, 0.02, f"{100 * n / n_voxels:.0f}%" if n >= n_voxels / 200 else "<1%", ha="center",
                  fontsize=6.5, color=_FAINT)
    axes.plot([x for x, *_ in curve], [y for _, y, _ in curve], color=_BLUE, marker="o", markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence (in grey: share of voxels)",
             ylabel="share with the true label")
    axes.set_title(f"{title}\nexpected calibration error {total.expected_error:.3f}", fontsize=10, color=_INK)
    _plain(axes)


def _draw_scatter(axes: Any, results: Sequence[CaseResult]) -> None:
    dice, sure = by_subject(results, "dice"), by_subject(results, "confidence")
    axes.scatter([sure[subject] for subject in dice], list(dice.values()), s=20, color=_BLUE, alpha=0.75, linewidth=0)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="mean confidence in labelled voxels", ylabel="Dice")
    axes.set_title("one point for each subject", fontsize=10, color=_INK)
    _plain(axes)


def _draw_legend(figure: Any, results: Sequence[CaseResult], used: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    named = used[:_MOST_NAMED_COLOURS]
    patches = [Patch(color=tuple(COLOURS[int(part)] / 255), label=name_of(results, part)) for part in named]
    figure.legend(handles=patches, loc="outside lower left", ncols=min(6, len(patches)), frameon=False, fontsize=9)


def _used_labels(results: Sequence[CaseResult]) -> list[str]:
    return list(dict.fromkeys(part_of(score) for result in results for score in result.scores))


def _strip(results: Sequence[CaseResult], subject: str, folder: Path) -> np.ndarray | None:
    """The picture of a subject's case whose score is nearest to that of the subject."""
    metric = metrics_of(results[0].kind)[0].key
    of_subject, value = [one for one in results if one.subject == subject], by_subject(results, metric)[subject]

    def distance(result: CaseResult) -> float:
        own = by_subject([result], metric)[subject]
        return math.inf if math.isnan(own) else abs(own - value)

    path = folder / f"{min(of_subject, key=distance).key}.png"
    if not path.is_file():
        return None
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue()
