"""Labels keep their names: clients number segments by the order in which they were drawn, which differs by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mvg_core.tasks import MAX_LABEL
from mvg_core.training.datalist_items import same_name

SCRIBBLES = ("foreground_scribbles", "background_scribbles")
"""Segments that Slicer's module adds for painting; they are no labels."""
BACKGROUND = "background"


def names_in(info: Mapping[str, Any], present: Sequence[int]) -> dict[int, str]:
    """What a client says its label numbers mean.

    Args:
        info: what was saved or sent with a label map: `label_info` (Slicer, OHIF: a list of `name` with `idx` or `id`),
            or `label_names` (name -> number, as this app's answers have them).
        present: the numbers in the label map.

    Returns:
        Number -> name, of the numbers that have one.

    Raises:
        ValueError: it is neither.
    """
    named = info.get("label_names") or (info.get("params") or {}).get("label_names")
    if isinstance(named, Mapping):
        return {int(number): str(name) for name, number in named.items()}
    entries = info.get("label_info") or []
    try:
        listed = [(int(entry.get("idx", entry.get("id", place))), str(entry["name"]))
                  for place, entry in enumerate(entries, start=1)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError('label_info must be a list such as [{"name": "liver", "idx": 1}], got '
                         f"{str(entries)[:200]}") from error
    by_number = dict(listed)
    if set(present) <= set(by_number):
        return by_number
    # Slicer counts segments that it does not save, such as scribbles, in `idx`, but not in the label map.
    return {place: name for place, (_, name) in enumerate(listed, start=1)}


class Numbering:
    """One numbering for the label maps of all cases; the first that comes keeps its numbers.

    Args:
        names: number -> name, known from the start.
    """

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        self._names: dict[int, str | None] = dict(names or {})

    @property
    def names(self) -> dict[int, str]:
        """Number -> name of all labels so far; those without a name are called by their number."""
        return {number: name or f"label {number}" for number, name in sorted(self._names.items())}

    def take(self, present: Sequence[int], names: Mapping[int, str]) -> dict[int, int]:
        """Add the labels of a label map; the numbers that they have from now on.

        Args:
            present: its numbers.
            names: of some of them; a label without a name is taken to be the one that has its number.

        Raises:
            ValueError: there are more labels than a label map can hold.
        """
        return {number: self._number(number, names.get(number)) for number in sorted(present)}

    def _number(self, number: int, name: str | None) -> int:
        if name is None or name == f"label {number}":
            self._names.setdefault(number, None)
            return number
        for known, other in self._names.items():
            if other is not None and same_name(other) == same_name(name):
                return known
        if self._names.get(number) is not None:
            number = next((n for n in range(1, MAX_LABEL + 1) if n not in self._names), 0)
            if not number:
                raise ValueError(f"the label maps hold more than {MAX_LABEL} labels of different names: remove some")
        self._names[number] = name
        return number


def renumbered(array: npt.NDArray[np.uint8], table: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    """A label map (...) with new numbers; what the table does not name becomes background."""
    lookup = np.zeros(MAX_LABEL + 1, np.uint8)
    for old, new in table.items():
        lookup[old] = new
    return lookup[array]
