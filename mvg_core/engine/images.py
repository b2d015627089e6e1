"""Denoise, inpaint or synthesise a whole volume: at full resolution, and without flicker from slice to slice.

`Predictor.predict_volume` paints every slice by its own nearest prompts: where the prompts change, so may the level of
the answer. `Consistency` says what is done about it. Images larger than the network's field are painted in overlapping
tiles instead of coarser.

Shape letters: I J K voxels; h w the two in-plane axes of a slice in index order; B slices painted together; S side of a
network slice; T side of a tile.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

from mvg_core.engine.seams import smooth_across, without_seam
from mvg_core.engine.tiles import Tiling, content_box, corresponding_corner, prompt_tile
from mvg_core.engine.watch import Cancelled, Watch
from mvg_core.holes import fill_slices
from mvg_core.image_painter import ImagePainter
from mvg_core.predict import (
    PIXEL_MULTIPLE,
    Prediction,
    PredictionWarning,
    Predictor,
    _VolumeRun,
)
from mvg_core.prompts import Prompt, nearest
from mvg_core.recent import Recent
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Volume

Tiles = int | Literal["auto"] | None
Prompting = Literal["nearest", "fixed", "crossfade"]
TILE = 384
"""Side of a tile in pixels, where a number is not given."""
OVERLAP = 1 / 4
"""Share of a tile's side that neighbouring tiles have in common."""


@dataclass(frozen=True)
class Consistency:
    """How neighbouring slices are made to agree; `benchmarks/results/flicker.md` says what each part is worth.

    Attributes:
        prompts: `nearest`: every slice is painted by the prompts nearest to it. `fixed`: a few prompts, evenly spread,
            serve the whole volume. `crossfade`: prompts change every `fade_slices` slices, and slices between two
            changes are painted by both and fade from one answer to the other, which takes twice as long.
        fade_slices: see there.
        anchors: so many more prompts, evenly spread over the volume, serve every slice.
        seamless: inpainting: what is painted into a hole is corrected by what the network gets wrong around it.
        smooth: inpainting: what is painted into a hole is averaged with the slices before and after, the nearer the
            more.

    Raises:
        ValueError: a value out of its range.
    """

    prompts: Prompting = "nearest"
    fade_slices: int = 8
    anchors: int = 0
    seamless: bool = False
    smooth: bool = False

    def __post_init__(self) -> None:
        if self.prompts not in get_args(Prompting):
            raise ValueError(f"prompts {self.prompts!r} is unknown: use one of {', '.join(get_args(Prompting))}")
        for name, least in (("fade_slices", 1), ("anchors", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @classmethod
    def for_task(cls, task: Task, has_own_prompts: bool = False, reads_out: bool = False) -> Consistency:
        """What is best by measurement.

        Args:
            task: image to image.
            has_own_prompts: whether some prompts are slices of the query itself: then the nearest are worth most.
            reads_out: whether a readout is fitted to the prompts: then all together are worth most.
        """
        if reads_out:
            return cls("fixed", smooth=task.kind == "inpainting")
        if task.kind == "inpainting":
            return cls(seamless=True, smooth=True)
        return cls("fixed" if task.kind == "synthesis" and not has_own_prompts else "nearest")


OFF = Consistency()
"""As `Predictor.predict_volume` does it."""


def solve_images(predictor: Predictor, query: Volume, references: Reference | Sequence[Reference], task: Task, *,
                 plane: str | int = "auto", hole: Volume | None = None, window: tuple[float, float] | None = None,
                 slices: tuple[int, int] | None = None, watch: Watch | None = None, tiling: Tiles = "auto",
                 consistency: Consistency | None = None) -> Prediction:
    """Denoise, inpaint or synthesise every slice of a volume.

    Args:
        predictor: its number of prompts serves one slice.
        query: what to solve; any grid, in the units of its file.
        references: at least one; of the query itself or of other subjects.
        task: image to image.
        plane: `auto`, `axial`, `coronal`, `sagittal` or an index axis.
        hole: see `Predictor.predict_volume`.
        window: intensities shown as black and white; None chooses (CT: a fixed window, else percentiles).
        slices: the first and the last slice to solve; None solves all.
        watch: is told of progress, and may cancel.
        tiling: where painting at the image's own resolution takes more pixels a side than this, tiles of so many
            pixels are painted. `auto` does so above 512 pixels, but paints coarser there to denoise, as None does for
            all tasks: noise is removed better so, see `benchmarks/results/resolution.md`.
        consistency: None takes `Consistency.for_task`.

    Returns:
        The answer on the query's grid and in its units (synthesis: of the references' targets). Denoising leaves
        voxels beyond the window as they are, inpainting all outside the hole.

    Raises:
        GeometryError: a target, hole or plane does not fit.
        ValueError: a segmentation, no references, NaN, a constant query, an impossible size of tiles; says what to do.
        IndexError: there are no such slices.
        Cancelled: with the slices so far; others are as they were (synthesis: black).
    """
    started = time.perf_counter()
    if task.is_segmentation:
        raise ValueError("a segmentation does not paint an image: use Predictor.predict_volume or VolumeEngine")
    references = [references] if isinstance(references, Reference) else list(references)
    if not references:
        raise ValueError("no reference given: the network needs at least one solved example")
    run = _ImageRun(predictor, query, references, task, plane, hole, window, slices, watch or Watch(), tiling,
                    consistency)
    for message in run.warnings:
        warnings.warn(message, PredictionWarning, stacklevel=2)
    image = run.start()
    try:
        run.paint(image)
    except Cancelled as cancelled:
        partial = Prediction(query.with_array(image), None, run.provenance(time.perf_counter() - started))
        raise Cancelled(partial) from cancelled
    return Prediction(query.with_array(image), None, run.provenance(time.perf_counter() - started))


class _Turn(NamedTuple):
    """Slices that the same prompts serve.

    Attributes:
        prompts: their indices.
        numbers: of the slices.
        shares: of this answer in that of each slice.
    """

    prompts: tuple[int, ...]
    numbers: list[int]
    shares: list[float]


class _ImageRun(_VolumeRun):
    """One call of `solve_images`: everything that is fixed before the first slice is painted."""

    def __init__(self, predictor: Predictor, query: Volume, references: Sequence[Reference], task: Task,
                 plane: str | int, hole: Volume | None, window: tuple[float, float] | None,
                 slices: tuple[int, int] | None, watch: Watch, tiling: Tiles, consistency: Consistency | None) -> None:
        _check_tiles(tiling)
        super().__init__(predictor, query, references, task, plane, hole, window, slices, watch.progress)
        self._watch = watch
        self._consistency = consistency or Consistency.for_task(task, any(self._own), predictor.reads_out(task))
        painter = self._tuned.image_painter(task)
        self._tile = self._at_full_resolution(tiling, painter)
        side = self._tile or self.plan.size
        fits = copy.copy(self._tuned)
        fits.n_prompts = self._n_prompts = max(fits.n_prompts, painter.n_prompts)
        fits.n_prompts += self._consistency.anchors
        fits = fits.within_memory(side, query.array.size)
        native = min(side, predictor.backend.size)
        self._block = max(1, fits.block * native**2 // side**2)
        self._cut: Recent[Prompt] = Recent(fits.n_prompts)
        self._brush: _Brush = _Whole(painter, self._prompt, max(fits.n_prompts, fits.cached_prompts))
        if self._tile is not None:
            self._brush = _Tiled(painter, self._prompt, self.plan.size, self._tile)

    def start(self) -> npt.NDArray:
        """The answer before anything is painted, (I, J, K)."""
        if self.task.kind == "synthesis":
            return np.full(self.query.geometry.shape, self._answer_scaling.low, np.float32)
        image = self.query.array.astype(np.result_type(self.query.array.dtype, np.float32))
        if self._hole is not None:
            fill_slices(image, self._hole, self.plan.axis)  # or what is hidden would shine through when resampled
        return image

    def paint(self, image: npt.NDArray) -> None:
        """Paint the answer into `image` (I, J, K), what `start` returned.

        Raises:
            Cancelled: slices that are not finished are as they were.
        """
        # A slice is written when it is finished, and not looked at again: answers need no second volume.
        shown = self.query.array if self.task.kind == "synthesis" else image
        if not self._numbers():  # the hole lies elsewhere
            return
        turns = self._turns()
        waiting: dict[int, npt.NDArray[np.float32]] = {}
        missing = {number: sum(number in turn.numbers for turn in turns) for number in self._numbers()}
        done, total = self._steps, self._steps + sum(missing.values())
        for turn in turns:
            for start in range(0, len(turn.numbers), self._block):
                self._watch.check()
                numbers = turn.numbers[start : start + self._block]
                painted = self._brush.paint(self._queries(shown, numbers), turn.prompts, self._holes(numbers))
                for number, share, canvas in zip(numbers, turn.shares[start:], painted, strict=False):
                    answer = np.float32(share) * self.plan.restore_slice(canvas) + waiting.pop(number, np.float32(0))
                    missing[number] -= 1
                    if missing[number]:
                        waiting[number] = answer
                    else:
                        self._finish(image, number, answer)
                done += len(numbers)
                self._watch.tell(done, total)
        if self._hole is not None and self._consistency.smooth:
            smooth_across(image, self._hole, self.plan.axis, self.query.geometry.spacing_mm[self.plan.axis])
            for number in self._numbers():
                self._watch.show(number, np.moveaxis(image, self.plan.axis, 0)[number])

    def provenance(self, seconds: float) -> dict[str, Any]:
        """How the answer came about, for a report."""
        return super().provenance(seconds) | {"tile_size": self._tile, "consistency": asdict(self._consistency)}

    def _tune(self, predictor: Predictor) -> tuple[Predictor, int]:
        self._tuned, steps = super()._tune(predictor)
        return self._tuned, steps

    def _at_full_resolution(self, tiling: Tiles, painter: ImagePainter) -> int | None:
        """Side of the tiles, and the plans at the image's own resolution, if it needs tiles; else None."""
        if tiling is None or (tiling == "auto" and not painter.tiled):
            return None
        plan = self.plan
        pixel_mm = min(plan.geometry.spacing_mm[axis] for axis in range(3) if axis != plan.axis)
        # Rounding: 192 pixels of 0.7 mm are not 193.
        pixels = int(np.ceil(plan.spacing_mm * plan.size / pixel_mm / PIXEL_MULTIPLE - 1e-6)) * PIXEL_MULTIPLE
        if pixels <= (painter.largest if tiling == "auto" else tiling):
            return None
        if pixels > plan.size:
            finer = pixel_mm / plan.spacing_mm
            self.plan = replace(plan, size=pixels, spacing_mm=pixel_mm)
            self._sources = [replace(source, plan=replace(source.plan, size=pixels,
                                                          spacing_mm=source.plan.spacing_mm * finer))
                             for source in self._sources]
            self._slots = [(source, number) for source in self._sources for number in source.numbers]
        return TILE if tiling == "auto" else tiling

    def _turns(self) -> list[_Turn]:
        """Which prompts serve which slices, in the order in which they are painted."""
        at = self.plan.relative_positions
        numbers = sorted(self._numbers(), key=lambda number: at[number])
        prompts_at = [float(source.plan.relative_positions[number]) for source, number in self._slots]
        n_prompts, first, last = self._n_prompts, at[numbers[0]], at[numbers[-1]]
        if self._consistency.prompts == "fixed":
            return [_Turn(spread(prompts_at, first, last, n_prompts), numbers, [1.0] * len(numbers))]
        everywhere = spread(prompts_at, first, last, self._consistency.anchors)
        shares: dict[tuple[int, ...], dict[int, float]] = {}
        for place, number in enumerate(numbers):
            for near, share in self._served_as(place, len(numbers)):
                chosen = tuple(sorted({*nearest(prompts_at, at[numbers[near]], n_prompts), *everywhere}))
                of_slices = shares.setdefault(chosen, {})
                of_slices[number] = of_slices.get(number, 0.0) + share
        return [_Turn(prompts, list(of_slices), list(of_slices.values())) for prompts, of_slices in shares.items()]

    def _served_as(self, place: int, n_slices: int) -> Iterator[tuple[int, float]]:
        """The slices whose prompts serve a slice, and their shares."""
        if self._consistency.prompts != "crossfade" or n_slices < 2:
            yield place, 1.0
            return
        n_steps = max(1, round((n_slices - 1) / self._consistency.fade_slices))
        step = (n_slices - 1) / n_steps
        before = min(int(place / step), n_steps - 1)
        share = place / step - before
        for anchor, part in ((before, 1 - share), (before + 1, share)):
            if part > 1e-6:
                yield round(anchor * step), part

    def _prompt(self, index: int) -> Prompt:
        source, number = self._slots[index]
        return self._cut.get(index, lambda: source.cut(number))

    def _finish(self, image: npt.NDArray, number: int, painted: npt.NDArray[np.float32]) -> None:
        """Write what is painted (h, w) on [0, 1] into a slice."""
        slice_of_image = np.moveaxis(image, self.plan.axis, 0)[number]
        hole = None if self._hole is None else np.moveaxis(self._hole, self.plan.axis, 0)[number]
        if hole is not None and self._consistency.seamless:
            painted = without_seam(painted, self._scaling.apply(slice_of_image), hole)
        answer = self._answer_scaling.invert(painted)
        if hole is not None:
            where = hole
        elif self.task.kind == "synthesis" or self._scaling.kind == "percentile":
            where = np.ones(answer.shape, bool)  # what lies outside the percentiles is mostly noise
        else:
            where = (slice_of_image >= self._scaling.low) & (slice_of_image <= self._scaling.high)
        np.copyto(slice_of_image, answer, where=where)
        self._watch.show(number, slice_of_image)


def spread(positions: Sequence[float], low: float, high: float, n: int) -> tuple[int, ...]:
    """Indices of `n` positions, or all, that are spread evenly from `low` to `high`, ascending."""
    left, chosen = dict(enumerate(positions)), list[int]()
    for wanted in low + (np.arange(min(n, len(left))) + 0.5) / max(1, n) * (high - low):
        chosen.append(min(left, key=lambda index: abs(left[index] - wanted)))
        del left[chosen[-1]]
    return tuple(sorted(chosen))


# --- painting slices ---


class _Brush(Protocol):
    def paint(self, queries: npt.NDArray[np.float32], prompts: tuple[int, ...], holes: npt.NDArray[np.bool_] | None
              ) -> npt.NDArray[np.float32]:
        """Painted images (B, S, S) in [0, 1] of queries (B, S, S), black in `holes`, by prompts with these indices."""
        ...


class _Prompts(Protocol):
    def __call__(self, index: int, /) -> Prompt:
        """Cut a prompt."""
        ...


class _Whole:
    """Paints whole slices."""

    def __init__(self, painter: ImagePainter, prompt: _Prompts, cached: int) -> None:
        self._painter, self._prompt = painter, prompt
        self._encoded: Recent[Any] = Recent(cached)
        self._merged: Recent[Any] = Recent(1)

    def paint(self, queries: npt.NDArray[np.float32], prompts: tuple[int, ...], holes: npt.NDArray[np.bool_] | None
              ) -> npt.NDArray[np.float32]:
        """See `_Brush`."""
        merged = self._merged.get(prompts, lambda: self._painter.merge([self._encode(index) for index in prompts]))
        return self._painter.paint(queries, merged, holes)

    def _encode(self, index: int) -> Any:
        return self._encoded.get(index, lambda: self._painter.encode(self._prompt(index)))


class _Tiled:
    """Paints slices tile by tile, beside what the prompts show at the same place."""

    def __init__(self, painter: ImagePainter, prompt: _Prompts, size: int, tile: int) -> None:
        self._painter, self._prompt = painter, prompt
        self._tiling = Tiling((size, size), tile, int(tile * OVERLAP))

    def paint(self, queries: npt.NDArray[np.float32], prompts: tuple[int, ...], holes: npt.NDArray[np.bool_] | None
              ) -> npt.NDArray[np.float32]:
        """See `_Brush`."""
        tiles = [self._tiling.cut(query) for query in queries]
        missing = None if holes is None else [self._tiling.cut(hole.astype(np.float32)) > 0 for hole in holes]
        shown = content_box(queries)
        for number, corner in enumerate(self._tiling.corners):
            merged = self._painter.merge([self._painter.encode(self._part(index, corner, shown)) for index in prompts])
            here = None if missing is None else np.stack([of[number] for of in missing])
            painted = self._painter.paint(np.stack([of[number] for of in tiles]), merged, here)
            for of_slice, tile in zip(tiles, painted, strict=True):
                of_slice[number] = tile
        return np.stack([self._tiling.blend(of_slice) for of_slice in tiles])

    def _part(self, index: int, corner: tuple[int, int], shown: Any) -> Prompt:
        prompt, size = self._prompt(index), self._tiling.size
        place = corresponding_corner(corner, size, shown, content_box(prompt.image), self._tiling.shape)
        return prompt_tile(prompt, place, size)


def _check_tiles(tiling: Tiles) -> None:
    if tiling is None or tiling == "auto":
        return
    if tiling < PIXEL_MULTIPLE or tiling % PIXEL_MULTIPLE:
        raise ValueError(f"tiles have a side that is a multiple of {PIXEL_MULTIPLE}, got {tiling}")
