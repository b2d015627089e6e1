"""A readout of feature maps does what the prompts show, whatever that is; in NumPy, PyTorch and ONNX Runtime alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, WITH_MAPS, tiny_network, write_weights

from mvg_core.backends import ONNX_MAPS, Backend, TorchBackend, load_backend
from mvg_core.engine import VolumeEngine
from mvg_core.image_painter import ColourPainter, ReadoutPainter, image_painter
from mvg_core.network.checkpoint import load_network
from mvg_core.network.export import export_onnx
from mvg_core.predict import Predictor
from mvg_core.prompts import Prompt, Support
from mvg_core.readout import Moments, Prior, read
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.training.readout_loss import read_out
from mvg_core.tuning import TuningConfig
from mvg_core.volume import Volume
from mvg_core.weights import WeightsError, file_sha256

RNG = np.random.default_rng(0)
NO_EVIDENCE = Prior(np.array([[0.1, 0.2, 0.3, 1.0, 0.0]] * 3), np.full(3, 1e12))


def smooth(*shape: int) -> np.ndarray:
    """Images (..., H, W) in [0, 1]."""
    coarse = RNG.random((*shape[:-2], shape[-2] // 8, shape[-1] // 8))
    return coarse.repeat(8, -2).repeat(8, -1).astype(np.float32) * 0.8 + RNG.random(shape).astype(np.float32) * 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_weights(tmp_path_factory.mktemp("maps") / "model.pt", WITH_MAPS)
    export_onnx(load_network(path), path.parent, checkpoint_sha256=file_sha256(path), weights="model.pt")
    return path.parent


@pytest.fixture(scope="module", params=["torch", "onnx"])
def backend(request: pytest.FixtureRequest, folder: Path) -> Backend:
    return load_backend(folder / "model.pt", backend=request.param, device="cpu", threads=1, precision="fp32")


def test_weights_are_found_again_and_add_up_over_prompts():
    maps, image = RNG.random((2, 3, 16, 16), np.float32), RNG.random((2, 16, 16), np.float32)
    weights = np.array([0.2, -0.1, 0.3, 0.4, 0.05])
    label = np.einsum("k,nkhw->nhw", weights[:3], maps) + 0.4 * image + 0.05
    moments = [Moments.of(*each) for each in zip(maps, image, label, strict=True)]
    little = Prior(NO_EVIDENCE.weights, np.full(3, 1e-6))
    assert np.allclose(Moments.sum(moments).fit(little, "synthesis"), weights, atol=1e-4)
    assert np.allclose(read(weights, maps[0], image[0]), label[0].clip(0, 1), atol=1e-6)


def test_without_evidence_the_prior_decides_and_pixels_that_do_not_count_are_no_evidence():
    maps, image, label = RNG.random((3, 16, 16), np.float32), *RNG.random((2, 16, 16), np.float32)
    assert np.allclose(Moments.of(maps, image, label).fit(NO_EVIDENCE, "denoising"), NO_EVIDENCE.weights[0], atol=1e-6)
    firm = Prior(NO_EVIDENCE.weights, np.full(3, 1e-3))
    counts = np.zeros((16, 16))
    assert np.allclose(Moments.of(maps, image, label, counts).fit(firm, "inpainting"), NO_EVIDENCE.weights[1])
    counts[:8] = 1
    upper = Moments.of(maps[:, :8], image[:8], label[:8]).fit(firm, "inpainting")
    assert np.allclose(Moments.of(maps, image, label, counts).fit(firm, "inpainting"), upper)


def test_answers_are_images():
    answer = read(np.array([9.0, 0.0, -3.0]), RNG.random((1, 16, 16), np.float32), RNG.random((16, 16), np.float32))
    assert (answer.min(), answer.max()) == (0.0, 1.0)


def test_training_and_inference_fit_the_same_readout():
    network = tiny_network(WITH_MAPS)
    painter = image_painter(TorchBackend(network, "cpu"), Task.inpainting())
    images, labels = smooth(3, 32, 32), smooth(3, 32, 32)
    holes = np.zeros(images.shape, bool)
    holes[:, 4:20, 10:30] = True
    prompts = [Prompt(image=images[k], label=labels[k], hole=holes[k]) for k in (1, 2)]
    answer = painter.paint(images[:1], painter.merge([painter.encode(prompt) for prompt in prompts]), holes[:1])
    from mvg_core.holes import continued

    shown = torch.from_numpy(continued(images, holes))[None]
    counts = torch.from_numpy(np.where(holes, 1.0, 1e-3).astype(np.float32))[None]
    with torch.no_grad():
        trained = read_out(network.maps, shown, torch.from_numpy(labels)[None], counts,
                           torch.from_numpy(holes.astype(np.float32))[None], torch.tensor([1]))
    assert np.allclose(answer[0], trained[0].clamp(0, 1).numpy(), atol=1e-3)


def test_both_backends_make_the_same_maps(folder):
    one, other = (load_backend(folder / "model.pt", backend=name, device="cpu", precision="fp32", threads=1)
                  for name in ("torch", "onnx"))
    images, holes = smooth(2, 48, 80), RNG.random((2, 48, 80)) < 0.3
    assert np.allclose(one.maps(images, holes), other.maps(images, holes), atol=1e-4)
    assert np.allclose(one.maps(images), other.maps(images), atol=1e-4)
    assert not np.allclose(one.maps(images), one.maps(images, holes), atol=1e-3)
    assert one.prior is not None
    assert other.prior is not None
    assert np.allclose(one.prior.weights, other.prior.weights)
    assert np.allclose(one.prior.shrinkage, other.prior.shrinkage)


def test_maps_of_other_weights_are_refused(folder, tmp_path):
    path = write_weights(tmp_path / "model.pt", WITH_MAPS, seed=1)
    export_onnx(load_network(path), tmp_path, checkpoint_sha256=file_sha256(path))
    for name in (ONNX_MAPS, f"{ONNX_MAPS}.sha256"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(WeightsError, match=r"model_maps\.onnx in .* do not belong together"):
        load_backend(path, backend="onnx")
    (tmp_path / ONNX_MAPS).unlink()
    with pytest.raises(WeightsError, match=r"model_maps\.onnx is missing"):
        load_backend(path, backend="onnx")


@pytest.mark.parametrize(("label", "expected"), [(lambda x: x, lambda x: x), (lambda x: 1 - x, lambda x: 1 - x),
                                                 (lambda x: 0.5 * x + 0.25, lambda x: 0.5 * x + 0.25)])
def test_the_example_decides(backend, label, expected):
    images, query = smooth(3, 128, 128), smooth(2, 128, 128)
    support = Support(tuple(Prompt(image=image, label=label(image)) for image in images), Task.synthesis())
    answer, confidence = Predictor(backend).predict_slices(query, support)
    assert confidence is None
    assert np.abs(answer - expected(query)).mean() < 0.02


def test_every_volume_keeps_its_own_pixels_and_units(backend):
    query = Volume.from_array(smooth(3, 40, 56).transpose(1, 2, 0) * 1000 - 200, (0.7, 2.5, 6.0))
    example = Volume.from_array(smooth(4, 64, 48).transpose(1, 2, 0) * 1000 - 200)
    for solve in (Predictor(backend).predict_volume, VolumeEngine(Predictor(backend)).solve):
        # An example in which nothing is to be done.
        answer = solve(query, [Reference(example, example)], Task.denoising(), plane=2)
        assert answer.provenance["network_size"] == 64
        low, high = np.percentile(query.array, [5, 95])
        seen = (query.array > low) & (query.array < high)
        # Resampling alone would change the noise of these images by more.
        assert np.abs(answer.volume.array - query.array)[seen].mean() < 12


def test_a_synthesis_is_in_the_middle_of_the_units_of_its_targets(backend):
    images = smooth(3, 64, 64)
    query = Volume.from_array(images.transpose(1, 2, 0))
    # The same relation, in units that differ from patient to patient.
    references = [Reference(query, query.with_array(query.array * scale + scale / 10)) for scale in (100.0, 300.0)]
    for solve in (Predictor(backend).predict_volume, VolumeEngine(Predictor(backend)).solve):
        answer = solve(query, references, Task.synthesis(), plane=2).volume.array
        assert np.abs(answer - (query.array * 200 + 20)).mean() < 8


def test_nothing_is_tuned_where_a_readout_is_fitted(folder):
    predictor = Predictor.load(folder / "model.pt", backend="torch", tuning=TuningConfig(2))
    images = smooth(2, 32, 32)
    support = Support((Prompt(image=images[0], label=images[0]),), Task.denoising())
    assert predictor.tune(support) is predictor
    volume = Volume.from_array(images.transpose(1, 2, 0))
    answer = VolumeEngine(predictor).solve(volume, [Reference(volume, volume)], Task.denoising())
    assert answer.provenance["tuning"] is None


def test_networks_without_maps_paint_and_so_does_who_asks_for_it(folder):
    task = Task.denoising()
    assert isinstance(image_painter(TorchBackend(tiny_network(TINY), "cpu"), task), ColourPainter)
    with_maps = load_backend(folder / "model.pt", backend="torch")
    assert isinstance(image_painter(with_maps, task), ReadoutPainter)
    assert isinstance(image_painter(with_maps, task, readout=False), ColourPainter)
    assert not Predictor(with_maps, readout=False).reads_out(task)
    assert not Predictor(with_maps).reads_out(Task.segmentation())
