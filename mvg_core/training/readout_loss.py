"""What a readout that is fitted to the prompts costs on the query: how feature maps learn to be read out.

The fit is a linear system, so gradients reach the maps of prompts and query alike, and the prior.

Shape letters: B episodes, N images of an episode (the query first), K maps, D = K + 2 terms, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mvg_core.holes import continued
from mvg_core.readout import OUTSIDE, PRIOR_OF
from mvg_core.training.episodes import KINDS, Episodes

PRIOR_OF_KIND = {"denoising": "denoising", "restoration": "denoising", "inpainting": "inpainting",
                 "synthesis": "synthesis"}
LEAST_ERROR = {"denoising": 1e-4, "inpainting": 3e-3, "synthesis": 1e-4}
"""Mean squared error that is good enough. In inpainting, little must be gained in the dark, where a guess is always
right, at the cost of holes in what is to be seen."""


def readout_costs(maps: Any, shown: Tensor, answers: Tensor, counts: Tensor, holes: Tensor, priors: Tensor) -> Tensor:
    """Logarithm of the mean squared error of each episode (B,).

    Args:
        maps: a `FeatureMaps`.
        shown: (B, N, H, W) in [0, 1], holes filled.
        answers: (B, N, H, W) in [0, 1].
        counts: (B, N, H, W) how much each pixel counts.
        holes: (B, N, H, W), 1 in holes, else 0.
        priors: (B,) int64 index into `PRIOR_OF`.
    """
    off = read_out(maps, shown, answers, counts, holes, priors) - answers[:, 0]
    error = (off.square() * counts[:, 0]).sum((1, 2))
    least = torch.tensor([LEAST_ERROR[kind] for kind in PRIOR_OF], device=shown.device)[priors]
    return torch.log(error / counts[:, 0].sum((1, 2)).clamp(min=1e-3) + least)


def read_out(maps: Any, shown: Tensor, answers: Tensor, counts: Tensor, holes: Tensor, priors: Tensor) -> Tensor:
    """Answers (B, H, W) of the queries; see `readout_costs`."""
    batch, images, height, width = shown.shape
    made = maps(shown.reshape(-1, 1, height, width), holes.reshape(-1, 1, height, width)).float()
    pixels = shown.reshape(-1, 1, height, width)
    terms = torch.cat([made, pixels, torch.ones_like(pixels)], dim=1).reshape(batch, images, -1, height * width)
    with torch.autocast(shown.device.type, enabled=False):  # sums over all pixels
        of_prompts = terms[:, 1:].transpose(1, 2).flatten(2)
        counted = of_prompts * counts[:, 1:].flatten(1)[:, None]
        shrinkage = maps.log_shrinkage.exp()[priors][:, None, None]
        expected = maps.prior[priors][:, :, None]
        products = counted @ of_prompts.transpose(1, 2) + shrinkage * torch.eye(terms.shape[2], device=shown.device)
        weights = torch.linalg.solve(products, counted @ answers[:, 1:].flatten(1)[:, :, None] + shrinkage * expected)
        return (weights.transpose(1, 2) @ terms[:, 0]).reshape(batch, height, width)


def episode_costs(maps: Any, episodes: Episodes) -> Tensor:
    """The same of image-to-image episodes (B,), all of them."""
    priors = torch.tensor([PRIOR_OF.index(PRIOR_OF_KIND[KINDS[kind]]) for kind in episodes.kinds.tolist()],
                          device=episodes.kinds.device)
    shown, answers = episodes.images[:, :, 0], episodes.labels.mean(dim=2)
    # The sampler lets the pixels of holes, and no others, count more than once.
    is_hole = (priors == PRIOR_OF.index("inpainting"))[:, None, None, None] & (episodes.weights[:, :, 0] > 1)
    counts = torch.ones_like(shown)
    if bool(is_hole.any()):
        filled = continued(shown.cpu().numpy(), is_hole.cpu().numpy())
        shown = torch.from_numpy(filled).to(shown)
        inpainted = (priors == PRIOR_OF.index("inpainting"))[:, None, None, None]
        counts = torch.where(inpainted & ~is_hole, OUTSIDE, counts)
    return readout_costs(maps, shown, answers, counts, is_hole.to(shown), priors)
