"""Slices with their own pixels: what feature maps learn to restore, because resampling changes noise and sharpness.

Shape letters: N slices, H W pixels of one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mvg_core.training.cutting import image_scaling, planes_of
from mvg_core.training.datasets import TrainingItem, TrainingSet
from mvg_core.volume_io import read_volume

MOST_A_PLANE = 40
"""Slices taken from one volume in one plane, evenly spread; the outermost 5 % show little."""
LEAST_SIDE = 40
LARGEST_RATIO = 1.3
"""Planes whose pixels are longer than this in one direction are left out."""


@dataclass(frozen=True, eq=False)
class NativeSlices:
    """Slices of many volumes, each of its own size. Numbers are columns of one table with a row per slice.

    Attributes:
        pixels: uint8, all slices one after the other, row by row; intensity x 255.
        offset: (N + 1,) where each slice starts.
        shape: (N, 2) its rows and columns.
        dataset: (N,) index into `names`.
        subject: (N,) one number for each subject of a data set.
        site: (N,) one number for each place: shared by the contrasts that show it.
        contrast: (N,) index into `contrasts`.
        place: (N,) where the slice lies in its volume, 0 to 1.
        names: of the data sets.
        contrasts: their names.
    """

    pixels: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.int64]
    shape: npt.NDArray[np.int64]
    dataset: npt.NDArray[np.int64]
    subject: npt.NDArray[np.int64]
    site: npt.NDArray[np.int64]
    contrast: npt.NDArray[np.int64]
    place: npt.NDArray[np.float32]
    names: npt.NDArray[np.str_]
    contrasts: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, row: int) -> npt.NDArray[np.float32]:
        """(H, W) in [0, 1]."""
        stored = self.pixels[self.offset[row] : self.offset[row + 1]].reshape(self.shape[row])
        return stored.astype(np.float32) / np.float32(255)

    def save(self, path: Path) -> None:
        """Write everything as one uncompressed .npz, atomically."""
        temporary = path.with_name(path.name + ".part.npz")
        np.savez(temporary, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> NativeSlices:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})


def cut_native(sets: Iterable[TrainingSet]) -> NativeSlices:
    """Take slices of all images of several data sets; label maps play no part.

    Raises:
        VolumeReadError: a file cannot be read.
        ValueError: no slice shows anything.
    """
    slices: list[npt.NDArray[np.uint8]] = []
    rows: list[tuple[int, int, int, int, float]] = []
    names: list[str] = []
    contrasts: list[str] = []
    n_sites = 0
    for training_set in sets:
        names.append(training_set.name)
        for subject, item in enumerate(training_set.items):
            for place, shown in _places(item):
                for contrast, image in shown.items():
                    if contrast not in contrasts:
                        contrasts.append(contrast)
                    slices.append(image)
                    rows.append((len(names) - 1, subject, n_sites, contrasts.index(contrast), place))
                n_sites += 1
    if not rows:
        raise ValueError("no slice shows anything: check the images of the list (mvg check-data)")
    dataset, subject, site, contrast, place = zip(*rows, strict=True)
    return NativeSlices(
        np.concatenate([image.ravel() for image in slices]), np.cumsum([0, *(image.size for image in slices)]),
        np.array([image.shape for image in slices]), np.array(dataset), np.array(subject), np.array(site),
        np.array(contrast), np.array(place, np.float32), np.array(names), np.array(contrasts))


def _places(item: TrainingItem) -> Iterable[tuple[float, dict[str, npt.NDArray[np.uint8]]]]:
    """Where the slices of an item lie, and what each contrast shows there."""
    volumes = {contrast: read_volume(path) for contrast, path in item.images.items()}
    if not volumes:
        return
    geometry = next(iter(volumes.values())).geometry
    arrays = {contrast: np.round(image_scaling(volume.array).apply(volume.array) * 255).astype(np.uint8)
              for contrast, volume in volumes.items() if volume.geometry.is_close(geometry)}
    for plane, _ in planes_of(geometry, 1):
        axis = geometry.anatomical_axis(plane) if min(geometry.shape) > 1 else int(np.argmin(geometry.shape))
        pixel_mm = [geometry.spacing_mm[other] for other in range(3) if other != axis]
        if max(pixel_mm) > LARGEST_RATIO * min(pixel_mm):
            continue
        n_slices = geometry.shape[axis]
        spread = np.linspace(0.05 * n_slices, 0.95 * n_slices - 1, min(MOST_A_PLANE, n_slices))
        for number in np.unique(spread.round().astype(int)) if n_slices > 1 else [0]:
            shown = {contrast: np.ascontiguousarray(np.moveaxis(array, axis, 0)[number])
                     for contrast, array in arrays.items()}
            yield number / max(1, n_slices - 1), {
                contrast: image for contrast, image in shown.items()
                if min(image.shape) >= LEAST_SIDE and (image > 12).mean() >= 0.1}
