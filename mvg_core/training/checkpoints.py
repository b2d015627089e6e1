"""The folder of a run: what is needed to resume it, and the weights that come out of it.

Every file is replaced only by a complete one, so a run can be killed at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mvg_core.network.checkpoint import load_safely, plain_state, save_atomically
from mvg_core.network.errors import CheckpointError
from mvg_core.training import distributed
from mvg_core.training.config import TrainingConfig
from mvg_core.training.learner import Learner
from mvg_core.training.writing import cannot_write


class RunFolder:
    """The files of a run; only process 0 writes them.

    Args:
        path: made if it is missing.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def last(self) -> Path:
        """Everything needed to resume."""
        return self.path / "last.pt"

    @property
    def weights(self) -> Path:
        """Averaged weights of the last checkpoint."""
        return self.path / "weights.pt"

    @property
    def best(self) -> Path:
        """Averaged weights of the best validation."""
        return self.path / "best.pt"

    def read_last(self, config: TrainingConfig) -> dict[str, Any] | None:
        """What `last.pt` holds, on the CPU; None in a new folder.

        Raises:
            CheckpointError: damaged, no checkpoint of a run, or of a run with another configuration.
        """
        if not self.last.is_file():
            return None
        stored = load_safely(self.last)
        needed = {"network", "average", "optimizer", "step", "config"}
        if not isinstance(stored, dict) or not needed <= set(stored):
            raise CheckpointError(f"{self.last} is no checkpoint of a run: it needs {sorted(needed)}. "
                                  "Train in another folder, or move this file away")
        try:
            before = TrainingConfig.from_json(json.loads(stored["config"]))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.last} was written by another version: {error}. Start in another folder, "
                                  f"from the weights in {self.weights.name}") from error
        differing = config.differences(before)
        draws = before.accumulate * stored.get("processes", 1), config.accumulate * distributed.n_processes()
        if draws[0] != draws[1]:
            differing.append(f"{draws[0]} draws a step (accumulate x processes) instead of {draws[1]}")
        if differing:
            raise CheckpointError(
                f"{self.last} belongs to another run, with {'; '.join(differing)}: use the same configuration to go "
                f"on, or start in another folder, from the weights in {self.weights.name}")
        return stored

    def restore(self, learner: Learner, stored: Mapping[str, Any]) -> None:
        """Put what `read_last` returned into a learner.

        Raises:
            CheckpointError: it belongs to another network.
        """
        try:
            learner.load_state_dict(stored)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())  # torch lists weights line by line
            raise CheckpointError(f"{self.last} does not fit this network: {reason}") from error

    def write_last(self, state: Mapping[str, Any]) -> None:
        """Replace `last.pt`; all processes call it with the whole state.

        Raises:
            CheckpointError: no space, or no permission; the checkpoint before is kept.
        """
        self._write(state, self.last)

    def write_weights(self, network: nn.Module, path: Path) -> None:
        """Replace `weights.pt` or `best.pt` by a network's weights in half precision; all processes call it.

        Raises:
            CheckpointError: no space, or no permission; the file before is kept.
        """
        state = distributed.whole(plain_state(network))
        self._write({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, path)

    def _write(self, state: Mapping[str, Any], path: Path) -> None:
        if distributed.rank() != 0:
            return
        try:
            save_atomically(state, path)
        except (OSError, RuntimeError) as error:
            raise cannot_write(path, error) from error


def same_step_everywhere(step: int, folder: Path) -> None:
    """Check that all processes read the same checkpoint.

    Raises:
        RuntimeError: they did not.
    """
    steps = distributed.all_values(step)
    if len(set(steps)) > 1:
        raise RuntimeError(f"processes found different checkpoints in {folder} (steps {steps}): all of them must see "
                           "one and the same folder")
