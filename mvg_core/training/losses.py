"""What a painted label is worth beside its target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DENOMINATOR_OFFSET = 0.01
"""Added to the summed weight, so that a batch with nothing hidden costs 0 instead of 0 / 0."""


def painting_loss(
    painted: Tensor,
    target: Tensor,
    hidden: Tensor,
    weight: Tensor,
    beta: float = 0.01,
    total_weight: Tensor | None = None,
) -> Tensor:
    """Smooth-L1 between painted and true colours, averaged over what the network had to paint.

    Per pixel and channel d = painted - target costs d^2 / (2 beta) below `beta` and |d| - beta / 2 above. The costs are
    weighted, summed over hidden pixels, and divided by (sum of the same weights + 0.01). Targets outside `hidden` are
    never looked at and may be NaN.

    Source: Ren et al. 2024 (arXiv 2406.05565): smooth-L1 with beta 0.01, background weight 0.1.

    Args:
        painted: (B, C, H, W) colours that the network painted.
        target: (B, C, H, W) true colours, in the units of `painted`.
        hidden: (B, h, w) bool, True = painted by the network; each entry covers H/h x W/w pixels.
        weight: broadcastable to (B, C, H, W), >= 0.
        beta: where the cost turns from quadratic to linear, in the units of `painted`; 0 is plain L1.
        total_weight: summed weight of everything that these images are a part of, from `hidden_weight`; None: they
            are everything.

    Returns:
        A float32 scalar, 0 where nothing is hidden. With `total_weight`, the costs of all parts add up to the cost of
        the whole.

    Raises:
        ValueError: the shapes do not fit, or `hidden` is not boolean.
    """
    _check_shapes(painted, target, hidden)
    pixels = _hidden_pixels(hidden, painted)[:, None]  # (B, 1, H, W)
    painted = painted.float()
    # Selected before the difference: a NaN that is only masked afterwards still poisons the gradient.
    target = torch.where(pixels, target.float(), painted.detach())
    weight = torch.where(pixels, weight.float(), 0.0).expand_as(painted)
    cost = F.smooth_l1_loss(painted, target, reduction="none", beta=beta)
    total = weight.sum() if total_weight is None else total_weight
    return (cost * weight).sum() / (total + DENOMINATOR_OFFSET)


def hidden_weight(images: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """The summed weight that `painting_loss` divides by, a float32 scalar; `images` are painted or target."""
    pixels = _hidden_pixels(hidden, images)[:, None]
    return torch.where(pixels, weight.float(), 0.0).expand_as(images).sum()


def _hidden_pixels(hidden: Tensor, images: Tensor) -> Tensor:
    """(B, h, w) patches as (B, H, W) pixels."""
    rows, columns = images.shape[-2] // hidden.shape[-2], images.shape[-1] // hidden.shape[-1]
    return hidden.repeat_interleave(rows, -2).repeat_interleave(columns, -1)


def _check_shapes(painted: Tensor, target: Tensor, hidden: Tensor) -> None:
    if painted.ndim != 4 or painted.shape != target.shape:
        raise ValueError(
            f"painted and target must both be (B, C, H, W), got {tuple(painted.shape)} and {tuple(target.shape)}"
        )
    if hidden.dtype != torch.bool:
        raise ValueError(f"hidden must be boolean (True = painted by the network), got {hidden.dtype}")
    batch, _, height, width = painted.shape
    if hidden.ndim != 3 or len(hidden) != batch or height % hidden.shape[1] or width % hidden.shape[2]:
        raise ValueError(
            f"hidden must be (B, h, w) with B = {batch}, h dividing {height} and w dividing {width}, "
            f"got {tuple(hidden.shape)}"
        )


def decoded_loss(
    painted: Tensor,
    classes: Tensor,
    palette: Tensor,
    in_palette: Tensor,
    hidden: Tensor,
    temperature: float = 0.1,
    totals: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Dice + cross-entropy of the classes that the painted colours decode to.

    The evidence for a class is minus the squared distance to its colour, divided by `temperature`. A class of the
    palette that is absent from the target still counts: painting it nowhere costs nothing.

    Args:
        painted: (B, 3, H, W) colours that the network painted.
        classes: (B, H, W) int64 true rows of the palette.
        palette: (B, 1 + L, 3) colours, row 0 is the background.
        in_palette: (B, 1 + L) bool, rows in use; a pixel decodes to one of these.
        hidden: (B, h, w) bool, True = painted by the network.
        temperature: squared colour distance that counts as one unit of evidence.
        totals: pixels and classes of everything that these images are a part of, from `hidden_counts`; None: they are
            everything.

    Returns:
        A float32 scalar, 0 where nothing is hidden. With `totals`, the costs of all parts add up to that of the whole.
    """
    pixels = _hidden_pixels(hidden, painted)  # (B, H, W)
    used = int(in_palette.any(0).nonzero().max()) + 1 if bool(in_palette.any()) else 1
    palette, in_palette = palette[:, :used].float(), in_palette[:, :used]
    painted = painted.float()
    # |p - c|^2 without |p|^2, which is the same for every class.
    evidence = 2 * torch.einsum("bchw,blc->blhw", painted, palette) - (palette**2).sum(-1)[..., None, None]
    evidence = (evidence / temperature).masked_fill(~in_palette[..., None, None], -1e4)
    log_probability = evidence.log_softmax(1)
    truth = F.one_hot(classes.clamp(0, used - 1), used).movedim(-1, 1).float()
    n_pixels, n_classes = totals or hidden_counts(painted, in_palette, hidden)
    cross_entropy = -(log_probability * truth).sum(1)[pixels].sum() / n_pixels.clamp_min(1)
    probability = log_probability.exp() * pixels[:, None]
    truth = truth * pixels[:, None]
    overlap = 2 * (probability * truth).sum((2, 3)) + 1
    size = probability.sum((2, 3)) + truth.sum((2, 3)) + 1
    counted = in_palette[:, 1:] & pixels.any((1, 2))[:, None]
    dice = ((1 - overlap / size)[:, 1:] * counted).sum() / n_classes.clamp_min(1)
    return cross_entropy + dice


def hidden_counts(images: Tensor, in_palette: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden pixels, and classes of images with any: what `decoded_loss` divides by. `images` are painted or target."""
    counted = in_palette[:, 1:] & hidden.any(2).any(1)[:, None]
    return _hidden_pixels(hidden, images).sum(), counted.sum()
