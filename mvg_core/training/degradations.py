"""Image-to-image tasks made from clean images: what the network is shown, and what it must paint.

Every function takes clean images (B, N, H, W) in [0, 1], draws one setting for each episode, and returns the degraded
images in the same shape, clipped to [0, 1]. The clean images are the targets.

Shape letters: B episodes, N images of an episode (the query first), H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mvg_core.training.augmentation import bernoulli, gaussian_blur, smooth_noise, uniform


def _normal(shape: torch.Size, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def add_noise(clean: Tensor, generator: Generator) -> Tensor:
    """Gaussian, Rician, speckle or spatially correlated noise, sigma 0.02 to 0.3."""
    batch = clean.shape[0]
    sigma = torch.exp(uniform((batch, 1, 1, 1), -3.9, -1.2, generator))
    first, second = _normal(clean.shape, generator), _normal(clean.shape, generator)
    gaussian = clean + sigma * first
    rician = torch.sqrt((clean + sigma * first) ** 2 + (sigma * second) ** 2)
    speckle = clean * (1 + 2 * sigma * first)
    width = uniform((batch, 1), 0.4, 1.2, generator).expand(clean.shape[:2])
    grain = gaussian_blur(first, width)
    correlated = clean + sigma * grain / grain.std((2, 3), keepdim=True)
    choice = torch.rand((batch, 1, 1, 1), generator=generator, device=generator.device)
    noisy = torch.where(
        choice < 0.55, gaussian, torch.where(choice < 0.7, rician, torch.where(choice < 0.85, speckle, correlated))
    )
    return noisy.clamp(0, 1)


def random_holes(batch: int, n_images: int, size: int, generator: Generator) -> Tensor:
    """Holes (B, N, size, size), bool: rectangles, ellipses and smooth blobs, 1 to 3 an image."""
    axis = (torch.arange(size, device=generator.device) + 0.5) / size * 2 - 1
    x, y = axis[None, None, None, :], axis[None, None, :, None]
    holes = torch.zeros((batch, n_images, size, size), dtype=torch.bool, device=generator.device)
    for number in range(3):
        centre = uniform((batch, n_images, 2, 1, 1), -0.7, 0.7, generator)
        radius = torch.exp(uniform((batch, n_images, 2, 1, 1), -2.7, -0.9, generator))
        dx, dy = (x - centre[:, :, 0]) / radius[:, :, 0], (y - centre[:, :, 1]) / radius[:, :, 1]
        box = torch.maximum(dx.abs(), dy.abs()) < 1
        wobble = smooth_noise((batch, n_images), 6, size, generator) * 0.35
        ellipse = dx**2 + dy**2 + wobble * bernoulli((batch, n_images, 1, 1), 0.5, generator) < 1
        hole = torch.where(bernoulli((batch, n_images, 1, 1), 0.4, generator), box, ellipse)
        present = bernoulli((batch, n_images, 1, 1), 1.0 if number == 0 else 0.35, generator)
        holes = holes | (hole & present)
    return holes


def cut_holes(clean: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Black holes (sometimes grey or noisy); also returns the holes (B, N, H, W), bool."""
    batch, n_images, size = clean.shape[0], clean.shape[1], clean.shape[-1]
    holes = random_holes(batch, n_images, size, generator)
    grey = uniform((batch, 1, 1, 1), 0, 1, generator)
    noise = torch.rand(clean.shape, generator=generator, device=generator.device)
    choice = torch.rand((batch, 1, 1, 1), generator=generator, device=generator.device)
    fill = torch.where(choice < 0.8, torch.zeros_like(clean), torch.where(choice < 0.9, grey, noise))
    return torch.where(holes, fill, clean), holes


def blur(clean: Tensor, generator: Generator) -> Tensor:
    """Gaussian blur, sigma 0.7 to 3 pixels."""
    sigma = uniform((clean.shape[0], 1), 0.7, 3.0, generator).expand(clean.shape[:2])
    return gaussian_blur(clean, sigma).clamp(0, 1)


def lower_resolution(clean: Tensor, generator: Generator) -> Tensor:
    """Down- and up-sampled by 2 to 4 in one or both directions (one factor for the whole batch)."""
    size = clean.shape[-1]
    factors = [2, 3, 4][int(torch.randint(3, (1,), generator=generator, device=generator.device))]
    small_rows = size // factors
    small_columns = size // factors if bool(bernoulli((1,), 0.5, generator)) else size
    small = F.interpolate(clean, size=(small_rows, small_columns), mode="area")
    return F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False).clamp(0, 1)


def bias_field(clean: Tensor, generator: Generator) -> Tensor:
    """A smooth multiplicative shading, different in every image."""
    batch, n_images, size = clean.shape[0], clean.shape[1], clean.shape[-1]
    field = smooth_noise((batch, n_images), 3, size, generator)
    return (clean * torch.exp(uniform((batch, 1, 1, 1), 0.2, 0.6, generator) * field)).clamp(0, 1)


def remap_intensity(images: Tensor, generator: Generator, *, monotone: float = 0.3) -> Tensor:
    """A random smooth intensity curve for each episode: the simplest cross-modality synthesis."""
    batch = images.shape[0]
    knots = uniform((batch, 7), 0, 1, generator)
    rising = torch.sort(knots, dim=1).values
    knots = torch.where(bernoulli((batch, 1), monotone, generator), rising, knots)
    position = images.clamp(0, 1) * 6
    below = position.floor().clamp(max=5)
    share = position - below
    share = share * share * (3 - 2 * share)
    flat = below.long().flatten(1)
    low = knots.gather(1, flat).reshape(images.shape)
    high = knots.gather(1, flat + 1).reshape(images.shape)
    return low * (1 - share) + high * share
