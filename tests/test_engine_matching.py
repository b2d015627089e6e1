"""Which slices of unregistered references serve, by place and by looks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_engine import WHOLE, engine
from test_engine_parts import WeighingLookUp
from test_predict import GREYS, random_labels, solved

from mvg_core.engine.fields import Stack
from mvg_core.engine.matching import Matching
from mvg_core.intensity import IntensityScaling
from mvg_core.references import Reference
from mvg_core.volume import Geometry, Volume

SMOOTH = np.cumsum(np.cumsum(np.random.default_rng(0).normal(size=(32, 32, 12)), axis=0), axis=1)
"""Slices that look different also as thumbnails."""


def stack(array: np.ndarray, *, upside_down: bool = False) -> Stack:
    if upside_down:
        array = array[..., ::-1]
    affine = np.diag([1, 1, -1 if upside_down else 1, 1]).astype(float)
    low, high = float(SMOOTH.min()), float(SMOOTH.max())
    return Stack(Volume(np.ascontiguousarray(array), Geometry(array.shape, affine)), 2,
                 IntensityScaling(low, high, "window"))


@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("by_looks", [False, True])
def test_a_volume_is_matched_to_itself_whichever_way_it_is_stored(upside_down: bool, by_looks: bool) -> None:
    found = Matching(stack(SMOOTH), by_looks=by_looks).of(stack(SMOOTH, upside_down=upside_down), 0, 11)
    expected = range(11, -1, -1) if upside_down else range(12)
    assert [choice.slice for choice in found] == list(expected)


def test_looks_find_what_lies_elsewhere() -> None:
    """The reference shows the upper part only."""
    upper = SMOOTH[..., 4:]
    by_place = Matching(stack(SMOOTH), by_looks=False).of(stack(upper), 0, 7)
    by_looks = Matching(stack(SMOOTH), by_looks=True).of(stack(upper), 0, 7)
    wrong = [sum(abs(choice.slice - (number - 4)) for number, choice in enumerate(found) if number >= 4)
             for found in (by_place, by_looks)]
    assert wrong[0] > 8
    assert wrong[1] <= 2


def test_only_slices_with_labels_serve() -> None:
    found = Matching(stack(SMOOTH), by_looks=True).of(stack(SMOOTH), 3, 6)
    assert {choice.slice for choice in found} == {3, 4, 5, 6}


def test_the_reference_that_shows_most_of_the_same_comes_first() -> None:
    """With room for one prompt, retrieval takes the volume that looks like the query; without it the first."""
    query = Volume(SMOOTH.astype(np.float32), Geometry(SMOOTH.shape, np.eye(4)))
    label = query.with_array((SMOOTH > 0).astype(np.uint8))
    other = Volume(np.ascontiguousarray(SMOOTH[::-1, ::-1]).astype(np.float32), query.geometry)
    alike = Volume(query.array.copy(), query.geometry)
    references = [Reference(other, label, "unlike"), Reference(alike, label, "alike")]
    shown = {}
    for retrieval in (False, True):
        backend = WeighingLookUp(32)
        config = replace(WHOLE, size=32, n_prompts=1, retrieval=retrieval)
        engine(backend, config).solve(Volume(query.array + 1e-3, query.geometry), references, plane=2)
        shown[retrieval] = np.mean([np.abs(image - seen[0]).mean() for (image, _), seen in
                                    zip(backend.prompts, backend.queries, strict=True)])
    assert shown[False] > 0.05
    assert shown[True] < 0.01


def test_an_engine_without_looks_goes_by_place() -> None:
    labels = random_labels((16, 16, 5), 2)
    other = solved(random_labels((16, 16, 5), 2, seed=1))
    for retrieval in (False, True):
        found = engine(WeighingLookUp(), replace(WHOLE, retrieval=retrieval)).solve(
            solved(labels).image, other, plane=2, window=GREYS)
        np.testing.assert_array_equal(found.volume.array, labels)
