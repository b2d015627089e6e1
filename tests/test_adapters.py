"""Adapters: silent at first, the only thing that learns, and gone once the weights are saved."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny import TINY, tiny_network
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvg_core.network import ConfiguredModule, NetworkConfig
from mvg_core.network.checkpoint import load_network, plain_state, save_weights
from mvg_core.training.adapters import LowRank, add_adapters, has_adapters, merge_adapters

TINY_VIT = NetworkConfig(architecture="vit", size=16, widths=(16,), heads=2, depth=3, patch=8, position_grid=2,
                         merge_after=1, feature_blocks=(1, 2), decoder_width=4)


def adapted(config: NetworkConfig = TINY, rank: int = 4, layers: str = "") -> ConfiguredModule:
    network = tiny_network(config)
    add_adapters(network, rank, layers)
    return network


def adapter(layer: nn.Module) -> LowRank:
    """Of a layer of one's own."""
    (found,) = (module for module in layer.modules() if isinstance(module, LowRank))
    return found


def learned(network: ConfiguredModule) -> ConfiguredModule:
    """Adapters as if they had learned something."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, LowRank):
            module.b.data = 0.1 * torch.randn(module.b.shape, generator=generator)
    return network


def paint(network: nn.Module, side: int = 32) -> Tensor:
    with torch.no_grad():
        return network(torch.rand(2, 5, side, side, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("config", [TINY, TINY_VIT])
def test_an_adapted_network_paints_what_it_painted(config: NetworkConfig) -> None:
    assert torch.equal(paint(adapted(config), config.size), paint(tiny_network(config), config.size))


@pytest.mark.parametrize("config", [TINY, TINY_VIT])
def test_merged_weights_paint_what_the_adapted_ones_do(config: NetworkConfig) -> None:
    network = learned(adapted(config))
    before = paint(network, config.size)
    assert (before - paint(tiny_network(config), config.size)).abs().max() > 0.01
    merged = merge_adapters(network)
    torch.testing.assert_close(paint(merged, config.size), before, rtol=0, atol=1e-5)
    assert set(merged.state_dict()) == set(tiny_network(config).state_dict())
    assert merged.card == network.card
    assert not has_adapters(merged)


def test_merging_leaves_the_adapted_network_and_its_copies_as_they_are() -> None:
    network = learned(adapted())
    twin = copy.deepcopy(network)
    before = paint(network)
    merge_adapters(twin)
    assert has_adapters(network)
    assert has_adapters(twin)
    assert torch.equal(paint(network), before)
    assert torch.equal(paint(twin), before)


def test_a_weight_is_the_sum_worked_by_hand() -> None:
    layer = nn.Conv2d(2, 3, kernel_size=(1, 2), bias=False)
    layer.weight.data = torch.arange(12.0).reshape(3, 2, 1, 2)
    add_adapters(layer, 1)
    low_rank = adapter(layer)
    low_rank.a.data = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    low_rank.b.data = torch.tensor([[10.0], [0.0], [-1.0]])
    expected = torch.tensor([[10.0, 1, 22, 3], [4, 5, 6, 7], [7, 9, 8, 11]])
    assert torch.equal(layer.weight.reshape(3, 4), expected)
    assert torch.equal(plain_state(layer)["weight"].reshape(3, 4), expected)


def test_only_adapters_change() -> None:
    network = adapted()
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):  # while B is zero, A has no gradient
        optimizer.zero_grad()
        network(torch.rand(1, 5, 32, 32)).square().mean().backward()
        optimizer.step()
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith((".a", ".b"))}
    gradients = {name for name, value in network.named_parameters() if value.grad is not None}
    assert gradients == changed


def test_the_number_of_what_learns_is_worked_by_hand() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.Conv2d(4, 5, 3), nn.LayerNorm(8), nn.Linear(2, 9))
    # Rank 3: 3 x (6 + 8) and 3 x (4 x 9 + 5); the last layer has two columns only.
    assert add_adapters(network, 3) == 42 + 123
    assert [parametrize.is_parametrized(layer) for layer in network] == [True, True, False, False]
    assert add_adapters(nn.Sequential(nn.Linear(6, 8), nn.Linear(6, 8)), 3, layers="^1$") == 42


def test_autocast_does_not_round_the_sum() -> None:
    layer = nn.Linear(8, 8)
    add_adapters(layer, 2)
    low_rank = adapter(layer)
    low_rank.b.data.normal_()
    expected = layer.get_parameter("parametrizations.weight.original") + low_rank.b @ low_rank.a
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)


def test_saved_weights_are_plain(tmp_path: Path) -> None:
    network = learned(adapted())
    save_weights(network, tmp_path / "weights.pt")
    found = load_network(tmp_path / "weights.pt")
    torch.testing.assert_close(paint(found), paint(network), rtol=0, atol=0.02)  # half precision
    for name, value in merge_adapters(network).named_parameters():
        assert torch.equal(found.get_parameter(name), value.half().float()), name
    assert found.card == network.card
    torch.jit.script(found)


def test_a_resumed_run_finds_its_adapters() -> None:
    network = learned(adapted())
    other = adapted()
    other.load_state_dict(network.state_dict())
    assert torch.equal(paint(other), paint(network))


@pytest.mark.parametrize(("rank", "layers", "expected"), [
    (0, "", "at least 1, got 0"), (4, "no_such_layer", "'no_such_layer'"), (10_000, "", "more than 10000 rows")])
def test_adapters_that_fit_nothing_are_refused(rank: int, layers: str, expected: str) -> None:
    network = tiny_network()
    with pytest.raises(ValueError, match=expected):
        add_adapters(network, rank, layers)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_adapters_on_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(adapted(), 2)
