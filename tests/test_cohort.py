"""Cohorts with real worker processes: nothing is lost when they are killed, and nothing is done twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohort_folder import of_example, write_manifest, write_scans
from tiny import write_weights
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.cohort import CohortResult, CohortSettings, ManifestError, News, Workers, read_manifest, run_cohort
from mvg_core.cohort.run import _only_run
from mvg_core.engine import VolumeEngine
from mvg_core.job import OutputFiles, PredictionJob
from mvg_core.volume_io import VolumeWriteError, read_volume

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = [f"p{number}" for number in range(5)]


@dataclass(frozen=True)
class Study:
    """Scans and a finished cohort of them; tests work on copies."""

    folder: Path
    result: CohortResult
    news: list[News]

    @property
    def out(self) -> Path:
        return self.folder / "out"


def settings(folder: Path, **others: Any) -> CohortSettings:
    return CohortSettings.create(folder / "out", str(folder / "tiny.pt"), "plain", **others)


def run(folder: Path, told: Callable[[News], None] | None = None, *, rows: list[dict[str, str]] | None = None,
        overwrite: bool = False, workers: Workers | None = None, **others: Any) -> tuple[CohortResult, list[News]]:
    """Run the manifest of a folder with one worker, unless told otherwise."""
    if rows is not None:
        write_manifest(folder / "list.csv", rows)
    news: list[News] = []

    def hear(one: News) -> None:
        news.append(one)
        if told is not None:
            told(one)

    result = run_cohort(read_manifest(folder / "list.csv"), settings(folder, **others),
                        workers or Workers(1, threads=1), overwrite=overwrite, told=hear)
    return result, news


def kill_the_first_worker(news: News, killed: list[int], after_s: float = 0.1) -> None:
    """SIGKILL for the first worker that is ready, when it has begun with a case."""
    if news.event is not None and news.event.kind == "ready" and not killed:
        killed.append(news.event.pid)
        threading.Timer(after_s, os.kill, (news.event.pid, signal.SIGKILL)).start()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Five good cases and a bad one, solved by two workers, one of which was killed."""
    folder = tmp_path_factory.mktemp("study")
    write_scans(folder, NAMES)
    (folder / "DOE_JANE.nii.gz").write_bytes(b"no image")
    write_weights(folder / "tiny.pt")
    rows = [*of_example(*NAMES[:2]), {**of_example("DOE_JANE")[0], "case": "bad"}, *of_example(*NAMES[2:])]
    killed: list[int] = []
    result, news = run(folder, lambda one: kill_the_first_worker(one, killed), rows=rows,
                       workers=Workers(2, threads=2), confidence=True)
    return Study(folder, result, news)


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Path:
    """The study in another folder, without the bad case: all is finished."""
    shutil.copytree(study.folder, tmp_path / "study")
    write_manifest(tmp_path / "study" / "list.csv", of_example(*NAMES))
    return tmp_path / "study"


def kinds(news: list[News]) -> list[tuple[str, str]]:
    return [(one.kind, one.case) for one in news if one.kind != "worker"]


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file of the cohort is written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "out").rglob("p*.*")}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in (folder / "out").rglob(".*") if path.name != ".lock"]


# --- a run ---


def test_a_killed_worker_costs_one_case_a_second_try_and_nothing_else(study: Study) -> None:
    heard = [one.event.kind for one in study.news if one.event is not None]
    assert heard.count("died") == 1
    assert heard.count("ready") <= 3  # the network is loaded once by each worker, and its replacement
    assert set(study.result.records) == set(NAMES)
    assert sum(record.attempt for record in study.result.records.values()) in (5, 6)  # the bad case may be the one
    assert set(study.result.errors) == {"bad"}
    assert leftovers(study.folder) == []
    assert not (study.out / "set_aside").exists()


def test_answers_are_those_of_the_same_prediction(study: Study, tmp_path: Path) -> None:
    example = (study.folder / "example.nii.gz", study.folder / "example_label.nii.gz")
    job = PredictionJob(study.folder / "p1.nii.gz", (example,), "segmentation", OutputFiles(tmp_path / "p1.nii.gz"))
    job.run(lambda: VolumeEngine.load(study.folder / "tiny.pt", "plain", threads=1))
    answer = read_volume(study.out / "p1.nii.gz")
    assert np.array_equal(answer.array, read_volume(tmp_path / "p1.nii.gz").array)
    assert answer.array.any()


def test_the_table_has_a_row_for_each_label_and_each_failure(study: Study) -> None:
    with (study.out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows if row["status"] == "failed"] == ["bad"]
    assert "DOE_JANE.nii.gz" in next(row["error"] for row in rows if row["case"] == "bad")
    row = next(row for row in rows if row["case"] == "p2" and row["label"] == "5")
    answer, sure = read_volume(study.out / "p2.nii.gz"), read_volume(study.out / "p2_confidence.nii.gz")
    voxels = int((answer.array == 5).sum())
    assert int(row["voxels"]) == voxels > 0
    assert float(row["volume_ml"]) == pytest.approx(voxels * 2.5e-3, abs=1e-4)
    assert float(row["mean_confidence"]) == pytest.approx(sure.array[answer.array == 5].mean(), abs=1e-4)
    assert float(row["seconds"]) > 0
    assert row["output"] == "p2.nii.gz"


def test_the_table_for_statistics_holds_the_same(study: Study) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(study.out / "results.parquet").to_pylist()
    with (study.out / "results.csv").open(newline="") as file:
        expected = [(row["case"], row["volume_ml"]) for row in csv.DictReader(file)]
    assert [(row["case"], "" if row["volume_ml"] is None else str(row["volume_ml"])) for row in rows] == expected


def test_logs_tell_where_but_not_whose(study: Study) -> None:
    text = (study.out / "logs" / "bad.log").read_text()
    assert "mvg_core/volume_io.py" in text
    assert "DOE" not in text
    assert str(study.folder) not in text
    assert [path.name for path in (study.out / "logs").iterdir()] == ["bad.log"]


# --- going on ---


def test_what_is_finished_is_never_done_again(copy: Path) -> None:
    before = states(copy)
    result, news = run(copy, confidence=True)
    assert kinds(news) == [("kept", name) for name in NAMES]
    assert result.kept == 5
    assert states(copy) == before
    assert (copy / "out/results.csv").is_file()


def test_damaged_missing_and_changed_cases_are_done_again(study: Study, copy: Path) -> None:
    out, whole = copy / "out", {name: read_volume(study.out / f"{name}.nii.gz").array for name in NAMES}
    content = (out / "p1.nii.gz").read_bytes()
    (out / "p1.nii.gz").write_bytes(content[: len(content) // 2])
    (out / "records/p2.json").unlink()
    (out / "p3.nii.gz").unlink()
    (out / ("." + 32 * "a" + ".nii.gz")).write_bytes(b"half")
    rows = of_example(*NAMES)
    rows[4]["window"] = "50 150"
    before = states(copy)
    _, news = run(copy, rows=rows, overwrite=True, confidence=True)
    assert [case for kind, case in kinds(news) if kind == "kept"] == ["p0"]
    assert {case for kind, case in kinds(news) if kind == "done"} == {"p1", "p2", "p3", "p4"}
    for name in ("p1", "p2", "p3"):
        assert np.array_equal(read_volume(out / f"{name}.nii.gz").array, whole[name])
    assert json.loads((out / "records/p4.json").read_text())["choices"]["window"] == [50, 150]
    # Whoever corrected an answer by hand finds it again.
    assert (out / "set_aside/p1.nii.gz").read_bytes() == content[: len(content) // 2]
    assert not (out / "set_aside/p4.nii.gz").exists()
    assert {name for name, state in states(copy).items() if before.get(name) == state} >= {
        "p0.nii.gz", "p0_confidence.nii.gz", "p0.json"}
    assert leftovers(copy) == []


@pytest.mark.parametrize(("what", "expected"), [
    ("preset", "row 2: .*'p0' that was made with preset 'plain' instead of 'fast'.*--overwrite"),
    ("weights", "row 2: .*weights .* instead of"),
    ("confidence", "row 2: .*outputs"),
    ("window", "row 4: .*window None instead of"),
    ("query", "row 3: .*another query than .*p1"),
    ("reference", "row 2: .*another reference 1 label than .*example_label"),
    ("references", "row 6: .*3 input files instead of 5"),
])
def test_other_settings_and_files_are_refused(copy: Path, what: str, expected: str) -> None:
    rows, changes = of_example(*NAMES), {}
    if what == "preset":
        changes = {"preset": "fast"}
    elif what == "weights":
        write_weights(copy / "tiny.pt", seed=1)
    elif what == "window":
        rows[2]["window"] = "50 150"
    elif what == "query":
        shutil.copy(copy / "p3.nii.gz", copy / "p1.nii.gz")
    elif what == "reference":
        shutil.copy(copy / "p1.nii.gz", copy / "example_label.nii.gz")
    elif what == "references":
        rows[4] |= {"reference_image": "example.nii.gz;p0.nii.gz", "reference_label": "example_label.nii.gz;p1.nii.gz"}
    before = states(copy)
    write_manifest(copy / "list.csv", rows)
    given = replace(settings(copy, confidence=what != "confidence"), **changes)
    with pytest.raises(ManifestError, match=expected):
        run_cohort(read_manifest(copy / "list.csv"), given)
    assert states(copy) == before


def test_two_runs_never_write_to_one_folder(copy: Path) -> None:
    with _only_run(copy / "out/records"), pytest.raises(VolumeWriteError, match="another run is writing"):
        run(copy, confidence=True)
    run(copy, confidence=True)


def test_weights_that_are_others_than_promised_are_refused(copy: Path) -> None:
    write_manifest(copy / "list.csv", of_example("p0"))
    promised = replace(settings(copy), weights_sha256="0" * 64, out=copy / "other")
    with pytest.raises(RuntimeError, match=r"cannot load the network.*other weights here"):
        run_cohort(read_manifest(copy / "list.csv"), promised, Workers(1))


# --- the command ---


def command(folder: Path, *more: object) -> list[str]:
    return [str(word) for word in ("cohort", folder / "list.csv", "--out", folder / "out", "--weights",
                                   folder / "tiny.pt", "--preset", "plain", "--workers", 1, "--threads", 1, *more)]


def test_the_command_reports_failures_at_the_end(copy: Path) -> None:
    shutil.copy(copy / "DOE_JANE.nii.gz", copy / "p5.nii.gz")
    write_manifest(copy / "list.csv", [{**row, "age": "7"} for row in of_example(*NAMES, "p5")])
    result = CliRunner().invoke(app, command(copy, "--confidence"), env={"COLUMNS": "500"})
    assert result.exit_code == 2, result.output
    for text in ("columns mean nothing here: age", "finished before, and kept: 5", "Failed: p5 (row 7): ",
                 "p5.nii.gz", "1 of 6 cases failed", "finished: 5 of 6 cases, 5 of them by an earlier run",
                 "results.csv"):
        assert text in result.output, result.output
    assert "Traceback" not in result.output


def test_the_command_refuses_a_bad_row_in_one_line(copy: Path) -> None:
    write_manifest(copy / "list.csv", of_example("p0", "p9"))
    result = CliRunner().invoke(app, command(copy, "--reference", "a.nii.gz", "b.nii.gz"), env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert "list.csv, row 3: query" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_interrupted_and_killed_runs_go_on(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    names = [f"p{number}" for number in range(14)]
    write_scans(folder, names, (32, 32, 24))
    write_manifest(folder / "list.csv", of_example(*names))
    shutil.copy(study.folder / "tiny.pt", folder)

    running, _ = start_and_wait_for(folder, n_records=2)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert " of 14 cases are finished and kept. The same command goes on" in said
    assert "Traceback" not in said
    with (folder / "out/results.csv").open(newline="") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"done", "not done"}
    kept = states(folder)

    running, workers = start_and_wait_for(folder, n_records=len(list((folder / "out/records").glob("*.json"))) + 2)
    running.kill()
    running.communicate(timeout=60)
    assert workers
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers):  # nobody writes on behind the back of the next run
        assert time.monotonic() < deadline
        time.sleep(0.05)
    recorded = {path.stem for path in (folder / "out/records").glob("*.json")}
    assert 4 <= len(recorded) < 14
    before = states(folder)
    assert all(before[name] == state for name, state in kept.items() if Path(name).suffix == ".json")

    result, news = run(folder)
    assert {case for kind, case in kinds(news) if kind == "kept"} == recorded
    assert set(result.records) == set(names)
    after = states(folder)
    assert all(after[f"{name}.json"] == before[f"{name}.json"] for name in recorded)
    assert leftovers(folder) == []


def start_and_wait_for(folder: Path, n_records: int) -> tuple[subprocess.Popen[str], list[int]]:
    """`mvg cohort` as a process of its own, and its workers, once so many cases are finished."""
    running = subprocess.Popen([sys.executable, "-m", "mvg_core", *command(folder)], cwd=REPOSITORY, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while len(list((folder / "out/records").glob("*.json"))) < n_records:
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    return running, [int(pid) for pid in children]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
