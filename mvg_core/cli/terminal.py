"""What all commands of `mvg` share: how errors, warnings, progress and results are shown, and the common options."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand

SHIPPED_WEIGHTS = "mvg_compact"


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
            say("Interrupted. No incomplete file was left behind.")
            raise typer.Exit(130) from None
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            if _is_for_people(error):
                say(f"Error: {error}")
                for line in _files_behind(error, ctx.params):
                    say(line)
                raise typer.Exit(2) from None
            say(f"Unexpected error: {type(error).__name__}: {error}")
            say("This looks like a defect in mvg. Please report it together with what `mvg info` says and what the "
                 "same command says with --debug.")
            raise typer.Exit(1) from None


class BackendName(str, Enum):
    """What runs the network."""

    auto = "auto"
    torch = "torch"
    onnx = "onnx"


class PrecisionName(str, Enum):
    """In what the network computes."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class PresetChoice(str, Enum):
    """Presets of the volume engine."""

    plain = "plain"
    fast = "fast"
    balanced = "balanced"
    accurate = "accurate"


Weights = Annotated[str, typer.Option(help="Name of weights, or path to a .pt file.", metavar="NAME|PATH")]
Backend = Annotated[BackendName, typer.Option(
    help="What runs the network: PyTorch or ONNX Runtime; auto takes PyTorch if it is installed.")]
Precision = Annotated[PrecisionName, typer.Option(
    help="auto computes in bfloat16 where the processor is faster with it (PyTorch only).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Preset = Annotated[PresetChoice, typer.Option(
    help="How hard to try to segment volumes: plain paints every slice by itself; the others look where the structures "
    "are, go from slice to slice, and register other subjects.")]
EngineParts = Annotated[list[str] | None, typer.Option(
    metavar="PART=VALUE", help="Change a part of the preset, as in focus=2.2, prior=off or planes=3. May be repeated.",
    show_default=False)]
Threads = Annotated[int | None, typer.Option(min=1, help="Most CPU threads.", show_default="all cores")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def show_line(text: str) -> None:
    """A line of result; never wrapped, so that paths can be copied."""
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def say(text: str) -> None:
    """A line for people, beside the results (stderr)."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


@contextlib.contextmanager
def spoken_warnings() -> Iterator[None]:
    """Warnings about the user's files as one line each; those of libraries are for developers and stay silent."""
    from mvg_core.predict import PredictionWarning
    from mvg_core.volume_io import VolumeWarning

    said: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            say(f"Warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (PredictionWarning, VolumeWarning):
            warnings.simplefilter("always", kind)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def progress_bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
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


def need_torch(what: str) -> None:
    """Refuse early what cannot work without PyTorch.

    Raises:
        RuntimeError: it is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError(f"{what} needs PyTorch: pip install 'mvg-core[torch]' from a checkout or wheel, for example "
                           "`pip install '.[torch]'`")


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


def _is_for_people(error: Exception) -> bool:
    """Whether our own code raised it, with a message that says what to do; what libraries raise is a defect."""
    if not isinstance(error, (ValueError, IndexError, RuntimeError, OSError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.path.abspath(last.filename).startswith(package) and (last.line or "").startswith("raise ")


def _files_behind(error: Exception, options: dict[str, Any]) -> list[str]:
    """Which file is which, where a message about voxels speaks of the query or a reference by its number."""
    pairs, message = list(options.get("reference") or ()), str(error)
    if not pairs or isinstance(error, (RuntimeError, OSError)) or not ("query" in message or "reference " in message):
        return []
    if "query" not in options:  # a command for many queries, whose messages name their files
        return []
    if any(str(path) in message for path in [options["query"], *pairs]):
        return []
    return [f"  query: {options['query']}", *(
        f"  reference {number}: {image} with {label}"
        for number, (image, label) in enumerate(zip(pairs[::2], pairs[1::2], strict=True), start=1))]
