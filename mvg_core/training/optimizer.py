"""How weights are moved: the learning rate of every step and layer, and what is decayed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mvg_core.training.config import TrainingConfig

BETAS = (0.9, 0.95)
NOT_DECAYED = ("position", "pos_embed", "rel_pos", "token")
"""Parts of the names of position embeddings and learned tokens."""


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to `final_rate` of the top, at step 0, 1, ..."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    share = (step - config.warm_up) / max(1, config.iterations - config.warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)


def vit_layer(name: str, depth: int) -> int:
    """The layer that a parameter of a vision transformer belongs to: embeddings 0, blocks 1 to depth, decoder last.

    Source: BEiT (Bao et al. 2022, arXiv 2106.08254) and MAE (He et al. 2022, arXiv 2111.06377), fine-tuning.
    """
    if name.startswith(("pos_embed", "patch_embed", "mask_token", "segment_token")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def parameter_groups(network: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups for an optimizer, each with its `weight_decay`, and with the share `rate_scale` of the learning rate.

    Matrices and kernels are decayed; norms, biases, tokens and position embeddings are left alone, and what needs no
    gradient is left out. With a layer decay, each layer learns at `layer_decay` times the rate of the one after it.

    Args:
        network: its trainable parameters are grouped.
        weight_decay: of matrices and kernels.
        layer_decay: 1 treats all layers alike.

    Raises:
        ValueError: a layer decay for a network that is no vision transformer.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    config = getattr(network, "config", None)
    if layer_decay != 1.0 and getattr(config, "architecture", None) != "vit":
        raise ValueError(f"layer_decay {layer_decay} needs layers in a row, which only architecture 'vit' has: use 1")
    last = config.depth + 1 if config is not None and layer_decay != 1.0 else 0
    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        layers.setdefault(vit_layer(name, last - 1) if last else 0, []).append((name, parameter))
    groups = []
    for layer, members in sorted(layers.items()):
        plain = {name for name, p in members if p.ndim < 2 or any(part in name for part in NOT_DECAYED)}
        for decay, chosen in ((weight_decay, [p for name, p in members if name not in plain]),
                              (0.0, [p for name, p in members if name in plain])):
            if chosen or not last:
                groups.append({"params": chosen, "weight_decay": decay, "rate_scale": layer_decay ** (last - layer)})
    return groups


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the groups of a network; after sharding, if the network is sharded."""
    groups = parameter_groups(network, config.weight_decay, config.layer_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)
