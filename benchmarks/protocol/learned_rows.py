"""Rows of trained baselines; a row exists once its weights do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.protocol.places import KEPT
from benchmarks.protocol.questions import Question
from benchmarks.protocol.rows import Row
from mvg_core.evaluation.runner import Solver
from mvg_core.predict import Prediction
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Volume
from mvg_core.weights import file_sha256

UNIVERSEG_SIZE, UNIVERSEG_SUPPORT = 128, 8
UNIVERSEG_CODE = ("benchmarks/protocol/universeg.py", "mvg_core/predict.py", "mvg_core/codecs.py",
                  "mvg_core/references.py", "mvg_core/slices.py")
UNET_CODE = ("mvg_core/slices.py", "mvg_core/intensity.py")
MULTIPLE = 16


def learned_rows() -> list[Row]:
    """Rows of what was trained."""
    def has(name: Callable[[Question], str | None]) -> Callable[[Question], bool]:
        return lambda question: (chosen := name(question)) is not None and _path(chosen).is_file()

    def settings(name: Callable[[Question], str | None]) -> Callable[[Question], Mapping[str, Any]]:
        return lambda question: {"weights": file_sha256(_path(name(question) or "")), "version": 1}

    def unet(question: Question) -> Solver:
        return UNetSolver(unet_of(question) or "", question)

    return [Row("universeg", "UniverSeg's architecture, same data", has(universeg_of), lambda _: universeg_solver(),
                UNIVERSEG_CODE, settings(universeg_of)),
            Row("unet", "U-Net for this task alone", has(unet_of), unet, UNET_CODE, settings(unet_of))]


def universeg_of(question: Question) -> str | None:
    """The name of the baseline that answers."""
    return "universeg" if question.kind == "segmentation" else None


def unet_of(question: Question) -> str | None:
    """The name of the specialist for a question; None where none may be trained."""
    if question.kind == "denoising":
        return None if question.inputs == "low_dose" else "unet:denoising"
    if question.kind == "inpainting":
        return "unet:inpainting"
    if question.kind == "synthesis":
        return f"unet:{question.name}" if question.data == "brain_ms" else None
    trained = ("headneck_ct", "nerve_us", "fetal_head_us", "breast_us")
    return f"unet:{question.data}" if question.data in trained else None


def _path(name: str):
    return KEPT / "learned" / f"{name.replace(':', '_')}.pt"


class UniverSegBackend:
    """UniverSeg's architecture in place of our network: it is asked for one colour of the prompts after the other.

    So its slices are cut, and its examples chosen, as for our network.
    """

    name, size, checkpoint_sha256, device = "universeg", UNIVERSEG_SIZE, "", "cpu"

    def __init__(self) -> None:
        from benchmarks.protocol.learned import load

        self.card: dict[str, Any] = {}
        self._network = load("universeg")

    def encode(self, image: npt.NDArray[np.float32], label: npt.NDArray[np.float32]) -> Any:
        """Keep one prompt as it is."""
        return [(image, label)]

    def merge(self, encoded: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
        """All prompts."""
        return [prompt for prompts in encoded for prompt in prompts]

    def paint(self, queries: npt.NDArray[np.float32], encoded: Any) -> npt.NDArray[np.float32]:
        """The colour of the most probable label, or black."""
        import torch

        images = torch.from_numpy(np.stack([image for image, _ in encoded]))[None, :, None]
        labels = np.stack([label for _, label in encoded])
        colours = [colour for colour in np.unique(labels.reshape(-1, 3), axis=0) if colour.any()]
        scores = np.full((len(colours) + 1, *queries.shape), 0.5, np.float32)
        for row, colour in enumerate(colours, start=1):
            shown = torch.from_numpy((labels == colour).all(-1).astype(np.float32))[None, :, None]
            for number, query in enumerate(queries):
                with torch.inference_mode():
                    logits = self._network(torch.from_numpy(np.asarray(query, np.float32))[None, None], images, shown)
                scores[row, number] = logits[0, 0].sigmoid().numpy()
        return np.stack([np.zeros(3, np.float32), *colours])[scores.argmax(axis=0)]


def universeg_solver() -> Solver:
    """With the nearest eight labelled slices as its support."""
    from mvg_core.predict import Predictor

    predictor = Predictor(UniverSegBackend(), n_prompts=UNIVERSEG_SUPPORT)

    def solve(query: Volume, references: Sequence[Reference], task: Task, *, plane: int, hole: Volume | None
              ) -> Prediction:
        return predictor.predict_volume(query, references, task, plane=plane)

    return solve


class UNetSolver:
    """A specialist; it looks at no example."""

    def __init__(self, name: str, question: Question) -> None:
        from benchmarks.protocol.learned import load

        self._network = load(name)
        self._is_synthesis = question.kind == "synthesis"

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        return self._labels(query, task) if task.is_segmentation else self._image(query, references, plane, hole)

    def _labels(self, query: Volume, task: Task) -> Prediction:
        from benchmarks.protocol.specialist import SIDE, plan_of, segmentation_scaling
        from mvg_core.references import scaled_slices

        plan = plan_of(query, SIDE)
        shown = scaled_slices(plan, query.array, range(plan.n_slices), segmentation_scaling(query))
        label = np.zeros(query.array.shape, np.uint8)
        for number, logits in enumerate(self._answers(shown)):
            native = np.stack([plan.restore_slice(channel) for channel in logits])
            plan.insert(label, number, native.argmax(axis=0).astype(np.uint8))
        label[~np.isin(label, list(task.foreground))] = 0
        return Prediction(query.with_array(label), None)

    def _image(self, query: Volume, references: Sequence[Reference], plane: int, hole: Volume | None) -> Prediction:
        from benchmarks.protocol.specialist import image_scaling_of

        mask = None if hole is None else hole.array > 0
        visible = query if mask is None else query.with_array(np.where(mask, query.array[~mask].min(), query.array))
        scaling = image_scaling_of(visible)
        slices = np.moveaxis(scaling.apply(visible.array), plane, 0)
        if mask is not None:
            slices = np.where(np.moveaxis(mask, plane, 0), np.float32(0), slices)
        painted = np.stack([one[0] for one in self._answers(slices)]).clip(0, 1)
        target = image_scaling_of(references[0].label) if self._is_synthesis else scaling
        image = target.invert(np.moveaxis(painted, 0, plane))
        if mask is not None:
            image = np.where(mask, image, query.array)
        return Prediction(query.with_array(image.astype(np.float32)), None)

    def _answers(self, slices: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """(C, H, W) for each slice (H, W), which is padded to sides that the network can halve."""
        import torch
        import torch.nn.functional as F

        height, width = slices.shape[1:]
        pad = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        found = []
        for one in slices:
            with torch.inference_mode():
                shown = F.pad(torch.from_numpy(np.ascontiguousarray(one, dtype=np.float32))[None, None], pad)
                found.append(self._network(shown)[0, :, :height, :width].numpy())
        return found
