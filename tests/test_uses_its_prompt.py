"""A network learns to look at its prompt: the same image has two right answers, and the prompt label decides."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from miniature import TINY
from torch import Generator, Tensor

from mvg_core.network.compact import CompactPainter
from mvg_core.training.episodes import Episodes
from mvg_core.training.objective import HybridConfig, draw_hidden, hybrid_loss

SIZE = 32
BRIGHT, GREY = 1, 2  # structures, and rows of the palette
PALETTES = torch.tensor([  # background, colour of the bright disc, colour of the grey disc
    [[0, 0, 0], [1, 0, 0], [0, 1, 0]],
    [[0, 0, 0], [0, 1, 0], [1, 0, 0]],
    [[0, 0, 0], [1, 0, 0], [0, 0, 0]],
    [[0, 0, 0], [0, 0, 0], [1, 0, 0]],
]).float()


@dataclass
class Toy:
    """Images (B, 2, 1, H, W) of a bright and a grey disc at random places, and where these are (B, 2, H, W)."""

    images: Tensor
    structures: Tensor


def draw_toy(batch: int, generator: Generator) -> Toy:
    axis = torch.arange(SIZE).float()
    structures = torch.zeros(batch, 2, SIZE, SIZE, dtype=torch.int64)
    for structure, side in ((BRIGHT, 0.0), (GREY, 1.0)):
        # One disc in the left half and one in the right, either way round.
        centre = torch.rand((2, batch, 2, 1, 1), generator=generator) * torch.tensor([14.0, 2.0]).view(2, 1, 1, 1, 1)
        swapped = (torch.arange(batch) % 2).view(-1, 1, 1, 1)
        y, x = centre[0] + 9, centre[1] + 7 + 16 * (side - swapped).abs()
        structures[(axis[:, None] - y) ** 2 + (axis - x) ** 2 < 30] = structure
    levels = torch.tensor([0.1, 0.9, 0.5])
    images = levels[structures] + 0.02 * torch.randn(structures.shape, generator=generator)
    return Toy(images.clamp(0, 1)[:, :, None], structures)


def episodes_of(toy: Toy, palettes: Tensor) -> Episodes:
    """The discs painted in the colours (B, 3, 3); a disc in black is background."""
    batch = len(palettes)
    in_palette = palettes.any(2)
    in_palette[:, 0] = True
    rows = torch.arange(batch)[:, None, None, None]
    classes = torch.where(in_palette[rows, toy.structures], toy.structures, 0)
    labels = palettes[rows, classes].movedim(-1, 2)
    weights = torch.where(classes > 0, 1.0, 0.1)[:, :, None]
    return Episodes(toy.images, labels, weights, classes, palettes, in_palette, torch.zeros(batch, dtype=torch.int64))


@pytest.fixture(scope="module")
def trained() -> CompactPainter:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network, config = CompactPainter(TINY).train(), HybridConfig()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, betas=(0.9, 0.98))
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 10, (100 - step) / 30)
        toy = draw_toy(8, generator)
        episodes = episodes_of(toy, PALETTES[torch.randint(4, (8,), generator=generator)])
        hidden, masked = draw_hidden(episodes.kinds, 2, SIZE // TINY.patch, config, generator)
        loss = hybrid_loss(network, episodes, hidden, masked, config)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.eval()


def answer(network: CompactPainter, toy: Toy, palette: int) -> tuple[Tensor, Tensor]:
    """Painted structures (B, H, W), and what they should be, when the prompt is painted in these colours."""
    episodes = episodes_of(toy, PALETTES[palette].expand(len(toy.images), -1, -1))
    with torch.no_grad():
        painted = network.paint(toy.images[:, 0], network.encode(toy.images[:, 1:], episodes.labels[:, 1:]))
    distance = (painted[:, None] - episodes.palette[:, :, :, None, None]).square().sum(2)
    distance[~episodes.in_palette] = torch.inf
    return distance.argmin(1), episodes.classes[:, 0]


def dice(one: Tensor, other: Tensor) -> float:
    return (2 * (one & other).sum() / (one.sum() + other.sum()).clamp_min(1)).item()


@pytest.mark.parametrize("palette", range(4))
def test_the_answer_follows_the_colours_of_the_prompt(trained, palette):
    toy = draw_toy(16, torch.Generator().manual_seed(99))
    found, expected = answer(trained, toy, palette)
    for structure in (BRIGHT, GREY):
        if PALETTES[palette, structure].any():
            assert dice(found == structure, expected == structure) > 0.7
        else:
            assert not (found == structure).any()


def test_another_prompt_label_moves_the_answer_to_the_other_disc(trained):
    toy = draw_toy(16, torch.Generator().manual_seed(99))
    bright, grey = (answer(trained, toy, palette)[0] > 0 for palette in (2, 3))
    assert dice(bright, grey) < 0.2
    assert dice(bright, toy.structures[:, 0] == BRIGHT) > 0.7
    assert dice(grey, toy.structures[:, 0] == GREY) > 0.7
