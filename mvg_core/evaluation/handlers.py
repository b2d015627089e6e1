"""The report for MONAI's engines: a handler that scores every subject of a `SupervisedEvaluator`.

In a bundle's configuration, among the handlers:
`{"_target_": "mvg_core.evaluation.handlers.SubjectReport", "out": "@output_dir", "labels": {"1": "liver"}}`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import decollate_batch
from monai.utils.dist import string_list_all_gather

from mvg_core.evaluation.cases import file_name, stem
from mvg_core.evaluation.pictures import image_strip, label_strip
from mvg_core.evaluation.plots import need_matplotlib
from mvg_core.evaluation.report import write_evaluation
from mvg_core.evaluation.results import CaseResult, by_subject, mean_of_known, metrics_of
from mvg_core.evaluation.runner import CASES, Evaluation, make_folder
from mvg_core.evaluation.scoring import ScoringRules, score_image, score_labels
from mvg_core.preview import Picture, write_picture
from mvg_core.slices import choose_plane
from mvg_core.tasks import Task, TaskKind
from mvg_core.volume import Geometry, Volume


class SubjectReport:
    """Collects the scores of every subject while an evaluator runs, and writes the report at its end.

    Reads `pred` and `label` (for pictures `image`, where it is there; for calibration `confidence`) of the engine's
    output, after postprocessing: channel-first tensors of one slice or volume; a `MetaTensor` brings its affine and its
    file name, everything else is taken to have 1 mm. Segmentations: one channel holds label numbers; several are
    one-hot or probabilities, background first. Images: one channel; of several, their mean. An inpainted image brings
    its hole as `hole`.

    At the end the means over subjects are also put into `engine.state.metrics`, as `subject_dice` and so on. Where
    several processes evaluate, the first writes for all.

    Args:
        out: folder of the report; an earlier report in it is replaced.
        task: kind of the task.
        labels: number -> name of the labels that count; None takes all that occur.
        tolerance_mm: of the NSD.
        distances: see `ScoringRules`.
    """

    def __init__(self, out: Path | str, *, task: TaskKind = "segmentation", labels: Mapping[Any, str] | None = None,
                 tolerance_mm: float = 2.0, distances: bool | None = None) -> None:
        Task(task)  # refuses an unknown kind now, not after the first epoch
        self._out = Path(out)
        self._kind: TaskKind = task
        names = None if not labels else {int(number): str(name) for number, name in labels.items() if int(number)}
        self._rules = ScoringRules(names, tolerance_mm, distances)
        self._results: list[CaseResult] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, _: Engine) -> None:
        need_matplotlib()
        make_folder(self._out / CASES)
        self._results = []

    def _collect(self, engine: Engine) -> None:
        samples, items = (_one_by_one(part) for part in (engine.state.output, engine.state.batch))
        for number, sample in enumerate(samples):
            item = items[number] if len(items) == len(samples) and isinstance(items[number], Mapping) else {}
            self._add(sample, item)

    def _add(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> None:
        missing = [key for key in ("pred", "label") if not isinstance(sample.get(key), torch.Tensor)]
        if missing:
            raise ValueError(f"the evaluator's output has no {missing[0]!r}: name prediction and truth 'pred' and "
                             "'label'")
        subject = item.get("subject") or sample.get("subject")
        case = file_name(_file_of({**item, **sample}) or str(subject or f"case{len(self._results)}_{idist.get_rank()}"))
        same = sum(result.case.partition("~")[0] == case for result in self._results)
        case = f"{case}~{idist.get_rank()}.{same}" if same else case  # slices of one file
        subject = str(subject or case.partition("~")[0])
        result, picture = self._score(sample, case, subject)
        write_picture(picture, self._out / CASES / f"{result.key}.png")
        self._results.append(result)

    def _score(self, sample: Mapping[str, Any], case: str, subject: str) -> tuple[CaseResult, Picture]:
        is_label = self._kind == "segmentation"
        prediction, truth = (_volume(sample[key], is_label=is_label) for key in ("pred", "label"))
        if prediction.array.shape != truth.array.shape:
            raise ValueError(f"{case}: prediction and truth have shapes {prediction.array.shape} and "
                             f"{truth.array.shape}: invert the transforms of both, or of neither")
        prediction, image = truth.with_array(prediction.array), _like(sample.get("image"), truth)
        axis = choose_plane(truth.geometry)
        if is_label:
            sure = _like(sample.get("confidence"), truth)
            found = score_labels(prediction, truth, self._rules, axis=axis, confidence=sure)
            picture = label_strip(image, truth, prediction, axis, confidence=sure)
            return CaseResult(case, subject, 0, self._kind, found.scores, (), found.calibration,
                              n_slices=truth.geometry.shape[axis], remarks=found.remarks), picture
        mask = _like(sample.get("hole"), truth)
        if self._kind == "inpainting" and mask is None:
            raise ValueError(f"{case}: the evaluator's output has no 'hole': inpainting is scored inside it")
        hole = None if mask is None else mask.array > 0
        scores = score_image(prediction, truth, self._kind, axis=axis, shown=image, hole=hole)
        picture = image_strip(image or prediction, prediction, truth, axis, same_units=self._kind != "synthesis",
                              hole=hole)
        return CaseResult(case, subject, 0, self._kind, scores, n_slices=truth.geometry.shape[axis]), picture

    def _finish(self, engine: Engine) -> None:
        results = _of_all_processes(self._results)
        for metric in metrics_of(self._kind):
            mean = mean_of_known(list(by_subject(results, metric.key).values()))
            engine.state.metrics[f"subject_{metric.key}"] = mean
        evaluation = Evaluation(self._kind, tuple(results), settings={"tolerance_mm": self._rules.tolerance_mm})
        if idist.get_rank() == 0:
            write_evaluation(evaluation, self._out)


def _of_all_processes(results: Sequence[CaseResult]) -> list[CaseResult]:
    if idist.get_world_size() == 1:
        return list(results)
    gathered = string_list_all_gather([json.dumps(result.to_json()) for result in results])
    # A sampler pads the last batch with cases that another process has too.
    unique = {one.key: one for one in (CaseResult.from_json(json.loads(text)) for text in gathered)}
    return list(unique.values())


def _volume(tensor: torch.Tensor, *, is_label: bool) -> Volume:
    """(C, H, W[, D]) as a volume; a slice gets a third axis."""
    array = np.asarray(tensor.detach().float().cpu().numpy())
    if array.ndim not in (3, 4):
        raise ValueError(f"needed a channel-first slice or volume (C, H, W[, D]), got shape {array.shape}")
    if array.shape[0] > 1:
        array = array.argmax(axis=0) if is_label else array.mean(axis=0)
    else:
        array = np.rint(array[0]) if is_label else array[0]
    array = array[..., None] if array.ndim == 2 else array
    return Volume(array, Geometry(array.shape, _affine(tensor)))


def _affine(tensor: torch.Tensor) -> np.ndarray:
    affine = getattr(tensor, "affine", None)
    if affine is None:
        return np.eye(4)
    affine = np.asarray(affine.detach().cpu().numpy(), dtype=np.float64)
    if affine.shape == (4, 4):
        return affine
    full = np.eye(4)  # a slice: (3, 3)
    full[:2, :2], full[:2, 3] = affine[:2, :2], affine[:2, 2]
    return full


def _like(tensor: Any, truth: Volume) -> Volume | None:
    """An image on the grid of the truth; None if there is none, or it shows something else."""
    if not isinstance(tensor, torch.Tensor) or (*tensor.shape[1:], 1)[:3] != truth.geometry.shape:
        return None
    return truth.with_array(_volume(tensor, is_label=False).array)


def _one_by_one(batch: Any) -> list[Any]:
    """The samples of a batch, whether MONAI has taken it apart or not."""
    if isinstance(batch, dict):
        return list(decollate_batch(batch))  # type: ignore[arg-type]
    return list(batch) if isinstance(batch, Sequence) else []


def _file_of(sample: Mapping[str, Any]) -> str:
    """Name of the file, without suffix, that image, truth or prediction came from; "" if unknown."""
    for key in ("image", "label", "pred"):
        file = getattr(sample.get(key), "meta", {}).get("filename_or_obj")
        if isinstance(file, (list, tuple)):
            file = file[0] if file else None
        if file:
            return stem(Path(str(file)))
    return ""
