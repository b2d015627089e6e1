"""The demo: its numbers worked by hand, its files, its failures, and the whole of it with the shipped weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from mvg_core import demo
from mvg_core.cli import app
from mvg_core.demo import FILES, LABELS, DemoFailed, Template, dice, load_template, psnr, reference_slice, run_demo
from mvg_core.predict import Prediction
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume

REPOSITORY = Path(__file__).resolve().parents[1]
SHIPPED = REPOSITORY / "bundle" / "models" / "model.pt"
SHAPE = (48, 56, 40)


@pytest.fixture
def template() -> Template:
    """White ball in a grey shell, 4 mm voxels, around the origin."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-2.0 * n for n in SHAPE]
    geometry = Geometry(SHAPE, affine)
    centre = geometry.index_to_world(np.moveaxis(np.indices(SHAPE), 0, -1))
    radius = np.linalg.norm(centre, axis=-1)
    truth = np.where(radius < 50, 2, np.where(radius < 75, 1, 0)).astype(np.uint8)
    return Template(Volume(truth.astype(np.float32) / 2, geometry), Volume(truth, geometry))


class Oracle:
    """Answers with what it was told, and with the example's answer for one slice."""

    def __init__(self, answer: Volume) -> None:
        self.answer = answer

    def predict_volume(self, query: Volume, reference: Any, task: Any, *, plane: str, hole: Any = None,
                       progress: Any = None) -> Prediction:
        assert plane == "axial"
        if not task.is_segmentation:
            assert (hole is not None) == (task.kind == "inpainting")
            return Prediction(reference.label, None, {})
        n_slices = query.array.shape[2]
        progress(n_slices, n_slices)
        sure = query.with_array(np.ones(query.array.shape, np.float32))
        return Prediction(self.answer, sure, {"slices": n_slices, "seconds_per_slice": 0.1, "warnings": [],
                                              "prompts": [], "checkpoint_sha256": "0"})


def use(monkeypatch: pytest.MonkeyPatch, template: Template, answer: np.ndarray) -> None:
    oracle = Oracle(template.truth.with_array(answer))
    monkeypatch.setattr(demo, "load_template", lambda: template)
    monkeypatch.setattr(demo, "OTHER_LEVEL", 3)
    monkeypatch.setattr(demo, "Predictor", SimpleNamespace(load=lambda *_, **__: oracle))


def test_dice_worked_by_hand() -> None:
    one, other = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 0], bool)
    assert dice(one, other) == pytest.approx(2 * 2 / (3 + 2))
    assert dice(one, ~one) == 0
    assert dice(~one & one, ~one & one) == 1


def test_psnr_worked_by_hand() -> None:
    assert psnr(np.full(4, 0.6), np.full(4, 0.5)) == pytest.approx(20)
    assert psnr(np.ones(4), np.ones(4)) == np.inf


def test_the_reference_slice_shows_much_of_both_tissues() -> None:
    truth = np.zeros((4, 5, 3), np.uint8)
    truth[:, :4, 0] = 1  # 16 grey, no white
    truth[:2, :, 1], truth[2:, :2, 1] = 1, 2  # 10 grey, 4 white
    truth[:1, :, 2], truth[2:, :, 2] = 1, 2  # 5 grey, 10 white
    assert reference_slice(truth) == 2


def test_all_files_are_written_and_the_labelled_slice_does_not_count(
    template: Template, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    number = reference_slice(template.truth.array)
    answer = template.truth.array.copy()
    answer[:, :, number] = 0  # would cost Dice if it counted
    use(monkeypatch, template, answer)
    shown: list[tuple[str, int, int]] = []
    report = run_demo(tmp_path / "out", "any", progress=lambda *what: shown.append(what))
    assert shown == [("segmentation", SHAPE[2], SHAPE[2])]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES.values())
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["dice"] == dict.fromkeys(LABELS.values(), 1.0)
    assert all(0 < value < 1 for value in report["dice_copy"].values())
    assert report["reference_slice"] == number
    assert report["denoising"]["psnr_before"] == pytest.approx(20, abs=2)  # sigma 0.1 of a range of 1
    assert report["inpainting"]["psnr_after"] > report["inpainting"]["psnr_before"]
    assert report["peak_memory_mb"] is None or report["peak_memory_mb"] > 10
    assert read_volume(tmp_path / "out" / "prediction.nii.gz").geometry.is_close(template.image.geometry)
    assert sitk.ReadImage(tmp_path / "out" / "overlay.png").GetSize() == (1600, 1600)


@pytest.mark.parametrize("label", LABELS)
def test_one_poor_tissue_fails_the_demo_with_its_files_written(
    template: Template, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, label: int
) -> None:
    pytest.importorskip("matplotlib")
    answer = np.where(template.truth.array == label, 0, template.truth.array).astype(np.uint8)
    use(monkeypatch, template, answer)
    with pytest.raises(DemoFailed, match=f"below 0.60: {LABELS[label]} 0.000"):
        run_demo(tmp_path, "any", progress=lambda *_: None)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES.values())
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert "The demo failed" in result.output
    assert "Dice" in result.output


@pytest.mark.parametrize("package", ["nilearn", "matplotlib"])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert f"the demo needs {package}: pip install" in result.output
    assert not (tmp_path / "out").exists()


def test_the_template_is_the_mni152_at_1_mm() -> None:
    pytest.importorskip("nilearn")
    template = load_template()
    assert template.image.geometry.spacing_mm == pytest.approx((1, 1, 1))
    assert template.image.array.shape == template.truth.array.shape == (197, 233, 189)
    assert np.unique(template.truth.array).tolist() == [0, *LABELS]
    assert template.truth.array[98 + 25, 134, 72 + 25] == 2  # (25, 0, 25) mm: corona radiata
    assert reference_slice(template.truth.array) == 90


@pytest.mark.skipif(not SHIPPED.is_file(), reason="needs the shipped weights, bundle/models/model.pt")
def test_the_demo_as_users_run_it(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MVG_HOME": str(tmp_path / "home")}
    finished = subprocess.run([sys.executable, "-m", "mvg_core", "demo"], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((tmp_path / "demo_output" / "report.json").read_text())
    assert min(report["dice"].values()) >= demo.LEAST_DICE
    for name, value in report["dice"].items():
        assert value > report["dice_copy"][name]
        assert f"{value:.3f}" in finished.stdout
    for kind in ("denoising", "inpainting"):
        assert report[kind]["psnr_after"] > report[kind]["psnr_before"]
    assert "demo_output/overlay.png" in finished.stdout
