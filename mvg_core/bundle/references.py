"""Where the configs take their solved examples from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from mvg_core.bundle.images import single_image
from mvg_core.bundle.prompts_folder import LISTING, Case, PromptsError, common_task, read_cases
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.training.datalist import DatalistError, read_datalist

Given = str | PathLike[str] | Mapping[str, Any] | Sequence[Any]


class ReferenceSource:
    """Solved examples: those that are named, else the `references` of the datalist, else a folder of reference cases.

    Files are read when they are first needed, and again once the list in the folder has changed: a server need not be
    started anew when a case is added.

    Args:
        prompts: folder of reference cases.
        reference: image and label file, several such pairs, dictionaries as in `prompts.json` (`image`, `label`, and
            what else is known), or a datalist whose `references` (else `training`) are taken.
        datalist: what is to be predicted; used if it is the path of a datalist with `references`.
        task: takes only the cases that show this; None takes all, which must show the same.
        names: takes only the cases with these names.
    """

    def __init__(self, prompts: str | PathLike[str], reference: Given | None = None, datalist: Any = None, *,
                 task: str | None = None, names: Sequence[str] | None = None) -> None:
        self.prompts, self._reference, self._datalist = Path(prompts), reference, datalist
        self._task, self._names = task, names
        self._read: tuple[object, list[Reference], Task] | None = None

    def __call__(self) -> tuple[list[Reference], Task]:
        """The references and what they show.

        Raises:
            PromptsError: there is none, or they do not belong together.
            VolumeReadError: a file of a case cannot be read.
        """
        state = self._state()
        if self._read is None or self._read[0] != state:
            cases = self.cases()
            self._read = state, [case.read() for case in cases], common_task(cases)
        return self._read[1], self._read[2]

    def cases(self) -> list[Case]:
        """The cases that were chosen; at least one.

        Raises:
            PromptsError: there is none, or not those that were asked for.
        """
        cases = self._all_cases()
        if not cases:
            raise PromptsError(f"{self.prompts} has no reference case, and the network needs a solved example: add one "
                               "with `mvg prompts add IMAGE LABEL`, try `mvg prompts demo`, or name one with "
                               "--reference \"['image','label']\"")
        known = ", ".join(f"{case.name} ({case.task})" for case in cases)
        for name in self._names or ():
            if name not in [case.name for case in cases]:
                raise PromptsError(f"no reference case is called {name!r}, only {known}")
        chosen = [case for case in cases if self._task in (None, case.task)
                  and (self._names is None or case.name in self._names)]
        if not chosen:
            raise PromptsError(f"no reference case shows {self._task!r}, only {known}")
        return chosen

    def _all_cases(self) -> list[Case]:
        if self._reference is not None:
            return _given_cases(self._reference)
        listed = _listed_cases(self._datalist, "references") if _is_json(self._datalist) else []
        return listed or list(read_cases(self.prompts))

    def _state(self) -> object:
        path = self.prompts / LISTING
        return path.stat().st_mtime_ns if path.is_file() else None


def _given_cases(given: Given) -> list[Case]:
    """`reference` of `ReferenceSource` in all its forms."""
    if isinstance(given, (str, PathLike)):
        if not _is_json(given):
            raise PromptsError(f"{given} is one file: give an image and its label, --reference \"['image','label']\", "
                               "or a datalist (.json)")
        return _listed_cases(given, "references") or _listed_cases(given, "training")
    items = [given] if isinstance(given, Mapping) or _is_pair(given) else list(given)
    return [_given_case(item, number) for number, item in enumerate(items, start=1)]


def _is_pair(given: Any) -> bool:
    return isinstance(given, Sequence) and len(given) == 2 and all(isinstance(path, (str, PathLike)) for path in given)


def _is_json(given: Any) -> bool:
    return isinstance(given, (str, PathLike)) and Path(given).suffix.lower() == ".json"


def _given_case(item: Any, number: int) -> Case:
    if _is_pair(item):
        item = {"image": item[0], "label": item[1]}
    try:
        return Case.from_json({"name": f"reference {number}", **item}, Path())
    except (ValueError, KeyError, TypeError) as error:
        raise PromptsError(f"reference {number} is {item!r}: give image and label file, --reference "
                           "\"['image','label']\"") from error


def _listed_cases(path: str | PathLike[str], split: str) -> list[Case]:
    """Solved items of a datalist; none if it has no such split."""
    try:
        items = read_datalist(path, split)
    except DatalistError:
        if read_datalist(path, split, allow_missing=True):
            raise
        return []
    return [_listed_case(item) for item in items]


def _listed_case(item: Mapping[str, Any]) -> Case:
    item = single_image(item)
    if item.get("label") is None:
        raise PromptsError(f"{item['datalist']}: the item of {item['subject']!r} has no answer, so it cannot be a "
                           "reference: add its 'label' or 'target'")
    return Case(item["subject"], Path(item["image"]), Path(item["label"]), item["task"], item["labels"],
                merge=item["merge"])
