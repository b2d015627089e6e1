"""Where an answer goes, by the name of the output: checked before the work, written after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mvg_core.clinical.dicom_seg import check_dicom_seg, write_dicom_seg
from mvg_core.clinical.dicom_series import (
    check_derived_series,
    check_series_folder,
    is_series_folder,
    write_derived_series,
)
from mvg_core.clinical.segments import Colour, Segment, segments_of, write_color_table, write_seg_nrrd
from mvg_core.clinical.source import DicomSource, read_source
from mvg_core.clinical.terminology import Terminology
from mvg_core.references import labels_in
from mvg_core.report import VOLUME_SUFFIXES
from mvg_core.tasks import Task, TaskKind
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeReadError, VolumeWriteError, write_volume

ANSWER_SUFFIXES = (*VOLUME_SUFFIXES, ".dcm")
"""What the name of an answer may end in; a name without any is the folder of a derived series."""
COLOR_TABLE_SUFFIXES = (".ctbl", ".txt")


@dataclass(frozen=True)
class LabelTable:
    """What the user said about labels; each by the number of the label."""

    names: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[int, Colour] = field(default_factory=dict)
    terminology: Mapping[int, Terminology] = field(default_factory=dict)

    def segments(self, labels: Iterable[int]) -> list[Segment]:
        """The segments of these labels."""
        return segments_of(labels, self.names, self.colours, self.terminology)


def is_folder(output: Path) -> bool:
    """Whether an answer is a derived DICOM series, which fills a folder."""
    return is_series_folder(output, ANSWER_SUFFIXES)


def check_kind(output: Path, kind: TaskKind, query: Path, *, overwrite: bool) -> None:
    """Find out before any file is read whether this kind of output can hold this kind of answer.

    Raises:
        VolumeWriteError: it cannot; or a folder cannot be filled.
    """
    name = output.name.lower()
    if kind == "segmentation":
        if is_folder(output):
            raise VolumeWriteError(f"{output}: names no kind of file: choose {', '.join(ANSWER_SUFFIXES)} for a "
                                   "segmentation")
        if name.endswith(".dcm") and query.is_dir() and output.resolve().parent == query.resolve():
            raise VolumeWriteError(f"{output} would lie among the slices of {query} as a second series: choose another "
                                   "folder")
        return
    if name.endswith(".dcm"):
        raise VolumeWriteError(f"{output}: a derived DICOM series has a file for each slice: give the name of a "
                               f"folder, for example {output.with_suffix('')}")
    if name.endswith(".seg.nrrd"):
        raise VolumeWriteError(f"{output}: a .seg.nrrd holds a segmentation, {kind} makes an image: name it .nrrd")
    if is_folder(output):
        check_series_folder(output, query, overwrite=overwrite)


@dataclass(frozen=True)
class AnswerWriter:
    """Writes one answer; made, and so checked, before the work.

    Attributes:
        output: file or folder.
        task: what was done.
        table: what is known of the labels.
        shown: labels that the examples show.
        source: DICOM files of the query; None where the output needs none.
        guided: see `write_dicom_seg`.
        overwrite: an existing output is replaced.
    """

    output: Path
    task: Task
    table: LabelTable
    shown: frozenset[int]
    source: DicomSource | None
    guided: bool
    overwrite: bool

    @classmethod
    def checked(cls, output: Path, query: Volume, path: Path, frame: int | None, *, task: Task, table: LabelTable,
                shown: frozenset[int], guided: bool, overwrite: bool) -> AnswerWriter:
        """The writer, if the query can have such an answer.

        Args:
            output: checked by `check_kind`.
            query: as read from `path`.
            path: of the query.
            frame: of the query.
            task: what is done.
            table: what is known of the labels.
            shown: labels that the examples show.
            guided: whether an example is of the query itself.
            overwrite: an existing output is replaced.

        Raises:
            VolumeReadError, DicomSourceError: the query is no DICOM series from which this can be made.
            RuntimeError: an extra is missing.
        """
        source = None
        if output.name.lower().endswith(".dcm") or is_folder(output):
            try:
                source = read_source(path, query.geometry, frame)
            except VolumeReadError as error:
                raise VolumeReadError(f"{output}: {'a DICOM segmentation' if task.is_segmentation else 'a folder'} is "
                                      "written for a DICOM QUERY only, because it refers to its files, but "
                                      f"{error}: choose {', '.join(VOLUME_SUFFIXES)}") from error
            if task.is_segmentation:
                check_dicom_seg(source, table.segments(shown or {1}), guided=guided)
            else:
                check_derived_series(query, source, task.kind)
        return cls(output, task, table, shown, source, guided, overwrite)

    def write(self, answer: Volume) -> None:
        """Write the answer.

        Raises:
            VolumeWriteError: no space, no permission.
        """
        name = self.output.name.lower()
        if self.source is not None and not self.task.is_segmentation:
            write_derived_series(answer, self.source, self.task.kind, self.output, overwrite=self.overwrite)
        elif self.source is not None:
            write_dicom_seg(answer, self.source, self._segments(answer), self.output, guided=self.guided,
                            overwrite=self.overwrite)
        elif name.endswith(".seg.nrrd"):
            write_seg_nrrd(answer, self._segments(answer), self.output, overwrite=self.overwrite)
        else:
            write_volume(answer, self.output, overwrite=self.overwrite)

    def write_color_table(self, answer: Volume, path: Path) -> None:
        """Write names and colours of the labels as a color table of 3D Slicer.

        Raises:
            VolumeWriteError: no space, no permission.
        """
        write_color_table(self._segments(answer), path)

    def _segments(self, answer: Volume) -> list[Segment]:
        return self.table.segments(self.shown | labels_in(answer.array))
