"""Workers that solve cases, wherever they are: what the scheduler needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mvg_core.cohort.cases import CohortCase

if TYPE_CHECKING:
    from mvg_core.cohort.solver import Outcome


@dataclass(frozen=True)
class Event:
    """Something that happened to a worker.

    Attributes:
        kind: `ready` (it has loaded the network), `unable` (it cannot load it), `solved` (with an outcome, which may be
            a failure), or `died`.
        worker: its number.
        outcome: of `solved`.
        text: why it is unable or how it died.
        pid: of a worker that is ready.
    """

    kind: Literal["ready", "unable", "solved", "died"]
    worker: int
    outcome: Outcome | None = None
    text: str = ""
    pid: int = 0


class Crew(Protocol):
    """Numbered workers."""

    def start(self, number: int) -> None:
        """Start a worker, or one in the place of a dead one; an event tells when it is ready."""
        ...

    def give(self, number: int, case: CohortCase, attempt: int) -> None:
        """Give a case to a worker that is ready and has none; an event tells what became of it."""
        ...

    def wait(self) -> list[Event]:
        """Wait until something has happened."""
        ...

    def close(self) -> None:
        """End all workers at once, also in the middle of a case."""
        ...
