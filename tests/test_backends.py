"""PyTorch and ONNX Runtime behind one interface: the same numbers, and errors that say what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_network, write_weights
from typer.testing import CliRunner

from mvg_core import backends
from mvg_core.backends import (
    ONNX_PROMPT,
    ONNX_QUERY,
    Backend,
    MissingBackendError,
    OnnxBackend,
    TorchBackend,
    load_backend,
)
from mvg_core.cli import app
from mvg_core.network import export, onnx_storage
from mvg_core.network.checkpoint import load_network
from mvg_core.network.config import NetworkConfig
from mvg_core.network.errors import CheckpointError
from mvg_core.network.export import export_onnx
from mvg_core.precision import torch_precision
from mvg_core.predict import Predictor
from mvg_core.prompts import Prompt, Support
from mvg_core.tasks import Task
from mvg_core.weights import WeightsError, file_sha256, find_weights, record_checksum

REPOSITORY = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
VIT = NetworkConfig(architecture="vit", size=32, widths=(16,), heads=2, depth=2, patch=16, position_grid=2,
                    merge_after=1, feature_blocks=(0, 1), decoder_width=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and the ONNX files made from them, in one folder."""
    folder = tmp_path_factory.mktemp("weights")
    path = write_weights(folder / "model.pt")
    export_onnx(load_network(path), folder, checkpoint_sha256=file_sha256(path))
    return folder


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with ONNX files that read the numbers of the weight file beside them."""
    folder = tmp_path_factory.mktemp("sharing")
    path = write_weights(folder / "model.pt")
    export_onnx(load_network(path), folder, checkpoint_sha256=file_sha256(path), weights="model.pt")
    return folder


@pytest.fixture(autouse=True)
def _no_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVG_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module", params=["torch", "onnx"])
def backend(request: pytest.FixtureRequest, folder: Path) -> Backend:
    return load_backend(folder / "model.pt", backend=request.param, device="cpu", threads=1, precision="fp32")


@pytest.fixture
def no_tracing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """Exports copy the files of `folder` instead of spending seconds; what they should have traced is listed."""
    traced: list[torch.nn.Module] = []

    def copy_all(network: torch.nn.Module, temporary: Path) -> list[str]:
        traced.append(network)
        return [Path(shutil.copy(folder / name, temporary)).name for name in (ONNX_PROMPT, ONNX_QUERY)]

    monkeypatch.setattr(export, "_export_all", copy_all)
    return traced


def randoms(*shape: int) -> np.ndarray:
    return RNG.random(shape, dtype=np.float32)


def as_one_call(folder: Path, images: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """What the network says when it gets everything together."""
    network = load_network(folder / "model.pt")
    prompts = np.concatenate([images[:, None], np.moveaxis(labels, -1, 1)], axis=1).reshape(-1, *images.shape[1:])
    canvas = np.stack([np.concatenate([query[None], prompts]) for query in queries])
    with torch.no_grad():
        return network(torch.from_numpy(canvas)).permute(0, 2, 3, 1).numpy()


def painted_by(backend: Backend, images: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    encoded = [backend.encode(image, label) for image, label in zip(images, labels, strict=True)]
    return backend.paint(queries, backend.merge(encoded))


@pytest.mark.parametrize("n_prompts", [1, 3])
@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("sides", [(32, 32), (48, 16), (96, 96)])
def test_encoding_prompts_one_by_one_changes_nothing(
    backend: Backend, folder: Path, n_prompts: int, n_queries: int, sides: Sequence[int]
) -> None:
    images, labels, queries = randoms(n_prompts, *sides), randoms(n_prompts, *sides, 3), randoms(n_queries, *sides)
    expected = as_one_call(folder, images, labels, queries)
    painted = painted_by(backend, images, labels, queries)
    assert (painted.shape, painted.dtype) == ((n_queries, *sides, 3), np.float32)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(painted, expected, atol=1e-4)


def test_the_prompts_make_a_difference(backend: Backend) -> None:
    image, query = randoms(32, 32), randoms(1, 32, 32)
    painted = [backend.paint(query, backend.encode(image, label)) for label in (randoms(32, 32, 3), randoms(32, 32, 3))]
    assert np.abs(painted[0] - painted[1]).max() > 1e-3


def test_strided_arrays_and_other_number_types_are_taken(backend: Backend) -> None:
    image, label, queries = randoms(32, 32), randoms(32, 32, 3), randoms(2, 32, 32)
    expected = backend.paint(queries, backend.encode(image, label))
    turned = np.moveaxis(np.ascontiguousarray(np.moveaxis(label, -1, 0)), 0, -1)
    encoded = backend.encode(image.astype(np.float64), turned)  # type: ignore[arg-type]
    painted = backend.paint(np.asfortranarray(queries), encoded)
    np.testing.assert_allclose(painted, expected, atol=1e-5)


def test_a_backend_knows_where_its_numbers_come_from(backend: Backend, folder: Path) -> None:
    assert backend.size == 32
    assert backend.card == {"licence": "none", "seed": 0}
    assert backend.checkpoint_sha256 == file_sha256(folder / "model.pt")
    assert backend.name in ("torch", "onnxruntime")


def test_sides_are_multiples_of_16(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"slices of 30 x 32 pixels do not fit the network.*multiples of 16"):
        backend.encode(randoms(30, 32), randoms(30, 32, 3))
    encoded = backend.encode(randoms(32, 32), randoms(32, 32, 3))
    with pytest.raises(ValueError, match="slices of 32 x 33 pixels"):
        backend.paint(randoms(1, 32, 33), encoded)


@pytest.mark.parametrize(
    ("choice", "device", "message"),
    [
        ("torch", "warp", r"device 'warp' cannot be used .*use 'auto' or 'cpu'"),
        ("onnx", "warp", r"device 'warp' cannot be used \(ONNX Runtime is used with 'cpu' and 'cuda' only\)"),
        ("tensorflow", "cpu", "backend 'tensorflow' is unknown: use one of auto, torch, onnx"),
    ],
)
def test_wrong_choices_are_refused(folder: Path, choice: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backend(folder / "model.pt", backend=choice, device=device)  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    import onnxruntime

    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' cannot be used"):
            load_backend(folder / "model.pt", backend="torch", device="cuda")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match=r"device 'cuda' cannot be used \(this build of ONNX Runtime has no CUDA"):
            load_backend(folder / "model.pt", backend="onnx", device="cuda")


def test_threads_are_limited(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        load_backend(folder / "model.pt", backend="torch", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    limited: Any = load_backend(folder / "model.pt", backend="onnx", threads=1)
    assert limited._query.get_session_options().intra_op_num_threads == 1


# --- which package, which file ---


@pytest.mark.parametrize(
    ("installed", "choice", "expected"),
    [
        ({"torch", "onnxruntime"}, "auto", TorchBackend),
        ({"torch", "onnxruntime"}, "onnx", OnnxBackend),
        ({"onnxruntime"}, "auto", OnnxBackend),
        ({"torch"}, "torch", TorchBackend),
        ({"onnxruntime"}, "torch", "PyTorch is not installed.*mvg-core\\[torch\\]"),
        ({"torch"}, "onnx", "ONNX Runtime is not installed.*mvg-core\\[onnx\\]"),
        (set(), "auto", "neither PyTorch nor ONNX Runtime is installed"),
    ],
)
def test_auto_takes_torch_if_it_is_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str], choice: backends.BackendChoice,
    expected: type | str,
) -> None:
    monkeypatch.setattr(backends, "_is_installed", installed.__contains__)
    if isinstance(expected, str):
        with pytest.raises(MissingBackendError, match=expected):
            load_backend(folder / "model.pt", backend=choice)
    else:
        assert isinstance(load_backend(folder / "model.pt", backend=choice, device="cpu"), expected)


def test_a_package_that_cannot_be_found_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends._is_installed("numpy")
    assert not backends._is_installed("no_such_package_here")
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # such as a placeholder for documentation
    assert not backends._is_installed("torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not backends._is_installed("torch")


def test_an_unknown_name_and_a_changed_file_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights 'spleen'"):
        Predictor.load("spleen")
    path = Path(shutil.copytree(folder, tmp_path / "copy")) / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for choice in ("torch", "onnx"):
        with pytest.raises(WeightsError, match="changed or damaged"):
            Predictor.load(path, backend=choice)
    path.with_name("model.pt.sha256").unlink()
    path.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        Predictor.load(path)


def test_only_networks_that_encode_prompts_on_their_own_can_predict(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "vit.pt", VIT)
    with pytest.raises(CheckpointError, match=r"vit\.pt holds a 'vit' network: prediction needs a 'compact' one"):
        Predictor.load(path)
    with pytest.raises(ValueError, match="a 'vit' network cannot be exported in parts"):
        export_onnx(tiny_network(VIT), tmp_path)


# --- ONNX files ---


def test_the_files_say_what_they_are(folder: Path) -> None:
    import onnx

    for name in (ONNX_PROMPT, ONNX_QUERY):
        model = onnx.load(folder / name)
        onnx.checker.check_model(model)
        written = {entry.key: entry.value for entry in model.metadata_props}
        assert NetworkConfig.from_json(json.loads(written["mvg_network"])) == TINY
        assert json.loads(written["mvg_card"]) == {"licence": "none", "seed": 0}
        assert written["mvg_checkpoint_sha256"] == file_sha256(folder / "model.pt")


def test_beside_its_weight_file_an_export_holds_no_weights_and_says_the_same(folder: Path, sharing: Path) -> None:
    import onnx

    for name in (ONNX_PROMPT, ONNX_QUERY):
        initial = onnx.load(sharing / name, load_external_data=False).graph.initializer
        inside, outside = ([one for one in initial if bool(one.external_data) is kind] for kind in (False, True))
        assert max(int(np.prod(one.dims)) for one in inside) < onnx_storage.LEAST_HALVED
        places = [entry.value for one in outside for entry in one.external_data if entry.key == "location"]
        assert set(places) == {"model.pt"}
    alone, together = OnnxBackend(folder, "cpu", 1), OnnxBackend(sharing, "cpu", 1)
    image, label, queries = randoms(32, 32), randoms(32, 32, 3), randoms(2, 32, 32)
    for first, second in zip(alone.encode(image, label), together.encode(image, label), strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(alone.paint(queries, alone.encode(image, label)),
                                  together.paint(queries, together.encode(image, label)))


def test_an_export_without_its_weight_file_or_beside_another_is_refused(sharing: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharing, tmp_path / "copy"))
    write_weights(copy / "model.pt", seed=1)
    with pytest.raises(WeightsError, match=r"were made from another model\.pt than the one beside them"):
        OnnxBackend(copy)
    (copy / "model.pt").unlink()
    with pytest.raises(WeightsError, match=r"model_prompt\.onnx cannot be loaded .*run `mvg export-onnx` again"):
        OnnxBackend(copy)


def test_the_command_refers_to_weights_only_where_they_lie_beside(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "here" / "model.pt"
    weights.parent.mkdir()
    shutil.copy(folder / "model.pt", weights)
    sizes = []
    for output in (weights.parent, tmp_path / "there"):
        result = CliRunner().invoke(app, ["export-onnx", "--weights", str(weights), "--output", str(output)])
        assert result.exit_code == 0, result.output
        sizes.append((output / ONNX_QUERY).stat().st_size)
        assert OnnxBackend(output).checkpoint_sha256 == file_sha256(weights)
    assert sizes[0] < sizes[1]


def test_the_shipped_onnx_files_are_of_the_shipped_weights_and_small() -> None:
    shipped = find_weights()
    backend = OnnxBackend(shipped.parent, "cpu", 1)
    assert backend.checkpoint_sha256 == file_sha256(shipped)
    assert sum((shipped.parent / name).stat().st_size for name in (ONNX_PROMPT, ONNX_QUERY)) < 1_000_000


def test_an_export_leaves_the_network_alone_and_no_debris(tmp_path: Path, no_tracing: list[torch.nn.Module]) -> None:
    network = tiny_network().train().half()
    paths = export_onnx(network, tmp_path / "new" / "folder")
    assert paths == (tmp_path / "new" / "folder" / ONNX_PROMPT, tmp_path / "new" / "folder" / ONNX_QUERY)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == [
        ONNX_PROMPT, f"{ONNX_PROMPT}.sha256", ONNX_QUERY, f"{ONNX_QUERY}.sha256"]
    assert (network.training, next(network.parameters()).dtype) == (True, torch.float16)
    (traced,) = no_tracing
    assert (traced.training, next(traced.parameters()).dtype) == (False, torch.float32)
    assert OnnxBackend(paths[0].parent).checkpoint_sha256 == ""


@pytest.mark.usefixtures("no_tracing")
def test_a_failed_export_leaves_the_old_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    monkeypatch.setattr(export, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(tiny_network(seed=1), copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.usefixtures("no_tracing")
def test_onnx_files_may_lie_in_the_users_folder_but_must_be_of_these_weights(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m" / "model.pt"
    path.parent.mkdir()
    shutil.copy(folder / "model.pt", path)
    with pytest.raises(WeightsError, match=r"are in none of .*m, .*_weights, .*onnx: run `mvg export-onnx`"):
        load_backend(path, backend="onnx")
    export_onnx(tiny_network(seed=1), path.parent, checkpoint_sha256="of other weights")
    with pytest.raises(WeightsError, match=r"were made from other weights than .*model\.pt: run `mvg export-onnx`"):
        load_backend(path, backend="onnx")
    export_onnx(tiny_network(seed=2), tmp_path / "home" / "onnx", checkpoint_sha256=file_sha256(path))
    assert load_backend(path, backend="onnx").card["seed"] == 2


@pytest.mark.usefixtures("no_tracing")
def test_halves_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model_prompt\.onnx is missing: run `mvg export-onnx`"):
        OnnxBackend(tmp_path)
    export_onnx(tiny_network(), tmp_path, checkpoint_sha256="other")
    for name in (ONNX_QUERY, f"{ONNX_QUERY}.sha256"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(WeightsError, match="do not belong together"):
        OnnxBackend(tmp_path)
    (tmp_path / ONNX_QUERY).write_bytes(b"not ONNX")
    record_checksum(tmp_path / ONNX_QUERY)
    with pytest.raises(WeightsError, match=r"model_query\.onnx cannot be loaded .*run `mvg export-onnx` again"):
        OnnxBackend(tmp_path)


@pytest.mark.parametrize("name", [ONNX_PROMPT, ONNX_QUERY])
def test_a_damaged_file_is_noticed_and_so_is_one_that_cannot_be_checked(folder: Path, tmp_path: Path, name: str
                                                                        ) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of the weights: it would still load
    (copy / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name} was changed or damaged: .*{name}\.sha256 says .*mvg export-onnx"):
        load_backend(copy / "model.pt", backend="onnx", device="cpu")
    (copy / f"{name}.sha256").unlink()
    with pytest.raises(WeightsError, match=rf"{name}\.sha256 is missing, so {name} cannot be checked: copy it too"):
        load_backend(copy / "model.pt", backend="onnx", device="cpu")


def test_weights_that_half_precision_holds_are_stored_so_and_change_no_bit(folder: Path, tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "store_halves", lambda *_: None)
    export_onnx(load_network(folder / "model.pt"), tmp_path)
    image, label, queries = randoms(32, 32), randoms(32, 32, 3), randoms(2, 32, 32)
    small, large = OnnxBackend(folder, "cpu", 1), OnnxBackend(tmp_path, "cpu", 1)
    for name in (ONNX_PROMPT, ONNX_QUERY):
        assert (folder / name).stat().st_size < 0.8 * (tmp_path / name).stat().st_size
    np.testing.assert_array_equal(small.paint(queries, small.encode(image, label)),
                                  large.paint(queries, large.encode(image, label)))


def test_weights_that_need_single_precision_keep_it(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    exact, fine, small = (np.full(n, value, np.float32) for n, value in ((300, 0.5), (300, 1 / 3), (3, 0.5)))
    huge = np.full(300, 1e6, np.float32)
    stored = [numpy_helper.from_array(array, name)
              for name, array in (("exact", exact), ("fine", fine), ("small", small), ("huge", huge))]
    graph = helper.make_graph([], "g", [], [], stored)
    model = helper.make_model(graph)
    onnx_storage.store_halves(model, "", {})
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == {
        "exact_half": TensorProto.FLOAT16, "fine": TensorProto.FLOAT, "small": TensorProto.FLOAT,
        "huge": TensorProto.FLOAT}
    (widen,) = model.graph.node
    assert (widen.op_type, list(widen.input), list(widen.output)) == ("Cast", ["exact_half"], ["exact"])
    assert onnx.helper.get_attribute_value(widen.attribute[0]) == TensorProto.FLOAT


# --- precision ---


@pytest.mark.parametrize(
    ("kind", "hardware", "asked", "expected"),
    [
        ("cpu", {"_is_avx512_bf16_supported"}, "auto", "bf16"),
        ("cpu", {"_is_amx_tile_supported"}, "auto", "bf16"),
        ("cpu", set(), "auto", "fp32"),
        ("cpu", set(), "bf16", "bf16"),
        ("cpu", {"_is_amx_tile_supported"}, "fp32", "fp32"),
        ("meta", {"_is_amx_tile_supported"}, "auto", "fp32"),
    ],
)
def test_bfloat16_is_taken_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch, kind: str,
                                                             hardware: set[str], asked: Any, expected: str) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in hardware, raising=False)
    assert torch_precision(asked, torch.device(kind)) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_gpus_compute_in_bfloat16_from_ampere_on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int],
                                                 expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert torch_precision("auto", torch.device("cuda")) == expected


def test_bfloat16_is_another_computation_of_nearly_the_same(folder: Path) -> None:
    image, label, queries = randoms(32, 32), randoms(32, 32, 3), randoms(2, 32, 32)
    network = load_network(folder / "model.pt")
    single, half = (TorchBackend(network, "cpu", precision=precision) for precision in ("fp32", "bf16"))
    assert (single.precision, half.precision) == ("fp32", "bf16")
    painted = [backend.paint(queries, backend.merge([backend.encode(image, label)] * 2)) for backend in (single, half)]
    assert painted[1].dtype == np.float32
    assert 0 < np.abs(painted[0] - painted[1]).max() < 0.05
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_wrong_precisions_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="precision 'fp8' is unknown: use one of auto, fp32, bf16"):
        load_backend(folder / "model.pt", precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision 'bf16' needs PyTorch: use 'auto' or 'fp32' with ONNX Runtime"):
        load_backend(folder / "model.pt", backend="onnx", precision="bf16")
    with pytest.raises(ValueError, match="precision 'bf16' is not used on device 'meta'"):
        torch_precision("bf16", torch.device("meta"))


# --- the same answer without torch ---


def example() -> tuple[np.ndarray, Support, list[float]]:
    rng = np.random.default_rng(5)
    prompts = [Prompt(rng.random((32, 32)), rng.integers(0, 3, (32, 32)), f"s{k}", k / 4) for k in range(4)]
    return rng.random((6, 32, 32), np.float32), Support(tuple(prompts), Task.segmentation()), [0, 0.1, 0.3, 0.5, 0.9, 1]


def test_without_torch_onnx_runtime_gives_the_same_answer(folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from mvg_core.predict import Predictor
from mvg_core.prompts import Prompt, Support
from mvg_core.tasks import Task
stored = np.load({str(tmp_path / "example.npz")!r})
prompts = tuple(Prompt(i, l, position_mm=float(p)) for i, l, p in zip(*(stored[k] for k in ("i", "l", "p"))))
predictor = Predictor.load({str(folder / "model.pt")!r}, threads=1)
assert predictor.backend.name == "onnxruntime"
labels, confidence = predictor.predict_slices(stored["q"], Support(prompts, Task.segmentation()), stored["at"])
np.savez({str(tmp_path / "answer.npz")!r}, labels=labels, confidence=confidence)
assert not any(name.partition(".")[0] == "torch" and module for name, module in sys.modules.items())
"""
    queries, support, positions = example()
    np.savez(tmp_path / "example.npz", q=queries, at=positions, i=[p.image for p in support.prompts],
             l=[p.label for p in support.prompts], p=np.arange(4) / 4)
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    predictor = Predictor.load(folder / "model.pt", backend="torch", precision="fp32")
    labels, confidence = predictor.predict_slices(queries, support, positions)
    assert confidence is not None
    assert len(np.unique(labels)) == 3
    answer = np.load(tmp_path / "answer.npz")
    np.testing.assert_allclose(answer["confidence"], confidence, atol=1e-3)
    sure = confidence > 1e-3
    np.testing.assert_array_equal(answer["labels"][sure], labels[sure])


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Backend]:
    """The shipped weights in PyTorch, and in ONNX Runtime from files made now."""
    path = find_weights()
    folder = tmp_path_factory.mktemp("shipped")
    export_onnx(load_network(path), folder, checkpoint_sha256=file_sha256(path))
    return load_backend(path, backend="torch", device="cpu", precision="fp32"), OnnxBackend(folder, "cpu")


# The largest size alone has the time that two prompts would take at the others together.
@pytest.mark.parametrize(("side", "n_prompts"), [(96, 1), (96, 8), (192, 1), (192, 3), (256, 2), (512, 1)])
def test_the_shipped_network_says_the_same_in_both(shipped: tuple[Backend, Backend], side: int, n_prompts: int
                                                   ) -> None:
    rng = np.random.default_rng(side)
    y, x = np.mgrid[:side, :side] / side
    images = [np.asarray(0.5 + 0.4 * np.sin(9 * x + k) * np.cos(7 * y), np.float32) for k in range(n_prompts + 1)]
    labels = [np.stack([image > 0.6] * 3, axis=2).astype(np.float32) for image in images]
    queries = images[-1][None] + rng.normal(0, 0.02, (1, side, side)).astype(np.float32)
    torch_says, onnx_says = (painted_by(backend, np.stack(images[:-1]), np.stack(labels[:-1]), queries)
                             for backend in shipped)
    assert np.ptp(torch_says) > 0.5
    np.testing.assert_allclose(onnx_says, torch_says, atol=1e-3)
