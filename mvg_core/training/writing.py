"""What is said when a file of a run cannot be written."""

from __future__ import annotations

from pathlib import Path

from mvg_core.network.errors import CheckpointError


def cannot_write(path: Path, error: BaseException) -> CheckpointError:
    """An error of one line, to be raised from the one that was met."""
    kept = f"{path} is still the one before" if path.is_file() else "no file was left behind"
    return CheckpointError(f"{path} could not be written ({_reason(error)}); {kept}. Make space, or see to "
                           "permissions, and start the same command again to go on")


def _reason(error: BaseException) -> str:
    """The first line of the system's own error, if there is one behind it: torch turns a full disk into many lines."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    shown = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    return next(iter(shown.splitlines()), type(error).__name__)
