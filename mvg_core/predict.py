"""From a query volume and solved references to an answer on the query's own grid.

Slices are cut, painted and put back block by block, so memory beyond the input stays small however many there are.

Shape letters: N slices, B slices of one block, S side of a network slice, L labels.
"""

from __future__ import annotations

import copy
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core import __version__
from mvg_core.backends import Backend, BackendChoice, Encoded, load_backend, reader_of, reader_sha256
from mvg_core.codecs import (
    MAX_LABELS_PER_PASS,
    LabelCodec,
    PaletteKind,
    label_groups,
    merge_groups,
    restricted,
)
from mvg_core.holes import fill_slices
from mvg_core.image_painter import ImagePainter, image_painter, prior_of
from mvg_core.intensity import IntensityScaling, check_finite, looks_like_ct
from mvg_core.label_reader import LabelReading
from mvg_core.label_readout import LabelMoments
from mvg_core.memory import Work, room
from mvg_core.precision import Precision
from mvg_core.prompts import Prompt, Support, nearest
from mvg_core.recent import Recent
from mvg_core.references import (
    PromptSource,
    Reference,
    check_not_constant,
    choose_axis,
    common_spacing,
    hole_mask,
    marked_slices,
    only_slices,
    plan_for,
    scaled_slices,
    slice_range,
)
from mvg_core.slices import SlicePlan
from mvg_core.tasks import Task
from mvg_core.tuning import TuningConfig, thinned, tuned_backend
from mvg_core.volume import GeometryError, Volume

CT_IMAGE_WINDOW_HU = (-1000.0, 1000.0)
"""Image-to-image tasks on CT see everything from air to bone; soft-tissue windows are for segmentation."""
PIXEL_MULTIPLE = 16
BLOCK = 8
READING = 0.5
"""Share of the readout in a segmentation, where the weights come with a reader."""
_KEPT_MOMENTS = 256
N_READ = 24
"""Most prompts whose sums serve one slice: that costs next to nothing once they were made."""
Progress = Callable[[int, int], None]
Labels = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]


class PredictionWarning(UserWarning):
    """The prediction was made, but something about the input deserves a look."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """An answer, always on the query's own geometry.

    Attributes:
        volume: label map (uint8), or image (float32; float64 if the query's type needs it) in the query's units; for
            synthesis float32 in the units of the references' targets, from their mean black to their mean white.
        confidence: float32 in [0, 1]; None for image-to-image tasks.
        provenance: versions, checkpoint, task, prompts, seconds and warnings; JSON-serialisable.
    """

    volume: Volume
    confidence: Volume | None
    provenance: dict[str, Any] = field(default_factory=dict)


class Predictor:
    """Paints slices and volumes.

    Args:
        backend: runs the network.
        n_prompts: most prompts that serve one slice, the nearest in position.
        palette: colours of segmentations, see `codecs.palette`.
        cached_prompts: encoded prompts kept for reuse, where one slice does not need more (prompts x label groups).
        block: most slices of native size painted at once, fewer of larger ones; more is faster on a GPU. None: 8, on a
            CPU 4, which is as fast there and takes half the memory.
        max_memory_mb: most memory (10^6 bytes) that the process may take: fewer slices are then painted at once and
            fewer prompts kept encoded, and what does not fit is refused before it begins.
        tuning: tunes a copy of the network on the prompts of every call first, which costs seconds to minutes and may
            help or hurt; None leaves the network as it is, a number stands for so many steps. Where a readout
            answers, nothing is tuned: it is fitted to the prompts in any case.
        readout: answers image-to-image tasks by a readout of feature maps, if the network makes such; False paints.
        reading: share of the readout in segmentations, 0 to 1, if the weights come with a reader; the rest is painted.

    Attributes:
        tuned: what `tuning` did to this predictor's network; None if it was not tuned.
    """

    def __init__(self, backend: Backend, *, n_prompts: int = 3, palette: PaletteKind = "wide",
                 cached_prompts: int = 32, block: int | None = None, tuning: TuningConfig | int | None = None,
                 max_memory_mb: float | None = None, readout: bool = True, reading: float = READING) -> None:
        if block is None:
            block = BLOCK // 2 if str(getattr(backend, "device", "cpu")) == "cpu" else BLOCK
        for name, number in (("n_prompts", n_prompts), ("cached_prompts", cached_prompts), ("block", block),
                             ("max_memory_mb", 1 if max_memory_mb is None else max_memory_mb)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= reading <= 1:
            raise ValueError(f"reading must be from 0 to 1, got {reading}")
        self.backend = backend
        self.palette: PaletteKind = palette
        self.n_prompts, self.cached_prompts, self.block = n_prompts, cached_prompts, block
        self.tuning = TuningConfig(tuning) if isinstance(tuning, int) else tuning
        self.max_memory_mb, self.readout, self.reading = max_memory_mb, readout, reading
        self.tuned: dict[str, Any] | None = None

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str] = "mvg_compact", *, backend: BackendChoice = "auto",
             device: str = "auto", threads: int | None = None, precision: Precision = "auto", **settings: Any
             ) -> Predictor:
        """Load weights by name or path; `settings` go to the constructor, the rest to `load_backend`.

        Raises:
            MissingBackendError, WeightsError, CheckpointError: see `load_backend`.
        """
        return cls(load_backend(name_or_path, backend=backend, device=device, threads=threads, precision=precision),
                   **settings)

    def within_memory(self, side: int, voxels: int, n_labels: int = 1) -> Predictor:
        """A predictor that stays below `max_memory_mb`; this one if there is no limit.

        Args:
            side: of the slices that will be painted, in pixels.
            voxels: of the answer.
            n_labels: that will be painted.

        Raises:
            ValueError: it cannot be done in so little memory.
        """
        if self.max_memory_mb is None:
            return self
        if self.tuning is not None:
            raise ValueError("the memory that tuning takes cannot be limited: leave out tuning, or the limit "
                             "(--max-memory)")
        work = Work(self.backend.name, getattr(self.backend, "precision", "fp32"), side, self.n_prompts,
                    max(1, -(-n_labels // MAX_LABELS_PER_PASS)), voxels)
        fits = room(self.max_memory_mb, work, block=self.block, cached_prompts=self.cached_prompts)
        twin = copy.copy(self)
        # Blocks are counted in slices of native size, see `_Painter`.
        larger = max(1, side**2 // self.backend.size**2)
        twin.block, twin.cached_prompts = min(self.block, fits.block * larger), fits.cached_prompts
        return twin

    def predict_slices(self, queries: npt.NDArray[np.floating], support: Support,
                       positions: Sequence[float] | None = None) -> tuple[npt.NDArray, npt.NDArray | None]:
        """Answer slices that are already on the network's grid.

        Args:
            queries: (N, S, S) in [0, 1], of the prompts' size.
            support: prompts.
            positions: of the queries, on the scale of `Prompt.position_mm`; None if unknown.

        Returns:
            Segmentation: labels uint8 (N, S, S) and confidence float32 (N, S, S). Else: images float32 (N, S, S) in
            [0, 1] and None.

        Raises:
            ValueError: queries of another size than the prompts, NaN or outside [0, 1], or too few positions.
        """
        queries = _checked_queries(queries, support, positions)
        predictor = self.tune(support)
        shown = [labels_of(prompt) for prompt in support.prompts] if support.task.is_segmentation else []
        painter = _Painter(predictor, support.task, queries.shape[1],
                           [prompt.position_mm for prompt in support.prompts], support.prompts.__getitem__,
                           set().union(*shown))
        blocks = painter.blocks(range(len(queries)), [None] * len(queries) if positions is None else positions)
        if not support.task.is_segmentation:
            images = np.empty(queries.shape, np.float32)
            for numbers, prompts in blocks:
                images[numbers] = painter.image(queries[numbers], prompts)
            return images, None
        labels, confidence = np.empty(queries.shape, np.uint8), np.empty(queries.shape, np.float32)
        for numbers, prompts in blocks:
            where = None if positions is None else float(np.mean([positions[number] for number in numbers]))
            decoded = [_decide(p, codec) for p, codec in painter.probabilities(queries[numbers], prompts, where)]
            labels[numbers], confidence[numbers] = merge_groups(decoded or [_background(queries[numbers].shape)])
        return labels, confidence

    def tune(self, support: Support, progress: Progress | None = None) -> Predictor:
        """A predictor whose network was tuned on prompts as `tuning` says; this one stays as it is.

        Its own calls do not tune again, so many queries can share it.

        Args:
            support: prompts, as slices on the network's grid.
            progress: called with steps done and steps in all.

        Returns:
            The tuned predictor; this one if `tuning` is None, or a readout answers.

        Raises:
            MissingBackendError: the network does not run in PyTorch.
        """
        if self.tuning is None or self.reads_out(support.task):
            return self
        twin = copy.copy(self)
        twin.backend, twin.tuned = tuned_backend(self.backend, support, self.tuning, palette=self.palette,
                                                 n_prompts=self.n_prompts, progress=progress)
        twin.tuning = None
        return twin

    def reads_out(self, task: Task) -> bool:
        """Whether a task is answered by a readout of feature maps."""
        return self.readout and not task.is_segmentation and prior_of(self.backend) is not None

    def image_painter(self, task: Task) -> ImagePainter:
        """What answers slices of an image-to-image task."""
        return image_painter(self.backend, task, self.readout)

    def predict_volume(self, query: Volume, references: Reference | Sequence[Reference], task: Task | None = None, *,
                       plane: str | int = "auto", hole: Volume | None = None, window: tuple[float, float] | None = None,
                       slices: tuple[int, int] | None = None, progress: Progress | None = None) -> Prediction:
        """Answer every slice of a volume.

        Where a reference is the query itself (one labelled slice -> volume), its labelled slices are kept as they are.

        Args:
            query: what to solve; any grid, in the units of its file.
            references: at least one; of the query itself or of other subjects.
            task: None segments with the labels that the references show; so does a segmentation that names none.
            plane: `auto`, `axial`, `coronal`, `sagittal` or an index axis.
            hole: label map on the query's grid, non-zero where the image is missing; inpainting only. What the query
                holds there is never looked at, and may be NaN.
            window: intensities shown as black and white; None chooses (CT: a fixed window, else percentiles).
            slices: the first and the last slice to answer; None answers all.
            progress: called with slices done and slices in all; steps of tuning count as slices.

        Returns:
            The answer on the query's grid. Denoising leaves voxels beyond the window as they are, inpainting all
            outside the hole. Slices that are not asked for hold no label, with no confidence, or what the query holds
            (synthesis: black).

        Raises:
            GeometryError: a label, hole or plane does not fit.
            IndexError: there are no such slices.
            ValueError: NaN, a constant query, an empty or fractional label; says what to do.
        """
        started = time.perf_counter()
        references = [references] if isinstance(references, Reference) else list(references)
        if not references:
            raise ValueError("no reference given: the network needs at least one solved example")
        run = _VolumeRun(self, query, references, task or Task.segmentation(), plane, hole, window, slices,
                         progress)
        for message in run.warnings:
            warnings.warn(message, PredictionWarning, stacklevel=2)
        volume, confidence = run.segment() if run.task.is_segmentation else (run.paint_image(), None)
        return Prediction(volume, confidence, run.provenance(time.perf_counter() - started))


def labels_of(prompt: Prompt) -> set[int]:
    """The labels that a segmented prompt shows, without background."""
    return set(np.unique(prompt.label).tolist()) - {0}


# --- painting slices ---

class _Painter:
    """Cuts and encodes prompts when they are needed, and paints slices with the nearest of them.

    Args:
        predictor: the settings.
        task: what the prompts show.
        size: side of the slices in pixels.
        positions: of all prompts.
        cut: gives a prompt by its index.
        labels: what all prompts show together; none for image-to-image tasks.
    """

    def __init__(self, predictor: Predictor, task: Task, size: int, positions: Sequence[float | None],
                 cut: Callable[[int], Prompt], labels: Iterable[int]) -> None:
        self._backend, self._task, self._cut = predictor.backend, task, cut
        self._images = None if task.is_segmentation else predictor.image_painter(task)
        n_prompts = max(predictor.n_prompts, 1 if self._images is None else self._images.n_prompts)
        self._positions, self._n_prompts = positions, n_prompts
        native = min(size, self._backend.size)
        self._block = max(1, predictor.block * native**2 // size**2)
        self._codecs = [LabelCodec.for_labels(group, predictor.palette) for group in label_groups(sorted(labels))]
        n_groups = max(1, len(self._codecs))
        # A slice is painted group by group: with less room, its prompts would be encoded again for the next slice.
        self._encoded: Recent[Encoded] = Recent(max(predictor.cached_prompts, n_prompts * n_groups))
        self._merged: Recent[Encoded] = Recent(n_groups)
        self._prompts: Recent[Prompt] = Recent(predictor.n_prompts)
        self._labels: dict[int, set[int]] = {}
        reader = reader_of(self._backend) if self._codecs else None
        self._share = 0.0 if reader is None else predictor.reading
        self._reading = LabelReading(reader, sorted(labels)) if reader is not None and self._share else None
        self._moments: Recent[LabelMoments] = Recent(_KEPT_MOMENTS)

    def blocks(self, numbers: Iterable[int], positions: Sequence[float | None]) -> Iterator[tuple[list[int],
                                                                                                  tuple[int, ...]]]:
        """Slice numbers that are painted together, with the prompts that serve them; not in the order given."""
        served: dict[tuple[int, ...], list[int]] = {}
        for number in numbers:
            chosen = nearest(self._positions, positions[number], self._n_prompts)
            served.setdefault(tuple(sorted(chosen)), []).append(number)
        for prompts in sorted(served):
            waiting = served[prompts]
            for start in range(0, len(waiting), self._block):
                yield waiting[start : start + self._block], prompts

    def probabilities(self, queries: npt.NDArray[np.float32], prompts: tuple[int, ...],
                      position: float | None = None) -> Iterator[tuple[npt.NDArray[np.float32], LabelCodec]]:
        """For each group with labels that the prompts show: probabilities (B, S, S, 1 + L) and their codec.

        Args:
            queries: (B, S, S) in [0, 1].
            prompts: that serve them.
            position: of the queries, about; None if unknown.
        """
        served = prompts if self._reading is None else nearest(self._positions, position, N_READ)
        shown = set().union(*(self._labels_of(index) for index in (*prompts, *served)))
        read = self._read(queries, served)
        for group, codec in enumerate(self._codecs):
            known = restricted(codec, shown)
            if known is None:
                continue
            painted = known.probabilities(self._painted(queries, prompts, group)) if self._share < 1 else None
            yield _mixed(painted, None if read is None else _of_labels(read, known.labels), self._share), known

    def _read(self, queries: npt.NDArray[np.float32], prompts: Sequence[int]
              ) -> dict[int, npt.NDArray[np.float32]] | None:
        """Probabilities (B, S, S) of every label that is read; None where nothing is."""
        reading = self._reading
        if reading is None:
            return None
        merged = LabelMoments.sum([self._moments.get(index, lambda index=index: self._moments_of(index))
                                   for index in prompts])
        found = reading.read(queries, merged)
        return {label: found[..., row] for row, label in enumerate(reading.labels, start=1)}

    def _moments_of(self, index: int) -> LabelMoments:
        assert self._reading is not None
        prompt = self._prompt(index)
        return self._reading.encode(prompt.image, prompt.label)

    def image(self, queries: npt.NDArray[np.float32], prompts: tuple[int, ...],
              holes: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float32]:
        """Painted images (B, S, S) in [0, 1]; queries are black in their `holes` (B, S, S)."""
        images = self._images
        assert images is not None  # only segmentations have none
        merged = self._merged.get(prompts, lambda: images.merge(
            [self._encoded.get(index, lambda index=index: images.encode(self._prompt(index))) for index in prompts]))
        return images.paint(queries, merged, holes)

    def _painted(self, queries: npt.NDArray[np.float32], prompts: tuple[int, ...], group: int) -> npt.NDArray:
        encoded = self._merged.get((prompts, group), lambda: self._backend.merge(
            [self._encoded.get((index, group), lambda index=index: self._encode(index, group)) for index in prompts]))
        return self._backend.paint(queries, encoded)

    def _encode(self, index: int, group: int) -> Encoded:
        prompt = self._prompt(index)
        codec = self._codecs[group]
        label = np.where(np.isin(prompt.label, codec.labels), prompt.label, 0)
        return self._backend.encode(prompt.image, codec.encode(label))

    def _prompt(self, index: int) -> Prompt:
        return self._prompts.get(index, lambda: self._cut(index))

    def _labels_of(self, index: int) -> set[int]:
        if index not in self._labels:
            self._labels[index] = labels_of(self._prompt(index))
        return self._labels[index]


def _of_labels(read: dict[int, npt.NDArray[np.float32]], labels: Sequence[int]) -> npt.NDArray[np.float32]:
    """Probabilities (..., 1 + L) of everything else and of some of the labels that were read."""
    named = np.stack([read[label] for label in labels], axis=-1)
    return np.concatenate([1 - named.sum(axis=-1, keepdims=True), named], axis=-1)


def _mixed(painted: npt.NDArray[np.float32] | None, read: npt.NDArray[np.float32] | None, share: float
           ) -> npt.NDArray[np.float32]:
    """What was painted and what was read, of which there is one at least."""
    if painted is None or read is None:
        found = read if painted is None else painted
        assert found is not None
        return found
    return ((1 - share) * painted + share * read).astype(np.float32)


def _decide(probabilities: npt.NDArray[np.float32], codec: LabelCodec) -> Labels:
    """Most probable label (...) of probabilities (..., 1 + L), and its lead over the second as confidence (...)."""
    best = probabilities.argmax(axis=-1)
    top = np.partition(probabilities, -2, axis=-1)[..., -2:]
    label_of_row = np.array([0, *codec.labels], dtype=np.uint8)
    return label_of_row[best], np.clip(top[..., 1] - top[..., 0], 0, 1)


def _background(shape: tuple[int, ...]) -> Labels:
    """What is left where the prompts show no label: background, for certain."""
    return np.zeros(shape, np.uint8), np.ones(shape, np.float32)


def _checked_queries(queries: npt.NDArray[np.floating], support: Support,
                     positions: Sequence[float] | None) -> npt.NDArray[np.float32]:
    queries = np.asarray(queries, dtype=np.float32)
    size = support.prompts[0].image.shape
    if queries.ndim != 3 or queries.shape[1:] != size:
        raise ValueError(f"queries must be (N, {size[0]}, {size[1]}) as the prompts are, got {queries.shape}: extract "
                         "them with one plan")
    if queries.size and not (queries.min() >= -1e-4 and queries.max() <= 1 + 1e-4):  # also refuses NaN
        raise ValueError(f"queries must lie in [0, 1], got {queries.min():g} to {queries.max():g}: scale them "
                         "(IntensityScaling.apply)")
    if positions is not None and len(positions) != len(queries):
        raise ValueError(f"{len(queries)} queries came with {len(positions)} positions: give one each, or None")
    return queries


# --- painting volumes ---


class _VolumeRun:
    """One call of `predict_volume`: everything that is fixed before the first slice is painted."""

    def __init__(self, predictor: Predictor, query: Volume, references: Sequence[Reference], task: Task,
                 plane: str | int, hole: Volume | None, window: tuple[float, float] | None,
                 slices: tuple[int, int] | None, progress: Progress | None) -> None:
        self.query, self.task, self._backend, self._progress = query, task, predictor.backend, progress
        self._hole = checked_hole(hole, query, task)
        self._scaling, is_ct = look_at(query, self._hole, task, window)
        references = [reference.checked(task) for reference in references]
        self._own = [reference.is_part_of(query) for reference in references]
        axis = choose_axis(references, query.geometry, task, plane)
        self._wanted = slice_range(slices, query.geometry.shape[axis])
        if self._hole is not None:
            self._hole = only_slices(self._hole, axis, self._wanted)
        painter = None if task.is_segmentation else predictor.image_painter(task)
        self.plan, plans = _plans(query, references, axis, predictor.backend.size, painter)
        self._sources = [self._source(*each, window) for each in zip(references, plans, self._own, strict=True)]
        self._slots = [(source, number) for source in self._sources for number in source.numbers]
        if not self._slots:
            raise ValueError("the references hold no solved slice: label at least one")
        self.warnings = modality_warnings(is_ct, references)
        predictor, self._steps = self._tune(predictor)
        self.tuned = predictor.tuned
        labels = set[int]().union(*(source.labels for source in self._sources))
        predictor = predictor.within_memory(self.plan.size, query.array.size, len(labels))
        self._painter = _Painter(predictor, task, self.plan.size,
                                 [at for source in self._sources for at in source.positions],
                                 lambda index: self._slots[index][0].cut(self._slots[index][1]), labels)

    def segment(self) -> tuple[Volume, Volume]:
        """Label map and confidence."""
        labels = np.zeros(self.query.geometry.shape, np.uint8)
        confidence = np.zeros(self.query.geometry.shape, np.float32)
        for numbers, queries, prompts in self._blocks(self.query.array):
            where = float(np.mean(self.plan.relative_positions[numbers]))
            groups = list(self._painter.probabilities(queries, prompts, where))
            for k, number in enumerate(numbers):
                decoded = [_decide(self.plan.restore_slice(p[k]), codec) for p, codec in groups]
                label, sure = merge_groups(decoded or [_background(_slice(labels, self.plan, number).shape)])
                self.plan.insert(labels, number, label)
                self.plan.insert(confidence, number, sure)
        self._keep_solved_slices(labels, confidence)
        return self.query.with_array(labels), self.query.with_array(confidence)

    def paint_image(self) -> Volume:
        """The painted image, in the units of the query or of the synthesis target."""
        if self.task.kind == "synthesis":
            return self._synthesise()
        # Slices do not depend on each other, so each may be painted over as soon as it was cut.
        image = self.query.array.astype(np.result_type(self.query.array.dtype, np.float32))
        if self._hole is not None:
            fill_slices(image, self._hole, self.plan.axis)  # or what is hidden would shine through when resampled
        for numbers, queries, prompts in self._blocks(image):
            painted = self._painter.image(queries, prompts, self._holes(numbers))
            for k, number in enumerate(numbers):
                self._paint_over(_slice(image, self.plan, number), painted[k], number)
        return self.query.with_array(image)

    def provenance(self, seconds: float) -> dict[str, Any]:
        """How the answer came about, for a report."""
        n_slices = max(1, len(self._numbers()))
        return {
            "task": self.task.kind, "labels": {str(k): v for k, v in self.task.labels.items()},
            "plane": self.query.geometry.plane_of_axis(self.plan.axis), "slices": self.plan.n_slices,
            "asked_slices": [self._wanted[0], self._wanted[-1]],
            "network_size": self.plan.size, "pixel_spacing_mm": round(self.plan.spacing_mm, 6),
            "intensity": self._scaling.to_json(), "prompts": self._described_prompts(), "seconds": round(seconds, 3),
            "seconds_per_slice": round(seconds / n_slices, 4), "tuning": self.tuned, "warnings": self.warnings,
            "backend": self._backend.name, "checkpoint_sha256": self._backend.checkpoint_sha256,
            "reader_sha256": reader_sha256(self._backend),
            "versions": {"mvg-core": __version__, "python": platform.python_version(), "numpy": np.__version__}}

    def _described_prompts(self) -> list[dict[str, Any]]:
        return [{"reference": source.reference.name, "slice": number, "relative_position": round(position, 4)}
                for source in self._sources for number, position in zip(source.numbers, source.positions, strict=True)]

    @cached_property
    def _answer_scaling(self) -> IntensityScaling:
        """Between what is painted and the units of the answer; only targets tell those of a synthesis."""
        targets = [source.label_scaling for source in self._sources if source.label_scaling is not None]
        return IntensityScaling.mean(targets) if self.task.kind == "synthesis" else self._scaling

    def _source(self, reference: Reference, plan: SlicePlan, own: bool, window: tuple[float, float] | None
                ) -> PromptSource:
        scaling = self._scaling if own else scaling_for(reference.image.array, self.task, window)
        label_scaling = None
        if self.task.kind == "synthesis":
            check_not_constant(reference.label.array, f"{reference.name} label")
            label_scaling = scaling_for(reference.label.array, self.task, None)
        elif not self.task.is_segmentation:
            label_scaling = scaling
        return PromptSource(reference, plan, self.task, scaling, label_scaling)

    def _tune(self, predictor: Predictor) -> tuple[Predictor, int]:
        """A predictor tuned on some of the prompts, if it is to be tuned, and the steps that took."""
        if predictor.tuning is None or predictor.reads_out(self.task):
            return predictor, 0
        steps, to_paint = predictor.tuning.steps, len(self._numbers())
        prompts = [source.cut(number) for source, number in thinned(self._slots, predictor.tuning.most_prompts)]
        told = self._progress
        return predictor.tune(Support(tuple(prompts), self.task), None if told is None else
                              lambda done, _: told(done, steps + to_paint)), steps

    def _blocks(self, array: npt.NDArray) -> Iterator[tuple[list[int], npt.NDArray[np.float32], tuple[int, ...]]]:
        """Slice numbers, these slices of `array` scaled, and the prompts that serve them."""
        to_paint, done = self._numbers(), self._steps
        for numbers, prompts in self._painter.blocks(to_paint, self.plan.relative_positions.tolist()):
            yield numbers, self._queries(array, numbers), prompts
            done += len(numbers)
            if self._progress is not None:
                self._progress(done, self._steps + len(to_paint))

    def _queries(self, array: npt.NDArray, numbers: list[int]) -> npt.NDArray[np.float32]:
        """Slices (B, S, S) as the network sees them, black in the hole."""
        queries, holes = scaled_slices(self.plan, array, numbers, self._scaling), self._holes(numbers)
        return queries if holes is None else np.where(holes, np.float32(0), queries)

    def _holes(self, numbers: list[int]) -> npt.NDArray[np.bool_] | None:
        """The hole in slices (B, S, S)."""
        return None if self._hole is None else self.plan.extract_label(self._hole, numbers) > 0

    def _numbers(self) -> Sequence[int]:
        if self._hole is None:
            return self._wanted
        return marked_slices(self._hole, self.plan.axis)

    def _synthesise(self) -> Volume:
        image = np.zeros(self.query.geometry.shape, np.float32)
        for numbers, queries, prompts in self._blocks(self.query.array):
            painted = self._painter.image(queries, prompts)
            for k, number in enumerate(numbers):
                self.plan.insert(image, number, self._answer_scaling.invert(self.plan.restore_slice(painted[k])))
        return self.query.with_array(image)

    def _paint_over(self, original: npt.NDArray, painted: npt.NDArray[np.float32], number: int) -> None:
        """Put a painted slice (S, S) into the hole, or without one wherever a window could show the original."""
        answer = self._answer_scaling.invert(self.plan.restore_slice(painted))
        if self._hole is None and self._scaling.kind == "percentile":
            where = np.ones(original.shape, bool)  # what lies outside the percentiles is mostly noise
        elif self._hole is None:
            where = (original >= self._scaling.low) & (original <= self._scaling.high)
        else:
            where = _slice(self._hole, self.plan, number)
        np.copyto(original, answer, where=where)

    def _keep_solved_slices(self, labels: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32]) -> None:
        for source, own in zip(self._sources, self._own, strict=True):
            for number in source.numbers if own else ():
                self.plan.insert(labels, number, _slice(source.reference.label.array, self.plan, number))
                _slice(confidence, self.plan, number)[...] = 1


def _slice(array: npt.NDArray, plan: SlicePlan, number: int) -> npt.NDArray:
    """View of one slice of (I, J, K)."""
    return np.moveaxis(array, plan.axis, 0)[number]


def _plans(query: Volume, references: Sequence[Reference], axis: int, native: int, painter: ImagePainter | None
           ) -> tuple[SlicePlan, list[SlicePlan]]:
    """How the query and each of the references are cut: all on one physical scale, except pictures.

    What keeps pixels gets every volume's own: noise and sharpness are theirs.

    Args:
        query: see `Predictor.predict_volume`.
        references: checked.
        axis: of the query's slices.
        native: side of a slice that the network was trained with.
        painter: of an image-to-image task.
    """
    geometry = query.geometry
    grids = [reference.image.geometry for reference in references]
    fit = SlicePlan.for_volume(geometry, axis, size=native)
    axes = [axis, *(plan_for(grid, fit, None).axis for grid in grids)]
    if painter is not None and painter.keeps_pixels:
        first, *others = (SlicePlan.of_voxels(*each, multiple=PIXEL_MULTIPLE)
                          for each in zip([geometry, *grids], axes, strict=True))
        return first, others
    spacing_mm = common_spacing([geometry, *grids], axes, native)
    plan = replace(fit, spacing_mm=spacing_mm or fit.spacing_mm)
    if painter is not None:
        plan = _at_own_resolution(plan, painter)
    return plan, [plan_for(grid, plan, plan.spacing_mm if spacing_mm or grid.is_close(geometry) else None)
                  for grid in grids]


def _at_own_resolution(fit: SlicePlan, painter: ImagePainter) -> SlicePlan:
    """A plan that shows as much as `fit`, with the pixels of its volume if that takes more of them; within limits."""
    longest_mm = fit.spacing_mm * fit.size
    pixel_mm = min(fit.geometry.spacing_mm[axis] for axis in range(3) if axis != fit.axis)
    # Rounding: 192 pixels of 0.7 mm are not 193.
    pixels = int(np.ceil(longest_mm / pixel_mm / PIXEL_MULTIPLE - 1e-6)) * PIXEL_MULTIPLE
    if pixels <= fit.size:
        return fit
    if pixels <= painter.largest:
        return replace(fit, size=pixels, spacing_mm=pixel_mm)
    size = max(fit.size, painter.largest)
    return replace(fit, size=size, spacing_mm=longest_mm / size)


def checked_hole(hole: Volume | None, query: Volume, task: Task) -> npt.NDArray[np.bool_] | None:
    """The hole of an inpainting task as a mask; None for other tasks.

    Raises:
        GeometryError: it lies on another grid than the query.
        ValueError: it is missing, empty, or belongs to no such task.
    """
    if task.kind != "inpainting":
        if hole is not None:
            raise ValueError(f"a hole belongs to inpainting, not to {task.kind}: leave it out")
        return None
    if hole is None:
        raise ValueError("inpainting needs a hole: a label map on the query's grid, non-zero where to paint")
    if not hole.geometry.is_close(query.geometry):
        raise GeometryError(f"the hole (shape {hole.geometry.shape}) must lie on the query's grid "
                            f"(shape {query.geometry.shape}): resample it")
    return hole_mask(hole.array, "the hole")


def look_at(query: Volume, hole: npt.NDArray[np.bool_] | None, task: Task, window: tuple[float, float] | None
             ) -> tuple[IntensityScaling, bool]:
    """How the visible voxels of a query are scaled, and whether they look like CT."""
    visible = query.array if hole is None else query.array[~hole]
    if not visible.size:
        raise ValueError("the hole covers the whole query: leave some of it visible")
    check_finite(visible, "query")
    check_not_constant(visible, "the query")
    return scaling_for(visible, task, window), looks_like_ct(visible)


def scaling_for(voxels: npt.NDArray, task: Task, window: tuple[float, float] | None) -> IntensityScaling:
    """How an image is scaled to [0, 1] for a task."""
    if window is None and not task.is_segmentation and looks_like_ct(voxels):
        window = CT_IMAGE_WINDOW_HU
    return IntensityScaling.for_volume(voxels, window=window)


def modality_warnings(is_ct: bool, references: Sequence[Reference]) -> list[str]:
    """A sentence for every reference that seems to be of another modality than the query."""
    here, there = ("CT", "not CT") if is_ct else ("not CT", "CT")
    return [f"the query looks like {here}, {reference.name} like {there}: results across modalities are poor, use a "
            "reference of the query's modality" for reference in references
            if looks_like_ct(reference.image.array) != is_ct]
