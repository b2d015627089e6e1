"""Cohorts on a real Ray of this machine: two workers, one of which is killed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cohort_folder import of_example, write_manifest, write_scans
from test_cohort import kill_the_first_worker
from tiny import write_weights

from mvg_core.cohort import CohortResult, CohortSettings, News, Workers, read_manifest, run_cohort

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

NAMES = [f"p{number}" for number in range(5)]


@dataclass(frozen=True)
class RayStudy:
    """A finished cohort, and what was seen while it ran."""

    folder: Path
    result: CohortResult
    news: list[News]
    programs: set[str]
    listening: set[str]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RayStudy:
    folder = tmp_path_factory.mktemp("study")
    write_scans(folder, NAMES)
    (folder / "bad.nii.gz").write_bytes(b"no image")
    write_weights(folder / "tiny.pt")
    manifest = read_manifest(write_manifest(folder / "list.csv", of_example(*NAMES, "bad")))
    news: list[News] = []
    killed: list[int] = []
    programs, listening = set[str](), set[str]()

    def hear(one: News) -> None:
        news.append(one)
        if one.event is not None and one.event.kind == "ready":
            family = descendants(os.getpid())
            programs.update(program(pid) for pid in family)
            listening.update(address for pid in family for address in addresses(pid))
        kill_the_first_worker(one, killed)

    given = CohortSettings.create(folder / "out", str(folder / "tiny.pt"), "plain")
    result = run_cohort(manifest, given, Workers(2, threads=2, ray="local"), told=hear)
    return RayStudy(folder, result, news, programs, listening)


def test_a_killed_worker_costs_one_case_a_second_try_and_nothing_else(study: RayStudy) -> None:
    heard = [one.event.kind for one in study.news if one.event is not None]
    assert heard.count("died") == 1
    assert heard.count("ready") <= 3
    assert set(study.result.records) == set(NAMES)
    assert set(study.result.errors) == {"bad"}
    begun = next(one for one in study.news if one.kind == "begun")
    assert (begun.total, begun.workers, begun.threads) == (6, 2, 1)


@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="reads /proc")
def test_nothing_listens_to_other_machines_and_nothing_reports_home(study: RayStudy) -> None:
    assert any("raylet" in name for name in study.programs)
    # What is left of the dashboard serves no pages.
    assert all("--disable-frontend" in name for name in study.programs if "dashboard.py" in name)
    assert study.listening == {"127.0.0.1"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not is_joined()


def test_what_is_finished_needs_no_cluster(study: RayStudy) -> None:
    manifest = read_manifest(write_manifest(study.folder / "good.csv", of_example(*NAMES)))
    given = CohortSettings.create(study.folder / "out", str(study.folder / "tiny.pt"), "plain")
    assert run_cohort(manifest, given, Workers(ray="nowhere:1")).kept == 5
    assert not is_joined()


def test_a_ray_that_would_be_open_to_other_machines_is_not_started() -> None:
    code = ("import ray\nfrom mvg_core.cohort.ray_crew import connect\nprint(ray.util.get_node_ip_address())\n"
            "try:\n    connect('local', 1)\nexcept RuntimeError as error:\n    print(error)\n"
            "else:\n    ray.shutdown()")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if said.startswith("127.0.0.1\n"):
        pytest.skip("this machine has no other address")
    assert "instead of 127.0.0.1: set the environment variable" in said


def is_joined() -> bool:
    import ray

    return ray.is_initialized()


def descendants(pid: int) -> list[int]:
    """A process and everything that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [one for child in task.read_text().split() for one in descendants(int(child))]
    return found


def program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def addresses(pid: int) -> set[str]:
    """The addresses that a process listens on."""
    try:
        links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return set()
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                found.add(readable(fields[1].partition(":")[0]))
    return found


def readable(address: str) -> str:
    """An address as people write it; IPv4 in IPv6 as IPv4."""
    if len(address) == 32 and address.startswith("0" * 16 + "FFFF0000"):
        address = address[24:]
    return ".".join(str(int(address[at : at + 2], 16)) for at in (6, 4, 2, 0)) if len(address) == 8 else address
