"""Registration: known transforms of a real brain are found again, on any grid, and failures are said, not thrown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from mvg_core.registration import Alignment, DemonsConfig, RegistrationConfig, align, find, refine, search, warp_volume
from mvg_core.registration.grids import block_means
from mvg_core.resample import resample_to
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import from_sitk, read_volume, to_sitk

FAST = RegistrationConfig(affine_mm=6.0, demons_mm=4.0, demons=DemonsConfig((20, 20, 10)), turns_degrees=(0,))
LEFT, RIGHT, MIDDLE = 1, 2, 3


@dataclass(frozen=True)
class Case:
    image: Volume
    label: Volume


def turned(degrees: float, axis: int) -> npt.NDArray[np.float64]:
    """(4, 4) turn about a world axis."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    first, second = (other for other in range(3) if other != axis)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


def shifted(*mm: float) -> npt.NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = mm
    return matrix


@pytest.fixture(scope="session")
def brain() -> Case:
    """The MNI template at 4 mm, with white matter split into left, right and a ball in the middle."""
    package = find_spec("nilearn")
    if package is None or not package.submodule_search_locations:
        pytest.skip("nilearn carries the template")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    image, white = (block_means(read_volume(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"),
                                (4, 4, 4)) for name in ("t1", "wm"))
    grid = image.geometry
    mm = grid.index_to_world(np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1))
    label = np.where(white.array > 0.5 * white.array.max(), np.where(mm[..., 0] < 0, LEFT, RIGHT), 0)
    label[np.linalg.norm(mm - (0, -20, 10), axis=-1) < 14] = MIDDLE
    return Case(image, Volume(label.astype(np.uint8), grid))


def placed(case: Case, matrix: npt.NDArray[np.float64]) -> Case:
    """The same person elsewhere: every point is moved by the (4, 4) matrix, voxels stay as they are."""
    moved = Geometry(case.image.geometry.shape, matrix @ case.image.geometry.affine)
    return Case(Volume(case.image.array, moved), Volume(case.label.array, moved))


def on_grid(case: Case, grid: Geometry) -> Case:
    return Case(resample_to(case.image, grid, is_label=False), resample_to(case.label, grid, is_label=True))


def bent(case: Case, mm: float) -> Case:
    """The case with every point displaced by up to `mm` along x and y, in waves 100 mm long."""
    grid = to_sitk(case.image)
    world = case.image.geometry.index_to_world(
        np.stack(np.meshgrid(*(np.arange(n) for n in case.image.geometry.shape), indexing="ij"), axis=-1))
    waves = np.zeros((*case.image.geometry.shape, 3))
    waves[..., 0] = mm * np.sin(world[..., 1] / 100 * 2 * np.pi)
    waves[..., 1] = mm * np.cos(world[..., 2] / 100 * 2 * np.pi)
    field = sitk.GetImageFromArray(np.ascontiguousarray(waves.transpose(2, 1, 0, 3)), isVector=True)
    field.CopyInformation(grid)
    transform = sitk.DisplacementFieldTransform(field)
    warped = [from_sitk(sitk.Resample(to_sitk(volume), grid, transform, how, 0.0))
              for volume, how in ((case.image, sitk.sitkLinear), (case.label, sitk.sitkNearestNeighbor))]
    return Case(*warped)


def dice(first: Volume, second: Volume) -> float:
    """Mean over the labels of the second."""
    labels = np.unique(second.array)[1:]
    return float(np.mean([2 * ((first.array == label) & (second.array == label)).sum()
                          / ((first.array == label).sum() + (second.array == label).sum()) for label in labels]))


def errors_mm(found: Alignment, truth: npt.NDArray[np.float64], label: Volume) -> npt.NDArray[np.float64]:
    """How far labelled points of the query land from where they belong; `truth` moves them there."""
    points = label.geometry.index_to_world(np.argwhere(label.array > 0))
    return np.linalg.norm(found.points(points) - (points @ truth[:3, :3].T + truth[:3, 3]), axis=1)


@pytest.fixture(scope="session")
def other(brain: Case) -> tuple[Case, npt.NDArray[np.float64]]:
    """The brain turned, a little larger, far away, on an oblique grid of thick slices; and how points were moved."""
    truth = shifted(300, -40, 25) @ turned(7, 2) @ turned(-5, 0) @ np.diag([1.06, 1.06, 1.06, 1])
    start = placed(brain, truth)
    oblique = (shifted(300, -60, 30) @ turned(15, 1) @ turned(-10, 2) @ np.diag([4.0, 4.0, 6.0, 1])
               @ shifted(-29, -34, -18))
    return on_grid(start, Geometry((58, 66, 36), oblique)), truth


@pytest.fixture(scope="session")
def found(brain: Case, other: tuple[Case, npt.NDArray[np.float64]]) -> Alignment:
    reference, _ = other
    return align(brain.image, reference.image, FAST, label=reference.label, affine_only=True)


def test_known_transform_is_found_on_an_oblique_grid_far_away(brain: Case, other: tuple, found: Alignment) -> None:
    _, truth = other
    assert found.stage in ("similarity", "affine")
    assert found.remarks == ()
    assert errors_mm(found, truth, brain.label).mean() < 1.5
    assert found.quality > 0.95
    assert found.seconds > 0


def test_label_lands_where_it_belongs(brain: Case, other: tuple, found: Alignment) -> None:
    reference, _ = other
    landed = found.label(reference.label)
    assert landed.geometry.is_close(brain.image.geometry)
    assert landed.array.dtype == np.uint8
    assert dice(landed, brain.label) > 0.88


def test_image_lands_where_it_belongs(brain: Case, other: tuple, found: Alignment) -> None:
    landed = found.image(other[0].image)
    assert np.corrcoef(landed.array.ravel(), brain.image.array.ravel())[0, 1] > 0.97
    assert landed.array.dtype == np.float32


def test_probabilities_sum_to_one_and_agree_with_the_label(other: tuple, found: Alignment) -> None:
    reference, _ = other
    probabilities = found.probabilities(reference.label, (LEFT, RIGHT, MIDDLE))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    assert (probabilities >= -1e-6).all()
    hard = found.label(reference.label)
    assert dice(hard.with_array(probabilities.argmax(axis=-1)), hard) > 0.9


def test_a_label_not_asked_for_is_background(other: tuple, found: Alignment) -> None:
    reference, _ = other
    probabilities = found.probabilities(reference.label, (MIDDLE,))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    hard = found.label(reference.label).array
    assert (probabilities[hard == LEFT][:, 0] > 0.4).all()


def test_box_holds_every_voxel_of_the_label(other: tuple, found: Alignment) -> None:
    reference, _ = other
    only = reference.label.with_array(np.where(reference.label.array == MIDDLE, MIDDLE, 0).astype(np.uint8))
    box = found.box(only)
    assert box is not None
    everywhere = found.image(only.with_array(only.array.astype(np.float32)), fill=0).array
    inside = np.zeros(everywhere.shape, bool)
    inside[box] = True
    assert (everywhere[~inside] == 0).all()
    assert inside.mean() < 0.05
    larger = found.box(only, margin_mm=8.0)
    assert larger is not None
    assert all(a.start == b.start - 2 and a.stop == b.stop + 2 for a, b in zip(larger, box, strict=True))


def test_part_of_the_query_gets_the_same_as_the_whole(brain: Case, other: tuple, found: Alignment) -> None:
    reference, _ = other
    part = (slice(10, 40), slice(5, 50), slice(20, 21))
    affine = brain.image.geometry.affine.copy()
    affine[:3, 3] = brain.image.geometry.index_to_world((10, 5, 20))
    onto = Geometry((30, 45, 1), affine)
    np.testing.assert_array_equal(found.label(reference.label, onto).array, found.label(reference.label).array[part])
    np.testing.assert_allclose(found.probabilities(reference.label, (LEFT,), onto),
                               found.probabilities(reference.label, (LEFT,))[part], atol=1e-5)


def test_same_input_gives_the_same_alignment(brain: Case, other: tuple, found: Alignment) -> None:
    reference, _ = other
    again = align(brain.image, reference.image, FAST, label=reference.label, affine_only=True)
    np.testing.assert_array_equal(again.points(np.eye(3)), found.points(np.eye(3)))
    assert again.quality == found.quality


def test_the_query_may_show_only_a_part(brain: Case, other: tuple) -> None:
    """A box in the upper half of the head, and a reference that shows all of it."""
    reference, truth = other
    affine = brain.image.geometry.affine.copy()
    affine[:3, 3] = brain.image.geometry.index_to_world((4, 10, 22))
    part = on_grid(brain, Geometry((40, 40, 22), affine))
    whole = align(part.image, reference.image, FAST, affine_only=True)
    assert errors_mm(whole, truth, part.label).mean() < 4


@pytest.fixture(scope="session")
def wave(brain: Case) -> tuple[Case, Alignment, Alignment]:
    """A bent brain as the reference, aligned without and with demons."""
    reference = bent(brain, 7.0)
    affine = align(brain.image, reference.image, FAST, affine_only=True)
    return reference, affine, refine(affine, brain.image, reference.image, FAST)


def test_demons_follow_a_smooth_warp(brain: Case, wave: tuple[Case, Alignment, Alignment]) -> None:
    reference, affine, demons = wave
    assert demons.stage == "demons"
    assert demons.quality > affine.quality
    assert dice(demons.label(reference.label), brain.label) > dice(affine.label(reference.label), brain.label) + 0.05


def test_box_holds_every_voxel_after_demons(wave: tuple[Case, Alignment, Alignment]) -> None:
    reference, _, demons = wave
    only = reference.label.with_array(np.where(reference.label.array == MIDDLE, 1, 0).astype(np.uint8))
    whole = demons.image(only.with_array(only.array.astype(np.float32)), fill=0).array
    np.testing.assert_allclose(demons.probabilities(only, (1,))[..., 1], whole, atol=1e-5)


def test_one_call_does_it_all(brain: Case, wave: tuple[Case, Alignment, Alignment]) -> None:
    reference, affine, _ = wave
    landed = warp_volume(brain.image, reference.image, reference.label, FAST)
    assert dice(landed, brain.label) > dice(affine.label(reference.label), brain.label) + 0.05


def test_demons_can_be_left_out(brain: Case, wave: tuple[Case, Alignment, Alignment]) -> None:
    reference, affine, _ = wave
    assert refine(affine, brain.image, reference.image, replace(FAST, demons_mm=None)) is affine


def test_other_brain_matches_better_than_noise(brain: Case, found: Alignment) -> None:
    noise = brain.image.with_array(np.random.default_rng(0).normal(size=brain.image.array.shape).astype(np.float32))
    coarse = replace(FAST, affine_mm=12.0)
    assert align(brain.image, noise, coarse, affine_only=True).quality < 0.3 < found.quality


# --- pictures ---


def picture(case: Case, number: int, *, double: bool = False) -> Case:
    """A slice as a picture without a scale, with 2 x 2 pixels for each if `double`."""
    planes = []
    for volume in (case.image, case.label):
        plane = np.ascontiguousarray(volume.array[:, ::-1, number])
        planes.append(np.kron(plane, np.ones((2, 2), plane.dtype)) if double else plane)
    geometry = Geometry((*planes[0].shape, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    return Case(*(Volume(plane[:, :, None], geometry) for plane in planes))


def test_pictures_of_other_resolution_are_aligned(brain: Case) -> None:
    query, reference = picture(brain, 24), picture(brain, 24, double=True)
    alignment = align(query.image, reference.image, FAST, affine_only=True)
    assert dice(alignment.label(reference.label), query.label) > 0.97
    np.testing.assert_allclose(alignment.points(query.image.geometry.index_to_world((24, 20, 0)))[:2],
                               reference.image.geometry.index_to_world((48.5, 40.5, 0))[:2], atol=1)


def test_pictures_are_bent(brain: Case) -> None:
    query, reference = picture(bent(brain, 7.0), 24), picture(brain, 24)
    config = replace(FAST, affine_mm=3.0, demons_mm=2.0)
    affine = align(query.image, reference.image, config, affine_only=True)
    demons = refine(affine, query.image, reference.image, config)
    assert demons.stage == "demons"
    assert dice(demons.label(reference.label), query.label) > dice(affine.label(reference.label), query.label) + 0.03


def test_mirrored_storage_of_a_picture_makes_no_difference(brain: Case) -> None:
    """The same slice shown further to the side, stored from the other side: what is displayed is what counts."""
    query, reference = picture(brain, 24), picture(brain, 24)
    reference = Case(*(each.with_array(np.roll(each.array, 4, axis=0)) for each in (reference.image, reference.label)))
    stored = Geometry(reference.image.geometry.shape, reference.image.geometry.affine @ shifted(48, 0, 0)
                      @ np.diag([-1.0, 1, 1, 1]))
    mirrored = Case(Volume(reference.image.array[::-1], stored), Volume(reference.label.array[::-1], stored))
    alignment = align(query.image, mirrored.image, FAST, affine_only=True)
    assert dice(alignment.label(mirrored.label), query.label) > 0.97


# --- what cannot be registered ---


def test_constant_image_puts_middles_together_and_says_so(brain: Case) -> None:
    flat = Volume.from_array(np.full((20, 20, 20), 7.0), (2, 2, 2))
    alignment = align(brain.image, flat, FAST)
    assert alignment.stage == "centre"
    assert "reference image is constant" in alignment.remarks[0]
    middles = [volume.geometry.index_to_world((np.array(volume.geometry.shape) - 1) / 2)
               for volume in (brain.image, flat)]
    np.testing.assert_allclose(alignment.points(middles[0]), middles[1], atol=1e-6)


def test_slice_and_volume_put_middles_together_and_say_so(brain: Case) -> None:
    alignment = align(brain.image, picture(brain, 24).image, FAST)
    assert alignment.stage == "centre"
    assert "single slice" in alignment.remarks[0]
    assert alignment.label(picture(brain, 24).label).array.shape == brain.image.array.shape


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 40, 40), (40, 2, 9)])
def test_small_images_never_end_in_an_exception(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(1)
    query, reference = (Volume.from_array(random.normal(size=shape), (1, 1, 3)) for _ in range(2))
    alignment = align(query, reference, FAST)
    assert alignment.stage != "affine"
    assert alignment.remarks
    assert alignment.label(reference.with_array(np.ones(shape, np.uint8))).array.shape == shape


def test_nan_is_refused_and_named(brain: Case) -> None:
    hollow = brain.image.with_array(np.full(brain.image.array.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"reference image.*NaN"):
        align(brain.image, hollow, FAST)


def test_empty_label_lands_nowhere(brain: Case, found: Alignment) -> None:
    empty = brain.label.with_array(np.zeros_like(brain.label.array))
    assert found.box(empty) is None
    assert not found.label(empty).array.any()
    assert (found.probabilities(empty, (1,))[..., 0] == 1).all()


@pytest.mark.parametrize(("changes", "message"), [
    ({"metric": "sum"}, "metric 'sum' is unknown"), ({"affine_mm": 0}, "affine_mm must be above 0"),
    ({"demons_mm": -1}, "demons_mm must be above 0"), ({"threads": 0}, "threads must be above 0")])
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegistrationConfig(**changes)


def test_stack_of_thick_slices_is_found_turned(brain: Case) -> None:
    """A stack of seven thick slices, turned by 80 degrees; the turns that are tried come near enough."""
    grid = Geometry((49, 58, 7), brain.image.geometry.affine @ shifted(0, 0, 14) @ np.diag([1.0, 1.0, 3.0, 1.0]))
    query = on_grid(brain, grid)
    truth = turned(80, 2)
    reference = placed(query, truth)
    found, straight = (align(query.image, reference.image, replace(FAST, turns_degrees=turns), label=reference.label,
                             affine_only=True) for turns in ((0, 60, -60), (0,)))
    assert errors_mm(found, truth, query.label).mean() < 3
    assert errors_mm(straight, truth, query.label).mean() > 6


# --- steps that fail are left out and said; the faults are planted ---


def test_demons_that_make_it_worse_are_left_out(brain: Case, wave: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(fixed: sitk.Image, moving: sitk.Image, config: DemonsConfig) -> sitk.Image:
        noise = np.random.default_rng(0).normal(0, 20, (*fixed.GetSize()[::-1], 3))
        field = sitk.GetImageFromArray(noise, isVector=True)
        field.CopyInformation(fixed)
        return field

    monkeypatch.setattr(find, "demons", torn)
    reference, affine, _ = wave
    kept = refine(affine, brain.image, reference.image, FAST)
    assert kept.stage == affine.stage
    assert "demons were left out: the match fell" in kept.remarks[-1]
    np.testing.assert_array_equal(kept.label(reference.label).array, affine.label(reference.label).array)


def test_demons_that_fail_are_left_out(brain: Case, wave: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fixed: sitk.Image, moving: sitk.Image, config: DemonsConfig) -> sitk.Image:
        raise RuntimeError("itk::ERROR: Filter(0x1):\n something was wrong")

    monkeypatch.setattr(find, "demons", failing)
    reference, affine, _ = wave
    kept = refine(affine, brain.image, reference.image, FAST)
    assert kept.stage == affine.stage
    assert kept.remarks[-1] == "demons failed (something was wrong)"


@pytest.mark.parametrize("scale", [3.0, 0.1])
def test_impossible_affine_transforms_are_left_out(brain: Case, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    def flattened(*_: object) -> sitk.Transform:
        transform = sitk.AffineTransform(3)
        transform.Scale((1.0, 1.0, scale))
        return transform

    monkeypatch.setattr(search, "_optimised", flattened)
    kept = align(brain.image, brain.image, FAST, affine_only=True)
    assert kept.stage in ("centre", "shift")
    assert any("left out: it scales by" in remark for remark in kept.remarks)
    assert kept.quality > 0.99
