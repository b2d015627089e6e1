"""Holes are filled with what lies around them."""

from __future__ import annotations

import numpy as np
import pytest

from mvg_core.holes import continued, fill_slices

RNG = np.random.default_rng(0)


def disc(shape: tuple[int, int], radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 < radius**2


@pytest.mark.parametrize("shape", [(64, 64), (61, 47), (32, 80)])
def test_a_ramp_goes_on_and_nothing_else_changes(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]] / max(shape)
    image, hole = (0.2 + 0.5 * rows + 0.3 * columns).astype(np.float32), disc(shape, min(shape) / 4)
    filled = continued(np.where(hole, np.nan, image), hole)
    assert np.array_equal(filled[~hole], image[~hole])
    # Much nearer than the mean of what is around it.
    assert np.abs(filled - image)[hole].mean() < 0.3 * np.abs(image[~hole].mean() - image[hole]).mean()


def test_images_are_filled_each_by_itself_and_in_any_unit():
    images, hole = RNG.random((2, 3, 40, 40)).astype(np.float32), disc((40, 40), 9)
    holes = np.broadcast_to(hole, images.shape).copy()
    holes[1, 2] = False
    filled = continued(images, holes)
    assert np.array_equal(filled[1, 2], images[1, 2])
    assert np.allclose(filled[0, 1], continued(images[0, 1], hole), atol=1e-6)
    assert np.allclose(continued(1000 * images - 500, holes), 1000 * filled - 500, atol=0.1)


def test_where_nothing_is_known_the_answer_is_grey():
    assert np.array_equal(continued(np.full((20, 20), np.nan), np.ones((20, 20), bool)), np.full((20, 20), 0.5))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_a_volume_are_filled_in_place_along_the_axis(axis):
    volume = RNG.random((20, 22, 24))
    hole = np.zeros(volume.shape, bool)
    hole[8:12, 8:12, 8:12] = True
    filled = volume.copy()
    fill_slices(filled, hole, axis)
    assert np.array_equal(filled[~hole], volume[~hole])
    part, where = np.moveaxis(volume, axis, 0)[9], np.moveaxis(hole, axis, 0)[9]
    assert np.allclose(np.moveaxis(filled, axis, 0)[9], continued(part, where), atol=1e-6)
