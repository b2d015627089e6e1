"""The command `mvg`.

Exit codes: 0 done, 1 a defect or a failed demo, 2 something is wrong with what was given, 130 interrupted.

Heavy packages are imported inside the commands, so that `mvg --help` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand

from mvg_core import __version__

SHIPPED_WEIGHTS = "mvg_compact"


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
                for line in _files_behind(error, ctx.params):
                    _say(line)
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


# ------------------------------------------------------------------------------------------------------------ commands


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

    with _spoken_warnings(), _progress("slices") as progress:
        try:
            report = run_demo(output, weights, device=device, threads=threads, progress=progress)
            failure = None
        except DemoFailed as failed:
            report, failure = failed.report, failed
    _show_demo(report)
    if failure is not None:
        _say(f"The demo failed: {failure}")
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
        metavar="OUT", help="Where the answer goes: .nii.gz, .nii, .nrrd, .mha, or .png (one slice).")],
    plane: Annotated[PlaneName, typer.Option(help="How to slice; auto looks at the first LABEL.")] = PlaneName.auto,
    hole: Annotated[Path | None, typer.Option(
        metavar="MASK", help="Inpainting: non-zero where to paint, on the grid of QUERY.")] = None,
    names: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Names of labels: JSON or YAML {number: name}, or a 3D Slicer color table.")] = None,
    frame: Annotated[str | None, typer.Option(
        metavar="N|all", help="4D QUERY: which frame, from 0; all writes OUT with _frame000, _frame001 ...")] = None,
    reference_frame: Annotated[int | None, typer.Option(
        metavar="N", min=0, help="4D IMAGE or LABEL: which frame; without it the same as --frame.")] = None,
    reference_slices: Annotated[str | None, typer.Option(
        metavar="N,N,..", help="Slices of IMAGE that are solved, from 0; without it those with any label.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    window: Annotated[tuple[float, float] | None, typer.Option(
        metavar="LOW HIGH", help="Intensities shown as black and white; without it fixed for CT, else percentiles.")
    ] = None,
    weights: Weights = SHIPPED_WEIGHTS,
    confidence: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Also write how sure the network is, 0 to 1.")] = None,
    preview: Annotated[Path | None, typer.Option(metavar="PNG", help="Also write a picture of some slices.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="JSON", help="Also write how the answer came about.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Solve an image by example: segment it, remove noise, fill holes, or turn one contrast into another."""
    from mvg_core.job import OutputFiles, PredictionJob
    from mvg_core.predict import Predictor

    job = PredictionJob(
        query, tuple(zip(reference[::2], reference[1::2], strict=True)), task.value,
        OutputFiles(output, confidence, preview), report, plane.value, window, hole, names, _frame(frame),
        reference_frame, _slice_numbers(reference_slices), overwrite)
    with _spoken_warnings(), _progress("slices") as progress:
        reports = job.run(lambda: Predictor.load(weights, device=device, threads=threads), progress)
    for one in reports:
        _show_prediction(one)
    if report is not None:
        _print(f"report: {report}")


@app.command(cls=Command)
def info(
    weights: Weights = SHIPPED_WEIGHTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show what is installed, and what the weights are: network, licence, training data, numbers, checksum."""
    import json

    from mvg_core.report import package_versions

    facts: dict[str, Any] = {"versions": package_versions()}
    try:
        facts |= _weights_facts(weights)
    except RuntimeError as error:  # no weights, or damaged ones: all the more reason to say the rest
        facts["problem"] = str(error)
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(_outline(facts)))
    if "problem" in facts:
        raise typer.Exit(2)


@app.command(cls=Command)
def convert_checkpoint(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Checkpoint of a Painter, SegGPT or MAE network.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Weight file to write, .pt.")],
    preset: Annotated[str, typer.Option(metavar="NAME", help="Network that takes the weights.")] = "mvg_vit_large",
    allow_missing: Annotated[bool, typer.Option(
        "--allow-missing", help="Write also if parameters keep initial values, as a start for training.")] = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint of another project into a weight file, and say what became of every name in it."""
    from mvg_core.report import check_outputs
    from mvg_core.weights import file_sha256

    check_outputs([(output, (".pt",))], inputs=[source], overwrite=overwrite)
    _need_torch("converting checkpoints")
    from mvg_core.network import preset as network_preset
    from mvg_core.network.checkpoint import save_weights
    from mvg_core.network.convert import convert_checkpoint as convert

    network, conversion = convert(source, network_preset(preset))
    _print(str(conversion))
    if not conversion.is_complete and not allow_missing:
        raise ValueError(f"{source} lacks {len(conversion.missing)} of the network's parameters, so nothing was "
                         "written: choose another --preset, or pass --allow-missing to start a training from it")
    network.card = {"converted_from": source.name, "source_sha256": file_sha256(source),
                    "missing": list(conversion.missing), "licence": "as the source"}
    save_weights(network, output)
    _print(f"weights: {output}")


@app.command(cls=Command)
def export_onnx(
    weights: Weights = SHIPPED_WEIGHTS,
    output: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="Where the two files go; without it where mvg looks for them.")] = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write the network as ONNX files, for machines without PyTorch."""
    from mvg_core.backends import ONNX_PROMPT, ONNX_QUERY
    from mvg_core.report import check_outputs
    from mvg_core.weights import file_sha256, find_weights, user_folder

    folder = output or user_folder() / "onnx"
    folder.mkdir(parents=True, exist_ok=True)
    check_outputs([(folder / name, (".onnx",)) for name in (ONNX_PROMPT, ONNX_QUERY)], overwrite=overwrite)
    path = find_weights(weights)
    _need_torch("export")
    if importlib.util.find_spec("onnx") is None:
        raise RuntimeError("export needs the package onnx: pip install onnx")
    from mvg_core.network.checkpoint import load_network
    from mvg_core.network.export import export_onnx as export

    for written in export(load_network(path), folder, checkpoint_sha256=file_sha256(path)):
        _print(f"written: {written}")


@app.command(cls=Command)
def export_safetensors(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A file ending in .safetensors.")],
    weights: Weights = SHIPPED_WEIGHTS,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write the weights in a format that cannot hold code; mvg reads it too."""
    from mvg_core.report import check_outputs
    from mvg_core.weights import find_weights

    check_outputs([(output, (".safetensors",))], overwrite=overwrite)
    path = find_weights(weights)
    _need_torch("export")
    if importlib.util.find_spec("safetensors") is None:
        raise RuntimeError("export needs the package safetensors: pip install safetensors")
    from mvg_core.network.checkpoint import load_network, save_weights

    save_weights(load_network(path), output)
    _print(f"written: {output}")


# ------------------------------------------------------------------------------------------------------------ arguments


def _pairs_apart(ctx: Any, args: Sequence[str]) -> list[str]:
    """`--reference IMAGE LABEL` as `--reference IMAGE --reference LABEL`, because Typer has no lists of pairs."""
    apart: list[str] = []
    waiting = list(args)
    while waiting:
        option, equals, image = waiting[0].partition("=")
        if waiting[0] == "--" or option != "--reference":
            n_kept = len(waiting) if waiting[0] == "--" else 1
            apart, waiting = apart + waiting[:n_kept], waiting[n_kept:]
            continue
        pair = [image, *waiting[1:2]] if equals else waiting[1:3]
        if len(pair) < 2 or any(path.startswith("--") for path in pair):
            raise typer.BadParameter("needs two files: --reference IMAGE LABEL", ctx=ctx, param_hint="--reference")
        apart += [f"--reference={path}" for path in pair]
        waiting = waiting[2 if equals else 3 :]
    return apart


def _frame(text: str | None) -> int | Literal["all"] | None:
    if text is None or text == "all":
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number from 0 nor 'all'", param_hint="--frame")
    return int(text)


def _slice_numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise typer.BadParameter(f"{text!r} is not a list of slice numbers such as 40,52",
                                 param_hint="--reference-slices")
    return tuple(int(number) for number in numbers)


# ------------------------------------------------------------------------------------------------------------ facts


def _need_torch(what: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError(f"{what} needs PyTorch: pip install 'mvg-core[torch]' from a checkout or wheel, for example "
                           "`pip install '.[torch]'`")


def _weights_facts(name_or_path: str) -> dict[str, Any]:
    """File, checksum, card and, where PyTorch can read them, network and number of parameters.

    Raises:
        WeightsError, CheckpointError, MissingBackendError: no such file, a damaged one, or nothing that can read it.
    """
    from mvg_core.backends import load_backend
    from mvg_core.weights import file_sha256, find_weights, read_numbers

    path = find_weights(name_or_path)
    facts: dict[str, Any] = {"weights": {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)},
                             "numbers": read_numbers(path)}
    if importlib.util.find_spec("torch") is None:
        return facts | {"card": load_backend(path).card}
    from mvg_core.network.checkpoint import load_network

    network = load_network(path)
    return facts | {"network": network.config.to_json(),
                    "parameters": sum(parameter.numel() for parameter in network.parameters()), "card": network.card}


def _outline(value: Any, indent: int = 0) -> list[str]:
    """Nested facts as indented lines."""
    pad = "  " * indent
    lines: list[str] = []
    for key, part in value.items():
        if isinstance(part, dict):
            lines += [f"{pad}{key}:", *(_outline(part, indent + 1) or [f"{pad}  (nothing recorded)"])]
        elif isinstance(part, list) and any(isinstance(one, (dict, str)) for one in part):
            lines.append(f"{pad}{key}:")
            for one in part:
                inner = _outline(one, indent + 2) if isinstance(one, dict) else [f"{pad}    {one}"]
                lines += [f"{pad}  - {inner[0].strip()}", *inner[1:]]
        else:
            lines.append(f"{pad}{key}: {part}")
    return lines


# ------------------------------------------------------------------------------------------------------------ terminal


def _print(text: str) -> None:
    """A line of result; never wrapped, so that paths can be copied."""
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _say(text: str) -> None:
    """A line for people, beside the results (stderr)."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


@contextlib.contextmanager
def _spoken_warnings() -> Iterator[None]:
    """Warnings about the user's files as one line each; those of libraries are for developers and stay silent."""
    from mvg_core.predict import PredictionWarning
    from mvg_core.volume_io import VolumeWarning

    said: set[str] = set()

    def say(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            _say(f"Warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (PredictionWarning, VolumeWarning):
            warnings.simplefilter("always", kind)
        warnings.showwarning = say
        yield


@contextlib.contextmanager
def _progress(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function that is told title, done and total; it draws a bar for every title, in a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
               TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        known: dict[str, Any] = {}

        def show(title: str, done: int, total: int) -> None:
            if title not in known:
                known[title] = bars.add_task(title, total=total)
            bars.update(known[title], completed=done)

        yield show


def _show_prediction(report: dict[str, Any]) -> None:
    if report["found"]:
        table = Table("label", "name", "volume (ml)", "confidence", box=None, pad_edge=False)
        for row in report["found"]:
            sure = "-" if row["mean_confidence"] is None else f"{row['mean_confidence']:.2f}"
            table.add_row(str(row["label"]), row["name"], f"{row['volume_ml']:.2f}", sure)
        Console().print(table)
    for kind, path in report["outputs"].items():
        _print(f"{kind}: {path}")
    _print(f"{report['plane']} slices: {report['seconds_per_slice']:.2f} s each")


def _show_demo(report: dict[str, Any]) -> None:
    table = Table("", "Dice", "copied slice", box=None, pad_edge=False)
    for name, dice in report["dice"].items():
        table.add_row(name, f"{dice:.3f}", f"{report['dice_copy'][name]:.3f}")
    Console().print(table)
    _print(f"{report['seconds_per_slice']:.2f} s per slice, {report['slices']} slices; {report['seconds']:.0f} s total")
    for kind in ("denoising", "inpainting"):
        _print(f"{kind}: PSNR {report[kind]['psnr_before']:.1f} dB before, {report[kind]['psnr_after']:.1f} dB after")
    for kind, path in report["outputs"].items():
        _print(f"{kind}: {path}")


def _is_for_people(error: Exception) -> bool:
    """Whether our own code raised it, with a message that says what to do; what libraries raise is a defect."""
    if not isinstance(error, (ValueError, IndexError, RuntimeError, OSError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    package = os.path.dirname(os.path.abspath(__file__))
    return os.path.abspath(last.filename).startswith(package) and (last.line or "").startswith("raise ")


def _files_behind(error: Exception, options: dict[str, Any]) -> list[str]:
    """Which file is which, where a message about voxels speaks of the query or a reference by its number."""
    pairs, message = list(options.get("reference") or ()), str(error)
    if not pairs or isinstance(error, (RuntimeError, OSError)) or not ("query" in message or "reference " in message):
        return []
    if any(str(path) in message for path in [options["query"], *pairs]):
        return []
    return [f"  query: {options['query']}", *(
        f"  reference {number}: {image} with {label}"
        for number, (image, label) in enumerate(zip(pairs[::2], pairs[1::2], strict=True), start=1))]


if __name__ == "__main__":
    main()
