"""UniverSeg's architecture: a U-Net whose blocks mix a query with every example of a support set.

Source: Butoi et al. 2023 (arXiv 2304.06131), section 3.2: the cross-convolution of a query u and examples v_i is
z_i = conv(u || v_i); a block goes on with u' = conv(mean of z_i), v_i' = conv(z_i). Written from the paper.

Shape letters: B queries, S examples, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01


class CrossBlock(nn.Module):
    """One block of the paper: query and examples in, query and examples out, the sides stay as they are."""

    def __init__(self, query_channels: int, example_channels: int, channels: int) -> None:
        super().__init__()
        # conv(u || v) = conv_u(u) + conv_v(v): the query's part is computed once for all examples.
        self.of_query = nn.Conv2d(query_channels, channels, 3, padding=1)
        self.of_example = nn.Conv2d(example_channels, channels, 3, padding=1, bias=False)
        self.query = nn.Conv2d(channels, channels, 3, padding=1)
        self.example = nn.Conv2d(channels, channels, 3, padding=1)
        fan_in = 9 * (query_channels + example_channels)
        for layer in (self.of_query, self.of_example):
            nn.init.normal_(layer.weight, std=(2 / (fan_in * (1 + SLOPE**2))) ** 0.5)
        for layer in (self.query, self.example):
            nn.init.kaiming_normal_(layer.weight, SLOPE)
        for layer in (self.of_query, self.query, self.example):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, query: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Query (B, C, H, W) and examples (B, S, C', H, W) -> the same with the block's channels."""
        batch, n_examples = examples.shape[:2]
        seen = self.of_example(examples.flatten(0, 1)).unflatten(0, (batch, n_examples))
        mixed = F.leaky_relu(self.of_query(query)[:, None] + seen, SLOPE)
        query = F.leaky_relu(self.query(mixed.mean(1)), SLOPE)
        examples = F.leaky_relu(self.example(mixed.flatten(0, 1)), SLOPE)
        return query, examples.unflatten(0, (batch, n_examples))


class UniverSeg(nn.Module):
    """The network.

    Args:
        channels: of each resolution, from fine to coarse; the paper has four times 64.
    """

    def __init__(self, channels: Sequence[int] = (64, 64, 64, 64)) -> None:
        super().__init__()
        self.channels = tuple(channels)
        before = [(1, 2), *((n, n) for n in channels[:-1])]
        self.down = nn.ModuleList(CrossBlock(*sides, n) for sides, n in zip(before, channels, strict=True))
        self.up = nn.ModuleList(CrossBlock(below + n, below + n, n)
                                for n, below in zip(channels[-2::-1], channels[:0:-1], strict=True))
        self.out = nn.Conv2d(channels[0], 1, 1)

    def forward(self, query: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Segment.

        Args:
            query: (B, 1, H, W) in [0, 1]; sides are multiples of 2^(levels - 1).
            images: (B, S, 1, H, W) in [0, 1].
            labels: (B, S, 1, H, W), 0 and 1.

        Returns:
            Logits (B, 1, H, W).
        """
        examples = torch.cat([images, labels], dim=2)
        kept = []
        for level, block in enumerate(self.down):
            if level:
                query, examples = _halved(query), _halved(examples)
            query, examples = block(query, examples)
            kept.append((query, examples))
        kept.pop()
        for block in self.up:
            finer_query, finer_examples = kept.pop()
            query = torch.cat([_doubled(query), finer_query], dim=1)
            examples = torch.cat([_doubled(examples), finer_examples], dim=2)
            query, examples = block(query, examples)
        return self.out(query)


def _halved(images: Tensor) -> Tensor:
    flat = F.max_pool2d(images.flatten(0, -4), 2)
    return flat.reshape(*images.shape[:-2], *flat.shape[-2:])


def _doubled(images: Tensor) -> Tensor:
    flat = F.interpolate(images.flatten(0, -4), scale_factor=2, mode="bilinear", align_corners=False)
    return flat.reshape(*images.shape[:-2], *flat.shape[-2:])
