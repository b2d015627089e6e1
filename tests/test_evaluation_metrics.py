"""Metrics, statistics and calibration against values worked by hand; empty cases; thick slices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from mvg_core.evaluation.calibration import Reliability
from mvg_core.evaluation.metrics import (
    HIGHEST_PSNR_DB,
    compare_images,
    compare_label,
    filled_slices,
    has_real_spacing,
    overlap,
    surface_distances,
    voxel_ml,
)
from mvg_core.evaluation.queries import (
    acquisition_axis,
    only_slice,
    random_holes,
    slice_to_label,
    thinned,
    with_noise,
)
from mvg_core.evaluation.scoring import ScoringRules, check_one_grid, score_image, score_labels
from mvg_core.evaluation.statistics import mean_over_subjects, paired_difference, rank_correlation
from mvg_core.volume import Geometry, GeometryError, Volume

NOTHING = np.zeros((6, 6, 6), bool)


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> np.ndarray:
    """True inside the box [first, last) of each axis."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


# --- overlap ---


def test_dice_and_iou_of_overlapping_boxes() -> None:
    # 8 and 12 voxels, 4 of them shared: 2 * 4 / 20, 4 / 16.
    truth, prediction = box((6, 6, 6), (0, 2), (0, 2), (0, 2)), box((6, 6, 6), (1, 4), (0, 2), (0, 2))
    assert overlap(prediction, truth) == (pytest.approx(0.4), pytest.approx(0.25), "")


def test_empty_masks_have_defined_scores() -> None:
    something = box((6, 6, 6), (1, 3), (1, 3), (1, 3))
    assert overlap(something, NOTHING) == (0.0, 0.0, "truth")
    assert overlap(NOTHING, something) == (0.0, 0.0, "prediction")
    dice, iou, empty = overlap(NOTHING, NOTHING)
    assert (math.isnan(dice), math.isnan(iou), empty) == (True, True, "both")


def test_distances_of_empty_masks_are_the_diagonal_of_the_grid() -> None:
    # 5 steps of 1, 1 and 2 mm between the farthest voxel centres: sqrt(25 + 25 + 100).
    something, spacing = box((6, 6, 6), (1, 3), (1, 3), (1, 3)), (1.0, 1.0, 2.0)
    assert surface_distances(something, NOTHING, spacing) == (pytest.approx(math.sqrt(150)), 0.0)
    assert surface_distances(NOTHING, something, spacing) == (pytest.approx(math.sqrt(150)), 0.0)
    assert all(math.isnan(value) for value in surface_distances(NOTHING, NOTHING, spacing))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        overlap(NOTHING, NOTHING[:5])
    with pytest.raises(ValueError, match="one grid"):
        surface_distances(NOTHING, NOTHING[:5], (1.0, 1.0, 1.0))


# --- surfaces ---


@pytest.mark.parametrize(("axis", "distance_mm"), [(0, 1.0), (1, 2.0), (2, 10.0)])
def test_hd95_of_shifted_plates_is_the_spacing_of_the_axis(axis: int, distance_mm: float) -> None:
    #  spacing 1, 2 and 10 mm:   truth  |#.|   prediction  |.#|   one step along one axis
    truth, prediction = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    np.moveaxis(truth, axis, 0)[4] = True
    np.moveaxis(prediction, axis, 0)[5] = True
    hd95_mm, nsd = surface_distances(prediction, truth, (1.0, 2.0, 10.0), tolerance_mm=distance_mm)
    assert hd95_mm == pytest.approx(distance_mm)
    assert nsd == pytest.approx(1.0)
    # The face between the plates belongs to both, the outer face of each is one spacing away from it: half is right.
    _, nsd = surface_distances(prediction, truth, (1.0, 2.0, 10.0), tolerance_mm=0.9 * distance_mm)
    assert nsd == pytest.approx(0.5)


def test_hd95_takes_the_95th_percentile_of_the_worse_direction() -> None:
    # Truth: a line of 10 voxels, 3 mm thick slices. The prediction has one voxel more, 4 slices away: its 11 distances
    # are ten times 0 and once 12 mm. The 95th percentile lies half way between the last two: 6 mm.
    truth = box((3, 10, 8), (1, 2), (0, 10), (1, 2))
    prediction = truth.copy()
    prediction[1, 0, 5] = True
    assert surface_distances(prediction, truth, (1.0, 1.0, 3.0))[0] == pytest.approx(6.0)
    # The same the other way round: the larger of both directions counts.
    assert surface_distances(truth, prediction, (1.0, 1.0, 3.0))[0] == pytest.approx(6.0)


def test_nsd_weighs_surface_by_its_length() -> None:
    # Squares of 4 x 4 pixels of 1 x 2 mm, one column (2 mm) apart; tolerance 1 mm. The outline runs half a pixel
    # outside the outer pixels: top and bottom have 3 pieces of 2 mm each, the sides 3 of 1 mm, and each of the 4
    # corners is cut off by sqrt(0.5^2 + 1^2) mm. Right are: top and bottom (12 mm), the two corners that lie on the
    # other square's top and bottom, and of the inner side the 2 of 3 pieces that are 1 mm from top or bottom (2 mm).
    truth = box((12, 12, 1), (4, 8), (4, 8), (0, 1))
    prediction = box((12, 12, 1), (4, 8), (5, 9), (0, 1))
    corner = math.sqrt(0.25 + 1)
    expected = (12 + 2 * corner + 2) / (12 + 6 + 4 * corner)
    assert surface_distances(prediction, truth, (1.0, 2.0, 5.0), tolerance_mm=1)[1] == pytest.approx(expected, abs=1e-4)
    assert surface_distances(prediction, truth, (1.0, 2.0, 5.0), tolerance_mm=2)[1] == pytest.approx(1.0)


def test_nsd_of_a_plate_that_is_too_thick_by_a_slice() -> None:
    # Faces of 400 x 400 mm; the lower ones agree, the upper ones are 5 mm off. Rims of 1600 mm, 10 and 15 mm high,
    # agree up to 10 mm: (2 * 160000 + 2 * 16000) / (4 * 160000 + 16000 + 24000) = 0.518.
    truth, prediction = box((42, 42, 9), (1, 41), (1, 41), (2, 4)), box((42, 42, 9), (1, 41), (1, 41), (2, 5))
    assert surface_distances(prediction, truth, (10.0, 10.0, 5.0))[1] == pytest.approx(0.518, abs=0.02)
    assert surface_distances(prediction, truth, (10.0, 10.0, 1.9))[1] == pytest.approx(1.0)


def test_a_picture_is_measured_in_two_dimensions() -> None:
    # In 3D, every pixel of a single slice would be surface, and the shifted square would score far better.
    truth, prediction = box((20, 20, 1), (2, 18), (2, 12), (0, 1)), box((20, 20, 1), (2, 18), (2, 18), (0, 1))
    assert surface_distances(prediction, truth, (1.0, 1.0, 1.0))[0] == pytest.approx(6.0)
    with pytest.raises(ValueError, match="at least two axes"):
        surface_distances(truth[:, 5:6], prediction[:, 5:6], (1.0, 1.0, 1.0))


@pytest.mark.parametrize("tolerance_mm", [-1.0, math.nan, math.inf])
def test_a_senseless_tolerance_is_refused(tolerance_mm: float) -> None:
    with pytest.raises(ValueError, match="tolerance_mm"):
        surface_distances(~NOTHING, ~NOTHING, (1.0, 1.0, 1.0), tolerance_mm)


def test_slices_that_do_not_count_are_left_out_of_the_overlap_only() -> None:
    truth, prediction = box((6, 6, 6), (1, 4), (1, 4), (1, 4)), box((6, 6, 6), (1, 4), (1, 4), (1, 2))
    counted = np.ones((6, 6, 6), bool)
    counted[:, :, 1] = False
    geometry = Geometry((6, 6, 6), np.eye(4))
    whole, without = compare_label(prediction, truth, geometry), compare_label(prediction, truth, geometry,
                                                                               counted=counted)
    assert whole.dice == pytest.approx(2 * 9 / (9 + 27))
    assert (without.dice, without.empty) == (0.0, "prediction")
    assert without.hd95_mm == whole.hd95_mm
    assert math.isnan(compare_label(prediction, truth, geometry, distances=False).hd95_mm)


def test_empty_slices_that_were_filled_are_counted() -> None:
    # Slices 0, 4 and 5 are truly empty; 4 was filled.
    truth, prediction = box((6, 6, 6), (1, 4), (1, 4), (1, 4)), box((6, 6, 6), (1, 4), (1, 4), (2, 5))
    assert filled_slices(prediction, truth, 2) == (3, 1)
    assert filled_slices(prediction, truth, 2, counted=[0, 1, 5]) == (2, 0)


def test_volume_of_a_voxel_and_spacing_that_is_none() -> None:
    assert voxel_ml(Geometry((2, 2, 2), np.diag([1.0, 2.0, 5.0, 1.0]))) == pytest.approx(0.01)
    assert not has_real_spacing(Geometry((9, 9, 1), np.eye(4)))
    assert has_real_spacing(Geometry((9, 9, 1), np.diag([0.5, 0.5, 1.0, 1.0])))
    assert has_real_spacing(Geometry((9, 9, 9), np.eye(4)))


# --- images ---


def test_psnr_and_mae_of_a_constant_error() -> None:
    truth = np.full((12, 12, 3), 0.5, np.float32)
    found = compare_images(truth + np.float32(0.1), truth, axis=2)
    assert found.psnr_db == pytest.approx(20.0, abs=1e-4)  # -10 log10(0.01)
    assert found.mae == pytest.approx(0.1, abs=1e-6)
    # Of two constant images: (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2; MONAI computes it in float32.
    assert found.ssim == pytest.approx((2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4), abs=5e-4)


def test_equal_images_have_a_finite_psnr() -> None:
    image = np.random.default_rng(0).random((12, 12, 2), dtype=np.float32)
    found = compare_images(image, image, axis=2)
    assert (found.psnr_db, found.mae) == (HIGHEST_PSNR_DB, 0.0)
    assert found.ssim == pytest.approx(1.0)


def test_ssim_agrees_with_scikit_image_slice_by_slice() -> None:
    random = np.random.default_rng(0)
    truth = random.random((20, 24, 3))
    prediction = np.clip(truth + random.normal(0, 0.1, truth.shape), 0, 1)
    expected = [structural_similarity(prediction[:, :, k], truth[:, :, k], gaussian_weights=True, sigma=1.5,
                                      data_range=1, use_sample_covariance=False) for k in range(3)]
    assert compare_images(prediction, truth, axis=2).ssim == pytest.approx(np.mean(expected), abs=1e-4)


def test_a_hole_is_scored_inside_only() -> None:
    truth = np.full((20, 20, 3), 0.5, np.float32)
    hole = box((20, 20, 3), (8, 12), (8, 12), (1, 2))
    prediction = np.where(hole, np.float32(0.4), truth)
    inside, whole = compare_images(prediction, truth, 2, hole), compare_images(prediction, truth, 2)
    assert inside.mae == pytest.approx(0.1, abs=1e-6)
    assert inside.psnr_db == pytest.approx(20.0, abs=1e-4)
    assert whole.mae == pytest.approx(0.1 * 16 / 1200, abs=1e-6)
    assert inside.ssim < whole.ssim
    with pytest.raises(ValueError, match="mask is empty"):
        compare_images(prediction, truth, 2, np.zeros_like(hole))


def test_ssim_of_a_hole_is_the_mean_of_its_map() -> None:
    # Everything off by the same: the map has one value, wherever the hole is, at the border too.
    truth = np.full((20, 20, 1), 0.5, np.float32)
    hole = box((20, 20, 1), (0, 3), (0, 3), (0, 1))
    found = compare_images(truth + np.float32(0.1), truth, 2, hole)
    assert found.ssim == pytest.approx((2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4), abs=5e-4)


def test_small_slices_have_no_ssim() -> None:
    image = np.random.default_rng(0).random((10, 30, 2), dtype=np.float32)
    assert math.isnan(compare_images(image, image, axis=2).ssim)


@pytest.mark.parametrize("bad", [math.nan, 1.5, -0.5])
def test_images_outside_zero_to_one_are_refused(bad: float) -> None:
    image = np.full((12, 12, 1), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        compare_images(np.full_like(image, bad), image, 2)


# --- scores of a case ---


def test_labels_are_scored_with_volume_confidence_and_calibration() -> None:
    true = np.zeros((4, 4, 3), np.uint8)
    true[:2, :, 1], true[2:, :, 1] = 1, 2
    predicted = true.copy()
    predicted[1, :, 1] = 2  # 4 of the 8 voxels of label 1 are given to label 2
    sure = np.where(predicted == 1, np.float32(0.75), np.float32(0.25))
    spacing = (1.0, 1.0, 5.0)
    found = score_labels(Volume.from_array(predicted, spacing), Volume.from_array(true, spacing),
                         ScoringRules({1: "one", 2: "two", 3: "three"}), axis=2,
                         confidence=Volume.from_array(sure, spacing))
    one, two, three = found.scores
    assert (one.name, one.dice, one.iou) == ("one", pytest.approx(2 * 4 / 12), pytest.approx(0.5))
    assert (one.truth_ml, one.volume_ml) == (pytest.approx(0.04), pytest.approx(0.02))
    assert (one.confidence, two.confidence) == (pytest.approx(0.75), pytest.approx(0.25))
    assert (one.empty_slices, one.empty_slices_filled) == (2, 0.0)
    assert (three.empty, math.isnan(three.dice), three.truth_ml) == ("both", True, 0.0)
    assert math.isnan(three.confidence)
    labelled = found.calibration["labelled"]
    assert labelled.voxels.sum() == 16
    assert labelled.right.sum() == 12
    assert found.calibration["all"].voxels.sum() == 48


def test_labels_that_are_not_scored_are_remarked_and_count_as_background() -> None:
    true = np.zeros((4, 4, 2), np.uint8)
    true[:2] = 1
    predicted = np.where(true == 1, np.uint8(7), np.uint8(0))
    found = score_labels(Volume.from_array(predicted), Volume.from_array(true), ScoringRules({1: "one"}), axis=2)
    assert [(score.label, score.dice) for score in found.scores] == [(1, 0.0)]
    assert found.remarks == ("prediction holds labels that are not scored: 7",)


def test_given_slices_do_not_count() -> None:
    true = np.zeros((6, 6, 4), np.uint8)
    true[1:5, 1:5] = 1
    predicted = np.zeros_like(true)
    predicted[:, :, 2] = true[:, :, 2]
    confidence = Volume.from_array(np.ones(true.shape, np.float32))
    found = score_labels(Volume.from_array(predicted), Volume.from_array(true), ScoringRules(), axis=2, given=[2],
                         confidence=confidence)
    assert found.scores[0].dice == 0.0
    assert found.scores[0].empty_slices == 0
    assert found.calibration["all"].voxels.sum() == 6 * 6 * 3
    assert math.isnan(found.scores[0].confidence)


def test_pictures_have_neither_distances_nor_volumes_unless_asked_for() -> None:
    mask = Volume.from_array(box((12, 12, 1), (2, 6), (2, 6), (0, 1)).astype(np.uint8))
    by_itself = score_labels(mask, mask, ScoringRules(), axis=2).scores[0]
    asked_for = score_labels(mask, mask, ScoringRules(distances=True), axis=2).scores[0]
    assert math.isnan(by_itself.hd95_mm)
    assert math.isnan(by_itself.truth_ml)
    assert (asked_for.hd95_mm, asked_for.nsd) == (0.0, 1.0)


def test_images_are_compared_in_the_targets_range() -> None:
    ramp = np.linspace(0, 1000, 24 * 24 * 2).reshape(24, 24, 2).astype(np.float32)
    target = Volume.from_array(ramp)
    low, high = np.percentile(ramp, [0.5, 99.5])
    painted = target.with_array(ramp + 0.1 * (high - low))
    (score,) = score_image(painted, target, "synthesis", axis=2)
    # 0.1 everywhere, but for the top where both are clipped to 1.
    assert 0.093 < score.mae < 0.1
    assert math.isnan(score.given_mae)


def test_denoising_and_inpainting_also_score_what_was_given() -> None:
    random = np.random.default_rng(0)
    target = Volume.from_array(random.normal(100, 20, (16, 16, 3)).astype(np.float32))
    noisy = with_noise(target, 0.2, "a")
    (score,) = score_image(target, target, "denoising", axis=2, shown=noisy)
    assert score.psnr_db == HIGHEST_PSNR_DB
    assert score.given_psnr_db == pytest.approx(14, abs=2)  # -20 log10(0.2), a little better because it is clipped
    hole = box((16, 16, 3), (4, 9), (4, 9), (0, 3))
    lacking = target.with_array(np.where(hole, np.nan, target.array))
    regions = {score.region: score for score in score_image(target, target, "inpainting", axis=2, shown=lacking,
                                                            hole=hole)}
    assert regions["hole"].given_mae > 5 * regions["whole"].given_mae > 0


def test_synthesis_also_scores_where_the_target_shows_something() -> None:
    target = np.zeros((16, 16, 2), np.float32)
    target[4:12, 4:12] = np.random.default_rng(0).uniform(50, 100, (8, 8, 2))
    painted = np.where(target > 0, target, 30).astype(np.float32)  # wrong outside only
    scores = score_image(Volume.from_array(painted), Volume.from_array(target), "synthesis", axis=2)
    by_region = {score.region: score for score in scores}
    assert by_region["inside"].mae == 0
    assert by_region["whole"].mae > 0.1


@pytest.mark.parametrize(("shape", "spacing", "shift", "reason"), [
    ((6, 6, 5), 1.0, 0.0, r"shapes \(6, 6, 6\) and \(6, 6, 5\)"),
    ((6, 6, 6), 2.0, 0.0, "spacing 1 x 1 x 1 mm and 2 x 2 x 2 mm"),
    ((6, 6, 6), 1.0, 3.0, "another position"),
])
def test_other_grids_are_refused_by_name(shape: tuple[int, int, int], spacing: float, shift: float,
                                         reason: str) -> None:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[0, 3] = shift
    other = Volume(np.zeros(shape, np.uint8), Geometry(shape, affine))
    with pytest.raises(GeometryError, match=f"a.nii and b.nii .*{reason}"):
        check_one_grid(Volume.from_array(np.zeros((6, 6, 6))), other, ("a.nii", "b.nii"))


def test_scores_need_one_grid() -> None:
    label = np.ones((6, 6, 6), np.uint8)
    pair = Volume.from_array(label), Volume.from_array(label, (1.0, 1.0, 2.0))
    with pytest.raises(GeometryError, match="prediction and truth"):
        score_labels(*pair, ScoringRules(), axis=2)
    with pytest.raises(GeometryError, match="prediction and target"):
        score_image(*pair, "synthesis", axis=2)


def test_rounded_affines_are_one_grid() -> None:
    affine = np.diag([0.1, 0.1, 0.1, 1.0])
    affine[0, 3] = 0.004
    other = Volume(np.zeros((6, 6, 6)), Geometry((6, 6, 6), affine))
    check_one_grid(Volume.from_array(np.zeros((6, 6, 6)), (0.1, 0.1, 0.1)), other, ("a", "b"))


# --- statistics ---


def test_bootstrap_interval_worked_by_hand() -> None:
    # Means of three draws from (0, 0, 3) are 0, 1, 2, 3 with probability 8, 12, 6 and 1 of 27: 2.5 % are at 0, and the
    # upper 2.5 % (1/27 = 3.7 %) at 3.
    found = mean_over_subjects([0.0, 0.0, 3.0])
    assert (found.mean, found.low, found.high, found.n) == (1.0, 0.0, 3.0, 3)
    assert (found.median, found.minimum, found.maximum) == (0.0, 0.0, 3.0)


def test_bootstrap_interval_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, 100)
    found = mean_over_subjects(values)
    half = 1.96 * values.std() / 10
    assert (found.low, found.high) == (pytest.approx(found.mean - half, abs=3e-3),
                                       pytest.approx(found.mean + half, abs=3e-3))
    assert mean_over_subjects(values) == found
    assert mean_over_subjects(values, seed=1) != found


def test_few_subjects_have_no_interval_and_none_has_no_mean() -> None:
    two = mean_over_subjects([0.5, 0.7, math.nan])
    assert (two.mean, two.n, math.isnan(two.low)) == (pytest.approx(0.6), 2, True)
    assert two.to_json()["low"] is None
    assert mean_over_subjects([math.nan]).to_json() == dict.fromkeys(
        ("mean", "low", "high", "median", "minimum", "maximum")) | {"n": 0}


def test_paired_differences_are_far_surer_than_unpaired_ones() -> None:
    random = np.random.default_rng(0)
    subjects = [f"s{number}" for number in range(30)]
    first = dict(zip(subjects, random.uniform(0.2, 0.9, 30), strict=True))
    second = {subject: value - 0.02 + random.normal(0, 0.005) for subject, value in reversed(first.items())}
    found = paired_difference(first | {"lost": 0.0}, second | {"another": 0.0})
    assert found.n == 30
    assert 0.015 < found.low < 0.02 < found.high < 0.025


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]).mean == pytest.approx(1.0)
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24) = 0.8.
    found = rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert found.mean == pytest.approx(0.8)
    assert found.low < 0.8 < found.high
    assert math.isnan(rank_correlation([1, 2, math.nan], [1, 2, 3]).mean)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]).mean)


# --- calibration ---


def test_expected_calibration_error_worked_by_hand() -> None:
    # Bin 0.9 to 1: three voxels with 0.95, two of them right. Bin 0.2 to 0.3: one voxel with 0.25, right.
    # (|2 - 2.85| + |1 - 0.25|) / 4.
    found = Reliability.of(np.array([0.95, 0.95, 0.95, 0.25]), np.array([True, True, False, True]))
    assert found.expected_error == pytest.approx((0.85 + 0.75) / 4)
    assert found.curve() == [(pytest.approx(0.25), 1.0, 1), (pytest.approx(0.95), pytest.approx(2 / 3), 3)]


def test_reliabilities_add_up_and_go_to_json() -> None:
    random = np.random.default_rng(0)
    sure, right = random.random(100), random.random(100) < 0.5
    parts = [Reliability.of(sure[:40], right[:40]), Reliability.of(sure[40:], right[40:])]
    total, whole = Reliability.total(parts), Reliability.of(sure, right)
    assert total.expected_error == pytest.approx(whole.expected_error)
    assert Reliability.from_json(whole.to_json()).curve() == whole.curve()
    certain = Reliability.of(np.array([1.0]), np.array([True]))  # belongs to the last bin
    assert (whole + certain).voxels[-1] == whole.voxels[-1] + 1
    assert math.isnan(Reliability.total([]).expected_error)


@pytest.mark.parametrize("bad", [math.nan, 1.01, -0.01])
def test_confidence_outside_zero_to_one_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="confidence must lie"):
        Reliability.of(np.array([0.5, bad]), np.array([True, True]))


# --- queries ---


def test_the_labelled_slice_is_the_one_with_most_labels_then_most_voxels() -> None:
    label = np.zeros((10, 10, 6), np.uint8)
    label[1:9, 1:9, 1] = 1  # 64 voxels of one label
    label[1:3, 1:3, 3], label[4:6, 4:6, 3] = 1, 2  # two labels
    label[1:4, 1:4, 4], label[5:8, 5:8, 4] = 1, 2  # two labels, more voxels
    assert slice_to_label(Volume.from_array(label, (1.0, 1.0, 5.0))) == (2, 4)
    assert slice_to_label(Volume.from_array(label, (1.0, 1.0, 5.0)), labels=[1]) == (2, 1)


def test_the_plane_that_shows_most_labels_wins_and_ties_go_to_the_acquisition_plane_then_to_axial() -> None:
    stacked = np.zeros((8, 8, 8), np.uint8)
    stacked[2:6, 2:6, 1:3], stacked[2:6, 2:6, 5:7] = 1, 2  # one above the other: no axial slice shows both
    assert slice_to_label(Volume.from_array(stacked))[0] == 1  # coronal, before sagittal
    both = np.zeros((8, 8, 8), np.uint8)
    both[1:3, 1:3, 1:3], both[1:3, 1:3, 5:7], both[1:3, 5:7, 1:3] = 1, 2, 2
    both[5:7, 1:3, 1:3] = 2
    assert slice_to_label(Volume.from_array(both))[0] == 2  # isotropic: axial
    assert slice_to_label(Volume.from_array(both, (4.0, 1.0, 1.0)))[0] == 0  # acquired in sagittal slices
    assert slice_to_label(Volume.from_array(both, (4.0, 1.0, 1.0)), plane="coronal")[0] == 1
    assert slice_to_label(Volume.from_array(stacked, (1.0, 1.0, 3.0)), plane="acquisition")[0] == 2


def test_a_slice_cannot_be_chosen_from_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        slice_to_label(Volume.from_array(np.zeros((8, 8, 8), np.uint8)))
    with pytest.raises(ValueError, match="one slice only"):
        slice_to_label(Volume.from_array(np.ones((8, 8), np.uint8)))
    with pytest.raises(ValueError, match="acquisition plane"):
        slice_to_label(Volume.from_array(np.ones((8, 8, 8), np.uint8)), plane="acquisition")
    assert acquisition_axis(Geometry((8, 8, 8), np.diag([1.0, 1.0, 1.001, 1.0]))) is None


def test_only_the_chosen_slice_keeps_its_labels() -> None:
    kept = only_slice(Volume.from_array(np.ones((3, 4, 5), np.uint8)), 1, 2).array
    assert kept[:, 2].all()
    assert kept.sum() == 15


def test_thinned_volumes_keep_their_place_in_space() -> None:
    volume = Volume(np.arange(2 * 2 * 20).reshape(2, 2, 20), Geometry((2, 2, 20), np.diag([1.0, 1.0, 3.0, 1.0])))
    thin = thinned(volume, 2, 4)
    assert thin.geometry.shape == (2, 2, 4)
    assert thin.geometry.spacing_mm[2] == pytest.approx(15)
    for k in range(4):
        at = thin.geometry.index_to_world([0, 0, k])
        original = int(volume.geometry.world_to_index(at)[2].round())
        assert np.array_equal(thin.array[:, :, k], volume.array[:, :, original])
    assert thinned(volume, 2, 20) is volume
    assert thinned(volume, 2, 1).geometry.shape == (2, 2, 1)


def test_noise_has_the_wanted_size_and_is_always_the_same() -> None:
    image = Volume.from_array(np.tile(np.linspace(0, 1000, 64, dtype=np.float32), (64, 1))[:, :, None])
    noisy = with_noise(image, 0.05, "case")
    middle = np.s_[:, 20:44]
    low, high = np.percentile(image.array, [0.5, 99.5])
    assert (noisy.array - image.array)[middle].std() == pytest.approx(0.05 * (high - low), rel=0.1)
    assert np.array_equal(noisy.array, with_noise(image, 0.05, "case").array)
    assert not np.array_equal(noisy.array, with_noise(image, 0.05, "other").array)


def test_every_slice_has_a_hole_where_the_image_shows_something() -> None:
    image = np.zeros((60, 40, 6), np.float32)
    image[20:40, 10:30] = np.random.default_rng(0).uniform(50, 100, (20, 20, 6))
    holes = random_holes(Volume.from_array(image, (1.0, 1.0, 4.0)), 2, "case")
    shown = image > 0
    assert (holes & shown).any(axis=(0, 1)).all()
    assert 0.01 < holes.mean() < 0.3
    assert np.array_equal(holes, random_holes(Volume.from_array(image, (1.0, 1.0, 4.0)), 2, "case"))
