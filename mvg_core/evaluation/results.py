"""What is kept of every case: its scores, where they come from, and what went wrong.

A *case* is one answer to one query. A subject may have several: items of the data set (two phases of one heart), and
draws of references. Everything here goes to JSON and back, so that a run can be resumed and a table be read later.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from mvg_core.evaluation.calibration import Reliability
from mvg_core.tasks import TaskKind


@dataclass(frozen=True)
class Metric:
    """How a number is shown.

    Attributes:
        key: name of the field in the scores.
        title: for people.
        higher_is_better: else lower is.
        digits: after the point.
    """

    key: str
    title: str
    higher_is_better: bool
    digits: int


SEGMENTATION_METRICS = (Metric("dice", "Dice", True, 3), Metric("iou", "IoU", True, 3),
                        Metric("hd95_mm", "HD95 (mm)", False, 2), Metric("nsd", "NSD", True, 3),
                        Metric("empty_slices_filled", "empty slices filled", False, 3))
IMAGE_METRICS = (Metric("psnr_db", "PSNR (dB)", True, 2), Metric("ssim", "SSIM", True, 3),
                 Metric("mae", "MAE", False, 4))


def metrics_of(kind: TaskKind) -> tuple[Metric, ...]:
    """The metrics of a task; the first ranks subjects."""
    return SEGMENTATION_METRICS if kind == "segmentation" else IMAGE_METRICS


@dataclass(frozen=True)
class LabelScore:
    """One label of one case; NaN is "not counted", see `metrics`.

    Attributes:
        label: its number.
        name: its name, or "".
        dice: 0 to 1.
        iou: 0 to 1.
        hd95_mm: in mm.
        nsd: 0 to 1.
        empty: "", "both", "truth" or "prediction".
        empty_slices: slices that truly do not show the label.
        empty_slices_filled: the share of these in which it was predicted; NaN if there are none.
        volume_ml: of the prediction; NaN for pictures.
        truth_ml: of the truth; NaN for pictures.
        confidence: mean over the voxels that were given this label; NaN if there are none, or it is unknown.
    """

    label: int
    name: str
    dice: float
    iou: float
    hd95_mm: float
    nsd: float
    empty: str
    empty_slices: int
    empty_slices_filled: float
    volume_ml: float
    truth_ml: float
    confidence: float


@dataclass(frozen=True)
class ImageScore:
    """One part of one painted image.

    Attributes:
        region: "whole", "hole" (inpainting), or "inside" (voxels of the target above its lowest value).
        psnr_db: see `metrics`.
        ssim: 0 to 1.
        mae: 0 to 1.
        given_psnr_db: of what was shown to the network, where it is comparable (denoising, inpainting); else NaN.
        given_ssim: likewise.
        given_mae: likewise.
    """

    region: str
    psnr_db: float
    ssim: float
    mae: float
    given_psnr_db: float = math.nan
    given_ssim: float = math.nan
    given_mae: float = math.nan


Score = LabelScore | ImageScore


@dataclass(frozen=True)
class CaseResult:
    """One answer to one query, scored.

    Attributes:
        case: name of the item, unique in its list.
        subject: whom it shows.
        draw: which draw of references, from 0.
        kind: of the task.
        scores: one for each label, or for each region.
        references: names of the solved examples.
        calibration: voxels by confidence: "all", and "labelled" (with a label in truth or prediction).
        seconds: that the prediction took; NaN if it was not made here.
        n_slices: that were predicted.
        remarks: what deserves a look.
        facts: more about how the case was made.
    """

    case: str
    subject: str
    draw: int
    kind: TaskKind
    scores: tuple[Score, ...]
    references: tuple[str, ...] = ()
    calibration: Mapping[str, Reliability] = field(default_factory=dict)
    seconds: float = math.nan
    n_slices: int = 0
    remarks: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique among all cases and draws; a file name."""
        return f"{self.case}.{self.draw}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        return plain | {
            "scores": [_without_nan(asdict(score)) for score in self.scores],
            "calibration": {name: part.to_json() for name, part in self.calibration.items()},
            "seconds": None if math.isnan(self.seconds) else self.seconds,
            "references": list(self.references), "remarks": list(self.remarks), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CaseResult:
        """The inverse of `to_json`.

        Raises:
            ValueError: it is something else.
        """
        try:
            kind = LabelScore if values["kind"] == "segmentation" else ImageScore
            return cls(**{
                **values, "scores": tuple(kind(**_with_nan(score)) for score in values["scores"]),
                "calibration": {name: Reliability.from_json(part) for name, part in values["calibration"].items()},
                "seconds": math.nan if values["seconds"] is None else values["seconds"],
                "references": tuple(values["references"]), "remarks": tuple(values["remarks"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no scores of a case ({error})") from error


@dataclass(frozen=True)
class Failure:
    """A case that could not be solved or scored.

    Attributes:
        case: its name.
        draw: of references.
        reason: one line.
    """

    case: str
    draw: int
    reason: str


def to_csv(results: Iterable[CaseResult]) -> str:
    """A table with one row for each case and label (or region); what is not counted is left empty."""
    results = list(results)
    kinds = {result.kind for result in results}
    if len(kinds) > 1:
        raise ValueError(f"one table holds one task, got {', '.join(sorted(kinds))}")
    score = LabelScore if not kinds or kinds == {"segmentation"} else ImageScore
    columns = ["case", "subject", "draw", *(one.name for one in fields(score)), "seconds", "references"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for result in results:
        shared = {"case": result.case, "subject": result.subject, "draw": result.draw, "seconds": result.seconds,
                  "references": " ".join(result.references)}
        for one in result.scores:
            writer.writerow({key: _cell(value) for key, value in {**shared, **asdict(one)}.items()})
    return text.getvalue()


def by_subject(results: Iterable[CaseResult], metric: str, part: str | None = None) -> dict[str, float]:
    """One number for each subject: the mean over its cases, draws and (unless `part` is given) labels that count.

    Args:
        results: of one evaluation.
        metric: name of a field in the scores.
        part: only this label (its number as text) or this region; None takes all labels, of images the main region.

    Returns:
        Subject -> value; NaN where nothing counts.
    """
    values: dict[str, list[float]] = {}
    for result in results:
        scores = scores_of(result, part)
        values.setdefault(result.subject, []).extend(float(getattr(score, metric)) for score in scores)
    return {subject: mean_of_known(numbers) for subject, numbers in values.items()}


def scores_of(result: CaseResult, part: str | None = None) -> list[Score]:
    """Scores of one label or region; None: all labels, or the region that the task is about."""
    if part is None and result.kind != "segmentation":
        part = main_region(result.kind)
    return [score for score in result.scores if part is None or part == part_of(score)]


def part_of(score: Score) -> str:
    """The label's number as text, or the region."""
    return str(score.label) if isinstance(score, LabelScore) else score.region


def main_region(kind: TaskKind) -> str:
    """What an image-to-image task is about."""
    if kind not in get_args(TaskKind) or kind == "segmentation":
        raise ValueError(f"{kind!r} paints no image")
    return "hole" if kind == "inpainting" else "whole"


def mean_of_known(values: Sequence[float]) -> float:
    """Mean without NaN; NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in values.items()}
