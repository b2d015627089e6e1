"""U-Nets for one data set each: what can be had where a task is known and labelled, with no examples at inference.

Axial slices of the training list, each moved, scaled and turned a little; left and
right are not swapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvg_core.intensity import IntensityScaling, looks_like_ct
from mvg_core.predict import CT_IMAGE_WINDOW_HU
from mvg_core.references import scaled_slices
from mvg_core.slices import SlicePlan
from mvg_core.training.datasets import TrainingItem, read_training_set
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume

TURN_DEG, SCALE, SHIFT = 12.0, 0.15, 0.06
SIDE = 128
"""Of the training slices of segmentations in pixels."""
IMAGE_SIDE = 192
"""Of the training slices of image-to-image tasks."""


@dataclass(frozen=True)
class Lesson:
    """What a specialist is trained for.

    Attributes:
        data: name of the data set.
        labels: number of labels with the background; 0 for image to image.
        source: contrast that is shown; None takes the only one.
        target: contrast to be painted.
    """

    data: str
    labels: int = 0
    source: str | None = None
    target: str | None = None

    @property
    def side(self) -> int:
        """Of the training slices in pixels."""
        return SIDE if self.labels else IMAGE_SIDE


LESSONS = {"headneck_ct": Lesson("headneck_ct", 8), "nerve_us": Lesson("nerve_us", 3),
           "fetal_head_us": Lesson("fetal_head_us", 2), "breast_us": Lesson("breast_us", 2),
           **{f"brain_{source}_{target}": Lesson("brain_ms", 0, source, target)
              for source, target in (("t1", "t2"), ("t1", "flair"), ("t2", "t1"))}}


def read_slices(lesson: Lesson, data: Path) -> tuple[Tensor, Tensor]:
    """All training slices: shown float32 (N, 1, S, S) in [0, 1], and what they should become.

    That is uint8 labels (N, 1, S, S), or images float32 (N, 1, S, S).
    """
    contrasts = None if lesson.source is None else (lesson.source, str(lesson.target))
    items = read_training_set(data / lesson.data, "training", contrasts).items
    shown, answers = [], []
    for item in items:
        pair = _pair(item, lesson)
        if pair is not None:
            shown.append(pair[0])
            answers.append(pair[1])
    return torch.from_numpy(np.concatenate(shown))[:, None], torch.from_numpy(np.concatenate(answers))[:, None]


def _pair(item: TrainingItem, lesson: Lesson) -> tuple[np.ndarray, np.ndarray] | None:
    if lesson.labels:
        image = read_volume(next(iter(item.images.values())))
        plan = plan_of(image, lesson.side)
        assert item.label is not None
        label = plan.extract_label(read_volume(item.label).array.astype(np.uint8), range(plan.n_slices))
        return scaled_slices(plan, image.array, range(plan.n_slices), segmentation_scaling(image)), label
    if lesson.source not in item.images or lesson.target not in item.images:
        return None
    source, target = read_volume(item.images[str(lesson.source)]), read_volume(item.images[str(lesson.target)])
    plan = plan_of(source, lesson.side)
    first, second = (scaled_slices(plan, one.array, range(plan.n_slices), image_scaling_of(one))
                     for one in (source, target))
    seen = first.mean(axis=(1, 2)) > 0.02
    return first[seen], second[seen]


def plan_of(image: Volume, side: int) -> SlicePlan:
    """Whole slices on a square: axial ones, of a picture the picture itself."""
    geometry = image.geometry
    flat = [axis for axis in range(3) if geometry.shape[axis] == 1]
    return SlicePlan.for_volume(geometry, flat[0] if flat else "axial", size=side)


def segmentation_scaling(image: Volume) -> IntensityScaling:
    """As for our network."""
    return IntensityScaling.for_volume(image.array)


def image_scaling_of(image: Volume) -> IntensityScaling:
    """As for our network."""
    return IntensityScaling.for_volume(image.array, window=CT_IMAGE_WINDOW_HU if looks_like_ct(image.array) else None)


def drawn(shown: Tensor, answers: Tensor, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of slices with what they should become, moved alike."""
    rows = torch.randint(len(shown), (batch,), generator=random)
    turn, scale, *shift = (torch.rand((4, batch), generator=random) * 2 - 1).unbind()
    angle, size = turn * np.deg2rad(TURN_DEG), torch.exp(scale * SCALE)
    cosine, sine = torch.cos(angle) * size, torch.sin(angle) * size
    matrix = torch.stack([torch.stack([cosine, -sine, shift[0] * SHIFT * 2], -1),
                          torch.stack([sine, cosine, shift[1] * SHIFT * 2], -1)], 1)
    grid = F.affine_grid(matrix, [batch, 1, *shown.shape[2:]], align_corners=False)
    images = F.grid_sample(shown[rows], grid, mode="bilinear", align_corners=False)
    mode = "nearest" if answers.dtype == torch.uint8 else "bilinear"
    moved = F.grid_sample(answers[rows].float(), grid, mode=mode, align_corners=False)
    gamma = torch.exp((torch.rand((batch, 1, 1, 1), generator=random) - 0.5) * 0.4)
    return (images**gamma if answers.dtype == torch.uint8 else images), moved


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy + soft Dice of every label that the batch shows."""
    truth = labels[:, 0].round().long()
    one_hot = F.one_hot(truth, logits.shape[1]).movedim(-1, 1).float()
    probability = logits.softmax(1)
    overlap = 2 * (probability * one_hot).sum((0, 2, 3)) + 1
    size = probability.sum((0, 2, 3)) + one_hot.sum((0, 2, 3)) + 1
    return F.cross_entropy(logits, truth) + (1 - overlap / size)[1:].mean()
