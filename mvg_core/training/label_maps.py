"""Label maps without images: where they come from, and images painted from them.

Source: contrast randomisation as in SynthSeg (Billot et al. 2023, Med Image Anal 86:102789); smooth random shapes as in
SynthMorph (Hoffmann et al. 2022, arXiv 2004.10282).

Shape letters: B episodes, N images of an episode, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mvg_core.training.augmentation import bernoulli, gaussian_blur, smooth_noise, uniform

N_VALUES = 256
FIRST_SHAPE = 200
"""Label numbers from here on are pasted organ shapes, below are regions of smooth noise."""


def random_regions(batch: int, size: int, generator: Generator) -> Tensor:
    """Smooth random regions (B, size, size), int64: the largest of several smooth noise fields at each pixel."""
    n_regions = int(torch.randint(2, 9, (1,), generator=generator, device=generator.device))
    grid = int(torch.randint(3, 9, (1,), generator=generator, device=generator.device))
    fields = smooth_noise((batch, n_regions), grid, size, generator)
    return fields.argmax(dim=1)


def paste_shapes(regions: Tensor, masks: Tensor, generator: Generator) -> Tensor:
    """Paste real organ shapes at random places and sizes onto label maps.

    Args:
        regions: label maps (B, H, W), int64.
        masks: binary shapes (B, P, H, W); a later one covers an earlier one.
        generator: source of randomness.

    Returns:
        Label maps (B, H, W) with shape p numbered `FIRST_SHAPE + p`.
    """
    batch, n_shapes, size, _ = masks.shape
    mass = masks.float().mean((2, 3)).clamp_min(1e-4)
    axis = (torch.arange(size, device=masks.device) + 0.5) / size * 2 - 1
    centre_x = (masks * axis).float().mean((2, 3)) / mass
    centre_y = (masks * axis[:, None]).float().mean((2, 3)) / mass
    # Every shape is scaled so that it covers between 0.5 % and 8 % of the image.
    wanted = torch.exp(uniform((batch, n_shapes), -5.3, -2.5, generator))
    scale = (mass / wanted).sqrt()
    angle = uniform((batch, n_shapes), -torch.pi, torch.pi, generator)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    place = uniform((batch, n_shapes, 2), -0.7, 0.7, generator)
    shift_x = centre_x - cos * place[..., 0] + sin * place[..., 1]
    shift_y = centre_y - sin * place[..., 0] - cos * place[..., 1]
    theta = torch.stack([torch.stack([cos, -sin, shift_x], -1), torch.stack([sin, cos, shift_y], -1)], -2)
    grid = F.affine_grid(theta.flatten(0, 1), [batch * n_shapes, 1, size, size], align_corners=False)
    pasted = F.grid_sample(masks.flatten(0, 1)[:, None].float(), grid, mode="nearest", align_corners=False)
    pasted = pasted.reshape(batch, n_shapes, size, size) > 0.5
    for p in range(n_shapes):
        regions = torch.where(pasted[:, p], FIRST_SHAPE + p, regions)
    return regions


def paint_contrast(label_maps: Tensor, generator: Generator, *, same_contrast: float = 0.85) -> Tensor:
    """Images in [0, 1] of label maps: every label gets a mean intensity and a texture.

    Args:
        label_maps: (B, N, H, W), int64 below 256.
        generator: source of randomness.
        same_contrast: probability that all images of an episode share one contrast.

    Returns:
        Images (B, N, H, W).
    """
    batch, n_images, size, _ = label_maps.shape
    means = uniform((batch, 1, N_VALUES), 0, 1, generator)
    own = uniform((batch, n_images, N_VALUES), 0, 1, generator)
    jitter = torch.randn((batch, n_images, N_VALUES), generator=generator, device=generator.device) * 0.03
    means = torch.where(bernoulli((batch, 1, 1), same_contrast, generator), means + jitter, own)
    black = bernoulli((batch, 1), 0.6, generator)  # label 0 is mostly air
    means[:, :, 0] = torch.where(black, 0.0, means[:, :, 0])
    spread = uniform((batch, 1, N_VALUES), 0, 0.08, generator) * bernoulli((batch, 1, 1), 0.8, generator)

    flat = label_maps.flatten(2)
    image = means.gather(2, flat).reshape(label_maps.shape)
    texture = torch.randn(label_maps.shape, generator=generator, device=generator.device)
    coarse = smooth_noise((batch, n_images), 24, size, generator)
    amount = spread.expand(-1, n_images, -1).gather(2, flat).reshape(label_maps.shape)
    image = image + amount * (texture + coarse)
    bias = smooth_noise((batch, n_images), 4, size, generator)
    image = image * torch.exp(uniform((batch, 1, 1, 1), 0, 0.3, generator) * bias)
    blur = uniform((batch, 1), 0.2, 1.6, generator).expand(-1, n_images)
    return gaussian_blur(image, blur).clamp(0, 1)
