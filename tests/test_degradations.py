"""Image-to-image tasks: the clean image is the target and stays untouched, holes are where they are said to be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from mvg_core.training import degradations

ALL: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "noise": degradations.add_noise,
    "holes": lambda clean, generator: degradations.cut_holes(clean, generator)[0],
    "blur": degradations.blur,
    "lower_resolution": degradations.lower_resolution,
    "bias_field": degradations.bias_field,
    "remap": degradations.remap_intensity,
}


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clean() -> Tensor:
    return torch.rand(12, 3, 32, 32, generator=seeded(7))


@pytest.mark.parametrize("degrade", ALL.values(), ids=ALL)
def test_every_degradation_leaves_the_clean_images_alone_and_stays_in_range(clean, degrade):
    before = clean.clone()
    shown = degrade(clean, seeded())
    assert torch.equal(clean, before)
    assert shown.shape == clean.shape
    assert torch.isfinite(shown).all()
    assert shown.min() >= 0.0
    assert shown.max() <= 1.0
    assert ((shown - clean).abs().flatten(1).max(1).values > 0.01).all()  # every episode is degraded


@pytest.mark.parametrize("degrade", ALL.values(), ids=ALL)
def test_every_degradation_is_repeated_by_its_seed(clean, degrade):
    assert torch.equal(degrade(clean, seeded(1)), degrade(clean, seeded(1)))
    assert not torch.equal(degrade(clean, seeded(1)), degrade(clean, seeded(2)))


@pytest.mark.parametrize("degrade", ALL.values(), ids=ALL)
def test_black_images_and_extremes_give_no_nan(degrade):
    for level in (0.0, 1.0):
        assert torch.isfinite(degrade(torch.full((8, 2, 16, 16), level), seeded())).all()


# --- holes ---


def test_outside_the_holes_nothing_is_changed_and_inside_nothing_is_left(clean):
    shown, holes = degradations.cut_holes(clean, seeded())
    assert holes.dtype == torch.bool
    assert torch.equal(shown[~holes], clean[~holes])
    black = torch.stack([(image[hole] == 0).all() for image, hole in zip(shown, holes, strict=True)])
    assert 0.5 < black.float().mean() < 1.0  # mostly black, sometimes grey or noise
    for image, original, hole in zip(shown, clean, holes, strict=True):
        assert not torch.equal(image[hole], original[hole])


def test_grey_holes_have_one_level_for_each_episode():
    clean = torch.rand(200, 2, 16, 16, generator=seeded(7))
    shown, holes = degradations.cut_holes(clean, seeded())
    levels = [image[hole].unique() for image, hole in zip(shown, holes, strict=True)]
    kinds = ["noise" if len(level) > 1 else "black" if level.item() == 0 else "grey" for level in levels]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("black", "grey", "noise")}
    assert shares == pytest.approx({"black": 0.8, "grey": 0.1, "noise": 0.1}, abs=0.07)


def test_every_image_has_a_hole_of_its_own_and_most_of_it_is_left():
    holes = degradations.random_holes(100, 2, 48, seeded())
    assert holes.shape == (100, 2, 48, 48)
    share = holes.float().mean((2, 3))
    assert (share > 0).float().mean() > 0.98
    assert share.max() < 0.75
    assert 0.02 < share.mean() < 0.3
    assert (holes[:, 0] != holes[:, 1]).flatten(1).any(1).all()


# --- noise, blur, resolution ---


def test_noise_has_a_level_for_each_episode():
    noisy = degradations.add_noise(torch.full((300, 2, 24, 24), 0.5), seeded())
    spread = noisy.flatten(2).std(2)
    assert 0.015 < spread.min() < 0.04
    assert 0.2 < spread.max() < 0.4
    assert (spread[:, 0] - spread[:, 1]).abs().max() < 0.05  # the images of an episode are equally noisy
    assert (noisy[:, 0] != noisy[:, 1]).float().mean() > 0.9  # but not by the same noise


def test_blur_keeps_the_mean_and_loses_the_detail(clean):
    shown = degradations.blur(clean, seeded())
    assert (shown.mean((2, 3)) - clean.mean((2, 3))).abs().max() < 0.05
    assert (shown.std((2, 3)) < 0.7 * clean.std((2, 3))).all()


def test_lower_resolution_keeps_flat_images_and_flattens_a_checkerboard():
    board = (torch.arange(24)[:, None] + torch.arange(24)) % 2
    images = torch.stack([torch.full((24, 24), 0.3), board.float()])[None]
    for seed in range(8):
        flat, flattened = degradations.lower_resolution(images, seeded(seed))[0]
        torch.testing.assert_close(flat, images[0, 0])
        assert flattened.std() < 0.35 * board.float().std()


def test_bias_field_is_a_smooth_factor():
    shown = degradations.bias_field(torch.full((20, 1, 32, 32), 0.2), seeded())
    assert shown.diff(dim=-1).abs().max() < 0.2
    assert not degradations.bias_field(torch.zeros(4, 1, 16, 16), seeded()).any()


# --- intensity curves ---


def test_one_curve_serves_all_images_of_an_episode():
    ramp = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16).expand(6, 3, -1, -1)
    mapped = degradations.remap_intensity(ramp, seeded())
    assert torch.equal(mapped[:, :1].expand_as(mapped), mapped)
    assert not torch.equal(mapped[0], mapped[1])
    assert mapped.flatten(2).diff(dim=2).abs().max() < 0.05  # and it has no jumps


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1.0), (0.0, 0.0)])
def test_curves_rise_as_often_as_asked_for(share, expected):
    ramp = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16).expand(60, 1, -1, -1)
    mapped = degradations.remap_intensity(ramp, seeded(), monotone=share).flatten(1)
    rising = (mapped.diff(dim=1) >= -1e-6).all(1).float().mean().item()
    assert rising == pytest.approx(expected, abs=0.02)


def test_a_curve_goes_through_its_knots():
    # At k / 6 the curve is at knot k: seven levels, and the middle between two knots is their mean.
    generator = seeded(3)
    knots = torch.rand((1, 7), generator=generator)[0]
    levels = torch.arange(7).float() / 6
    images = torch.cat([levels, torch.tensor([0.25])]).reshape(1, 1, 2, 4)  # 0.25 = 1.5 / 6
    mapped = degradations.remap_intensity(images, seeded(3), monotone=0.0).flatten()
    torch.testing.assert_close(mapped[:7], knots, rtol=0, atol=1e-5)
    assert mapped[7].item() == pytest.approx((knots[1] + knots[2]).item() / 2, abs=1e-5)
