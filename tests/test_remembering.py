"""Prompts are encoded once, within a limit of memory; whatever else a backend can do goes on through the memory."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_network

from mvg_core.backends import Backend, TorchBackend, load_backend
from mvg_core.network.checkpoint import save_weights
from mvg_core.network.export import export_onnx
from mvg_core.prompts import Prompt, Support
from mvg_core.remembering import RememberingBackend, checksum
from mvg_core.tasks import Task
from mvg_core.tuning import TuningConfig, tuned_backend
from mvg_core.weights import file_sha256, record_checksum

SIDE = TINY.size
GREY, DARK = np.full((SIDE, SIDE), 0.5, np.float32), np.zeros((SIDE, SIDE, 3), np.float32)


@pytest.fixture(scope="module")
def torch_backend() -> TorchBackend:
    return TorchBackend(tiny_network(), "cpu", "abc")


@pytest.fixture(scope="module")
def onnx_backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "model.pt"
    save_weights(tiny_network(), path)
    record_checksum(path)
    export_onnx(tiny_network(), path.parent, checkpoint_sha256=file_sha256(path))
    return load_backend(path, backend="onnx", device="cpu", threads=1)


@pytest.mark.parametrize("kind", ["torch_backend", "onnx_backend"])
def test_a_prompt_is_encoded_once(kind: str, request: pytest.FixtureRequest) -> None:
    backend: Backend = request.getfixturevalue(kind)
    remembering = RememberingBackend(backend, 10**9)
    first = remembering.encode(GREY, DARK)
    assert remembering.encode(GREY.copy(), DARK.copy()) is first
    other = remembering.encode(GREY, DARK + 0.1)
    assert other is not first, "the same image with another label is another prompt"
    assert (remembering.hits, remembering.misses) == (1, 2)
    painted = remembering.paint(GREY[None], remembering.merge([first, other], [1.0, 2.0]))
    plain = backend.paint(GREY[None], backend.merge([backend.encode(GREY, DARK), backend.encode(GREY, DARK + 0.1)],
                                                    [1.0, 2.0]))
    assert np.array_equal(painted, plain)


def test_remembered_prompts_stay_within_their_memory(torch_backend: TorchBackend) -> None:
    size = sum(part.nbytes for part in torch_backend.encode(GREY, DARK))
    remembering = RememberingBackend(torch_backend, 3 * size)
    for level in np.linspace(0, 1, 8, dtype=np.float32):
        remembering.encode(np.full_like(GREY, level), DARK)
    for level in (1.0, 0.0):  # the last of them is still there, the first is not
        remembering.encode(np.full_like(GREY, level), DARK)
    assert (remembering.hits, remembering.misses) == (1, 9)
    assert len(remembering._kept) == 3
    tight = RememberingBackend(torch_backend, 1)
    tight.encode(GREY, DARK)
    tight.encode(GREY, DARK)
    assert tight.hits == 1, "the latest one is kept in any case"


def test_it_stands_for_the_backend_that_it_wraps(torch_backend: TorchBackend) -> None:
    remembering = RememberingBackend(torch_backend, 10**9)
    for name in ("name", "size", "card", "checkpoint_sha256", "device", "precision", "network"):
        assert getattr(remembering, name) is getattr(torch_backend, name)
    with pytest.raises(AttributeError, match="nonsense"):
        remembering.nonsense  # noqa: B018
    assert copy.copy(remembering).network is torch_backend.network


def test_tuning_goes_through_it_and_what_is_tuned_remembers_nothing(torch_backend: TorchBackend) -> None:
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[8:20, 8:20] = 3
    image = (0.2 + 0.5 * (label > 0)).astype(np.float32)
    support = Support((Prompt(image, label, "s", 0.0),), Task.segmentation())
    remembering = RememberingBackend(torch_backend, 10**9)
    before = remembering.encode(GREY, DARK)
    tuned, facts = tuned_backend(remembering, support, TuningConfig(steps=2, learning_rate=0.01))
    assert type(tuned) is TorchBackend
    assert (tuned.checkpoint_sha256, str(tuned.device), facts["steps"]) == ("abc", "cpu", 2)
    assert any(not torch.equal(one, other) for one, other in zip(tuned.encode(GREY, DARK), before, strict=True))
    assert remembering.encode(GREY, DARK) is before


def test_checksums_tell_shapes_and_types_apart() -> None:
    zeros = np.zeros(4, np.uint8)
    found = {checksum(zeros), checksum(zeros.reshape(2, 2)), checksum(zeros.view(np.int8)), checksum(zeros, zeros),
             checksum(np.ones(4, np.uint8))}
    assert len(found) == 5
    assert checksum(np.asfortranarray(np.arange(6).reshape(2, 3))) == checksum(np.arange(6).reshape(2, 3))
