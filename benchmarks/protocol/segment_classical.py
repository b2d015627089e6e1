"""Segmentation without learning: copying the example's label, and registering the example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import zoom

from mvg_core.demons import DemonsConfig, chain
from mvg_core.intensity import IntensityScaling
from mvg_core.predict import Prediction
from mvg_core.references import Reference, marked_slices
from mvg_core.registration import RegistrationConfig, align
from mvg_core.tasks import Task
from mvg_core.volume import Volume


class CopySolver:
    """The label of the examples, put on the query as it is; several examples vote.

    That of one slice is put on every slice, that of a volume is stretched to the query's grid.
    """

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        labels = sorted(task.foreground)
        if references[0].is_part_of(query):
            slices, start = _stack(references[0].label, plane), given_slice(references[0], plane)
            copied = np.broadcast_to(slices[start], slices.shape)
            return _prediction(query, np.moveaxis(np.where(np.isin(copied, labels), copied, 0), 0, plane))
        votes = np.zeros((*query.array.shape, 1 + len(labels)), np.float32)
        for reference in references:
            label = _stretched(reference, query)
            for row, number in enumerate([0, *labels]):
                votes[..., row] += label == number if row else ~np.isin(label, labels)
        return _prediction(query, decided(votes, labels))


class RegistrationSolver:
    """One slice: demons chained from neighbour to neighbour. Other subjects: affine, then demons; examples vote.

    Args:
        settings: `slice_smooth`, `slice_iterations` (chained); `smooth` (demons of volumes; None leaves them out);
            `power` (votes are weighted by the match to this power).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._slices = DemonsConfig(tuple(settings["slice_iterations"]), settings["slice_smooth"],
                                    match_histogram=False)
        config = RegistrationConfig()
        smooth = settings["smooth"]
        self._volumes = replace(config, demons_mm=None) if smooth is None else replace(
            config, demons=replace(config.demons, smooth=smooth))

    def __call__(self, query: Volume, references: Sequence[Reference], task: Task, *, plane: int,
                 hole: Volume | None) -> Prediction:
        """See `Solver`."""
        labels = sorted(task.foreground)
        if references[0].is_part_of(query):
            return _prediction(query, self._chained(query, references[0], labels, plane))
        votes = np.zeros((*query.array.shape, 1 + len(labels)), np.float32)
        for reference in references:
            label = reference.checked(task).label
            found = align(query, reference.image, self._volumes, label=label)
            votes += max(found.quality, 0.01) ** self._settings["power"] * found.probabilities(label, labels)
        return _prediction(query, decided(votes, labels))

    def _chained(self, query: Volume, reference: Reference, labels: Sequence[int], plane: int) -> npt.NDArray[np.uint8]:
        slices = _stack(query.with_array(IntensityScaling.for_volume(query.array).apply(query.array)), plane)
        start = given_slice(reference, plane)
        carried = chain(slices, _stack(reference.label, plane)[start], start, labels, self._slices)
        return np.moveaxis(decided(carried, labels), 0, plane)


def given_slice(reference: Reference, plane: int) -> int:
    """The number of the one labelled slice."""
    return int(reference.slices[0] if reference.slices else marked_slices(reference.label.array, plane)[0])


def decided(votes: npt.NDArray[np.floating], labels: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The label with most votes (..., 1 + L), background first."""
    return np.array([0, *labels], np.uint8)[votes.argmax(axis=-1)]


def _stretched(reference: Reference, query: Volume) -> npt.NDArray:
    """The example's label map, its axes ordered and turned as the query's, stretched to the query's shape."""
    label = reference.label
    codes, wanted = label.geometry.axis_codes, query.geometry.axis_codes
    pairs = ("LR", "PA", "IS")
    kind = {code: number for number, pair in enumerate(pairs) for code in pair}
    order = [[kind[code] for code in codes].index(kind[code]) for code in wanted]
    array = label.array.transpose(order)
    flips = tuple(slice(None, None, 1 if codes[old] == code else -1) for old, code in zip(order, wanted, strict=True))
    array = array[flips]
    factors = [n / m for n, m in zip(query.array.shape, array.shape, strict=True)]
    return np.asarray(zoom(array, factors, order=0, grid_mode=True, mode="nearest"))


def _stack(volume: Volume, axis: int) -> npt.NDArray:
    return np.moveaxis(volume.array, axis, 0)


def _prediction(query: Volume, label: npt.NDArray) -> Prediction:
    return Prediction(query.with_array(np.ascontiguousarray(label, dtype=np.uint8)), None)
