"""One prediction from files to files: what `mvg predict` does, without a command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mvg_core.clinical.measures import measure_labels
from mvg_core.clinical.outputs import (
    ANSWER_SUFFIXES,
    COLOR_TABLE_SUFFIXES,
    AnswerWriter,
    LabelTable,
    check_kind,
    is_folder,
)
from mvg_core.engine import VolumeEngine, Watch
from mvg_core.intensity import check_finite
from mvg_core.predict import Prediction
from mvg_core.preview import Picture, draw_preview, write_picture
from mvg_core.references import Reference, labels_in, whole_labels
from mvg_core.report import (
    VOLUME_SUFFIXES,
    check_outputs,
    package_versions,
    peak_memory_mb,
    read_names,
    read_terminology,
    write_report,
)
from mvg_core.tasks import Task, TaskKind
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeWarning, VolumeWriteError, count_frames, read_volume, write_volume

ALL_FRAMES = "all"
Frame = int | Literal["all"]
JobProgress = Callable[[str, int, int], None]
"""Called with what is being solved, slices done, and slices in all."""
ReadInput = Callable[[Path, int | None], Volume]
"""Reads one frame of a file."""

_TWO_PART_SUFFIXES = (".nii.gz", ".seg.nrrd")


@dataclass(frozen=True)
class OutputFiles:
    """Where one answer goes; None is not written.

    Attributes:
        answer: a file, or the folder of a derived DICOM series.
        confidence: file of how sure the network is, segmentation only.
        preview: PNG.
        color_table: names and colours of the labels for 3D Slicer, segmentation only.
    """

    answer: Path
    confidence: Path | None = None
    preview: Path | None = None
    color_table: Path | None = None

    def of_frame(self, frame: int) -> OutputFiles:
        """The same with the number of a frame before every suffix."""
        return OutputFiles(**{kind: numbered(path, frame) for kind, path in self.given().items()})

    def given(self) -> dict[str, Path]:
        """Those that are written."""
        return {kind: path for kind, path in vars(self).items() if path is not None}

    def suffixes(self) -> list[tuple[Path, tuple[str, ...]]]:
        """Each file, and what its name may end in; folders are left out."""
        of_kind = {"answer": ANSWER_SUFFIXES, "confidence": tuple(s for s in VOLUME_SUFFIXES if s != ".png"),
                   "preview": (".png",), "color_table": COLOR_TABLE_SUFFIXES}
        return [(path, of_kind[kind]) for kind, path in self.given().items()
                if not (kind == "answer" and is_folder(path))]


@dataclass(frozen=True)
class _Answer:
    frame: int | None
    files: OutputFiles
    writer: AnswerWriter
    prediction: Prediction
    picture: Picture | None


@dataclass(frozen=True)
class PredictionJob:
    """What to solve, by which examples, and where the answer goes.

    Attributes:
        query: file or DICOM folder.
        references: pairs of image and label (segmentation) or image and target. Where the image is the query, the
            solved slices are the example for the others.
        task: what to do.
        outputs: files of the answer; with `ALL_FRAMES` their names get the number of the frame.
        report: JSON file that says how the answer came about.
        plane: see `Predictor.predict_volume`.
        window: see `Predictor.predict_volume`.
        hole: mask file, inpainting only.
        names: file of label names (see `read_names`), segmentation only.
        frame: of a query with several frames; `ALL_FRAMES` solves each of them.
        reference_frame: of references with several frames; None takes `frame`.
        reference_slices: slices of the only reference that are solved; None takes those with any label.
        slices: the first and the last slice of the query to solve; None solves all.
        overwrite: existing outputs are replaced.
    """

    query: Path
    references: tuple[tuple[Path, Path], ...]
    task: TaskKind
    outputs: OutputFiles
    report: Path | None = None
    plane: str = "auto"
    window: tuple[float, float] | None = None
    hole: Path | None = None
    names: Path | None = None
    frame: Frame | None = None
    reference_frame: int | None = None
    reference_slices: tuple[int, ...] | None = None
    slices: tuple[int, int] | None = None
    overwrite: bool = False

    def run(self, load_engine: Callable[[], VolumeEngine], progress: JobProgress | None = None,
            read: ReadInput | None = None) -> list[dict[str, Any]]:
        """Check, read, solve, and only then write.

        Args:
            load_engine: called once everything has been checked and read.
            progress: told about every few slices.
            read: stands in for `read_input`, for callers that keep examples between jobs.

        Returns:
            For each frame a JSON-serialisable report; `outputs` in it are the files that were written.

        Raises:
            ValueError, OSError, RuntimeError: with a message that says what to do; no file was written, unless writing
                itself failed, which leaves the files before it complete.
        """
        _check_choices(self)
        read = read or read_input
        frames = _frames_to_solve(self.query, self.frame)
        files = [self.outputs.of_frame(n or 0) for n in frames] if self.frame == ALL_FRAMES else [self.outputs]
        self._check_files(files)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VolumeWarning)
            query = read(self.query, frames[0])
            references = self._read_references(query, frames[0], read)
            hole = None if self.hole is None else read(self.hole, None)
        remarks = [str(warning.message) for warning in caught if issubclass(warning.category, VolumeWarning)]
        for remark in remarks:
            warnings.warn(remark, VolumeWarning, stacklevel=2)
        task, table, shown = _task(self.task, self.names, references)
        _check_png(self.outputs.answer, query, references, task)
        writers = [self._writer(one, query, references, frame, task, table, shown)
                   for one, frame in zip(files, frames, strict=True)]
        engine = load_engine()
        answers = []
        for frame, outputs, writer in zip(frames, files, writers, strict=True):
            volume = query if not answers else read(self.query, frame)
            prediction, picture = self._solve(engine, volume, references, task, hole, frame, outputs, progress)
            answers.append(_Answer(frame, outputs, writer, prediction, picture))
        return self._write(answers, remarks)

    def _writer(self, files: OutputFiles, query: Volume, references: list[Reference], frame: int | None, task: Task,
                table: LabelTable, shown: frozenset[int]) -> AnswerWriter:
        """What writes the answer of one frame; frames of a file share their grid."""
        guided = any(reference.image is query for reference in references)
        return AnswerWriter.checked(files.answer, query, self.query, frame, task=task, table=table, shown=shown,
                                    guided=guided, overwrite=self.overwrite)

    def _check_files(self, files: list[OutputFiles]) -> None:
        for one in files:
            check_kind(one.answer, self.task, self.query, overwrite=self.overwrite)
        suffixes = [pair for one in files for pair in one.suffixes()]
        if self.report is not None:
            suffixes.append((self.report, (".json",)))
        read = [self.query, *(path for pair in self.references for path in pair), self.hole, self.names]
        check_outputs(suffixes, inputs=[path for path in read if path is not None], overwrite=self.overwrite)

    def _read_references(self, query: Volume, query_frame: int | None, read: ReadInput) -> list[Reference]:
        references = []
        for number, (image_path, label_path) in enumerate(self.references, start=1):
            frame = self._frame_of_example(image_path)
            is_query = image_path.resolve() == self.query.resolve() and frame in (None, query_frame)
            image = query if is_query else read(image_path, frame)
            label = read(label_path, self._frame_of_example(label_path))
            references.append(Reference(image, label, f"reference {number}", self.reference_slices))
        return references

    def _frame_of_example(self, path: Path) -> int | None:
        """Which frame of a reference's file is read; None where there is only one."""
        n_frames = count_frames(path)
        if n_frames == 1:
            return None
        if self.reference_frame is not None:
            return self.reference_frame
        if isinstance(self.frame, int):
            return self.frame
        raise ValueError(f"{path}: holds {n_frames} frames, numbered 0 to {n_frames - 1}: say which of them is the "
                         "example, --reference-frame N")

    def _solve(self, engine: VolumeEngine, query: Volume, references: list[Reference], task: Task, hole: Volume | None,
               frame: int | None, files: OutputFiles, progress: JobProgress | None
               ) -> tuple[Prediction, Picture | None]:
        title = task.kind if self.frame != ALL_FRAMES else f"frame {frame}"
        told = None if progress is None else lambda done, total: progress(title, done, total)
        prediction = engine.solve(query, references, task, plane=self.plane, hole=hole, window=self.window,
                                  slices=self.slices, watch=Watch(progress=told))
        if files.answer.suffix.lower() == ".png" and not task.is_segmentation:
            rounded = np.clip(np.rint(prediction.volume.array), 0, np.iinfo(np.uint16).max)
            prediction = replace(prediction, volume=prediction.volume.with_array(rounded))
        picture = None
        if files.preview is not None:
            axis = query.geometry.anatomical_axis(prediction.provenance["plane"])
            picture = draw_preview(query, prediction.volume, axis, confidence=prediction.confidence,
                                   names=task.labels, colours=task.colours, is_label=task.is_segmentation,
                                   doubtful=prediction.provenance.get("doubtful_slices", ()))
        found = measure_labels(prediction, task) if task.is_segmentation else []
        prediction = replace(prediction, confidence=None if files.confidence is None else prediction.confidence,
                             provenance={**prediction.provenance, "found": found})
        return prediction, picture

    def _write(self, answers: list[_Answer], remarks: list[str]) -> list[dict[str, Any]]:
        """One file after the other, the answer first: should the disk be full, nothing that was written is lost."""
        reports = []
        for answer in answers:
            prediction, files = answer.prediction, answer.files
            answer.writer.write(prediction.volume)
            if files.confidence is not None and prediction.confidence is not None:
                write_volume(prediction.confidence, files.confidence, overwrite=self.overwrite)
            if files.preview is not None and answer.picture is not None:
                write_picture(answer.picture, files.preview)
            if files.color_table is not None:
                answer.writer.write_color_table(prediction.volume, files.color_table)
            reports.append({**prediction.provenance, "frame": answer.frame,
                            "outputs": {kind: str(path) for kind, path in files.given().items()},
                            "warnings": [*remarks, *prediction.provenance["warnings"]]})
        if self.report is not None:
            content = {"frames": reports} if self.frame == ALL_FRAMES else reports[0]
            references = [{"name": f"reference {number}", "image": str(image), "label": str(label)}
                          for number, (image, label) in enumerate(self.references, start=1)]
            write_report(self.report, {"query": str(self.query), "references": references, **content,
                                       "peak_memory_mb": peak_memory_mb(), "versions": package_versions()})
        return reports


def numbered(path: Path, frame: int) -> Path:
    """`heart.nii.gz`, 7 -> `heart_frame007.nii.gz`."""
    lower = path.name.lower()
    suffix = next((s for s in _TWO_PART_SUFFIXES if lower.endswith(s)), path.suffix)
    stem = path.name[: len(path.name) - len(suffix)]
    return path.with_name(f"{stem}_frame{frame:03d}{path.name[len(stem):]}")


def _check_choices(job: PredictionJob) -> None:
    """Choices that contradict each other, found before any file is opened."""
    if job.task != "segmentation":
        given = (("confidence", job.outputs.confidence), ("names", job.names),
                 ("color-table", job.outputs.color_table))
        for option, value in given:
            if value is not None:
                raise ValueError(f"--{option} belongs to segmentation, not to {job.task}: leave it out")
    if job.task != "inpainting" and job.hole is not None:
        raise ValueError(f"--hole belongs to inpainting, not to {job.task}: leave it out")
    if job.task == "inpainting" and job.hole is None:
        raise ValueError("inpainting needs --hole MASK, non-zero where to paint")
    if job.reference_slices is not None and len(job.references) > 1:
        raise ValueError("--reference-slices says which slices of one example are solved: give one --reference with it")


def _frames_to_solve(path: Path, frame: Frame | None) -> list[int | None]:
    n_frames = count_frames(path)
    if frame == ALL_FRAMES:
        return list(range(n_frames))
    if frame is None and n_frames > 1:
        raise ValueError(f"{path}: holds {n_frames} frames, numbered 0 to {n_frames - 1}: choose one with --frame N, "
                         f"or --frame {ALL_FRAMES}")
    if frame is not None and frame >= n_frames:
        raise ValueError(f"{path}: has no frame {frame}: it holds {n_frames}, numbered 0 to {n_frames - 1}")
    return [frame]


def read_input(path: Path, frame: int | None) -> Volume:
    """A volume, see `read_volume`; ValueError if it holds NaN."""
    volume = read_volume(path, frame=frame)
    check_finite(volume.array, str(path))
    return volume


def _task(kind: TaskKind, names_file: Path | None, references: list[Reference]
          ) -> tuple[Task, LabelTable, frozenset[int]]:
    """The task, what the user said about labels, and the labels that the references show.

    With a file of names, all labels that are shown are named, if need be by their number.
    """
    if kind != "segmentation":
        return Task(kind), LabelTable(), frozenset()
    shown = frozenset[int]().union(*(labels_in(whole_labels(reference.label.array, f"{reference.name} label"))
                                     for reference in references))
    if names_file is None:
        return Task(kind), LabelTable(), shown
    names, colours = read_names(names_file)
    task = Task.segmentation({number: names.get(number, f"label {number}") for number in sorted(shown)},
                             {number: colours[number] for number in sorted(shown) if number in colours})
    return task, LabelTable(names, colours, read_terminology(names_file)), shown


def _check_png(output: Path, query: Volume, references: list[Reference], task: Task) -> None:
    """A PNG holds one slice of whole numbers: say so before the work, not after it."""
    if output.suffix.lower() != ".png":
        return
    if min(query.geometry.shape) > 1:
        raise VolumeWriteError(f"{output}: a PNG holds one slice, the query has shape {query.geometry.shape}: write "
                               ".nii.gz instead")
    like = references[0].label if task.kind == "synthesis" else query
    if not task.is_segmentation and like.array.dtype.kind == "f":
        raise VolumeWriteError(f"{output}: a PNG holds whole numbers, the answer would hold fractions as its example "
                               "does: write .nii.gz instead")
