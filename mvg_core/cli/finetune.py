"""`mvg finetune`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from mvg_core.cli.application import app
from mvg_core.cli.terminal import (
    SHIPPED_WEIGHTS,
    Command,
    Debug,
    Device,
    Threads,
    Weights,
    need_torch,
    show_line,
    spoken_warnings,
)


@app.command(cls=Command)
def finetune(
    datalist: Annotated[Path, typer.Argument(metavar="LIST", help="Datalist (JSON) of your own solved cases.")],
    out: Annotated[Path, typer.Option(
        metavar="FOLDER", help="Where the run and its result, model.pt, go. The same command goes on with a run.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Most steps.", show_default="300")] = None,
    minutes: Annotated[float | None, typer.Option(metavar="N", help="End after about so many minutes.")] = None,
    adapters: Annotated[int, typer.Option(
        metavar="RANK", min=0, help="Learn low-rank adapters of this rank instead of all weights.")] = 0,
    weights: Weights = SHIPPED_WEIGHTS,
    device: Device = "auto",
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Teach the network your own kind of cases: minutes on a CPU, from 2 to some 20 labelled cases."""
    need_torch("fine-tuning")
    if missing := [name for name in ("monai", "ignite") if importlib.util.find_spec(name) is None]:
        raise RuntimeError(f"fine-tuning needs the package {missing[0]}: pip install 'mvg-core[train]' from a checkout "
                           "or wheel, for example `pip install '.[train]'`")
    import torch

    from mvg_core.training import finetune as tuning

    settings = tuning.FinetuneConfig(minutes=minutes, adapters=adapters, **({} if steps is None else {"steps": steps}))
    if threads is not None:
        torch.set_num_threads(threads)
    with spoken_warnings():
        found = tuning.finetune(weights, datalist, settings, out, device=device)
    where = f"{found.held_out} held-out cases" if found.held_out else "the cases themselves, none was held out"
    show_line(f"score on {where}: {found.score[0]:.3f} before, {found.score[1]:.3f} after {found.steps} steps")
    if not found.steps:
        show_line("fine-tuning found nothing better: the result holds the weights it started from")
    show_line(f"weights: {found.path} ({found.seconds / 60:.1f} min)")
