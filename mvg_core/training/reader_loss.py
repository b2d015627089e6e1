"""What a readout of labels that is fitted to the prompts costs on the query: how a reader learns to be read out.

The fit is a linear system, so gradients reach the terms of prompts and query alike, its ridge, and its balance between
classes. All is as in `mvg_core.label_readout`, for a batch: there, sums of every prompt are kept, here only the fit is
needed. Under autocast only the convolutions are computed in lower precision, sums over pixels never are.

Shape letters: B episodes, N images of an episode (the query first), C classes (background first), D terms, H W pixels
(multiples of 32), h w = H/4 W/4.

Source: gradients through a ridge regression, Bertinetto et al. 2019, arXiv 1805.08136; soft Dice, Milletari et al.
2016, arXiv 1606.04797.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mvg_core.label_readout import AROUND, BOUND, REDUCED

UNSEEN = -20.0
"""Logit of a class that no prompt shows: never chosen, at a cost that stays finite."""
OF_SCORES = 0.5
"""How much the scores themselves cost, so that the decoder does not do what the readout can."""
_FEW = 50
"""Pixels below which a class hardly counts more for being smaller: its outline is a matter of chance."""


class LabelsRead(NamedTuple):
    """What is read in the queries.

    Attributes:
        logits: (B, C, H, W), `UNSEEN` where no prompt shows the class.
        scores: (B, C, SCORES, h, w), bounded.
        shown: (B, C), which classes any prompt shows.
    """

    logits: Tensor
    scores: Tensor
    shown: Tensor


def reader_costs(reader: Any, images: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Mean costs of episodes: `loss`, and its parts `cross_entropy`, `dice` and `scores`.

    Args:
        reader: a `LabelReader`.
        images: (B, N, 1, H, W) in [0, 1].
        classes: (B, N, H, W) int64.
    """
    read = read_labels(reader, images, classes)
    with torch.autocast(images.device.type, enabled=False):
        right = _one_hot(classes[:, 0], read.logits.shape[1])
        pixels = right.sum((2, 3))
        likely = F.log_softmax(read.logits, dim=1)
        counts = (right * _class_weights(pixels)[:, :, None, None]).sum(1)
        cross_entropy = -((likely * right).sum(1) * counts).sum((1, 2)).mean()
        dice = _dice_cost(likely.exp(), right, pixels, read.shown)
        off = (read.scores[:, :, 0] - F.avg_pool2d(right, REDUCED)).square()
        counts_there = F.avg_pool2d(counts[:, None], REDUCED) * REDUCED**2
        scores = (off * counts_there).sum((1, 2, 3)).mean()
    return {"loss": cross_entropy + dice + OF_SCORES * scores, "cross_entropy": cross_entropy, "dice": dice,
            "scores": scores}


def read_labels(reader: Any, images: Tensor, classes: Tensor) -> LabelsRead:
    """Read the labels of the queries; the classes of the queries are not looked at.

    Args:
        reader: a `LabelReader`.
        images: (B, N, 1, H, W) in [0, 1].
        classes: (B, N, H, W) int64; the largest number anywhere says how many classes there are.
    """
    terms, coarse, fine = (made.unflatten(0, images.shape[:2]) for made in reader(images.flatten(0, 1)))
    n_classes = int(classes.max()) + 1
    with torch.autocast(images.device.type, enabled=False):
        covered = coverage(classes[:, 1:], n_classes)
        weights = fit(terms[:, 1:], covered, reader.log_shrinkage.exp(), reader.balance.clamp(0, 1))
        plain = torch.einsum("bdt,bdhw->bthw", weights, terms[:, 0]).unflatten(1, (n_classes, -1))
        scores = 0.5 + BOUND * torch.tanh((plain - 0.5) / BOUND)
        shown = covered.flatten(3).any(-1).any(1)
        others = highest_others(scores, shown)
    episode, number = shown.nonzero(as_tuple=True)
    firm = reader.decode(scores[episode, number], others[episode, number], coarse[episode, 0], fine[episode, 0])
    logits = firm.new_full((*shown.shape, *images.shape[-2:]), UNSEEN)
    logits[episode, number] = firm[:, 0]
    return LabelsRead(logits, scores, shown)


def coverage(classes: Tensor, n_classes: int) -> Tensor:
    """How much of every pixel each class covers, (..., C, h, w), of classes (..., H, W)."""
    covered = F.avg_pool2d(_one_hot(classes, n_classes).flatten(0, -4), REDUCED)
    return covered.unflatten(0, classes.shape[:-2])


def around(covered: Tensor) -> Tensor:
    """The mean over (..., h, w) of the pixels up to `AROUND` away; beyond the edge it goes on as at the edge."""
    flat = F.pad(covered.flatten(0, -4), (AROUND,) * 4, mode="replicate")
    return F.avg_pool2d(flat, 2 * AROUND + 1, stride=1).unflatten(0, covered.shape[:-3])


def fit(terms: Tensor, covered: Tensor, shrinkage: Tensor, balance: Tensor) -> Tensor:
    """The weights (B, D, C SCORES) that explain the prompts best.

    Args:
        terms: (B, S, D, h, w) of the S prompts.
        covered: (B, S, C, h, w).
        shrinkage: see `Ridge`.
        balance: see `Ridge`.
    """
    targets = _pixels_last(torch.stack([covered, around(covered)], dim=3).flatten(2, 3))
    of_prompts, shares = _pixels_last(terms), _pixels_last(covered)
    pixels = shares.sum(2)
    shown = pixels > 0
    # What is not shown has no power either: its gradient would be no number.
    share = torch.where(shown, pixels / pixels.sum(1, keepdim=True), 1.0)
    counts = torch.where(shown, share**-balance, 0.0)
    counts = counts / (counts * pixels).sum(1, keepdim=True)
    # A pixel counts as the classes that cover it do, so there is no need for sums of every class.
    counted = of_prompts * torch.einsum("bc,bcn->bn", counts, shares)[:, None]
    products = counted @ of_prompts.transpose(1, 2)
    ridge = shrinkage * torch.eye(products.shape[-1], device=products.device)
    return torch.linalg.solve(products + ridge, counted @ targets.transpose(1, 2))


def highest_others(values: Tensor, shown: Tensor) -> Tensor:
    """For every class of (B, C, ...) the highest of the others that are shown (B, C); itself if it is the only one."""
    if values.shape[1] == 1:
        return values
    lowest = torch.finfo(values.dtype).min
    known = torch.where(shown.view(*shown.shape, *(1,) * (values.ndim - 2)), values, lowest)
    best, second = (part[:, None] for part in known.topk(2, dim=1).values.unbind(1))
    second = torch.where(second == lowest, best, second)
    return torch.where(known >= best, second, best)


def _dice_cost(likely: Tensor, right: Tensor, pixels: Tensor, shown: Tensor) -> Tensor:
    """1 - soft Dice, the mean over the labels that are there and that prompts show."""
    overlap = 2 * (likely * right).sum((2, 3)) + 1
    cost = 1 - overlap / (likely.sum((2, 3)) + pixels + 1)
    asked = (pixels > 0) & shown
    asked[:, 0] = False  # background
    return (cost * asked).sum() / asked.sum().clamp(min=1)


def _class_weights(pixels: Tensor) -> Tensor:
    """How much a pixel of each class (B, C) counts; together those of an episode count 1."""
    weights = torch.where(pixels > 0, (pixels + _FEW) ** -0.5, 0.0)
    return weights / (weights * pixels).sum(1, keepdim=True)


def _one_hot(classes: Tensor, n_classes: int) -> Tensor:
    """(..., H, W) -> float32 (..., C, H, W)."""
    numbers = torch.arange(n_classes, device=classes.device)[:, None, None]
    return (classes[..., None, :, :] == numbers).float()


def _pixels_last(parts: Tensor) -> Tensor:
    """(B, S, X, h, w) of prompts -> (B, X, S h w)."""
    return parts.transpose(1, 2).flatten(2)
