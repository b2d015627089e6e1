"""`mvg demo` and `mvg predict`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from mvg_core.cli.application import app
from mvg_core.cli.terminal import (
    SHIPPED_WEIGHTS,
    Backend,
    BackendName,
    Command,
    Debug,
    Device,
    EngineParts,
    Overwrite,
    Precision,
    PrecisionName,
    Preset,
    PresetChoice,
    Threads,
    Weights,
    progress_bars,
    say,
    show_line,
    spoken_warnings,
)


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


@app.command(cls=Command)
def demo(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the results go.")] = Path("demo_output"),
    weights: Weights = SHIPPED_WEIGHTS,
    device: Device = "auto",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Label one slice of a brain template, get the whole volume; compared with the truth. No download, no own data."""
    from mvg_core.demo import DemoFailed, run_demo

    with spoken_warnings(), progress_bars("slices") as progress:
        try:
            report = run_demo(output, weights, device=device, threads=threads, progress=progress)
            failure = None
        except DemoFailed as failed:
            report, failure = failed.report, failed
    _show_demo(report)
    if failure is not None:
        say(f"The demo failed: {failure}")
        raise typer.Exit(1)


@app.command(cls=Command)
def predict(
    query: Annotated[Path, typer.Argument(
        metavar="QUERY", help="Image to solve: NIfTI, NRRD, MHA, DICOM file or folder, PNG, JPEG.")],
    reference: Annotated[list[Path], typer.Option(
        metavar="IMAGE LABEL", help="A solved example: two files. May be repeated. Where IMAGE is QUERY, the slices "
        "that LABEL marks are the example for the others.")],
    task: Annotated[TaskName, typer.Option(help="What to do.")],
    output: Annotated[Path, typer.Option(
        metavar="OUT", help="Where the answer goes: .nii.gz, .nii, .nrrd, .seg.nrrd (3D Slicer), .mha, .png (one "
        "slice); where QUERY is DICOM also .dcm (segmentation), or a folder (image: a derived series).")],
    plane: Annotated[PlaneName, typer.Option(help="How to slice; auto looks at the first LABEL.")] = PlaneName.auto,
    hole: Annotated[Path | None, typer.Option(
        metavar="MASK", help="Inpainting: non-zero where to paint, on the grid of QUERY.")] = None,
    names: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Names of labels: JSON or YAML {number: name}, or a 3D Slicer color table.")] = None,
    color_table: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Also write names and colours of the labels as a 3D Slicer color table (.ctbl).")] = None,
    frame: Annotated[str | None, typer.Option(
        metavar="N|all", help="4D QUERY: which frame, from 0; all writes OUT with _frame000, _frame001 ...")] = None,
    reference_frame: Annotated[int | None, typer.Option(
        metavar="N", min=0, help="4D IMAGE or LABEL: which frame; without it the same as --frame.")] = None,
    reference_slices: Annotated[str | None, typer.Option(
        metavar="N,N,..", help="Slices of IMAGE that are solved, from 0; without it those with any label.")] = None,
    slices: Annotated[str | None, typer.Option(
        metavar="FIRST-LAST", help="Slices of QUERY to solve, from 0; without it all.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    backend: Backend = BackendName.auto,
    precision: Precision = PrecisionName.auto,
    max_memory: Annotated[int | None, typer.Option(
        metavar="MB", min=1, help="Most memory that painting may use, program and images included; what does not fit "
        "is refused.", show_default="no limit")] = None,
    window: Annotated[tuple[float, float] | None, typer.Option(
        metavar="LOW HIGH", help="Intensities shown as black and white; without it fixed for CT, else percentiles.")
    ] = None,
    weights: Weights = SHIPPED_WEIGHTS,
    preset: Preset = PresetChoice.balanced,
    engine: EngineParts = None,
    tune: Annotated[int | None, typer.Option(
        metavar="N", min=0, help="Tune a copy of the network on the examples for N steps first; takes longer, and may "
        "help or hurt.", show_default="of the preset")] = None,
    confidence: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Also write how sure the network is, 0 to 1.")] = None,
    preview: Annotated[Path | None, typer.Option(metavar="PNG", help="Also write a picture of some slices.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="JSON", help="Also write how the answer came about.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Solve an image by example: segment it, remove noise, fill holes, or turn one contrast into another."""
    from mvg_core.engine import EngineConfig, VolumeEngine
    from mvg_core.job import OutputFiles, PredictionJob

    changes = [*(engine or []), *([] if tune is None else [f"tuning={tune}"])]
    config = EngineConfig.named_values(preset.value, changes)
    job = PredictionJob(
        query, tuple(zip(reference[::2], reference[1::2], strict=True)), task.value,
        OutputFiles(output, confidence, preview, color_table), report, plane.value, window, hole, names,
        frame_number(frame), reference_frame, slice_numbers(reference_slices, "--reference-slices"),
        first_and_last(slices), overwrite)
    with spoken_warnings(), progress_bars("slices") as progress:
        reports = job.run(lambda: VolumeEngine.load(
            weights, config, backend=backend.value, device=device, threads=threads, precision=precision.value,
            max_memory_mb=max_memory), progress)
    for one in reports:
        _show_prediction(one)
    if report is not None:
        show_line(f"report: {report}")


def frame_number(text: str | None) -> int | Literal["all"] | None:
    """The value of --frame."""
    if text is None or text == "all":
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number from 0 nor 'all'", param_hint="--frame")
    return int(text)


def slice_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """The numbers in a text such as 40,52, the value of an option."""
    if text is None:
        return None
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise typer.BadParameter(f"{text!r} is not a list of slice numbers such as 40,52", param_hint=option)
    return tuple(int(number) for number in numbers)


def first_and_last(text: str | None) -> tuple[int, int] | None:
    """The value of --slices: 40-52, or 40 alone."""
    if text is None:
        return None
    first, dash, last = (part.strip() for part in text.partition("-"))
    if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
        raise typer.BadParameter(f"{text!r} is not a range of slices such as 40-52", param_hint="--slices")
    return int(first), int(last or first)


def _show_prediction(report: dict[str, Any]) -> None:
    if report["found"]:
        table = Table("label", "name", "volume (ml)", "surface (mm2)", "confidence", box=None, pad_edge=False)
        for row in report["found"]:
            sure = "-" if row["mean_confidence"] is None else f"{row['mean_confidence']:.2f}"
            surface = "-" if row["surface_mm2"] is None else f"{row['surface_mm2']:.0f}"
            table.add_row(str(row["label"]), row["name"], f"{row['volume_ml']:.2f}", surface, sure)
        Console().print(table)
    for kind, path in report["outputs"].items():
        show_line(f"{kind}: {path}")
    show_line(f"{report['plane']} slices: {report['seconds_per_slice']:.2f} s each")


def _show_demo(report: dict[str, Any]) -> None:
    table = Table("", "Dice", "copied slice", box=None, pad_edge=False)
    for name, dice in report["dice"].items():
        table.add_row(name, f"{dice:.3f}", f"{report['dice_copy'][name]:.3f}")
    Console().print(table)
    show_line(f"{report['seconds_per_slice']:.2f} s per slice, {report['slices']} slices; "
              f"{report['seconds']:.0f} s total")
    for kind in ("denoising", "inpainting"):
        before, after = report[kind]["psnr_before"], report[kind]["psnr_after"]
        show_line(f"{kind}: PSNR {before:.1f} dB before, {after:.1f} dB after")
    for kind, path in report["outputs"].items():
        show_line(f"{kind}: {path}")
