"""Tasks are valid once constructed, and their kind decides the rest."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mvg_core.tasks import TASK_KINDS, Task


def test_segmentation_keeps_its_labels() -> None:
    task = Task.segmentation({3: "spleen", 1: "liver", 0: "background"}, {1: (200, 30, 30)})
    assert task.is_segmentation
    assert task.interpolation == "nearest"
    assert task.foreground == (1, 3)
    assert task.labels[3] == "spleen"
    assert task.colours == {1: (200, 30, 30)}


def test_segmentation_without_labels_takes_those_of_the_prompts() -> None:
    assert Task.segmentation().foreground == ()


@pytest.mark.parametrize(
    ("task", "kind"),
    [(Task.denoising(), "denoising"), (Task.inpainting(), "inpainting"), (Task.synthesis(), "synthesis")],
)
def test_other_tasks_answer_with_an_image(task: Task, kind: str) -> None:
    assert task.kind == kind
    assert not task.is_segmentation
    assert task.interpolation == "linear"
    with pytest.raises(ValueError, match=f"'{kind}' paints an image"):
        Task(task.kind, {1: "liver"})
    with pytest.raises(ValueError, match=f"'{kind}' paints an image"):
        Task(task.kind, colours={1: (1, 2, 3)})


def test_the_four_kinds() -> None:
    assert TASK_KINDS == ("segmentation", "denoising", "inpainting", "synthesis")


def test_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'detection'.*segmentation, denoising, inpainting, synthesis"):
        Task("detection")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, "outside 0 to 255"),
        (256, "outside 0 to 255"),
        (1.0, "not an integer"),
        ("1", "not an integer"),
        (True, "not an integer"),
    ],
)
def test_impossible_labels_are_refused(label: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task.segmentation({label: "liver"})


def test_255_labels_fit_and_256_do_not() -> None:
    labels = {label: f"region {label}" for label in range(256)}
    assert len(Task.segmentation(labels).foreground) == 255
    with pytest.raises(ValueError, match="at most 255 labels"):
        Task.segmentation({**labels, 256: "region 256"})


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        ({2: (0, 0, 0)}, "label 2, which the task does not have"),
        ({1: (0, 0)}, "three integers"),
        ({1: (0, 0, 256)}, "three integers"),
        ({1: (0.5, 0.5, 0.5)}, "three integers"),
    ],
)
def test_impossible_colours_are_refused(colours: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task.segmentation({1: "liver"}, colours)


def test_a_task_is_not_changed_through_what_it_was_made_from() -> None:
    labels, colours = {1: "liver"}, {1: (1, 2, 3)}
    task = Task.segmentation(labels, colours)
    labels[300] = "nothing"
    colours[300] = (0, 0, 0)
    assert task == Task.segmentation({1: "liver"}, {1: (1, 2, 3)})


def test_label_numbers_may_come_from_an_array() -> None:
    task = Task.segmentation({label: "organ" for label in np.array([1, 2], dtype=np.uint8)})  # pyright: ignore
    assert [type(label) for label in task.labels] == [int, int]
    assert task.foreground == (1, 2)


def test_tasks_travel_between_processes() -> None:
    task = Task.segmentation({1: "liver"}, {1: (1, 2, 3)})
    assert pickle.loads(pickle.dumps(task)) == task
