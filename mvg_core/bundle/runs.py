"""What a training of the bundle starts with, where it works, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mvg_core.network.checkpoint import read_state
from mvg_core.network.errors import CheckpointError
from mvg_core.report import temporary_beside
from mvg_core.training import distributed
from mvg_core.training.checkpoints import RunFolder
from mvg_core.training.datalist import files_of
from mvg_core.weights import find_weights

Network = TypeVar("Network", bound=nn.Module)


def with_weights(network: Network, weights: str | PathLike[str] | None) -> Network:
    """The same network with weights from a file; None leaves its own.

    Raises:
        WeightsError: no such file, or it is not the one whose checksum was recorded.
        CheckpointError: it is damaged, or belongs to another network.
    """
    if weights is None:
        return network
    path = find_weights(weights)
    try:
        network.load_state_dict(read_state(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except RuntimeError as error:  # torch lists every name that does not fit
        raise CheckpointError(f"{path} does not fit the network of the config ({str(error).splitlines()[0]}): change "
                              "--initial or --network_def#config") from error
    return network


def run_folder(parent: str | PathLike[str], items: Sequence[Mapping[str, Any]]) -> Path:
    """A folder for training on exactly these items: the same command goes on in it, another data set gets its own.

    Args:
        parent: holds the folders of all runs.
        items: of the data set; their files count with size and time of change.
    """
    facts = [[dict(item), [_state(Path(file)) for file in files_of(item)]] for item in items]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return Path(parent) / f"run-{digest[:12]}"


def keep_result(run: RunFolder, path: str | PathLike[str]) -> None:
    """Copy the weights of a finished run, the best where there was a validation, to where the bundle's user looks.

    Raises:
        OSError: no space, no permission; an older file is kept.
    """
    if distributed.rank() > 0:
        return
    path = Path(path)
    source = run.best if run.best.is_file() else run.weights
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"weights: {path} (from {source})")


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
