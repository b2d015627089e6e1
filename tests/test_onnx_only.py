"""The wheel as its users get it, in an environment without PyTorch: pip resolves, `mvg predict` answers.

Installs from the package index, so without a network these tests are skipped. They take about a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny import add_reader, write_weights
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"
NO_INDEX = ("Could not find a version that satisfies", "No matching distribution", "Connection", "Temporary failure",
            "Network is unreachable", "timed out")
ARGUMENTS = ("predict", "image.nii.gz", "--reference", "image.nii.gz", "label.nii.gz", "--task", "segmentation",
             "--threads", "1")


def package_script() -> ModuleType:
    """scripts/package.py as a module."""
    spec = spec_from_file_location("package", REPOSITORY / "scripts" / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PACKAGE = package_script()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights (random ones for those that the checkout lacks) and the ONNX files made from them."""
    models = tmp_path_factory.mktemp("models")
    if (REPOSITORY / "bundle" / "models" / "model.pt").is_file():
        shutil.copytree(REPOSITORY / "bundle" / "models", models, dirs_exist_ok=True)
    else:
        write_weights(models / "model.pt")
    if not (models / "model_reader.pt").is_file():
        add_reader(models)
    PACKAGE.export(models)
    return models


@pytest.fixture(scope="module")
def wheel(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make package` builds."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "mvg_core", root / "mvg_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(models, root / "bundle" / "models")
    _, wheel = PACKAGE.build(root, root / "dist")
    return wheel


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a new virtual environment with the wheel, its extra `onnx`, and what pip adds to them."""
    folder = tmp_path_factory.mktemp("onnx-only") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    lock = REPOSITORY / "requirements" / ("dev-3.10.lock" if sys.version_info < (3, 11) else "dev.lock")
    finished = subprocess.run(
        [folder / SCRIPTS / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install",
         "--retries", "1", "--only-binary", ":all:", "--constraint", lock, f"{wheel}[onnx]"],
        capture_output=True, text=True, check=False)
    if finished.returncode != 0 and any(text in finished.stderr for text in NO_INDEX):
        pytest.skip(f"no package index: {finished.stderr.strip().splitlines()[-1]}")
    assert finished.returncode == 0, finished.stderr
    return folder / SCRIPTS


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small image of two structures, and their label in one slice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVG_HOME", str(tmp_path / "home"))
    y, x = np.mgrid[-1:1:48j, -1:1:40j]
    image, label = np.zeros((48, 40, 3), np.float32), np.zeros((48, 40, 3), np.uint8)
    for k, radius in enumerate((0.5, 0.6, 0.55)):
        image[..., k] = 100.0 * (x**2 + y**2 < radius) + 80 * ((x - 0.2) ** 2 + y**2 < radius / 8)
    image += np.random.default_rng(0).normal(0, 3, image.shape).astype(np.float32)
    label[..., 1] = image[..., 1] > 50
    label[..., 1][image[..., 1] > 140] = 2
    write_volume(Volume.from_array(image, (1, 1, 3)), "image.nii.gz")
    write_volume(Volume.from_array(label, (1, 1, 3)), "label.nii.gz")
    return tmp_path


def run(environment: Path, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    without_ours = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([environment / command, *arguments], env=without_ours, capture_output=True, text=True,
                          check=False)


def test_the_wheel_carries_the_weights_and_their_onnx_files(wheel: Path, models: Path, tmp_path: Path) -> None:
    carried = ("model.pt", "model_prompt.onnx", "model_query.onnx", "model_maps.onnx", "model_reader.pt",
               "model_reader_terms.onnx", "model_reader_outlines.onnx")
    assert [name for name, _ in PACKAGE.check_wheel(wheel, models)] == [f"mvg_core/_weights/{name}" for name in carried]
    other = Path(shutil.copytree(models, tmp_path / "other"))
    (other / "model_query.onnx.sha256").write_text("0" * 64 + "  model_query.onnx\n")
    with pytest.raises(SystemExit, match=r"model_query\.onnx in .* is another file than"):
        PACKAGE.check_wheel(wheel, other)


def test_an_environment_made_from_the_wheel_has_no_torch_and_predicts(environment: Path, case: Path) -> None:
    absent = run(environment, "python", "-c", "import importlib.util as u; print(u.find_spec('torch'), "
                 "u.find_spec('onnx'), u.find_spec('onnxruntime') is None)")
    assert absent.stdout.split() == ["None", "None", "False"], absent.stderr
    finished = run(environment, "mvg", *ARGUMENTS, "--output", "default.nii.gz")
    assert finished.returncode == 0, finished.stderr
    assert set(np.unique(read_volume("default.nii.gz").array)) == {0, 1, 2}
    plain = [*ARGUMENTS, "--preset", "plain"]
    finished = run(environment, "mvg", *plain, "--output", "onnx.nii.gz", "--confidence", "sure.nii.gz", "--report",
                   "report.json")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((case / "report.json").read_text())
    assert report["backend"] == "onnxruntime"
    assert "torch" not in report["versions"]
    ours = CliRunner().invoke(app, [*plain, "--output", "torch.nii.gz", "--backend", "torch", "--precision", "fp32"])
    assert ours.exit_code == 0, ours.output
    answer, expected = (read_volume(name).array for name in ("onnx.nii.gz", "torch.nii.gz"))
    assert set(np.unique(expected)) == {0, 1, 2}
    undecided = read_volume("sure.nii.gz").array < 1e-2
    np.testing.assert_array_equal(answer[~undecided], expected[~undecided])
    assert undecided.mean() < 0.02


def test_a_damaged_onnx_file_is_refused_in_one_line(environment: Path, case: Path) -> None:
    where = run(environment, "python", "-c", "import mvg_core; print(mvg_core.__file__)").stdout.strip()
    path = Path(where).parent / "_weights" / "model_query.onnx"
    content = path.read_bytes()
    try:
        path.write_bytes(content[: len(content) // 2])
        finished = run(environment, "mvg", *ARGUMENTS, "--output", "onnx.nii.gz")
    finally:
        path.write_bytes(content)
    assert finished.returncode == 2
    refused_in_one_line(finished.stderr, [str(path), "was changed or damaged", "install the package again"])
    assert not (case / "onnx.nii.gz").exists()


def test_what_needs_torch_says_so(environment: Path, case: Path) -> None:
    for more in (["--backend", "torch"], ["--tune", "2"]):
        finished = run(environment, "mvg", *ARGUMENTS, "--output", "out.nii.gz", *more)
        assert finished.returncode == 2
        refused_in_one_line(finished.stderr, ["mvg-core[torch]"])


def refused_in_one_line(stderr: str, texts: Sequence[str]) -> None:
    (line,) = stderr.strip().splitlines()
    assert all(text in line for text in texts), line
