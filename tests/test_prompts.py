"""Prompts are valid once constructed, and the nearest ones serve a slice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvg_core.prompts import Prompt, Support, choose
from mvg_core.tasks import Task

IMAGE = np.array([[0.0, 0.5, 1.0], [0.25, 0.75, 1.0]])
LABELS = np.array([[0, 1, 1], [0, 0, 2]], dtype=np.uint8)


def support_at(*positions: float | None) -> Support:
    return Support(tuple(Prompt(IMAGE, LABELS, "a", position) for position in positions), Task.segmentation())


# --- Prompt ---


def test_a_prompt_keeps_image_as_float32_and_label_as_given() -> None:
    prompt = Prompt(IMAGE, LABELS.astype(np.int16), "a", 3.5)
    assert prompt.image.dtype == np.float32
    assert prompt.label.dtype == np.int16
    assert (prompt.subject, prompt.position_mm, prompt.hole, prompt.is_segmented) == ("a", 3.5, None, True)


def test_a_prompt_may_be_labelled_with_an_image() -> None:
    prompt = Prompt(IMAGE, 1 - IMAGE)
    assert prompt.label.dtype == np.float32
    assert not prompt.is_segmented


def test_a_yes_or_no_label_is_a_segmentation() -> None:
    prompt = Prompt(IMAGE, LABELS > 0)
    assert prompt.label.dtype == np.uint8
    assert prompt.label.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert prompt.is_segmented


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": IMAGE[None]}, r"one slice \(H, W\)"),
        ({"image": np.zeros((0, 3)), "label": np.zeros((0, 3), int)}, r"one slice \(H, W\)"),
        ({"label": LABELS.T}, r"\(2, 3\).*\(3, 2\)"),
        ({"image": IMAGE * 255}, r"'p7' image must lie in \[0, 1\], got 0 to 255"),
        ({"image": IMAGE - 0.5}, r"image must lie in \[0, 1\]"),
        ({"image": np.where(IMAGE > 0.9, np.nan, IMAGE)}, "nan"),
        ({"label": IMAGE * 2}, r"label must lie in \[0, 1\]"),
        ({"label": IMAGE - 1}, r"label must lie in \[0, 1\]"),
        ({"position_mm": float("nan")}, "position nan"),
        ({"position_mm": float("inf")}, "position inf"),
        ({"hole": np.zeros((3, 2), bool)}, r"hole must be bool of shape \(2, 3\)"),
        ({"hole": np.zeros((2, 3))}, "got float64"),
    ],
)
def test_impossible_prompts_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompt(**{"image": IMAGE, "label": LABELS, "subject": "p7", **changes})


def test_rounding_beyond_the_range_is_no_error() -> None:
    assert Prompt(IMAGE + 1e-6, LABELS).image.max() > 1


# --- Support ---


def test_a_support_takes_any_sequence_of_prompts() -> None:
    support = Support([Prompt(IMAGE, LABELS)], Task.segmentation())  # pyright: ignore[reportArgumentType]
    assert isinstance(support.prompts, tuple)


def test_an_empty_support_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        Support((), Task.segmentation())


def test_prompts_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), \(3, 2\)"):
        Support((Prompt(IMAGE, LABELS), Prompt(IMAGE.T, LABELS.T)), Task.segmentation())


def test_prompt_labels_must_fit_the_task() -> None:
    with pytest.raises(ValueError, match=r"integer label map.*'a' has float32"):
        Support((Prompt(IMAGE, IMAGE, "a"),), Task.segmentation())
    with pytest.raises(ValueError, match=r"'denoising' needs an image.*uint8"):
        Support((Prompt(IMAGE, IMAGE), Prompt(IMAGE, LABELS)), Task.denoising())


# --- choose ---


@pytest.mark.parametrize(
    ("positions", "query", "n", "expected"),
    [
        ((0, 10, 20, 30), 12, 1, (1,)),
        ((0, 10, 20, 30), 12, 3, (1, 2, 0)),  # distances 12, 2, 8, 18
        ((30, -10, 20), -5, 2, (1, 2)),
        ((10, 14, 10, 14), 12, 3, (0, 1, 2)),  # all 2 away: in their order
        ((14, 10, 14, 10), 12, 4, (0, 1, 2, 3)),
        ((5, 4), 4, 10, (1, 0)),  # more than there are: all
        ((None, 8, None, 9), 9, 3, (3, 1, 0)),  # without position: last
        ((3, 2, 1), None, 2, (0, 1)),  # query without position: in their order
    ],
)
def test_choose_takes_the_nearest(positions, query: float | None, n: int, expected: tuple[int, ...]) -> None:
    assert choose(support_at(*positions), query, n) == expected


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8), st.integers(-6, 6), st.integers(1, 10))
def test_no_prompt_left_out_is_nearer_than_a_chosen_one(positions: list[int], query: int, n: int) -> None:
    chosen = choose(support_at(*positions), query, n)
    assert len(chosen) == len(set(chosen)) == min(n, len(positions))
    keys = [(abs(position - query), index) for index, position in enumerate(positions)]
    assert [keys[index] for index in chosen] == sorted(keys)[:n]


def test_choose_refuses_no_prompt_and_no_position() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        choose(support_at(0), 0, 0)
    with pytest.raises(ValueError, match="nan"):
        choose(support_at(0), float("nan"), 1)
