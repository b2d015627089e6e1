"""Answers of the bundle's evaluator against the truth, scored and reported as `mvg evaluate` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ignite.metrics import Metric
from monai.utils.enums import CommonKeys

from mvg_core.bundle.tensors import file_names, to_volumes
from mvg_core.evaluation.cases import Case, cases_of
from mvg_core.evaluation.pictures import image_strip, label_strip
from mvg_core.evaluation.report import FILES, write_evaluation
from mvg_core.evaluation.results import CaseResult, Score, by_subject, mean_of_known, metrics_of
from mvg_core.evaluation.runner import CASES, Evaluation, read_label
from mvg_core.evaluation.scoring import ScoringRules, score_image, score_labels
from mvg_core.preview import write_picture
from mvg_core.references import Reference, choose_axis, labels_in, whole_labels
from mvg_core.tasks import Task
from mvg_core.training import distributed
from mvg_core.training.datalist import same_name
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume


class CaseScores(Metric):
    """Scores every answer in 3D: Dice, IoU, HD95 and NSD, or PSNR, SSIM and MAE.

    As a metric of an engine it is the mean of the first of these over the subjects that this process has seen; `write`
    puts those of all processes together.

    Args:
        items: what is predicted, see `images_to_predict`; each with its `label`.
        references: see `ReferenceSource`.
        output_dir: folder of the report.

    Raises:
        ValueError: an item has no answer.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], references: Callable[[], tuple[list[Reference], Task]],
                 output_dir: str | PathLike[str]) -> None:
        for item in items:
            if item.get("label") is None:
                raise ValueError(f"{item['image']} has no answer to be compared with: add its 'label' (or 'target') to "
                                 "the datalist, or run inference.json alone")
        cases = cases_of({**item, "source": None, "target": None} for item in items)
        self._items = {str(item["image"]): (item, case) for item, case in zip(items, cases, strict=True)}
        self._references, self._out = references, Path(output_dir)
        self.results: list[CaseResult] = []
        super().__init__()

    def reset(self) -> None:
        """Forget what was seen."""
        self.results = []

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Score the answers of a batch: `image` and `pred`, each with channel first and its grid.

        Raises:
            GeometryError, ValueError: the truth does not fit; the message names the file.
        """
        for one in output:
            image, answer = one[CommonKeys.IMAGE], one[CommonKeys.PRED]
            name = file_names(image[None])[0]
            if name not in self._items:
                raise ValueError(f"{name} is none of the items to be scored: pass the data set's own items")
            self.results.append(self._score(to_volumes(image[None])[0], to_volumes(answer[None])[0],
                                            *self._items[name]))

    def compute(self) -> float:
        """Mean over subjects of the first metric; NaN without any."""
        if not self.results:
            return float("nan")
        metric = metrics_of(self.results[0].kind)[0]
        return mean_of_known(list(by_subject(self.results, metric.key).values()))

    def write(self) -> dict[str, Any] | None:
        """Write the report of all processes' answers; every process has to call this.

        Returns:
            The content of summary.json; None in all processes but the first.
        """
        results = [result for part in distributed.all_values(self.results) for result in part]
        if distributed.rank() > 0 or not results:
            return None
        settings = {"references": [reference.name for reference in self._references()[0]], "by": "MONAI bundle"}
        summary = write_evaluation(Evaluation(results[0].kind, tuple(results), settings=settings), self._out)
        print(f"report: {self._out / FILES['page']}")
        return summary

    def _score(self, image: Volume, answer: Volume, item: Mapping[str, Any], case: Case) -> CaseResult:
        references, task = self._references()
        for reference in references:
            if reference.is_part_of(image):
                raise ValueError(f"{item['image']} is reference case {reference.name!r} itself, so nothing would be "
                                 "measured: take it out of the datalist or of the references")
        axis = choose_axis([references[0].checked(task)], image.geometry, task)
        score = self._labels if task.is_segmentation else self._image
        scores, remarks = score(image, answer, item, case, axis, task)
        return CaseResult(case.name, case.subject, 0, task.kind, tuple(scores),
                          tuple(reference.name for reference in references), n_slices=image.geometry.shape[axis],
                          remarks=tuple(remarks), facts={"plane": image.geometry.plane_of_axis(axis)})

    def _labels(self, image: Volume, answer: Volume, item: Mapping[str, Any], case: Case, axis: int, task: Task
                ) -> tuple[Sequence[Score], Sequence[str]]:
        truth = read_label(Path(item["label"]), case.merge)
        shown = self._shown(task)
        names = _agreed_names(case.labels or {}, task.labels, str(item["image"]))
        scored = {label: names.get(label, "") for label in shown if not case.labels or label in case.labels}
        files = f"the answer to {item['image']}", str(item["label"])
        found = score_labels(answer, truth, ScoringRules(scored), axis=axis, names=files)
        missing = sorted((set(case.labels or labels_in(truth.array)) & labels_in(truth.array)) - set(shown))
        remarks = [f"not counted, because no reference shows it: label {label}" for label in missing]
        write_picture(label_strip(image, truth, answer, axis), self._picture(case))
        return found.scores, [*found.remarks, *remarks]

    def _image(self, image: Volume, answer: Volume, item: Mapping[str, Any], case: Case, axis: int, task: Task
               ) -> tuple[Sequence[Score], Sequence[str]]:
        target = read_volume(item["label"])
        scores = score_image(answer, target, task.kind, axis=axis, shown=image,
                             names=(f"the answer to {item['image']}", str(item["label"])))
        write_picture(image_strip(image, answer, target, axis, same_units=task.kind != "synthesis"),
                      self._picture(case))
        return scores, ()

    def _shown(self, task: Task) -> list[int]:
        """The labels that the references show."""
        found = set[int]().union(*(labels_in(whole_labels(reference.label.array, f"{reference.name} label"))
                                   for reference in self._references()[0]))
        return sorted(found & set(task.foreground) if task.foreground else found)

    def _picture(self, case: Case) -> Path:
        (self._out / CASES).mkdir(parents=True, exist_ok=True)
        return self._out / CASES / f"{case.name}.0.png"


def _agreed_names(asked: Mapping[int, str], shown: Mapping[int, str], where: str) -> dict[int, str]:
    """Names of labels, once it is known that item and references call them alike.

    Raises:
        ValueError: they do not.
    """
    for label in asked.keys() & shown.keys():
        if same_name(asked[label]) != same_name(shown[label]):
            raise ValueError(f"{where}: label {label} is {asked[label]!r} in the datalist and {shown[label]!r} in the "
                             "references: give both one numbering")
    return {**shown, **asked}
