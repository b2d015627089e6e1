"""What all tests share: the marker of tests that need ../shared, and Hypothesis settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# No deadline: the machine may be busy. In CI the same examples every time, so that a failure can be repeated.
settings.register_profile("mvg", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mvg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `shared` where the folder is missing."""
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"needs {SHARED}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests needed ../shared, and whether they ran."""

    def count(*outcomes: str) -> int:
        reports = [report for outcome in outcomes for report in terminalreporter.stats.get(outcome, [])]
        return len({report.nodeid for report in reports if "shared" in getattr(report, "keywords", ())})

    skipped, ran = count("skipped"), count("passed", "failed", "error", "xfailed", "xpassed")
    where = "found" if SHARED.is_dir() else "missing"
    terminalreporter.write_line(f"tests marked 'shared' (../shared {where}): {ran} ran, {skipped} skipped")


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder ../shared; only for tests marked `shared`."""
    return SHARED
