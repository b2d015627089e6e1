"""Slices and back: exact where nothing is resampled, worked by hand where something is."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvg_core.slices import SlicePlan, choose_plane
from mvg_core.volume import Geometry, GeometryError, Plane, Volume

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
SIGNED_PERMUTATIONS = [
    np.eye(3)[:, list(order)] * signs for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
]
# The world axes themselves: R, A, S.
RAS = np.eye(3)
# What DICOM and pictures use: L, P, S.
LPS = np.diag([-1.0, -1.0, 1.0])


def grid(
    shape: tuple[int, int, int], direction: np.ndarray = LPS, spacing_mm: tuple[float, float, float] = (1, 1, 1)
) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing_mm
    affine[:3, 3] = (10, -20, 30)
    return Geometry(shape, affine)


def numbered(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Every voxel another number."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# --- there and back, exactly ---

shapes = st.tuples(*[st.integers(1, 9)] * 3)


@given(
    shape=shapes,
    direction=st.sampled_from(SIGNED_PERMUTATIONS),
    plane=st.sampled_from([*PLANES, 0, 1, 2]),
    size=st.integers(9, 13),
    spacing=st.floats(0.1, 9),
    channels=st.sampled_from([None, 1, 3]),
)
def test_restore_undoes_extract_exactly(
    shape: tuple[int, int, int],
    direction: np.ndarray,
    plane: Plane | int,
    size: int,
    spacing: float,
    channels: int | None,
) -> None:
    geometry = grid(shape, direction, (spacing, spacing, spacing))
    plan = SlicePlan.for_volume(geometry, plane, size=size, spacing_mm=spacing)
    assert plan.is_exact
    image, labels = numbered(shape), numbered(shape, np.int16)
    stack = plan.extract(image)
    assert stack.shape == (plan.n_slices, size, size)
    np.testing.assert_array_equal(plan.restore(stack), image)
    np.testing.assert_array_equal(plan.restore_label(plan.extract_label(labels)), labels)
    if channels:
        many = np.stack([stack + channel for channel in range(channels)], axis=-1)
        np.testing.assert_array_equal(plan.restore(many), np.stack([image + c for c in range(channels)], axis=-1))


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_every_orientation_and_plane_with_its_own_native_spacing(direction: np.ndarray) -> None:
    """Anisotropic grids are exact in the plane whose two spacings agree."""
    shape = (5, 6, 3)
    geometry = grid(shape, direction, (0.7, 0.7, 4.0))
    plan = SlicePlan.for_volume(geometry, 2, size=7, spacing_mm=0.7)
    assert plan.is_exact
    image = numbered(shape)
    np.testing.assert_array_equal(plan.restore(plan.extract(image)), image)
    assert not SlicePlan.for_volume(geometry, 0, size=99, spacing_mm=0.7).is_exact


@given(shape=shapes, axis=st.integers(0, 2), direction=st.sampled_from(SIGNED_PERMUTATIONS))
def test_slice_by_slice_is_the_same_as_all_at_once(
    shape: tuple[int, int, int], axis: int, direction: np.ndarray
) -> None:
    """Also where everything is resampled, cropped and padded."""
    plan = SlicePlan.for_volume(grid(shape, direction, (1, 1.5, 2)), axis, size=6, spacing_mm=1.3)
    image, labels = numbered(shape), numbered(shape, np.uint16)
    stack, label_stack = plan.extract(image), plan.extract_label(labels)
    streamed, streamed_labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint16)
    for number in reversed(range(plan.n_slices)):
        plan.insert(streamed, number, plan.restore_slice(plan.extract(image, number)[0]))
        one = plan.extract_label(labels, [number])[0]
        plan.insert(streamed_labels, number, plan.restore_label_slice(one))
    np.testing.assert_array_equal(streamed, plan.restore(stack))
    np.testing.assert_array_equal(streamed_labels, plan.restore_label(label_stack))


def test_fit_without_resampling_when_the_longer_side_is_the_size() -> None:
    shape = (192, 150, 2)
    plan = SlicePlan.for_volume(grid(shape, LPS, (0.3, 0.3, 5)), "axial")
    assert plan.size == 192
    assert plan.is_exact
    image = numbered(shape)
    stack = plan.extract(image)
    np.testing.assert_array_equal(stack[:, 21 : 21 + 150, :], image.transpose(2, 1, 0))
    assert not stack[:, :21].any()
    assert not stack[:, 171:].any()


def test_last_digits_of_a_header_are_no_reason_to_resample() -> None:
    # float32 headers: 0.9375 against 0.93749; over 40 voxels that is 0.0004 of a voxel
    assert SlicePlan.for_volume(grid((40, 40, 3), LPS, (0.9375, 0.93749, 3)), "axial", size=40).is_exact
    # but one percent is 0.4 voxels
    assert not SlicePlan.for_volume(grid((40, 40, 3), LPS, (0.9375, 0.928, 3)), "axial", size=40).is_exact


def test_nothing_is_calculated_where_nothing_is_resampled() -> None:
    image = numbered((4, 5, 2))
    image[1, 2, 0] = np.nan
    plan = SlicePlan.for_volume(grid((4, 5, 2)), "axial", size=5, spacing_mm=1)
    np.testing.assert_array_equal(plan.restore(plan.extract(image)), image)


# --- what is seen ---


def landmarks(direction: np.ndarray) -> tuple[np.ndarray, Geometry]:
    """A 3 x 3 x 3 volume with 1 at the far Right, 2 at the far Anterior and 3 at the far Superior face's centre."""
    geometry = grid((3, 3, 3), direction)
    centre = geometry.index_to_world((1, 1, 1))
    array = np.zeros((3, 3, 3))
    for value, towards in ((1, (1, 0, 0)), (2, (0, 1, 0)), (3, (0, 0, 1))):
        array[tuple(np.rint(geometry.world_to_index(centre + towards)).astype(int))] = value
    return array, geometry


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_slices_look_as_radiologists_expect(direction: np.ndarray) -> None:
    array, geometry = landmarks(direction)
    shown = {plane: SlicePlan.for_volume(geometry, plane, size=3).extract(array, 1)[0] for plane in PLANES}
    # Right is on the image's left, Anterior and Superior at the top; sagittal: Anterior on the left.
    np.testing.assert_array_equal(shown["axial"], [[0, 2, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(shown["coronal"], [[0, 3, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(shown["sagittal"], [[0, 3, 0], [2, 0, 0], [0, 0, 0]])


def test_picture_looks_like_the_picture() -> None:
    picture = np.array([[1, 2, 3], [4, 5, 6]])  # rows down, columns right
    plan = SlicePlan.for_volume(grid((3, 2, 1)), "axial", size=4, spacing_mm=1)
    np.testing.assert_array_equal(
        plan.extract(picture.T[:, :, None])[0], [[0, 0, 0, 0], [1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]
    )


def test_padding_takes_the_fill_value() -> None:
    plan = SlicePlan.for_volume(grid((1, 1, 1)), "axial", size=3, spacing_mm=1)
    np.testing.assert_array_equal(
        plan.extract(np.array([[[7]]]), fill=-1000)[0],
        [[-1000, -1000, -1000], [-1000, 7, -1000], [-1000, -1000, -1000]],
    )


def test_centre_is_cropped_and_the_rest_restored_as_fill() -> None:
    plan = SlicePlan.for_volume(grid((5, 4, 1)), "axial", size=2, spacing_mm=1)
    image = numbered((5, 4, 1))
    # 5 columns: two too many on the left, one on the right; 4 rows: one on either side
    np.testing.assert_array_equal(plan.extract(image)[0], image[2:4, 1:3, 0].T)
    restored = plan.restore(plan.extract(image), fill=-1)
    np.testing.assert_array_equal(restored[2:4, 1:3], image[2:4, 1:3])
    assert (restored == -1).sum() == 16
    assert not plan.is_exact
    labels = plan.restore_label(plan.extract_label(image.astype(int)), fill=99)
    assert (labels == 99).sum() == 16


# --- resampling, worked by hand ---


def row(*values: float) -> np.ndarray:
    """A picture of one row."""
    return np.array(values, dtype=np.float32)[:, None, None]


def test_making_smaller_averages_over_the_area() -> None:
    # 3 voxels on 2 pixels, each 1.5 voxels wide: (0 + 3/2) / 1.5 and (3/2 + 6) / 1.5
    plan = SlicePlan.for_volume(grid((3, 1, 1)), "axial", size=2)
    assert plan.spacing_mm == 1.5
    np.testing.assert_allclose(plan.extract(row(0, 3, 6))[0, 0], [1, 5])
    # a checkerboard has no grey but its average
    plan = SlicePlan.for_volume(grid((8, 8, 1)), "axial", size=2)
    board = (np.indices((8, 8)).sum(axis=0) % 2)[:, :, None]
    np.testing.assert_allclose(plan.extract(board)[0], 0.5)


def test_making_larger_interpolates_linearly() -> None:
    # 2 voxels on 4 pixels, at voxel -0.25, 0.25, 0.75, 1.25; the border is repeated
    plan = SlicePlan.for_volume(grid((2, 1, 1)), "axial", size=4)
    stack = plan.extract(row(0, 4))
    np.testing.assert_allclose(stack[0, 1], [0, 1, 3, 4])
    # back: every voxel is the average of its two pixels
    np.testing.assert_allclose(plan.restore(stack)[:, 0, 0], [0.5, 3.5])


def test_a_square_stays_square_on_anisotropic_voxels() -> None:
    # 4 x 2 voxels of 1 x 2 mm: 4 mm x 4 mm
    plan = SlicePlan.for_volume(grid((4, 2, 1), LPS, (1, 2, 1)), "axial", size=4)
    assert plan.spacing_mm == 1
    square = np.zeros((4, 2, 1))
    square[:2, 0] = 1
    # rows at voxel -0.25, 0.25, 0.75, 1.25
    np.testing.assert_allclose(plan.extract(square)[0], np.outer([1, 0.75, 0.25, 0], [1, 1, 0, 0]))


def test_flipped_axes_are_resampled_alike() -> None:
    image = np.random.default_rng(0).random((7, 5, 2))
    for size in (4, 12):
        plan = SlicePlan.for_volume(grid((7, 5, 2), LPS, (1, 1.3, 2)), "axial", size=size)
        flipped = SlicePlan.for_volume(grid((7, 5, 2), RAS, (1, 1.3, 2)), "axial", size=size)
        stack = plan.extract(image)
        np.testing.assert_allclose(flipped.extract(image[::-1, ::-1]), stack, atol=1e-6)
        np.testing.assert_allclose(flipped.restore(stack)[::-1, ::-1], plan.restore(stack), atol=1e-6)


@given(shape=shapes, size=st.integers(1, 20), spacing=st.none() | st.floats(0.05, 30))
def test_a_constant_image_stays_constant(shape: tuple[int, int, int], size: int, spacing: float | None) -> None:
    plan = SlicePlan.for_volume(grid(shape, LPS, (0.8, 1.7, 3)), "coronal", size=size, spacing_mm=spacing)
    stack = plan.extract(np.full(shape, 5.0), fill=5)
    np.testing.assert_allclose(stack, 5, rtol=1e-6)
    np.testing.assert_allclose(plan.restore(stack, fill=5), 5, rtol=1e-6)


@pytest.mark.parametrize("size", [24, 40, 64, 200])
def test_a_ramp_survives_the_round_trip(size: int) -> None:
    """Position and scale are right to an eighth of a voxel: what was at a place is there again."""
    shape = (40, 32, 2)
    plan = SlicePlan.for_volume(grid(shape, LPS, (0.9, 1.1, 3)), "axial", size=size)
    ramp = np.add.outer(np.arange(40.0), 2 * np.arange(32.0))[:, :, None].repeat(2, axis=2)
    restored = plan.restore(plan.extract(ramp))
    np.testing.assert_allclose(restored[3:-3, 3:-3], ramp[3:-3, 3:-3], atol=2 / 8)


def test_types_do_not_wrap_around() -> None:
    plan = SlicePlan.for_volume(grid((2, 1, 1)), "axial", size=4)
    np.testing.assert_allclose(plan.extract(row(255, 1).astype(np.uint8))[0, 1], [255, 191.5, 64.5, 1])
    np.testing.assert_array_equal(plan.extract(row(1, 0).astype(bool))[0, 1], [1, 0.75, 0.25, 0])


# --- labels ---


def test_labels_take_the_larger_share() -> None:
    # 6 voxels on 2 pixels: two thirds are 3, one third is 9
    plan = SlicePlan.for_volume(grid((6, 1, 1)), "axial", size=2)
    result = plan.extract_label(row(3, 3, 9, 9, 9, 9).astype(np.int32))
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result[0, 0], [3, 9])
    # 9 covers a third of both pixels, won by 3 and by background: it gets the background's
    np.testing.assert_array_equal(plan.extract_label(row(3, 3, 9, 9, 0, 0).astype(int))[0, 0], [3, 9])


def test_half_covered_is_foreground() -> None:
    plan = SlicePlan.for_volume(grid((4, 1, 1)), "axial", size=2)
    np.testing.assert_array_equal(plan.extract_label(row(0, 7, 7, 7).astype(int))[0, 0], [7, 7])
    # two labels together cover two thirds: no hole between them
    plan = SlicePlan.for_volume(grid((6, 1, 1)), "axial", size=2)
    np.testing.assert_array_equal(plan.extract_label(row(1, 0, 2, 2, 2, 2).astype(int))[0, 0], [1, 2])


@pytest.mark.parametrize("offset", range(4))
def test_thin_lines_stay_connected(offset: int) -> None:
    """A line one voxel wide covers a quarter of a pixel; nearest neighbour would lose three lines of four."""
    plan = SlicePlan.for_volume(grid((40, 40, 1)), "axial", size=10)
    labels = np.zeros((40, 40, 1), np.uint8)
    labels[16 + offset] = 1
    result = plan.extract_label(labels)[0]
    np.testing.assert_array_equal(result, np.arange(10) == np.full((10, 1), 4))


def test_a_single_voxel_keeps_one_pixel() -> None:
    plan = SlicePlan.for_volume(grid((50, 50, 1)), "axial", size=10)
    labels = np.full((50, 50, 1), 5, np.uint8)
    labels[:, 25:] = 0
    labels[12, 12], labels[33, 41] = 8, 2
    result = plan.extract_label(labels)[0]
    assert (result == 8).sum() == 1
    assert result[2, 2] == 8
    assert (result == 2).sum() == 1
    assert result[8, 6] == 2
    assert (result[:5] == 5).sum() == 49


def test_a_thin_wall_inside_another_label_stays() -> None:
    plan = SlicePlan.for_volume(grid((40, 40, 1)), "axial", size=10)
    labels = np.full((40, 40, 1), 1, np.uint8)
    labels[17] = 2
    np.testing.assert_array_equal(plan.extract_label(labels)[0, 0], [1, 1, 1, 1, 2, 1, 1, 1, 1, 1])


def test_of_two_specks_in_one_pixel_the_larger_stays() -> None:
    plan = SlicePlan.for_volume(grid((8, 1, 1)), "axial", size=1)
    np.testing.assert_array_equal(plan.extract_label(row(1, 0, 2, 2, 0, 0, 0, 0).astype(int)), [[[2]]])
    np.testing.assert_array_equal(plan.extract_label(row(2, 2, 0, 1, 0, 0, 0, 0).astype(int)), [[[2]]])
    # label 2 won the pixel and has no other: label 1 may not take it
    np.testing.assert_array_equal(plan.extract_label(row(1, 1, 1, 2, 2, 2, 2, 0).astype(int)), [[[2]]])


@given(
    labels=st.lists(st.sampled_from([0, 0, 2, 5, 200]), min_size=24, max_size=24),
    size=st.integers(1, 15),
    spacing=st.none() | st.floats(0.2, 6),
    plane=st.sampled_from(PLANES),
)
def test_no_label_is_invented(labels: list[int], size: int, spacing: float | None, plane: Plane) -> None:
    array = np.array(labels, np.uint8).reshape(2, 3, 4)
    plan = SlicePlan.for_volume(grid((2, 3, 4), RAS, (1, 1.5, 0.8)), plane, size=size, spacing_mm=spacing)
    stack = plan.extract_label(array)
    assert stack.dtype == np.uint8
    assert set(np.unique(stack)) <= set(labels) | {0}
    assert set(np.unique(plan.restore_label(stack))) <= set(labels) | {0}


def test_labels_survive_a_finer_canvas() -> None:
    labels = np.random.default_rng(3).integers(0, 4, (9, 8, 3)).astype(np.uint8)
    plan = SlicePlan.for_volume(grid((9, 8, 3), RAS, (1, 1, 3)), "axial", size=45)
    np.testing.assert_array_equal(plan.restore_label(plan.extract_label(labels)), labels)


def test_label_types() -> None:
    plan = SlicePlan.for_volume(grid((2, 1, 1)), "axial", size=2)
    assert plan.extract_label(row(1, 0).astype(bool)).dtype == np.uint8
    assert plan.extract_label(row(3.0, 0.0)).dtype == np.int32
    np.testing.assert_array_equal(plan.extract_label(row(3.0, 0.0))[0, 0], [3, 0])
    assert plan.restore_label(np.ones((1, 2, 2), bool)).dtype == np.uint8
    for wrong in (row(0.5, 1), row(np.nan, 1)):
        with pytest.raises(ValueError, match="in slice 0: labels are whole numbers"):
            plan.extract_label(wrong)
    with pytest.raises(ValueError, match="labels must be integers, got float64"):
        plan.restore_label(np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="labels must be integers"):
        plan.restore_label_slice(np.zeros((2, 2)))


# --- which slices ---


def test_slices_come_in_the_order_asked_for() -> None:
    image = numbered((2, 2, 5))
    plan = SlicePlan.for_volume(grid((2, 2, 5)), "axial", size=2)
    every = plan.extract(image)
    np.testing.assert_array_equal(plan.extract(image, [4, 0, 4]), every[[4, 0, 4]])
    np.testing.assert_array_equal(plan.extract(image, np.array([2])), every[[2]])
    np.testing.assert_array_equal(plan.extract(image, 3), every[[3]])
    assert plan.extract(image, []).shape == (0, 2, 2)
    assert plan.extract_label(image.astype(int), []).shape == (0, 2, 2)


@pytest.mark.parametrize("index", [5, -1, [0, 5], 1.0, [[0, 1]], np.array([True, False])])
def test_slice_numbers_are_checked(index: object) -> None:
    plan = SlicePlan.for_volume(grid((2, 2, 5)), "axial", size=2)
    for extract in (plan.extract, plan.extract_label):
        with pytest.raises(IndexError, match=r"0\.\.4"):
            extract(np.zeros((2, 2, 5), int), index)  # pyright: ignore[reportArgumentType]


def test_one_slice_of_a_huge_volume_needs_no_copy_of_it() -> None:
    shape = (3000, 3000, 3000)  # 27 GB, were it not the same voxel everywhere
    huge = np.broadcast_to(np.uint8(9), shape)
    for plane in PLANES:
        plan = SlicePlan.for_volume(grid(shape, RAS), plane, size=16)
        np.testing.assert_allclose(plan.extract(huge, 1234), 9, rtol=1e-5)
        assert (plan.extract_label(huge, 1234) == 9).all()
        assert plan.restore_slice(plan.extract(huge, 7)[0]).shape == (3000, 3000)


def test_positions_grow_towards_superior_however_stored() -> None:
    # origin (10, -20, 30), 4 mm slices
    up = SlicePlan.for_volume(grid((2, 2, 3), LPS, (1, 1, 4)), "axial")
    np.testing.assert_allclose(up.slice_positions_mm, [30, 34, 38])
    np.testing.assert_allclose(up.relative_positions, [0, 0.5, 1])
    down = SlicePlan.for_volume(grid((2, 2, 3), np.diag([1.0, 1.0, -1.0]), (1, 1, 4)), "axial")
    np.testing.assert_allclose(down.slice_positions_mm, [30, 26, 22])
    np.testing.assert_allclose(down.relative_positions, [1, 0.5, 0])
    np.testing.assert_array_equal(down.normal, [0, 0, 1])
    sagittal = SlicePlan.for_volume(grid((3, 2, 2), LPS), "sagittal")
    np.testing.assert_allclose(sagittal.slice_positions_mm, [10, 9, 8])
    assert SlicePlan.for_volume(grid((3, 2, 1)), "axial").relative_positions == [0.5]


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
def test_positions_are_of_the_world_for_all_48_orientations(direction: np.ndarray) -> None:
    tilted = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    geometry = grid((4, 5, 6), tilted @ direction, (1, 2, 3))
    for axis in range(3):
        plan = SlicePlan.for_volume(geometry, axis)
        world = abs(direction[:, axis]).argmax()
        np.testing.assert_allclose(plan.normal, tilted[:, world], atol=1e-12)
        steps = np.diff(plan.slice_positions_mm)
        np.testing.assert_allclose(steps, geometry.spacing_mm[axis] * direction[world, axis])
        first = [0, 0, 0]
        assert plan.slice_positions_mm[0] == pytest.approx(geometry.index_to_world(first) @ plan.normal)


def test_slices_of_a_tilted_gantry_are_as_far_apart_as_their_planes() -> None:
    sheared = np.diag([-1.0, -1.0, 5.0, 1.0])
    sheared[1, 2] = 3  # every slice 3 mm further forward
    plan = SlicePlan.for_volume(Geometry((4, 4, 3), sheared), "axial")
    np.testing.assert_allclose(plan.normal, [0, 0, 1])
    np.testing.assert_allclose(plan.slice_positions_mm, [0, 5, 10])


# --- what is refused ---


def test_plans_are_checked() -> None:
    geometry = grid((2, 3, 4))
    for axis in (3, -1, True, 1.0, None):
        with pytest.raises(ValueError, match="axis 0, 1 or 2"):
            SlicePlan.for_volume(geometry, axis)  # pyright: ignore[reportArgumentType]
    for size in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match="whole number of pixels"):
            SlicePlan.for_volume(geometry, 0, size=size)  # pyright: ignore[reportArgumentType]
    for spacing in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="positive number"):
            SlicePlan.for_volume(geometry, 0, spacing_mm=spacing)
    with pytest.raises(GeometryError, match="unknown plane"):
        SlicePlan.for_volume(geometry, "oblique")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="axis 0, 1 or 2"):
        SlicePlan(geometry, 5, 8, 1.0)


def test_arrays_must_fit_the_plan() -> None:
    plan = SlicePlan.for_volume(grid((2, 3, 4)), "axial", size=3, spacing_mm=1)
    with pytest.raises(ValueError, match=r"\(4, 3, 2\), the plan was made for \(2, 3, 4\)"):
        plan.extract(np.zeros((4, 3, 2)))
    with pytest.raises(ValueError, match="the plan was made for"):
        plan.extract_label(np.zeros((2, 3, 5), int))
    for stack in (np.zeros((3, 3, 3)), np.zeros((4, 3, 2)), np.zeros((3, 3)), np.zeros((4, 3, 3, 1, 1))):
        with pytest.raises(ValueError, match=r"needed \(4, 3, 3\)"):
            plan.restore(stack)
        with pytest.raises(ValueError, match=r"needed \(4, 3, 3\)"):
            plan.restore_label(stack.astype(int))
    with pytest.raises(ValueError, match=r"needed \(1, 3, 3\)"):
        plan.restore_slice(np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"slice has shape \(3, 2\), needed \(2, 3\)"):
        plan.insert(np.zeros((2, 3, 4)), 0, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="the plan was made for"):
        plan.insert(np.zeros((3, 3, 4)), 0, np.zeros((2, 3)))
    with pytest.raises(IndexError):
        plan.insert(np.zeros((2, 3, 4)), 4, np.zeros((2, 3)))


def test_insert_writes_channels_in_place() -> None:
    plan = SlicePlan.for_volume(grid((2, 3, 4)), "coronal", size=4, spacing_mm=1)
    target = np.zeros((2, 3, 4, 2))
    plan.insert(target, 1, plan.restore_slice(np.ones((4, 4, 2))))
    assert target[:, 1].all()
    assert target.sum() == 16


# --- the plane to slice in ---


def labelled(shape: tuple[int, int, int], box: tuple[slice, slice, slice]) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[box] = 4
    return label


def test_choose_plane_follows_the_annotation() -> None:
    geometry = grid((10, 10, 10))
    everything = slice(None)
    # drawn on one slice
    for axis in range(3):
        box = [everything] * 3
        box[axis] = slice(4, 5)
        assert choose_plane(geometry, labelled((10, 10, 10), (box[0], box[1], box[2]))) == axis
    # smallest share of its axis: 4 of 10, 3 of 10, 5 of 10
    assert choose_plane(geometry, labelled((10, 10, 10), (slice(0, 4), slice(0, 3), slice(0, 5)))) == 1


def test_one_single_slice_decides_even_in_a_short_volume() -> None:
    # 1 of 4 axial slices, 5 of 100 columns: the share alone would choose columns
    label = labelled((100, 100, 4), (slice(0, 5), slice(0, 50), slice(2, 3)))
    assert choose_plane(grid((100, 100, 4)), label) == 2


def test_choose_plane_without_a_label_takes_the_largest_spacing_then_axial() -> None:
    for label in (None, np.zeros((5, 5, 5))):
        assert choose_plane(grid((5, 5, 5), LPS, (3, 1, 1)), label) == 0
        assert choose_plane(grid((5, 5, 5), LPS, (1, 3, 1.5)), label) == 1
        assert choose_plane(grid((5, 5, 5), LPS, (1, 1, 1)), label) == 2
        assert choose_plane(grid((5, 5, 5), LPS, (1.0001, 1, 1)), label) == 2  # a header's last digits
    # isotropic, stored as sagittal slices: i is Superior
    assert choose_plane(grid((5, 5, 5), np.eye(3)[:, [2, 0, 1]]), None) == 0


def test_ties_between_shares_go_to_the_largest_spacing() -> None:
    cube = labelled((8, 8, 8), (slice(0, 4), slice(0, 4), slice(0, 6)))
    assert choose_plane(grid((8, 8, 8), LPS, (1, 2, 4)), cube) == 1


def test_thick_slices_are_taken_as_acquired_unless_somebody_drew_across_them() -> None:
    whole_heart = labelled((60, 60, 10), (slice(20, 30), slice(20, 40), slice(0, 10)))  # 10 of 60 columns, all slices
    assert choose_plane(grid((60, 60, 10), LPS, (1.5, 1.5, 10)), whole_heart) == 2
    assert choose_plane(grid((60, 60, 10), LPS, (1.5, 1.5, 2.9)), whole_heart) == 0
    one_sagittal = labelled((60, 60, 10), (slice(20, 21), slice(20, 40), slice(0, 10)))
    assert choose_plane(grid((60, 60, 10), LPS, (1.5, 1.5, 10)), one_sagittal) == 0


def test_a_picture_is_sliced_as_a_picture() -> None:
    assert choose_plane(grid((30, 40, 1)), None) == 2
    assert choose_plane(grid((1, 40, 30)), None) == 0
    # one labelled pixel is on one single slice of every axis
    assert (
        choose_plane(grid((30, 40, 1), LPS, (2, 2, 1)), labelled((30, 40, 1), (slice(3, 4), slice(5, 6), slice(0, 1))))
        == 2
    )


def test_choose_plane_needs_a_label_on_the_grid() -> None:
    with pytest.raises(ValueError, match="they must be the same"):
        choose_plane(grid((3, 4, 5)), np.ones((3, 4, 6)))


def test_plan_works_with_volume() -> None:
    volume = Volume.from_array(numbered((3, 3, 3)))
    plan = SlicePlan.for_volume(volume.geometry, choose_plane(volume.geometry), size=3)
    assert volume.with_array(plan.restore(plan.extract(volume.array))).geometry is volume.geometry
