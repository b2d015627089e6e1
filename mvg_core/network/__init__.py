"""The networks: one configuration, three architectures."""

from __future__ import annotations

from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.network.config import PRESETS, NetworkConfig, preset

__all__ = ["PRESETS", "ConfiguredModule", "NetworkConfig", "create_network", "preset"]


def create_network(config: NetworkConfig) -> ConfiguredModule:
    """The network that a configuration describes, with fresh weights."""
    if config.architecture == "vit":
        from mvg_core.network.vit import VisionTransformerPainter

        return VisionTransformerPainter(config)
    if config.architecture == "reader":
        from mvg_core.network.reader import LabelReader

        return LabelReader(config)
    from mvg_core.network.compact import CompactPainter

    return CompactPainter(config)
