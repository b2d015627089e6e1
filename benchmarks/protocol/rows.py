"""The methods, and which questions each of them answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from benchmarks.protocol.keeping import key_of
from benchmarks.protocol.places import TUNED
from benchmarks.protocol.questions import Question
from mvg_core.evaluation.runner import Solver

CLASSICAL_SEGMENTATION = ("benchmarks/protocol/segment_classical.py", "mvg_core/demons.py", "mvg_core/registration")
CLASSICAL_IMAGES = ("benchmarks/protocol/restore_classical.py",)
NETWORK = tuple(f"mvg_core/{part}" for part in (
    "backends.py", "cleanup.py", "codecs.py", "demons.py", "engine", "holes.py", "image_painter.py", "intensity.py",
    "label_reader.py", "label_readout.py", "predict.py", "prompts.py", "reader_backends.py", "readout.py",
    "references.py", "registration", "slices.py", "tuning.py"))


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: unique; part of file names.
        title: for tables.
        suits: whether it answers a question.
        make: the solver for a question; slow imports and loading happen here.
        code: files and folders that decide an answer.
        settings: what else decides it, for a question.
        is_ours: our network takes part.
    """

    name: str
    title: str
    suits: Callable[[Question], bool]
    make: Callable[[Question], Solver]
    code: tuple[str, ...]
    settings: Callable[[Question], Mapping[str, Any]] = field(default=lambda _: {})
    is_ours: bool = False

    def key(self, question: Question) -> str:
        """See `keeping`."""
        from benchmarks.protocol.inputs import CODE

        return key_of((*CODE[question.inputs], *self.code), self.settings(question))


def all_rows() -> dict[str, Row]:
    """Every row by its name, in the order of the tables."""
    from benchmarks.protocol.learned_rows import learned_rows
    from benchmarks.protocol.network_rows import network_rows

    return {row.name: row for row in (*_segmentation_rows(), *_image_rows(), *learned_rows(), *network_rows())}


def is_segmentation(question: Question) -> bool:
    """Whether a label map is asked for."""
    return question.kind == "segmentation"


@lru_cache(maxsize=1)
def tuned() -> Mapping[str, Any]:
    """Settings that were chosen on validation: row -> question or data set -> value."""
    return json.loads(TUNED.read_text()) if TUNED.is_file() else {}


def _segmentation_rows() -> list[Row]:
    def copy(_: Question) -> Solver:
        from benchmarks.protocol.segment_classical import CopySolver

        return CopySolver()

    def registration(question: Question) -> Solver:
        from benchmarks.protocol.segment_classical import RegistrationSolver

        return RegistrationSolver(registration_settings(question))

    return [Row("copy", "copy of the label", is_segmentation, copy, CLASSICAL_SEGMENTATION[:1]),
            Row("registration", "registration (one slice: chained demons; else affine + demons)", is_segmentation,
                registration, CLASSICAL_SEGMENTATION, registration_settings)]


UNTUNED_REGISTRATION = {"slice_smooth": 1.5, "slice_iterations": [30, 30, 30], "smooth": 1.0, "power": 1}


def registration_settings(question: Question) -> Mapping[str, Any]:
    """Of the data set."""
    return {**UNTUNED_REGISTRATION, **tuned().get("registration", {}).get(question.data, {})}


def _image_rows() -> list[Row]:
    def kind_is(kind: str) -> Callable[[Question], bool]:
        return lambda question: question.kind == kind

    def denoiser(name: str) -> Row:
        def strength(question: Question) -> Mapping[str, Any]:
            return {"strength": tuned().get(name, {}).get(question.name, 1.0)}

        def make(question: Question) -> Solver:
            from benchmarks.protocol.restore_classical import DenoisingSolver

            return DenoisingSolver(name, strength(question)["strength"])

        titles = {"nlm": "non-local means", "tv": "total variation", "wavelet": "wavelets"}
        return Row(name, f"{titles[name]} (tuned)", kind_is("denoising"), make, CLASSICAL_IMAGES, strength)

    def filler(name: str, title: str) -> Row:
        def make(_: Question) -> Solver:
            from benchmarks.protocol.restore_classical import InpaintingSolver

            return InpaintingSolver(name)

        return Row(name, title, kind_is("inpainting"), make, CLASSICAL_IMAGES)

    def intensity_map(name: str, title: str) -> Row:
        def degree(question: Question) -> Mapping[str, Any]:
            return {"degree": tuned().get(name, {}).get(question.name, 3)} if name == "polynomial" else {}

        def make(question: Question) -> Solver:
            from benchmarks.protocol.restore_classical import IntensityMapSolver

            return IntensityMapSolver(name, **degree(question))

        return Row(name, title, kind_is("synthesis"), make, CLASSICAL_IMAGES, degree)

    def unchanged(_: Question) -> Solver:
        from benchmarks.protocol.restore_classical import UnchangedSolver

        return UnchangedSolver()

    return [Row("unchanged", "the image as given", kind_is("denoising"), unchanged, CLASSICAL_IMAGES),
            *(denoiser(name) for name in ("nlm", "tv", "wavelet")),
            filler("mean_fill", "mean of the image"), filler("biharmonic", "biharmonic"),
            intensity_map("histogram", "histogram matching"),
            intensity_map("polynomial", "polynomial intensity map (tuned)")]
