"""`mvg make-datalist`: the list of a downloaded public data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvg_core.cli.application import app
from mvg_core.cli.terminal import Command, Debug, Overwrite, progress_bars, say, show_line


@app.command(cls=Command)
def make_datalist(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set, such as acdc; any other name lists them all.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The extracted download, or a folder above it.")],
    output: Annotated[Path, typer.Option(metavar="LIST", help="Datalist to write, .json.", show_default=False)],
    validation_share: Annotated[float, typer.Option(
        metavar="SHARE", help="Share of the training subjects to validate on, where the data set has no such split; "
                              "0 for none.")] = 0.1,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of the draw of those subjects.")] = 0,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """List a downloaded public data set for training: its images, labels, subjects and splits."""
    from mvg_core.report import check_outputs
    from mvg_core.training.makers import find_data_set
    from mvg_core.training.makers import make_datalist as make

    data_set = find_data_set(name)
    check_outputs([(output, (".json",))], overwrite=overwrite)
    with progress_bars("slices") as progress:
        made = make(name, folder, output, validation_share=validation_share, seed=seed, progress=progress)
    for remark in made.remarks:
        say(f"Note: {remark}")
    for split, (items, subjects) in made.counts.items():
        show_line(f"{split}: {items} items of {subjects} subjects")
    show_line(f"licence: {data_set.licence}; terms of use: {data_set.terms}")
    show_line(f"datalist: {output}")
