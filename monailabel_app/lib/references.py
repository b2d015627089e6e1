"""Which solved examples serve a request; the one place where that is decided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from mvg_core.bundle.prompts_folder import Case, read_cases
from mvg_core.intensity import looks_like_ct
from mvg_core.references import Reference, labels_in, whole_labels
from mvg_core.volume import Volume

from lib.errors import problem
from lib.names import BACKGROUND, SCRIBBLES, Numbering, names_in, renumbered
from lib.volumes import Volumes

AUTO, LATEST, PROMPTS = "auto", "latest labels", "prompts folder"
"""Choices of the option `reference` beside the ids of labelled images."""
HOW_TO = ("no reference yet, and the network needs a solved example: submit the label of an image (Submit Label in "
          "Slicer, else PUT /datastore/label?image=ID&tag=final), upload a label map with the request, or put a case "
          "into the prompts folder (mvg prompts add)")


@dataclass(frozen=True, eq=False)
class Found:
    """What serves a request.

    Attributes:
        references: at least one.
        names: label number -> name.
        source: where they come from, for the answer.
        remarks: what the user should know.
    """

    references: list[Reference]
    names: dict[int, str]
    source: str
    remarks: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Names of the references."""
        return [reference.name for reference in self.references]


class References:
    """Finds the references of a request: the first of uploaded label, `reference_ids`, `reference`, latest, prompts.

    Args:
        datastore: of the server.
        volumes: reads files.
        prompts: folder of reference cases, see `mvg prompts`; need not exist.
        names: number -> name, known from the start.
    """

    def __init__(self, datastore: Datastore, volumes: Volumes, prompts: Path, names: Mapping[int, str]) -> None:
        self._datastore, self._volumes, self.prompts, self._known = datastore, volumes, prompts, dict(names)
        self._shown: dict[tuple, list[int]] = {}

    # --- what there is ---

    def labelled(self) -> list[str]:
        """Ids of the images with a final label that can be used, the oldest label first."""
        def age(image_id: str) -> tuple[int, int]:
            # `ts` is in seconds: labels that a program submits one after the other would be in no order.
            return self._label_info(image_id).get("ts", 0), Path(self.label_file(image_id)).stat().st_mtime_ns

        usable = [one for one in self._datastore.get_labeled_images() if self._present(self.label_file(one))]
        return sorted(usable, key=age)

    def choices(self) -> list[str]:
        """What the option `reference` offers."""
        return [AUTO, LATEST, *([PROMPTS] if self._cases() else []), *reversed(self.labelled())]

    def names(self) -> dict[int, str]:
        """Number -> name of all labels that references show."""
        return self._numbering()[0].names

    def label_file(self, image_id: str) -> str:
        """Path of the final label of an image; empty if it has none."""
        return self._datastore.get_label_uri(image_id, DefaultLabelTag.FINAL)

    def names_of(self, image_id: str) -> dict[int, str]:
        """What the final label of an image holds: number in its file -> name."""
        present = self._present(self.label_file(image_id))
        named = names_in(self._label_info(image_id), present)
        own, table = self.names(), self._numbering()[1].get(image_id, {})
        return {number: named.get(number) or own.get(table.get(number, number), f"label {number}")
                for number in present}

    # --- for a request ---

    def find(self, request: Mapping[str, Any], query: Volume) -> Found:
        """The references of a request for a segmentation.

        Args:
            request: `label` (path), `label_info`, `reference_ids`, `reference`, `n_references`, `any_modality`.
            query: what is to be solved.

        Raises:
            HTTPException: 404 an unknown id, 422 none or one that cannot be used.
            ValueError: a label cannot be used.
        """
        if request.get("label"):
            return self._uploaded(request, query)
        wanted = _as_list(request.get("reference_ids"))
        choice = str(request.get("reference") or AUTO)
        if not wanted and choice not in (AUTO, LATEST, PROMPTS):
            wanted = [choice]
        if wanted:
            return self._checked(self._named(wanted), query, request, "reference_ids", strict=True)
        latest = [] if choice == PROMPTS else list(reversed(self.labelled()))
        for source, found in ((LATEST, self._named(latest)), (PROMPTS, [] if choice == LATEST else self._prompted())):
            references = list(found)
            if references:
                usable = self._checked(references, query, request, source, strict=False)
                if usable.references:
                    return usable
        raise problem(422, self._why_none(choice))

    def pairs(self, request: Mapping[str, Any], task: str) -> Found:
        """The references of a request for an image-to-image task: pairs of ids, or the prompts folder.

        Raises:
            HTTPException: 404 an unknown id, 422 there is none.
        """
        found = [Reference(self._image(before), self._image(after), f"{before} -> {after}")
                 for before, after in _as_pairs(request.get("reference_pairs"))]
        if found:
            return Found(found, {}, "reference_pairs")
        cases = [self._of_case(case) for case in self._cases() if case.task == task]
        if not cases:
            raise problem(422, f"no reference for {task}: send reference_pairs, a list of [id of an image, id of the "
                               f"image as it should look], or add a case to {self.prompts.name}/ "
                               f"(mvg prompts add IMAGE TARGET --task {task})")
        return Found(cases, {}, PROMPTS)

    # --- inside ---

    def _uploaded(self, request: Mapping[str, Any], query: Volume) -> Found:
        label = self._volumes.read(request["label"])
        array = whole_labels(label.array, "the uploaded label")
        present = sorted(labels_in(array))
        named = names_in(request, present)
        drop = {number for number, name in named.items() if name in (*SCRIBBLES, BACKGROUND)}
        array = renumbered(array, {number: number for number in present if number not in drop})
        names = {number: named.get(number) or self.names().get(number, f"label {number}")
                 for number in present if number not in drop}
        if not names:
            raise ValueError("the uploaded label is empty: label at least one slice of the structures you want")
        return Found([Reference(query, label.with_array(array), "uploaded label")], names, "uploaded label")

    def _named(self, ids: Iterable[str]) -> Iterable[Reference]:
        """The labelled images with these ids, one after the other."""
        _, tables = self._numbering()
        for one in ids:
            image = self._image(one)
            path = self.label_file(one)
            if not path:
                raise problem(404, f"image {one!r} has no label with the tag 'final', so it cannot be a reference: "
                                   "submit its label first")
            label = self._volumes.read(path)
            array = renumbered(whole_labels(label.array, f"the label of {one!r}"), tables.get(one, {}))
            yield Reference(image, label.with_array(array), one)

    def _prompted(self) -> Iterable[Reference]:
        _, tables = self._numbering()
        for case in self._cases():
            if case.task != "segmentation":
                continue
            reference = self._of_case(case)
            table = tables[f"{PROMPTS}/{case.name}"]
            array = renumbered(whole_labels(reference.label.array, f"the label of case {case.name!r}"), table)
            yield replace(reference, label=reference.label.with_array(array))

    def _of_case(self, case: Case) -> Reference:
        hole = None if case.hole is None else self._volumes.read(case.hole)
        return Reference(self._volumes.read(case.image), self._volumes.read(case.label), case.name, case.slices, hole)

    def _checked(self, references: Iterable[Reference], query: Volume, request: Mapping[str, Any], source: str, *,
                 strict: bool) -> Found:
        """Those that can serve the query; with `strict` one that cannot is an error."""
        most = whole_number(request, "n_references", 3)
        any_modality = str(request.get("any_modality", "")).lower() in ("true", "1")
        is_ct, kept = looks_like_ct(query.array), list[Reference]()
        for reference in references:
            reason = None
            if not any_modality and looks_like_ct(reference.image.array) != is_ct:
                here, there = ("CT", "no CT") if is_ct else ("no CT", "CT")
                reason = f"the image looks like {here}, reference {reference.name!r} like {there}"
            elif _is_picture(reference.image) != _is_picture(query):
                reason = f"one of the image and reference {reference.name!r} is a picture, the other a volume"
            elif not strict and reference.is_part_of(query):
                continue
            if reason and strict:
                raise problem(422, f"{reason}: use a reference of the same kind (any_modality: true allows another "
                                   "modality)")
            if not reason:
                kept.append(reference)
            if not strict and len(kept) == most:
                break
        return Found(kept, self.names(), source)

    def _why_none(self, choice: str) -> str:
        if choice == PROMPTS and not self._cases():
            return f"the prompts folder {self.prompts} is empty: add a case with `mvg prompts add IMAGE LABEL`"
        if self.labelled() or self._cases():
            return ("none of the references can serve this image: they are of another modality, of another kind "
                    "(picture or volume), or the image itself. Submit the label of an image like this one, or upload a "
                    "label map of some of its slices with the request")
        return HOW_TO

    def _numbering(self) -> tuple[Numbering, dict[str, dict[int, int]]]:
        """One numbering for all references, and for each the table from its own numbers."""
        numbering, tables = Numbering(self._known), {}
        for case in self._cases():
            if case.task == "segmentation":
                present = sorted(case.labels) or self._present(case.label)
                tables[f"{PROMPTS}/{case.name}"] = numbering.take(present, case.labels)
        for one in self.labelled():
            present = self._present(self.label_file(one))
            tables[one] = numbering.take(present, names_in(self._label_info(one), present))
        return numbering, tables

    def _present(self, path: str | Path) -> list[int]:
        """The numbers in a label map; none if it cannot be used: files may be put into the folder by hand."""
        if not path or not Path(path).is_file():
            return []
        state = Path(path).stat()
        key = str(path), state.st_mtime_ns, state.st_size
        if key not in self._shown:
            try:
                array = whole_labels(self._volumes.read(path).array, Path(path).name)
                self._shown[key] = sorted(labels_in(array))
            except ValueError:  # told to whoever names it as a reference
                self._shown[key] = []
        return self._shown[key]

    def _label_info(self, image_id: str) -> dict[str, Any]:
        return self._datastore.get_label_info(image_id, DefaultLabelTag.FINAL) or {}

    def _image(self, image_id: str) -> Volume:
        path = self._datastore.get_image_uri(image_id)
        if not path:
            raise problem(404, f"no image has the id {image_id!r}: GET /datastore/?output=all lists those there are")
        return self._volumes.read(path)

    def _cases(self) -> tuple[Case, ...]:
        return read_cases(self.prompts)


def digest(references: Sequence[Reference]) -> str:
    """Checksum of what the references show, to tell whether an answer is still up to date."""
    found = hashlib.sha256()
    for reference in references:
        for volume in (reference.image, reference.label):
            found.update(np.ascontiguousarray(volume.array).data)
    return found.hexdigest()[:16]


def whole_number(request: Mapping[str, Any], key: str, default: int) -> int:
    """An option that is a number, at least 1; clients may send it as text.

    Raises:
        ValueError: it is none.
    """
    given = request.get(key) or default
    if not str(given).strip().isdigit() or int(given) < 1:
        raise ValueError(f"{key} must be a whole number, at least 1, got {given!r}")
    return int(given)


def _is_picture(volume: Volume) -> bool:
    return min(volume.array.shape) == 1


def _as_list(given: Any) -> list[str]:
    """Ids from a list, or from text with commas, as Slicer's options send it."""
    if isinstance(given, str):
        given = given.split(",")
    return [str(one).strip() for one in given or () if str(one).strip()]


def _as_pairs(given: Any) -> list[tuple[str, str]]:
    """Pairs of ids from a list of lists, or from text such as `a=b, c=d`."""
    pairs = [one.split("=") for one in _as_list(given)] if isinstance(given, str) else list(given or ())
    if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise ValueError(f'reference_pairs must be a list such as [["noisy1", "clean1"]], got {given!r}')
    return [(str(before).strip(), str(after).strip()) for before, after in pairs]
