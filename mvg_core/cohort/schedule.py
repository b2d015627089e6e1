"""Which worker solves which case when, and what happens when one dies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from mvg_core.cohort.cases import CohortCase
from mvg_core.cohort.crew import Crew, Event
from mvg_core.cohort.solver import Outcome


def solve_cases(cases: Sequence[CohortCase], crew: Crew, n_workers: int, *, retries: int,
                told: Callable[[Event], None] | None = None) -> Iterator[Outcome]:
    """Solve cases, and yield what became of each as soon as it is known.

    A case whose worker dies is tried again after all others, by then perhaps with more memory; its worker is replaced.

    Args:
        cases: in the order in which they are begun.
        crew: nobody started yet; the caller closes it.
        n_workers: most workers at a time.
        retries: how often a case is tried again.
        told: hears of every event of the workers.

    Raises:
        RuntimeError: no worker can load the network.
    """
    schedule = _Schedule(cases, crew, retries)
    schedule.begin(n_workers)
    while schedule.is_open():
        schedule.hand_out()
        for event in crew.wait():
            if told is not None:
                told(event)
            outcome = schedule.heard(event)
            if outcome is not None:
                yield outcome


class _Schedule:
    """Cases that wait, and what every worker is at: loading, idle or busy."""

    def __init__(self, cases: Sequence[CohortCase], crew: Crew, retries: int) -> None:
        self._crew, self._retries = crew, retries
        self._waiting = deque((case, 1) for case in cases)
        self._busy: dict[int, tuple[CohortCase, int]] = {}
        self._idle, self._loading = set[int](), set[int]()
        self._deaths_while_loading: dict[int, int] = {}

    def begin(self, n_workers: int) -> None:
        """Start as many workers as there is work for."""
        for number in range(min(n_workers, len(self._waiting))):
            self._start(number)

    def is_open(self) -> bool:
        """Whether some case has no outcome yet."""
        return bool(self._waiting or self._busy)

    def hand_out(self) -> None:
        """Give every idle worker a case."""
        while self._waiting and self._idle:
            number = self._idle.pop()
            self._busy[number] = self._waiting.popleft()
            self._crew.give(number, *self._busy[number])

    def heard(self, event: Event) -> Outcome | None:
        """Take note of an event; the outcome of a case, if it brings one."""
        if event.kind == "unable":
            raise RuntimeError(f"a worker cannot load the network: {event.text}")
        if event.kind == "died":
            return self._bury(event)
        self._loading.discard(event.worker)
        self._busy.pop(event.worker, None)
        self._idle.add(event.worker)
        return event.outcome

    def _bury(self, event: Event) -> Outcome | None:
        number, outcome = event.worker, None
        was_loading = number in self._loading
        self._loading.discard(number)
        self._idle.discard(number)
        if number in self._busy:
            case, attempt = self._busy.pop(number)
            if attempt <= self._retries:
                self._waiting.append((case, attempt + 1))
            else:
                outcome = Outcome(case.name, error=f"its worker was {event.text}, {attempt} times: give the run more "
                                                   "memory, or use fewer --workers")
        if was_loading:
            self._deaths_while_loading[number] = self._deaths_while_loading.get(number, 0) + 1
        if self._waiting and self._deaths_while_loading.get(number, 0) <= self._retries:
            self._start(number)
        if self._waiting and not (self._busy or self._idle or self._loading):
            raise RuntimeError(f"no worker lives long enough to load the network (the last was {event.text}): give the "
                               "run more memory, or use fewer --workers")
        return outcome

    def _start(self, number: int) -> None:
        self._loading.add(number)
        self._crew.start(number)
