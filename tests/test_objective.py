"""The hybrid objective: how much is hidden, and what it costs, worked by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from miniature import tiny_painter
from torch import Generator, Tensor, nn

from mvg_core.training.episodes import KINDS, Episodes
from mvg_core.training.losses import DENOMINATOR_OFFSET
from mvg_core.training.objective import HybridConfig, draw_hidden, hybrid_loss

SEGMENTATION, DENOISING = KINDS.index("segmentation"), KINDS.index("denoising")
COLOURS_ONLY = HybridConfig(decoded_weight=0.0)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


# --- what is hidden ---


@pytest.mark.parametrize("patches", [2, 6, 7, 8, 12])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_masked_objective_hides_exactly_the_share_it_says(patches, ratio, block):
    config = HybridConfig(masked_share=dict.fromkeys(KINDS, 1.0), hidden_ratio=ratio, block=block)
    hidden, masked = draw_hidden(torch.zeros(5, dtype=torch.int64), 3, patches, config, seeded())
    assert (hidden.shape, hidden.dtype) == ((5, 3, patches, patches), torch.bool)
    assert masked.all()
    assert set(hidden.sum((2, 3)).unique().tolist()) == {round(ratio * patches**2)}


def test_masked_patches_come_in_blocks_of_their_own_in_every_image():
    config = HybridConfig(masked_share=dict.fromkeys(KINDS, 1.0), hidden_ratio=0.5, block=2)
    hidden, _ = draw_hidden(torch.zeros(20, dtype=torch.int64), 2, 12, config, seeded())
    assert (hidden[0] != hidden[1]).flatten(1).any(1).all()
    assert (hidden[:, 0] != hidden[:, 1]).flatten(1).any(1).all()
    blocks = hidden.unflatten(2, (6, 2)).unflatten(4, (6, 2)).sum((3, 5))  # hidden patches of each 2 x 2
    assert (((blocks != 0) & (blocks != 4)).sum((2, 3)) <= 1).all()  # one block may be cut to keep the exact share


def test_the_autoregressive_objective_hides_the_query_label_and_nothing_else():
    config = HybridConfig(masked_share={})
    hidden, masked = draw_hidden(torch.tensor([SEGMENTATION, DENOISING]), 3, 4, config, seeded())
    assert not masked.any()
    assert hidden[:, 0].all()
    assert not hidden[:, 1:].any()


def test_segmentation_is_always_autoregressive_by_default_and_the_rest_mostly_masked():
    kinds = torch.arange(len(KINDS)).repeat(2000)
    hidden, masked = draw_hidden(kinds, 2, 2, HybridConfig(), seeded())
    is_segmentation = kinds == SEGMENTATION
    assert not masked[is_segmentation].any()
    assert hidden[is_segmentation, 0].all()
    assert not hidden[is_segmentation, 1:].any()
    for kind in range(1, len(KINDS)):
        assert masked[kinds == kind].float().mean().item() == pytest.approx(0.9, abs=0.03)


def test_the_same_seed_hides_the_same():
    kinds = torch.full((8,), DENOISING)
    first, again = (draw_hidden(kinds, 2, 6, HybridConfig(), seeded(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# --- what it costs ---


class FixedPainter(nn.Module):
    """Paints one and the same grey, and remembers what it was asked."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.shown: list[tuple[Tensor, Tensor]] = []

    def encode(self, image: Tensor, label: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        assert hidden is not None
        self.shown.append((image, hidden))
        return [image.mean((2, 3, 4))]  # (B, S)

    def paint(self, image: Tensor, encoded: list[Tensor], label: Tensor | None = None, hidden: Tensor | None = None
              ) -> Tensor:
        assert label is not None
        assert hidden is not None
        self.shown.append((image, hidden))
        assert len(encoded[0]) == len(image)
        return self.level.expand(label.shape)


def make_episodes(kinds: list[int], target: float = 1.0, weight: float = 1.0) -> Episodes:
    """Grey images of 4 x 4 pixels in 2 x 2 patches whose labels are `target` everywhere; class 1 is white."""
    batch, n = len(kinds), 3
    palette = torch.zeros(batch, 3, 3)
    palette[:, 1] = 1.0
    is_segmentation = torch.tensor(kinds) == SEGMENTATION
    in_palette = is_segmentation[:, None] & torch.tensor([True, True, False])
    classes = torch.zeros(batch, n, 4, 4, dtype=torch.int64)
    classes[is_segmentation] = round(target)
    images = torch.arange(batch * n).reshape(batch, n, 1, 1, 1).expand(-1, -1, 1, 4, 4) / 10
    return Episodes(images, torch.full((batch, n, 3, 4, 4), target), torch.full((batch, n, 1, 4, 4), weight), classes,
                    palette, in_palette, torch.tensor(kinds))


def hide_query(batch: int) -> Tensor:
    hidden = torch.zeros(batch, 3, 2, 2, dtype=torch.bool)
    hidden[:, 0] = True
    return hidden


def smooth_l1(difference: float, pixels: int, channels: int = 3) -> float:
    """Mean cost of `pixels` hidden pixels of weight 1, each off by `difference` (more than beta) in every channel."""
    total = pixels * channels
    return total * (abs(difference) - 0.005) / (total + DENOMINATOR_OFFSET)


def test_image_tasks_cost_their_colours():
    config = HybridConfig(image_weight=5.0)
    parts = hybrid_loss(FixedPainter(0.6), make_episodes([DENOISING] * 2), hide_query(2), torch.zeros(2).bool(), config)
    assert parts["image"].item() == pytest.approx(smooth_l1(0.4, 2 * 16))
    assert parts["loss"].item() == pytest.approx(5 * smooth_l1(0.4, 2 * 16))
    assert parts["segmentation"].item() == 0.0


def test_segmentation_costs_colours_and_decoded_classes():
    # A painted 0.9 in three channels has the squared distances 2.43 to black and 0.03 to white.
    config = HybridConfig(colour_weight=2.0, decoded_weight=0.5, temperature=1.2)
    parts = hybrid_loss(FixedPainter(0.9), make_episodes([SEGMENTATION]), hide_query(1), torch.zeros(1).bool(), config)
    white = 1 / (1 + math.exp(-(2.43 - 0.03) / 1.2))
    dice = 1 - (2 * 16 * white + 1) / (16 * white + 16 + 1)
    expected = 2.0 * smooth_l1(0.1, 16) + 0.5 * (-math.log(white) + dice)
    assert parts["segmentation"].item() == pytest.approx(expected, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert parts["image"].item() == 0.0


def test_kinds_are_averaged_apart_and_weighted_by_their_share():
    kinds = [SEGMENTATION, DENOISING, DENOISING, DENOISING]
    parts = hybrid_loss(FixedPainter(0.5), make_episodes(kinds), hide_query(4), torch.zeros(4).bool(),
                        dataclasses.replace(COLOURS_ONLY, image_weight=3.0))
    one = smooth_l1(0.5, 16)
    three = smooth_l1(0.5, 3 * 16)
    assert parts["segmentation"].item() == pytest.approx(one)
    assert parts["image"].item() == pytest.approx(three)
    assert parts["loss"].item() == pytest.approx(0.25 * one + 0.75 * 3 * three)


def test_only_hidden_patches_cost():
    episodes, hidden = make_episodes([DENOISING]), torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    hidden[0, 0, 1, 1] = True
    episodes.labels[:, 0, :, :2] = math.nan
    episodes.labels[:, 0, :, :, :2] = math.nan
    parts = hybrid_loss(FixedPainter(), episodes, hidden, torch.zeros(1).bool(), HybridConfig())
    assert parts["image"].item() == pytest.approx(smooth_l1(1.0, 4))


@pytest.mark.parametrize("kind", [SEGMENTATION, DENOISING])
def test_nothing_hidden_costs_nothing(kind):
    painter = FixedPainter(0.3)
    hidden = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    parts = hybrid_loss(painter, make_episodes([kind] * 2), hidden, torch.zeros(2).bool(), HybridConfig())
    parts["loss"].backward()
    assert {name: part.item() for name, part in parts.items()} == {"loss": 0.0, "segmentation": 0.0, "image": 0.0,
                                                                   "readout": 0.0}
    assert painter.level.grad is not None
    assert painter.level.grad.item() == 0.0


def test_masked_prompts_are_painted_from_the_prompts_and_cost_as_much_as_queries():
    painter, episodes = FixedPainter(), make_episodes([DENOISING, DENOISING])
    masked = torch.tensor([False, True])
    hidden = hide_query(2)
    hidden[1] = False
    hidden[1, 0, 0, 0] = hidden[1, 1, 1, 0] = True
    episodes.labels[1, 1] = 0.5  # the first prompt of the masked episode is off by 0.5, everything else by 1
    parts = hybrid_loss(painter, episodes, hidden, masked, HybridConfig())
    assert parts["image"].item() == pytest.approx((smooth_l1(1.0, 16 + 4) + smooth_l1(0.5, 4)) / 2)
    # Prompts were encoded with their own hidden patches, then the query and the masked prompt painted with theirs.
    for found, expected in zip(painter.shown, [(episodes.images[:, 1:], hidden[:, 1:]),
                                               (episodes.images[:, 0], hidden[:, 0]),
                                               (episodes.images[1:, 1], hidden[1:, 1])], strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_painting_prompts_can_be_left_out():
    painter, episodes = FixedPainter(), make_episodes([DENOISING])
    hidden, masked = torch.ones(1, 3, 2, 2, dtype=torch.bool), torch.tensor([True])
    parts = hybrid_loss(painter, episodes, hidden, masked, HybridConfig(paint_prompts=False))
    assert parts["image"].item() == pytest.approx(smooth_l1(1.0, 16))
    assert len(painter.shown) == 2


class FreePainter(nn.Module):
    """Paints what its parameter says, so that the gradient says what the loss asks for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.painted = nn.Parameter(torch.zeros(shape))

    def encode(self, image: Tensor, label: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        return []

    def paint(self, image: Tensor, encoded: list[Tensor], label: Tensor | None = None, hidden: Tensor | None = None
              ) -> Tensor:
        return self.painted


@pytest.mark.parametrize("config", [HybridConfig(), COLOURS_ONLY], ids=["both losses", "colours"])
@pytest.mark.parametrize("shown_by_prompt", [10, 1000])
def test_a_structure_of_ten_pixels_is_learned_from(config, shown_by_prompt):
    # The reference network gates the loss off unless the prompt label's pixels sum past a threshold.
    size = 96
    classes = torch.zeros(1, 2, size, size, dtype=torch.int64)
    classes[0, 0, 40, 40:50] = 1
    classes[0, 1].view(-1)[:shown_by_prompt] = 1
    palette = torch.zeros(1, 2, 3)
    palette[:, 1, 0] = 10 / 255  # as dark as class 1 of the reference
    labels = palette[0][classes].movedim(-1, 2)
    weights = torch.where(classes > 0, 1.0, 0.1)[:, :, None]
    episodes = Episodes(torch.zeros(1, 2, 1, size, size), labels, weights, classes, palette,
                        torch.ones(1, 2, dtype=torch.bool), torch.tensor([SEGMENTATION]))
    painter = FreePainter((1, 3, size, size))
    hidden, masked = draw_hidden(episodes.kinds, 2, 6, config, seeded())
    hybrid_loss(painter, episodes, hidden, masked, config)["loss"].backward()
    gradient = painter.painted.grad
    assert gradient is not None
    assert (gradient[0, 0, 40, 40:50] < 0).all()  # it must become redder


def test_the_real_network_learns_from_every_kind():
    network = tiny_painter()
    episodes = make_episodes([SEGMENTATION, DENOISING])
    large = {name: getattr(episodes, name).repeat_interleave(8, -1).repeat_interleave(8, -2)
             for name in ("images", "labels", "weights", "classes")}
    episodes = dataclasses.replace(episodes, **large)  # 32 x 32 in 2 x 2 patches
    hidden = hide_query(2)
    hidden[1, 1] = True
    hybrid_loss(network, episodes, hidden, torch.tensor([False, True]), HybridConfig())["loss"].backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
