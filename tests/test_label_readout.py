"""The readout of label maps: sums that add up, a fit that is the best one, and nothing is read that no prompt shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import READER

from mvg_core.label_reader import LabelReading
from mvg_core.label_readout import (
    AROUND,
    BOUND,
    REDUCED,
    SCORES,
    LabelMoments,
    Ridge,
    around,
    coverage,
    highest_others,
    scores,
)
from mvg_core.network import create_network
from mvg_core.reader_backends import TorchReader

RNG = np.random.default_rng(0)
D = 5
CLASS_MAPS = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda s: (4 * s[0], 4 * s[1])),
                    elements=st.integers(0, 3))


def random_terms(height: int, width: int) -> np.ndarray:
    return RNG.normal(size=(D, height, width)).astype(np.float32)


def framed_classes(n_classes: int, height: int = 32, width: int = 40) -> np.ndarray:
    """Random blocks of 2 pixels, and background near the edge, as far as `around` sees."""
    inner = RNG.integers(0, n_classes, ((height - 24) // 2, (width - 24) // 2)).repeat(2, 0).repeat(2, 1)
    return np.pad(inner, 12)


def same(one: LabelMoments, other: LabelMoments) -> bool:
    return all(np.allclose(getattr(one, name), getattr(other, name)) for name in ("products", "answers", "pixels"))


# --- what is to be scored ---


@given(CLASS_MAPS)
def test_coverage_is_the_share_of_a_block_that_a_class_fills(classes):
    covered = coverage(classes, 4)
    for number, y, x in np.ndindex(covered.shape):
        block = classes[y * REDUCED : (y + 1) * REDUCED, x * REDUCED : (x + 1) * REDUCED]
        assert covered[number, y, x] == np.count_nonzero(block == number) / REDUCED**2
    assert np.allclose(covered.sum(axis=0), 1)


@given(arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)),
              elements=st.floats(0, 1, width=32)))
def test_around_is_the_mean_of_a_window_that_goes_on_beyond_the_edge(covered):
    found = around(covered)
    _, height, width = covered.shape
    for number, y, x in np.ndindex(covered.shape):
        rows, columns = (np.clip(range(at - AROUND, at + AROUND + 1), 0, side - 1)
                         for at, side in ((y, height), (x, width)))
        assert np.isclose(found[number, y, x], covered[number][np.ix_(rows, columns)].mean(), atol=1e-6)


# --- sums ---


def test_moments_of_two_prompts_are_those_of_both_side_by_side():
    terms = [random_terms(8, 10) for _ in range(2)]
    classes = [framed_classes(3) for _ in range(2)]
    each = [LabelMoments.of(*one, 3) for one in zip(terms, classes, strict=True)]
    together = LabelMoments.of(np.concatenate(terms, axis=2), np.concatenate(classes, axis=1), 3)
    assert same(LabelMoments.sum(each), together)
    assert np.isclose(together.pixels.sum(), 2 * 8 * 10)
    assert not same(each[0], each[1])


def test_a_prompt_of_weight_two_counts_as_if_it_were_given_twice():
    one, other = (LabelMoments.of(random_terms(8, 10), framed_classes(3), 3) for _ in range(2))
    assert same(LabelMoments.sum([one, other], [2.0, 1.0]), LabelMoments.sum([one, one, other]))
    assert same(LabelMoments.sum([one, other], [1.0, 0.0]), one)


# --- the fit ---


def explicit_fit(terms: np.ndarray, classes: np.ndarray, n_classes: int, ridge: Ridge) -> np.ndarray:
    """The same least squares as rows of a system: one for each pixel and class on it, and one for each weight."""
    covered = coverage(classes, n_classes).astype(float)
    targets = np.stack([covered, around(covered)], axis=1).reshape(n_classes * SCORES, -1)
    pixels = covered.sum(axis=(1, 2))
    wanted = np.array([(n / pixels.sum()) ** -ridge.balance if n else 0.0 for n in pixels])
    wanted /= sum(weight * n for weight, n in zip(wanted, pixels, strict=True))
    rows, answers = [np.sqrt(ridge.shrinkage) * np.eye(D)], [np.zeros((D, len(targets)))]
    for number in range(n_classes):
        root = np.sqrt(wanted[number] * covered[number].ravel())[:, None]
        rows.append(root * terms.reshape(D, -1).T)
        answers.append(root * targets.T)
    return np.linalg.lstsq(np.concatenate(rows), np.concatenate(answers), rcond=None)[0]


@pytest.mark.parametrize("balance", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_fit_is_the_least_squares_of_all_pixels_and_the_ridge(balance, n_classes):
    terms, ridge = random_terms(8, 10), Ridge(0.03, balance)
    classes = framed_classes(n_classes)
    classes[classes == 1] = 0  # a class that is not shown
    classes[12:15, 12:15] = n_classes - 1
    weights = LabelMoments.of(terms, classes, n_classes).fit(ridge)
    assert np.allclose(weights, explicit_fit(terms, classes, n_classes, ridge), atol=1e-9)


def test_shown_twice_a_prompt_says_the_same():
    moments = LabelMoments.of(random_terms(8, 10), framed_classes(3), 3)
    ridge = Ridge(0.1, 0.5)
    assert np.allclose(LabelMoments.sum([moments] * 2).fit(ridge), moments.fit(ridge))


def test_what_the_terms_say_is_found_again():
    classes = framed_classes(3)
    covered = coverage(classes, 3)
    terms = np.concatenate([covered, around(covered)]).astype(np.float32)  # the answers themselves
    weights = LabelMoments.of(terms, classes, 3).fit(Ridge(1e-9, 0.5))
    found = scores(weights, terms)
    plain = 0.5 + BOUND * np.tanh((np.stack([covered, around(covered)], axis=1) - 0.5) / BOUND)
    assert np.allclose(found, plain, atol=1e-3)


def test_balance_decides_how_much_a_small_class_counts():
    classes = np.zeros((32, 32), int)
    classes[:4, :4] = 1  # one pixel of 64
    ones = np.ones((1, 8, 8), np.float32)  # the readout can only say how frequent a class is
    moments = LabelMoments.of(ones, classes, 2)
    assert np.isclose(moments.fit(Ridge(1e-9, 0.0))[0, SCORES], 1 / 64)
    assert np.isclose(moments.fit(Ridge(1e-9, 1.0))[0, SCORES], 1 / 2)


# --- scores ---


@given(arrays(np.float32, (D, 2, 3), elements=st.floats(-1e4, 1e4, width=32)))
def test_scores_stay_near_shares_whatever_the_terms_are(terms):
    found = scores(np.ones((D, 2 * SCORES)), terms)
    assert found.shape == (2, SCORES, 2, 3)
    assert (np.abs(found - 0.5) <= BOUND).all()


def test_scores_belong_to_their_class_and_keep_the_order_of_sums():
    terms = np.stack([np.linspace(-3, 3, 7), np.ones(7)]).reshape(2, 1, 7).astype(np.float32)
    weights = np.zeros((2, 3 * SCORES))
    weights[:, 2 * SCORES + 1] = 1.0, 0.5  # how much class 2 covers of the pixels around
    found = scores(weights, terms)
    assert (np.diff(found[2, 1, 0]) > 0).all()
    assert np.isclose(found[2, 1, 0, 3], 0.5)  # a half stays a half
    found[2, 1] = found[0, 0]
    assert (found == found[0, 0, 0, 0]).all()


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 3)), elements=st.sampled_from([0.0, 0.5, 1.0])))
def test_the_highest_of_the_others_is_that_with_ties_too(values):
    found = highest_others(values)
    for row, column in np.ndindex(values.shape):
        rest = np.delete(values[:, column], row)
        assert found[row, column] == (rest.max() if len(rest) else values[row, column])


# --- reading ---


@pytest.fixture(scope="module")
def reader() -> TorchReader:
    """One that has learned nothing: brightness is still among its terms, and outlines are those of the scores."""
    torch.manual_seed(0)
    network: Any = create_network(READER)
    for parameter in network.out.parameters():
        parameter.data.zero_()
    network.log_shrinkage.data.fill_(-9.0)
    return TorchReader(network)


def blocks(n_images: int, side: int) -> np.ndarray:
    """Images of bright blocks of 16 pixels on dark ground."""
    bright = RNG.random((n_images, side // 16, side // 16)) < 0.4
    bright[:, 0, 0], bright[:, 0, 1] = True, False
    return bright.repeat(16, 1).repeat(16, 2).astype(np.float32) * 0.6 + 0.2


def prompts_of(reading: LabelReading, images: np.ndarray, labels: Sequence[np.ndarray]) -> LabelMoments:
    return LabelMoments.sum([reading.encode(*one) for one in zip(images, labels, strict=True)])


@pytest.mark.parametrize("side", [32, 48, 80])  # 48 and 80 are not multiples of what the network needs
def test_the_example_decides_what_is_read(reader, side):
    images, queries = blocks(6, side), blocks(2, side)
    for bright, dark in ((9, 200), (200, 9)):  # numbers, not places in a list
        reading = LabelReading(reader, (9, 200))
        labels = [np.where(image > 0.5, bright, dark).astype(np.uint8) for image in images]
        likely = reading.read(queries, prompts_of(reading, images, labels))
        assert likely.shape == (2, side, side, 3)
        assert np.allclose(likely.sum(-1), 1, atol=1e-5)
        assert (likely[..., 0] == 0).all()  # background is never shown
        read = np.array([0, 9, 200])[likely.argmax(-1)]
        assert (read == np.where(queries > 0.5, bright, dark)).mean() > 0.9


def test_labels_that_are_not_asked_for_are_background_and_unknown_ones_never_read(reader):
    images = blocks(4, 32)
    labels = [np.where(image > 0.5, 7, 30).astype(np.uint8) for image in images]
    reading = LabelReading(reader, (5, 7))
    moments = prompts_of(reading, images, labels)
    assert moments.shown.tolist() == [True, False, True]
    only = LabelReading(reader, (7,))
    expected = prompts_of(only, images, [np.where(label == 7, 7, 0) for label in labels])
    likely, alone = reading.read(images, moments), only.read(images, expected)
    assert (likely[..., 1] == 0).all()
    assert np.allclose(likely[..., [0, 2]], alone, atol=1e-5)


def test_prompts_that_do_not_count_leave_background(reader):
    images, reading = blocks(1, 48), LabelReading(reader, (1,))
    moments = reading.encode(images[0], np.ones((48, 48), np.uint8))
    likely = reading.read(images, LabelMoments.sum([moments], [0.0]))
    assert (likely[..., 0] == 1).all()
    assert (likely[..., 1] == 0).all()
    assert np.allclose(reading.read(images, moments)[..., 1], 1)  # and the only class that is shown is everywhere


def test_what_is_added_to_odd_sides_is_no_evidence(reader):
    image, reading = blocks(1, 48), LabelReading(reader, (1,))
    padded = np.pad(image, [(0, 0), (0, 16), (0, 16)])
    assert np.array_equal(reading.look(image).terms, reader.look(padded).terms[..., :12, :12])
    assert reading.encode(image[0], np.ones((48, 48), np.uint8)).pixels.sum() == 12 * 12
