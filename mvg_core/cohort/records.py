"""The record of a finished case: what made it, and the checksums that tell whether it is still there.

It is written last and at once, so a case without one is not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvg_core.cohort.cases import CohortCase, CohortSettings
from mvg_core.report import write_report
from mvg_core.weights import file_sha256

VERSION = 1


@dataclass(frozen=True)
class Record:
    """A finished case.

    Attributes:
        case: its name.
        choices: see `CohortCase.choices`.
        inputs: role -> path, stamp and SHA-256 of what was read.
        outputs: path relative to the cohort's folder -> SHA-256; as many as there are frames and kinds.
        reports: of each frame, what `mvg predict --report` says.
        seconds: from the start of reading to the end of writing.
        attempt: 1 for the first.
    """

    case: str
    choices: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]
    outputs: Mapping[str, str]
    reports: tuple[Mapping[str, Any], ...]
    seconds: float
    attempt: int = 1

    def write(self, path: Path) -> None:
        """Write it whole, or not at all."""
        write_report(path, {"version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None if there is none that can be used."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != VERSION:
                return None
            return cls(**{**content, "reports": tuple(content["reports"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


class Checksums:
    """SHA-256 of files and folders; what has not changed since is not read again."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str], str] = {}

    def of_input(self, path: Path) -> dict[str, str]:
        """What a record keeps of an input."""
        stamp = stamp_of(path)
        return {"path": str(path), "stamp": stamp, "sha256": self._sha256(path, stamp)}

    def is_same(self, recorded: Mapping[str, str], path: Path) -> bool:
        """Whether an input is what it was; it may have moved."""
        stamp = stamp_of(path)
        if recorded.get("path") == str(path) and recorded.get("stamp") == stamp:
            return True
        return recorded.get("sha256") == self._sha256(path, stamp)

    def _sha256(self, path: Path, stamp: str) -> str:
        if (path, stamp) not in self._known:
            self._known[path, stamp] = content_sha256(path)
        return self._known[path, stamp]


def content_sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of the names and contents of its files."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for name, file in _files(path):
        digest.update(f"{name}\n{file_sha256(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def record_case(case: CohortCase, settings: CohortSettings, checksums: Checksums, reports: list[dict[str, Any]],
                seconds: float, attempt: int) -> Record:
    """The record of a case whose outputs have just been written."""
    # Relative to the cohort's folder, so that it can be moved.
    reports = [{**report, "outputs": {kind: Path(path).relative_to(settings.out).as_posix()
                                      for kind, path in report["outputs"].items()}} for report in reports]
    written = [name for report in reports for name in report["outputs"].values()]
    return Record(case.name, case.choices(settings),
                  {role: checksums.of_input(path) for role, path in case.inputs(settings).items()},
                  {name: content_sha256(settings.out / name) for name in written},
                  tuple(reports), round(seconds, 3), attempt)


def difference(record: Record, case: CohortCase, settings: CohortSettings, checksums: Checksums) -> str | None:
    """What made the recorded answer otherwise than `case` would be made now; None if nothing did."""
    before, now = dict(record.choices), case.choices(settings)
    for choice in now:
        if before.get(choice) != now[choice]:
            if choice == "weights":
                return f"weights {str(before.get(choice))[:12]}... instead of {now[choice][:12]}..."
            return f"{choice} {before.get(choice)!r} instead of {now[choice]!r}"
    inputs = case.inputs(settings)
    if set(inputs) != set(record.inputs):
        return f"{len(record.inputs)} input files instead of {len(inputs)}"
    for role, path in inputs.items():
        if not checksums.is_same(record.inputs[role], path):
            return f"another {role} than {path} holds now"
    return None


def damaged_outputs(record: Record, out: Path) -> list[str]:
    """Outputs that are missing or not what was recorded, relative to `out`."""
    return [name for name, sha256 in record.outputs.items()
            if not (out / name).exists() or content_sha256(out / name) != sha256]


def set_aside(path: Path, out: Path) -> Path | None:
    """Move what lies where an output will go into the folder `set_aside`; somebody may have corrected it by hand.

    Returns:
        Where it is now; None if nothing was there.
    """
    if not path.exists():
        return None
    folder = out / "set_aside" / path.relative_to(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    number, target = 1, folder / path.name
    while target.exists():
        number, target = number + 1, folder / f"{number}_{path.name}"
    shutil.move(path, target)
    return target


def stamp_of(path: Path) -> str:
    """Changes when a file, or the files of a folder, are written again; no file is read."""
    if not path.is_dir():
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    digest = hashlib.sha256()
    for name, file in _files(path):
        digest.update(f"{name}\n{stamp_of(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below a folder, by its relative name, in an order that does not depend on the system."""
    found = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)
