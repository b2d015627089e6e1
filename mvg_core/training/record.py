"""The record of a run: a line of JSON for every few steps, and one for every validation."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mvg_core.training import distributed
from mvg_core.training.writing import cannot_write


class Record:
    """Means over the steps since the last line, in `record.jsonl`; validations in `validation.jsonl`.

    Only process 0 writes.

    Args:
        folder: of the run.
        first: steps that are done already; lines about later steps, of a run that was killed after its last checkpoint,
            are removed, because these steps are taken again.
        every: steps between lines.
        say: what is done with each line beside writing it.
    """

    def __init__(self, folder: Path, first: int, every: int, say: Callable[[Mapping[str, Any]], None]) -> None:
        self.training, self.validation = folder / "record.jsonl", folder / "validation.jsonl"
        self.first, self.every, self._say = first, every, say
        self._started = time.perf_counter()
        self._seen: dict[str, list[float]] = {}
        self._writes = distributed.rank() == 0
        for path in (self.training, self.validation):
            if self._writes:
                _forget_after(path, first)

    def add(self, step: int, costs: Mapping[str, float], rate: float) -> None:
        """Take in what a step cost; write a line if it is time."""
        for name, value in costs.items():
            self._seen.setdefault(name, []).append(value)
        if step % self.every:
            return
        skipped = int(sum(self._seen.pop("skipped", [])))
        line: dict[str, Any] = {"step": step, **{name: _mean(values) for name, values in self._seen.items()}}
        if skipped:
            line["skipped"] = skipped
        line |= {"lr": rate, "steps_per_s": round((step - self.first) / (time.perf_counter() - self._started), 3)}
        self._seen.clear()
        self._write(self.training, line)

    def add_validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Write what a validation found; scores that no episode has are left out."""
        known = {name: round(value, 5) for name, value in scores.items() if math.isfinite(value)}
        self._write(self.validation, {"step": step, **known})

    def _write(self, path: Path, line: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(path, error) from error
        self._say(line)


def _mean(values: list[float]) -> float | None:
    """Of the finite ones; None if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return round(sum(finite) / len(finite), 5) if finite else None


def _forget_after(path: Path, step: int) -> None:
    """Remove the lines about later steps, and a line that was cut off."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
