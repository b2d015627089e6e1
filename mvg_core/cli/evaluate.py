"""`mvg evaluate`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from mvg_core.cli.application import app
from mvg_core.cli.predict import TaskName
from mvg_core.cli.terminal import (
    SHIPPED_WEIGHTS,
    Command,
    Debug,
    Device,
    EngineParts,
    Overwrite,
    Preset,
    PresetChoice,
    Threads,
    Weights,
    progress_bars,
    say,
    show_line,
    spoken_warnings,
)

if TYPE_CHECKING:
    from mvg_core.engine import EngineConfig
    from mvg_core.evaluation.runner import Evaluation

_MOST_SAID = 10
_FEWEST_PROMPTS = 3


class EvaluationPlane(str, Enum):
    """How to slice."""

    auto = "auto"
    axial = "axial"
    coronal = "coronal"
    sagittal = "sagittal"
    acquisition = "acquisition"


class Split(str, Enum):
    """Which list of a datalist."""

    training = "training"
    validation = "validation"
    test = "test"


@app.command(cls=Command)
def evaluate(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the report goes; it is made if need be.")],
    listing: Annotated[Path | None, typer.Argument(
        metavar="LIST", help="Datalist (JSON) to run the network on; also a dataset.json.", show_default=False)
    ] = None,
    predictions: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="Instead of LIST: compare these files, of whatever program, with --truth.")] = None,
    truth: Annotated[Path | None, typer.Option(
        metavar="FOLDER|LIST", help="What they are compared with; files are matched by name or subject.")] = None,
    task: Annotated[TaskName, typer.Option(help="What to do.")] = TaskName.segmentation,
    split: Annotated[Split, typer.Option(help="Which items of LIST.")] = Split.test,
    references: Annotated[int, typer.Option(
        metavar="N", min=1, help="Solved examples of other subjects for each query.")] = 1,
    reference_list: Annotated[Path | None, typer.Option(
        metavar="LIST", help="Datalist that holds them (its references, else its training); without it LIST.")] = None,
    draws: Annotated[int, typer.Option(
        metavar="N", min=1, help="How often examples are drawn for each query, to see how much they matter.")] = 1,
    one_slice: Annotated[bool, typer.Option(
        "--one-slice", help="The example is one labelled slice of the query itself, chosen by a fixed rule.")] = False,
    plane: Annotated[EvaluationPlane, typer.Option(
        help="How to slice; acquisition (across the largest spacing) is for --one-slice.")] = EvaluationPlane.auto,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N items.")] = None,
    source: Annotated[str | None, typer.Option(
        metavar="CONTRAST", help="Which image of an item is shown; without it the first.")] = None,
    target: Annotated[str | None, typer.Option(metavar="CONTRAST", help="Synthesis: which image is painted.")] = None,
    sigma: Annotated[float, typer.Option(help="Denoising: noise that is added, on an image from 0 to 1.")] = 0.1,
    slices: Annotated[int | None, typer.Option(
        metavar="N", min=1, help="Image-to-image: at most N slices of a volume, evenly spread.")] = None,
    prompts: Annotated[int | None, typer.Option(
        metavar="N", min=1, help="Most prompts that serve one slice.",
        show_default="of the preset, or --references if more")] = None,
    weights: Weights = SHIPPED_WEIGHTS,
    device: Device = "auto",
    threads: Threads = None,
    preset: Preset = PresetChoice.balanced,
    engine: EngineParts = None,
    keep_predictions: Annotated[bool, typer.Option(
        "--keep-predictions", help="Also write the answers to FOLDER/predictions.")] = False,
    names: Annotated[Path | None, typer.Option(
        metavar="FILE", help="With --predictions: names of the labels that count; without it all that occur.")] = None,
    images: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="With --predictions: what the other program saw, for the pictures.")] = None,
    confidence: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="With --predictions: how sure it was, 0 to 1.")] = None,
    holes: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="With --predictions, inpainting: masks, non-zero where the image was missing.")] = None,
    tolerance_mm: Annotated[float, typer.Option(min=0, help="Of the surface score NSD.")] = 2.0,
    distances: Annotated[bool | None, typer.Option(
        "--distances/--no-distances", help="HD95 and NSD.", show_default="where the spacing is real")] = None,
    against: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="Earlier evaluation of the same queries: adds paired differences.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Measure answers against the truth: of the network on a datalist, or of files that exist already."""
    _need_packages()
    if (listing is None) == (predictions is None) or (predictions is None) != (truth is None):
        raise ValueError("say what is evaluated: a LIST to run the network on, or --predictions together with --truth")
    from mvg_core.engine import EngineConfig
    from mvg_core.evaluation.report import FILES, write_evaluation
    from mvg_core.evaluation.runner import EvaluationSettings

    earlier = None if against is None else against / FILES["table"] if against.is_dir() else against
    if earlier is not None and not earlier.is_file():
        raise FileNotFoundError(f"{earlier} does not exist: give --against the folder of an earlier evaluation")
    with spoken_warnings(), progress_bars("cases") as progress:
        def told(done: int, total: int) -> None:
            progress(task.value, done, total)

        if predictions is not None and truth is not None:
            others = {"image": images, "confidence": confidence, "holes": holes}
            evaluation = _compare(predictions, truth, task, out, told, split=split.value, target=target,
                                  others={role: path for role, path in others.items() if path is not None},
                                  names=names, tolerance_mm=tolerance_mm, distances=distances, overwrite=overwrite)
        else:
            assert listing is not None  # checked above
            _refuse(names=names, images=images, confidence=confidence, holes=holes)
            settings = EvaluationSettings(
                listing, split.value, task.value, references, reference_list, one_slice, plane.value, sigma, source,
                target, slices, tolerance_mm, distances)
            evaluation = _run(settings, out, told, weights=weights, device=device, threads=threads,
                              config=EngineConfig.named_values(preset.value, engine or []),
                              prompts=prompts, references=references, draws=draws, limit=limit,
                              keep_predictions=keep_predictions)
    _say_what_is_missing(evaluation)
    if not evaluation.results:
        say(f"Error: none of the {len(evaluation.failures)} cases could be scored")
        raise typer.Exit(2)
    _show(write_evaluation(evaluation, out, against=earlier), out / FILES["page"])
    if evaluation.failures:
        say(f"Error: {len(evaluation.failures)} of {len(evaluation.failures) + len(evaluation.results)} cases failed "
            "and are not in these numbers")
        raise typer.Exit(2)


def _need_packages() -> None:
    """Refuse early what cannot be measured."""
    missing = [package for package in ("torch", "monai", "scipy") if importlib.util.find_spec(package) is None]
    if missing:
        raise RuntimeError(f"evaluation needs {', '.join(missing)}: pip install 'mvg-core[train,demo]' from a checkout "
                           "or wheel, for example `pip install '.[train,demo]'`")
    from mvg_core.evaluation.plots import need_matplotlib

    need_matplotlib()


def _refuse(**options: Any) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} goes with --predictions: leave it out when the network is run on a LIST")


def _compare(predictions: Path, truth: Path, task: TaskName, out: Path, told: Callable[[int, int], None], *, split: str,
             target: str | None, others: dict[str, Path], names: Path | None, tolerance_mm: float,
             distances: bool | None, overwrite: bool) -> Evaluation:
    from mvg_core.evaluation.files import evaluate_files, match_files
    from mvg_core.evaluation.report import FILES
    from mvg_core.evaluation.scoring import ScoringRules
    from mvg_core.report import read_names

    report = out / FILES["summary"]
    if report.exists() and not overwrite:
        raise ValueError(f"{report} exists: choose another folder, or replace the report with --overwrite")
    labels = None if names is None else {number: name for number, name in read_names(names)[0].items() if number}
    matches = match_files(predictions, truth, task.value, split=split, target=target, others=others)
    settings = {"predictions": str(predictions), "truth": str(truth), "tolerance_mm": tolerance_mm,
                **{role: str(path) for role, path in others.items()}}
    return evaluate_files(matches, task.value, ScoringRules(labels, tolerance_mm, distances), out, settings=settings,
                          progress=told)


def _run(settings: Any, out: Path, told: Callable[[int, int], None], *, weights: str, device: str, threads: int | None,
         config: EngineConfig, prompts: int | None, references: int, draws: int, limit: int | None,
         keep_predictions: bool) -> Evaluation:
    from mvg_core.backends import reader_sha256
    from mvg_core.engine import VolumeEngine
    from mvg_core.evaluation.runner import evaluate_list

    config = replace(config, n_prompts=prompts or max(config.n_prompts, references))
    n_prompts = prompts or max(_FEWEST_PROMPTS, references)  # where the engine does not segment
    engine = VolumeEngine.load(weights, config, device=device, threads=threads, n_prompts=n_prompts)
    backend = engine.predictor.backend
    solver = {"checkpoint_sha256": backend.checkpoint_sha256, "reader_sha256": reader_sha256(backend),
              "engine": config.to_json()}
    return evaluate_list(settings, engine.solve, solver, out, draws=draws, limit=limit,
                         keep_predictions=keep_predictions, progress=told)


def _say_what_is_missing(evaluation: Evaluation) -> None:
    lines = [f"Failed: {failure.case}: {failure.reason}" for failure in evaluation.failures]
    left_over = [f"Warning: {what}: {file}" for what, files in (evaluation.unmatched or {}).items() for file in files]
    for group in (lines, left_over):
        for line in group[:_MOST_SAID]:
            say(line)
        if len(group) > _MOST_SAID:
            say(f"... and {len(group) - _MOST_SAID} more, see the report")


def _show(summary: dict[str, Any], page: Path) -> None:
    from mvg_core.evaluation.results import metrics_of

    metrics = [metric for metric in metrics_of(summary["task"]) if summary["metrics"][metric.key]["n"]]
    table = Table(Column("", no_wrap=True), Column(metrics[0].title, no_wrap=True),
                  *(metric.title for metric in metrics[1:]), box=None, pad_edge=False)
    rows = [(part["name"], part["metrics"]) for part in summary["parts"].values()]
    if summary["task"] == "segmentation" and len(rows) > 1:
        rows.append(("all labels", summary["metrics"]))
    for name, values in rows:
        # The report has all intervals; a terminal is narrow.
        cells = [_cell(values[metric.key], metric.digits, interval=metric is metrics[0]) for metric in metrics]
        table.add_row(name, *cells)
    Console().print(table)
    show_line(f"{summary['subjects']} subjects, {summary['cases']} cases")
    show_line(f"report: {page}")


def _cell(estimate: dict[str, Any], digits: int, *, interval: bool) -> str:
    if estimate["mean"] is None:
        return "-"
    text = f"{estimate['mean']:.{digits}f}"
    if estimate["low"] is None or not interval:
        return text
    return f"{text} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
