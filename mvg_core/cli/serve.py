"""`mvg serve`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from mvg_core.cli.application import app
from mvg_core.cli.terminal import (
    SHIPPED_WEIGHTS,
    Backend,
    BackendName,
    Command,
    Debug,
    Device,
    Precision,
    PrecisionName,
    Threads,
    Weights,
    say,
)


@app.command(cls=Command)
def serve(
    worker: Annotated[bool, typer.Option(
        "--worker", help="Work for the program that started this one: on 127.0.0.1 and a free port, until it ends.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(
        min=0, max=65535, help="0 takes a free one.", show_default="8642; with --worker 0")] = None,
    key_file: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Holds the key that requests must bring; or set MVG_API_KEY. Without either, only this "
        "machine is served, with a key made up and printed.")] = None,
    weights: Weights = SHIPPED_WEIGHTS,
    device: Device = "auto",
    threads: Threads = None,
    backend: Backend = BackendName.auto,
    precision: Precision = PrecisionName.auto,
    memory: Annotated[int, typer.Option(
        metavar="MB", min=1, help="Most memory for volumes and answers; computing takes more.")] = 4096,
    max_upload: Annotated[int, typer.Option(metavar="MB", min=1, help="Largest volume that is taken.")] = 2048,
    queue: Annotated[int, typer.Option(metavar="N", min=1, help="Jobs that may wait.")] = 8,
    idle_minutes: Annotated[float | None, typer.Option(
        metavar="MIN", min=0.01, help="End after so long without work.", show_default="never")] = None,
    debug: Debug = False,
) -> None:
    """Solve images for other programs over HTTP, such as the 3D Slicer module: on this machine or as a remote server.

    Prints one line of JSON (url, token, pid, protocol) when it is ready.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(f"mvg serve needs {package}: pip install 'mvg-core[server]' from a checkout or wheel, "
                               "for example `pip install '.[server]'`")
    from mvg_core.server.process import Start, read_key, serve
    from mvg_core.server.settings import MB, Limits
    from mvg_core.server.solver import Solver

    if worker and host != "127.0.0.1":
        raise ValueError("--worker serves the program that started it, on 127.0.0.1: leave out --host")
    start = Start(host, (0 if worker else 8642) if port is None else port, worker, idle_minutes,
                  "" if worker else read_key(key_file))
    start.check()
    limits = Limits(memory_bytes=memory * MB, volume_bytes=min(max_upload, memory) * MB, waiting_jobs=queue)
    solver = Solver.load(weights, backend=backend.value, device=device, threads=threads, precision=precision.value)
    if not start.is_local:
        say(f"Other machines can reach this server under the name or an address of this one ({start.host}, port "
            f"{start.port or 'below'}): put a reverse proxy with TLS before it, or images and the key travel in the "
            "open.")
    serve(solver, start, limits)
