"""Weight files: they say which network they belong to, are never half written, and never run code."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import TINY, tiny_painter
from torch import Tensor

from mvg_core.network.checkpoint import (
    EXTRA_KEY,
    decode_extra,
    load_network,
    read_state,
    save_atomically,
    save_weights,
)
from mvg_core.network.compact import CompactPainter
from mvg_core.network.config import NetworkConfig
from mvg_core.network.errors import CheckpointError
from mvg_core.network.vit import VisionTransformerPainter

TINY_VIT = NetworkConfig(architecture="vit", size=16, widths=(16,), heads=2, depth=2, patch=8, position_grid=2,
                         merge_after=1, feature_blocks=(0, 1), decoder_width=4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_weights(tiny_painter(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def extra(network: object = None, card: object = None, **more: object) -> Tensor:
    """What a state dict says of itself, as bytes."""
    text = json.dumps({"network": TINY.to_json() if network is None else network, "card": card or {}, **more})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


# --- round trip ---


def test_safetensors_hold_the_same_weights(saved, tmp_path):
    network = load_network(saved)
    save_weights(network, tmp_path / "weights.safetensors")
    loaded = load_network(tmp_path / "weights.safetensors")
    assert loaded.config == network.config
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, network.get_parameter(name)), name
    (tmp_path / "weights.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_network(tmp_path / "weights.safetensors")


def test_weights_come_back_in_half_precision(saved):
    original, loaded = tiny_painter(), load_network(saved)
    assert isinstance(loaded, CompactPainter)
    assert loaded.config == TINY
    assert not loaded.training
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, original.get_parameter(name).half().float()), name
    image = torch.rand(1, 5, 32, 32, generator=torch.Generator().manual_seed(1))
    assert (loaded(image) - original(image)).abs().max() < 0.02


def test_the_file_is_a_plain_state_dict_of_halves(saved):
    state = torch.load(saved, weights_only=True)
    assert type(state) is dict
    assert {value.dtype for name, value in state.items() if name != EXTRA_KEY} == {torch.float16}
    fresh = CompactPainter(TINY)
    assert fresh.load_state_dict(state).missing_keys == []


def test_the_card_survives_every_step(tmp_path):
    network = tiny_painter()
    network.card = {"licence": "Apache-2.0", "training": ["brain_ms", "nerve_us"], "note": "µ-Ultraschall", "dice": 0.5}
    save_weights(network, tmp_path / "first.pt")
    again = load_network(tmp_path / "first.pt")
    assert again.card == network.card
    save_weights(again, tmp_path / "second.pt")
    assert load_network(tmp_path / "second.pt").card == network.card


def test_the_vision_transformer_carries_its_configuration_too(tmp_path):
    torch.manual_seed(0)
    network = VisionTransformerPainter(TINY_VIT)
    save_weights(network, tmp_path / "vit.pt")
    loaded = load_network(tmp_path / "vit.pt")
    assert isinstance(loaded, VisionTransformerPainter)
    assert loaded.config == TINY_VIT
    assert torch.equal(loaded.pos_embed, network.pos_embed.half().float())


def test_safetensors_hold_the_same(tmp_path, saved):
    pytest.importorskip("safetensors")
    network = tiny_painter()
    network.card = {"licence": "Apache-2.0"}
    path = tmp_path / "weights.safetensors"
    save_weights(network, path)
    loaded = load_network(path)
    assert (loaded.config, loaded.card) == (TINY, network.card)
    assert path.read_bytes()[:2] != saved.read_bytes()[:2] == b"PK"
    plain = load_network(saved)
    assert all(torch.equal(value, plain.get_parameter(name)) for name, value in loaded.named_parameters())
    for damaged in (b"", path.read_bytes()[:-1], saved.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"weights\.safetensors cannot be loaded safely"):
            load_network(path)


# --- weights of another network ---


def test_weights_of_another_configuration_are_refused_by_field():
    other = CompactPainter(dataclasses.replace(TINY, slots=16, depth=2))
    with pytest.raises(CheckpointError, match=r"network: depth 1 instead of 2, slots 8 instead of 16\. .*load_network"):
        other.load_state_dict(tiny_painter().state_dict())


def test_weights_of_the_other_architecture_are_refused():
    with pytest.raises(CheckpointError, match="architecture vit instead of compact"):
        CompactPainter(TINY).load_state_dict(VisionTransformerPainter(TINY_VIT).state_dict(), strict=False)


def test_another_native_size_or_regularisation_is_no_other_network():
    larger = CompactPainter(dataclasses.replace(TINY, size=64, drop_path=0.1))
    larger.load_state_dict(tiny_painter().state_dict())
    assert larger.config.size == 64
    assert torch.equal(larger.image_encoder.position, tiny_painter().image_encoder.position)


# --- files that are not ours, or not any more ---


def test_an_absent_file_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weight file .*absent\.pt"):
        load_network(tmp_path / "absent.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: b"\n",
        lambda raw: b"<!DOCTYPE html><title>404</title>",
        lambda raw: raw[:100],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1],
        lambda raw: raw[:64] + bytes(64) + raw[128:],
        lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 255]) + raw[len(raw) // 2 + 1 :],
    ],
    ids=["empty", "newline", "page", "beginning", "half", "last-byte", "header", "bit-rot"],
)
def test_damaged_files_are_refused(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(CheckpointError, match="cannot be loaded safely: it is damaged or no weight file"):
        load_network(saved)


class Intruder:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["beside the weights", "as a plain pickle"])
def test_code_in_a_file_is_not_run(saved, tmp_path, how):
    trace = tmp_path / "was-here"
    if how == "as a plain pickle":
        saved.write_bytes(pickle.dumps({"weight": Intruder(trace)}))
    else:
        torch.save({**torch.load(saved, weights_only=True), "more": Intruder(trace)}, saved)
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        load_network(saved)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Intruder(trace)))  # the same would have run it
    assert trace.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": {"a": torch.zeros(1)}}, {"step": 3}, {}])
def test_other_content_than_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no plain state dict: convert it with `mvg convert-checkpoint`"):
        read_state(tmp_path / "other.pt")


def test_weights_without_configuration_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="does not say which network it belongs to: convert it"):
        load_network(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "state",
    [
        torch.tensor(list(b"{"), dtype=torch.uint8),
        torch.tensor([255, 254], dtype=torch.uint8),
        torch.tensor(list(b"[]"), dtype=torch.uint8),
        torch.tensor(list(b"{}"), dtype=torch.uint8),
        extra(network={"size": 32, "colour": 3}),
        extra(network={"size": "large"}),
        extra(network={"heads": 0}),
        extra(network=[1]),
        extra(card=3),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match="configuration cannot be read"):
        decode_extra(state)
    torch.save({**tiny_painter().state_dict(), EXTRA_KEY: state}, tmp_path / "tampered.pt")
    with pytest.raises(CheckpointError, match="configuration cannot be read"):
        load_network(tmp_path / "tampered.pt")


def _without_a_bias(state: dict[str, Tensor]) -> None:
    del state["mix1.correct.bias"]


def _with_a_stranger(state: dict[str, Tensor]) -> None:
    state["extra.weight"] = torch.zeros(1)


def _reshaped(state: dict[str, Tensor]) -> None:
    state["mix1.correct.bias"] = torch.zeros(4)


def _of_a_wider_network(state: dict[str, Tensor]) -> None:
    state[EXTRA_KEY] = extra(network={**TINY.to_json(), "slots": 16})


def _of_an_impossible_network(state: dict[str, Tensor]) -> None:
    state[EXTRA_KEY] = extra(network={**TINY.to_json(), "widths": [8, 8, 56, 32, 32]})  # 56 channels in 3 groups


@pytest.mark.parametrize(
    "tamper", [_without_a_bias, _with_a_stranger, _reshaped, _of_a_wider_network, _of_an_impossible_network]
)
def test_weights_that_do_not_fit_their_own_configuration_are_refused(saved, tamper):
    state = torch.load(saved, weights_only=True)
    tamper(state)
    torch.save(state, saved)
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load_network(saved)


# --- writing ---


def test_an_old_file_survives_when_writing_fails(saved, monkeypatch):
    before = saved.read_bytes()

    def run_out_of_space(state: dict[str, Any], file: Any) -> None:
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", run_out_of_space)
    with pytest.raises(OSError, match="No space left"):
        save_weights(tiny_painter(seed=1), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_an_interrupt_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(state: dict[str, Any], file: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"a": torch.zeros(1)}, tmp_path / "new.pt")
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "state.pt"
    save_atomically({"a": torch.zeros(1)}, path)
    save_atomically({"a": torch.ones(1)}, path)
    assert read_state(path)["a"].item() == 1.0


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_others_may_read_what_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        save_atomically({"a": torch.zeros(1)}, tmp_path / "state.pt")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "state.pt").stat().st_mode) == 0o644
