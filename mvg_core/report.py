"""What a run leaves behind beside its images: checked before the work, written whole or not at all.

Also the names of labels that people keep beside their label maps.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from mvg_core import __version__
from mvg_core.clinical.terminology import Terminology
from mvg_core.tasks import MAX_LABEL
from mvg_core.volume_io import VolumeWriteError

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".png")
"""What `write_volume` writes."""
PACKAGES = ("numpy", "SimpleITK", "nibabel", "torch", "onnxruntime", "monai")
"""Their versions can change a result."""

Colour = tuple[int, int, int]

# Slicer's color tables: number, name, red, green, blue, opacity; the name may hold spaces.
_TABLE_LINE = re.compile(r"(\d+)\s+(.+?)(?:\s+(\d+)\s+(\d+)\s+(\d+)(?:\s+\d+)?)?")


class NamesError(ValueError):
    """A file of label names that cannot be understood."""


# ------------------------------------------------------------------------------------------------------------ files


def check_outputs(outputs: Iterable[tuple[Path, Iterable[str]]], *, inputs: Iterable[Path] = (),
                  overwrite: bool = False) -> None:
    """Find out before a long run whether its results can be written after it.

    Args:
        outputs: files to be, each with the suffixes that it may have.
        inputs: files that must not be replaced, whatever `overwrite` says.
        overwrite: existing outputs may be replaced.

    Raises:
        VolumeWriteError: a suffix that cannot be written, an existing file, a missing or unwritable folder, or an
            output that is also an input or another output.
    """
    read, seen = {path.resolve() for path in inputs}, set[Path]()
    for path, suffixes in outputs:
        if not path.name.lower().endswith(tuple(suffixes)):
            raise VolumeWriteError(f"{path}: cannot write this kind of file: choose {', '.join(suffixes)}")
        if path.is_dir():
            raise VolumeWriteError(f"{path} is a folder: give the name of a file")
        if path.resolve() in read:
            raise VolumeWriteError(f"{path} is read by this run, and would be replaced: choose another name")
        if path.resolve() in seen:
            raise VolumeWriteError(f"{path} is given for two outputs: give each its own name")
        seen.add(path.resolve())
        if path.exists() and not overwrite:
            raise VolumeWriteError(f"{path} exists: choose another name, or replace it with --overwrite")
        check_folder(path.parent, f"{path}: ")


def check_folder(folder: Path, what_for: str = "") -> None:
    """Raise VolumeWriteError, its message beginning with `what_for`, unless a file can be made in `folder`."""
    if not folder.is_dir():
        raise VolumeWriteError(f"{what_for}folder {folder} does not exist: create it first")
    try:
        # Permission bits do not tell (read-only mounts, network drives, administrators): trying does.
        with tempfile.NamedTemporaryFile(prefix=".mvg-", dir=folder):
            pass
    except OSError as error:
        raise VolumeWriteError(f"{what_for}folder {folder} cannot be written to ({error.strerror}): choose another"
                               ) from error


def temporary_beside(path: Path) -> Path:
    """A name in the same folder with the same suffix, so that the last step is a rename and cannot stop half way."""
    return path.with_name(f".{uuid4().hex}{path.suffix}")


def write_text(path: Path, text: str) -> None:
    """Write a text so that `path` holds all of it or is untouched.

    Raises:
        VolumeWriteError: no space, no permission.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise VolumeWriteError(f"{path}: could not be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON; see `write_text`."""
    write_text(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------------------------------------------------ facts


def package_versions() -> dict[str, str]:
    """Versions of mvg-core, Python and the installed packages that can change a result."""
    versions = {"mvg-core": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def peak_memory_mb() -> float | None:
    """Most memory that this process has held so far, in MB (10^6 bytes); None where the system does not tell."""
    if sys.platform == "linux":
        # Not getrusage: what it says includes the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found:
            return round(int(found[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 1e6, 1)


# ------------------------------------------------------------------------------------------------------------ names


@dataclass(frozen=True)
class _Names:
    """What a file of names says, each by the number of the label."""

    names: dict[int, str] = field(default_factory=dict)
    colours: dict[int, Colour] = field(default_factory=dict)
    terminology: dict[int, Terminology] = field(default_factory=dict)


def read_names(path: Path) -> tuple[dict[int, str], dict[int, Colour]]:
    """Names and colours of labels.

    Args:
        path: JSON or YAML that maps numbers to names, or to {"name": ..., "color": [red, green, blue], "terminology":
            ...} (see `read_terminology`); otherwise a text of lines `number name [red green blue [opacity]]` as 3D
            Slicer's color tables (.ctbl, .txt) have, `#` starting a comment.

    Returns:
        Label number -> name, and label number -> colour (0 to 255) where one is given. Numbers above 255 are left out:
        color tables may go on beyond what a label map here can hold.

    Raises:
        NamesError: missing file, or something else in it; says in which line.
    """
    read = _read_names(path)
    return read.names, read.colours


def read_terminology(path: Path) -> dict[int, Terminology]:
    """The coded terms of labels, where a file of names (JSON or YAML) gives them; see `Terminology.from_mapping`.

    Raises:
        NamesError: see `read_names`.
    """
    return _read_names(path).terminology


def _read_names(path: Path) -> _Names:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NamesError(f"{path}: the names cannot be read ({error}): give a JSON, YAML or text file") from error
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        read = _names_of_mapping(path, text)
    else:
        read = _Names(*_names_of_table(path, text))
    if not read.names:
        raise NamesError(f"{path}: holds no names: write, for example, {{\"1\": \"liver\"}}")
    return read


def _names_of_mapping(path: Path, text: str) -> _Names:
    try:
        content = yaml.safe_load(text)  # JSON is YAML too
    except yaml.YAMLError as error:
        raise NamesError(f"{path}: is neither JSON nor YAML ({str(error).splitlines()[0]}): correct it") from error
    if not isinstance(content, Mapping):
        raise NamesError(f"{path}: holds a {type(content).__name__}, needed numbers with names: {{\"1\": \"liver\"}}")
    read = _Names()
    for number, entry in content.items():
        known = {"name": entry} if isinstance(entry, str) else entry
        named = isinstance(known, Mapping) and isinstance(known.get("name"), str)
        if not str(number).isdecimal() or not named or not set(known) <= {"name", "color", "terminology"}:
            raise NamesError(f"{path}: {number!r}: {entry!r} is no label number with its name, such as \"1\": "
                             "\"liver\" or \"1\": {\"name\": \"liver\", \"color\": [221, 130, 101]}")
        if int(number) <= MAX_LABEL:
            _take_entry(path, read, int(number), known)
    return read


def _take_entry(path: Path, read: _Names, number: int, entry: Mapping[str, Any]) -> None:
    read.names[number] = entry["name"]
    colour = entry.get("color")
    if colour is not None:
        whole = isinstance(colour, list) and all(type(value) is int and 0 <= value <= 255 for value in colour)
        if not whole or len(colour) != 3:
            raise NamesError(f"{path}: label {number}: color is {colour!r}, needed [red, green, blue], each 0 to 255")
        read.colours[number] = (colour[0], colour[1], colour[2])
    if entry.get("terminology") is not None:
        try:
            read.terminology[number] = Terminology.from_mapping(entry["terminology"])
        except ValueError as error:
            raise NamesError(f"{path}: label {number}: {error}") from error


def _names_of_table(path: Path, text: str) -> tuple[dict[int, str], dict[int, Colour]]:
    names, colours = {}, {}
    for line_number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _TABLE_LINE.fullmatch(line)
        if found is None:
            raise NamesError(f"{path}: line {line_number} is {line[:60]!r}, needed number, name, red, green, blue, "
                             "opacity")
        number, name, *colour = found.groups()
        if int(number) > MAX_LABEL:
            continue
        names[int(number)] = name
        if colour[0] is not None:
            colours[int(number)] = (int(colour[0]), int(colour[1]), int(colour[2]))
    return names, colours
