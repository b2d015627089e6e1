"""The parts of the volume engine one by one: fields of view, painter, quality, answer, configuration, looking on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import Constant, LookUp, Recorder, rotation

from mvg_core.engine import PRESETS, Cancelled, EngineConfig, Watch
from mvg_core.engine.answer import VolumeAnswer, lead
from mvg_core.engine.fields import FINEST, Cut, Extent, Field, Stack, extent_of
from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.quality import SliceQuality, quality_of, suggestions
from mvg_core.intensity import IntensityScaling
from mvg_core.volume import Geometry, Volume

BYTES = IntensityScaling.from_window(0, 255)


class Weighing(Recorder):
    """Remembers how much each example counted."""

    def __init__(self, size: int = 16) -> None:
        super().__init__(size)
        self.weights: list[list[float]] = []

    def merge(self, encoded: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
        self.weights.append([] if weights is None else list(weights))
        return list(encoded)


class WeighingLookUp(Weighing, LookUp):
    """Paints every grey with the colour that it has in the prompts."""


class WeighingConstant(Weighing, Constant):
    """One colour everywhere."""

    def __init__(self, size: int = 16, colour: Sequence[float] = (1, 1, 1)) -> None:
        Weighing.__init__(self, size)
        self.colour = np.array(colour, np.float32)


@st.composite
def stacks(draw: st.DrawFn, spacings: Sequence[float] = (0.5, 1.0, 3.0), square: bool = False) -> Stack:
    """Random bytes in any orientation, oblique or not; `square` ones have square voxels in the plane of the slices."""
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    axis = draw(st.integers(0, 2))
    spacing = [draw(st.sampled_from(spacings)) for _ in range(3)]
    if square:
        first, second = (other for other in range(3) if other != axis)
        spacing[second] = spacing[first]
    order, signs = draw(st.permutations(range(3))), draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation(draw(st.sampled_from((0.0, 12.0)))) @ (np.eye(3)[:, order] * signs) @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.integers(-50, 50)] * 3))
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape).astype(np.uint8)
    return Stack(Volume(array, Geometry(shape, affine)), axis, BYTES)


centres = st.tuples(st.floats(-5, 17), st.floats(-5, 17))


@given(stacks(), centres, st.floats(0.5, 30), st.floats(1, 3))
def test_a_wider_view_of_the_same_place_shows_all_of_a_narrower_one(stack: Stack, centre: tuple[float, float],
                                                                    side_mm: float, wider: float) -> None:
    inner, outer = (stack.cut(0, Field(centre, min(side, stack.whole.side_mm)), 16).box
                    for side in (side_mm, wider * side_mm))
    for narrow, wide in zip(inner, outer, strict=True):
        assert wide.start <= narrow.start
        assert narrow.stop <= wide.stop



def flat(array: np.ndarray, *spacing_mm: float) -> Stack:
    """One slice (h, w) along the last axis."""
    spacing = (*spacing_mm, 1.0) if spacing_mm else (1.0, 1.0, 1.0)
    return Stack(Volume.from_array(array[:, :, None], spacing), 2, BYTES)


# --- fields of view ---


def test_the_extent_of_a_structure_is_its_box() -> None:
    label = np.zeros((10, 20), np.uint8)
    assert extent_of(label, (1, 1)) is None
    label[2, 5] = label[4, 6] = 3
    assert extent_of(label, (1, 1)) == Extent((3.0, 5.5), 3.0)
    assert extent_of(label, (1, 4)) == Extent((3.0, 5.5), 8.0)
    assert extent_of(label > 0, (1, 1)) == Extent((3.0, 5.5), 3.0)
    label[...] = 1
    assert extent_of(label, (1, 1)) == Extent((4.5, 9.5), 20.0)


def test_a_field_is_neither_larger_than_the_slice_nor_magnified_without_end() -> None:
    stack = flat(np.zeros((30, 40), np.uint8), 1, 2)
    assert stack.whole == Field((14.5, 19.5), 80.0)
    assert stack.field((3, 4), 50, 16) == Field((3, 4), 50)
    assert stack.field((3, 4), 500, 16).side_mm == 80
    assert stack.field((3, 4), 0.1, 48).side_mm == pytest.approx(48 * FINEST)
    assert stack.field((3, 4), 0.1, 480).side_mm == 80  # the slice itself is smaller than that


@given(stacks(), centres, st.floats(0.2, 60))
def test_the_box_of_a_cut_lies_in_the_slice_and_around_its_centre(stack: Stack, centre: tuple[float, float],
                                                                  side_mm: float) -> None:
    box = stack.cut(0, Field(centre, side_mm), 16).box
    for side, at, n, mm in zip(box, centre, stack.shape, stack.spacing_mm, strict=True):
        assert 0 <= side.start < side.stop <= n
        assert side.stop - side.start <= max(1, side_mm / mm + 1e-5)
        if side.stop - side.start < n:  # as large as the field allows
            assert side.stop - side.start >= np.floor(side_mm / mm)
        middle = (side.start + side.stop - 1) / 2
        assert abs(middle - at) <= 1 or (side.start == 0 and middle > at) or (side.stop == n and middle < at)


@given(stacks(square=True), centres, st.integers(1, 20), st.data())
@settings(max_examples=60)
def test_what_is_cut_without_resampling_comes_back_bit_for_bit(stack: Stack, centre: tuple[float, float], size: int,
                                                               data: st.DataObject) -> None:
    number = data.draw(st.integers(0, stack.n_slices - 1))
    cut = stack.cut(number, Field(centre, size * stack.spacing_mm[0]), size)
    there = stack.slice_of(stack.volume.array, number)
    back = cut.back(cut.image[..., None])[..., 0]
    np.testing.assert_array_equal(back, BYTES.apply(there[cut.box]))
    label = there % 4
    shown = cut.label(label)
    assert shown.dtype == label.dtype
    np.testing.assert_array_equal(cut.back((shown == 2)[..., None].astype(np.float32))[..., 0], label[cut.box] == 2)
    channels = np.stack([label == each for each in (1, 2)], axis=-1).astype(np.float32)
    np.testing.assert_array_equal(cut.back(cut.channels(channels)), channels[cut.box])
    np.testing.assert_array_equal(cut.channels(channels)[..., 1], shown == 2)


@given(stacks(), centres, st.floats(2, 15), st.data())
@settings(max_examples=40)
def test_what_is_magnified_comes_back_to_its_own_voxels(stack: Stack, centre: tuple[float, float], side_mm: float,
                                                        data: st.DataObject) -> None:
    number = data.draw(st.integers(0, stack.n_slices - 1))
    size = int(np.ceil(side_mm / min(stack.spacing_mm) * 4.5))
    cut = stack.cut(number, Field(centre, side_mm), size)
    label = stack.slice_of(stack.volume.array, number) % 3
    if any(mm > side_mm for mm in stack.spacing_mm):  # a voxel that is larger than the field
        return
    shown = cut.label(label)
    back = cut.back((shown[..., None] == np.arange(3)).astype(np.float32))
    np.testing.assert_array_equal(back.argmax(axis=-1), label[cut.box])
    np.testing.assert_allclose(back.sum(axis=-1), 1, atol=1e-5)


def test_around_a_slice_that_is_smaller_than_the_field_is_nothing() -> None:
    stack = Stack(Volume.from_array(np.full((4, 6, 1), 100, np.int16)), 2, IntensityScaling.from_window(-900, 1100))
    cut = stack.cut(0, Field((0, 0), 10), 10)  # far larger than the slice, and centred on its corner
    assert cut.box == (slice(0, 4), slice(0, 6))
    for shown, inside in ((cut.image, 0.5), (cut.label(np.ones((4, 6), np.uint8)), 1),
                          (cut.channels(np.ones((4, 6, 1), np.float32))[..., 0], 1)):
        assert (shown == inside).sum() == 24
        assert (shown == 0).sum() == 76
    np.testing.assert_array_equal(cut.back(cut.image[..., None]), np.full((4, 6, 1), 0.5, np.float32))


def test_a_field_at_the_border_shows_no_less_of_the_slice() -> None:
    array = np.arange(100, dtype=np.uint8).reshape(10, 10)
    cut = flat(array).cut(0, Field((0, 9), 4), 4)
    assert cut.box == (slice(0, 4), slice(6, 10))
    assert sorted(np.rint(cut.image * 255).ravel()) == sorted(array[:4, 6:].ravel())


def test_slices_are_cut_from_any_axis() -> None:
    array = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    for axis in range(3):
        stack = Stack(Volume.from_array(array), axis, BYTES)
        for number in (0, stack.n_slices - 1):
            expected = np.take(array, number, axis)
            np.testing.assert_array_equal(stack.slice_of(array, number), expected)
            cut = stack.cut(number, stack.whole, int(stack.whole.side_mm))
            np.testing.assert_array_equal(np.rint(cut.back(cut.image[..., None])[..., 0] * 255), expected)


# --- the painter ---


def random_slice(seed: int, n_labels: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n_labels + 1, (size, size)).astype(np.uint8)


def as_example(label: np.ndarray, shown: np.ndarray | None = None, **more: Any) -> Example:
    """A slice whose greys are its labels."""
    return Example((label / 255).astype(np.float32), label if shown is None else shown, **more)


@pytest.mark.parametrize("n_labels", [1, 3, 16, 17, 40])
def test_an_oracle_paints_every_label(n_labels: int) -> None:
    labels = range(1, n_labels + 1)
    painter = SlicePainter(WeighingLookUp(), labels)
    example, query = (random_slice(seed, n_labels) for seed in (1, 2))
    query = np.where(np.isin(query, example), query, 0)
    found = painter.paint((query / 255).astype(np.float32), [as_example(example)])
    assert found.shape == (16, 16, 1 + n_labels)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(painter.decide(found), query)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert lead(found).min() > (0.9 if n_labels <= 7 else 0.3)


def test_labels_need_not_be_consecutive_and_unknown_ones_are_not_painted() -> None:
    painter = SlicePainter(WeighingLookUp(), [7, 200])
    label = np.where(random_slice(0, 2) > 0, random_slice(0, 2) * 7, 0).astype(np.uint8)  # 7 and 14
    found = painter.paint((label / 255).astype(np.float32), [as_example(label)])
    np.testing.assert_array_equal(painter.decide(found), np.where(label == 7, 7, 0))
    assert not found[..., 2].any()  # no example shows 200


def test_examples_may_show_different_labels() -> None:
    first, second = np.zeros((2, 16, 16), np.uint8)
    first[:8], second[8:] = 1, 2
    painter = SlicePainter(WeighingLookUp(), [1, 2])
    found = painter.decide(painter.paint(((first + second) / 255).astype(np.float32),
                                         [as_example(first), as_example(second)]))
    np.testing.assert_array_equal(found, first + second)


@pytest.mark.parametrize("labels", [[], [3]])
def test_without_a_label_there_is_background_for_certain(labels: list[int]) -> None:
    backend = WeighingConstant()
    empty = np.zeros((16, 16), np.uint8)
    found = SlicePainter(backend, labels).paint(np.ones((16, 16), np.float32), [as_example(empty)])
    assert (found[..., 0] == 1).all()
    assert not found[..., 1:].any()
    assert not backend.queries  # nothing was asked of the network


def test_examples_that_come_again_are_encoded_once_for_every_group() -> None:
    label, query = random_slice(0, 40), np.zeros((16, 16), np.float32)
    backend = WeighingLookUp()
    painter = SlicePainter(backend, range(1, 41))  # three groups
    for _ in range(4):
        painter.paint(query, [as_example(label, key="again"), as_example(label)])
    assert len(backend.prompts) == 3 * (1 + 4)
    few = SlicePainter(backend, [1], cached=1)
    backend.prompts.clear()
    for key in "aabba":
        few.paint(query, [as_example(label, key=key)])
    assert len(backend.prompts) == 3


def test_examples_count_as_much_as_they_weigh() -> None:
    backend = WeighingLookUp()
    label = random_slice(0, 1)
    SlicePainter(backend, [1]).paint(np.zeros((16, 16), np.float32), [as_example(label), as_example(label, weight=0.2)])
    assert backend.weights == [[1.0, 0.2]]


def test_sure_probabilities_of_a_label_map_and_back() -> None:
    painter = SlicePainter(WeighingLookUp(), [2, 9])
    label = np.array([[0, 2, 9], [9, 0, 2]], np.uint8)
    sure = painter.one_hot(label)
    assert sure[0, 2].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(painter.decide(sure), label)
    assert painter.decide(sure).dtype == np.uint8


# --- quality ---


def probabilities(foreground: Sequence[float]) -> np.ndarray:
    one = np.array([foreground], np.float32)
    return np.stack([1 - one, one], axis=-1)


@pytest.mark.parametrize(
    ("foreground", "expected", "area"),
    [
        ((1, 1, 0, 0), 1.0, 2),
        ((0.8, 0.8, 0, 0), 2 * 1.6 / (1.6 + 2), 2),
        ((1, 0.4, 0.4, 0), 2 / 2.8, 1),
        ((0, 0, 0, 0), 1.0, 0),
        ((0.4, 0.1, 0, 0), 0.6, 0),
    ],
)
def test_the_quality_of_a_slice(foreground: tuple[float, ...], expected: float, area: int) -> None:
    label = (np.array([foreground]) > 0.5).astype(np.uint8)
    found = quality_of(probabilities(foreground), label)
    assert found.area == area
    assert found.expected == pytest.approx(expected, abs=1e-6)


def test_an_empty_slice_has_a_quality() -> None:
    assert quality_of(np.zeros((0, 0, 3), np.float32), np.zeros((0, 0), np.uint8)) == SliceQuality(1.0, 0)


def test_the_worst_slice_is_suggested_first_and_then_one_elsewhere() -> None:
    quality = {number: SliceQuality(0.99, 10) for number in range(100)}
    quality |= {20: SliceQuality(0.1, 300), 21: SliceQuality(0.1, 290), 80: SliceQuality(0.2, 200)}
    assert suggestions(quality, [50], 100, most=2) == [20, 80]
    assert len(suggestions(quality, [], 100)) == 3
    assert len(set(suggestions(quality, [], 100, most=99))) == 99


def test_only_slices_that_show_something_and_are_not_labelled_are_suggested() -> None:
    quality = {0: SliceQuality(0.2, 0), 1: SliceQuality(0.5, 9), 2: SliceQuality(0.3, 9)}
    assert suggestions(quality, [2], 3) == [1]
    assert suggestions({}, [2], 3) == []
    assert suggestions({1: SliceQuality(1.0, 9)}, [], 3) == []  # nothing to be gained


# --- the answer ---


def a_cut(axis: int = 2, number: int = 1, centre: tuple[float, float] = (1, 1)) -> Cut:
    stack = Stack(Volume.from_array(np.zeros((4, 4, 4), np.uint8)), axis, BYTES)
    return stack.cut(number, Field(centre, 2.0), 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_answer_is_written_into_the_box_and_nowhere_else(axis: int) -> None:
    answer, cut = VolumeAnswer.empty((4, 4, 4), kept_labels=1), a_cut(axis)
    answer.write(1, cut, np.full((2, 2, 2), (0.3, 0.7), np.float32), np.full((2, 2), 5, np.uint8), SliceQuality(0.5, 4))
    assert answer.probabilities is not None
    for array, around, inside in ((answer.label, 0, 5), (answer.confidence, 1, 0.4), (answer.probabilities[..., 0], 0,
                                                                                    0.7)):
        assert array[tuple(slice(1, 2) if each == axis else slice(0, 2) for each in range(3))] == pytest.approx(
            np.full_like(array, inside)[:2, :2, :1].reshape(
                [1 if each == axis else 2 for each in range(3)]), abs=1e-3)
        assert (array == around).sum() == 60
    assert answer.quality == {1: SliceQuality(0.5, 4)}


def test_a_slice_that_is_painted_again_holds_nothing_of_before() -> None:
    answer = VolumeAnswer.empty((4, 4, 4), kept_labels=1)
    for centre, label in (((1, 1), 5), ((3, 3), 6)):
        answer.write(1, a_cut(centre=centre), np.full((2, 2, 2), (0.3, 0.7), np.float32),
                     np.full((2, 2), label, np.uint8), SliceQuality(0.5, 4))
    assert np.argwhere(answer.label == 6)[:, :2].min() == 2
    assert not (answer.label == 5).any()
    assert (answer.confidence < 1).sum() == 4
    assert answer.probabilities is not None
    assert (answer.probabilities > 0).sum() == 4


def test_a_copy_of_an_answer_stays_as_it_was() -> None:
    answer = VolumeAnswer.empty((4, 4, 4))
    twin = answer.copy()
    answer.write(1, a_cut(), np.full((2, 2, 2), (0.3, 0.7), np.float32), np.ones((2, 2), np.uint8), SliceQuality(1, 4))
    assert (twin.label.any(), twin.quality, (twin.confidence == 1).all()) == (False, {}, True)


def test_the_lead_of_a_label_over_the_second() -> None:
    found = lead(np.array([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32))
    np.testing.assert_allclose(found, [0.5, 0, 1], atol=1e-6)
    assert found.dtype == np.float32


# --- looking on ---


def test_nobody_needs_to_look_on() -> None:
    watch = Watch()
    watch.check_and_tell(1, 2)
    watch.show(0, np.zeros((2, 2)))


def test_whoever_looks_on_is_told_and_may_stop() -> None:
    told: list[tuple[int, int]] = []
    stop = False
    watch = Watch(progress=lambda *at: told.append(at), cancelled=lambda: stop)
    watch.check_and_tell(1, 2)
    stop = True
    with pytest.raises(Cancelled, match="cancelled") as caught:
        watch.check_and_tell(2, 2)
    assert told == [(1, 2)]
    assert caught.value.partial is None


def test_whoever_looks_on_cannot_change_the_answer() -> None:
    answer = np.zeros((2, 2))
    Watch(painted=lambda _, shown: shown.fill(1)).show(0, answer)
    assert not answer.any()


# --- configuration ---


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("size", 8, "size must be at least 16, got 8"),
        ("size", 100, "size must be a multiple of 16, got 100"),
        ("memory", -1, "memory must be at least 0, got -1"),
        ("n_prompts", 0, "n_prompts must be at least 1"),
        ("passes", 0, "passes must be at least 1"),
        ("ensemble", 0, "ensemble must be at least 1"),
        ("stop_after", -1, "stop_after must be at least 0"),
        ("tuning", -1, "tuning must be at least 0"),
        ("trust", 1.1, "trust must be from 0 to 1, got 1.1"),
        ("prior_weight", float("nan"), "prior_weight must be from 0 to 1, got nan"),
        ("focus", 0.5, "focus must be 0 or at least 1, got 0.5"),
        ("focus", float("inf"), "focus must be 0 or at least 1, got inf"),
        ("planes", 2, "planes must be 1 or 3, got 2"),
        ("prior", "guess", "prior 'guess' is unknown: use one of off, draft, fuse, both"),
    ],
)
def test_values_out_of_range_are_refused(part: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig.preset("fast", **{part: value})


def test_presets_can_be_changed_in_parts() -> None:
    changed = EngineConfig.preset("fast", focus=2.5)
    assert changed.focus == 2.5
    assert EngineConfig.preset("fast", focus=PRESETS["fast"].focus) == PRESETS["fast"]
    with pytest.raises(ValueError, match="preset 'best' is unknown: use one of plain, fast, balanced, accurate"):
        EngineConfig.preset("best")
    with pytest.raises(ValueError, match="the engine has no part 'speed'"):
        EngineConfig.preset("fast", speed=3)


def test_parts_can_be_written_as_text() -> None:
    found = EngineConfig.named_values("plain", ["focus=2.2", "memory=3", "prior=fuse", "locate=TRUE"])
    assert (found.focus, found.memory, found.prior, found.locate) == (2.2, 3, "fuse", True)
    assert EngineConfig.named_values("accurate", []) == PRESETS["accurate"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=3", "the engine has no part 'speed': use focus, size"),
        ("", "the engine has no part ''"),
        ("focus", "focus needs a number such as .*, got ''"),
        ("focus=wide", "focus needs a number such as .*, got 'wide'"),
        ("memory=1.5", "memory needs a number such as 1, got '1.5'"),
        ("locate=1", "locate is true or false, got '1'"),
        ("prior=maybe", "prior 'maybe' is unknown"),
        ("planes=2", "planes must be 1 or 3"),
        ("focus=nan", "focus must be 0 or at least 1"),
    ],
)
def test_wrong_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig.named_values("balanced", [text])


def test_a_configuration_can_be_reported() -> None:
    for config in PRESETS.values():
        assert EngineConfig(**json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("changes", "is_plain"),
    [({}, True), ({"tuning": 9}, True), ({"n_prompts": 8}, True), ({"fill_holes": True}, True), ({"focus": 2}, False),
     ({"memory": 1}, False), ({"prior": "fuse"}, False), ({"planes": 3}, False)],
)
def test_the_network_alone_is_plain(changes: dict[str, Any], is_plain: bool) -> None:
    assert EngineConfig.preset("plain", **changes).is_plain == is_plain
    assert not EngineConfig.preset("fast").is_plain
