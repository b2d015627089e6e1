"""Everything about a cohort that can be found wrong before the first case is started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mvg_core.clinical.outputs import ANSWER_SUFFIXES, check_kind, is_folder
from mvg_core.cohort.cases import CohortCase, CohortSettings
from mvg_core.cohort.manifest import Manifest, Problems
from mvg_core.report import check_folder, read_names
from mvg_core.volume_io import VolumeWriteError

OWN_NAMES = ("records", "logs", "set_aside", "results.csv", "results.parquet")
"""What a cohort's folder holds beside the answers."""


def check_cohort(manifest: Manifest, settings: CohortSettings) -> None:
    """Check every row, and make the folders.

    Raises:
        ManifestError: says which row; missing files, names that are given twice, outputs that cannot be.
        VolumeWriteError: a folder cannot be written to.
        NamesError: the file of names cannot be read.
    """
    if settings.names is not None:
        read_names(settings.names)
    problems = Problems(manifest.path)
    missing: dict[Path, bool] = {}
    for case in manifest.cases:
        for role, path in case.inputs(settings).items():
            if missing.setdefault(path, not path.exists()):
                problems.add(case.row, f"{role} {path} does not exist: correct the path; in a manifest it is relative "
                                       "to the manifest")
        for what in _contradictions(case):
            problems.add(case.row, what)
    _check_outputs(manifest, settings, problems)
    problems.check()
    _make_folders(manifest, settings)


def _contradictions(case: CohortCase) -> Iterator[str]:
    if case.task == "inpainting" and case.hole is None:
        yield "inpainting needs a mask, non-zero where to paint: fill the column 'hole'"
    if case.task != "inpainting" and case.hole is not None:
        yield f"a hole belongs to inpainting, not to {case.task}: leave it out"
    if case.reference_slices is not None and len(case.references) > 1:
        yield "reference_slices says which slices of one example are solved: give one reference with it"


def _check_outputs(manifest: Manifest, settings: CohortSettings, problems: Problems) -> None:
    read = {path.resolve() for case in manifest.cases for path in case.inputs(settings).values()} | {
        manifest.path.resolve()}
    names: dict[str, int] = {}
    written: dict[str, int] = {}
    for case in manifest.cases:
        # Some file systems take a.nii.gz and A.nii.gz for one file.
        if (first := names.setdefault(case.name.casefold(), case.row)) != case.row:
            problems.add(case.row, f"case {case.name!r} is also the name of row {first}: give each its own")
            continue
        for path in case.outputs(settings).given().values():
            if (first := written.setdefault(str(path).casefold(), case.row)) != case.row:
                problems.add(case.row, f"output {path} is also written for row {first}: give each its own name")
            if path.resolve() in read:
                problems.add(case.row, f"output {path} is read by this run, and would be replaced: choose another "
                                       "name or folder")
        if what := _unfit(case, settings):
            problems.add(case.row, what)


def _unfit(case: CohortCase, settings: CohortSettings) -> str | None:
    """Why the answer of a case cannot have this name."""
    answer = settings.out / case.answer
    if Path(case.answer).parts[0].lower() in OWN_NAMES:
        return f"output {case.answer!r} is a name that the cohort's folder needs itself: choose another"
    if not is_folder(answer) and not case.answer.lower().endswith(ANSWER_SUFFIXES):
        return f"output {case.answer!r}: cannot write this kind of file: choose {', '.join(ANSWER_SUFFIXES)}"
    if answer.is_dir() and not is_folder(answer):
        return f"output {answer} is a folder: give the name of a file"
    if is_folder(answer) and case.task != "segmentation":
        return None  # its parent may have to be made first
    try:
        check_kind(answer, case.task, case.query, overwrite=True)
    except VolumeWriteError as error:
        return str(error)
    return None


def _make_folders(manifest: Manifest, settings: CohortSettings) -> None:
    folders = {settings.out, *(settings.out / name for name in ("records", "logs")),
               *((settings.out / case.answer).parent for case in manifest.cases)}
    for folder in sorted(folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VolumeWriteError(f"folder {folder} cannot be made ({error.strerror}): choose another") from error
        check_folder(folder)
