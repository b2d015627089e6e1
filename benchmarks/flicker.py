"""Between-slice flicker and accuracy of denoising, inpainting and synthesis of whole volumes, part by part.

    python benchmarks/flicker.py [--data ../shared/data] [--threads 1] [--slices 12] [--only NAME ...]

Queries come from the validation lists, their examples from the lists of references; `detail` and `jumps` are those of
`mvg_core.evaluation.flicker`. One query is given an example that shows a larger part of the body, as
happens with files of other scanners: positions in the volume then mean different anatomy. Writes
benchmarks/results/flicker.json and flicker.md. Seconds are those of the processor (all threads together).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.engine.images import OFF, Consistency, solve_images
from mvg_core.evaluation.cases import Case, read_cases, read_references
from mvg_core.evaluation.flicker import flicker
from mvg_core.evaluation.queries import with_noise
from mvg_core.evaluation.scoring import image_scaling, score_image
from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.report import write_text
from mvg_core.tasks import Task, TaskKind
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume

RESULTS = Path(__file__).parent / "results"
SIGMA = 0.1
SEEN = 0.05
"""What is brighter, on [0, 1], is body."""
SETTINGS: dict[str, Consistency] = {
    "each slice by itself": OFF,
    "fixed prompts": Consistency("fixed"),
    "crossfade": Consistency("crossfade"),
    "3 nearest + 5 spread": Consistency(anchors=5),
    "no seam": Consistency(seamless=True),
    "no seam, smooth": Consistency(seamless=True, smooth=True),
}
"""Of which seams are for inpainting only, and the changes of prompts for all."""


@dataclass(frozen=True)
class Question:
    """What is asked: a task on one image of a data set."""

    name: str
    kind: TaskKind
    dataset: str
    source: str
    target: str | None = None
    reference: int = 0
    query: int = 0
    first: float = 0.3
    is_aligned: bool = True


QUESTIONS = [
    Question("brain T1", "denoising", "brain_ms", "t1", reference=1),
    Question("heart", "denoising", "heart_acdc", "image", query=0, first=0),
    Question("head and neck CT", "denoising", "headneck_ct", "image", first=0.4),
    Question("brain T1", "inpainting", "brain_ms", "t1", reference=1),
    Question("heart", "inpainting", "heart_acdc", "image", query=4, first=0),
    Question("head and neck CT", "inpainting", "headneck_ct", "image", first=0.4),
    Question("brain T1 to T2", "synthesis", "brain_ms", "t1", "t2", reference=1),
    Question("brain T2 to FLAIR", "synthesis", "brain_ms", "t2", "flair", reference=1),
    Question("brain T1 to T2, other part", "synthesis", "brain_ms", "t1", "t2", reference=1, is_aligned=False),
]


def main() -> None:
    """Measure all, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slices", type=int, default=12, help="neighbouring slices of each query")
    parser.add_argument("--only", nargs="+", help="names of settings")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    predictor = Predictor.load("mvg_compact", threads=options.threads)
    rows = []
    for question in QUESTIONS:
        for row in measured(predictor, question, options.data, options.slices, options.only):
            print(json.dumps(row), flush=True)
            rows.append(row)
    report = {"checkpoint_sha256": predictor.backend.checkpoint_sha256, "slices": options.slices, "sigma": SIGMA,
              "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "flicker.json", json.dumps(report, indent=1) + "\n")
    write_text(RESULTS / "flicker.md", table(rows))


def measured(predictor: Predictor, question: Question, data: Path, n_slices: int, only: list[str] | None
             ) -> Iterator[dict[str, Any]]:
    """One row for every setting that concerns the task."""
    query, target, hole, references, axis = asked(question, data, n_slices)
    scaling = image_scaling(target.array, question.name)
    truth = scaling.apply(target.array)
    where = truth > SEEN if hole is None else hole
    task = Task(question.kind)
    for name, setting in SETTINGS.items():
        if (only and name not in only) or (setting.seamless and task.kind != "inpainting"):
            continue
        started = time.process_time()
        found = solve_images(predictor, query, references, task, plane=axis, consistency=setting, tiling=None,
                             hole=None if hole is None else query.with_array(hole.astype(np.uint8))).volume
        seconds = time.process_time() - started
        score = score_image(found, target, task.kind, axis=axis, shown=query, hole=hole)[0 if hole is None else -1]
        agreement = flicker(scaling.apply(found.array), truth, axis, where)
        is_default = setting == Consistency.for_task(task)
        yield {"task": task.kind, "data": question.name, "setting": name, "is_default": is_default,
               "psnr_db": round(score.psnr_db, 3), "ssim": round(score.ssim, 4), "detail": round(agreement.detail, 4),
               "jumps": round(agreement.jumps, 5), "seconds_per_slice": round(seconds / query.geometry.shape[axis], 3)}


def asked(question: Question, data: Path, n_slices: int
          ) -> tuple[Volume, Volume, npt.NDArray[np.bool_] | None, list[Reference], int]:
    """Query, target, hole, references and axis."""
    path = data / question.dataset / "dataset.json"
    case, other = read_cases(path, "validation")[question.query], read_references(path)[question.reference]
    target, shown = read_pair(case, question)
    axis = target.geometry.anatomical_axis("axial")
    total = target.geometry.shape[axis]
    start = int(question.first * total)
    part = (start / total, min(1.0, (start + n_slices) / total))
    target, shown = (some_slices(volume, part) for volume in (target, shown))
    example_target, example = read_pair(other, question)
    if question.is_aligned:
        example_target, example = (some_slices(volume, part) for volume in (example_target, example))
    hole, query = None, shown
    if question.kind == "denoising":
        query = with_noise(target, SIGMA, case.name)
        example = with_noise(example, SIGMA, f"example {other.name}")
    elif question.kind == "inpainting":
        hole = tunnels(target.geometry, axis)
        query = target.with_array(np.where(hole, target.array.min(), target.array))
    return query, target, hole, [Reference(example, example_target, other.name)], axis


def read_pair(case: Case, question: Question) -> tuple[Volume, Volume]:
    """What is to be painted, and what is shown of it."""
    shown = read_volume(case.images[question.source])
    return (shown if question.target is None else read_volume(case.images[question.target])), shown


def some_slices(volume: Volume, part: tuple[float, float]) -> Volume:
    """The axial slices of a part of the volume, 0 to 1 along its index axis."""
    axis = volume.geometry.anatomical_axis("axial")
    first, last = (round(share * volume.geometry.shape[axis]) for share in part)
    chosen: list[slice] = [slice(None)] * 3
    chosen[axis] = slice(first, last)
    array, affine, origin = volume.array[tuple(chosen)], volume.geometry.affine.copy(), [0, 0, 0]
    origin[axis] = first
    affine[:3, 3] = volume.geometry.index_to_world(origin)
    return Volume(array, Geometry(array.shape, affine))


def tunnels(geometry: Geometry, axis: int) -> npt.NDArray[np.bool_]:
    """Two ellipsoids that go through most of the slices: what is missing in one slice is missing in the next, too."""
    side_mm = max(n * mm for other, (n, mm) in enumerate(zip(geometry.shape, geometry.spacing_mm, strict=True))
                  if other != axis)
    hole = np.zeros(geometry.shape, bool)
    for place, radius in ((-0.12, 0.09), (0.13, 0.07)):
        distance = np.zeros(geometry.shape)
        for other, (n, mm) in enumerate(zip(geometry.shape, geometry.spacing_mm, strict=True)):
            along = (np.arange(n) - (n - 1) / 2) * mm
            length = 0.45 * n * mm if other == axis else radius * side_mm
            offset = 0.0 if other == axis else place * n * mm
            shape = [1, 1, 1]
            shape[other] = n
            distance += (((along - offset) / length) ** 2).reshape(shape)
        hole |= distance < 1
    return hole


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every row, defaults in bold, and means by task."""
    lines = ["| task | data | setting | PSNR dB | SSIM | detail | jumps x 1000 | s per slice |", "|---" * 8 + "|"]
    shown: list[Mapping[str, Any]] = list(rows)
    for kind in dict.fromkeys(row["task"] for row in rows):
        for name in dict.fromkeys(row["setting"] for row in rows if row["task"] == kind):
            of_setting = [row for row in rows if (row["task"], row["setting"]) == (kind, name)]
            means = {key: float(np.mean([row[key] for row in of_setting])) for key in (
                "psnr_db", "ssim", "detail", "jumps", "seconds_per_slice")}
            shown.append({**of_setting[0], **means, "data": "mean"})
    for row in shown:
        name = f"**{row['setting']}**" if row["is_default"] else row["setting"]
        lines.append(f"| {row['task']} | {row['data']} | {name} | {row['psnr_db']:.2f} | {row['ssim']:.4f} | "
                     f"{row['detail']:.3f} | {1000 * row['jumps']:.1f} | {row['seconds_per_slice']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
