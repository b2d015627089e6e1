"""What a server allows, and how it was started."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MB = 10**6


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        memory_bytes: of all volumes and answers that are held.
        volume_bytes: of the voxels of one volume.
        json_bytes: of any other request.
        waiting_jobs: that may queue, beside the one that runs.
        waiting_previews: that may wait for their turn.
        kept_jobs: finished jobs that are remembered; the oldest go first.
        upload_seconds: without a single byte before an upload is given up.
        preview_seconds: that a preview may wait for its turn and its answer.

    Raises:
        ValueError: a number below 1.
    """

    memory_bytes: int = 4096 * MB
    volume_bytes: int = 2048 * MB
    json_bytes: int = 2**20
    waiting_jobs: int = 8
    waiting_previews: int = 4
    kept_jobs: int = 16
    upload_seconds: float = 30.0
    preview_seconds: float = 100.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        token: that every request but the first greeting must bring.
        is_worker: a local worker, which its parent may shut down.
    """

    token: str
    is_worker: bool = False
