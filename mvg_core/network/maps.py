"""Feature maps for image-to-image tasks: what is learned for all of them, so that the rest can be fitted to an example.

A small convolutional pyramid makes K maps of any image, at its own resolution. The answer is a weighted sum of them, of
the image itself and of a constant; the weights are those that turn the prompt images into their labels best, by ridge
regression (`mvg_core.readout`). What the task is, and how strong the noise, is thus read off the prompts exactly and at
once, and the answer is as sharp as the image.

Shape letters: B images, K maps, H W pixels (multiples of 16), D = K + 2 terms of the readout.

Source: ridge regression as the last layer of a network that learns to learn: Bertinetto et al. 2019, arXiv 1805.08136.
Pixels rearranged to half the resolution, for speed: Zhang et al. 2018 (FFDNet), arXiv 1710.04026.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvg_core.readout import IMAGE_TERM, N_OWN_TERMS, PRIOR_OF

FIRST_SHRINKAGE = {"denoising": 3.0, "inpainting": 8.0, "synthesis": 4.0}
"""Logarithms from which training starts: what is missing in a hole says little about the next hole."""


class PlainBlock(nn.Module):
    """Two 3 x 3 convolutions around a ReLU, added to the input; not normalised, so that grey levels are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.conv2(F.relu(self.conv1(x)))


class FeatureMaps(nn.Module):
    """Maps of an image, and what is expected of their readout before any prompt is seen.

    Args:
        maps: K.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the resolution.

    Attributes:
        prior: expected weights of the readout (kinds of task, D).
        log_shrinkage: how firmly that is expected (kinds of task,).
    """

    def __init__(self, maps: int, widths: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse, coarsest = widths
        self.stem = nn.Conv2d(8, fine, 3, padding=1)
        self.down2 = PlainBlock(fine)
        self.to_middle = nn.Conv2d(fine, middle, 2, stride=2)
        self.down4 = PlainBlock(middle)
        self.to_coarse = nn.Conv2d(middle, coarse, 2, stride=2)
        self.down8 = PlainBlock(coarse)
        self.to_coarsest = nn.Conv2d(coarse, coarsest, 2, stride=2)
        self.bottom = nn.Sequential(PlainBlock(coarsest), PlainBlock(coarsest))
        self.from_coarsest = nn.Conv2d(coarsest, 4 * coarse, 1)
        self.up8 = PlainBlock(coarse)
        self.from_coarse = nn.Conv2d(coarse, 4 * middle, 1)
        self.up4 = PlainBlock(middle)
        self.from_middle = nn.Conv2d(middle, 4 * fine, 1)
        self.up2 = nn.Sequential(PlainBlock(fine), PlainBlock(fine))
        self.out = nn.Conv2d(fine, 4 * maps, 3, padding=1)
        prior = torch.randn(len(PRIOR_OF), maps + N_OWN_TERMS) * 0.02
        prior[:, IMAGE_TERM] = 1.0  # the image as it is
        prior[:, -1] = 0.0
        self.prior = nn.Parameter(prior)
        self.log_shrinkage = nn.Parameter(torch.tensor([FIRST_SHRINKAGE[kind] for kind in PRIOR_OF]))

    def forward(self, image: Tensor, hole: Tensor) -> Tensor:
        """Maps (B, K, H, W).

        Args:
            image: (B, 1, H, W) in [0, 1], filled where something is missing (`mvg_core.holes`).
            hole: (B, 1, H, W), 1 there, else 0.
        """
        shown = torch.cat([image * 2 - 1, hole], dim=1)
        fine = self.down2(F.relu(self.stem(F.pixel_unshuffle(shown, 2))))
        middle = self.down4(self.to_middle(fine))
        coarse = self.down8(self.to_coarse(middle))
        coarsest = self.bottom(self.to_coarsest(coarse))
        coarse = self.up8(coarse + F.pixel_shuffle(self.from_coarsest(coarsest), 2))
        middle = self.up4(middle + F.pixel_shuffle(self.from_coarse(coarse), 2))
        fine = self.up2(fine + F.pixel_shuffle(self.from_middle(middle), 2))
        return F.pixel_shuffle(self.out(fine), 2)
