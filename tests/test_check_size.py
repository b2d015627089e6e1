"""The size check sees weights anywhere in the history, and only those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "scripts" / "check_size.py"
MB = 1_000_000


def git(repository: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(repository), *identity, *arguments], check=True, capture_output=True)


def commit(repository: Path, **sizes: int) -> None:
    """Commit files of random bytes, which git cannot compress; `a_pt=3` is a file a.pt of 3 bytes."""
    for name, size in sizes.items():
        (repository / name.replace("_", ".")).write_bytes(os.urandom(size))
    git(repository, "add", "--all")
    git(repository, "commit", "--message", "change", "--allow-empty")


def check_size(repository: Path, **limits_mb: float) -> subprocess.CompletedProcess[str]:
    options = [f"--max-{name}-mb={limit}" for name, limit in limits_mb.items()]
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--repository", str(repository), *options],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder


def test_a_repository_without_commits_is_small(repository: Path) -> None:
    finished = check_size(repository)
    assert finished.returncode == 0, finished.stderr
    assert "0.0 MB in 0 versions (at most 60 MB)" in finished.stdout
    assert "(at most 100 MB)" in finished.stdout


def test_every_version_counts_once(repository: Path) -> None:
    commit(repository, model_pt=2 * MB, notes_txt=3 * MB)
    commit(repository, model_pt=1 * MB)
    (repository / "copy.onnx").write_bytes((repository / "model.pt").read_bytes())
    commit(repository, golden_npz=500_000)
    finished = check_size(repository)
    assert finished.returncode == 0, finished.stderr
    assert "3.5 MB in 3 versions" in finished.stdout


def test_deleted_weights_still_count(repository: Path) -> None:
    commit(repository, model_pt=3 * MB)
    commit(repository, model_pt=2 * MB)
    git(repository, "rm", "--quiet", "model.pt")
    commit(repository)
    assert check_size(repository, weights=5.0).returncode == 0
    finished = check_size(repository, weights=4.9)
    assert finished.returncode == 1
    assert "take 5.0 MB, more than 4.9 MB" in finished.stderr
    assert "model.pt 3.0 MB, model.pt 2.0 MB" in finished.stderr


def test_staged_weights_count(repository: Path) -> None:
    commit(repository, notes_txt=1)
    (repository / "model.safetensors").write_bytes(os.urandom(2 * MB))
    git(repository, "add", "--all")
    finished = check_size(repository, weights=1)
    assert finished.returncode == 1
    assert "model.safetensors 2.0 MB" in finished.stderr


def test_a_large_git_folder_is_refused_whatever_it_holds(repository: Path) -> None:
    commit(repository, scan_bin=3 * MB)
    finished = check_size(repository, git=2.9)
    assert finished.returncode == 1
    assert "more than 2.9 MB" in finished.stderr
    assert "weight files" not in finished.stderr


def test_fresh_and_shallow_clones_can_be_checked(repository: Path, tmp_path: Path) -> None:
    commit(repository, model_pt=2 * MB)
    commit(repository, model_pt=1 * MB)
    git(tmp_path, "clone", "--quiet", repository.as_uri(), "full")
    git(tmp_path, "clone", "--quiet", "--depth", "1", repository.as_uri(), "shallow")
    assert "3.0 MB in 2 versions" in check_size(tmp_path / "full").stdout
    shallow = check_size(tmp_path / "shallow")
    assert shallow.returncode == 0, shallow.stderr
    assert "1.0 MB in 1 versions" in shallow.stdout
    assert "shallow" in shallow.stdout


def test_a_worktree_is_measured_by_its_repository(repository: Path, tmp_path: Path) -> None:
    commit(repository, model_pt=2 * MB)
    git(repository, "worktree", "add", "--quiet", str(tmp_path / "worktree"))
    finished = check_size(tmp_path / "worktree")
    assert finished.returncode == 0, finished.stderr
    assert "2.0 MB in 1 versions" in finished.stdout
