"""Low-rank adapters: a network learns a few numbers beside its weights, and is saved as plain weights.

Every adapted weight W (out, ...) becomes W + B A, with A (rank, inputs) random and B (out, rank) zero at first, so that
an adapted network starts as the one it was. PyTorch's own parametrisations compute the sum wherever the weight is read:
modules keep their code, for convolutions as for linear layers.

Source: Hu et al. 2021, LoRA, arXiv 2106.09685 (with its scale alpha / rank fixed at 1).
"""

from __future__ import annotations

import re

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from mvg_core.network import ConfiguredModule, create_network
from mvg_core.network.checkpoint import plain_state


class LowRank(nn.Module):
    """Adds B A to a weight.

    Args:
        weight: (out, ...), what is adapted.
        rank: of the sum, at least 1.
        generator: source of randomness.
    """

    def __init__(self, weight: Tensor, rank: int, generator: Generator) -> None:
        super().__init__()
        inputs = weight[0].numel()
        first = torch.randn((rank, inputs), generator=generator) * inputs**-0.5
        self.a = nn.Parameter(first.to(weight.device, weight.dtype))
        self.b = nn.Parameter(weight.new_zeros((weight.shape[0], rank)))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, ...) -> the same shape."""
        with torch.autocast(weight.device.type, enabled=False):  # a small sum must not be rounded to bf16
            return weight + (self.b @ self.a).reshape(weight.shape)


def add_adapters(network: nn.Module, rank: int = 8, layers: str = "", seed: int = 0) -> int:
    """Freeze a network and give its linear layers and convolutions adapters, in place.

    Args:
        network: without adapters.
        rank: of the adapters; a weight with fewer rows or columns gets none.
        layers: regular expression searched for in the names of modules; empty takes all.
        seed: of A.

    Returns:
        The number of parameters that can still change.

    Raises:
        ValueError: the rank is below 1, no layer fits, or there are adapters already.
    """
    if rank < 1:
        raise ValueError(f"the rank of adapters must be at least 1, got {rank}")
    if has_adapters(network):
        raise ValueError("the network has adapters already: merge them first (merge_adapters)")
    chosen = [module for name, module in network.named_modules()
              if isinstance(module, (nn.Linear, nn.Conv2d)) and re.search(layers, name)
              and rank < min(module.weight.shape[0], module.weight[0].numel())]
    if not chosen:
        raise ValueError(f"no linear layer or convolution has a name with {layers!r} in it and more than {rank} rows "
                         "and columns: choose other layers or a smaller rank")
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in chosen:
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, generator))
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def has_adapters(network: nn.Module) -> bool:
    """Whether any module has an adapter."""
    return any(isinstance(module, LowRank) for module in network.modules())


def merge_adapters(network: ConfiguredModule) -> ConfiguredModule:
    """A network of plain weights that paints what the adapted one paints; the adapted one stays as it is."""
    merged = create_network(network.config)
    merged.load_state_dict(plain_state(network))
    device = next(network.parameters()).device
    return merged.to(device).train(network.training)
