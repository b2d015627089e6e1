"""References: usable labels on one grid, the axis and scale at which prompts are cut, and the prompts themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mvg_core import intensity
from mvg_core.intensity import IntensityScaling, slabs
from mvg_core.references import (
    PromptSource,
    Reference,
    choose_axis,
    common_spacing,
    cut_prompts,
    hole_mask,
    labels_in,
    marked_slices,
    plan_for,
    scaled_slices,
    whole_labels,
)
from mvg_core.slices import SlicePlan
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, GeometryError, Volume

SEGMENTATION = Task.segmentation()
UNIT = IntensityScaling.from_window(0, 1)
RNG = np.random.default_rng(0)


def volume(array: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    return Volume(array, Geometry(array.shape, np.eye(4) if affine is None else affine))


def at(mm: tuple[float, float, float], spacing: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = mm
    return affine


def noise(shape: tuple[int, int, int] = (4, 5, 6), affine: np.ndarray | None = None) -> Volume:
    return volume(RNG.random(shape), affine)


def marked(shape: tuple[int, int, int], where: tuple, label: int = 1) -> Volume:
    array = np.zeros(shape, np.uint8)
    array[where] = label
    return volume(array)


@pytest.fixture(params=["whole", "in slabs"])
def any_slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays at once, and piece by piece as huge ones are."""
    if request.param == "in slabs":
        monkeypatch.setattr(intensity, "_PERCENTILE_SAMPLE", 4)


# --- label maps ---


@pytest.mark.usefixtures("any_slabs")
@pytest.mark.parametrize("stored", [np.ascontiguousarray, np.asfortranarray, lambda a: np.flip(a).swapaxes(0, 1)])
def test_slabs_cover_the_array_and_can_be_written_to(stored: Callable[[np.ndarray], np.ndarray]) -> None:
    array = stored(np.arange(24).reshape(2, 3, 4))
    copy = np.zeros(array.shape)
    for part, out in slabs(array, copy):
        out[...] = part
    np.testing.assert_array_equal(copy, array)


@pytest.mark.usefixtures("any_slabs")
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64])
def test_whole_numbers_become_uint8(dtype: type) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    whole = whole_labels(array, "label")
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, [[0, 1], [1, 0]])


def test_what_is_uint8_is_not_copied() -> None:
    array = np.array([0, 255], np.uint8)
    assert np.shares_memory(whole_labels(array, "label"), array)
    np.testing.assert_array_equal(whole_labels(np.array([0.0, 255.0]), "label"), array)


@pytest.mark.usefixtures("any_slabs")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 256], r"my label holds values from 0 to 256: labels are 0 \(background\) to 255\. Renumber"),
        ([-1, 3], "values from -1 to 3"),
        ([-0.5, 3], "values from -0.5 to 3"),
        ([0, 1e300], r"values from 0 to 1e\+300"),
        ([0, 0.5], "my label holds fractions such as 0.5: .* not a probability map"),
        ([0, 254.5], "fractions such as 254.5"),
        ([0, np.nan], "'my label' holds 2 NaN/Inf"),
    ],
)
def test_label_maps_that_are_none_are_refused(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whole_labels(np.array([values, values]), "my label")


def test_a_hole_is_where_a_label_map_is_not_0() -> None:
    np.testing.assert_array_equal(hole_mask(np.array([0, 7]), "hole"), [False, True])
    with pytest.raises(ValueError, match="the hole is empty: mark the voxels"):
        hole_mask(np.zeros((2, 2)), "the hole")


@pytest.mark.usefixtures("any_slabs")
def test_labels_in_leaves_the_background_out() -> None:
    assert labels_in(np.array([[[0, 3], [255, 3]]], np.uint8)) == {3, 255}
    assert labels_in(np.zeros((2, 2, 2), np.uint8)) == set()


def test_marked_slices() -> None:
    array = marked((4, 5, 6), (1, slice(2, 4), 5)).array
    assert [marked_slices(array, axis) for axis in range(3)] == [(1,), (2, 3), (5,)]


# --- checking a reference ---


def test_a_checked_reference_has_a_uint8_label_on_the_image_grid() -> None:
    image = noise()
    label = volume(np.zeros((4, 5, 6)))
    label.array[1, 2, 3] = 2
    checked = Reference(image, label, "atlas", slices=(3,)).checked(SEGMENTATION)
    assert (checked.image, checked.name, checked.slices) == (image, "atlas", (3,))
    assert checked.label.array.dtype == np.uint8
    assert checked.label.array[1, 2, 3] == 2


def test_a_label_on_another_grid_is_resampled_where_they_overlap() -> None:
    image = noise((4, 4, 4))
    label = marked((8, 4, 4), (slice(4, 6), 1, 2), label=7)
    label = volume(label.array, at((-3, 0, 0)))  # label voxels 4 and 5 lie at 1 and 2 mm
    checked = Reference(image, label).checked(SEGMENTATION)
    assert checked.label.geometry.is_close(image.geometry)
    assert [index.tolist() for index in checked.label.array.nonzero()] == [[1, 2], [1, 1], [2, 2]]
    assert checked.label.array[1, 1, 2] == 7


def test_a_label_elsewhere_is_refused() -> None:
    label = volume(np.ones((4, 5, 6)), at((100, 0, 0)))
    with pytest.raises(GeometryError, match=r"ref label \(shape \(4, 5, 6\)\) and its image .* do not overlap"):
        Reference(noise(), label, "ref").checked(SEGMENTATION)


def test_a_label_that_is_empty_where_the_image_is_is_refused() -> None:
    label = marked((8, 5, 6), (7, 0, 0))
    with pytest.raises(ValueError, match="ref label is empty where its image is"):
        Reference(noise(), label, "ref").checked(SEGMENTATION)


def test_only_the_labels_that_the_task_names_are_kept() -> None:
    label = volume(np.arange(120, dtype=np.uint8).reshape(4, 5, 6) % 4)
    reference = Reference(noise(), label, "ref")
    for named in ({1: "liver", 3: "spleen"}, {0: "background", 1: "liver", 3: "spleen", 9: "not here"}):
        checked = reference.checked(Task.segmentation(named))
        np.testing.assert_array_equal(checked.label.array, np.where(label.array == 2, 0, label.array))
    assert np.shares_memory(reference.checked(SEGMENTATION).label.array, label.array)
    with pytest.raises(ValueError, match=r"none of the labels \[8, 9\] of the task, only \[1, 2, 3\]"):
        reference.checked(Task.segmentation({8: "a", 9: "b"}))


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (noise(), volume(np.zeros((4, 5, 6))), "ref label is empty: label at least one slice"),
        (noise(), volume(np.full((4, 5, 6), np.nan)), "'ref label' holds 120 NaN"),
        (volume(np.full((4, 5, 6), np.inf)), volume(np.ones((4, 5, 6))), "'ref image' holds 120 NaN/Inf"),
        (volume(np.full((4, 5, 6), 3.0)), volume(np.ones((4, 5, 6))), "ref image is constant .3.0 everywhere"),
    ],
)
def test_unusable_references_are_refused(image: Volume, label: Volume, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reference(image, label, "ref").checked(SEGMENTATION)


def test_target_images_are_resampled_linearly_and_filled_with_their_minimum() -> None:
    image = noise((6, 1, 1))
    target = volume(np.array([-1000.0, 0.0, 500.0]).reshape(3, 1, 1), at((0.25, 0, 0)))
    checked = Reference(image, target).checked(Task.synthesis())
    # target voxels lie at 0.25, 1.25, 2.25 mm
    np.testing.assert_allclose(checked.label.array.ravel(), [-1000, -250, 375, -1000, -1000, -1000])
    same = volume(np.zeros((6, 1, 1), np.int16))
    assert Reference(image, same).checked(Task.synthesis()).label is same
    broken = same.with_array(np.full((6, 1, 1), np.nan))
    with pytest.raises(ValueError, match="'ref label' holds 6 NaN"):
        Reference(image, broken, "ref").checked(Task.synthesis())


def test_holes_belong_to_inpainting_and_to_the_image() -> None:
    image, hole = noise(), marked((4, 5, 6), (1, 2, 3))
    assert Reference(image, image, hole=hole).checked(Task.inpainting()).hole is not None
    with pytest.raises(ValueError, match="ref has a hole, which belongs to inpainting, not to denoising"):
        Reference(image, image, "ref", hole=hole).checked(Task.denoising())
    with pytest.raises(ValueError, match="ref hole is empty: mark"):
        Reference(image, image, "ref", hole=hole.with_array(hole.array * 0)).checked(Task.inpainting())
    with pytest.raises(ValueError, match="ref hole is empty where its image is"):
        Reference(image, image, "ref", hole=marked((8, 5, 6), (7, 0, 0))).checked(Task.inpainting())
    with pytest.raises(GeometryError, match=r"ref hole .* do not overlap"):
        Reference(image, image, "ref", hole=volume(hole.array, at((50, 0, 0)))).checked(Task.inpainting())


@pytest.mark.usefixtures("any_slabs")
def test_a_reference_is_part_of_the_query_by_its_voxels() -> None:
    query = noise()
    label = volume(np.ones((4, 5, 6)))
    assert Reference(query, label).is_part_of(query)
    assert Reference(volume(query.array.copy()), label).is_part_of(query)
    assert Reference(volume(query.array), label).is_part_of(query)
    assert not Reference(volume(query.array, at((1, 0, 0))), label).is_part_of(query)
    other = query.array.copy()
    other[3, 4, 5] += 1e-9
    assert not Reference(volume(other), label).is_part_of(query)


# --- the axis ---


def axis_for(label: Volume, task: Task = SEGMENTATION, slices: tuple[int, ...] | None = None, plane: str | int = "auto",
             query: Volume | None = None) -> int:
    image = noise(label.geometry.shape, label.geometry.affine)
    return choose_axis([Reference(image, label, slices=slices)], (query or image).geometry, task, plane)


def test_one_labelled_slice_decides_the_axis() -> None:
    everywhere = slice(None)
    for axis in range(3):
        where = tuple(2 if k == axis else everywhere for k in range(3))
        assert axis_for(marked((6, 6, 6), where)) == axis


def test_the_axis_is_the_querys_own_axis_of_that_plane() -> None:
    turned = noise((6, 6, 6), np.eye(4)[[2, 0, 1, 3]])  # i runs to Anterior, j to Superior, k to Right
    assert turned.geometry.axis_codes == ("A", "S", "R")
    assert axis_for(marked((6, 6, 6), (2,)), query=turned) == 2


def test_given_slices_decide_the_axis_where_only_they_are_labelled() -> None:
    label = marked((6, 6, 6), (slice(1, 4), slice(None), slice(None)))
    assert axis_for(label, slices=(1, 2, 3)) == 0
    assert axis_for(label, slices=(3, 1, 2, 1)) == 0
    assert axis_for(label, slices=(1, 2)) == 2  # no axis fits: axial
    assert axis_for(marked((6, 6, 6), (slice(1, 4),) * 3), slices=(1, 2, 3)) == 2  # all fit: axial


def test_a_chosen_plane_wins() -> None:
    label = marked((6, 6, 6), (2,))
    assert [axis_for(label, plane=plane) for plane in ("sagittal", "coronal", "axial", 1)] == [0, 1, 2, 1]
    with pytest.raises(GeometryError, match="unknown plane 'frontal'"):
        axis_for(label, plane="frontal")


def test_image_tasks_go_by_spacing_and_pictures_by_their_one_slice() -> None:
    thick = volume(RNG.random((6, 6, 6)), at((0, 0, 0), (1, 5, 1)))
    assert axis_for(thick, Task.denoising()) == 1
    picture = noise((1, 6, 6))
    assert axis_for(marked((6, 6, 6), (slice(None), slice(None), 2)), query=picture) == 0
    assert axis_for(marked((1, 6, 6), (0,)), query=noise((6, 6, 6))) == 0
    assert axis_for(marked((1, 6, 6), (0,)), slices=(0,), query=noise((6, 6, 6))) == 0


# --- one scale ---


def test_the_common_spacing_is_that_of_the_largest() -> None:
    small, large = noise((8, 4, 2), at((0, 0, 0), (2, 2, 2))), noise((4, 10, 3), at((0, 0, 0), (2, 3, 4)))
    # in plane: 16 x 8 mm, and 8 x 30 mm
    assert common_spacing([small.geometry, large.geometry], [2, 2], 10) == pytest.approx(3)
    assert common_spacing([small.geometry], [0], 10) == pytest.approx(0.8)


def test_pictures_have_no_scale_but_one_slice_of_a_scan_has() -> None:
    scan = noise((8, 4, 2)).geometry
    assert common_spacing([scan, noise((8, 8, 1)).geometry], [2, 2], 8) is None
    assert common_spacing([scan, noise((8, 8, 1), at((0, 0, 0), (2, 2, 5))).geometry], [2, 2], 8) == pytest.approx(2)


def test_a_reference_is_cut_as_the_query_is() -> None:
    query = SlicePlan.for_volume(noise((6, 6, 6)).geometry, "coronal", size=8, spacing_mm=0.5)
    turned = noise((6, 7, 8), np.eye(4)[[2, 0, 1, 3]]).geometry  # A, S, R
    plan = plan_for(turned, query, 0.5)
    assert (plan.axis, plan.size, plan.spacing_mm) == (0, 8, 0.5)
    assert plan_for(turned, query, None).spacing_mm == 1  # 8 mm on 8 pixels
    assert plan_for(noise((6, 6, 1)).geometry, query, 0.5).axis == 2  # a picture has one way to be cut,
    line = SlicePlan.for_volume(noise((1, 6, 1)).geometry, 1, size=8)
    assert plan_for(noise((1, 6, 1)).geometry, line, None).axis == 1  # unless the query is the same and cut otherwise


# --- prompts ---


def test_prompts_are_the_labelled_slices_with_their_positions() -> None:
    affine = np.diag([1.0, 1.0, -1.0, 1.0])  # k runs to Inferior
    image = noise((4, 4, 5), affine)
    label = Volume(marked((4, 4, 5), (1, 2, [1, 3]), label=4).array, image.geometry)
    plan = SlicePlan.for_volume(image.geometry, 2, size=4)
    source = PromptSource(Reference(image, label, "atlas"), plan, SEGMENTATION, UNIT, None)
    assert (source.numbers, source.positions, source.labels) == ((1, 3), (0.75, 0.25), {4})
    prompt = source.cut(3)
    assert (prompt.subject, prompt.position_mm, prompt.hole) == ("atlas", 0.25, None)
    np.testing.assert_array_equal(prompt.image, plan.extract(image.array, 3)[0])
    np.testing.assert_array_equal(prompt.label, plan.extract_label(label.array, 3)[0])
    together = cut_prompts(Reference(image, label, "atlas"), plan, SEGMENTATION, UNIT, None)
    assert [p.position_mm for p in together] == [0.75, 0.25]
    np.testing.assert_array_equal(together[1].label, prompt.label)


def test_chosen_slices_serve_even_without_a_label_and_must_exist() -> None:
    image, label = noise((4, 4, 5)), marked((4, 4, 5), (1, 2, 3), label=4)
    plan = SlicePlan.for_volume(image.geometry, 2, size=4)
    source = PromptSource(Reference(image, label, slices=(2, 0, 2)), plan, SEGMENTATION, UNIT, None)
    assert (source.numbers, source.labels) == ((0, 2), set())
    for wrong in (5, -1):
        with pytest.raises(IndexError, match=f"atlas has no slice {wrong}: along this axis they are 0 to 4"):
            PromptSource(Reference(image, label, "atlas", (0, wrong)), plan, SEGMENTATION, UNIT, None)


def test_image_to_image_prompts_are_scaled_pairs() -> None:
    image, target = volume(np.arange(16.0).reshape(4, 4, 1)), volume(np.arange(16.0).reshape(4, 4, 1) * 100)
    plan = SlicePlan.for_volume(image.geometry, 2, size=4)
    scalings = IntensityScaling.from_window(0, 15), IntensityScaling.from_window(0, 1500)
    (prompt,) = cut_prompts(Reference(image, target), plan, Task.synthesis(), *scalings)
    np.testing.assert_allclose(prompt.image, prompt.label, atol=1e-6)
    assert not prompt.is_segmented
    source = PromptSource(Reference(noise((4, 4, 5)), noise((4, 4, 5))), plan_5(), Task.denoising(), UNIT, UNIT)
    assert (source.numbers, source.labels) == (tuple(range(5)), set())


def plan_5() -> SlicePlan:
    return SlicePlan.for_volume(noise((4, 4, 5)).geometry, 2, size=4)


def test_inpainting_prompts_have_a_hole() -> None:
    image = volume(np.ones((4, 4, 5)) * np.linspace(0.5, 1, 5))
    hole = marked((4, 4, 5), (slice(0, 2), slice(None), 3))
    source = PromptSource(Reference(image, image, hole=hole), plan_5(), Task.inpainting(), UNIT, UNIT)
    assert source.numbers == (3,)
    prompt = source.cut(3)
    assert prompt.hole is not None
    assert prompt.hole.sum() == 8
    assert (prompt.image[prompt.hole] == 0).all()
    np.testing.assert_allclose(prompt.image[~prompt.hole], 0.875)
    np.testing.assert_allclose(prompt.label, 0.875)


@pytest.mark.parametrize("size", [4, 6, 16])
@pytest.mark.parametrize("low", [0.0, -2.0])
def test_what_the_hole_of_a_reference_hides_does_not_shine_through_at_its_edge(size: int, low: float) -> None:
    image, hole = noise((10, 10, 3)), marked((10, 10, 3), (slice(2, 5), slice(3, 8), 1))
    plan = SlicePlan.for_volume(image.geometry, 2, size=size)
    scaling = IntensityScaling.from_window(low, 1)
    shown = []
    for hidden in (low, 1e6):
        array = np.where(hole.array > 0, hidden, image.array)
        reference = Reference(volume(array), image, hole=hole)
        shown.append(PromptSource(reference, plan, Task.inpainting(), scaling, scaling).cut(1).image)
    np.testing.assert_array_equal(shown[1], shown[0])
    assert shown[0].max() > 0.5  # the rest of the slice is there


def test_without_one_of_its_own_a_hole_is_punched() -> None:
    image = noise((32, 32, 2))
    plan = SlicePlan.for_volume(image.geometry, 2, size=32)
    prompt = PromptSource(Reference(image, image), plan, Task.inpainting(), UNIT, UNIT).cut(1)
    assert prompt.hole is not None
    # discs with radii of 9 % and 6 % of the side: 26 and 12 pixels
    assert 30 < prompt.hole.sum() < 46
    assert (prompt.image[prompt.hole] == 0).all()
    assert (prompt.label[prompt.hole] > 0).all()


def test_slices_are_black_around_the_image() -> None:
    image = volume(np.full((2, 4, 1), 50.0))
    plan = SlicePlan.for_volume(image.geometry, 2, size=4)
    shown = scaled_slices(plan, image.array, [0], IntensityScaling.from_window(-100, 100))
    np.testing.assert_allclose(shown[0, 1], [0, 0.75, 0.75, 0])
