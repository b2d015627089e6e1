"""One grid onto another, worked by hand."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from mvg_core import resample
from mvg_core.resample import resample_to
from mvg_core.volume import Geometry, Volume

EYE = Geometry((4, 3, 2), np.eye(4))


def numbered(dtype: type = np.float32) -> np.ndarray:
    return np.arange(24).reshape(4, 3, 2).astype(dtype)


def shifted(mm: tuple[float, float, float], shape: tuple[int, int, int] = (4, 3, 2)) -> Geometry:
    affine = np.eye(4)
    affine[:3, 3] = mm
    return Geometry(shape, affine)


def test_same_grid_returns_the_voxels_unchanged() -> None:
    volume = Volume(numbered(), EYE)
    assert resample_to(volume, shifted((1e-5, 0, 0)), is_label=False).array is volume.array
    labels = Volume(numbered(np.uint8), EYE)
    assert resample_to(labels, EYE, is_label=True).array is labels.array


def test_images_are_linear_and_filled_outside() -> None:
    # voxel (i, j, k) has 6 i + 2 j + k
    result = resample_to(Volume(numbered(), EYE), shifted((0.5, 1, 0)), is_label=False, fill=-7)
    np.testing.assert_allclose(result.array[0, 0, 0], 0.5 * 6 + 2)
    np.testing.assert_allclose(result.array[2, 1, 1], 2.5 * 6 + 2 * 2 + 1)
    assert (result.array[:, 2] == -7).all()
    assert result.geometry.is_close(shifted((0.5, 1, 0)))


def test_labels_are_nearest_and_keep_their_type() -> None:
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float16, bool):
        result = resample_to(Volume(numbered(dtype), EYE), shifted((0.4, 0, 0)), is_label=True)
        assert result.array.dtype == dtype
        np.testing.assert_array_equal(result.array, numbered(dtype))
    beyond = resample_to(Volume(numbered(np.int16), EYE), shifted((3.0, 0, 0)), is_label=True, fill=99)
    np.testing.assert_array_equal(beyond.array[0], numbered()[3])
    assert (beyond.array[1:] == 99).all()


def test_images_become_real_numbers() -> None:
    target = shifted((0.25, 0, 0))
    for dtype in (np.uint8, np.int16, np.float16, np.int64, bool):
        result = resample_to(Volume(numbered(dtype), EYE), target, is_label=False)
        assert result.array.dtype == np.float32
    np.testing.assert_allclose(resample_to(Volume(numbered(int), EYE), target, is_label=False).array[0, 0, 0], 1.5)
    assert resample_to(Volume(numbered(float), EYE), target, is_label=False).array.dtype == np.float64
    assert resample_to(Volume(numbered(np.int16), EYE), EYE, is_label=False).array.dtype == np.float32


def test_byte_order_of_a_file_does_not_matter() -> None:
    swapped = numbered(np.int16).astype(">i2")
    result = resample_to(Volume(swapped, EYE), shifted((0, 1, 0)), is_label=True)
    np.testing.assert_array_equal(result.array[:, 0], numbered()[:, 1])


@pytest.mark.parametrize("is_label", [True, False])
def test_all_48_orientations_of_one_grid_hold_the_same_voxels(is_label: bool) -> None:
    source = Volume(numbered(np.int16), Geometry((4, 3, 2), np.diag([0.7, 1.1, 3, 1])))
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            # new index axis a is old axis order[a], reversed where flips[a]
            to_old = np.zeros((4, 4))
            to_old[3, 3] = 1
            for axis, (old, flip) in enumerate(zip(order, flips, strict=True)):
                to_old[old, axis] = -1 if flip else 1
                to_old[old, 3] = source.array.shape[old] - 1 if flip else 0
            expected = np.flip(source.array.transpose(order), tuple(axis for axis in range(3) if flips[axis]))
            target = Geometry(expected.shape, source.geometry.affine @ to_old)
            result = resample_to(source, target, is_label=is_label)
            np.testing.assert_allclose(result.array, expected, atol=1e-4)


def test_oblique_and_sheared_grids_agree_with_the_world() -> None:
    """The image is a linear function of the world, which linear interpolation keeps on any grid."""
    sheared = np.array([[1.2, 0.3, 0.1, -5], [-0.2, 0.9, 0.4, -6], [0, 0.1, 2, -8], [0, 0, 0, 1]])
    source = Geometry((12, 14, 9), sheared)
    world = source.index_to_world(np.moveaxis(np.indices(source.shape), 0, -1))
    image = Volume(world @ (1.0, -2.0, 0.5), source)
    angle = np.deg2rad(30)
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    target = np.eye(4)
    target[:3, :3] = turned * (0.8, 0.9, 1.5)
    target[:3, 3] = source.index_to_world((5, 6, 4))
    geometry = Geometry((3, 4, 2), target)
    expected = geometry.index_to_world(np.moveaxis(np.indices(geometry.shape), 0, -1)) @ (1.0, -2.0, 0.5)
    np.testing.assert_allclose(resample_to(image, geometry, is_label=False).array, expected, atol=1e-9)


def test_one_slice_and_one_voxel() -> None:
    flat = Volume(np.full((4, 3, 1), 5.0, np.float32), Geometry((4, 3, 1), np.diag([1, 1, 7, 1])))
    # a slice 7 mm thick fills thin slices within 3.5 mm of its middle
    result = resample_to(flat, shifted((0, 0, -5), (4, 3, 11)), is_label=False, fill=-1)
    np.testing.assert_array_equal(result.array[0, 0], [-1, -1] + [5] * 7 + [-1, -1])
    dot = Volume(np.ones((1, 1, 1), np.uint8), Geometry((1, 1, 1), np.eye(4)))
    assert resample_to(dot, shifted((-1, -1, -1), (3, 3, 3)), is_label=True).array.sum() == 1


def test_grids_that_do_not_meet_give_only_fill() -> None:
    far = shifted((500, 0, 0))
    assert not EYE.overlaps(far)
    assert (resample_to(Volume(numbered(), EYE), far, is_label=False, fill=-1000).array == -1000).all()


def test_fill_of_a_label_map_must_fit_its_type() -> None:
    labels = Volume(numbered(np.uint8), EYE)
    for fill in (0.5, -1, 256):
        with pytest.raises(ValueError, match=f"fill {fill} does not fit a label map of type uint8"):
            resample_to(labels, shifted((1, 0, 0)), is_label=True, fill=fill)


@pytest.mark.parametrize("is_label", [True, False])
@pytest.mark.parametrize("slab_voxels", [1, 30, 10**6])
def test_slabs_and_memory_order_change_nothing(
    is_label: bool, slab_voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resample, "_SLAB_VOXELS", slab_voxels)
    rng = np.random.default_rng(0)
    array = rng.integers(0, 9, (5, 6, 7)).astype(np.int16)
    source = Geometry((5, 6, 7), np.diag([1.0, 1.2, 2.0, 1.0]))
    target = Geometry((4, 5, 9), np.array([[0.9, 0.1, 0, 1], [0.2, 0, 1.1, -1], [0, 1.3, 0.3, 2], [0, 0, 0, 1]]))
    # every voxel by hand: its place in the source, then the nearest voxel or the eight around it
    expected = np.full(target.shape, 99.0)
    for ijk in np.ndindex(*target.shape):
        at = source.world_to_index(target.index_to_world(ijk))
        if ((at < 0) | (at > np.array(source.shape) - 1)).any():
            continue
        low = np.minimum(np.floor(at), np.array(source.shape) - 2).astype(int)
        share = at - low
        block = array[low[0] : low[0] + 2, low[1] : low[1] + 2, low[2] : low[2] + 2]
        weights = np.einsum("i,j,k->ijk", *(np.array([1 - s, s]) for s in share))
        nearest = array[tuple(np.floor(at + 0.5).astype(int))]
        expected[ijk] = nearest if is_label else (block * weights).sum()
    inside = expected != 99
    assert 20 < inside.sum() < expected.size
    for stored in (np.ascontiguousarray(array), np.asfortranarray(array), array[:, ::-1][:, ::-1]):
        result = resample_to(Volume(stored, source), target, is_label=is_label).array
        np.testing.assert_allclose(result[inside], expected[inside], atol=1e-4)
