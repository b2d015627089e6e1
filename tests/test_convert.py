"""Checkpoints of other projects: loaded by name, resized where that has a meaning, refused with a reason elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mvg_core.network.checkpoint import EXTRA_KEY, load_network, save_weights
from mvg_core.network.config import NetworkConfig
from mvg_core.network.convert import convert_checkpoint, interpolate_positions, load_weights, read_weights
from mvg_core.network.errors import CheckpointError
from mvg_core.network.vit import VisionTransformerPainter

TINY = NetworkConfig(
    architecture="vit",
    size=16,
    widths=(16,),
    heads=2,
    depth=3,
    mlp_ratio=2.0,
    patch=8,
    position_grid=2,
    merge_after=1,
    feature_blocks=(1, 2),
    decoder_width=4,
)
GOLDEN_FILE = Path(__file__).parent / "golden" / "reference_tiny.npz"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(3)
    network = VisionTransformerPainter(TINY)
    return {name: torch.randn_like(value) for name, value in network.state_dict().items() if name != EXTRA_KEY}


def _save(folder: Path, content: Any) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(content, path)
    return path


def test_a_painter_checkpoint_loads_whole_and_paints_as_the_reference(tmp_path):
    with np.load(GOLDEN_FILE) as arrays:
        golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    model = {f"module.{name.removeprefix('param/')}": value for name, value in golden.items() if "param/" in name}
    path = _save(tmp_path, {"model": model, "epoch": 3, "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.95))})
    config = NetworkConfig(
        architecture="vit",
        size=32,
        widths=(32,),
        heads=2,
        depth=24,
        mlp_ratio=2.0,
        patch=8,
        position_grid=4,
        decoder_width=8,
    )
    network, report = convert_checkpoint(path, config)
    with torch.no_grad():
        painted = network.eval().paint_canvas(golden["image"], golden["label"], golden["hidden"].flatten(1))
    assert (painted - golden["prediction"]).abs().max() < 1e-5
    assert report.is_complete
    assert report.kind == "painter"
    assert set(report.loaded) == {name.removeprefix("module.") for name in model}
    assert (report.missing, report.unused, report.reshaped) == ((), (), ())


def test_a_converted_network_is_saved_with_its_configuration(tmp_path, weights):
    network, report = convert_checkpoint(_save(tmp_path, weights), TINY)
    assert report.is_complete  # although the checkpoint has no configuration
    network.card["licence"] = "unknown"
    save_weights(network, tmp_path / "converted.pt")
    loaded = load_network(tmp_path / "converted.pt")
    assert isinstance(loaded, VisionTransformerPainter)
    assert (loaded.config, loaded.card) == (TINY, {"licence": "unknown"})
    assert torch.equal(loaded.pos_embed, weights["pos_embed"].half().float())


def test_the_configuration_in_one_of_our_own_files_is_no_weight(tmp_path, weights):
    network, _ = convert_checkpoint(_save(tmp_path, weights), TINY)
    save_weights(network, tmp_path / "ours.pt")
    larger = dataclasses.replace(TINY, position_grid=3)
    converted, report = convert_checkpoint(tmp_path / "ours.pt", larger)
    assert converted.config == larger
    assert (report.missing, report.unused) == ((), (EXTRA_KEY,))


def test_an_mae_checkpoint_fills_the_encoder_only(tmp_path, weights):
    shared = ("pos_embed", "patch_embed.", "blocks.", "norm.")
    mae = {name: value for name, value in weights.items() if name.startswith(shared) and "rel_pos" not in name}
    encoder = set(mae)
    mae |= {"cls_token": torch.zeros(1, 1, 16), "decoder_pos_embed": torch.zeros(1, 5, 8)}
    # Same names as ours, other meanings; the mask token even has a shape that could be mistaken.
    mae |= {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 16)}
    network, report = convert_checkpoint(_save(tmp_path, {"model": mae}), TINY)
    assert report.kind == "encoder"
    assert not report.is_complete
    assert set(report.loaded) == encoder
    assert set(report.unused) == set(mae) - encoder
    assert set(report.missing) == set(weights) - encoder
    assert torch.equal(network.state_dict()["blocks.2.mlp.fc1.weight"], weights["blocks.2.mlp.fc1.weight"])
    assert not network.blocks[0].get_parameter("attn.rel_pos_h").any()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 2},
        lambda weights: {"state_dict": {"model": weights}},
        lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}},
    ],
)
def test_wrapping_keys_and_prefixes_are_taken_off(tmp_path, weights, wrap):
    found = read_weights(_save(tmp_path, wrap(weights)))
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_half_precision_weights_become_float32(tmp_path, weights):
    halves = {name: value.half() for name, value in weights.items()}
    network, _ = convert_checkpoint(_save(tmp_path, halves), TINY)
    assert network.pos_embed.dtype == torch.float32
    assert torch.equal(network.pos_embed, halves["pos_embed"].float())


def test_positions_are_resized_and_reported(tmp_path, weights):
    larger = dataclasses.replace(TINY, size=24, position_grid=3)
    network, report = convert_checkpoint(_save(tmp_path, weights), larger)
    state = network.state_dict()
    assert torch.equal(state["pos_embed"][:, 0], weights["pos_embed"][:, 0])  # of the class token
    expected = torch.nn.functional.interpolate(
        weights["pos_embed"][:, 1:].reshape(1, 2, 2, 16).permute(0, 3, 1, 2), size=(3, 3), mode="bicubic"
    )
    torch.testing.assert_close(state["pos_embed"][:, 1:].reshape(1, 3, 3, 16).permute(0, 3, 1, 2), expected)
    offsets = weights["blocks.0.attn.rel_pos_w"]  # (3, 8) -> (5, 8)
    torch.testing.assert_close(state["blocks.0.attn.rel_pos_w"][1], 0.6 * offsets[0] + 0.4 * offsets[1])
    assert report.is_complete
    assert len(report.reshaped) == 1 + 2 * 3
    assert "pos_embed: (1, 5, 16) -> (1, 10, 16)" in report.reshaped
    assert "blocks.0.attn.rel_pos_h: (7, 8) -> (11, 8)" in report.reshaped


def test_bicubic_positions_worked_by_hand():
    # A 1 x 1 grid has one value everywhere. On columns 0, 1 the centre of three falls midway: by symmetry the mean.
    constant = interpolate_positions(torch.tensor([5.0, 2.0]).view(1, 2, 1), 3).flatten()
    assert constant[0] == 5.0
    torch.testing.assert_close(constant[1:], torch.full((9,), 2.0))
    ramp = interpolate_positions(torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0]).view(1, 5, 1), 3).flatten()[1:].view(3, 3)
    # The first of three lies at -1/6, 5/6 past the border's copy of column 0; cubic kernel with a = -0.75, and only
    # the neighbour at distance 1 + 1/6 is a copy of column 1.
    distance, a = Fraction(7, 6), Fraction(-3, 4)
    overshoot = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    expected = torch.tensor([float(overshoot), 0.5, float(1 - overshoot)]).expand(3, 3)
    torch.testing.assert_close(ramp, expected)


def test_positions_without_a_class_token_get_a_zero_one():
    positions = torch.arange(1.0, 5.0).view(1, 4, 1)
    assert interpolate_positions(positions, 2).flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_positions_of_no_square_grid_are_refused():
    with pytest.raises(CheckpointError, match="6 positions"):
        interpolate_positions(torch.zeros(1, 6, 4), 2)


def test_missing_and_unused_names_are_listed(weights):
    del weights["norm.bias"]
    weights["type_token_cls"] = torch.zeros(1)
    report = load_weights(VisionTransformerPainter(TINY), weights)
    assert (report.missing, report.unused) == (("norm.bias",), ("type_token_cls",))
    assert str(report).splitlines() == [
        f"painter checkpoint: {len(weights) - 1} parameters loaded",
        "1 missing:",
        "  norm.bias",
        "1 unused:",
        "  type_token_cls",
    ]


def test_a_network_of_another_width_is_refused_and_unchanged(weights):
    network = VisionTransformerPainter(dataclasses.replace(TINY, widths=(32,)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"mask_token: \(1, 1, 1, 16\) -> \(1, 1, 1, 32\)"):
        load_weights(network, weights)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_of_something_else_are_refused():
    with pytest.raises(CheckpointError, match="none of the 1 names"):
        load_weights(VisionTransformerPainter(TINY), {"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"epoch": 3}, r"holds no weights; its keys are \['epoch'\]"),
        ({"model": {}}, "holds no weights"),
        ({"model": {"a": torch.zeros(1)}, "path": Fraction(1, 2)}, "object of type fractions.Fraction"),
    ],
)
def test_files_without_plain_weights_are_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_weights(_save(tmp_path, content))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: b"<!DOCTYPE html>",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:40] + b"\0" * 200 + raw[240:],
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused(tmp_path, weights, damage, zipped):
    path = tmp_path / "checkpoint.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="is not a PyTorch checkpoint, or is damaged"):
        read_weights(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth cannot be read: No such file"):
        read_weights(tmp_path / "absent.pth")


def test_allowing_the_namespace_is_undone_after_reading(tmp_path, weights):
    read_weights(_save(tmp_path, weights))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
