"""The hybrid objective: which label patches an episode hides, and what the painted answer costs.

*Autoregressive*: in the sequence prompt image, prompt label, query image, query label, the whole last element is
painted from the ones before. *Masked*: random blocks of patches of all labels are hidden and painted. Because the
network is segment-causal, a hidden prompt label is painted from the prompts alone, the query label from everything.

Source: Ren et al. 2024, arXiv 2406.05565, section 3 (segmentation always autoregressive, other tasks 90 % masked).

Shape letters: B episodes, N images of an episode (the query first), H W pixels, h w patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from mvg_core.training.episodes import KINDS, Episodes
from mvg_core.training.losses import decoded_loss, hidden_counts, hidden_weight, painting_loss
from mvg_core.training.readout_loss import episode_costs


class Painter(Protocol):
    """What the objective needs of a network; `CompactPainter` says what the arguments mean."""

    def encode(self, image: Tensor, label: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """Encode prompts once."""
        ...

    def paint(
        self, image: Tensor, encoded: list[Tensor], label: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Paint the label of each query."""
        ...


@runtime_checkable
class PairPainter(Protocol):
    """The same of one that paints prompt and query together; see `VisionTransformerPainter`."""

    def paint_both(self, image: Tensor, label: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Paint the labels of query and prompt."""
        ...


@dataclass(frozen=True)
class HybridConfig:
    """How the two objectives are mixed and weighted.

    Attributes:
        masked_share: probability of the masked objective for each kind of task; the rest is autoregressive.
        hidden_ratio: share of label patches hidden by the masked objective.
        block: side of a hidden block, in patches.
        paint_prompts: whether the masked objective also paints the hidden patches of the prompt labels.
        colour_weight: of the smooth-L1 on the colours of segmentations.
        decoded_weight: of Dice + cross-entropy on the decoded colours of segmentations; 0 leaves them out.
        image_weight: of the smooth-L1 on image-to-image targets.
        readout_weight: of the logarithmic error of readouts, where the network makes feature maps.
        temperature: squared colour distance that counts as one unit of evidence when colours are decoded.
    """

    masked_share: Mapping[str, float] = field(
        default_factory=lambda: {kind: 0.0 if kind == "segmentation" else 0.9 for kind in KINDS}
    )
    hidden_ratio: float = 0.75
    block: int = 2
    paint_prompts: bool = True
    colour_weight: float = 1.0
    decoded_weight: float = 1.0
    image_weight: float = 5.0
    readout_weight: float = 0.05
    temperature: float = 0.1


def draw_hidden(
    kinds: Tensor, n_images: int, patches: int, config: HybridConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Which label patches each episode hides.

    Args:
        kinds: (B,) index into `KINDS`.
        n_images: N.
        patches: patches on a side, h = w.
        config: shares and ratio.
        generator: source of randomness.

    Returns:
        hidden (B, N, h, w) with True = painted by the network, and masked (B,) with True = masked objective.
    """
    batch, device = len(kinds), generator.device
    share = torch.tensor([config.masked_share.get(kind, 0.0) for kind in KINDS], device=device)[kinds]
    masked = torch.rand(batch, generator=generator, device=device) < share
    autoregressive = torch.zeros((batch, n_images, patches, patches), dtype=torch.bool, device=device)
    autoregressive[:, 0] = True
    coarse = -(-patches // config.block)
    noise = torch.rand((batch, n_images, coarse, coarse), generator=generator, device=device)
    noise = noise.repeat_interleave(config.block, 2).repeat_interleave(config.block, 3)[..., :patches, :patches]
    rank = noise.flatten(2).argsort(dim=2, stable=True).argsort(dim=2).reshape(noise.shape)
    blocks = rank < round(config.hidden_ratio * patches * patches)
    return torch.where(masked[:, None, None, None], blocks, autoregressive), masked


class Totals(NamedTuple):
    """What the costs of a step are divided by; those of its batches add up. All are float32 scalars.

    Attributes:
        episodes: number of episodes.
        segmentations: number of them that are segmentations.
        prompts: number of image-to-image episodes whose prompt is painted too.
        segmentation_weight: summed pixel weight of hidden query labels of segmentations.
        image_weight: the same of image-to-image episodes.
        prompt_weight: the same of their painted prompts.
        pixels: hidden query pixels of segmentations.
        classes: classes of segmentations that the query is judged by.
    """

    episodes: Tensor
    segmentations: Tensor
    prompts: Tensor
    segmentation_weight: Tensor
    image_weight: Tensor
    prompt_weight: Tensor
    pixels: Tensor
    classes: Tensor


def measure(episodes: Episodes, hidden: Tensor, masked: Tensor, config: HybridConfig) -> Tensor:
    """The `Totals` of one batch as a vector (8,), to be added to those of others."""
    is_segmentation = episodes.kinds == 0
    prompts = masked & ~is_segmentation & config.paint_prompts

    def weight(rows: Tensor, image: int) -> Tensor:
        return hidden_weight(episodes.labels[rows, image], hidden[rows, image], episodes.weights[rows, image])

    rows = is_segmentation
    counts = hidden_counts(episodes.labels[rows, 0], episodes.in_palette[rows], hidden[rows, 0])
    totals = (torch.ones_like(masked).sum(), is_segmentation.sum(), prompts.sum(), weight(rows, 0),
              weight(~rows, 0), weight(prompts, 1), *counts)
    return torch.stack([total.float() for total in totals])


def hybrid_loss(
    network: Painter | PairPainter,
    episodes: Episodes,
    hidden: Tensor,
    masked: Tensor,
    config: HybridConfig,
    totals: Totals | None = None,
) -> dict[str, Tensor]:
    """Cost of one batch: `loss` to be minimised, and its parts for the record.

    Args:
        network: paints.
        episodes: the batch.
        hidden: (B, N, h, w), from `draw_hidden`.
        masked: (B,), from `draw_hidden`.
        config: weights.
        totals: of the step that this batch is a part of; None: it is the whole step.

    Returns:
        Scalars `loss`, `segmentation`, `image`, `readout`, each the mean over its episodes (0 where there are none).
        With `totals`, those of all batches of the step add up to what one batch of all its episodes would cost.
    """
    painted, prompts = _paint(network, episodes, hidden, masked, config)
    is_segmentation = episodes.kinds == 0
    zero = painted.float().sum() * 0
    parts = {"segmentation": zero, "image": zero, "readout": zero}
    if bool(is_segmentation.any()):
        parts["segmentation"] = _segmentation_cost(painted, episodes, hidden, is_segmentation, config, totals)
    if not bool(is_segmentation.all()):
        total = totals and totals.image_weight
        parts["image"] = _colour_cost(painted, episodes, hidden, ~is_segmentation, 0, total)
    if totals is not None and bool(totals.prompts > 0):
        parts["image"] = parts["image"] / 2
    image_rows = masked & ~is_segmentation
    if prompts is not None and bool(image_rows.any()):
        cost = _colour_cost(prompts, episodes, hidden, image_rows, 1, totals and totals.prompt_weight)
        parts["image"] = (parts["image"] + cost) / 2 if totals is None else parts["image"] + cost / 2
    share = is_segmentation.float().mean() if totals is None else totals.segmentations / totals.episodes
    loss = share * parts["segmentation"] + (1 - share) * config.image_weight * parts["image"]
    if getattr(network, "maps", None) is not None:
        parts["readout"] = _readout_cost(network, episodes, ~is_segmentation, totals)
        loss = loss + (1 - share) * config.readout_weight * parts["readout"]
    return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


def _paint(
    network: Painter | PairPainter, episodes: Episodes, hidden: Tensor, masked: Tensor, config: HybridConfig
) -> tuple[Tensor, Tensor | None]:
    """Painted labels (B, 3, H, W) of the queries, and those of first prompts where they are painted too."""
    paint_prompts = config.paint_prompts and bool(masked.any())
    if isinstance(network, PairPainter):
        painted, prompts = network.paint_both(episodes.images, episodes.labels, hidden)
        return painted, prompts if paint_prompts else None
    encoded = network.encode(episodes.images[:, 1:], episodes.labels[:, 1:], hidden[:, 1:])
    painted = network.paint(episodes.images[:, 0], encoded, episodes.labels[:, 0], hidden[:, 0])
    if not paint_prompts:
        return painted, None
    # A hidden prompt label is painted from the prompts alone: the prompt is its own query.
    rows = masked.nonzero()[:, 0]
    prompts = network.paint(
        episodes.images[rows, 1], [e[rows] for e in encoded], episodes.labels[rows, 1], hidden[rows, 1]
    )
    return painted, painted.new_zeros(painted.shape).index_copy(0, rows, prompts.to(painted.dtype))


def _colour_cost(
    painted: Tensor, episodes: Episodes, hidden: Tensor, rows: Tensor, image: int, total_weight: Tensor | None
) -> Tensor:
    return painting_loss(
        painted[rows],
        episodes.labels[rows, image],
        hidden[rows, image],
        episodes.weights[rows, image],
        total_weight=total_weight,
    )


def _readout_cost(network: Any, episodes: Episodes, rows: Tensor, totals: Totals | None) -> Tensor:
    if not bool(rows.any()):  # other processes may have some: all must have gradients
        return torch.stack([parameter.sum() * 0 for parameter in network.maps.parameters()]).sum()
    costs = episode_costs(network.maps, episodes.of(rows))
    return costs.mean() if totals is None else costs.sum() / (totals.episodes - totals.segmentations)


def _segmentation_cost(
    painted: Tensor, episodes: Episodes, hidden: Tensor, rows: Tensor, config: HybridConfig, totals: Totals | None
) -> Tensor:
    total = totals and totals.segmentation_weight
    cost = config.colour_weight * _colour_cost(painted, episodes, hidden, rows, 0, total)
    if config.decoded_weight > 0:
        cost = cost + config.decoded_weight * decoded_loss(
            painted[rows],
            episodes.classes[rows, 0],
            episodes.palette[rows],
            episodes.in_palette[rows],
            hidden[rows, 0],
            config.temperature,
            totals and (totals.pixels, totals.classes),
        )
    return cost


class HybridObjective(torch.nn.Module):
    """A network and what it costs as one module, whose `forward` wrappers for several processes can watch.

    Args:
        painter: paints.
        config: weights of the objective.
    """

    def __init__(self, painter: torch.nn.Module, config: HybridConfig) -> None:
        super().__init__()
        self.painter = painter
        self.config = config

    def forward(
        self, episodes: Episodes, hidden: Tensor, masked: Tensor, totals: Totals | None = None
    ) -> dict[str, Tensor]:
        """See `hybrid_loss`."""
        return hybrid_loss(self.painter, episodes, hidden, masked, self.config, totals)  # type: ignore[arg-type]
