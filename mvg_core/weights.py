"""Where weight files are found: in the wheel, in the checkout, or in the user's own data folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

SHIPPED_NAME = "mvg_compact"
_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = (_PACKAGE / "_weights" / "model.pt", _PACKAGE.parent / "bundle" / "models" / "model.pt")
"""In an installed wheel, and in a checkout; they are the same file."""


class WeightsError(RuntimeError):
    """A weight file is missing, or is not the file that was recorded."""


def user_folder() -> Path:
    """The folder for a user's own weights and caches; not created here.

    `MVG_HOME` overrides the custom of the operating system.
    """
    if os.environ.get("MVG_HOME"):
        return Path(os.environ["MVG_HOME"]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "mvg"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mvg"
    return Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "mvg"


def onnx_folders(weights: Path) -> tuple[Path, ...]:
    """Where the ONNX files made from a weight file are looked for: beside it, in the package, in `user_folder()`."""
    return tuple(dict.fromkeys((weights.parent, _PACKAGE / "_weights", user_folder() / "onnx")))


def find_weights(name_or_path: str | os.PathLike[str] = SHIPPED_NAME) -> Path:
    """The weight file that a name or path means.

    Args:
        name_or_path: `mvg_compact`, the name of a file in `user_folder() / "weights"` without its suffix, or a path.

    Returns:
        A path whose checksum was compared with the recorded one, if there is a record (`<file>.sha256` beside it).

    Raises:
        WeightsError: nothing is there, or the file was changed since its checksum was recorded.
    """
    name = os.fspath(name_or_path)
    own = user_folder() / "weights" / f"{name}.pt"
    candidates = [own, *_SHIPPED] if name == SHIPPED_NAME else [Path(name).expanduser(), own]
    for path in candidates:
        if path.is_file():
            check_checksum(path)
            return path
    if name == SHIPPED_NAME:
        raise WeightsError(f"the weights {name!r} are in none of {', '.join(map(str, candidates))}: install the wheel "
                           "again, or restore the checkout with git")
    raise WeightsError(f"no weights {name!r}: use {SHIPPED_NAME!r}, a path to a .pt file, or put {own.name} into "
                       f"{own.parent}")


def read_numbers(path: Path) -> dict[str, Any]:
    """What was measured with a weight file: `<stem>.numbers.json` beside it; empty if that is about another file.

    Numbers are kept outside the weight file because they are measured after it is finished.
    """
    record = path.with_name(path.stem + ".numbers.json")
    if not record.is_file():
        return {}
    numbers = json.loads(record.read_text())
    return numbers if numbers.get("checkpoint_sha256") == file_sha256(path) else {}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def checksum_record(path: Path) -> Path:
    """Where the checksum of a file is recorded, as sha256sum writes it: `<file>.sha256` beside it."""
    return path.with_name(path.name + ".sha256")


def record_checksum(path: Path) -> Path:
    """Write the checksum of a file into its record, and return the record's path."""
    record = checksum_record(path)
    record.write_text(f"{file_sha256(path)}  {path.name}\n", encoding="utf-8")
    return record


def check_checksum(path: Path, remedy: str = "Restore the file (git checkout, or install the package again)") -> None:
    """Compare a file with its recorded checksum; without a record nothing is compared.

    Args:
        path: the file.
        remedy: what to do about a damaged file, for the message.

    Raises:
        WeightsError: they differ, or the record holds none.
    """
    record = checksum_record(path)
    if not record.is_file():
        return
    expected = record.read_text(encoding="utf-8").partition(" ")[0].strip()
    if (found := file_sha256(path)) != expected:
        raise WeightsError(f"{path} was changed or damaged: its SHA-256 is {found[:12]}..., {record.name} says "
                           f"{expected[:12] or 'nothing'}.... {remedy}")
