"""One item of a datalist: which keys it may have, and what their values mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvg_core.tasks import MAX_LABEL, TASK_KINDS

IMAGE_TASKS = tuple(kind for kind in TASK_KINDS if kind != "segmentation")
PATH_KEYS = ("image", "label", "source", "target")
"""Keys of an item that hold paths; `image` may hold one for each contrast."""
Item = dict[str, Any]


class DatalistError(ValueError):
    """A datalist, or an item of one, that cannot be used; the message has the path of the list."""


def check_item(item: Mapping[str, Any], where: str, *, labelled: bool = True) -> None:
    """Refuse an item whose keys do not say what it is an example of.

    Args:
        item: MONAI-style; `task` is segmentation if not given.
        where: what messages begin with.
        labelled: whether a segmentation needs its label.

    Raises:
        DatalistError: a key is missing or does not go with another one.
    """
    task = item.get("task", "segmentation")
    if task not in TASK_KINDS:
        raise DatalistError(f"{where}: task {task!r} is unknown: use one of {', '.join(TASK_KINDS)}")
    if "source" in item or "target" in item:
        for key in ("source", "target"):
            if item.get(key) is None:
                raise DatalistError(f"{where}: has no {key!r}: an image-to-image item needs 'source' and 'target'")
        if item.get("image") is not None or item.get("label") is not None:
            raise DatalistError(f"{where}: has both 'source' and 'image' or 'label': make two items of it")
        if task == "segmentation":
            raise DatalistError(f"{where}: 'source' and 'target' are images, and its task is segmentation: set 'task' "
                                f"to one of {', '.join(IMAGE_TASKS)}, or use 'image' and 'label'")
        return
    if "image" not in item:
        other = "a 'label' but no" if "label" in item else "no"
        raise DatalistError(f"{where}: has {other} 'image': add its path (\"image\": null if there is none, for label "
                            "maps that are painted artificially)")
    if item["image"] is None and item.get("label") is None:
        raise DatalistError(f"{where}: has neither 'image' nor 'label'")
    if labelled and task == "segmentation" and item.get("label") is None:
        raise DatalistError(f"{where}: has an 'image' but no 'label': add the label, or set 'task' to denoising, "
                            "inpainting or synthesis, which learn from images alone")


def files_of(item: Mapping[str, Any]) -> list[str]:
    """All paths of an item, images first."""
    files = []
    for key in PATH_KEYS:
        value = item.get(key)
        files += list(value.values()) if isinstance(value, Mapping) else [value] if value is not None else []
    return [str(file) for file in files]


def default_subject(item: Mapping[str, Any]) -> str:
    """The name of the item's first file, without suffixes."""
    name = Path(files_of(item)[0]).name
    for suffix in (".nii.gz", ".seg.nrrd"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def label_table(labels: Any, where: str) -> dict[int, str]:
    """Label number -> name without background, from `{"1": "liver"}` or `{"liver": 1}`.

    Raises:
        DatalistError: numbers that are none, out of range, or two labels of one name.
    """
    if not isinstance(labels, Mapping):
        raise DatalistError(f'{where}: labels must be such as {{"1": "liver"}}, got {labels!r}')
    table: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (key, value) if str(key).strip().isdigit() else (value, key)
        if not isinstance(number, (int, str)) or not str(number).strip().isdigit():
            raise DatalistError(f'{where}: label {key!r}: {value!r} has no number: write it as {{"1": "liver"}}')
        if not 0 <= int(number) <= MAX_LABEL:
            raise DatalistError(f"{where}: label {number} is outside 0 to {MAX_LABEL}: renumber it")
        if not isinstance(name, str) or not name.strip():
            raise DatalistError(f"{where}: label {number} has no name, got {name!r}")
        if int(number) in table:
            raise DatalistError(f"{where}: label {number} is named twice, {table[int(number)]!r} and {name!r}")
        table[int(number)] = name.strip()
    table.pop(0, None)
    names = [same_name(name) for name in table.values()]
    for name in names:
        if names.count(name) > 1:
            raise DatalistError(f"{where}: two labels are called {name!r}: give each its own name, or 'merge' one into "
                                "the other")
    return table


def same_name(name: str) -> str:
    """Names that differ in letter case or spaces only become one."""
    return " ".join(name.casefold().replace("_", " ").split())


def merge_table(merges: Any, where: str) -> dict[int, int]:
    """Label number -> number that replaces it, from `{"3": 1}`.

    Raises:
        DatalistError: anything else, or numbers out of range.
    """
    try:
        table = {int(old): int(new) for old, new in merges.items()}
    except (AttributeError, TypeError, ValueError):
        table = {-1: -1}
    if any(not 0 < old <= MAX_LABEL or not 0 <= new <= MAX_LABEL for old, new in table.items()):
        raise DatalistError(f'{where}: merge must map label numbers to label numbers such as {{"3": 1}} (0 removes a '
                            f"label), got {merges!r}")
    return table


def modality_text(modality: Any) -> str:
    """One text; the Decathlon gives every channel its own."""
    if isinstance(modality, Mapping):
        return ", ".join(str(value) for value in modality.values())
    return "" if modality is None else str(modality)


def checked_weight(weight: Any, where: str) -> float:
    """The weight as a number.

    Raises:
        DatalistError: it is none, negative or infinite.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
        raise DatalistError(f"{where}: weight must be a number, 0 or more, got {weight!r}")
    return float(weight)
