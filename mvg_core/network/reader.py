"""Label maps by a readout: what is learned for all structures, so that the rest can be fitted to an example.

A convolutional pyramid makes D terms of every 4 x 4 pixels of an image. How much of a label lies there is a weighted
sum of them; the weights are those that explain the label maps of the prompts best, by ridge regression
(`mvg_core.label_readout`). A small decoder, the same for every label, turns these scores into outlines at full
resolution. So every labelled pixel of every prompt counts at once, nothing is tuned, and a prompt costs one pass.

Shape letters: B images, H W pixels (multiples of 32), h w = H/4 W/4, D terms, R rows: one for each label that is read.

Source: ridge regression as the last layer of a network that learns to learn: Bertinetto et al. 2019, arXiv 1805.08136;
a fitted target model whose scores are decoded: Bhat et al. 2020 (Learning What to Learn for video object segmentation),
arXiv 2003.11540.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvg_core.label_readout import N_PLACE_TERMS, REDUCED, SCORES
from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.network.config import NORM_GROUPS, NetworkConfig

SHOWN_COARSE = SHOWN_FINE = 16
"""Channels of the image that the decoder sees, at 1/4 and at 1/2 of the resolution."""
_COARSE, _FINE = 40, 24
"""Channels of the decoder there."""


class SteadyNorm(nn.GroupNorm):
    """Group normalisation that is as exact for large images as for small ones, and the same wherever it is computed.

    PyTorch (with channels last) and ONNX Runtime add all pixels up in one number of single precision, which makes
    features of 1024 x 1024 pixels wrong in the second digit; sums of rows, then of those, lose nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, in single precision."""
        if self.training:  # small images, and less to keep for the gradient
            return super().forward(input)
        x = input.float()
        x = x - self._mean(x)
        scale = self.weight[:, None, None] * torch.rsqrt(self._mean(x * x) + self.eps)
        return x * scale + self.bias[:, None, None]

    def _mean(self, x: Tensor) -> Tensor:
        """Of every group, for each of its channels: (B, C, 1, 1)."""
        each = self.num_channels // self.num_groups
        groups = x.mean(dim=3).mean(dim=2).reshape(-1, self.num_groups, each).mean(dim=2, keepdim=True)
        return groups.repeat(1, 1, each).reshape(-1, self.num_channels, 1, 1)


class NormedBlock(nn.Module):
    """Two 3 x 3 convolutions of normalised channels around a ReLU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = SteadyNorm(NORM_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.conv2(F.relu(self.conv1(self.norm(x))))


def _blocks(channels: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(NormedBlock(channels) for _ in range(number)))


class LabelReader(ConfiguredModule):
    """Makes the terms of images, and decodes scores into outlines.

    Args:
        config: of architecture `reader`.

    Attributes:
        place_gain: how much each term of the place in the image counts, against the learned ones.
        log_shrinkage: logarithm of the ridge, for moments whose weights sum to 1.
        balance: labels count by their number of pixels to the power of 1 - this, 0 to 1.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        half, quarter, eighth, sixteenth, coarsest = config.widths
        self.stem = nn.Conv2d(4, half, 3, padding=1)
        self.down2 = NormedBlock(half)
        self.to_4 = nn.Conv2d(half, quarter, 2, stride=2)
        self.down4 = _blocks(quarter, 2)
        self.to_8 = nn.Conv2d(quarter, eighth, 2, stride=2)
        self.down8 = _blocks(eighth, 2)
        self.to_16 = nn.Conv2d(eighth, sixteenth, 2, stride=2)
        self.down16 = _blocks(sixteenth, 2)
        self.to_32 = nn.Conv2d(sixteenth, coarsest, 2, stride=2)
        self.bottom = _blocks(coarsest, 2)
        self.from_32 = nn.Conv2d(coarsest, 4 * sixteenth, 1)
        self.up16 = NormedBlock(sixteenth)
        self.from_16 = nn.Conv2d(sixteenth, 4 * eighth, 1)
        self.up8 = NormedBlock(eighth)
        self.from_8 = nn.Conv2d(eighth, 4 * quarter, 1)
        self.up4 = _blocks(quarter, 2)
        self.terms = nn.Conv2d(quarter, config.terms, 1)
        self.norm = SteadyNorm(1, config.terms)
        self.place_gain = nn.Parameter(torch.full((N_PLACE_TERMS,), 0.3))
        self.log_shrinkage = nn.Parameter(torch.tensor(-4.0))
        self.balance = nn.Parameter(torch.tensor(0.5))
        self.coarse = nn.Conv2d(quarter, SHOWN_COARSE, 1)
        self.fine = nn.Conv2d(half, SHOWN_FINE, 1)
        self.look = nn.Conv2d(2 * SCORES + SHOWN_COARSE, _COARSE, 3, padding=1)
        self.outline4 = NormedBlock(_COARSE)
        self.refine = nn.Conv2d(_COARSE, 4 * SHOWN_FINE, 1)
        self.look_closer = nn.Conv2d(2 * SHOWN_FINE, _FINE, 3, padding=1)
        self.outline2 = NormedBlock(_FINE)
        self.out = nn.Conv2d(_FINE, 4, 3, padding=1)
        self.score_gain = nn.Parameter(torch.tensor(4.0))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is read of an image, and what its decoding needs to see of it.

        Args:
            image: (B, 1, H, W) in [0, 1].

        Returns:
            Terms (B, D, h, w), float32: the learned ones, the place, and 1; then the image for the decoder,
            (B, 16, h, w) and (B, 16, H/2, W/2).
        """
        fine = self.down2(F.relu(self.stem(F.pixel_unshuffle(image * 2 - 1, 2))))
        quarter = self.down4(self.to_4(fine))
        eighth = self.down8(self.to_8(quarter))
        sixteenth = self.down16(self.to_16(eighth))
        coarsest = self.bottom(self.to_32(sixteenth))
        sixteenth = self.up16(sixteenth + F.pixel_shuffle(self.from_32(coarsest), 2))
        eighth = self.up8(eighth + F.pixel_shuffle(self.from_16(sixteenth), 2))
        quarter = self.up4(quarter + F.pixel_shuffle(self.from_8(eighth), 2))
        terms = self.norm(self.terms(quarter)).float()
        place = _places(terms) * self.place_gain[:, None, None]
        return torch.cat([terms, place, torch.ones_like(terms[:, :1])], dim=1), self.coarse(quarter), self.fine(fine)

    def decode(self, scores: Tensor, others: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
        """How firmly each label is seen: logits (R, 1, H, W), to be compared between the labels of one image.

        Args:
            scores: (R, SCORES, h, w) of a label, bounded (`label_readout.scores`).
            others: (R, SCORES, h, w) the highest of all other labels of its image.
            coarse: (R, 16, h, w) of its image.
            fine: (R, 16, H/2, W/2) of its image.
        """
        seen = torch.cat([scores * 2 - 1, others * 2 - 1, coarse], dim=1)
        outline = F.pixel_shuffle(self.refine(self.outline4(F.relu(self.look(seen)))), 2)
        closer = self.outline2(F.relu(self.look_closer(torch.cat([outline, fine], dim=1))))
        plain = F.interpolate(scores[:, :1], scale_factor=float(REDUCED), mode="bilinear", align_corners=False)
        return F.pixel_shuffle(self.out(closer), 2).float() + self.score_gain * plain


def _places(like: Tensor) -> Tensor:
    """Where each pixel lies (B, N_PLACE_TERMS, h, w): x, y, x x, x y, y y in [-1, 1] from edge to edge."""
    batch, _, height, width = like.shape
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width * 2 - 1
    y, x = y[:, None].expand(height, width), x[None].expand(height, width)
    return torch.stack([x, y, x * x, x * y, y * y])[None].expand(batch, -1, -1, -1)
