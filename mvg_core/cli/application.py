"""The application that the commands of `mvg` register with."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from mvg_core import __version__

app = typer.Typer(name="mvg", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Medical imaging tasks from solved examples: show one labelled slice or volume, get the rest.")

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
