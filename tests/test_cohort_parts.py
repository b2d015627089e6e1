"""Parts of a cohort that need no worker: scheduling, reading, checksums, logs, numbers of workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cohort_folder import write_scans

from mvg_core.cli.cohort import with_address
from mvg_core.cohort.cases import CohortCase
from mvg_core.cohort.crew import Event
from mvg_core.cohort.failures import private_traceback, short_reason
from mvg_core.cohort.reader import ExampleReader
from mvg_core.cohort.records import Checksums, Record, content_sha256
from mvg_core.cohort.schedule import solve_cases
from mvg_core.cohort.solver import Outcome, device_of_worker
from mvg_core.cohort.workers import Workforce, free_memory_bytes, workforce_here, workforce_on_cluster
from mvg_core.volume_io import VolumeWarning

# --- scheduling ---


class ScriptedCrew:
    """Workers whose fate is written down: `fate(worker, case or None while loading, attempt)` -> they live."""

    def __init__(self, fate: Callable[[int, str | None, int], bool]) -> None:
        self._fate, self._coming = fate, list[Event]()
        self.started, self.given = list[int](), list[tuple[str, int]]()

    def start(self, number: int) -> None:
        self.started.append(number)
        lives = self._fate(number, None, self.started.count(number))
        self._coming.append(Event("ready" if lives else "died", number, text="ended by SIGKILL"))

    def give(self, number: int, case: CohortCase, attempt: int) -> None:
        self.given.append((case.name, attempt))
        lives = self._fate(number, case.name, attempt)
        record = Record(case.name, {}, {}, {}, (), 0.0, attempt)
        self._coming.append(Event("solved", number, Outcome(case.name, record)) if lives else
                            Event("died", number, text="ended by SIGKILL"))

    def wait(self) -> list[Event]:
        assert self._coming, "waits for nobody"
        coming, self._coming = self._coming, []
        return coming

    def close(self) -> None:
        pass


def cases(*names: str) -> list[CohortCase]:
    return [CohortCase(name, 2, Path(name), (), f"{name}.nii") for name in names]


def solved(crew: ScriptedCrew, n_workers: int = 2, retries: int = 2) -> dict[str, Outcome]:
    outcomes = list(solve_cases(cases("a", "b", "c", "d"), crew, n_workers, retries=retries))
    assert len(outcomes) == len({one.case for one in outcomes})
    return {one.case: one for one in outcomes}


def test_every_case_is_solved_once_and_nobody_is_started_in_vain() -> None:
    crew = ScriptedCrew(lambda *_: True)
    assert set(solved(crew, n_workers=9)) == {"a", "b", "c", "d"}
    assert crew.started == [0, 1, 2, 3]
    assert sorted(crew.given) == [(name, 1) for name in "abcd"]


def test_the_case_of_a_dead_worker_is_tried_again_after_the_others() -> None:
    crew = ScriptedCrew(lambda worker, case, attempt: (case, attempt) != ("a", 1))
    outcomes = solved(crew)
    assert [name for name, one in outcomes.items() if one.record is None] == []
    assert crew.given[-1] == ("a", 2)
    assert len(crew.given) == 5


def test_a_case_that_kills_its_workers_fails_and_the_others_do_not() -> None:
    crew = ScriptedCrew(lambda worker, case, attempt: case != "b")
    outcomes = solved(crew, retries=1)
    assert [name for name, one in outcomes.items() if one.record is None] == ["b"]
    assert "ended by SIGKILL, 2 times" in outcomes["b"].error
    assert crew.given.count(("b", 1)) == crew.given.count(("b", 2)) == 1


def test_a_worker_that_always_dies_while_loading_is_done_without() -> None:
    crew = ScriptedCrew(lambda worker, case, attempt: worker == 0)
    assert len(solved(crew)) == 4
    assert crew.started.count(1) <= 3
    with pytest.raises(RuntimeError, match="no worker lives long enough"):
        solved(ScriptedCrew(lambda *_: False))


def test_a_network_that_cannot_be_loaded_ends_the_run() -> None:
    crew = ScriptedCrew(lambda *_: True)
    crew.wait = lambda: [Event("unable", 0, text="no such device")]
    with pytest.raises(RuntimeError, match="no such device"):
        solved(crew)


# --- how many ---


@pytest.mark.parametrize(("memory_gb", "cores", "n_cases", "wanted", "expected"), [
    (64, 16, 100, None, (8, 2)), (5, 16, 100, None, (2, 8)), (1, 4, 100, None, (1, 4)), (64, 4, 2, None, (2, 2)),
    (64, 4, 100, 3, (3, 1)), (1, 2, 100, 5, (5, 1)), (None, 2, 100, None, (2, 1)),
])
def test_workers_by_cores_and_memory(monkeypatch: pytest.MonkeyPatch, memory_gb: int | None, cores: int, n_cases: int,
                                     wanted: int | None, expected: tuple[int, int]) -> None:
    memory = None if memory_gb is None else memory_gb * 10**9
    monkeypatch.setattr("mvg_core.cohort.workers.free_memory_bytes", lambda: memory)
    monkeypatch.setattr("mvg_core.cohort.workers.usable_cores", lambda: cores)
    assert workforce_here(n_cases, wanted, None) == Workforce(*expected)


def test_workers_of_a_cluster_always_fit() -> None:
    def found(n_cases: int = 100, workers: int | None = None, threads: int | None = None, gpus: int = 0
              ) -> tuple[int, int]:
        force = workforce_on_cluster(n_cases, workers, threads, cpus=20, cpus_of_smallest=4, gpus=gpus)
        return force.workers, force.threads

    assert found() == (10, 2)
    assert found(gpus=2) == (2, 4)
    assert found(workers=9, gpus=2) == (2, 4)
    assert found(workers=50) == (20, 1)
    assert found(n_cases=3) == (3, 4)
    assert found(threads=6) == (3, 2)


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4000 kB\n")
    assert free_memory_bytes(tmp_path) == 4_096_000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) == 4_096_000
    (group / "memory.max").write_text("3000\n")
    (group / "memory.current").write_text("1000\n")
    assert free_memory_bytes(tmp_path) == 2000


def test_gpus_are_taken_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of_worker("auto", n) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [device_of_worker(device, 1) for device in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [device_of_worker(device, 1) for device in ("auto", "cuda")] == ["auto", "cuda"]


@pytest.mark.parametrize(("given", "expected"), [
    (["--ray"], ["--ray=local"]), (["--ray", "auto"], ["--ray=auto"]), (["--ray", "host:6379"], ["--ray=host:6379"]),
    (["--ray", "list.csv"], ["--ray=local", "list.csv"]), (["--ray", "--out", "d"], ["--ray=local", "--out", "d"]),
    (["--ray=auto", "a"], ["--ray=auto", "a"]), (["--", "--ray"], ["--", "--ray"]),
])
def test_the_address_of_ray_may_be_left_out(given: list[str], expected: list[str]) -> None:
    assert with_address(given) == expected


# --- reading, checksums, logs ---


def test_examples_are_read_once_and_forgotten_when_the_next_case_has_others(tmp_path: Path) -> None:
    write_scans(tmp_path, ["p1"])
    image, label, query = (tmp_path / f"{name}.nii.gz" for name in ("example", "example_label", "p1"))
    case = CohortCase("p1", 2, query, ((image, label),), "p1.nii")
    reader = ExampleReader()
    reader.begin(case)
    kept = reader(image, None)
    assert reader(image, None) is kept
    assert reader(query, None) is not reader(query, None)
    reader.begin(case)
    assert reader(image, None) is kept
    image.write_bytes(query.read_bytes())
    assert np.array_equal(reader(image, None).array, reader(query, None).array)
    kept = reader(image, None)
    reader.begin(replace(case, references=()))
    reader.begin(case)
    assert reader(image, None) is not kept


def test_a_kept_example_warns_every_time(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    path = tmp_path / "colour.png"
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), path)
    reader = ExampleReader()
    reader.begin(CohortCase("a", 2, tmp_path / "query.png", ((path, path),), "a.png"))
    for _ in range(2):
        with pytest.warns(VolumeWarning, match="luminance"):
            reader(path, None)


def test_a_folder_is_the_same_while_its_files_are(tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for name in "ab":
        (series / name).write_text(name)
    recorded = Checksums().of_input(series)
    assert Checksums().is_same(recorded, series)
    moved = series.rename(tmp_path / "elsewhere")
    assert Checksums().is_same(recorded, moved)
    (moved / "b").write_text("c")
    assert not Checksums().is_same(recorded, moved)
    (moved / "b").write_text("b")
    (moved / "b").rename(moved / "c")
    assert content_sha256(moved) != recorded["sha256"]


def test_records_that_cannot_be_used_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert Record.read(path) is None
    record = Record("a", {"task": "x"}, {}, {"a.nii": "0"}, ({"frame": None},), 1.5)
    record.write(path)
    assert Record.read(path) == record
    whole = path.read_text()
    for damaged in (whole[:-20], "[]", "{}", whole.replace('"version": 1', '"version": 2')):
        path.write_text(damaged)
        assert Record.read(path) is None


def test_logs_hold_no_message() -> None:
    def fail() -> None:
        try:
            raise KeyError("DOE^JANE")
        except KeyError as error:
            raise ValueError("/scans/DOE^JANE.nii.gz is empty") from error

    with pytest.raises(ValueError, match="is empty") as caught:
        fail()
    text = private_traceback(caught.value)
    assert short_reason(caught.value) == "/scans/DOE^JANE.nii.gz is empty"
    assert "is empty" not in text.replace('raise ValueError("/scans/DOE^JANE.nii.gz is empty")', "")
    assert "builtins.ValueError" in text
    assert "builtins.KeyError" in text
    assert "test_cohort_parts.py" in text
