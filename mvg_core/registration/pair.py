"""A query and a reference image in one frame: the world, or the plane of two pictures."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from mvg_core.intensity import IntensityScaling
from mvg_core.registration.grids import TIGHT, Box, around, block_means, box_of, middle_of, moved, part_of, translation
from mvg_core.slices import choose_plane
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import to_sitk

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_PICTURE_MM = 192.0
"""Pictures have no true scale: the longer side becomes this long."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Query and reference image, scaled to [0, 1], in a common frame: world LPS, or the plane of two pictures.

    Attributes:
        volumes: query, reference.
        frames: (4, 4) RAS+ mm -> frame, of each.
        n_axes: of the frame, 2 or 3.
        scalings: of the intensities of each; None where the image is constant.
        focus: part of the reference's grid that is matched.
        remark: why no registration is possible; empty if it is.
    """

    volumes: tuple[Volume, Volume]
    frames: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
    n_axes: Literal[2, 3]
    scalings: tuple[IntensityScaling | None, IntensityScaling | None]
    focus: Geometry
    remark: str
    _made: dict[Hashable, sitk.Image] = field(default_factory=dict)

    @classmethod
    def of(cls, query: Volume, image: Volume, label: Volume | None, margin: tuple[float, float] = TIGHT) -> Pair:
        """A pair that is matched around the reference's label, or as a whole."""
        volumes = (query, image)
        flat = [min(volume.geometry.shape) == 1 for volume in volumes]
        scalings = (_scaling(query), _scaling(image))
        remark = ""
        if flat[0] != flat[1]:
            remark = "one image is a single slice and the other a volume: only their middles were put together"
        elif None in scalings:
            which = "query" if scalings[0] is None else "reference image"
            remark = f"the {which} is constant: only the middles of the images were put together"
        frames = _planar_frames(query.geometry, image.geometry) if all(flat) else (_LPS, _LPS)
        focus = image.geometry if label is None else around(label, image.geometry, margin)
        return cls(volumes, frames, 2 if all(flat) else 3, scalings, focus, remark)

    @property
    def is_focused(self) -> bool:
        """Whether only a part of the reference is matched."""
        return self.focus.shape != self.volumes[1].geometry.shape

    def whole(self) -> Pair:
        """The same with all of the reference."""
        return replace(self, focus=self.volumes[1].geometry, _made={})

    def start(self) -> sitk.Transform:
        """Middle of the query -> middle of the reference."""
        middles = [moved(frame, middle_of(volume.geometry))
                   for frame, volume in zip(self.frames, self.volumes, strict=True)]
        return translation((middles[1] - middles[0])[: self.n_axes])

    def working(self, which: int, spacing_mm: float, box: Box | None = None) -> sitk.Image:
        """A coarse copy of the query (0) or of the reference's focus (1), float32 in [0, 1], in the frame.

        Args:
            which: 0 or 1.
            spacing_mm: wanted; voxels are not made finer.
            box: part of the query; None takes all.
        """
        key = (which, spacing_mm, None if box is None else tuple((side.start, side.stop) for side in box))
        if key not in self._made:
            self._made[key] = self._working(which, spacing_mm, box)
        return self._made[key]

    def _working(self, which: int, spacing_mm: float, box: Box | None) -> sitk.Image:
        volume, frame, scaling = self.volumes[which], self.frames[which], self.scalings[which]
        assert scaling is not None  # or there is a remark, and no registration
        if which == 1:
            box = box_of(self.focus, volume.geometry)
        if box is not None:
            volume = Volume(volume.array[box], part_of(volume.geometry, box))
        scale = np.linalg.norm(frame[:3, :3] @ volume.geometry.direction, axis=0)
        factors = [1 if n < 16 else max(1, min(int(spacing_mm / (mm * by) + 1e-6), n // 8))
                   for n, mm, by in zip(volume.geometry.shape, volume.geometry.spacing_mm, scale, strict=True)]
        coarse = block_means(volume, factors)
        scaled = coarse.with_array(scaling.apply(coarse.array))
        return to_sitk(scaled) if self.n_axes == 3 else _planar_image(scaled, frame)


def _planar_frames(query: Geometry, image: Geometry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For two single slices: RAS+ mm -> (right on the screen, down, out of it), in mm, middle at 0."""
    unscaled = any(np.allclose(geometry.spacing_mm, 1) for geometry in (query, image))
    first, second = (_planar_frame(geometry, unscaled) for geometry in (query, image))
    return first, second


def _planar_frame(geometry: Geometry, unscaled: bool) -> npt.NDArray[np.float64]:
    axis = choose_plane(geometry)
    shown = geometry.display(axis)
    spacing = np.array(geometry.spacing_mm)
    sides = [geometry.shape[each] * spacing[each] for each in (shown.row_axis, shown.column_axis)]
    scale = _PICTURE_MM / max(sides) if unscaled else 1.0
    index_to_frame = np.zeros((4, 4))
    index_to_frame[3, 3] = 1
    index_to_frame[0, shown.column_axis] = spacing[shown.column_axis] * scale * (-1 if shown.flip_columns else 1)
    index_to_frame[1, shown.row_axis] = spacing[shown.row_axis] * scale * (-1 if shown.flip_rows else 1)
    index_to_frame[2, axis] = spacing[axis] * scale
    middle = (np.array(geometry.shape) - 1) / 2
    index_to_frame[:3, 3] = -index_to_frame[:3, :3] @ middle
    return index_to_frame @ np.linalg.inv(geometry.affine)


def _planar_image(volume: Volume, frame: npt.NDArray[np.float64]) -> sitk.Image:
    """A single slice as a 2D image in its frame."""
    geometry = volume.geometry
    axis = choose_plane(geometry)
    shown = geometry.display(axis)
    picture = np.squeeze(volume.array, axis)
    if shown.row_axis > shown.column_axis:
        picture = picture.T
    picture = picture[:: -1 if shown.flip_rows else 1, :: -1 if shown.flip_columns else 1]
    image = sitk.GetImageFromArray(np.ascontiguousarray(picture, dtype=np.float32))
    index_to_frame = frame @ geometry.affine
    across = [abs(float(index_to_frame[row, each])) for row, each in enumerate((shown.column_axis, shown.row_axis))]
    image.SetSpacing(across)
    first = np.zeros(3)
    for each, flipped in ((shown.row_axis, shown.flip_rows), (shown.column_axis, shown.flip_columns)):
        first[each] = geometry.shape[each] - 1 if flipped else 0
    image.SetOrigin(moved(index_to_frame, first)[:2].tolist())
    return image


def _scaling(volume: Volume) -> IntensityScaling | None:
    try:
        scaling = IntensityScaling.for_volume(volume.array)
    except ValueError:  # constant; NaN was refused before
        return None
    low, high = volume.array.min(), volume.array.max()
    return scaling if low < scaling.high and high > scaling.low and low < high else None
