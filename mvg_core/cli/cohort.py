"""`mvg cohort`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvg_core.cli.application import app
from mvg_core.cli.predict import PlaneName, TaskName, frame_number
from mvg_core.cli.terminal import (
    SHIPPED_WEIGHTS,
    Command,
    Debug,
    Device,
    EngineParts,
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
    from mvg_core.cohort import CohortResult, Manifest, News

_RAY_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")
_MOST_SAID = 20


class CohortCommand(Command):
    """A command with `--ray [ADDRESS]`, because Typer has no options whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, an address put in where it was left out."""
        return super().parse_args(ctx, with_address(args))


@app.command(cls=CohortCommand)
def cohort(
    manifest: Annotated[Path, typer.Argument(
        metavar="MANIFEST", help="CSV file with a row for each case, or a datalist (.json).")],
    out: Annotated[Path, typer.Option(
        metavar="DIR", help="Where the answers and results.csv go. The same command goes on with an interrupted run.")],
    reference: Annotated[list[Path] | None, typer.Option(
        metavar="IMAGE LABEL", help="A solved example for all rows without their own: two files. May be repeated.")
    ] = None,
    task: Annotated[TaskName, typer.Option(help="What to do, where a row does not say.")] = TaskName.segmentation,
    preset: Preset = PresetChoice.balanced,
    engine: EngineParts = None,
    plane: Annotated[PlaneName, typer.Option(help="How to slice, where a row does not say.")] = PlaneName.auto,
    window: Annotated[tuple[float, float] | None, typer.Option(
        metavar="LOW HIGH", help="Intensities shown as black and white, where a row does not say.")] = None,
    frame: Annotated[str | None, typer.Option(
        metavar="N|all", help="4D queries: which frame, where a row does not say.")] = None,
    names: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Names of labels: JSON or YAML {number: name}, or a 3D Slicer color table.")] = None,
    suffix: Annotated[str, typer.Option(
        metavar=".EXT", help="Kind of the answers, where a row names no output.")] = ".nii.gz",
    confidence: Annotated[bool, typer.Option(
        "--confidence", help="Also write CASE_confidence.nii.gz: how sure the network is, 0 to 1.")] = False,
    previews: Annotated[bool, typer.Option("--previews", help="Also write CASE_preview.png.")] = False,
    workers: Annotated[int | None, typer.Option(
        metavar="N", min=1, help="Cases solved at the same time.", show_default="by cores and memory")] = None,
    ray: Annotated[str | None, typer.Option(
        metavar="[ADDRESS]", help="Work on a Ray cluster: auto, HOST:PORT; without ADDRESS on this machine alone.")
    ] = None,
    retries: Annotated[int, typer.Option(
        metavar="N", min=0, help="How often a case is tried again whose worker died, for example for want of memory.")
    ] = 2,
    split: Annotated[str, typer.Option(metavar="LIST", help="Which list of a datalist.")] = "test",
    weights: Weights = SHIPPED_WEIGHTS,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option(
        "--overwrite", help="Solve again what DIR holds of other settings or files.")] = False,
    debug: Debug = False,
) -> None:
    """Solve many images by example: resumable, on several processes or machines, with one table of results."""
    from mvg_core.cohort import CohortSettings, Defaults, Workers, read_manifest, run_cohort

    paths = [path.absolute() for path in reference or []]
    defaults = Defaults(tuple(zip(paths[::2], paths[1::2], strict=True)), task.value, plane.value, window,
                        frame_number(frame), suffix)
    read = read_manifest(manifest, defaults, split=split)
    if read.unused:
        say(f"Warning: {manifest}: these columns mean nothing here: {', '.join(read.unused)}")
    settings = CohortSettings.create(out, weights, preset.value, parts=tuple(engine or ()), device=device,
                                     confidence=confidence, previews=previews, names=names)
    with spoken_warnings(), progress_bars("cases") as progress:
        teller = _Teller(progress)
        try:
            result = run_cohort(read, settings, Workers(workers, threads, ray, retries), overwrite=overwrite,
                                told=teller.hear)
        except KeyboardInterrupt:
            say(f"Interrupted: {teller.finished} of {len(read.cases)} cases are finished and kept. The same command "
                "goes on with the others.")
            raise typer.Exit(130) from None
    _show(read, result, out)
    if result.errors:
        raise typer.Exit(2)


def with_address(args: Sequence[str]) -> list[str]:
    """`--ray` as `--ray=local`, and `--ray ADDRESS` as `--ray=ADDRESS`; what is no address is the next argument."""
    words, left = [], list(args)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*words, word, *left]
        if word == "--ray":
            word = f"--ray={left.pop(0) if left and _RAY_ADDRESS.fullmatch(left[0]) else 'local'}"
        words.append(word)
    return words


class _Teller:
    """Says what happens while cases are solved."""

    def __init__(self, progress: Any) -> None:
        self._progress, self._done, self._total, self.finished = progress, 0, 0, 0

    def hear(self, news: News) -> None:
        if news.kind == "begun":
            if self.finished:
                say(f"finished before, and kept: {self.finished}")
            say(f"to solve: {news.total}; workers: {news.workers}, CPU threads of each: {news.threads}")
            self._total = news.total
            self._progress("cases", 0, news.total)
        elif news.kind == "set_aside":
            say(f"Warning: {news.case}: a file lay in the place of an output that no finished case accounts for; it is "
                f"now {news.text}")
        elif news.kind == "worker" and news.event is not None and news.event.kind == "died":
            say(f"Warning: a worker was {news.event.text}; it is replaced, and its case tried again")
        elif news.kind == "kept":
            self.finished += 1
        elif news.kind in ("done", "failed"):
            self._done += 1
            self.finished += news.kind == "done"
            self._progress("cases", self._done, self._total)


def _show(manifest: Manifest, result: CohortResult, out: Path) -> None:
    rows = {case.name: case.row for case in manifest.cases}
    failed = sorted(result.errors, key=rows.__getitem__)
    for name in failed[:_MOST_SAID]:
        say(f"Failed: {name} (row {rows[name]}): {result.errors[name]}")
    if len(failed) > _MOST_SAID:
        say(f"... and {len(failed) - _MOST_SAID} more, see {result.tables[0]}")
    if failed:
        say(f"Error: {len(failed)} of {len(manifest.cases)} cases failed; where in the program is in {out / 'logs'}. "
            "The same command tries them again.")
    kept = f", {result.kept} of them by an earlier run" if result.kept else ""
    show_line(f"finished: {len(result.records)} of {len(manifest.cases)} cases{kept}")
    for path in result.tables:
        show_line(f"results: {path}")
