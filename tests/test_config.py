"""The configuration of a network: refused where it makes no network, and the same after a round trip."""

from __future__ import annotations

import json

import pytest
import torch
from miniature import TINY

from mvg_core.network import PRESETS, create_network, preset
from mvg_core.network.compact import CompactPainter
from mvg_core.network.config import NetworkConfig
from mvg_core.network.vit import VisionTransformerPainter

VIT = {"architecture": "vit", "widths": (16,), "heads": 2, "depth": 4, "feature_blocks": (2, 3), "merge_after": 1}


@pytest.mark.parametrize("config", [*PRESETS.values(), TINY], ids=[*PRESETS, "tiny"])
def test_json_round_trip(config):
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"unknown fields \['colour', 'widht'\]"):
        NetworkConfig.from_json({"size": 32, "widht": 3, "colour": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "unet"}, "architecture 'unet' is unknown: use 'compact', 'vit' or 'reader'"),
        ({"widths": (8, 8)}, "compact needs 5 widths, got 2"),
        ({"widths": (8, 8, 16, 32, 0)}, "widths must be at least 1"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 1, got -1"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"position_grid": 0}, "position_grid must be at least 1, got 0"),
        ({"decoder_width": 0}, "decoder_width must be at least 1, got 0"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"slots": 1}, "slots must be at least 2"),
        ({"size": 40}, "size 40 must be a multiple of patch 16"),
        ({"size": 40, "patch": 8}, "size 40 must be a multiple of 16"),
        ({"heads": 5}, "width 224 cannot be split into 5 heads"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, "drop_path must be in"),
        ({**VIT, "widths": (16, 16)}, "vit needs 1 widths, got 2"),
        ({**VIT, "feature_blocks": (3, 4)}, r"feature_blocks \(3, 4\) must be blocks of a depth of 4"),
        ({**VIT, "feature_blocks": (-1, 2)}, "feature_blocks"),
        ({**VIT, "feature_blocks": ()}, "feature_blocks"),
        ({**VIT, "merge_after": 0}, r"merge_after 0 must be in 1..3: the streams are averaged before .* block, 2"),
        ({**VIT, "merge_after": 4}, "merge_after 4 must be in 1..3"),
    ],
)
def test_what_makes_no_network_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**changes)


def test_vit_fields_are_not_checked_for_compact_and_the_other_way_round():
    assert NetworkConfig(merge_after=0, feature_blocks=()).architecture == "compact"
    assert NetworkConfig(**VIT, size=24, patch=8, slots=1).architecture == "vit"


def test_a_preset_can_be_changed_and_is_checked_again():
    assert preset("mvg_compact", size=128).size == 128
    assert PRESETS["mvg_compact"].size == 192
    with pytest.raises(ValueError, match="size 100"):
        preset("mvg_compact", size=100)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    known = r"\['mvg_compact', 'mvg_reader', 'mvg_vit_large'\]"
    with pytest.raises(ValueError, match=f"no preset 'mvg_huge': choose one of {known}"):
        preset("mvg_huge")


@pytest.mark.parametrize(
    ("name", "kind", "device"),
    [("mvg_compact", CompactPainter, "cpu"), ("mvg_vit_large", VisionTransformerPainter, "meta")],
)
def test_every_preset_makes_its_network(name, kind, device):
    with torch.device(device):
        network = create_network(preset(name))
    assert type(network) is kind
    assert network.config == PRESETS[name]
