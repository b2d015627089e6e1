"""Manifests: one row for each case, as a spreadsheet (CSV) or as a datalist (JSON)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mvg_core.cohort.cases import CohortCase, stem_of
from mvg_core.tasks import TASK_KINDS, TaskKind

COLUMNS = ("case", "query", "output", "task", "reference_image", "reference_label", "reference_slices",
           "reference_frame", "plane", "frame", "window", "hole")
PLANES = ("auto", "axial", "coronal", "sagittal")
_DELIMITERS = (",", ";", "\t")
_SEPARATOR = ";"
# What file systems, shells or spreadsheets would take for something else.
_BAD_IN_NAME = re.compile(r'[\\/:*?"<>|\x00-\x1f]|^[\s.=+@~-]|[\s.]$')

References = tuple[tuple[Path, Path], ...]


class ManifestError(ValueError):
    """A manifest that cannot be run; says in which row, and what to do."""


@dataclass(frozen=True)
class Defaults:
    """What holds for every row that does not say otherwise.

    Attributes:
        references: shared solved examples.
        task: what to do.
        plane: how to slice.
        window: lowest and highest intensity.
        frame: of queries with several frames.
        suffix: of answers whose name is not given.
    """

    references: References = ()
    task: TaskKind = "segmentation"
    plane: str = "auto"
    window: tuple[float, float] | None = None
    frame: int | Literal["all"] | None = None
    suffix: str = ".nii.gz"


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read.

    Attributes:
        path: its file.
        cases: in the order of its rows.
        unused: columns that mean nothing here.
    """

    path: Path
    cases: tuple[CohortCase, ...]
    unused: tuple[str, ...] = ()


class Problems:
    """What is wrong with which row; all rows are looked at before the first is complained about."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[int, str] = {}

    def add(self, row: int, what: object) -> None:
        """Note the first problem of a row."""
        self._found.setdefault(row, str(what))

    def check(self) -> None:
        """Raise ManifestError about the first row with a problem, naming the others, if there is one."""
        if not self._found:
            return
        first, *others = sorted(self._found)
        more = f" (rows with problems as well: {_listed(others)})" if others else ""
        raise ManifestError(f"{self._path}, row {first}: {self._found[first]}{more}")


def read_manifest(path: Path, defaults: Defaults | None = None, *, split: str = "test") -> Manifest:
    """Read a manifest; opens none of the files that it names.

    Args:
        path: CSV (comma, semicolon or tab), or a datalist (.json, see `training.datalist`). Paths in it are relative
            to it.
        defaults: for what a row leaves open.
        split: which list of a datalist.

    Raises:
        FileNotFoundError: no such file.
        ManifestError: it cannot be understood.
    """
    defaults = defaults or Defaults()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the CSV file that lists the cases")
    manifest = _of_datalist(path, defaults, split) if path.suffix.lower() == ".json" else _of_table(path, defaults)
    if not manifest.cases:
        raise ManifestError(f"{path}: lists no case: write one row for each, below the header")
    return manifest


# ----------------------------------------------------------------------------------------------------------- CSV


def _of_table(path: Path, defaults: Defaults) -> Manifest:
    header, rows = _table(path)
    problems, cases = Problems(path), []
    for number, cells in rows:
        if len(cells) > len(header):
            problems.add(number, f"has {len(cells)} cells, the header {len(header)}: put a cell that holds the "
                                 "delimiter into double quotes")
            continue
        try:
            cases.append(_case(number, dict(zip(header, cells, strict=False)), path.parent, defaults))
        except ValueError as error:
            problems.add(number, error)
    problems.check()
    return Manifest(path, tuple(cases), tuple(name for name in header if name and name not in COLUMNS))


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the rows that are not empty with their numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(_DELIMITERS, key=first.count)
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter=delimiter, strict=True)]
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: is not UTF-8 text (byte {error.start}): save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        raise ManifestError(f"{path}: is not a CSV table ({error}): check its double quotes") from error
    if not lines or "query" not in (header := [name.lower() for name in lines[0]]):
        raise ManifestError(f"{path}: row 1 names no column 'query': begin with a header such as case,query,"
                            "reference_image,reference_label")
    doubled = sorted({name for name in header if name in COLUMNS and header.count(name) > 1})
    if doubled:
        raise ManifestError(f"{path}: row 1 names the column {doubled[0]!r} more than once: join them, several values "
                            f"of one cell separated by '{_SEPARATOR}'")
    return header, [(number, line) for number, line in enumerate(lines[1:], start=2) if any(line)]


def _case(row: int, cells: Mapping[str, str], folder: Path, defaults: Defaults) -> CohortCase:
    """One row; ValueError if it cannot be understood."""
    given = {name: cell for name, cell in cells.items() if cell}
    if "query" not in given:
        raise ValueError("the query is missing: fill the column 'query'")
    query = _path(folder, given["query"])
    name = given.get("case", stem_of(query.name))
    task = _one_of(given.get("task", defaults.task), TASK_KINDS, "task")
    return CohortCase(
        _checked_name(name), row, query, _references(given, folder, query, task, defaults.references),
        _answer(given.get("output"), name, defaults.suffix), task,
        _one_of(given.get("plane", defaults.plane), PLANES, "plane"), _read(given, "window", _window, defaults.window),
        _path(folder, given["hole"]) if "hole" in given else None, _read(given, "frame", _frame, defaults.frame),
        _read(given, "reference_frame", _number, None), _read(given, "reference_slices", _numbers, None))


def _references(given: Mapping[str, str], folder: Path, query: Path, task: TaskKind, shared: References) -> References:
    """The row's own examples, else the shared ones. A label without an image belongs to the query."""
    images, labels = ([_path(folder, part.strip()) for part in given.get(column, "").split(_SEPARATOR) if part.strip()]
                      for column in ("reference_image", "reference_label"))
    if not images and not labels:
        if not shared:
            raise ValueError("has no solved example: fill reference_image and reference_label, or give all rows the "
                             "same with --reference IMAGE LABEL")
        return shared
    if not images:
        images = [query] * len(labels)
    if len(images) != len(labels):
        raise ValueError(f"names {len(images)} reference images and {len(labels)} labels: give as many of each, "
                         f"separated by '{_SEPARATOR}'")
    return tuple(zip(images, labels, strict=True))


def _answer(output: str | None, name: str, suffix: str) -> str:
    if output is None:
        return f"{name}{suffix}"
    path = Path(output)
    if path.is_absolute() or ".." in path.parts or "\\" in output or not path.name:
        raise ValueError(f"output {output!r} must be a name inside the folder of --out, such as {name}{suffix}")
    if _BAD_IN_NAME.search(path.name):
        raise ValueError(f"output {output!r} is not fit for a file name: use letters, digits, '-' and '_'")
    return path.as_posix()


def _checked_name(name: str) -> str:
    if _BAD_IN_NAME.search(name):
        raise ValueError(f"case {name!r} is not fit for a file name: use letters, digits, '-' and '_'")
    return name


def _path(folder: Path, text: str) -> Path:
    return (folder / Path(text).expanduser()).absolute()


def _one_of(text: str, known: Sequence[Any], column: str) -> Any:
    if text not in known:
        raise ValueError(f"{column} {text!r} is unknown: use one of {', '.join(known)}")
    return text


def _read(given: Mapping[str, str], column: str, read: Callable[[str], Any], default: Any) -> Any:
    if column not in given:
        return default
    try:
        return read(given[column])
    except ValueError:
        needed = {"window": "two numbers, low and high, such as -200 300", "frame": "a number from 0, or all",
                  "reference_frame": "a number from 0", "reference_slices": "slice numbers such as 40;52"}[column]
        raise ValueError(f"{column} is {given[column]!r}, needed {needed}") from None


def _window(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in re.split(r"[\s;]+", text))
    if not low < high:
        raise ValueError
    return low, high


def _frame(text: str) -> int | Literal["all"]:
    return "all" if text == "all" else _number(text)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(part) for part in re.split(r"[\s;,]+", text))


# ------------------------------------------------------------------------------------------------------ datalist


def _of_datalist(path: Path, defaults: Defaults, split: str) -> Manifest:
    """The items of a list; without shared examples those of its list `references`, never of the query's subject."""
    from mvg_core.evaluation.cases import Case, UnsuitableItemError, examples_for, pair_for, read_cases
    from mvg_core.training.datalist import Datalist

    def pairs(cases: Iterable[Case]) -> list[Any]:
        return [pair_for(case, defaults.task) for case in cases]

    try:
        pool = (pairs(read_cases(path, "references"))
                if not defaults.references and Datalist.open(path).listing.get("references") else [])
    except UnsuitableItemError as error:
        raise ManifestError(f"{path}: cannot serve as an example: {error}: correct the list 'references'") from error
    problems, cases = Problems(path), []
    for row, case in enumerate(read_cases(path, split), start=1):
        own = tuple((pair.image, pair.answer) for pair in examples_for(case, pool, 0))
        if not (references := defaults.references or own):
            problems.add(row, "has no solved example: name some in the list 'references', or give --reference IMAGE "
                              "LABEL")
            continue
        query = next(iter(case.images.values()), None) or case.source
        assert query is not None  # an item has an image or a source
        cases.append(CohortCase(case.name, row, query, references, f"{case.name}{defaults.suffix}", defaults.task,
                                defaults.plane, defaults.window, None, defaults.frame))
    problems.check()
    return Manifest(path, tuple(cases))


def _listed(rows: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, rows[:most])) + (f" and {len(rows) - most} more" if len(rows) > most else "")
