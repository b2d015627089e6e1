"""What one case of a cohort is, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvg_core import __version__
from mvg_core.tasks import TaskKind
from mvg_core.weights import SHIPPED_NAME, file_sha256, find_weights

if TYPE_CHECKING:
    from mvg_core.job import OutputFiles, PredictionJob

TWO_PART_SUFFIXES = (".nii.gz", ".seg.nrrd")


@dataclass(frozen=True)
class CohortCase:
    """One volume to solve.

    Attributes:
        name: unique in its cohort, and fit for a file name.
        row: of the manifest, as a spreadsheet counts: the header is row 1.
        query: file or DICOM folder.
        references: pairs of image and label, or image and target.
        answer: where the answer goes, relative to the cohort's folder.
        task: what to do.
        plane: see `PredictionJob`, as all below.
        window: lowest and highest intensity.
        hole: mask file, inpainting only.
        frame: number, `all` or None.
        reference_frame: number or None.
        reference_slices: of the only reference.
    """

    name: str
    row: int
    query: Path
    references: tuple[tuple[Path, Path], ...]
    answer: str
    task: TaskKind = "segmentation"
    plane: str = "auto"
    window: tuple[float, float] | None = None
    hole: Path | None = None
    frame: int | Literal["all"] | None = None
    reference_frame: int | None = None
    reference_slices: tuple[int, ...] | None = None

    def inputs(self, settings: CohortSettings) -> dict[str, Path]:
        """Role -> file or folder that the answer depends on."""
        found = {"query": self.query}
        for number, (image, label) in enumerate(self.references, start=1):
            found |= {f"reference {number} image": image, f"reference {number} label": label}
        names = settings.names if self.task == "segmentation" else None
        return found | {role: path for role, path in (("hole", self.hole), ("names", names)) if path is not None}

    def outputs(self, settings: CohortSettings) -> OutputFiles:
        """The files that are written."""
        from mvg_core.job import OutputFiles

        answer, stem = settings.out / self.answer, stem_of(self.answer)
        sure = settings.out / f"{stem}_confidence.nii.gz" if self.task == "segmentation" else None
        return OutputFiles(answer, sure if settings.confidence else None,
                           settings.out / f"{stem}_preview.png" if settings.previews else None)

    def job(self, settings: CohortSettings) -> PredictionJob:
        """The same as a job of `mvg predict`."""
        from mvg_core.job import PredictionJob

        return PredictionJob(
            self.query, self.references, self.task, self.outputs(settings), plane=self.plane, window=self.window,
            hole=self.hole, names=settings.names if self.task == "segmentation" else None, frame=self.frame,
            reference_frame=self.reference_frame, reference_slices=self.reference_slices, overwrite=True)

    def choices(self, settings: CohortSettings) -> dict[str, Any]:
        """Everything but files that the answer depends on; JSON-serialisable."""
        outputs = self.outputs(settings).given()
        return {
            "mvg-core": __version__, "weights": settings.weights_sha256, "preset": settings.preset,
            "engine": list(settings.parts), "task": self.task,
            "plane": self.plane, "window": None if self.window is None else list(self.window), "frame": self.frame,
            "reference frame": self.reference_frame,
            "reference slices": None if self.reference_slices is None else list(self.reference_slices),
            "outputs": {kind: path.relative_to(settings.out).as_posix() for kind, path in outputs.items()}}


@dataclass(frozen=True)
class CohortSettings:
    """What all cases share; it travels to every worker.

    Attributes:
        out: the cohort's folder, absolute.
        weights: name or path.
        weights_sha256: of the weight file, so that every machine of a cluster uses the same.
        preset: of the volume engine.
        parts: of the preset that are changed, as `focus=2.2`.
        device: `auto`, `cpu`, `cuda` ...
        threads: CPU threads of one worker.
        confidence: also write how sure the network is (segmentation).
        previews: also write a picture of each answer.
        names: file of label names.
    """

    out: Path
    weights: str
    weights_sha256: str
    preset: str
    parts: tuple[str, ...] = ()
    device: str = "auto"
    threads: int = 1
    confidence: bool = False
    previews: bool = False
    names: Path | None = None

    @classmethod
    def create(cls, out: Path, weights: str = SHIPPED_NAME, preset: str = "balanced", **others: Any) -> CohortSettings:
        """Settings with the checksum of the weights; a path is made absolute, for workers in other folders.

        Raises:
            WeightsError: there are no such weights.
            ValueError: there is no such preset or part.
        """
        from mvg_core.engine.config import EngineConfig

        EngineConfig.named_values(preset, others.get("parts", ()))
        path = find_weights(weights)
        names = others.pop("names", None)
        where = weights if weights == SHIPPED_NAME else str(path.absolute())
        return cls(out.absolute(), where, file_sha256(path), preset,
                   names=None if names is None else names.absolute(), **others)

    def record_of(self, case: CohortCase) -> Path:
        """The file that says that a case is finished."""
        return self.out / "records" / f"{case.name}.json"

    def log_of(self, case: CohortCase) -> Path:
        """Where the traceback of a failure goes."""
        return self.out / "logs" / f"{case.name}.log"


def stem_of(name: str) -> str:
    """A file name or relative path without its suffix: `a/b.nii.gz` -> `a/b`."""
    lower = name.lower()
    suffix = next((end for end in TWO_PART_SUFFIXES if lower.endswith(end)), Path(name).suffix)
    return name[: len(name) - len(suffix)] if suffix else name
