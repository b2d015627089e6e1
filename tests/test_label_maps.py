"""Images made of label maps: organ shapes land where they are said to, and one label looks alike everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from mvg_core.training.label_maps import FIRST_SHAPE, paint_contrast, paste_shapes, random_regions


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def disc(size: int = 64, radius: float = 0.3, x: float = 0.0, y: float = 0.0) -> Tensor:
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    return (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2


def test_regions_are_few_and_smooth():
    regions = random_regions(4, 48, seeded())
    assert (regions.shape, regions.dtype) == ((4, 48, 48), torch.int64)
    assert regions.min() >= 0
    assert regions.max() <= 8
    assert all(len(region.unique()) > 1 for region in regions)
    assert (regions.diff(dim=2) != 0).float().mean() < 0.25


def test_pasted_shapes_have_their_numbers_and_a_wanted_size():
    masks = torch.stack([disc(), disc(radius=0.05, x=0.5)])[None].expand(100, -1, -1, -1)
    pasted = paste_shapes(torch.zeros(100, 64, 64, dtype=torch.int64), masks, seeded())
    assert set(pasted.unique().tolist()) == {0, FIRST_SHAPE, FIRST_SHAPE + 1}
    last = (pasted == FIRST_SHAPE + 1).float().mean((1, 2))  # not covered by a later one
    assert last.max() < 0.1
    assert last.min() > 0.0005  # at worst half of it lies outside
    assert 0.01 < last.mean() < 0.05
    assert (last > 0.004).float().mean() > 0.8


def test_a_shape_stays_a_shape():
    # A disc is pasted as a disc, wherever it was: as wide as high, and pi / 4 of its box full.
    masks = disc(128, 0.2, 0.4, -0.3)[None, None].expand(30, -1, -1, -1)
    pasted = paste_shapes(torch.zeros(30, 128, 128, dtype=torch.int64), masks, seeded()) == FIRST_SHAPE
    inside = ~(pasted[:, [0, -1]].any((1, 2)) | pasted[:, :, [0, -1]].any((1, 2)))
    assert inside.sum() > 10
    for shape in pasted[inside]:
        rows, columns = shape.any(1).sum().item(), shape.any(0).sum().item()
        assert abs(rows - columns) <= 2
        assert shape.sum().item() / (rows * columns) == pytest.approx(torch.pi / 4, abs=0.12)


def test_an_empty_shape_pastes_nothing():
    regions = random_regions(3, 32, seeded())
    pasted = paste_shapes(regions, torch.zeros(3, 2, 32, 32, dtype=torch.bool), seeded())
    assert torch.equal(pasted, regions)


def test_a_later_shape_covers_an_earlier_one():
    masks = torch.ones(40, 2, 32, 32, dtype=torch.bool)
    pasted = paste_shapes(torch.zeros(40, 32, 32, dtype=torch.int64), masks, seeded())
    first_alone = paste_shapes(torch.zeros(40, 32, 32, dtype=torch.int64), masks[:, :1], seeded())
    assert first_alone.any((1, 2)).all()
    assert (pasted == FIRST_SHAPE + 1).any((1, 2)).all()


def test_painted_images_are_images():
    maps = torch.randint(0, 256, (6, 3, 32, 32), generator=seeded())
    before = maps.clone()
    painted = paint_contrast(maps, seeded())
    assert torch.equal(maps, before)
    assert painted.shape == maps.shape
    assert torch.isfinite(painted).all()
    assert painted.min() >= 0.0
    assert painted.max() <= 1.0
    assert torch.equal(painted, paint_contrast(maps, seeded()))
    assert not torch.equal(painted, paint_contrast(maps, seeded(1)))


def halves(n_images: int = 2) -> Tensor:
    maps = torch.ones(200, n_images, 24, 24, dtype=torch.int64)
    maps[..., 12:] = 7
    return maps


@pytest.mark.parametrize(("same_contrast", "alike"), [(1.0, True), (0.0, False)])
def test_images_of_an_episode_share_their_contrast_when_asked_to(same_contrast, alike):
    painted = paint_contrast(halves(), seeded(), same_contrast=same_contrast)
    left = painted[..., 2:10].mean((2, 3))  # (200, 2)
    correlation = torch.corrcoef(left.T)[0, 1].item()
    assert (correlation > 0.8) is alike
    assert abs(correlation) < 0.3 or alike


def test_labels_are_told_apart_by_their_level():
    painted = paint_contrast(halves(1), seeded())
    difference = (painted[..., 2:10].mean((2, 3)) - painted[..., 14:22].mean((2, 3))).abs()
    assert difference.median() > 0.1


def test_label_zero_is_mostly_air():
    painted = paint_contrast(torch.zeros(300, 1, 16, 16, dtype=torch.int64), seeded())
    dark = (painted.mean((1, 2, 3)) < 0.1).float().mean().item()
    assert 0.5 < dark < 0.85
