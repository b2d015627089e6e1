"""The wheel carries the repository's weights; without them, or with others, none is built."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import add_reader, write_weights

from mvg_core.network.checkpoint import load_network
from mvg_core.network.export import export_onnx
from mvg_core.weights import file_sha256

REPOSITORY = Path(__file__).resolve().parents[1]
WEIGHTS = {"model.pt": b"weights", "model_reader.pt": b"reader"}
ONNX_OF = {"model.pt": ("model_prompt.onnx", "model_query.onnx", "model_maps.onnx"),
           "model_reader.pt": ("model_reader_terms.onnx", "model_reader_outlines.onnx")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tiny project with this project's build step and a few bytes of weights."""
    shutil.copy(REPOSITORY / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "mvg-core"\nversion = "0"\n[tool.setuptools]\npackages = ["mvg_core"]\n'
    )
    (tmp_path / "mvg_core").mkdir()
    (tmp_path / "mvg_core" / "__init__.py").touch()
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    for name, content in WEIGHTS.items():
        (models / name).write_bytes(content)
        (models / f"{name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
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
    for name, content in WEIGHTS.items():
        assert (copies / name).read_bytes() == content
        assert (copies / f"{name}.sha256").read_text().endswith(f"  {name}\n")
    assert not (checkout / "mvg_core" / "_weights").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.pt.sha256", "model_reader.pt", "model_reader.pt.sha256"])
def test_a_build_without_weights_or_checksum_is_refused(checkout: Path, name: str) -> None:
    (checkout / "bundle" / "models" / name).unlink()
    finished = build(checkout)
    assert finished.returncode != 0
    assert f"{name} is missing" in finished.stderr


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_build_with_other_weights_is_refused(checkout: Path, name: str) -> None:
    (checkout / "bundle" / "models" / name).write_bytes(b"other weights")
    finished = build(checkout)
    assert finished.returncode != 0
    assert f"{name}.sha256 records" in finished.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which this project's wheel is installed; with random weights where the checkout lacks some."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "mvg_core"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, root / name)
    (root / "README.md").touch()
    models = root / "bundle" / "models"
    if (REPOSITORY / "bundle" / "models" / "model.pt").is_file():
        shutil.copytree(REPOSITORY / "bundle" / "models", models)
    else:
        write_weights(models / "model.pt")
    if not (models / "model_reader.pt").is_file():
        reader = add_reader(models)
        if (models / "model_prompt.onnx").is_file():  # ONNX files travel together or not at all
            export_onnx(load_network(reader), models, checkpoint_sha256=file_sha256(reader), weights=reader.name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for arguments in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."],
        ["install", "--no-deps", "--no-index", "--target", "installed", "--find-links", "dist", "mvg-core"],
    ):
        finished = subprocess.run([*pip, *arguments], cwd=root, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
    return root / "installed"


def test_an_installed_wheel_predicts_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    code = """
import numpy as np
from pathlib import Path
import mvg_core
from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.volume import Volume
assert list(Path().iterdir()) == []
predictor = Predictor.load("mvg_compact", threads=1)
image = Volume.from_array(np.random.default_rng(0).random((40, 30, 3)))
label = np.zeros((40, 30, 3), np.uint8)
label[10:20, 10:20, 1] = 1
found = predictor.predict_volume(image, Reference(image, image.with_array(label)))
assert found.volume.array.shape == (40, 30, 3)
assert (found.volume.array[..., 1] == label[..., 1]).all()
reader = predictor.backend.reader
print(Path(mvg_core.__file__).parent.parent, found.provenance["checkpoint_sha256"], reader.checkpoint_sha256)
"""
    environment = {**os.environ, "PYTHONPATH": str(installed), "MVG_HOME": str(tmp_path / "home")}
    empty = tmp_path / "empty"
    empty.mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    where, *checkpoints = finished.stdout.split()
    assert Path(where) == installed
    records = [installed / "mvg_core" / "_weights" / f"{name}.sha256" for name in WEIGHTS]
    assert checkpoints == [record.read_text().split()[0] for record in records]


# --- the ONNX files, which are there after `make package` ---


def add_onnx(checkout: Path, **older: bytes) -> list[Path]:
    """Files that name their weights, or older ones, as an export does, and their records."""
    files = []
    for weights, names in ONNX_OF.items():
        content = older.get(Path(weights).stem, WEIGHTS[weights])
        for name in names:
            path = checkout / "bundle" / "models" / name
            path.write_bytes(b"graph " + hashlib.sha256(content).hexdigest().encode() + b" end")
            record = path.with_name(f"{name}.sha256")
            record.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n")
            files += [path, record]
    return files


def test_onnx_files_travel_with_their_checksums(checkout: Path) -> None:
    files = add_onnx(checkout)
    assert len(files) == 10
    finished = build(checkout)
    assert finished.returncode == 0, finished.stderr
    copies = checkout / "built" / "mvg_core" / "_weights"
    assert [(copies / path.name).read_bytes() for path in files] == [path.read_bytes() for path in files]


@pytest.mark.parametrize("number", range(10))
def test_onnx_files_travel_together_or_not_at_all(checkout: Path, number: int) -> None:
    add_onnx(checkout)[number].unlink()
    finished = build(checkout)
    assert finished.returncode != 0
    assert "is missing: `make package` writes all of them" in finished.stderr


def test_damaged_onnx_files_and_those_of_other_weights_are_refused(checkout: Path) -> None:
    add_onnx(checkout, model=b"older weights")
    assert "was made from other weights than model.pt" in build(checkout).stderr
    add_onnx(checkout, model_reader=b"older weights")
    assert "was made from other weights than model_reader.pt" in build(checkout).stderr
    path = add_onnx(checkout)[2]
    path.write_bytes(path.read_bytes() + b"!")
    assert "model_query.onnx is not the file that model_query.onnx.sha256 was written for" in build(checkout).stderr
