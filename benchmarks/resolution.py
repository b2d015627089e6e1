"""What full resolution is worth: borders of segmentations painted again in tiles, and images painted in tiles.

    python benchmarks/resolution.py [--data ../shared/data] [--threads 1]

Segmentation: slices are painted at the network's size, brought to the image's own pixels, and refined by
`mvg_core.engine.refinement`. Heart: the example is the neighbouring slice of the same subject; chest X-ray: two other
subjects. Spacing is nominal (heart 1.5 mm, X-ray 1 mm a pixel). Images: whole slices at their own resolution, coarser,
or in tiles. Queries come from validation lists. Writes benchmarks/results/resolution.json and resolution.md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from mvg_core.engine.images import OFF, Tiles, solve_images
from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.refinement import Refinement, refine_slice
from mvg_core.evaluation.cases import Case, read_cases, read_references
from mvg_core.evaluation.metrics import overlap, surface_distances
from mvg_core.evaluation.queries import random_holes, with_noise
from mvg_core.evaluation.runner import read_label
from mvg_core.evaluation.scoring import score_image
from mvg_core.intensity import IntensityScaling
from mvg_core.predict import Predictor
from mvg_core.references import Reference, scaled_slices
from mvg_core.report import write_text
from mvg_core.slices import SlicePlan
from mvg_core.tasks import Task, TaskKind
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume

RESULTS = Path(__file__).parent / "results"
FOCUS, FOCUSED_SIZE = 1.7, 128
TILES = [Refinement(share=1), Refinement(share=0.5), Refinement(share=1, draft=True)]
NAMES = ["tiles", "tiles and coarse, averaged", "tiles with a draft"]


@dataclass(frozen=True)
class Slice:
    """One slice of a case at the image's own pixels, and how to cut it coarser."""

    image: Volume
    label: Volume
    axis: int
    number: int

    def plan(self, size: int | None = None) -> SlicePlan:
        """So many pixels a side; None: the image's own pixels."""
        mm, side = self.image.geometry.spacing_mm[(self.axis + 1) % 3], self.side
        return SlicePlan.for_volume(self.image.geometry, self.axis, size=size or side,
                                    spacing_mm=mm * side / (size or side))

    @property
    def side(self) -> int:
        """Pixels of a square that holds the slice, a multiple of 16."""
        return -(-max(n for axis, n in enumerate(self.image.geometry.shape) if axis != self.axis) // 16) * 16

    def example(self, size: int | None = None) -> Example:
        """Image and label on the network's grid."""
        plan, scaling = self.plan(size), IntensityScaling.for_volume(self.image.array)
        return Example(scaled_slices(plan, self.image.array, [self.number], scaling)[0],
                       plan.extract_label(self.label.array, self.number)[0])


def main() -> None:
    """Measure all, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    predictor = Predictor.load("mvg_compact", threads=options.threads)
    borders = [*hearts(predictor, options.data), *chests(predictor, options.data)]
    images = list(painted_images(predictor, options.data))
    report = {"checkpoint_sha256": predictor.backend.checkpoint_sha256, "borders": borders, "images": images}
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "resolution.json", json.dumps(report, indent=1) + "\n")
    write_text(RESULTS / "resolution.md", tables(borders, images))


# --- segmentation ---


def hearts(predictor: Predictor, data: Path) -> Iterator[dict[str, Any]]:
    """The slices beside the middle one, by that one; the network sees 192 or 96 pixels of the 256."""
    painter = SlicePainter(predictor.backend, [1, 2, 3])
    cases = read_cases(data / "heart_acdc" / "dataset.json", "validation")[::2]
    for size in (192, 96):
        found: list[dict[str, Any]] = []
        for case in cases:
            image, label = read(case)
            middle = image.geometry.shape[2] // 2
            example = Slice(image, label, 2, middle)
            for number in (middle - 1, middle + 1):
                query = replace(example, number=number)
                if set(np.unique(query.example().label)) >= {0, 1, 2, 3}:
                    found.append(by_all_methods(painter, query, [example], size))
        yield from means(f"heart, {size} of 256 pixels", found)


def chests(predictor: Predictor, data: Path) -> Iterator[dict[str, Any]]:
    """X-rays by those of two other subjects."""
    painter, path = SlicePainter(predictor.backend, [1, 2, 3, 4]), data / "chest_xray" / "dataset.json"
    references = read_references(path)
    examples = [Slice(*read(references[number]), 2, 0) for number in (3, 5)]
    found = [by_all_methods(painter, Slice(*read(case), 2, 0), examples, 192)
             for case in (read_cases(path, "validation")[number] for number in (0, 1, 3, 8))]
    yield from means("chest X-ray, 192 of 512 pixels", found)


def by_all_methods(painter: SlicePainter, query: Slice, examples: list[Slice], size: int) -> dict[str, Any]:
    """Method -> Dice, NSD at 1 and 2 mm, HD95."""
    fine = query.example()
    fine_examples = [fitted(one.example(), query.side) for one in examples]
    coarse = painter.paint(query.example(size).image, [one.example(size) for one in examples])
    coarse = resampled(coarse, query.side, size / query.side)
    answers = {"up-sampled": coarse, "one pass, own pixels": painter.paint(fine.image, fine_examples)}
    starts = {"": coarse}
    if len(examples) == 1:
        starts["focus, "] = answers["focus"] = focused(painter, fine, fine_examples[0])
    for start, probabilities in starts.items():
        for name, settings in zip(NAMES, TILES, strict=True):
            answers[start + name] = refine_slice(painter, fine.image, probabilities, fine_examples, settings)
    truth = np.moveaxis(query.label.array, query.axis, 0)[query.number]
    return {name: scores(painter.decide(query.plan().restore_slice(answer)), truth, painter.labels,
                         query.plan().spacing_mm) for name, answer in answers.items()}


def fitted(example: Example, side: int) -> Example:
    """A slice of another size in the middle of a square of so many pixels."""
    def fit(array: npt.NDArray) -> npt.NDArray:
        missing = max(0, side - len(array))
        padded = np.pad(array, (missing // 2, missing - missing // 2))
        start = (len(padded) - side) // 2
        return padded[start : start + side, start : start + side]

    return replace(example, image=fit(example.image), label=fit(example.label))


def focused(painter: SlicePainter, query: Example, example: Example) -> npt.NDArray[np.float32]:
    """Painted in a field around the example's structures, as the engine does."""
    rows, columns = np.nonzero(example.label)
    centre = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    side = FOCUS * (max(np.ptp(rows), np.ptp(columns)) + 1)
    along = (np.arange(FOCUSED_SIZE) + 0.5) / FOCUSED_SIZE * side - side / 2
    grid = np.meshgrid(centre[0] + along, centre[1] + along, indexing="ij")
    near = replace(example, image=map_coordinates(example.image, grid, order=1),
                   label=map_coordinates(example.label, grid, order=0))
    painted = painter.paint(map_coordinates(query.image, grid, order=1).astype(np.float32), [near])
    back = [(np.arange(len(query.image)) - middle + side / 2) / side * FOCUSED_SIZE - 0.5 for middle in centre]
    grid = np.meshgrid(*back, indexing="ij")
    return np.stack([map_coordinates(painted[..., row], grid, order=1, cval=float(row == 0))
                     for row in range(painted.shape[-1])], axis=-1).astype(np.float32)


def resampled(probabilities: npt.NDArray[np.float32], side: int, scale: float) -> npt.NDArray[np.float32]:
    """Linear, pixel areas aligned."""
    along = (np.arange(side) + 0.5) * scale - 0.5
    grid = np.meshgrid(along, along, indexing="ij")
    return np.stack([map_coordinates(probabilities[..., row], grid, order=1, mode="nearest")
                     for row in range(probabilities.shape[-1])], axis=-1).astype(np.float32)


def scores(label: npt.NDArray, truth: npt.NDArray, labels: tuple[int, ...], mm: float) -> list[float]:
    """Dice, NSD at 1 and 2 mm and HD95, mean over the labels that are there."""
    rows = []
    for number in labels:
        pair = (label == number)[..., None], (truth == number)[..., None]
        if pair[1].any():
            hd95_mm, nsd2 = surface_distances(*pair, (mm, mm, 1), 2.0)
            rows.append((overlap(*pair)[0], surface_distances(*pair, (mm, mm, 1), 1.0)[1], nsd2, hd95_mm))
    return np.mean(rows, axis=0).tolist()


def means(data: str, found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each method."""
    for method in found[0]:
        dice, nsd1, nsd2, hd95_mm = np.mean([one[method] for one in found], axis=0)
        row = {"data": data, "method": method, "slices": len(found), "dice": round(dice, 4), "nsd_1mm": round(nsd1, 4),
               "nsd_2mm": round(nsd2, 4), "hd95_mm": round(hd95_mm, 2)}
        print(json.dumps(row), flush=True)
        yield row


def read(case: Case) -> tuple[Volume, Volume]:
    """Image and label."""
    assert case.label is not None
    return read_volume(case.images["image"]), read_label(case.label)


# --- images ---


def painted_images(predictor: Predictor, data: Path) -> Iterator[dict[str, Any]]:
    """X-rays of 512 pixels: at their own pixels, coarser, and in tiles."""
    path = data / "chest_xray" / "dataset.json"
    clean = read_volume(read_references(path)[3].images["image"])
    kinds: tuple[TaskKind, ...] = ("denoising", "inpainting")
    for kind in kinds:
        for case in (read_cases(path, "validation")[number] for number in (0, 9)):
            truth = read_volume(case.images["image"])
            query, hole, example = truth, None, clean
            if kind == "denoising":
                query, example = with_noise(truth, 0.1, case.name), with_noise(clean, 0.1, "example")
            else:
                hole = random_holes(truth, 2, case.name)
                query = truth.with_array(np.where(hole, truth.array.min(), truth.array))
            ways: list[tuple[str, int, Tiles]] = [("whole, own pixels", 512, None), ("coarser: 256", 256, None),
                                                  ("tiles of 192", 512, 192), ("tiles of 256", 512, 256),
                                                  ("tiles of 384", 512, 384)]
            for name, limit, tiling in ways:
                with mock.patch("mvg_core.image_painter.ColourPainter.largest", limit):
                    found = solve_images(predictor, query, Reference(example, clean), Task(kind), tiling=tiling,
                                         hole=None if hole is None else truth.with_array(hole.astype(np.uint8)),
                                         consistency=OFF).volume
                score = score_image(found, truth, kind, axis=2, shown=query, hole=hole)[0 if hole is None else -1]
                row = {"task": kind, "case": case.name, "method": name, "psnr_db": round(score.psnr_db, 3),
                       "ssim": round(score.ssim, 4)}
                print(json.dumps(row), flush=True)
                yield row


def tables(borders: list[dict[str, Any]], images: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| segmentation | method | Dice | NSD 1 mm | NSD 2 mm | HD95 mm |", "|---" * 6 + "|"]
    lines += [f"| {row['data']} ({row['slices']} slices) | {row['method']} | {row['dice']:.3f} | "
              f"{row['nsd_1mm']:.3f} | {row['nsd_2mm']:.3f} | {row['hd95_mm']:.1f} |" for row in borders]
    lines += ["", "| image to image | X-ray | method | PSNR dB | SSIM |", "|---" * 5 + "|"]
    lines += [f"| {row['task']} | {row['case']} | {row['method']} | {row['psnr_db']:.2f} | {row['ssim']:.4f} |"
              for row in images]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
