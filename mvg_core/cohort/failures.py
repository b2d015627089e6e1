"""What is said about a case that failed: one line for its owner, and a traceback that anybody may see."""

from __future__ import annotations

import traceback
from pathlib import Path

_PACKAGES = Path(__file__).resolve().parents[2]


def short_reason(error: BaseException) -> str:
    """One line; of an unexpected error also where it happened."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, IndexError, OSError, RuntimeError)):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}:{last.lineno})"


def private_traceback(error: BaseException) -> str:
    """The traceback without messages and values: they may quote file names and headers, and so patients."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"{type(cause).__module__}.{type(cause).__qualname__}")
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            lines.append(f"  {_place(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line}")
        following = cause.__cause__ or cause.__context__
        lines += ["because of"] if following is not None else []
        cause = following
    return "\n".join(["Messages are left out, because they may name patients.", *lines, ""])


def _place(filename: str) -> str:
    """A source file without the folder that the package is installed in."""
    path = Path(filename)
    return str(path.relative_to(_PACKAGES)) if path.is_relative_to(_PACKAGES) else "/".join(path.parts[-2:])
