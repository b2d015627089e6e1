"""A cohort from manifest to table: what is finished stays, the rest is solved, what fails is told at the end."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mvg_core.cohort.cases import CohortCase, CohortSettings
from mvg_core.cohort.checks import check_cohort
from mvg_core.cohort.crew import Crew, Event
from mvg_core.cohort.manifest import Manifest, ManifestError
from mvg_core.cohort.processes import ProcessCrew
from mvg_core.cohort.records import Checksums, Record, damaged_outputs, difference, set_aside
from mvg_core.cohort.results import write_results
from mvg_core.cohort.schedule import solve_cases
from mvg_core.cohort.workers import Workforce, workforce_here, workforce_on_cluster
from mvg_core.volume_io import VolumeWriteError

_LEFT_OVER = re.compile(r"\.[0-9a-f]{32}(\.[\w.]*)?")
"""Names of files that were being written, see `report.temporary_beside`."""


@dataclass(frozen=True)
class Workers:
    """Who solves the cases.

    Attributes:
        workers: at a time; None chooses.
        threads: CPU threads of all together; None takes all cores.
        ray: address of a Ray cluster, or `local`; None takes processes of this machine.
        retries: how often a case is tried again whose worker died.
    """

    workers: int | None = None
    threads: int | None = None
    ray: str | None = None
    retries: int = 2


@dataclass(frozen=True)
class News:
    """What happens during a run.

    Attributes:
        kind: `kept` (finished by an earlier run), `set_aside` (a file in the place of an output was moved), `begun`
            (all cases are known, and the workers are being started), `worker` (see `event`), `done`, `failed`.
        case: its name.
        text: where the file is now, or why the case failed.
        event: of a worker.
        total: of `begun`, how many cases are to be solved.
        workers: of `begun`.
        threads: of `begun`, of each worker.
    """

    kind: Literal["kept", "set_aside", "begun", "worker", "done", "failed"]
    case: str = ""
    text: str = ""
    event: Event | None = None
    total: int = 0
    workers: int = 0
    threads: int = 0


@dataclass(frozen=True)
class CohortResult:
    """What a run left behind.

    Attributes:
        records: of finished cases, also of earlier runs.
        errors: of failed cases, one line each.
        kept: how many of the records are of earlier runs.
        tables: files with the results.
    """

    records: Mapping[str, Record]
    errors: Mapping[str, str]
    kept: int
    tables: tuple[Path, ...]


def run_cohort(manifest: Manifest, settings: CohortSettings, workers: Workers | None = None, *,
               overwrite: bool = False, told: Callable[[News], None] | None = None) -> CohortResult:
    """Solve every case of a manifest that is not finished yet.

    The table of results is written whatever happens, also when the run is interrupted; the same call goes on with it.
    Workers are spawned processes: a script that calls this guards its main part by `if __name__ == "__main__":`.

    Args:
        manifest: see `read_manifest`.
        settings: what all cases share; `threads` is chosen here.
        workers: who solves the cases.
        overwrite: solve again what was made by other settings or of other files.
        told: hears what happens.

    Raises:
        ManifestError: the manifest cannot be run, or the folder holds a case that was made otherwise.
        VolumeWriteError: a folder cannot be written to, or another run is writing to it.
        RuntimeError, ConnectionError: the workers cannot be started.
    """
    workers, told = workers or Workers(), told or (lambda _: None)
    check_cohort(manifest, settings)
    with _only_run(settings.out / "records"):
        run = _Run(manifest, settings, told)
        run.look(overwrite)
        _sweep(manifest, settings)
        try:
            run.solve(workers)
        finally:
            _sweep(manifest, settings)
            tables = write_results(settings.out, manifest.cases, run.records, run.errors)
    return CohortResult(run.records, run.errors, run.kept, tuple(tables))


class _Run:
    """What is known so far."""

    def __init__(self, manifest: Manifest, settings: CohortSettings, told: Callable[[News], None]) -> None:
        self._manifest, self._settings, self._told = manifest, settings, told
        self._to_do: list[CohortCase] = []
        self.records: dict[str, Record] = {}
        self.errors: dict[str, str] = {}
        self.kept = 0

    def look(self, overwrite: bool) -> None:
        """Find out what earlier runs have finished, and make room for the rest."""
        checksums, settings = Checksums(), self._settings
        found = {case.name: Record.read(settings.record_of(case)) for case in self._manifest.cases}
        if not overwrite:
            self._refuse_others(found, checksums)
        for case in self._manifest.cases:
            record = found[case.name]
            fits = record is not None and (not overwrite or difference(record, case, settings, checksums) is None)
            if record is not None and fits and not damaged_outputs(record, settings.out):
                self.records[case.name] = record
                self._told(News("kept", case.name))
                continue
            self._make_room(case, record)
            self._to_do.append(case)
        self.kept = len(self.records)

    def solve(self, workers: Workers) -> None:
        """Solve what is left."""
        if not self._to_do:
            return
        with _crew(self._settings, workers, len(self._to_do)) as (crew, force):
            self._told(News("begun", total=len(self._to_do), workers=force.workers, threads=force.threads))
            for outcome in solve_cases(self._to_do, crew, force.workers, retries=workers.retries,
                                       told=lambda event: self._told(News("worker", event=event))):
                if outcome.record is None:
                    self.errors[outcome.case] = outcome.error
                    self._told(News("failed", outcome.case, outcome.error))
                else:
                    self.records[outcome.case] = outcome.record
                    self._told(News("done", outcome.case))

    def _refuse_others(self, found: Mapping[str, Record | None], checksums: Checksums) -> None:
        for case in self._manifest.cases:
            record = found[case.name]
            what = None if record is None else difference(record, case, self._settings, checksums)
            if what is not None:
                raise ManifestError(f"{self._manifest.path}, row {case.row}: {self._settings.out} holds an answer for "
                                    f"{case.name!r} that was made with {what}: choose another folder, or solve again "
                                    "what does not fit with --overwrite")

    def _make_room(self, case: CohortCase, record: Record | None) -> None:
        """Take the record away, and move files that are not what it says: somebody may have corrected them."""
        settings = self._settings
        settings.record_of(case).unlink(missing_ok=True)
        names = {path.relative_to(settings.out).as_posix() for path in case.outputs(settings).given().values()}
        known = set() if record is None else set(record.outputs)
        vouched_for = set() if record is None else known - set(damaged_outputs(record, settings.out))
        for name in sorted((names | known) - vouched_for):
            moved = set_aside(settings.out / name, settings.out)
            if moved is not None:
                self._told(News("set_aside", case.name, str(moved)))


@contextlib.contextmanager
def _crew(settings: CohortSettings, wanted: Workers, n_cases: int) -> Iterator[tuple[Crew, Workforce]]:
    """Workers that are about to be started, and how many; they end with the context."""
    here = workforce_here(n_cases, wanted.workers, wanted.threads)
    if wanted.ray is None:
        crew = ProcessCrew(replace(settings, threads=here.threads))
        try:
            yield crew, here
        finally:
            crew.close()
        return
    with _ray_crew(settings, wanted, n_cases, here) as found:
        yield found


@contextlib.contextmanager
def _ray_crew(settings: CohortSettings, wanted: Workers, n_cases: int, here: Workforce
              ) -> Iterator[tuple[Crew, Workforce]]:
    from mvg_core.cohort import ray_crew

    assert wanted.ray is not None
    joined = ray_crew.connect(wanted.ray, here.workers * here.threads)
    try:
        cpus, smallest, gpus = ray_crew.resources()
        gpus = gpus if settings.device.startswith(("auto", "cuda")) else 0
        if settings.device.startswith("cuda") and not gpus:
            raise ValueError(f"device {settings.device!r}: the Ray cluster has no GPU: use 'auto' or 'cpu'")
        is_local = wanted.ray == ray_crew.LOCAL
        force = workforce_on_cluster(n_cases, here.workers if is_local and not gpus else wanted.workers, wanted.threads,
                                     cpus=cpus, cpus_of_smallest=smallest, gpus=gpus)
        crew = ray_crew.RayCrew(replace(settings, threads=force.threads), gpus=1 if gpus else 0)
        try:
            yield crew, force
        finally:
            crew.close()
    finally:
        if joined:
            ray_crew.disconnect()


@contextlib.contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Within it no other run can write to the folder; the system ends that with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VolumeWriteError(f"folder {folder.parent}: another run is writing to it: wait for its end, or choose "
                                   "another folder") from None
        except OSError:  # a network drive without locks
            pass
        yield


def _sweep(manifest: Manifest, settings: CohortSettings) -> None:
    """Remove what workers that were killed had begun to write."""
    folders = {settings.out / "records", *((settings.out / case.answer).parent for case in manifest.cases)}
    for path in [path for folder in folders for path in folder.iterdir() if _LEFT_OVER.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
