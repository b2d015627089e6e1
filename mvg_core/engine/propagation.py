"""From labelled slices of a volume outward, slice by slice, in both directions.

The slice just solved serves as a prompt for the next beside the labelled ones, the field of view follows the
structures, and a direction ends where they have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mvg_core.demons import register_slices
from mvg_core.engine.answer import VolumeAnswer
from mvg_core.engine.config import EngineConfig
from mvg_core.engine.fields import Cut, Extent, Field, Stack, extent_of
from mvg_core.engine.painter import Example, SlicePainter
from mvg_core.engine.quality import LEAST_QUALITY, quality_of
from mvg_core.engine.watch import Watch
from mvg_core.prompts import Prompt
from mvg_core.recent import Recent
from mvg_core.tuning import TuningConfig, thinned

GROWTH = (0.5, 1.5)
"""The field of view follows the size of the structures between these multiples of what the labelled slices ask for."""
WIDER = 1.7
"""Slices are registered in a view so many times as wide as the network's: what lies around holds structures in place,
and demons that see nothing of it bend them too far."""
REGISTERED = 288
"""Slices are registered in their own voxels, with at most so many a side; magnified, they would be held less stiff."""
_CACHED = 64
"""Most examples that are kept cut."""


class Propagation:
    """Labels of some slices -> labels of all.

    Args:
        stack: the query.
        label: label map (I, J, K); only `solved` slices are looked at.
        solved: numbers of the labelled slices.
        painter: paints.
        config: which parts are used.
        wanted: see `chains`.
        extra: examples of other subjects, which serve every slice.
    """

    def __init__(self, stack: Stack, label: npt.NDArray[np.uint8], solved: Sequence[int], painter: SlicePainter,
                 config: EngineConfig, wanted: range | None = None, extra: Sequence[Example] = ()) -> None:
        self.stack, self.painter, self.config, self._extra = stack, painter, config, list(extra)
        self.solved = sorted(set(solved))
        self.answer = VolumeAnswer.empty(stack.volume.geometry.shape)
        for number in self.solved:
            stack.slice_of(self.answer.label, number)[...] = stack.slice_of(label, number)
        self._extents = {number: self._extent(number) for number in self.solved}
        self._examples: Recent[Example] = Recent(_CACHED)
        self.size = stack.pixels(self._side_mm(), config.size) if config.focus else config.size
        self._chains = chains(self.solved, stack.n_slices, wanted, config)
        self.n_to_paint = sum(len(chain) - 1 for chain in self._chains)

    def run(self, watch: Watch, done: int = 0, total: int | None = None) -> VolumeAnswer:
        """Solve every other slice.

        Args:
            watch: told about every slice.
            done: steps done before.
            total: steps in all; None: these alone.

        Raises:
            Cancelled: on request; `answer` holds what was done.
        """
        total = done + self.n_to_paint if total is None else total
        for chain in self._chains:
            state = _Chain(self._extents[chain[0]])
            empty = 0
            for before, number in pairwise(chain):
                watch.check()
                done += 1
                if self.config.stop_after and empty >= self.config.stop_after:
                    continue
                self._solve(number, before, state)
                watch.show(number, self.stack.slice_of(self.answer.label, number))
                empty = 0 if self.answer.quality[number].area else empty + 1
                if empty and empty == self.config.stop_after:
                    self.answer.ended.append(number)
                watch.tell(done, total)
            watch.tell(done, total)
        return self.answer

    def lessons(self, most: int = TuningConfig.most_prompts) -> list[Prompt]:
        """The labelled slices, evenly thinned to `most`, as prompts that a network can be tuned on."""
        marked = [number for number in self.solved if self._extents[number] is not None]
        cuts = [self._example("labelled", number) for number in thinned(marked, most)]
        return [Prompt(example.image, example.label) for example in cuts]

    def _solve(self, number: int, before: int, state: _Chain) -> None:
        config, stack = self.config, self.stack
        shown = self._field(number, state)
        cut = stack.cut(number, shown, self.size)
        examples = [*self._labelled(number), *self._remembered(state), *self._extra]
        prior = self._warped(cut, before) if config.prior != "off" else None
        if prior is not None and config.prior in ("draft", "both"):
            guess = self.painter.decide(prior)
            if guess.any():
                examples.append(Example(cut.image, cut.label_of_box(guess), weight=config.trust))
        native = cut.back(self.painter.solve(cut.image, examples))
        if prior is not None and config.prior in ("fuse", "both"):
            native += (prior - native) * config.prior_weight  # in place, so that it stays float32
        label = self.painter.decide(native)
        quality = quality_of(native, label)
        self.answer.write(number, cut, native, label, quality)
        extent = self._extent(number)
        if extent is not None:
            state.extent = extent
        if quality.area and quality.expected >= LEAST_QUALITY:
            state.remembered = [number, *state.remembered][: config.memory]

    def _labelled(self, number: int) -> Iterator[Example]:
        """The nearest labelled slices, each seen in a field around its own structures."""
        nearest = sorted(self.solved, key=lambda at: abs(at - number))[: self.config.n_prompts]
        for at in nearest:
            yield self._example("labelled", at)

    def _remembered(self, state: _Chain) -> Iterator[Example]:
        for at in state.remembered:
            weight = max(1e-3, self.config.trust * self.answer.quality[at].expected)
            yield self._example("remembered", at, weight)

    def _example(self, kind: str, number: int, weight: float = 1.0) -> Example:
        key = (kind, number)
        return self._examples.get(key, lambda: self._cut_example(number, key, weight))

    def _cut_example(self, number: int, key: tuple[str, int], weight: float) -> Example:
        extent = self._extents.get(number) or self._extent(number)
        shown = self.stack.whole
        if self.config.focus and extent is not None:
            shown = self.stack.field(extent.centre, self._side_mm(extent), self.size)
        cut = self.stack.cut(number, shown, self.size)
        return Example(cut.image, cut.label(self.stack.slice_of(self.answer.label, number)), key, weight)

    def _warped(self, cut: Cut, before: int) -> npt.NDArray[np.float32] | None:
        """The answer to the slice before, carried over by a registration: probabilities (h', w', 1 + L) of the box."""
        label = self.stack.slice_of(self.answer.label, before)
        if not label.any():
            return None
        side_mm = min(WIDER * cut.field.side_mm, self.stack.whole.side_mm)
        size = self.stack.pixels(side_mm, REGISTERED)
        fixed, moving = (self.stack.cut(at, Field(cut.field.centre, side_mm), size) for at in (cut.number, before))
        warp = register_slices(fixed.image, moving.image)
        carried = fixed.back(warp.image(self.painter.one_hot(moving.label(label))))
        rows, columns = (slice(inner.start - outer.start, inner.stop - outer.start)
                         for inner, outer in zip(cut.box, fixed.box, strict=True))
        return carried[rows, columns]

    def _field(self, number: int, state: _Chain) -> Field:
        if not self.config.focus or state.extent is None:
            return self.stack.whole
        return self.stack.field(state.extent.centre, self._side_mm(state.extent), self.size)

    def _side_mm(self, extent: Extent | None = None) -> float:
        """Side of the field: from the largest labelled slice, and growing with the structures within limits."""
        sides = [one.side_mm for one in self._extents.values() if one is not None]
        asked = self.config.focus * max(sides, default=self.stack.whole.side_mm)
        if extent is None:
            return asked
        return float(np.clip(self.config.focus * extent.side_mm, GROWTH[0] * asked, GROWTH[1] * asked))

    def _extent(self, number: int) -> Extent | None:
        return extent_of(self.stack.slice_of(self.answer.label, number), self.stack.spacing_mm)


def chains(solved: Sequence[int], n_slices: int, wanted: range | None, config: EngineConfig) -> list[list[int]]:
    """From every labelled slice to half way to the next, or to the end: numbers in order, the labelled one first.

    Args:
        solved: numbers of the labelled slices, ascending.
        n_slices: of the volume.
        wanted: numbers of the slices that are asked for; None: all. Those on the way to them are visited too, unless
            slices learn nothing from each other.
        config: says whether they do.
    """
    found = []
    for at, number in enumerate(solved):
        up = n_slices - 1 if at + 1 == len(solved) else (number + solved[at + 1]) // 2
        down = 0 if at == 0 else (solved[at - 1] + number) // 2 + 1
        for chain in (range(number, up + 1), range(number, down - 1, -1)):
            asked = [other for other in chain[1:] if wanted is None or other in wanted]
            if asked and (config.memory or config.prior != "off"):
                asked = list(chain[1 : chain.index(asked[-1]) + 1])
            if asked:
                found.append([number, *asked])
    return found


@dataclass
class _Chain:
    """Where a chain is.

    Attributes:
        extent: of the structures in the last slice that showed any.
        remembered: numbers of predicted slices that serve as prompts, the last first.
    """

    extent: Extent | None
    remembered: list[int] = field(default_factory=list)
