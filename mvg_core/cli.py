"""The command `mvg`.

Exit codes: 0 done, 1 a defect or a failed demo, 2 something is wrong with what was given, 130 interrupted.

Heavy packages are imported inside the commands, so that `mvg --help` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand

from mvg_core import __version__

if TYPE_CHECKING:
    from mvg_core.predict import Prediction, Predictor
    from mvg_core.references import Reference
    from mvg_core.tasks import Task
    from mvg_core.volume import Volume

SHIPPED_WEIGHTS = "mvg_compact"
ALL_FRAMES = "all"

_TWO_PART_SUFFIXES = (".nii.gz", ".seg.nrrd")


class TaskName(str, Enum):
    """What to do."""

    segmentation = "segmentation"
    denoising = "denoising"
    inpainting = "inpainting"
    synthesis = "synthesis"


class PlaneName(str, Enum):
    """How to slice."""

    auto = "auto"
    axial = "axial"
    coronal = "coronal"
    sagittal = "sagittal"


class Command(TyperCommand):
    """A command that takes pairs of files and explains what went wrong in one message instead of a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, pairs taken apart."""
        return super().parse_args(ctx, _pairs_apart(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        """Run; see the exit codes above."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            _say("Interrupted. No incomplete file was left behind.")
            raise typer.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            if _is_for_people(error):
                _say(f"Error: {error}")
                raise typer.Exit(2) from None
            _say(f"Unexpected error: {type(error).__name__}: {error}")
            _say("This looks like a defect in mvg. Please report it together with what `mvg info` says and what the "
                 "same command says with --debug.")
            raise typer.Exit(1) from None


app = typer.Typer(name="mvg", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Medical imaging tasks from solved examples: show one labelled slice or volume, get the rest.")

Weights = Annotated[str, typer.Option(help="Name of weights, or path to a .pt file.", metavar="NAME|PATH")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="Most CPU threads.", show_default="all cores")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Entry point of `mvg`."""
    # Batch systems end jobs with SIGTERM: leave by the same door as after Ctrl-C, past the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback()
def _common(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True,
                                                  callback=lambda asked: _print_version(asked))] = False) -> None:
    pass


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mvg {__version__}")
        raise typer.Exit


# ------------------------------------------------------------------------------------------------------------ predict


@dataclass(frozen=True)
class _Outputs:
    """Where one prediction goes."""

    image: Path
    confidence: Path | None
    preview: Path | None

    def of_frame(self, frame: int) -> _Outputs:
        """The same with the number of a frame in every name."""
        return _Outputs(_numbered(self.image, frame), self.confidence and _numbered(self.confidence, frame),
                        self.preview and _numbered(self.preview, frame))

    def suffixes(self) -> dict[Path, tuple[str, ...]]:
        """Every file that will be written, and what its suffix may be."""
        from mvg_core.report import VOLUME_SUFFIXES

        without_png = tuple(suffix for suffix in VOLUME_SUFFIXES if suffix != ".png")
        given = ((self.image, VOLUME_SUFFIXES), (self.confidence, without_png), (self.preview, (".png",)))
        return {path: suffixes for path, suffixes in given if path is not None}

    def describe(self) -> dict[str, str]:
        """For the report."""
        return {name: str(path) for name, path in vars(self).items() if path is not None}


@app.command(cls=Command)
def predict(
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="Image to solve: NIfTI, NRRD, MHA, DICOM folder, PNG.")],
    reference: Annotated[list[Path], typer.Option(
        metavar="IMAGE LABEL", help="Two files: a solved example. May be repeated. If IMAGE is QUERY, the slices that "
        "LABEL marks are the example for the others.")],
    task: Annotated[TaskName, typer.Option(help="What to do.")],
    output: Annotated[Path, typer.Option(help="Where the answer goes: .nii.gz, .nii, .nrrd, .mha, .png (one slice).")],
    plane: Annotated[PlaneName, typer.Option(help="How to slice; auto decides by the first LABEL.")] = PlaneName.auto,
    hole: Annotated[Path | None, typer.Option(metavar="MASK", help="Inpainting: non-zero where to paint.")] = None,
    names: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Names of labels: JSON or YAML {number: name}, or a 3D Slicer color table.")] = None,
    frame: Annotated[str | None, typer.Option(metavar="N|all", help="4D files: frame from 0, or all of them.")] = None,
    reference_frame: Annotated[int | None, typer.Option(
        metavar="N", min=0, help="4D references: their frame.", show_default="as --frame")] = None,
    reference_slices: Annotated[str | None, typer.Option(
        metavar="N,N,...", help="Slices (from 0) of IMAGE that are solved.", show_default="those with any label")] = None,
    device: Device = "auto",
    threads: Threads = None,
    window: Annotated[tuple[float, float] | None, typer.Option(
        metavar="LOW HIGH", help="Intensities shown as black and white.", show_default="CT: fixed, else percentiles")
    ] = None,
    weights: Weights = SHIPPED_WEIGHTS,
    confidence: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the confidence, 0 to 1.")] = None,
    preview: Annotated[Path | None, typer.Option(metavar="PNG", help="Also write a picture of some slices.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="JSON", help="Also write how the answer came about.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Solve an image by example: segment, denoise, fill holes, or turn one contrast into another."""
    from mvg_core.predict import Predictor
    from mvg_core.report import check_outputs, peak_memory_mb, write_report

    pairs = list(zip(reference[::2], reference[1::2], strict=True))
    _check_options(task, pairs, window, {"--hole": hole, "--names": names, "--confidence": confidence,
                                         "--reference-slices": reference_slices})
    with _spoken_warnings() as remarks:
        frames = _chosen_frames(query, frame)
        outputs = _Outputs(output, confidence, preview)
        of_frames = [outputs.of_frame(number) for number in frames] if frame == ALL_FRAMES else [outputs]
        inputs = [query, *reference, *(path for path in (hole, names) if path is not None)]
        check_outputs([file for one in of_frames for file in one.suffixes().items()]
                      + ([(report, (".json",))] if report else []), inputs=inputs, overwrite=overwrite)
        first = _read(query, frames[0])
        references = _read_references(pairs, (query, frames, first), reference_frame, _numbers(reference_slices))
        the_task = _task(task, names, references)
        hole_volume = None if hole is None else _read(hole, None)
        _check_png(output, first, references, the_task)
        predictor = Predictor.load(weights, device=device, threads=threads)
        predictions = []
        for number in frames:
            volume = first if number == frames[0] else _read(query, number)
            predictions.append((volume, _predict_one(
                predictor, volume, references, the_task, _files_of(query, pairs),
                progress_title=f"frame {number}" if frame == ALL_FRAMES else task.value,
                plane=plane.value, hole=hole_volume, window=window)))
    reports = []
    for (volume, prediction), files, number in zip(predictions, of_frames, frames, strict=True):
        _write(volume, prediction, files, the_task, overwrite)
        found = _found(prediction) if the_task.is_segmentation else []
        reports.append({"frame": number, "outputs": files.describe(), "found": found, **prediction.provenance})
        _show(reports[-1])
    if report:
        content = reports[0] if frame != ALL_FRAMES else {"frames": reports}
        write_report(report, {"query": str(query), "references": _described(pairs), **content,
                              "warnings": remarks, "peak_memory_mb": peak_memory_mb()})
        typer.echo(f"report: {report}")


def _check_options(task: TaskName, pairs: list[tuple[Path, Path]], window: tuple[float, float] | None,
                   given: dict[str, Any]) -> None:
    """Options that contradict each other, found before any file is opened."""
    of_segmentation = ("--names", "--confidence", "--reference-slices")
    if task is not TaskName.segmentation:
        for option in of_segmentation[:2]:
            if given[option] is not None:
                raise typer.BadParameter(f"belongs to segmentation, not to {task.value}: leave it out",
                                         param_hint=option)
    if task is TaskName.inpainting and given["--hole"] is None:
        raise typer.BadParameter("inpainting needs a mask that is non-zero where to paint", param_hint="--hole")
    if task is not TaskName.inpainting and given["--hole"] is not None:
        raise typer.BadParameter(f"belongs to inpainting, not to {task.value}: leave it out", param_hint="--hole")
    if given["--reference-slices"] is not None and len(pairs) > 1:
        raise typer.BadParameter("says which slices of one reference are solved: give one --reference with it",
                                 param_hint="--reference-slices")
    if window is not None and not window[0] < window[1]:
        raise typer.BadParameter(f"LOW must be below HIGH, got {window[0]:g} and {window[1]:g}", param_hint="--window")
