"""The steps of test-time tuning, see `mvg_core.tuning`.

Shape letters: P prompts of a lesson, B episodes, N images of an episode (the query first), S side, C side of a crop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.training.adapters import add_adapters, merge_adapters
from mvg_core.training.augmentation import WarpConfig, random_grids, random_intensity, warp_images, warp_labels
from mvg_core.training.episodes import KINDS, Episodes
from mvg_core.training.objective import HybridConfig, hybrid_loss
from mvg_core.tuning import Lesson, TuningConfig

# Every image of an episode is moved by itself: with one prompt, query and prompt must differ.
WARP = WarpConfig(zoom=1.6, rotation_deg=12, shift=0.07, scale=0.15, jitter=1.0, elastic=0.03, flip=0.0)
BACKGROUND_WEIGHT = 0.1
CLIP = 1.0
CROP_MULTIPLE = 16
REACH = 0.08
"""Slices serve each other as examples where they lie about this far apart, as a share of all that is labelled."""
_RARELY = 1e-3


def tune_network(network: ConfiguredModule, lessons: Sequence[Lesson], config: TuningConfig, *, n_prompts: int = 3,
                 progress: Callable[[int, int], None] | None = None) -> tuple[ConfiguredModule, list[float]]:
    """A tuned copy of a network, and the loss of every step.

    Args:
        network: stays as it is.
        lessons: what to learn from.
        config: settings.
        n_prompts: most prompts of an episode.
        progress: called with steps done and steps in all.
    """
    device = next(network.parameters()).device
    with torch.inference_mode(False):  # which lets gradients flow, too
        tuned = copy.deepcopy(network).train().requires_grad_(True)
        if config.adapters:
            add_adapters(tuned, config.adapters, seed=config.seed)
        learning = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=config.rate, betas=(0.9, 0.95), weight_decay=0.0)
        episodes = PromptEpisodes(lessons, config.batch, n_prompts, config.seed)
        losses = []
        for step in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.rate * (1 - step / config.steps)
            losses.append(_step(tuned, episodes.draw().to(device), optimizer, learning))
            if progress is not None:
                progress(step + 1, config.steps)
    return (merge_adapters(tuned) if config.adapters else tuned).eval(), losses


def fast_bfloat16(device: torch.device) -> bool:
    """Whether half the precision is faster: on GPUs, and on CPUs with instructions for it."""
    if device.type != "cpu":
        return device.type == "cuda"
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


def _step(network: ConfiguredModule, episodes: Episodes, optimizer: torch.optim.Optimizer, learning: Sequence[Tensor]
          ) -> float:
    batch, images, _, side, _ = episodes.images.shape
    patches = side // network.config.patch
    hidden = torch.zeros((batch, images, patches, patches), dtype=torch.bool, device=episodes.images.device)
    hidden[:, 0] = True
    masked = torch.zeros(batch, dtype=torch.bool, device=hidden.device)
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=fast_bfloat16(hidden.device)):
        loss = hybrid_loss(network, episodes, hidden, masked, HybridConfig())["loss"]  # type: ignore[arg-type]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if torch.isfinite(torch.nn.utils.clip_grad_norm_(learning, CLIP)):
        optimizer.step()
    return float(loss.detach())


class PromptEpisodes:
    """Draws episodes from lessons; on the CPU, where a few at a time are quick.

    Args:
        lessons: what is drawn from.
        batch: episodes of one draw.
        n_prompts: most prompts of an episode.
        seed: of everything that is random.
    """

    def __init__(self, lessons: Sequence[Lesson], batch: int, n_prompts: int, seed: int) -> None:
        self._lessons, self._batch, self._n_prompts = lessons, batch, n_prompts
        self._numpy = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._turns: list[list[int]] = [[] for _ in lessons]

    def draw(self) -> Episodes:
        """A batch of one lesson."""
        number = int(self._numpy.integers(len(self._lessons)))
        lesson, rows = self._lessons[number], self.rows(number)
        return self._segmentation(lesson, rows) if lesson.colours is not None else self._images(lesson, rows)

    def rows(self, number: int) -> np.ndarray:
        """Which prompts of a lesson are in a batch (B, N): each in turn is the query of others, or of itself alone."""
        n_solved, turn = len(self._lessons[number].images), self._turns[number]
        n_others = 1 + int(self._numpy.integers(max(1, min(self._n_prompts, n_solved - 1))))
        rows = np.empty((self._batch, 1 + n_others), np.int64)
        for row in rows:
            if not turn:
                turn.extend(self._numpy.permutation(n_solved).tolist())
            row[0] = turn.pop()
            odds = self._odds(self._lessons[number], row[0])
            row[1:] = self._numpy.choice(n_solved, n_others, replace=bool(np.count_nonzero(odds) < n_others),
                                               p=odds)
        return rows

    @staticmethod
    def _odds(lesson: Lesson, query: int) -> np.ndarray:
        """How often each prompt (P,) serves a query: another subject's, if there are any, and from the same place."""
        odds = np.ones(len(lesson.images))
        if lesson.places is not None:
            odds = np.exp(-((lesson.places - lesson.places[query]) / REACH) ** 2 / 2) + _RARELY
        if lesson.subjects is not None and np.ptp(lesson.subjects):
            odds[lesson.subjects == lesson.subjects[query]] = 0
        elif len(odds) > 1:
            odds[query] = 0
        return odds / odds.sum()

    def _segmentation(self, lesson: Lesson, rows: np.ndarray) -> Episodes:
        images, classes = torch.from_numpy(lesson.images[rows]), torch.from_numpy(lesson.targets[rows]).long()
        largest = torch.full((len(rows),), WARP.zoom)
        grids = random_grids(_centres(classes[:, 1]), largest, rows.shape[1], images.shape[-1], WARP, self._generator)
        images, classes = warp_images(images, grids), warp_labels(classes, grids)
        images = random_intensity(images, self._generator, invert=0.0)
        batch = len(rows)
        colours = torch.tensor(lesson.colours)  # a copy: codecs keep theirs read-only
        # What the prompts do not show any more cannot be asked of the query.
        shown = torch.zeros((batch, len(colours)), dtype=torch.bool).scatter(1, classes[:, 1:].flatten(1), True)
        shown[:, 0] = True
        classes = torch.where(shown.gather(1, classes.flatten(1)).reshape(classes.shape), classes, 0)
        weights = torch.where(classes > 0, 1.0, BACKGROUND_WEIGHT)
        return Episodes(images[:, :, None], colours[classes].movedim(-1, 2), weights[:, :, None], classes,
                        colours.expand(batch, -1, -1), shown, torch.zeros(batch, dtype=torch.int64))

    def _images(self, lesson: Lesson, rows: np.ndarray) -> Episodes:
        """Crops, never resampled: noise must stay what it is."""
        batch = len(rows)
        side = _crop_side(lesson.images.shape[-1])
        shown, target = (np.empty((*rows.shape, side, side), np.float32) for _ in range(2))
        weights = np.ones(shown.shape, np.float32)
        room = lesson.images.shape[-1] - side
        for index, row in np.ndenumerate(rows):
            y, x = self._numpy.integers(0, room + 1, 2)
            turned = int(self._numpy.integers(4))
            for out, source in ((shown, lesson.images), (target, lesson.targets)):
                out[index] = np.rot90(source[row, y : y + side, x : x + side], turned)
            if lesson.holes is not None:
                weights[index] = 0.3 + 3.0 * np.rot90(lesson.holes[row, y : y + side, x : x + side], turned)
        labels = torch.from_numpy(target)[:, :, None].expand(-1, -1, 3, -1, -1).contiguous()
        return Episodes(torch.from_numpy(shown)[:, :, None], labels, torch.from_numpy(weights)[:, :, None],
                        torch.zeros(shown.shape, dtype=torch.int64), torch.zeros(batch, 1, 3),
                        torch.zeros((batch, 1), dtype=torch.bool), torch.full((batch,), KINDS.index(lesson.kind)))


def _centres(classes: Tensor) -> Tensor:
    """Centres of mass (B, 2), x and y in [-1, 1], of what is labelled in (B, S, S)."""
    mass = (classes > 0).float() + 1e-6
    axis = torch.linspace(-1, 1, mass.shape[-1])
    total = mass.sum((1, 2))
    return torch.stack([(mass * axis).sum((1, 2)), (mass * axis[:, None]).sum((1, 2))], dim=-1) / total[:, None]


def _crop_side(side: int) -> int:
    """Three quarters of a slice, at most 192 pixels."""
    return max(CROP_MULTIPLE, min(192, side * 3 // 4) // CROP_MULTIPLE * CROP_MULTIPLE)
