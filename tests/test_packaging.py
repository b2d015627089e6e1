"""The wheel carries the repository's weights; without them, or with others, none is built."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
WEIGHTS = b"weights"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tiny project with this project's build step and seven bytes of weights."""
    shutil.copy(REPOSITORY / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "mvg-core"\nversion = "0"\n[tool.setuptools]\npackages = ["mvg_core"]\n'
    )
    (tmp_path / "mvg_core").mkdir()
    (tmp_path / "mvg_core" / "__init__.py").touch()
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    (models / "model.pt").write_bytes(WEIGHTS)
    (models / "model.pt.sha256").write_text(f"{hashlib.sha256(WEIGHTS).hexdigest()}  model.pt\n")
    return tmp_path


def build(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "built"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_build_copies_weights_and_checksum_and_leaves_the_checkout_alone(checkout: Path) -> None:
    finished = build(checkout)
    assert finished.returncode == 0, finished.stderr
    copies = checkout / "built" / "mvg_core" / "_weights"
    assert (copies / "model.pt").read_bytes() == WEIGHTS
    assert (copies / "model.pt.sha256").read_text().endswith("  model.pt\n")
    assert not (checkout / "mvg_core" / "_weights").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.pt.sha256"])
def test_a_build_without_weights_or_checksum_is_refused(checkout: Path, name: str) -> None:
    (checkout / "bundle" / "models" / name).unlink()
    finished = build(checkout)
    assert finished.returncode != 0
    assert f"{name} is missing" in finished.stderr


def test_a_build_with_other_weights_is_refused(checkout: Path) -> None:
    (checkout / "bundle" / "models" / "model.pt").write_bytes(b"other weights")
    finished = build(checkout)
    assert finished.returncode != 0
    assert "model.pt.sha256 records" in finished.stderr
