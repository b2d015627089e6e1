"""Image-to-image episodes from slices with their own pixels.

Shape letters: B episodes, N images of an episode (the query first), S side of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mvg_core.holes import continued
from mvg_core.readout import OUTSIDE, PRIOR_OF
from mvg_core.training import degradations
from mvg_core.training.native_slices import NativeSlices

TASKS: Mapping[str, str] = {"noise": "denoising", "holes": "inpainting", "contrast": "synthesis", "curve": "synthesis",
                            "blur": "denoising", "resolution": "denoising", "shading": "denoising"}
"""What is done to images, and the prior of the readout that undoes it."""
SEEN_FROM_AFAR = ("holes", "contrast")
"""Tasks whose answer depends on the whole slice more than on a pixel's neighbours."""
LARGEST_ZOOM = 3.5
"""Slices are made smaller by this at most, so that a crop shows more."""
LEAST_SHOWN, ATTEMPTS = 0.15, 8
"""Share of a crop that shows something: darkness teaches nothing."""
OTHER_SUBJECT, SAME_PLACE, FROM_AFAR = 0.7, 0.6, 0.75
"""Probabilities: that a prompt shows another subject, a slice at about the same place, and a crop the whole slice."""


class Restorations(NamedTuple):
    """A batch of episodes.

    Attributes:
        shown: (B, N, S, S) in [0, 1]; holes are filled smoothly.
        answers: (B, N, S, S) in [0, 1].
        counts: (B, N, S, S) how much each pixel counts.
        holes: (B, N, S, S), 1 in holes, else 0.
        priors: (B,) int64 index into `PRIOR_OF`.
    """

    shown: Tensor
    answers: Tensor
    counts: Tensor
    holes: Tensor
    priors: Tensor

    @staticmethod
    def cat(parts: list[Restorations]) -> Restorations:
        """Join batches of equal N and S."""
        return Restorations(*(torch.cat(same) for same in zip(*parts, strict=True)))


class RestorationSampler:
    """Draws episodes of a task.

    Args:
        slices: of all data sets.
        side: S.
        weights: how often each data set is drawn; 1 where nothing is said.
        seed: another one is another sequence.
    """

    def __init__(self, slices: NativeSlices, side: int, weights: Mapping[str, float], seed: int) -> None:
        self.slices, self.side = slices, side
        self.numpy = np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self._rows = {(int(d), int(c)): np.flatnonzero((slices.dataset == d) & (slices.contrast == c))
                      for d, c in {*zip(slices.dataset.tolist(), slices.contrast.tolist(), strict=True)}}
        self._stocks = sorted(self._rows)
        per_set = {d: sum(stock[0] == d for stock in self._stocks) for d, _ in self._stocks}
        shares = np.array([weights.get(str(slices.names[d]), 1.0) / per_set[d] for d, _ in self._stocks])
        self._shares = shares / shares.sum()
        self._paired = [stock for stock in self._stocks if per_set[stock[0]] > 1]
        self._at = {(int(site), int(contrast)): row
                    for row, (site, contrast) in enumerate(zip(slices.site, slices.contrast, strict=True))}

    def draw(self, task: str, batch: int, n_images: int) -> Restorations:
        """Episodes of one task; see `TASKS`."""
        drawn = [self._episode(task, n_images) for _ in range(batch)]
        first, answers, inside = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        counts, holes = inside, torch.zeros_like(inside)
        if task == "contrast":
            shown = first
        elif task == "curve":
            shown, answers = answers, degradations.remap_intensity(answers, self.torch)
        elif task == "holes":
            shown, counts, holes = self._without_holes(answers, inside)
        else:
            spoil = {"noise": degradations.add_noise, "blur": degradations.blur,
                     "resolution": degradations.lower_resolution, "shading": degradations.bias_field}[task]
            shown = spoil(answers, self.torch) * inside
        priors = torch.full((batch,), PRIOR_OF.index(TASKS[task]), dtype=torch.int64)
        return Restorations(shown, answers, counts, holes, priors)

    def _without_holes(self, clean: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clean images with their holes filled, what counts, and the holes; prompts have more of them."""
        batch, n_images = clean.shape[:2]
        drawn = [degradations.random_holes(batch, n_images, self.side, self.torch) for _ in range(3)]
        more = drawn[1] | drawn[2]
        more[:, 0] = False
        holes = drawn[0] | more
        shown = torch.from_numpy(continued(clean.numpy(), holes.numpy()))
        return shown, inside * torch.where(holes, 1.0, OUTSIDE), holes.to(clean)

    def _episode(self, task: str, n_images: int) -> tuple[npt.NDArray[np.float32], ...]:
        """What is shown first, the answer, and where the image is (N, S, S), all moved and shaded alike."""
        stocks = self._paired if task == "contrast" else self._stocks
        shares = None if task == "contrast" else self._shares
        dataset, contrast = stocks[self.numpy.choice(len(stocks), p=shares)]
        rows = self._related(self._rows[dataset, contrast], n_images)
        target = contrast
        if task == "contrast":
            target = int(self.numpy.choice([c for d, c in self._stocks if d == dataset and c != contrast]))
        zoom, turn = self._zoom(task, int(self.slices.shape[rows[0]].max())), self.numpy.random(3) < 0.5
        gamma = np.exp(0.25 * self.numpy.normal()) if self.numpy.random() < 0.5 else 1.0
        inverted = self.numpy.random() < 0.1
        crops = []
        for row in rows:
            other = self._at.get((int(self.slices.site[row]), target), row)
            pair = np.stack([self.slices.image(row), self.slices.image(other)]) ** np.float32(gamma)
            crops.append(self._crop(1 - pair if inverted else pair, zoom * np.exp(0.05 * self.numpy.normal()), turn))
        return tuple(np.stack([crop[k] for crop in crops]) for k in range(3))

    def _related(self, rows: npt.NDArray[np.intp], n_images: int) -> list[int]:
        """A slice, and others of its kind."""
        slices, first = self.slices, int(self.numpy.choice(rows))
        is_same = slices.subject[rows] == slices.subject[first]
        found = [first]
        for _ in range(n_images - 1):
            others = rows[~is_same]
            pool = others if len(others) and self.numpy.random() < OTHER_SUBJECT else rows[is_same]
            if self.numpy.random() < SAME_PLACE:
                apart = np.abs(slices.place[pool] - slices.place[first]) + 1e-3 * self.numpy.random(len(pool))
                pool = pool[np.argsort(apart)[:4]]
            found.append(int(self.numpy.choice(pool)))
        return found

    def _zoom(self, task: str, longest: int) -> float:
        """How much smaller slices are made."""
        whole = float(np.clip(longest / self.side, 1.0, LARGEST_ZOOM))
        if task in SEEN_FROM_AFAR and self.numpy.random() < FROM_AFAR:
            return whole
        between = float(np.exp(self.numpy.uniform(np.log(0.8), np.log(1.05 * whole))))
        return 1.0 if self.numpy.random() < 0.5 else between

    def _crop(self, images: npt.NDArray[np.float32], zoom: float, turn: npt.NDArray[np.bool_]
              ) -> tuple[npt.NDArray[np.float32], ...]:
        """The same crop (S, S) of each of the images (n, H, W), and where it shows them; black around them."""
        if not 0.95 <= zoom <= 1.05:
            size = [max(24, int(side / zoom)) for side in images.shape[1:]]
            scaled = F.interpolate(torch.from_numpy(images)[None], size=size, mode="bilinear", antialias=True)
            images = scaled[0].numpy()
        crop = self._bright_crop(images)
        missing = [self.side - side for side in crop.shape[1:]]
        around = [(each // 2, each - each // 2) for each in missing]
        canvas = np.pad(np.concatenate([crop, np.ones_like(crop[:1])]), [(0, 0), *around])
        canvas = canvas[:, ::-1] if turn[0] else canvas
        canvas = canvas[:, :, ::-1] if turn[1] else canvas
        canvas = canvas.transpose(0, 2, 1) if turn[2] else canvas
        return tuple(np.clip(canvas, 0, 1).astype(np.float32))

    def _bright_crop(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A crop (n, h, w) of at most S x S pixels that shows something, if one is found soon."""
        crops = []
        for _ in range(ATTEMPTS):
            top, left = (int(self.numpy.integers(0, max(1, side - self.side + 1))) for side in images.shape[1:])
            crops.append(images[:, top : top + self.side, left : left + self.side])
            if (crops[-1][0] > 0.05).mean() > LEAST_SHOWN:
                break
        return crops[-1]
