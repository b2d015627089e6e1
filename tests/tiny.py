"""A network small enough to be made in a test."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from mvg_core.network import ConfiguredModule, create_network
from mvg_core.network.checkpoint import save_weights
from mvg_core.network.config import NetworkConfig

TINY = NetworkConfig(size=32, widths=(16, 16, 32, 32, 32), heads=2, depth=1, slots=8, position_grid=4)
READER = NetworkConfig(architecture="reader", size=32, widths=(8, 8, 16, 16, 16), terms=8)
WITH_MAPS = replace(TINY, maps=3, maps_widths=(8, 8, 8, 8))
READER = NetworkConfig(architecture="reader", size=32, widths=(8, 8, 8, 8, 8), terms=8)


def tiny_network(config: NetworkConfig = TINY, seed: int = 0) -> ConfiguredModule:
    """Random weights, also where training starts at zero."""
    torch.manual_seed(seed)
    network = create_network(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    network.card = {"licence": "none", "seed": seed}
    return network


def add_reader(folder: Path, seed: int = 1) -> Path:
    """A reader beside the `model.pt` of a folder; what was made from another one goes."""
    for old in folder.glob("model_reader*"):
        old.unlink()
    return write_weights(folder / "model_reader.pt", READER, seed)


def write_weights(path: Path, config: NetworkConfig = TINY, seed: int = 0) -> Path:
    """A weight file with its checksum beside it."""
    save_weights(tiny_network(config, seed), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    return path
