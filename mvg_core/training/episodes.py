"""Training episodes: a query, its prompts, and what must be painted.

An episode is drawn from one of three families:

* `real`: slices of one data set with a random subset of their labels; prompts from near or far slices of the same
  subject, or from another subject;
* `painted`: label maps (heads, pasted organ shapes, smooth regions) with random contrast and a random partition of
  their labels;
* `restoration`: image to image (denoising, inpainting, synthesis, sharpening, ...) on real or painted images, or on the
  directed pairs of the data: the source is shown, the target painted.

Everything after the choice of slices is batched torch on the device of the generator, so the same code feeds a CPU and
a GPU. Shape letters: B episodes, N = 1 + S images (the query first), L labels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor

from mvg_core.training import augmentation, degradations, label_maps
from mvg_core.training.augmentation import WarpConfig, bernoulli, uniform, warp_images, warp_labels
from mvg_core.training.bank import SliceBank
from mvg_core.training.cutting import SOURCE, TARGET, UNDIRECTED

KINDS = ("segmentation", "denoising", "inpainting", "synthesis", "restoration")
FAMILIES = ("real", "painted", "restoration")
MAX_LABELS = 16
NEAR = 4
"""Slices to either side that count as near."""
SPOILT_SOURCES = ("denoising", "inpainting")
"""Kinds of directed pairs whose source is no clean image."""
VISIBLE_CHANGE = 0.02
"""Source and target of an inpainting differ by more than this inside its hole."""


@dataclass
class Episodes:
    """A batch of episodes.

    Attributes:
        images: (B, N, 1, H, W) in [0, 1]; index 0 is the query.
        labels: (B, N, 3, H, W) painted labels in [0, 1].
        weights: (B, N, 1, H, W) weight of each pixel in the painting loss.
        classes: (B, N, H, W) int64 rows of the palette; 0 for image-to-image tasks.
        palette: (B, 1 + L, 3) colours, row 0 is the background.
        in_palette: (B, 1 + L) which rows are in use; none for image-to-image tasks.
        kinds: (B,) int64 index into `KINDS`.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    classes: Tensor
    palette: Tensor
    in_palette: Tensor
    kinds: Tensor

    def to(self, device: torch.device | str) -> Episodes:
        """The same episodes on another device."""
        return Episodes(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))

    def of(self, rows: Tensor) -> Episodes:
        """Some of the episodes, by index or mask (B,)."""
        return Episodes(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @staticmethod
    def cat(parts: list[Episodes]) -> Episodes:
        """Join batches of equal N, H, W."""
        return Episodes(*(torch.cat([getattr(p, name) for p in parts]) for name in Episodes.__dataclass_fields__))


@dataclass(frozen=True)
class EpisodeConfig:
    """What is drawn, and how often.

    Attributes:
        size: side H = W in pixels, a multiple of 16.
        families: weight of each family; one that the bank has nothing for is left out.
        dataset_weights: weight of each data set, within what is drawn from real slices; sets not named have that of
            the bank, which is what their datalist says.
        kinds: weight of each image-to-image kind.
        same_subject: probability that prompts are other slices of the query's subject.
        near: probability that such a slice is at most `NEAR` slices away.
        prompts: probability of 1, 2, 3, ... prompts (one number for a whole batch).
        drafts: probability that, beside another prompt, one shows the query itself with a draft of its label (moved,
            with organs left out), as a registration, a neighbouring slice or an earlier answer would give.
        wrong: largest displacement of a draft, as a fraction of the image side.
        copied: share of the drafts that are the label of another prompt, put on the query as it is; the others are the
            query's own.
        background_weight: weight of background pixels in the painting loss of segmentation (paper: 0.1).
        real_in_restoration: probability that an image-to-image episode uses real images.
        pairs: probability that an image-to-image episode is a directed pair, where the bank has some of its kind.
        warp: spatial augmentation.
    """

    size: int = 128
    families: dict[str, float] = field(default_factory=lambda: {"real": 0.4, "painted": 0.3, "restoration": 0.3})
    dataset_weights: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, float] = field(
        default_factory=lambda: {"denoising": 0.3, "inpainting": 0.3, "synthesis": 0.3, "restoration": 0.1}
    )
    same_subject: float = 0.6
    near: float = 0.5
    prompts: tuple[float, ...] = (0.7, 0.2, 0.1)
    drafts: float = 0.0
    wrong: float = 0.06
    copied: float = 0.0
    background_weight: float = 0.1
    real_in_restoration: float = 0.75
    warp: WarpConfig = field(default_factory=WarpConfig)
    pairs: float = 0.7

    def __post_init__(self) -> None:
        for name, known in (("families", FAMILIES), ("kinds", KINDS[1:])):
            weights = getattr(self, name)
            if unknown := sorted(set(weights) - set(known)):
                raise ValueError(f"{name} has no {unknown[0]!r}: use {', '.join(known)}")
            if any(weight < 0 for weight in weights.values()) or not sum(weights.values()):
                raise ValueError(f"weights of {name} must be 0 or more, and not all 0, got {dict(weights)}")
        if any(weight < 0 for weight in self.dataset_weights.values()):
            raise ValueError(f"weights of data sets must be 0 or more, got {dict(self.dataset_weights)}")
        for name in ("same_subject", "near", "real_in_restoration", "pairs"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1, got {getattr(self, name)}")


class EpisodeSampler:
    """Draws batches of episodes from a bank of slices.

    Args:
        bank: stays where it is, in memory or mapped from a file; the slices of a batch go to the generator's device.
        config: what is drawn.
        generator: source of randomness; its device is used.

    Raises:
        ValueError: the bank has nothing for any of the families.
    """

    def __init__(self, bank: SliceBank, config: EpisodeConfig, generator: Generator) -> None:
        self.config, self.generator = config, generator
        self.bank = bank
        self.numpy = np.random.default_rng(
            int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        )
        self.images = torch.from_numpy(bank.images)
        self.labels = torch.from_numpy(bank.labels)
        self._weights = dict(zip(bank.names.tolist(), bank.weights.tolist(), strict=True)) | config.dataset_weights
        self._rows_of_stack = _rows_by(bank.stack)
        self._rows_of_site = _rows_by(bank.site)
        self._stacks_of_group = {group: np.unique(bank.stack[rows]) for group, rows in _rows_by(bank.group).items()}
        self._subject_of_stack = {stack: bank.subject[rows[0]] for stack, rows in self._rows_of_stack.items()}
        self._real = self._rows_by_dataset(bank.labelled & bank.has_image)
        self._painted = np.flatnonzero(bank.labelled & ~bank.has_image)
        spoilt = (bank.direction == SOURCE) & np.isin(bank.kind, [KINDS.index(kind) for kind in SPOILT_SOURCES])
        self._images_only = self._rows_by_dataset(bank.has_image & ~spoilt)
        several = {site: rows for site, rows in self._rows_of_site.items() if len(rows) > 1}
        undirected = bank.direction == UNDIRECTED
        self._contrasts = self._rows_by_dataset(np.isin(bank.site, list(several)) & undirected)
        sources = {kind: (bank.direction == SOURCE) & (bank.kind == number) for number, kind in enumerate(KINDS)}
        self._pairs = {kind: rows for kind, chosen in sources.items() if (rows := self._rows_by_dataset(chosen))}
        self._families = {name: weight for name, weight in config.families.items()
                          if weight > 0 and (name != "real" or self._real)}
        if not self._families:
            raise ValueError("no slice with an image has labels, and the configuration draws from the family 'real' "
                             "only: add labelled items, or another family")

    def reseed(self, seed: int) -> None:
        """Start the sequence of episodes that belongs to `seed`."""
        self.generator.manual_seed(seed)
        self.numpy = np.random.default_rng(seed)

    def sample(self, batch: int, n_prompts: int | None = None) -> Episodes:
        """Draw a batch; all its episodes have the same number of prompts."""
        if n_prompts is None:
            n_prompts = 1 + int(self.numpy.choice(len(self.config.prompts), p=_shares(self.config.prompts)))
        names = list(self._families)
        counts = self.numpy.multinomial(batch, _shares(list(self._families.values())))
        draw = {"real": self._draw_real, "painted": self._draw_painted, "restoration": self._draw_restoration}
        return Episodes.cat(
            [draw[name](int(count), n_prompts) for name, count in zip(names, counts, strict=True) if count]
        )

    # ------------------------------------------------------------------ families

    def _draw_real(self, batch: int, n_prompts: int) -> Episodes:
        rows = self._episode_rows(self._real, batch, n_prompts)
        labels = self._labels_at(rows)
        table = self._partition(labels, merge=0.2)
        images, classes = self._warp(self._images_at(rows), labels, table)
        images = augmentation.random_intensity(images, self.generator)
        return self._segmentation(*self._with_drafts(images, classes))

    def _draw_painted(self, batch: int, n_prompts: int) -> Episodes:
        maps = self._label_maps(batch, n_prompts)
        table = self._partition(maps, merge=0.5)
        maps, classes = self._warp(maps, maps, table)
        images = label_maps.paint_contrast(maps, self.generator)
        images = augmentation.random_intensity(images, self.generator, invert=0.0)
        return self._segmentation(*self._with_drafts(images, classes))

    def _draw_restoration(self, batch: int, n_prompts: int) -> Episodes:
        counts = self.numpy.multinomial(batch, _shares(list(self.config.kinds.values())))
        parts = [
            self._restoration_of(kind, int(count), n_prompts)
            for kind, count in zip(self.config.kinds, counts, strict=True)
            if count
        ]
        return Episodes.cat(parts)

    def _restoration_of(self, kind: str, batch: int, n_prompts: int) -> Episodes:
        n_pairs = int(self.numpy.binomial(batch, self.config.pairs)) if kind in self._pairs else 0
        parts = [self._pair(kind, n_pairs, n_prompts)] if n_pairs else []
        if batch > n_pairs:
            parts.append(self._made_up(kind, batch - n_pairs, n_prompts))
        return Episodes.cat(parts)

    def _pair(self, kind: str, batch: int, n_prompts: int) -> Episodes:
        """Directed pairs of the data, prompts of the same kind of pair."""
        rows = self._episode_rows(self._pairs[kind], batch, n_prompts)
        shown, target = self._warped_together(rows, self._targets(rows))
        weights = ((shown - target).abs() > VISIBLE_CHANGE).float() * 3 + 0.3 if kind == "inpainting" else None
        return self._image_to_image(shown, target, kind, weights)

    def _made_up(self, kind: str, batch: int, n_prompts: int) -> Episodes:
        """Image-to-image tasks made from images."""
        if kind == "synthesis":
            shown, target = self._synthesis(batch, n_prompts)
            return self._image_to_image(shown, target, kind)
        clean = self._clean(batch, n_prompts)
        weights = None
        if kind == "denoising":
            shown = degradations.add_noise(clean, self.generator)
        elif kind == "inpainting":
            shown, holes = degradations.cut_holes(clean, self.generator)
            weights = holes.float() * 3 + 0.3
        else:
            functions = (degradations.blur, degradations.lower_resolution, degradations.bias_field)
            shown = functions[int(self.numpy.integers(len(functions)))](clean, self.generator)
        return self._image_to_image(shown, clean, kind, weights)

    def _clean(self, batch: int, n_prompts: int) -> Tensor:
        if self.numpy.random() >= self.config.real_in_restoration or not self._images_only:
            maps = self._label_maps(batch, n_prompts)
            maps, _ = self._warp(maps, maps, None)
            return label_maps.paint_contrast(maps, self.generator)
        rows = self._episode_rows(self._images_only, batch, n_prompts)
        images, _ = self._warp(self._images_at(rows), None, None)
        return images

    def _synthesis(self, batch: int, n_prompts: int) -> tuple[Tensor, Tensor]:
        """Source and target contrast: co-registered images, two paintings of one label map, or an intensity curve."""
        choice = self.numpy.random()
        if choice < 0.45 and self._contrasts:
            rows = self._episode_rows(self._contrasts, batch, n_prompts)
            return self._warped_together(rows, self._other_contrast(rows))
        if choice < 0.75:
            maps, _ = self._warp(self._label_maps(batch, n_prompts), None, None, nearest=True)
            source = label_maps.paint_contrast(maps, self.generator, same_contrast=1.0)
            return source, label_maps.paint_contrast(maps, self.generator, same_contrast=1.0)
        clean = self._clean(batch, n_prompts)
        return clean, degradations.remap_intensity(clean, self.generator)

    def _warped_together(self, rows: np.ndarray, others: np.ndarray) -> tuple[Tensor, Tensor]:
        """The slices of two sets of rows (B, N) of the same places, moved alike."""
        both = torch.cat([self._images_at(rows), self._images_at(others)], dim=1)
        grids = self._grids(both[:, :1], rows.shape[1])
        images = warp_images(both, torch.cat([grids, grids], dim=1))
        return images[:, : rows.shape[1]], images[:, rows.shape[1] :]

    # ------------------------------------------------------------------ slices

    def _images_at(self, rows: np.ndarray) -> Tensor:
        """Slices (*rows.shape, S, S) in [0, 1] on the generator's device."""
        return self.images[rows].to(self.generator.device).float() / 255

    def _labels_at(self, rows: np.ndarray) -> Tensor:
        """Label maps (*rows.shape, S, S) uint8 on the generator's device."""
        return self.labels[rows].to(self.generator.device)

    def _targets(self, rows: np.ndarray) -> np.ndarray:
        """The target of every source."""
        direction, places = self.bank.direction, self._rows_of_site
        found = [next(r for r in places[int(self.bank.site[row])] if direction[r] == TARGET) for row in rows.flat]
        return np.array(found, dtype=np.int64).reshape(rows.shape)

    def _rows_by_dataset(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The chosen rows of every data set that is drawn from at all."""
        rows = np.flatnonzero(chosen)
        by_name = {str(self.bank.names[k]): rows[self.bank.dataset[rows] == k]
                   for k in np.unique(self.bank.dataset[rows])}
        return {name: own for name, own in by_name.items() if self._weights.get(name, 1.0) > 0}

    def _episode_rows(self, rows_by_dataset: dict[str, np.ndarray], batch: int, n_prompts: int) -> np.ndarray:
        """Bank rows (B, N): a prompt is drawn first, so that it shows labels; query and other prompts follow it."""
        names = list(rows_by_dataset)
        shares = _shares([self._weights.get(name, 1.0) for name in names])
        out = np.empty((batch, 1 + n_prompts), dtype=np.int64)
        for b in range(batch):
            rows = rows_by_dataset[names[int(self.numpy.choice(len(names), p=shares))]]
            first = int(rows[self.numpy.integers(len(rows))])
            out[b, 1] = first
            query = self._related_row(first)
            out[b, 0] = query
            for s in range(2, 1 + n_prompts):
                out[b, s] = self._related_row(query if self.numpy.random() < 0.5 else first)
        return out

    def _related_row(self, row: int) -> int:
        """Another slice: of the same stack, or of another subject at about the same relative position."""
        bank = self.bank
        stack = int(bank.stack[row])
        same = self._rows_of_stack[stack]
        if len(same) > 1 and self.numpy.random() < self.config.same_subject:
            if self.numpy.random() < self.config.near:
                near = same[(np.abs(bank.number[same] - bank.number[row]) <= NEAR) & (same != row)]
                if len(near):
                    return int(near[self.numpy.integers(len(near))])
            return int(same[self.numpy.integers(len(same))])
        stacks = self._stacks_of_group[int(bank.group[row])]
        others = [s for s in stacks if self._subject_of_stack[s] != bank.subject[row]]
        if not others:
            return int(same[self.numpy.integers(len(same))])
        rows = self._rows_of_stack[int(others[self.numpy.integers(len(others))])]
        distance = np.abs(bank.relative[rows] - bank.relative[row] + self.numpy.normal(0, 0.03, len(rows)))
        return int(rows[np.argmin(distance)])

    def _other_contrast(self, rows: np.ndarray) -> np.ndarray:
        """For each episode one target contrast that all its images have, if there is one; else their own."""
        bank, out = self.bank, rows.copy()
        for b in range(rows.shape[0]):
            options = [{int(bank.group[r]): int(r) for r in self._rows_of_site[int(bank.site[row])]} for row in rows[b]]
            own = int(bank.group[rows[b, 0]])
            common = sorted(set.intersection(*(set(o) for o in options)) - {own})
            if common:
                group = common[int(self.numpy.integers(len(common)))]
                out[b] = [o[group] for o in options]
        return out

    def _label_maps(self, batch: int, n_prompts: int) -> Tensor:
        """Label maps (B, N, S, S) without images: heads, or smooth regions with real organ shapes on them."""
        heads = self.numpy.random() < 0.6 and len(self._painted) > 0
        if heads:
            return self._labels_at(self._episode_rows({"heads": self._painted}, batch, n_prompts))
        size = self.labels.shape[-1]
        maps = label_maps.random_regions(batch, size, self.generator)
        n_shapes = int(self.numpy.integers(0, 5))
        if n_shapes and (self._real or len(self._painted)):
            maps = label_maps.paste_shapes(maps, self._shapes(batch, n_shapes), self.generator)
        return maps.to(torch.uint8)[:, None].expand(-1, 1 + n_prompts, -1, -1)

    def _shapes(self, batch: int, n_shapes: int) -> Tensor:
        """Binary masks (B, P, S, S) of one random label of random slices."""
        pools = [*self._real.values(), self._painted]
        pools = [pool for pool in pools if len(pool)]
        picked = [pools[int(self.numpy.integers(len(pools)))] for _ in range(batch * n_shapes)]
        rows = np.array([pool[self.numpy.integers(len(pool))] for pool in picked])
        labels = self._labels_at(rows)
        present = _present(labels[:, None])
        present[:, 0] = False
        noise = torch.rand(present.shape, generator=self.generator, device=self.generator.device)
        value = torch.where(present, noise, -1.0).argmax(1)
        return (labels == value[:, None, None]).reshape(batch, n_shapes, *labels.shape[1:])

    # ------------------------------------------------------------------ painting

    def _partition(self, labels: Tensor, merge: float) -> Tensor:
        """Table (B, 256) from label number to class: a random subset of the labels that the prompts show.

        With probability `merge` an episode's labels are thrown together into few classes at random.
        """
        batch = labels.shape[0]
        shown = _present(labels[:, 1:])  # (B, 256)
        shown[:, 0] = False
        keep_rate = uniform((batch, 1), 0.15, 1.1, self.generator)
        noise = torch.rand(shown.shape, generator=self.generator, device=self.generator.device)
        kept = shown & (noise < keep_rate)
        # At least one label: the one with the smallest number drawn.
        one = torch.where(shown, noise, 2.0).argmin(1, keepdim=True)
        kept = kept | (torch.zeros_like(kept).scatter(1, one, True) & shown)
        order = torch.where(kept, noise, 2.0).argsort(1).argsort(1) + 1  # 1, 2, ... over the kept labels, shuffled
        limit = 1 + (torch.rand((batch, 1), generator=self.generator, device=self.generator.device) * 4).long()
        merged = (order - 1) % limit + 1
        order = torch.where(bernoulli((batch, 1), merge, self.generator), merged, order)
        return torch.where(kept & (order <= MAX_LABELS), order, 0)

    def _grids(self, reference: Tensor, n_images: int) -> Tensor:
        """Sampling grids whose zoom keeps the bright part of `reference` (B, 1, S, S) in view.

        Structures (bool) are magnified until they fill at most a quarter of the slice: of a structure of a few pixels
        nothing is learned. Images are magnified up to the resolution that they are stored in.
        """
        mass = reference[:, 0].float() + 1e-6
        axis = torch.linspace(-1, 1, mass.shape[-1], device=mass.device)
        total = mass.sum((1, 2))
        centre = torch.stack([(mass * axis).sum((1, 2)) / total, (mass * axis[:, None]).sum((1, 2)) / total], -1)
        centre = centre + uniform(tuple(centre.shape), -0.25, 0.25, self.generator)
        if reference.dtype == torch.bool:
            largest = 0.5 / mass.mean((1, 2)).sqrt()
        else:
            largest = mass.new_full((len(mass),), mass.shape[-1] / self.config.size)
        return augmentation.random_grids(centre, largest, n_images, self.config.size, self.config.warp, self.generator)

    def _warp(
        self, images: Tensor, labels: Tensor | None, table: Tensor | None, *, nearest: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Warp images (B, N, S, S) and their classes together.

        Integer images, and all with `nearest`, are label maps and stay so. Classes are 0 without labels and table.
        """
        warp = warp_labels if nearest or not images.is_floating_point() else warp_images
        if labels is None or table is None:
            warped = warp(images, self._grids(images[:, 1:2].float(), images.shape[1]))
            return warped, torch.zeros_like(warped, dtype=torch.int64)
        classes = table.gather(1, labels.flatten(1).long()).reshape(labels.shape)
        grids = self._grids(classes[:, 1:2] > 0, images.shape[1])
        return warp(images, grids), warp_labels(classes, grids)

    def _with_drafts(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """In some episodes the last of several prompts becomes the query with a draft of its label."""
        if self.config.drafts == 0 or images.shape[1] < 3:
            return images, classes
        batch, _, size = images.shape[0], images.shape[1], images.shape[-1]
        chosen = bernoulli((batch, 1, 1), self.config.drafts, self.generator)
        axis = (torch.arange(size, device=images.device) + 0.5) / size * 2 - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        moved = augmentation.smooth_noise((batch, 2), 4, size, self.generator)
        moved = moved * uniform((batch, 1, 1, 1), 0, self.config.wrong, self.generator)
        grid = torch.stack([x, y], -1) + moved.movedim(1, -1)
        guessed = classes[:, 0]
        if self.config.copied:
            guessed = torch.where(bernoulli((batch, 1, 1), self.config.copied, self.generator), classes[:, 1], guessed)
        draft = warp_labels(guessed[:, None], grid[:, None])[:, 0]
        dropped = bernoulli((batch, 256), 0.1, self.generator)
        draft = torch.where(dropped.gather(1, draft.flatten(1)).reshape(draft.shape), 0, draft)
        images, classes = images.clone(), classes.clone()
        images[:, -1] = torch.where(chosen, images[:, 0], images[:, -1])
        classes[:, -1] = torch.where(chosen, draft, classes[:, -1])
        return images, classes

    def _segmentation(self, images: Tensor, classes: Tensor) -> Episodes:
        batch = images.shape[0]
        # Classes that the prompts do not show any more (cropped away) are background for the query too.
        shown = _present(classes[:, 1:])
        classes = torch.where(shown.gather(1, classes.flatten(1)).reshape(classes.shape), classes, 0)
        in_palette = shown[:, : 1 + MAX_LABELS].clone()
        in_palette[:, 0] = True
        palette = self._palettes(batch)
        painted = palette.gather(1, classes.flatten(1)[..., None].expand(-1, -1, 3))
        painted = painted.reshape(*classes.shape, 3).movedim(-1, 2)
        weights = torch.where(classes > 0, 1.0, self.config.background_weight)
        kinds = torch.zeros(batch, dtype=torch.int64, device=images.device)
        return Episodes(images[:, :, None], painted, weights[:, :, None], classes, palette, in_palette, kinds)

    def _palettes(self, batch: int) -> Tensor:
        """Random colours (B, 1 + L, 3) with black background: shuffled lattice colours, half of them jittered."""
        device = self.generator.device
        level = torch.tensor([0.0, 0.5, 1.0], device=device)
        lattice = torch.cartesian_prod(level, level, level)[1:]  # 26 colours, without black
        corner = (lattice != 0.5).all(1)
        # Corners are far apart and come first, as in the palette that inference uses.
        priority = torch.rand((batch, 26), generator=self.generator, device=device) + (~corner).float() * bernoulli(
            (batch, 1), 0.8, self.generator
        )
        order = priority.argsort(1)[:, :MAX_LABELS]
        jitter = uniform((batch, MAX_LABELS, 3), -0.2, 0.2, self.generator) * bernoulli(
            (batch, 1, 1), 0.5, self.generator
        )
        colours = (lattice[order] + jitter).clamp(0, 1)
        return torch.cat([torch.zeros(batch, 1, 3, device=device), colours], dim=1)

    def _image_to_image(self, shown: Tensor, target: Tensor, kind: str, weights: Tensor | None = None) -> Episodes:
        batch = shown.shape[0]
        painted = target[:, :, None].expand(-1, -1, 3, -1, -1)
        weights = torch.ones_like(target) if weights is None else weights
        return Episodes(
            images=shown[:, :, None],
            labels=painted.contiguous(),
            weights=weights[:, :, None],
            classes=torch.zeros_like(target, dtype=torch.int64),
            palette=self._palettes(batch),
            in_palette=torch.zeros((batch, 1 + MAX_LABELS), dtype=torch.bool, device=shown.device),
            kinds=torch.full((batch,), KINDS.index(kind), dtype=torch.int64, device=shown.device),
        )


def _rows_by(column: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(column, kind="stable")
    values, starts = np.unique(column[order], return_index=True)
    return {int(v): rows for v, rows in zip(values, np.split(order, starts[1:]), strict=True)}


def _shares(weights: list[float] | tuple[float, ...]) -> np.ndarray:
    shares = np.asarray(weights, dtype=float)
    return shares / shares.sum()


def _present(labels: Tensor) -> Tensor:
    """Which of 256 label numbers occur in label maps (B, N, H, W) -> (B, 256), bool."""
    flat = labels.flatten(1).long()
    return torch.zeros((flat.shape[0], 256), dtype=torch.bool, device=flat.device).scatter(1, flat, True)
