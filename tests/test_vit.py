"""The vision transformer: equal to the reference, blind to what is hidden, and refusing what does not fit."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mvg_core.network.config import NetworkConfig, preset
from mvg_core.network.vit import (
    IMAGE_MEAN,
    IMAGE_STD,
    Block,
    GridAttention,
    VisionTransformerPainter,
    interpolate_offsets,
)
from mvg_core.training.losses import painting_loss

GOLDEN = Path(__file__).parent / "golden"
REFERENCE_TINY = NetworkConfig(
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
SHALLOW = NetworkConfig(
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


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "reference_tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def shallow() -> VisionTransformerPainter:
    torch.manual_seed(0)
    return VisionTransformerPainter(SHALLOW).eval()


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The state dict without the configuration, whose length is not frozen."""
    return {name: value for name, value in network.state_dict().items() if name != "_extra_state"}


def _image(batch: int = 2, size: int = 16) -> Tensor:
    return torch.rand((batch, 5, size, size), generator=torch.Generator().manual_seed(1))


def test_paints_and_scores_as_the_reference_network(golden):
    network = VisionTransformerPainter(REFERENCE_TINY).eval()
    weights = {name.removeprefix("param/"): value for name, value in golden.items() if "param/" in name}
    network.load_state_dict(weights | {"_extra_state": network.get_extra_state()})
    with torch.no_grad():
        painted = network.paint_canvas(golden["image"], golden["label"], golden["hidden"].flatten(1))
    loss = painting_loss(painted, golden["label"], golden["hidden"], golden["loss_weight"])
    # Tighter than the 1e-5 that is promised: another LayerNorm epsilon or GELU changes the answer by only 1e-6.
    assert (painted - golden["prediction"]).abs().max() < 5e-7
    assert abs(loss - golden["loss"]) < 5e-7


def test_state_dict_names_of_the_tiny_network_are_the_references(golden):
    expected = {name.removeprefix("param/"): tuple(value.shape) for name, value in golden.items() if "param/" in name}
    found = {name: tuple(value.shape) for name, value in weights_of(VisionTransformerPainter(REFERENCE_TINY)).items()}
    assert found == expected


def test_state_dict_of_the_large_preset_is_frozen():
    with torch.device("meta"):
        network = VisionTransformerPainter(preset("mvg_vit_large"))
    assert "_extra_state" in network.state_dict()
    found = [f"{name} {'x'.join(map(str, value.shape))}" for name, value in weights_of(network).items()]
    assert found == (GOLDEN / "vit_large_state_dict.txt").read_text().splitlines()


def test_large_preset_has_as_many_parameters_as_the_paper():
    with torch.device("meta"):
        network = VisionTransformerPainter(preset("mvg_vit_large"))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 370.7


def test_forward_stacks_the_prompt_above_the_query_in_imagenet_units(shallow, monkeypatch):
    seen: dict[str, Tensor] = {}

    def echo(image: Tensor, label: Tensor, hidden: Tensor) -> Tensor:
        seen.update(image=image, label=label, hidden=hidden)
        return label

    monkeypatch.setattr(shallow, "paint_canvas", echo)
    image = torch.zeros(1, 5, 16, 16)
    image[:, 0], image[:, 1], image[:, 2:5] = 0.485, 1.0, 0.25
    query_label = torch.full((1, 3, 16, 16), 0.75)
    painted = shallow(image, query_label)

    torch.testing.assert_close(painted, query_label)  # the lower half, back in [0, 1]
    assert seen["image"][0, 0, 16:].abs().max() < 1e-6  # the query equals the mean of the red channel
    assert seen["image"][0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229)
    assert seen["image"][0, 2, 0, 0] == pytest.approx((1 - 0.406) / 0.225)
    assert seen["label"][0, 1, 0, 0] == pytest.approx((0.25 - 0.456) / 0.224)
    assert seen["hidden"].tolist() == [[False] * 4 + [True] * 4]


def test_forward_returns_colours_without_clamping(shallow):
    last = shallow.decoder_pred[3]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([10.0, 0.0, -10.0])
    expected = [mean + std * bias for mean, std, bias in zip(IMAGE_MEAN, IMAGE_STD, (10, 0, -10), strict=True)]
    painted = shallow(_image())
    assert painted.shape == (2, 3, 16, 16)
    torch.testing.assert_close(painted, torch.tensor(expected).view(1, 3, 1, 1).expand_as(painted))


def test_the_prompt_label_matters_and_the_query_label_does_not(shallow):
    image = _image()
    other = image.clone()
    other[:, 2:5] = 1 - image[:, 2:5]
    assert (shallow(image) - shallow(other)).abs().max() > 1e-5
    assert torch.equal(shallow(image), shallow(image, torch.rand(2, 3, 16, 16)))


def test_nan_under_hidden_patches_of_both_labels_changes_no_bit_and_no_gradient(shallow):
    image, query_label = _image(), torch.rand(2, 3, 16, 16)
    hidden = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    hidden[:, 0, 0, 1] = hidden[:, 1, 1, 0] = True

    def paint() -> tuple[Tensor, Tensor | None]:
        shallow.zero_grad()
        painted = shallow(image, query_label, hidden)
        painted.sum().backward()
        return painted, shallow.patch_embed.proj.weight.grad

    painted, gradient = paint()
    image[:, 2:5, :8, 8:] = math.nan
    query_label[:, :, 8:, :8] = math.nan
    leaked, leaked_gradient = paint()
    assert gradient is not None
    assert leaked_gradient is not None
    assert torch.equal(leaked, painted)
    assert torch.equal(leaked_gradient, gradient)


def test_visible_patches_of_the_query_label_are_seen(shallow):
    hidden = torch.ones(2, 2, 2, 2, dtype=torch.bool)
    hidden[:, 1, 0, 0] = False
    dark, bright = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    bright[:, :, :8, :8] = 1.0
    assert not torch.equal(shallow(_image(), dark, hidden), shallow(_image(), bright, hidden))


def test_other_sizes_interpolate_the_positions(shallow):
    assert shallow(_image(size=24)).shape == (2, 3, 24, 24)


def test_the_position_of_the_class_token_is_unused(shallow):
    before = shallow(_image())
    shallow.pos_embed.data[:, 0] = 100.0
    assert torch.equal(shallow(_image()), before)


def test_every_other_parameter_gets_a_gradient(shallow):
    shallow(_image()).square().sum().backward()
    assert [name for name, parameter in shallow.named_parameters() if parameter.grad is None] == []
    assert [
        name
        for name, parameter in shallow.named_parameters()
        if parameter.grad is not None and not parameter.grad.any()
    ] == []


def test_attention_adds_the_offset_of_rows_to_the_logits():
    # Two rows, one column, width 1; query = value = token, key = 0: the logits are token x offset weight alone.
    attention = GridAttention(width=1, heads=1, grid=(2, 1))
    attention.qkv.weight.data = torch.tensor([[1.0], [0.0], [1.0]])
    attention.qkv.bias.data.zero_()
    attention.proj.weight.data.fill_(1.0)
    attention.proj.bias.data.zero_()
    attention.rel_pos_h.data = torch.tensor([[0.5], [0.0], [0.25]])  # key below, same row, key above the query
    first, second = 2.0, 4.0
    upper = math.exp(first * 0.5)  # the upper token's weight on the lower one, relative to itself
    lower = math.exp(second * 0.25)
    found = attention(torch.tensor([first, second]).view(1, 2, 1, 1)).flatten()
    expected = [(first + upper * second) / (1 + upper), (lower * first + second) / (lower + 1)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_offsets_are_resized_linearly():
    # 3 -> 5 values: new centres fall on old positions -0.2, 0.4, 1, 1.6, 2.2, clamped to 0..2.
    offsets = torch.tensor([[0.0], [10.0], [20.0]])
    assert interpolate_offsets(offsets, 2) is offsets
    torch.testing.assert_close(interpolate_offsets(offsets, 3).flatten(), torch.tensor([0.0, 4.0, 10.0, 16.0, 20.0]))


def test_drop_path_rises_to_its_rate_and_leaves_evaluation_alone():
    torch.manual_seed(0)
    network = VisionTransformerPainter(dataclasses.replace(SHALLOW, drop_path=0.5))
    assert [block.drop_path for block in network.blocks if isinstance(block, Block)] == [0.0, 0.25, 0.5]
    network.eval()
    assert torch.equal(network(_image()), network(_image()))
    network.train()
    assert not torch.equal(network(_image(8)), network(_image(8)))


def test_a_dropped_branch_leaves_the_tokens_and_a_kept_one_grows():
    torch.manual_seed(0)
    block = Block(width=4, heads=1, hidden_width=4, grid=(2, 2), drop_path=0.75).train()
    dropped = block._drop(torch.ones(400, 1, 1, 4))
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert all(len(sample.unique()) == 1 for sample in dropped)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.25)  # 3 standard errors


def test_activation_checkpointing_recomputes_blocks_and_keeps_gradients():
    torch.manual_seed(0)
    network = VisionTransformerPainter(dataclasses.replace(SHALLOW, drop_path=0.5)).train()
    calls: list[int] = []
    network.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients() -> list[Tensor]:
        calls.clear()
        network.zero_grad()
        torch.manual_seed(7)
        network(_image()).square().sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    plain = gradients()
    assert len(calls) == 1
    network.set_activation_checkpointing(True)
    recomputed = gradients()
    assert len(calls) == 2
    assert len(plain) == len(recomputed)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    network.eval()
    calls.clear()
    network(_image()).sum().backward()
    assert len(calls) == 1


def test_several_prompts_are_refused(shallow):
    with pytest.raises(ValueError, match="takes one prompt"):
        shallow(torch.zeros(1, 9, 16, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 5, 16),), "image must be"),
        ((torch.zeros(1, 5, 16, 16), torch.zeros(1, 3, 8, 16)), "query_label must be"),
        ((torch.zeros(1, 5, 12, 16),), "slices of 12 x 16"),
        ((torch.zeros(1, 5, 16, 16), None, torch.ones(1, 8, dtype=torch.bool)), "prompt then of the query"),
        # As many patches as there should be, in another arrangement.
        (
            (torch.zeros(1, 5, 16, 16), torch.zeros(1, 3, 16, 16), torch.ones(1, 2, 4, 1, dtype=torch.bool)),
            "1, 2, 2, 2",
        ),
        ((torch.zeros(1, 5, 16, 16), None, torch.ones(1, 2, 2, 2)), "must be bool"),
        ((torch.zeros(1, 5, 16, 16), None, torch.zeros(1, 2, 2, 2, dtype=torch.bool)), "pass query_label"),
    ],
)
def test_slices_that_do_not_fit_are_refused(shallow, arguments, message):
    with pytest.raises(ValueError, match=message):
        shallow(*arguments)


@pytest.mark.parametrize(
    ("image", "label", "hidden", "message"),
    [
        (torch.zeros(1, 3, 32, 16), torch.zeros(1, 3, 16, 16), torch.ones(1, 8, dtype=torch.bool), "must both be"),
        (torch.zeros(1, 1, 32, 16), torch.zeros(1, 1, 32, 16), torch.ones(1, 8, dtype=torch.bool), "must both be"),
        (torch.zeros(3, 32, 16), torch.zeros(3, 32, 16), torch.ones(1, 8, dtype=torch.bool), "must both be"),
        (torch.zeros(1, 3, 28, 16), torch.zeros(1, 3, 28, 16), torch.ones(1, 6, dtype=torch.bool), "canvas 28 x 16"),
        (torch.zeros(1, 3, 32, 16), torch.zeros(1, 3, 32, 16), torch.ones(1, 6, dtype=torch.bool), "4 x 2 patches"),
        (torch.zeros(1, 3, 32, 16), torch.zeros(1, 3, 32, 16), torch.ones(1, 8), "must be bool"),
    ],
)
def test_canvases_that_do_not_fit_are_refused(shallow, image, label, hidden, message):
    with pytest.raises(ValueError, match=message):
        shallow.paint_canvas(image, label, hidden)


def test_a_compact_configuration_is_refused():
    with pytest.raises(ValueError, match="needs architecture 'vit'"):
        VisionTransformerPainter(NetworkConfig())


@pytest.mark.parametrize("merge_after", [0, 3])
def test_streams_must_be_merged_before_features_are_read(merge_after):
    with pytest.raises(ValueError, match="merge_after"):
        dataclasses.replace(SHALLOW, merge_after=merge_after)
