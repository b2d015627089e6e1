"""Label maps and images, painted and read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvg_core.codecs import (
    CAPACITY,
    PALETTE_KINDS,
    ImageCodec,
    LabelCodec,
    label_groups,
    merge_groups,
    palette,
)


def smallest_distance(colours: np.ndarray) -> float:
    return min(float(np.linalg.norm(a - b)) for i, a in enumerate(colours) for b in colours[:i])


# --- palettes ---


def test_wide_palette_starts_with_the_corners_of_the_colour_cube() -> None:
    expected = [(0, 0, 0), (1, 1, 1), (1, 1, 0), (1, 0, 1), (1, 0, 0), (0, 1, 1), (0, 1, 0), (0, 0, 1)]
    np.testing.assert_array_equal(palette("wide", 7), expected)


def test_wide_palette_goes_on_with_face_centres_then_centre_and_edges() -> None:
    colours = palette("wide", 26)
    halves = (colours == 0.5).sum(axis=1)
    assert halves[8:14].tolist() == [2] * 6
    assert sorted(halves[14:].tolist()) == [1] * 12 + [3]
    assert len(np.unique(colours, axis=0)) == 27


@pytest.mark.parametrize(
    ("n_labels", "distance"),
    [(1, 3**0.5), (2, 1), (7, 1), (8, 0.5**0.5), (13, 0.5**0.5), (14, 0.5), (16, 0.5), (26, 0.5)],
)
def test_wide_palette_distances(n_labels: int, distance: float) -> None:
    assert smallest_distance(palette("wide", n_labels)) == pytest.approx(distance)


def test_grey_palette_is_the_papers() -> None:
    expected = np.array([[0] * 3, [10] * 3, [20] * 3, [30] * 3]) / 255
    np.testing.assert_allclose(palette("grey", 3), expected, atol=1e-7)
    assert palette("grey", 25).max() == pytest.approx(250 / 255)


def test_binary_palette_is_black_and_white() -> None:
    np.testing.assert_array_equal(palette("binary", 1), [(0, 0, 0), (1, 1, 1)])


@given(
    st.sampled_from([(1, 0.5 * 3**0.5), (2, 0.5), (7, 0.5), (8, 0.5**1.5), (13, 0.5**1.5), (14, 0.25), (26, 0.25)]),
    st.integers(0, 2**32 - 1),
)
def test_random_palette_is_half_as_far_apart_as_the_wide_one(size_and_distance: tuple[int, float], seed: int) -> None:
    n_labels, distance = size_and_distance
    colours = palette("random", n_labels, np.random.default_rng(seed))
    assert colours.shape == (n_labels + 1, 3)
    assert not colours[0].any()
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert smallest_distance(colours) >= distance - 1e-6


def test_random_palette_is_repeatable_and_varies() -> None:
    first, again, other = (palette("random", 5, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_random_palette_covers_the_colour_cube() -> None:
    rng = np.random.default_rng(0)
    colours = np.concatenate([palette("random", 4, rng)[1:] for _ in range(300)])
    assert colours.min(axis=0) == pytest.approx(0, abs=0.02)
    assert colours.max(axis=0) == pytest.approx(1, abs=0.02)


def test_random_palette_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="rng="):
        palette("random", 2)


@pytest.mark.parametrize("kind", PALETTE_KINDS)
def test_palette_beyond_its_capacity_is_refused(kind) -> None:
    rng = np.random.default_rng(0)
    assert len(palette(kind, CAPACITY[kind], rng)) == CAPACITY[kind] + 1
    for n_labels in (0, CAPACITY[kind] + 1):
        with pytest.raises(ValueError, match=f"holds 1 to {CAPACITY[kind]} labels"):
            palette(kind, n_labels, rng)


def test_unknown_palette_is_refused() -> None:
    with pytest.raises(ValueError, match="wide, grey, random, binary"):
        palette("rainbow", 2)  # pyright: ignore[reportArgumentType]


def test_a_palette_may_be_changed_without_harm() -> None:
    palette("wide", 3)[:] = 0.3
    assert palette("wide", 1)[1].tolist() == [1, 1, 1]


# --- LabelCodec: painting ---


def test_encode_paints_each_label_in_its_colour() -> None:
    codec = LabelCodec.for_labels((7, 200))
    painted = codec.encode(np.array([[0, 7], [200, 0]], dtype=np.int16))
    assert painted.dtype == np.float32
    np.testing.assert_array_equal(painted, [[(0, 0, 0), (1, 1, 1)], [(1, 1, 0), (0, 0, 0)]])


@pytest.mark.parametrize(
    ("label_map", "unknown"), [([0, 3, 7], r"\[3\]"), ([-1, 7], r"\[-1\]"), ([256, 300], "256, 300")]
)
def test_encode_refuses_labels_without_colour(label_map: list[int], unknown: str) -> None:
    with pytest.raises(ValueError, match=unknown):
        LabelCodec.for_labels((7,)).encode(np.array(label_map))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_encode_takes_every_integer_type(dtype: str) -> None:
    painted = LabelCodec.for_labels((100,)).encode(np.array([0, 100], dtype=dtype))
    np.testing.assert_array_equal(painted, [(0, 0, 0), (1, 1, 1)])


def test_encode_refuses_label_maps_that_are_not_integers() -> None:
    with pytest.raises(TypeError, match="float64"):
        LabelCodec.for_labels((1,)).encode(np.array([0.0, 1.0]))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("labels", "colours", "message"),
    [
        ((), np.zeros((1, 3)), "at least one label"),
        ((1,), np.zeros((3, 3)), r"\(2, 3\)"),
        ((1,), np.array([[0, 0, 0], [255, 0, 0]]), "divide 8-bit"),
        ((1,), np.array([[0, 0, 0], [np.nan, 0, 0]]), "divide 8-bit"),
        ((1, 2), np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0]]), "same colour"),
        ((0,), np.array([[0, 0, 0], [1, 0, 0]]), "0 is the background"),
        ((256,), np.array([[0, 0, 0], [1, 0, 0]]), "from 1 to 255"),
        ((4, 4), np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]), "more than once"),
    ],
)
def test_invalid_codecs_are_refused(labels: tuple[int, ...], colours: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelCodec(labels, colours)


def test_colours_are_a_read_only_copy() -> None:
    colours = np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32)
    codec = LabelCodec((1,), colours)
    colours[1] = 0.5
    assert codec.colours[1].tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        codec.colours[1] = 0.5


@pytest.mark.parametrize(
    ("kind", "n_labels", "margin"),
    [("binary", 1, 3**0.5 / 2), ("wide", 7, 0.5), ("wide", 16, 0.25), ("grey", 4, 5 / 255 * 3**0.5)],
)
def test_margin_is_half_the_smallest_distance(kind, n_labels: int, margin: float) -> None:
    assert LabelCodec.for_labels(range(1, n_labels + 1), kind).margin == pytest.approx(margin, rel=1e-5)


# --- LabelCodec: reading ---


@st.composite
def paintings_below_the_margin(draw: st.DrawFn) -> tuple[LabelCodec, np.ndarray, np.ndarray]:
    """A codec, a label map (N,), and its painting with errors up to the margin in any direction."""
    kind = draw(st.sampled_from(PALETTE_KINDS))
    labels = draw(st.lists(st.integers(1, 255), min_size=1, max_size=CAPACITY[kind], unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codec = LabelCodec.for_labels(labels, kind, rng)
    label_map = np.array(draw(st.lists(st.sampled_from([0, *labels]), min_size=1, max_size=20)), dtype=np.uint8)
    direction = rng.normal(size=(*label_map.shape, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    size = draw(st.floats(0, 0.9999)) * codec.margin
    return codec, label_map, codec.encode(label_map) + size * direction


@given(paintings_below_the_margin())
def test_errors_below_the_margin_decode_to_the_same_label(case: tuple[LabelCodec, np.ndarray, np.ndarray]) -> None:
    codec, label_map, painted = case
    label, confidence = codec.decode(painted)
    np.testing.assert_array_equal(label, label_map)
    assert confidence.min() >= 0
    assert confidence.max() <= 1


def test_an_error_beyond_the_margin_may_decode_to_another_label() -> None:
    codec = LabelCodec.for_labels((1, 2))  # black, white, yellow: the margin is half of white to yellow
    label, _ = codec.decode(np.array([1.0, 1.0, 0.49]))
    assert label == 2


def test_decode_returns_uint8_labels_and_float32_confidence_of_the_same_shape() -> None:
    label, confidence = LabelCodec.for_labels((9,)).decode(np.zeros((2, 4, 5, 3)))
    assert (label.shape, label.dtype) == ((2, 4, 5), np.uint8)
    assert (confidence.shape, confidence.dtype) == ((2, 4, 5), np.float32)


def test_confidence_is_one_at_a_colour_zero_halfway_and_half_in_between() -> None:
    codec = LabelCodec((5,), np.array([(0, 0, 0), (1, 0, 0)]))
    label, confidence = codec.decode(np.array([(0, 0, 0), (1, 0, 0), (0.5, 0, 0), (0.75, 0, 0), (0.25, 0, 0)]))
    assert label.tolist() == [0, 5, 0, 5, 0]  # a tie goes to the background
    # distances 0.25 and 0.75: (0.75 - 0.25) / (0.75 + 0.25) = 0.5
    np.testing.assert_allclose(confidence, [1, 1, 0, 0.5, 0.5], atol=1e-6)


def test_confidence_compares_the_two_nearest_of_all_colours() -> None:
    codec = LabelCodec((1, 2), np.array([(0, 0, 0), (1, 1, 1), (0, 1, 1)]))
    # nearest is label 1 at 0.2; label 2 is 0.8 away, the background farther: (0.8 - 0.2) / (0.8 + 0.2) = 0.6
    label, confidence = codec.decode(np.array([0.8, 1, 1]))
    assert label == 1
    assert float(confidence) == pytest.approx(0.6, abs=1e-6)


def test_every_label_number_survives() -> None:
    for group in label_groups(range(1, 256)):
        codec = LabelCodec.for_labels(group)
        label_map = np.array([0, *group], dtype=np.uint8)
        label, confidence = codec.decode(codec.encode(label_map))
        np.testing.assert_array_equal(label, label_map)
        np.testing.assert_array_equal(confidence, 1)


@pytest.mark.parametrize(
    "read", [LabelCodec.for_labels((1,)).decode, LabelCodec.for_labels((1,)).probabilities, ImageCodec().decode]
)
@pytest.mark.parametrize(
    ("painted", "message"),
    [
        (np.zeros((4, 4)), "3 colour channels last"),
        (np.float32(0), "3 colour channels last"),
        (np.array([0, np.nan, 0]), "NaN"),
        (np.array([0, np.inf, 0]), "infinite"),
    ],
)
def test_a_broken_painting_is_refused(read, painted: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(painted)


def test_probabilities_by_hand() -> None:
    codec = LabelCodec((1,), np.array([(0, 0, 0), (1, 0, 0)]))
    # squared distances 0.0625 and 0.5625; the odds are exp(0.5 / temperature)
    odds = np.exp(0.5 / 0.25)
    expected = [odds / (1 + odds), 1 / (1 + odds)]
    np.testing.assert_allclose(codec.probabilities(np.array([0.25, 0, 0]), temperature=0.25), expected, rtol=1e-5)


@given(paintings_below_the_margin())
def test_the_most_probable_label_is_the_decoded_one(case: tuple[LabelCodec, np.ndarray, np.ndarray]) -> None:
    codec, label_map, painted = case
    probabilities = codec.probabilities(painted, temperature=0.01)
    assert probabilities.shape == (len(label_map), len(codec.labels) + 1)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.array([0, *codec.labels])[probabilities.argmax(axis=-1)], label_map)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        LabelCodec.for_labels((1,)).probabilities(np.zeros(3), temperature)


# --- groups ---


@pytest.mark.parametrize(
    ("n_labels", "per_pass", "sizes"),
    [
        (0, 16, []),
        (1, 16, [1]),
        (16, 16, [16]),
        (17, 16, [8, 9]),
        (33, 16, [11, 11, 11]),
        (5, 2, [1, 2, 2]),
        (3, 1, [1] * 3),
    ],
)
def test_label_groups_are_few_and_even(n_labels: int, per_pass: int, sizes: list[int]) -> None:
    groups = label_groups(range(1, n_labels + 1), per_pass)
    assert [len(group) for group in groups] == sizes
    assert [label for group in groups for label in group] == list(range(1, n_labels + 1))


def test_label_groups_keep_the_order() -> None:
    assert label_groups([9, 2, 5, 7], 2) == [(9, 2), (5, 7)]


@pytest.mark.parametrize(
    ("labels", "per_pass", "message"),
    [(range(1, 257), 16, "from 1 to 255"), ([0, 1], 16, "background"), ([3, 3], 16, r"\[3\]"), ([1], 0, "per_pass")],
)
def test_impossible_label_groups_are_refused(labels: list[int], per_pass: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_groups(labels, per_pass)


def decoded(*pixels: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p[0] for p in pixels], dtype=np.uint8), np.array([p[1] for p in pixels], dtype=np.float32)


def test_merge_groups_by_hand() -> None:
    label, confidence = merge_groups(
        [
            # both background | one label      | other label    | the surer of two | tie: earlier
            decoded((0, 0.9), (3, 0.1), (0, 0.9), (3, 0.4), (3, 0.5)),
            decoded((0, 0.2), (0, 0.9), (7, 0.1), (7, 0.6), (7, 0.5)),
        ]
    )
    assert label.tolist() == [0, 3, 7, 7, 3]
    np.testing.assert_allclose(confidence, [0.2, 0.1, 0.1, 0.6, 0.5])
    assert (label.dtype, confidence.dtype) == (np.uint8, np.float32)


def test_merge_of_three_groups_does_not_depend_on_which_comes_first() -> None:
    groups = [
        decoded((0, 0.8), (1, 0.3), (0, 0.1)),
        decoded((0, 0.5), (0, 0.9), (2, 0.2)),
        decoded((0, 0.7), (4, 0.6), (0, 0.9)),
    ]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        label, confidence = merge_groups([groups[k] for k in order])
        assert label.tolist() == [0, 4, 2]
        np.testing.assert_allclose(confidence, [0.5, 0.6, 0.2])


def test_merge_of_one_group_is_that_group() -> None:
    label, confidence = merge_groups([decoded((0, 0.3), (5, 0.2))])
    assert label.tolist() == [0, 5]
    np.testing.assert_allclose(confidence, [0.3, 0.2])


def test_merge_of_nothing_or_of_different_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        merge_groups([])
    with pytest.raises(ValueError, match="one shape"):
        merge_groups([decoded((0, 0.1)), decoded((0, 0.1), (1, 0.2))])


# --- images ---


def test_images_are_painted_in_three_equal_channels() -> None:
    painted = ImageCodec().encode(np.array([[0.0, 0.25]]))
    assert painted.dtype == np.float32
    np.testing.assert_array_equal(painted, [[(0, 0, 0), (0.25, 0.25, 0.25)]])


def test_images_are_read_as_the_clipped_mean_of_the_channels() -> None:
    image = ImageCodec().decode(np.array([(0.25, 0.5, 0.75), (-1, 0, 0), (1, 1, 2)]))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, [0.5, 0, 1])


@given(st.lists(st.floats(0, 1, width=32), min_size=1))
def test_images_survive_painting(pixels: list[float]) -> None:
    np.testing.assert_allclose(ImageCodec().decode(ImageCodec().encode(np.array(pixels))), pixels, atol=1e-6)
