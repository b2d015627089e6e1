"""Random spatial warps and intensity changes, batched and on any device.

Shape letters: B episodes, N images of an episode (the query first, then its prompts), H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class WarpConfig:
    """How far images are moved. Ranges are symmetric around 0 unless two numbers are given.

    Attributes:
        zoom: largest magnification of the part of the slice that is shown.
        zoomed: share of episodes that are magnified at all.
        rotation_deg: of the whole episode; every image adds `jitter` times this range.
        shift: of the whole episode, as a fraction of the image side.
        scale: log2 range of a common scaling, separately for x and y in part.
        jitter: share of the ranges that each image of an episode draws for itself.
        elastic: displacement of the smooth deformation, as a fraction of the image side.
        flip: probability of mirroring the whole episode.
    """

    zoom: float = 3.5
    zoomed: float = 0.5
    rotation_deg: float = 25.0
    shift: float = 0.1
    scale: float = 0.35
    jitter: float = 0.35
    elastic: float = 0.03
    flip: float = 0.3


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Uniform numbers in [low, high) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def bernoulli(shape: tuple[int, ...], probability: float, generator: Generator) -> Tensor:
    """Booleans that are True with the given probability."""
    return torch.rand(shape, generator=generator, device=generator.device) < probability


def smooth_noise(shape: tuple[int, ...], grid: int, size: int, generator: Generator) -> Tensor:
    """Standard normal noise on a coarse grid, interpolated to (*shape, size, size)."""
    coarse = torch.randn((math.prod(shape), 1, grid, grid), generator=generator, device=generator.device)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).reshape(*shape, size, size)


def random_grids(centre: Tensor, largest: Tensor, n_images: int, size: int, config: WarpConfig, generator: Generator
                 ) -> Tensor:
    """Sampling grids of whole episodes: one common warp, and a smaller one for each image.

    Args:
        centre: point (x, y) in [-1, 1] that zooming keeps in view (B, 2).
        largest: magnification (B,) that zooming does not exceed; nor does it exceed `config.zoom`.
        n_images: N.
        size: side of the output in pixels.
        config: ranges.
        generator: source of randomness; its device is used.

    Returns:
        Grids (B, N, size, size, 2) for `torch.nn.functional.grid_sample`.
    """
    batch, device = centre.shape[0], generator.device

    def draw(limit: float) -> Tensor:  # (B, N): common part + own part
        own = uniform((batch, n_images), -limit, limit, generator) * config.jitter
        return uniform((batch, 1), -limit, limit, generator) + own

    zoom = largest[:, None].clamp(1, config.zoom) ** uniform((batch, 1), 0.25, 1, generator)
    zoom = torch.where(bernoulli((batch, 1), config.zoomed, generator), zoom, torch.ones_like(zoom))
    angle = draw(math.radians(config.rotation_deg))
    common, stretch = draw(config.scale), draw(config.scale / 3)
    scale_x, scale_y = torch.exp2(common + stretch) / zoom, torch.exp2(common - stretch) / zoom
    flip = torch.where(bernoulli((batch, 1), config.flip, generator), -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Zooming moves the view towards `centre`; without zoom the whole slice stays in view.
    pull = (1 - 1 / zoom)[..., None] * centre[:, None]
    shift = torch.stack([draw(config.shift), draw(config.shift)], -1) / zoom[..., None] + pull  # (B, N, 2)

    axis = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x * flip[..., None, None], y.expand(batch, 1, size, size)
    a, b = (scale_x * cos)[..., None, None], (scale_y * sin)[..., None, None]
    c, d = (scale_x * sin)[..., None, None], (scale_y * cos)[..., None, None]
    grid = torch.stack([a * x - b * y, c * x + d * y], -1) + shift[:, :, None, None]
    amount = uniform((batch, n_images, 1), 0, config.elastic, generator) / zoom[..., None]
    coarse = 4 if bool(bernoulli((1,), 0.5, generator)) else 7
    displacement = smooth_noise((batch, n_images, 2), coarse, size, generator) * amount[..., None, None]
    return grid + displacement.movedim(2, -1)


def warp_images(images: Tensor, grids: Tensor) -> Tensor:
    """Sample images (B, N, H, W) linearly on grids (B, N, S, S, 2) -> (B, N, S, S); 0 outside."""
    batch, n_images = images.shape[:2]
    out = F.grid_sample(images.flatten(0, 1)[:, None].float(), grids.flatten(0, 1), align_corners=False)
    return out[:, 0].reshape(batch, n_images, *out.shape[2:])


def warp_labels(labels: Tensor, grids: Tensor) -> Tensor:
    """Sample label maps (B, N, H, W) at the nearest pixel on grids (B, N, S, S, 2) -> (B, N, S, S), int64."""
    batch, n_images = labels.shape[:2]
    out = F.grid_sample(labels.flatten(0, 1)[:, None].float(), grids.flatten(0, 1), mode="nearest", align_corners=False)
    return out[:, 0].reshape(batch, n_images, *out.shape[2:]).long()


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (B, N, H, W) with their own sigma (B, N) in pixels, at most 4."""
    batch, n_images, height, width = images.shape
    offsets = torch.arange(-8, 9, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.reshape(-1, 1).clamp(1e-3, 4)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # (B N, 17)
    flat = F.pad(images.reshape(1, -1, height, width), (8, 8, 8, 8), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * n_images)
    return F.conv2d(flat, kernel[:, None, :, None], groups=batch * n_images).reshape(images.shape)


def random_intensity(images: Tensor, generator: Generator, *, invert: float = 0.1) -> Tensor:
    """Change contrast, brightness, gamma, bias field, sharpness and noise of images (B, N, H, W) in [0, 1].

    The images of an episode change together, each a little in its own way. Black stays black unless inverted, but for
    noise and a level of at most 0.02.
    """
    batch, n_images, size = images.shape[0], images.shape[1], images.shape[-1]

    def draw(low: float, high: float, own: float) -> Tensor:
        shared = uniform((batch, 1), low, high, generator)
        return (shared + uniform((batch, n_images), -own, own, generator))[..., None, None]

    active = bernoulli((batch, 1, 1, 1), 0.7, generator)
    gamma = torch.exp2(draw(-0.7, 0.7, 0.15))
    changed = images.clamp(1e-4, 1) ** gamma * torch.exp2(draw(-0.4, 0.3, 0.1))
    bias = smooth_noise((batch, n_images), 3, size, generator)
    bias_amount = uniform((batch, 1, 1, 1), 0, 0.3, generator) * bernoulli((batch, 1, 1, 1), 0.3, generator)
    changed = changed * torch.exp(bias * bias_amount)
    out = torch.where(active, changed, images)
    blur = uniform((batch, n_images), 0, 1.2, generator) * bernoulli((batch, 1), 0.2, generator)
    out = gaussian_blur(out, blur)
    noise = uniform((batch, 1, 1, 1), 0, 0.06, generator) * bernoulli((batch, 1, 1, 1), 0.4, generator)
    out = out + noise * torch.randn(out.shape, generator=generator, device=generator.device)
    out = out.clamp(0, 1)
    return torch.where(bernoulli((batch, 1, 1, 1), invert, generator), 1 - out, out)
