"""Warps and intensity changes: exact where nothing is changed, together where images belong together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from mvg_core.training.augmentation import (
    WarpConfig,
    bernoulli,
    gaussian_blur,
    random_grids,
    random_intensity,
    smooth_noise,
    uniform,
    warp_images,
    warp_labels,
)

STILL = WarpConfig(zoom=1.0, rotation_deg=0.0, shift=0.0, scale=0.0, jitter=0.0, elastic=0.0, flip=0.0)
CENTRE = torch.zeros(2, 2)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def grids(config: WarpConfig, centre: Tensor = CENTRE, n_images: int = 3, size: int = 16, seed: int = 0,
          largest: float = 100.0) -> Tensor:
    return random_grids(centre, torch.full((len(centre),), largest), n_images, size, config, seeded(seed))


# --- sources of randomness ---


def test_uniform_and_bernoulli_keep_their_promises():
    drawn = uniform((10_000,), -2.0, 3.0, seeded())
    assert -2.0 <= drawn.min() < -1.9
    assert 2.9 < drawn.max() < 3.0
    assert bernoulli((10_000,), 0.3, seeded()).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not bernoulli((1000,), 0.0, seeded()).any()
    assert bernoulli((1000,), 1.0, seeded()).all()


def test_smooth_noise_is_smooth_and_as_wide_as_normal_noise():
    noise = smooth_noise((50, 2), 4, 32, seeded())
    assert noise.shape == (50, 2, 32, 32)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.1)
    assert 0.6 < noise.std().item() < 1.2
    assert noise.diff(dim=-1).abs().mean() < 0.2


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: grids(WarpConfig(), seed=int(torch.randint(100, (1,), generator=g))),
        lambda g: random_intensity(torch.full((2, 3, 8, 8), 0.5), g),
        lambda g: smooth_noise((2,), 3, 8, g),
    ],
)
def test_the_same_seed_draws_the_same(draw: Callable[[Generator], Tensor]):
    assert torch.equal(draw(seeded(1)), draw(seeded(1)))
    assert not torch.equal(draw(seeded(1)), draw(seeded(2)))


# --- warps ---


def test_without_any_range_images_and_labels_stay_where_they_are():
    images, labels = torch.rand(2, 3, 16, 16, generator=seeded()), torch.randint(0, 256, (2, 3, 16, 16))
    still = grids(STILL)
    assert still.shape == (2, 3, 16, 16, 2)
    torch.testing.assert_close(warp_images(images, still), images, rtol=0, atol=1e-5)
    assert torch.equal(warp_labels(labels, still), labels)


def test_flipping_mirrors_left_and_right_of_the_whole_episode():
    labels = torch.arange(16).expand(2, 3, 16, 16)
    flipped = warp_labels(labels, grids(dataclasses.replace(STILL, flip=1.0)))
    assert torch.equal(flipped, labels.flip(-1))


def test_without_jitter_all_images_of_an_episode_move_together():
    drawn = grids(WarpConfig(jitter=0.0, elastic=0.0))
    assert torch.equal(drawn[:, :1].expand_as(drawn), drawn)
    assert not torch.equal(drawn[0], drawn[1])  # another episode moves in its own way
    jittered = grids(WarpConfig(elastic=0.0))
    assert not torch.equal(jittered[:, 0], jittered[:, 1])


def test_shift_and_rotation_stay_in_their_ranges():
    config = WarpConfig(zoom=1.0, rotation_deg=20.0, shift=0.1, scale=0.0, jitter=0.5, elastic=0.0, flip=0.0)
    drawn = grids(config, torch.zeros(200, 2))
    assert drawn.mean((2, 3)).abs().max() <= 0.1 * 1.5 + 1e-6  # what the episode draws and half as much of its own
    right = drawn[:, :, :, -1] - drawn[:, :, :, 0]
    angles = torch.rad2deg(torch.atan2(right[..., 1], right[..., 0]))
    assert 20.0 < angles.abs().max() <= 30.0 + 1e-3


def test_zoom_keeps_the_centre_in_view():
    centre = torch.tensor([[0.8, -0.6]]).expand(300, 2)
    drawn = grids(dataclasses.replace(STILL, zoom=4.0, zoomed=0.5), centre)
    extent = (drawn[:, 0, 0, -1, 0] - drawn[:, 0, 0, 0, 0]) / (2 * 15 / 16)  # 1 / zoom
    assert extent.max().item() == pytest.approx(1.0, abs=1e-5)
    assert 0.24 < extent.min() < 0.3
    assert (extent > 0.999).float().mean().item() == pytest.approx(0.5, abs=0.1)
    low, high = drawn.amin((1, 2, 3)), drawn.amax((1, 2, 3))
    half_pixel = 1 / 16
    assert ((low - half_pixel <= centre) & (centre <= high + half_pixel)).all()
    assert drawn.abs().max() <= 1.0  # and nothing outside the slice


def test_zoom_stops_at_the_largest_that_is_worth_it():
    extents = [grids(dataclasses.replace(STILL, zoom=4.0, zoomed=1.0), torch.zeros(200, 2), largest=largest)
               [:, 0, 0, -1, 0] / (15 / 16) for largest in (0.5, 2.0, 100.0)]
    assert [extent.min().item() for extent in extents] == [
        pytest.approx(1.0, abs=1e-5), pytest.approx(0.5, abs=0.02), pytest.approx(0.25, abs=0.02)]
    assert extents[2].max().item() == pytest.approx(4.0**-0.25, abs=0.03)  # and a zoomed episode is really zoomed


def test_elastic_displacement_is_smooth_and_small():
    config = dataclasses.replace(STILL, elastic=0.05)
    moved = grids(config, torch.zeros(20, 2), size=32) - grids(STILL, torch.zeros(20, 2), size=32)
    assert 0.0 < moved.abs().mean() < 0.05
    assert moved.diff(dim=2).abs().max() < 0.1
    assert not torch.equal(moved[:, 0], moved[:, 1])


def test_outside_is_black_and_background():
    far = torch.full((1, 1, 4, 4, 2), 3.0)
    assert not warp_images(torch.ones(1, 1, 8, 8), far).any()
    assert not warp_labels(torch.ones(1, 1, 8, 8, dtype=torch.uint8), far).any()


def test_labels_are_never_mixed():
    labels = torch.tensor([10, 200]).repeat_interleave(8).expand(2, 3, 16, 16)
    warped = warp_labels(labels, grids(WarpConfig()))
    assert warped.dtype == torch.int64
    assert set(warped.unique().tolist()) <= {0, 10, 200}


def test_image_and_label_are_moved_together():
    # The image is the label: wherever the image is not mixed from both, they must agree.
    labels = torch.zeros(8, 2, 32, 32, dtype=torch.uint8)
    labels[:, :, 8:24, 6:20] = 1
    drawn = grids(WarpConfig(), torch.zeros(8, 2), n_images=2, size=32, seed=3)
    image, label = warp_images(labels.float(), drawn), warp_labels(labels, drawn)
    pure = (image < 1e-6) | (image > 1 - 1e-6)
    assert pure.float().mean() > 0.8
    assert torch.equal(image[pure].round().long(), label[pure])
    assert ((image - label).abs() < 0.76).all()  # the nearest of four pixels weighs at least a quarter


# --- intensity ---


def test_blur_of_a_point_is_a_gaussian_of_its_own_width():
    images = torch.zeros(1, 2, 21, 21)
    images[..., 10, 10] = 1.0
    blurred = gaussian_blur(images, torch.tensor([[1.0, 2.0]]))
    for image, sigma in zip(blurred[0], (1.0, 2.0), strict=True):
        assert image.sum().item() == pytest.approx(1.0, abs=1e-3)
        assert (image[10, 12] / image[10, 10]).item() == pytest.approx(math.exp(-2 / sigma**2), rel=1e-4)
        torch.testing.assert_close(image, image.T)


def test_blur_of_no_width_changes_nothing_and_flat_images_stay_flat():
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    torch.testing.assert_close(gaussian_blur(images, torch.zeros(2, 3)), images)
    flat = torch.full((1, 1, 16, 16), 0.4)
    torch.testing.assert_close(gaussian_blur(flat, torch.full((1, 1), 4.0)), flat)  # borders too


def test_intensity_changes_stay_in_range_and_leave_the_input_alone():
    images = torch.rand(40, 2, 16, 16, generator=seeded())
    before = images.clone()
    changed = random_intensity(images, seeded())
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert torch.isfinite(changed).all()
    assert changed.min() >= 0.0
    assert changed.max() <= 1.0
    assert (changed - images).abs().mean() > 0.01


def test_images_of_an_episode_change_together():
    # One grey level everywhere: what becomes of it differs more between episodes than within one.
    levels = random_intensity(torch.full((100, 4, 16, 16), 0.5), seeded(), invert=0.0).mean((2, 3))
    assert levels.mean(1).std() > 2 * levels.std(1).mean()


def test_black_stays_black_unless_inverted():
    levels = random_intensity(torch.zeros(100, 2, 16, 16), seeded(), invert=0.0).flatten(2).median(dim=2).values
    assert levels.max() < 0.02
    inverted = random_intensity(torch.zeros(100, 2, 16, 16), seeded(), invert=1.0).flatten(2).median(dim=2).values
    assert inverted.min() > 0.98
