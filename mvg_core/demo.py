"""`mvg demo`: one labelled slice of a brain template, the rest by example, compared with the truth.

The data are the MNI152 T1 template and its tissue maps at 1 mm, which the package nilearn carries, so nothing is
downloaded. They are of no person: the template is an average of 152 brains.

Shape letters: I J K voxels; S side of a shown slice.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.predict import Prediction, Predictor
from mvg_core.preview import Picture, heat, overlay, slices_to_show
from mvg_core.references import Reference, marked_slices
from mvg_core.report import check_folder, package_versions, peak_memory_mb, temporary_beside, write_report
from mvg_core.slices import SlicePlan
from mvg_core.tasks import Task
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import write_volume

LABELS = {1: "grey matter", 2: "white matter"}
LEAST_DICE = 0.60
"""Below this for one of the tissues, something is broken: the demo fails."""

NOISE_SIGMA = 0.1
OTHER_LEVEL = 15
"""So many slices (mm) above the labelled slice lies the one that is denoised and inpainted."""

FILES = {"prediction": "prediction.nii.gz", "confidence": "confidence.nii.gz", "overlay": "overlay.png",
         "report": "report.json"}

# The colours of the picture; the tissues' are told apart by everyone, and on grey.
_COLOURS = {1: np.array((38, 198, 190), np.uint8), 2: np.array((255, 167, 66), np.uint8)}
_PAPER, _INK, _FAINT = "#0e1016", "#e6e9f0", "#8a92a6"

DemoProgress = Callable[[str, int, int], None]


class DemoFailed(RuntimeError):
    """The demo ran, but its answer is not good enough.

    Attributes:
        report: as `run_demo` returns it; its files were written.
    """

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, eq=False)
class Template:
    """The brain template.

    Attributes:
        image: T1-weighted, 0 to 1.
        truth: uint8 label map, 0 background and fluid, 1 grey matter, 2 white matter.
    """

    image: Volume
    truth: Volume


@dataclass(frozen=True, eq=False)
class _ImageExample:
    """An image-to-image task on one slice; shown as (S, S) in [0, 1]."""

    kind: str
    given: npt.NDArray
    answer: npt.NDArray
    original: npt.NDArray
    psnr_before: float
    psnr_after: float


def run_demo(output: Path, weights: str, *, device: str = "auto", threads: int | None = None,
             progress: DemoProgress | None = None) -> dict[str, Any]:
    """Run the demo and write `FILES` into a folder, which is made if need be.

    Args:
        output: the folder; files of an earlier demo in it are replaced.
        weights: name or path, see `find_weights`.
        device: see `load_backend`.
        threads: most CPU threads.
        progress: called with a title, slices done and slices in all.

    Returns:
        The content of report.json.

    Raises:
        DemoFailed: Dice below `LEAST_DICE`.
        RuntimeError: a package that the demo needs is not installed.
        WeightsError, CheckpointError, MissingBackendError: see `load_backend`.
        VolumeWriteError: the folder cannot be written to.
    """
    started = time.perf_counter()
    _check_packages("nilearn", "matplotlib")
    predictor = Predictor.load(weights, device=device, threads=threads)
    output.mkdir(parents=True, exist_ok=True)
    check_folder(output)
    template = load_template()
    number = reference_slice(template.truth.array)
    prediction = predict_from_one_slice(predictor, template, number, progress)
    examples = [_denoise(predictor, template.image, number), _inpaint(predictor, template.image, number)]

    files = {kind: output / name for kind, name in FILES.items()}
    report = _report(template, prediction, number, examples, files)
    assert prediction.confidence is not None  # a segmentation has one
    write_volume(prediction.volume, files["prediction"], overwrite=True)
    write_volume(prediction.confidence, files["confidence"], overwrite=True)
    _draw(template, prediction, number, examples, report, files["overlay"])
    report |= {"seconds": round(time.perf_counter() - started, 2), "peak_memory_mb": peak_memory_mb()}
    write_report(files["report"], report)
    _check_quality(report)
    return report


def load_template() -> Template:
    """The MNI152 template at 1 mm, and its most probable tissue in every voxel.

    Raises:
        RuntimeError: nilearn is not installed.
    """
    _check_packages("nilearn")
    from nilearn import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = datasets.load_mni152_template(resolution=1)
        grey = datasets.load_mni152_gm_template(resolution=1)
        white = datasets.load_mni152_wm_template(resolution=1)
    grey, white = grey.get_fdata(dtype=np.float32), white.get_fdata(dtype=np.float32)
    background = np.clip(1 - grey - white, 0, None)
    truth = np.argmax(np.stack([background, grey, white]), axis=0).astype(np.uint8)
    geometry = Geometry(image.shape, image.affine)
    return Template(Volume(image.get_fdata(dtype=np.float32), geometry), Volume(truth, geometry))


def reference_slice(truth: npt.NDArray[np.uint8]) -> int:
    """The axial slice of (I, J, K) in which the scarcer tissue covers most: it shows both, and was not tuned."""
    areas = [np.count_nonzero(truth == label, axis=(0, 1)) for label in LABELS]
    return int(np.argmax(np.min(areas, axis=0)))


def predict_from_one_slice(predictor: Predictor, template: Template, number: int,
                           progress: DemoProgress | None = None) -> Prediction:
    """Segment the template by the labels of its axial slice `number`."""
    told = None if progress is None else lambda done, total: progress("segmentation", done, total)
    return predictor.predict_volume(template.image, one_slice(template, number), Task.segmentation(LABELS),
                                    plane="axial", progress=told)


def one_slice(template: Template, number: int) -> Reference:
    """The template with the labels of its axial slice `number` alone."""
    label = np.zeros_like(template.truth.array)
    label[:, :, number] = template.truth.array[:, :, number]
    return Reference(template.image, template.truth.with_array(label), f"slice {number}")


def dice(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Overlap of two masks of one shape: twice the shared voxels over the sum of both; 1 if both are empty."""
    total = np.count_nonzero(predicted) + np.count_nonzero(truth)
    return 1.0 if total == 0 else 2 * np.count_nonzero(predicted & truth) / total


def psnr(image: npt.NDArray[np.floating], original: npt.NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1], any one shape; infinite if they are equal."""
    error = float(np.mean((image.astype(np.float64) - original) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def _check_packages(*needed: str) -> None:
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise RuntimeError(f"the demo needs {' and '.join(missing)}: pip install 'mvg-core[demo]' from a checkout or "
                           "wheel, for example `pip install '.[demo]'`")


def _check_quality(report: dict[str, Any]) -> None:
    poor = [f"{name} {value:.3f}" for name, value in report["dice"].items() if not value >= LEAST_DICE]
    if poor:
        raise DemoFailed(f"Dice below {LEAST_DICE:.2f}: {', '.join(poor)}. The weights are damaged or unfinished "
                         "(`mvg info` shows which were used), or this installation computes something else than ours",
                         report)


def _report(template: Template, prediction: Prediction, number: int, examples: list[_ImageExample],
            files: dict[str, Path]) -> dict[str, Any]:
    others = np.arange(template.truth.array.shape[2]) != number  # the labelled slice was given, so it does not count
    truth, predicted = template.truth.array[:, :, others], prediction.volume.array[:, :, others]
    copied = np.broadcast_to(template.truth.array[:, :, number, None], truth.shape)
    return {
        "reference_slice": number,
        "dice": {name: round(dice(predicted == label, truth == label), 4) for label, name in LABELS.items()},
        "dice_copy": {name: round(dice(copied == label, truth == label), 4) for label, name in LABELS.items()},
        **{example.kind: {"slice": number + OTHER_LEVEL, "psnr_before": round(example.psnr_before, 2),
                          "psnr_after": round(example.psnr_after, 2)} for example in examples},
        **prediction.provenance, "outputs": {kind: str(path) for kind, path in files.items()},
        "versions": package_versions() | {package: importlib.metadata.version(package)
                                          for package in ("nilearn", "matplotlib")},
    }


# --- one slice: noise and holes ---


def _denoise(predictor: Predictor, image: Volume, number: int) -> _ImageExample:
    random = np.random.default_rng(0)
    example, original = _one_slice(image, number), _one_slice(image, number + OTHER_LEVEL)

    def noisy(clean: Volume) -> Volume:
        noise = random.normal(0, NOISE_SIGMA, clean.array.shape)
        return clean.with_array(np.clip(clean.array + noise, 0, None).astype(np.float32))

    given = noisy(original)
    answer = predictor.predict_volume(given, Reference(noisy(example), example), Task.denoising(), plane="axial").volume
    return _ImageExample("denoising", _shown(given), _shown(answer), _shown(original),
                         psnr(given.array, original.array), psnr(answer.array, original.array))


def _inpaint(predictor: Predictor, image: Volume, number: int) -> _ImageExample:
    example, original = _one_slice(image, number), _one_slice(image, number + OTHER_LEVEL)
    hole = _two_discs(original)
    given = original.with_array(np.where(hole, np.float32(0), original.array))
    answer = predictor.predict_volume(given, Reference(example, example), Task.inpainting(), plane="axial",
                                      hole=original.with_array(hole.astype(np.uint8))).volume
    return _ImageExample("inpainting", _shown(given), _shown(answer), _shown(original),
                         psnr(given.array[hole], original.array[hole]), psnr(answer.array[hole], original.array[hole]))


def _one_slice(volume: Volume, number: int) -> Volume:
    affine = volume.geometry.affine.copy()
    affine[:3, 3] = volume.geometry.index_to_world((0, 0, number))
    array = volume.array[:, :, number : number + 1]
    return Volume(array, Geometry(array.shape, affine))


def _two_discs(volume: Volume) -> npt.NDArray[np.bool_]:
    """Holes of 12 and 9 mm radius in one slice, one on each side of the brain."""
    i, j, k = np.indices(volume.array.shape)
    x, y, _ = np.moveaxis(volume.geometry.index_to_world(np.stack([i, j, k], axis=-1)), -1, 0)
    return ((x + 30) ** 2 + (y - 20) ** 2 < 12**2) | ((x - 32) ** 2 + (y + 35) ** 2 < 9**2)


# --- the picture ---


def _shown(volume: Volume) -> npt.NDArray:
    """The only slice of a volume as (S, S), one pixel a mm, as radiologists see it."""
    return _plan(volume.geometry).extract(volume.array)[0]


def _plan(geometry: Geometry) -> SlicePlan:
    return SlicePlan.for_volume(geometry, geometry.anatomical_axis("axial"), size=240, spacing_mm=1.0)


def _draw(template: Template, prediction: Prediction, number: int, examples: list[_ImageExample],
          report: dict[str, Any], path: Path) -> None:
    """The picture of the demo: some slices with truth, prediction and confidence; below, noise and a hole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    n_slices = template.truth.array.shape[2]
    shown = slices_to_show(marked_slices(template.truth.array, 2), n_slices, 6)
    figure = Figure(figsize=(16, 16), facecolor=_PAPER)
    FigureCanvasAgg(figure)
    figure.text(0.045, 0.965, "One labelled slice, the whole brain", color=_INK, fontsize=25, fontweight="bold")
    figure.text(0.045, 0.941, _subtitle(number, report), color=_FAINT, fontsize=14)
    grid = GridSpec(4, 6, figure, left=0.045, right=0.985, top=0.905, bottom=0.24, wspace=0.03, hspace=0.03)
    _draw_segmentation(figure, grid, template, prediction, [number, *(n for n in shown if n != number)][:6])
    _draw_scores(figure, grid[2, 0], report)
    _draw_scale(figure, grid[3, 0])
    figure.text(0.045, 0.207, "Other tasks by example", color=_INK, fontsize=17, fontweight="bold")
    figure.text(0.275, 0.207, "Peak signal-to-noise ratio; with holes, inside them.", color=_FAINT, fontsize=14)
    grid = GridSpec(1, 6, figure, left=0.045, right=0.985, top=0.18, bottom=0.018, wspace=0.03)
    for place, example in enumerate(examples):
        _draw_example(figure, grid, 3 * place, example)
    temporary = temporary_beside(path)
    try:
        figure.savefig(temporary, dpi=100, facecolor=_PAPER)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _subtitle(number: int, report: dict[str, Any]) -> str:
    return (f"MNI152 T1 template. Axial slice {number} was given with its labels; the other {report['slices'] - 1} "
            f"were painted by its example, {report['seconds_per_slice']:.2f} s each.")


def _draw_segmentation(figure: Any, grid: Any, template: Template, prediction: Prediction, numbers: list[int]) -> None:
    plan = _plan(template.image.geometry)
    images = plan.extract(template.image.array, numbers)
    truths = plan.extract_label(template.truth.array, numbers)
    answers = plan.extract_label(prediction.volume.array, numbers)
    assert prediction.confidence is not None
    sure = plan.extract(prediction.confidence.array, numbers, fill=1)
    for column, number in enumerate(numbers):
        grey = np.clip(images[column], 0, 1)
        is_example = column == 0
        title = f"slice {number}: the example" if is_example else f"slice {number}"
        _tile(figure, grid[0, column], _grey(grey), title=title, frame=is_example)
        _tile(figure, grid[1, column], overlay(grey, truths[column], _COLOURS), frame=is_example)
        if not is_example:
            _tile(figure, grid[2, column], overlay(grey, answers[column], _COLOURS))
            _tile(figure, grid[3, column], heat(sure[column]))
    for row, name in enumerate(("image", "truth", "prediction", "confidence")):
        middle = sum(grid[row, 0].get_position(figure).intervaly) / 2
        figure.text(0.028, middle, name, color=_INK, fontsize=14, rotation=90, ha="center", va="center")


def _draw_scores(figure: Any, place: Any, report: dict[str, Any]) -> None:
    axes = _empty(figure, place)
    axes.text(0.04, 0.84, "Dice", color=_INK, fontsize=16, fontweight="bold")
    axes.text(0.6, 0.84, "copied slice", color=_FAINT, fontsize=11)
    for row, (label, name) in enumerate(LABELS.items()):
        y, colour = 0.58 - 0.34 * row, tuple(_COLOURS[label] / 255)
        axes.text(0.04, y, f"{report['dice'][name]:.3f}", color=colour, fontsize=24, fontweight="bold")
        axes.text(0.6, y, f"{report['dice_copy'][name]:.3f}", color=_FAINT, fontsize=16)
        axes.text(0.04, y - 0.1, name, color=colour, fontsize=12)


def _draw_scale(figure: Any, place: Any) -> None:
    axes = _empty(figure, place)
    axes.text(0.04, 0.7, "Confidence", color=_INK, fontsize=16, fontweight="bold")
    axes.text(0.04, 0.57, "bright: look twice", color=_FAINT, fontsize=12)
    bar = axes.inset_axes((0.06, 0.39, 0.84, 0.08))
    bar.imshow(heat(np.linspace(0, 1, 256, dtype=np.float32)[None]), aspect="auto", extent=(0, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    bar.tick_params(colors=_FAINT, labelsize=11, length=3)
    bar.spines[:].set_color(_FAINT)


def _draw_example(figure: Any, grid: Any, column: int, example: _ImageExample) -> None:
    given, done = ("noisy", "denoised") if example.kind == "denoising" else ("with holes", "inpainted")
    tiles = ((f"{given}: {example.psnr_before:.1f} dB", example.given),
             (f"{done}: {example.psnr_after:.1f} dB", example.answer), ("original", example.original))
    for offset, (title, image) in enumerate(tiles):
        _tile(figure, grid[0, column + offset], _grey(np.clip(image, 0, 1)), title=title)


def _tile(figure: Any, place: Any, picture: Picture, *, title: str = "", frame: bool = False) -> None:
    axes = figure.add_subplot(place)
    # The brain fills the middle of the square.
    axes.imshow(picture[8:-18, 22:-22], interpolation="lanczos", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(frame)
    axes.spines[:].set_color(_INK)
    axes.spines[:].set_linewidth(1.5)
    if title:
        axes.set_title(title, color=_INK, fontsize=13, pad=6)


def _empty(figure: Any, place: Any) -> Any:
    axes = figure.add_subplot(place)
    axes.set_axis_off()
    return axes


def _grey(image: npt.NDArray) -> Picture:
    return np.repeat((image * 255).round().astype(np.uint8)[..., None], 3, axis=-1)
