"""Intensities to [0, 1] and back; limits worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvg_core import intensity
from mvg_core.intensity import IntensityScaling, check_finite, looks_like_ct, slabs


def test_window_worked_by_hand() -> None:
    scaling = IntensityScaling.from_window(-200, 300)
    scaled = scaling.apply(np.array([-1000, -200, 50, 300, 3000], dtype=np.int16))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(scaling.invert(scaled), [-200, -200, 50, 300, 300])
    assert scaling.invert(scaled).dtype == np.float32
    assert scaling.kind == "window"


def test_percentiles_worked_by_hand() -> None:
    # 0..1000: the p-th percentile is 10 p
    scaling = IntensityScaling.from_percentiles(np.arange(1001).reshape(7, 11, 13))
    assert (scaling.low, scaling.high, scaling.kind) == (5.0, 995.0, "percentile")
    assert IntensityScaling.from_percentiles(np.arange(1001), 10, 60).high == 600


def test_nearly_constant_image_uses_its_extremes() -> None:
    array = np.zeros((10, 10, 10), np.uint8)
    array[0, 0, 0], array[0, 0, 1] = 9, 3
    scaling = IntensityScaling.from_percentiles(array)
    assert (scaling.low, scaling.high) == (0, 9)


def test_huge_image_is_sampled_always_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(100, 15, (60, 50, 40))
    exact = IntensityScaling.from_percentiles(array)
    monkeypatch.setattr(intensity, "_PERCENTILE_SAMPLE", 20_000)
    sampled = IntensityScaling.from_percentiles(array)
    assert sampled == IntensityScaling.from_percentiles(array)
    assert sampled != exact
    # standard error of the 0.5th percentile of 15,000 normal numbers is 0.6 of 15
    assert sampled.low == pytest.approx(exact.low, abs=3)
    assert sampled.high == pytest.approx(exact.high, abs=3)
    array[3, 5, 7] = np.inf  # a voxel that is not in the sample
    with pytest.raises(ValueError, match="1 NaN/Inf"):
        IntensityScaling.from_percentiles(array)


@given(st.floats(-1e5, 1e5), st.floats(1e-2, 1e5), st.lists(st.floats(0, 1), min_size=1))
def test_invert_undoes_apply_within_the_limits(low: float, width: float, shares: list[float]) -> None:
    scaling = IntensityScaling.from_window(low, low + width)
    array = low + width * np.array(shares)
    np.testing.assert_allclose(scaling.invert(scaling.apply(array)), array, atol=1e-6 * (abs(low) + width), rtol=1e-6)


def test_apply_keeps_small_differences_of_large_numbers() -> None:
    scaling = IntensityScaling.from_window(1_000_000_000, 1_000_000_010)
    np.testing.assert_allclose(scaling.apply(np.array([1_000_000_005], dtype=np.int32)), [0.5])


def test_apply_does_not_change_its_input() -> None:
    array = np.array([0.0, 5.0, 20.0], dtype=np.float32)
    IntensityScaling.from_window(0, 10).apply(array)
    np.testing.assert_array_equal(array, [0, 5, 20])


# --- which scaling an image gets ---


def test_ct_is_recognised_by_air() -> None:
    ct = np.array([-1024, 40, 1500], dtype=np.int16)
    assert looks_like_ct(ct)
    assert looks_like_ct(np.array([-500.0]))
    assert not looks_like_ct(np.array([-499.0, 3000]))
    assert not looks_like_ct(np.array([]))
    scaling = IntensityScaling.for_volume(ct)
    assert (scaling.low, scaling.high, scaling.kind) == (-200, 300, "window")


def test_modality_and_window_overrule_the_guess() -> None:
    ct, mr = np.array([-1024, 0, 3000]), np.arange(1001)
    assert IntensityScaling.for_volume(mr, "ct") == IntensityScaling.from_window(-200, 300)
    assert IntensityScaling.for_volume(mr).kind == "percentile"
    assert IntensityScaling.for_volume(ct, "other").kind == "percentile"
    assert IntensityScaling.for_volume(ct, window=(-1000, 400)) == IntensityScaling.from_window(-1000, 400)
    with pytest.raises(ValueError, match=r"'mr'.*auto, ct, other"):
        IntensityScaling.for_volume(mr, "mr")  # pyright: ignore[reportArgumentType]


# --- what is refused ---


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (np.nan, 1), (0, np.inf), (-1.7e308, 1.7e308)])
def test_limits_must_be_finite_and_ordered(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="finite with low < high"):
        IntensityScaling.from_window(low, high)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'zscore'.*window, percentile"):
        IntensityScaling(0, 1, "zscore")  # pyright: ignore[reportArgumentType]


def test_constant_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"constant \(every voxel is 7"):
        IntensityScaling.from_percentiles(np.full((3, 3, 3), 7))
    with pytest.raises(ValueError, match="no voxels"):
        IntensityScaling.from_percentiles(np.zeros((0, 3)))
    # a window needs no contrast in the image
    assert IntensityScaling.for_volume(np.full((2, 2, 2), -1000)).kind == "window"


@pytest.mark.parametrize(("low", "high"), [(-1, 99), (50, 50), (60, 40), (1, 101)])
def test_percentiles_must_be_ordered(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="0 <= low < high <= 100"):
        IntensityScaling.from_percentiles(np.arange(9), low, high)


def test_check_finite_counts_the_bad_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    check_finite(array, "query")
    check_finite(array.astype(int), "query")
    array[0, 0, :2], array[3, 4, 5] = np.nan, -np.inf
    with pytest.raises(ValueError, match="'query' holds 3 NaN/Inf voxels: replace them"):
        check_finite(array, "query")
    monkeypatch.setattr(intensity, "_PERCENTILE_SAMPLE", 10)  # piece by piece
    for order in (array, array.T, np.asfortranarray(array)):
        with pytest.raises(ValueError, match="holds 3"):
            check_finite(order, "query")
    for call in (IntensityScaling.from_percentiles, IntensityScaling.for_volume):
        with pytest.raises(ValueError, match="'image' holds 3"):
            call(array)


@pytest.mark.parametrize("limit", [1, 10**6])
def test_slabs_are_views_in_step(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intensity, "_PERCENTILE_SAMPLE", limit)
    array = np.arange(24).reshape(2, 3, 4)
    for source in (array, np.asfortranarray(array), array.transpose(2, 0, 1)):
        doubled = np.zeros(source.shape)
        for part, target in slabs(source, doubled):
            target[...] = 2 * part
        np.testing.assert_array_equal(doubled, 2 * source)


# --- JSON ---


def test_json_round_trip() -> None:
    scaling = IntensityScaling.from_percentiles(np.arange(1001, dtype=np.float32))
    assert IntensityScaling.from_json(json.loads(json.dumps(scaling.to_json()))) == scaling
    for values in ({"low": 0, "high": 1}, {"low": 0, "high": 1, "kind": "window", "gamma": 1}):
        with pytest.raises(ValueError, match="keys low, high, kind"):
            IntensityScaling.from_json(values)
