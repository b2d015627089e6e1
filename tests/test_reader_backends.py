"""What reads label maps lies beside the weights: found, checked, and the same in PyTorch and ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import READER, TINY, add_reader, tiny_network, write_weights
from typer.testing import CliRunner

from mvg_core.backends import Backend, TorchBackend, load_backend, onnx_reader, reader_of, reader_sha256
from mvg_core.cli import app
from mvg_core.label_reader import LabelReading
from mvg_core.label_readout import SCORES
from mvg_core.network import onnx_storage
from mvg_core.network.checkpoint import load_network
from mvg_core.network.config import NetworkConfig, preset
from mvg_core.network.errors import CheckpointError
from mvg_core.network.export import export_onnx
from mvg_core.network.reader import SteadyNorm
from mvg_core.predict import Predictor
from mvg_core.prompts import Prompt, Support
from mvg_core.reader_backends import ONNX_OUTLINES, ONNX_TERMS, Reader, TorchReader, load_reader, reader_network
from mvg_core.remembering import RememberingBackend
from mvg_core.server.solver import Solver
from mvg_core.tasks import Task
from mvg_core.tuning import TuningConfig, tuned_backend
from mvg_core.weights import WeightsError, file_sha256, record_checksum

CONFIGS = {"tiny": READER, "full size": preset("mvg_reader")}
BACKENDS = ("torch", "onnx")


def export(path: Path, folder: Path | None = None) -> None:
    """Beside the weights, whose numbers it reads, or elsewhere."""
    beside = folder is None
    export_onnx(load_network(path), folder or path.parent, checkpoint_sha256=file_sha256(path),
                weights=path.name if beside else "")


def body(*shape: int) -> np.ndarray:
    """An image (H, W) as scanners make them: most of it is black."""
    y, x = (np.linspace(-1, 1, side) for side in shape)
    inside = (x**2 / 0.5 + y[:, None] ** 2 / 0.3) < 1
    return (inside * (0.4 + 0.3 * np.sin(9 * x) * np.cos(7 * y[:, None]))).astype(np.float32)


def load(path: Path, backend: str) -> Any:
    return load_backend(path, backend=backend, device="cpu", threads=1, precision="fp32")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painter, its reader, and the ONNX files of both, which read their numbers."""
    folder = tmp_path_factory.mktemp("whole")
    for path in (write_weights(folder / "model.pt"), add_reader(folder)):
        export(path)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, empty."""
    monkeypatch.setenv("MVG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# --- the same numbers ---


@pytest.fixture(scope="module", params=CONFIGS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Reader]:
    """A reader with random weights, in PyTorch and in ONNX Runtime."""
    path = write_weights(tmp_path_factory.mktemp("both") / "model_reader.pt", CONFIGS[request.param])
    export(path)
    return load_reader(path), onnx_reader(path.parent, path, "cpu", 1)


@pytest.mark.parametrize("shape", [(32, 32), (64, 160), (224, 192), (512, 480)])
def test_both_say_the_same_of_any_size(both: tuple[Reader, Reader], shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    images = np.stack([random.random(shape, np.float32), body(*shape)])
    scores, others = random.random((2, 3, SCORES, shape[0] // 4, shape[1] // 4), np.float32) * 3 - 1
    seen = [reader.look(images) for reader in both]
    for name in ("terms", "coarse", "fine"):
        one, other = (np.asarray(getattr(each, name)) for each in seen)
        assert one.std() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-3, err_msg=name)
    for number in range(2):
        one, other = (reader.outlines(scores, others, each, number) for reader, each in zip(both, seen, strict=True))
        assert one.shape == (3, *shape)
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_readouts_are_fitted_alike(both: tuple[Reader, Reader]) -> None:
    one, other = (reader.ridge for reader in both)
    assert one.shrinkage == pytest.approx(other.shrinkage, rel=1e-6)
    assert one.balance == pytest.approx(other.balance, rel=1e-6)
    assert 0.01 < one.shrinkage < 0.03, "the numbers of the weights, which are near those of a start"


def test_a_label_is_read_alike(both: tuple[Reader, Reader]) -> None:
    image, label = body(80, 80), np.zeros((80, 80), np.uint8)
    label[30:50, 20:44] = 7
    one, other = ((reading := LabelReading(reader, [3, 7])).read(image[None], reading.encode(image, label))
                  for reader in both)
    assert one.shape == (1, 80, 80, 3)
    assert not one[..., 1].any(), "no prompt shows it"
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_norms_are_exact_on_large_images_and_those_of_training() -> None:
    image = torch.from_numpy(body(768, 768))[None, None]
    x = torch.cat([image * factor for factor in (1.0, 2.0, 3.0, -1.0)], dim=1)
    norm = SteadyNorm(2, 4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.3]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        exact = norm.double()(x.double())
        norm.float().eval()
        for like in (torch.contiguous_format, torch.channels_last):
            np.testing.assert_allclose(norm(x.contiguous(memory_format=like)), exact, atol=2e-5)


def test_half_precision_is_that_of_the_backend(whole: Path) -> None:
    backend = load_backend(whole / "model.pt", backend="torch", device="cpu", precision="bf16")
    seen = reader_of(backend).look(body(32, 32)[None])  # type: ignore[union-attr]
    assert (seen.coarse.dtype, seen.terms.dtype) == (torch.bfloat16, np.float32)


# --- the ONNX files ---


def test_the_files_say_what_they_are_and_hold_no_weights(whole: Path) -> None:
    import onnx

    for name in (ONNX_TERMS, ONNX_OUTLINES):
        model = onnx.load(whole / name, load_external_data=False)
        written = {entry.key: entry.value for entry in model.metadata_props}
        assert NetworkConfig.from_json(json.loads(written["mvg_network"])) == READER
        assert json.loads(written["mvg_card"]) == {"licence": "none", "seed": 1}
        assert written["mvg_checkpoint_sha256"] == file_sha256(whole / "model_reader.pt")
        initial = model.graph.initializer
        inside, outside = ([one for one in initial if bool(one.external_data) is kind] for kind in (False, True))
        assert max(int(np.prod(one.dims)) for one in inside) < onnx_storage.LEAST_HALVED
        places = {entry.value for one in outside for entry in one.external_data if entry.key == "location"}
        assert places == {"model_reader.pt"}


def test_files_that_hold_their_numbers_say_the_same_and_decode_several_rows(whole: Path, tmp_path: Path) -> None:
    export(whole / "model_reader.pt", tmp_path)
    one, other = (onnx_reader(folder, whole / "model_reader.pt", "cpu", 1) for folder in (whole, tmp_path))
    seen = one.look(body(64, 96)[None])
    np.testing.assert_array_equal(seen.terms, other.look(body(64, 96)[None]).terms)
    scores = np.random.default_rng(0).random((2, 5, SCORES, 16, 24), np.float32)
    rows = one.outlines(scores[0], scores[1], seen, 0)
    np.testing.assert_array_equal(rows, other.outlines(scores[0], scores[1], seen, 0))
    (together,) = other._outlines.run(["logits"], {
        "scores": scores[0], "others": scores[1], "coarse": seen.coarse.repeat(5, 0), "fine": seen.fine.repeat(5, 0)})
    np.testing.assert_allclose(together[:, 0], rows, atol=1e-5)


# --- found beside the weights ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_come_with_the_reader_beside_them_or_without(folder: Path, backend: str) -> None:
    found = load(folder / "model.pt", backend)
    assert reader_sha256(found) == file_sha256(folder / "model_reader.pt")
    assert reader_sha256(RememberingBackend(found, 10**9)) == reader_sha256(found)
    assert reader_of(RememberingBackend(found, 10**9)) is found.reader
    (folder / "model_reader.pt").unlink()
    for name in (ONNX_TERMS, ONNX_OUTLINES):  # left over: nothing asks for them
        assert (folder / name).is_file()
    found = load(folder / "model.pt", backend)
    assert found.reader is None
    assert (reader_of(found), reader_sha256(found)) == (None, "")


@pytest.mark.parametrize("name", ["own", "mvg_compact"])
def test_a_users_own_weights_bring_their_reader(whole: Path, home: Path, name: str) -> None:
    (home / "weights").mkdir(parents=True)
    for old, new in (("model", name), ("model_reader", f"{name}_reader")):
        shutil.copy(whole / f"{old}.pt", home / "weights" / f"{new}.pt")
    assert reader_sha256(load(Path(name), "torch")) == file_sha256(whole / "model_reader.pt")
    shutil.copytree(whole, home / "onnx")
    assert reader_sha256(load(Path(name), "onnx")) == file_sha256(whole / "model_reader.pt")


def test_what_is_tuned_keeps_the_reader(whole: Path) -> None:
    backend = RememberingBackend(load(whole / "model.pt", "torch"), 10**9)
    label = np.zeros((32, 32), np.uint8)
    label[8:20, 8:20] = 3
    support = Support((Prompt(0.2 + 0.5 * (label > 0).astype(np.float32), label, "s", 0.0),), Task.segmentation())
    tuned, _ = tuned_backend(backend, support, TuningConfig(steps=1))
    assert type(tuned) is TorchBackend
    assert reader_of(tuned) is reader_of(backend) is not None


# --- what is wrong is refused with what to do ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reader_that_was_changed_is_refused(folder: Path, backend: str) -> None:
    path = folder / "model_reader.pt"
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(WeightsError, match=r"model_reader\.pt was changed or damaged: .*Restore the file"):
        load(folder / "model.pt", backend)


def test_another_network_under_the_readers_name_is_refused(folder: Path) -> None:
    write_weights(folder / "model_reader.pt")
    with pytest.raises(CheckpointError, match=r"model_reader\.pt holds a 'compact' network .*move it away, or rename"):
        load(folder / "model.pt", "torch")
    with pytest.raises(WeightsError, match=r"model_reader_terms\.onnx in .* was made from other weights than "):
        load(folder / "model.pt", "onnx")


def test_a_reader_is_no_network_to_predict_with(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a 'reader' network: prediction needs a 'compact' one"):
        Predictor.load(whole / "model_reader.pt", backend="torch")


def test_a_reader_that_is_missing_or_no_weight_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no reader .*r\.pt: restore it .*or do without"):
        reader_network(tmp_path / "r.pt")
    (tmp_path / "r.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"r\.pt cannot be loaded safely"):
        reader_network(tmp_path / "r.pt")


def swap(folder: Path, name: str) -> None:
    """One file of another reader."""
    other = folder / "other"
    other.mkdir()
    export(add_reader(other, seed=2), other)
    for each in (name, f"{name}.sha256"):
        shutil.copy(other / each, folder)


@pytest.mark.parametrize("name", [ONNX_TERMS, ONNX_OUTLINES])
@pytest.mark.parametrize(("spoil", "message"), [
    (lambda path: path.unlink(), "{name} is missing: run `mvg export-onnx`"),
    (lambda path: path.with_name(f"{path.name}.sha256").unlink(), "{name} cannot be checked: copy it too, or run"),
    (lambda path: path.write_bytes(b"nothing"), "{name} was changed or damaged: .*Run `mvg export-onnx` again"),
    (lambda path: (path.write_bytes(b"nothing"), record_checksum(path)), "{name} cannot be loaded .*run `mvg export"),
    (lambda path: swap(path.parent, path.name), r"{name} in .* was made from other weights than .*model_reader\.pt: "
     "run `mvg export-onnx` again"),
], ids=["missing", "unchecked", "damaged", "not ONNX", "of another reader"])
def test_onnx_files_that_are_not_right_are_refused(folder: Path, name: str, spoil: Callable[[Path], Any], message: str
                                                   ) -> None:
    spoil(folder / name)
    with pytest.raises(WeightsError, match=message.replace("{name}", name.replace(".", r"\."))):
        load(folder / "model.pt", "onnx")


def test_onnx_files_do_not_read_their_numbers_from_another_reader(folder: Path, home: Path) -> None:
    """The graphs are of the right weights, but what lies beside them is not."""
    shutil.copytree(folder, home / "onnx")
    for path in folder.glob("*.onnx*"):
        path.unlink()
    assert load(folder / "model.pt", "onnx").reader is not None
    write_weights(home / "onnx" / "model_reader.pt", READER, seed=2)
    with pytest.raises(WeightsError, match=r"were made from another model_reader\.pt than the one beside them: run"):
        load(folder / "model.pt", "onnx")


# --- commands and the server ---


def test_the_export_command_writes_the_reader_too(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.onnx*"):
        path.unlink()
    for output in (folder, tmp_path / "elsewhere"):
        arguments = ["export-onnx", "--weights", str(folder / "model.pt"), "--output", str(output)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert f"written: {output / ONNX_OUTLINES}" in result.output.replace("\n", "").replace("written", "\nwritten")
        checksum = file_sha256(folder / "model_reader.pt")
        assert onnx_reader(output, folder / "model_reader.pt", "cpu", 1).checkpoint_sha256 == checksum
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, "--overwrite" in result.output) == (2, True)
    sizes = [(output / ONNX_TERMS).stat().st_size for output in (folder, tmp_path / "elsewhere")]
    assert sizes[0] < sizes[1]


def test_safetensors_bring_their_reader(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    arguments = ["export-safetensors", "--weights", str(whole / "model.pt"), str(tmp_path / "own.safetensors")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    one, other = (load(path, "torch") for path in (whole / "model.pt", tmp_path / "own.safetensors"))
    assert reader_sha256(other) == file_sha256(tmp_path / "own_reader.safetensors")
    image = body(64, 64)[None]
    np.testing.assert_array_equal(one.reader.look(image).terms, other.reader.look(image).terms)
    (tmp_path / "own.safetensors").unlink()
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "own_reader.safetensors" in result.output.replace("\n", "")) == (2, True)


def test_info_says_which_reader_there_is(folder: Path) -> None:
    facts = json.loads(CliRunner().invoke(app, ["info", "--json", "--weights", str(folder / "model.pt")]).stdout)
    assert facts["weights"]["reader_sha256"] == file_sha256(folder / "model_reader.pt")
    assert facts["network"] == TINY.to_json()
    assert facts["reader"]["network"] == READER.to_json()
    assert facts["reader"]["card"] == {"licence": "none", "seed": 1}
    assert facts["reader"]["parameters"] == sum(one.numel() for one in tiny_network(READER).parameters())
    (folder / "model_reader.pt").write_bytes(b"nothing")
    result = CliRunner().invoke(app, ["info", "--weights", str(folder / "model.pt")])
    assert (result.exit_code, "model_reader.pt was changed or damaged" in result.output) == (2, True)
    (folder / "model_reader.pt").unlink()
    facts = json.loads(CliRunner().invoke(app, ["info", "--json", "--weights", str(folder / "model.pt")]).stdout)
    assert (facts["weights"]["reader_sha256"], "reader" in facts) == ("", False)


@pytest.mark.parametrize("reader", [None, "c" * 64])
def test_the_server_says_which_reader_answers(reader: str | None) -> None:
    beside = None if reader is None else TorchReader(tiny_network(READER), "cpu", reader)
    backend: Backend = TorchBackend(tiny_network(), "cpu", "a" * 64, reader=beside)
    weights = Solver(Predictor(backend), "own").described()["weights"]
    assert (weights["sha256"], weights["reader_sha256"]) == ("a" * 64, reader or "")
