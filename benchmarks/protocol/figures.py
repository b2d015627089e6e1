"""Plots of the tables, and best, median and worst cases of the data sets whose licence allows it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.protocol.questions import OPEN_LICENCE
from benchmarks.protocol.tables import Answers, Book
from mvg_core.evaluation.plots import draw_examples
from mvg_core.evaluation.results import metrics_of
from mvg_core.evaluation.runner import CASES
from mvg_core.evaluation.statistics import mean_over_subjects

INK, OURS = "#1c2530", ("#9ecae1", "#4292c6", "#08519c")
OTHERS = ("#bdbdbd", "#fdae6b", "#e6550d", "#a1d99b", "#74c476", "#8c6d31", "#969696", "#c7a76c")
PANELS_A_ROW = 4
EXAMPLES = (("headneck_ct_volume_k1", "headneck_ct (MIT)"), ("fetal_head_us_k8", "fetal_head_us (CC-BY-4.0)"),
            ("breast_us_k8", "breast_us (CC-BY-4.0)"), ("brain_ms_noise_0.1", "brain_ms (CC-BY)"),
            ("brain_ms_inpaint", "brain_ms (CC-BY)"), ("brain_t1_t2", "brain_ms (CC-BY)"))
EXAMPLES_OF = "engine_balanced"


def write_figures(book: Book, folder: Path) -> list[tuple[str, str]]:
    """Draw everything that there are answers for.

    Returns:
        File name and caption of each picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for table, name, title in (("A", "segmentation.png", "Dice (higher is better)"),
                               ("B", "restoration.png", "PSNR in dB (higher is better)")):
        content = bars([answers for answers in book.values() if answers.question.table == table])
        if content is not None:
            (folder / name).write_bytes(content)
            drawn.append((name, f"Table {table}: {title}; mean over subjects, 95 % interval. Blue: ours."))
    for question, credit in EXAMPLES:
        answers = book.get((question, EXAMPLES_OF))
        if answers is None or answers.question.data not in OPEN_LICENCE:
            continue
        content = draw_examples(answers.results, answers.folder / CASES)
        if content is not None:
            (folder / f"{question}.png").write_bytes(content)
            caption = f"{answers.question.title}: best, median and worst subject. Images: {credit}."
            drawn.append((f"{question}.png", caption))
    return drawn


def bars(answers: Sequence[Answers]) -> bytes | None:
    """One panel for each question, one bar for each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    questions = list(dict.fromkeys(one.question.name for one in answers))
    if not questions:
        return None
    n_rows = -(-len(questions) // PANELS_A_ROW)
    figure = Figure(figsize=(3.7 * PANELS_A_ROW, 2.5 * n_rows), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(questions, start=1):
        mine = [one for one in answers if one.question.name == name]
        metric = metrics_of(mine[0].question.kind)[0]
        axes = figure.add_subplot(n_rows, PANELS_A_ROW, number)
        colours = _colours(mine)
        for place, one in enumerate(mine):
            found = mean_over_subjects(list(one.subjects(metric.key).values()))
            axes.barh(place, found.mean, color=colours[place], height=0.7)
            if found.low == found.low:
                axes.plot([found.low, found.high], [place, place], color=INK, linewidth=1)
            axes.annotate(f"{found.mean:.{min(metric.digits, 2)}f}", (max(found.mean, found.high), place),
                          xytext=(3, 0), textcoords="offset points", va="center", fontsize=6, color=INK)
        axes.set_yticks(range(len(mine)), [one.row.name for one in mine], fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_title(mine[0].question.title, fontsize=8, loc="left", color=INK)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, dpi=90, format="png")
    return content.getvalue()


def _colours(answers: Sequence[Answers]) -> list[str]:
    ours, others, found = iter(OURS), iter(OTHERS), []
    for one in answers:
        found.append(next(ours, OURS[-1]) if one.row.is_ours else next(others, OTHERS[-1]))
    return found
