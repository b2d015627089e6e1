"""A found alignment, which applies to any volume in the reference's space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from mvg_core.demons import resampled
from mvg_core.registration.grids import (
    Box,
    affine_transform,
    corners_of,
    label_corners,
    matrix_of,
    moved,
    part_of,
    plane_distances_mm,
)
from mvg_core.registration.search import Stage
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import to_sitk

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Steps:
    """The way from query to reference: into the common frame, bend, affine, out again.

    Attributes:
        before: (4, 4) query's RAS+ mm -> frame.
        bend: displacements (mm of the frame) on a grid in the frame, always of three axes; None without demons.
        within: the affine step, in the frame.
        after: (4, 4) frame -> reference's RAS+ mm.
        reach_mm: farthest displacement by `bend`, in the query's mm.
        threads: most CPU threads.
    """

    before: npt.NDArray[np.float64]
    bend: sitk.Image | None
    within: sitk.Transform
    after: npt.NDArray[np.floating]
    reach_mm: float
    threads: int

    @property
    def affine(self) -> npt.NDArray[np.floating]:
        """(4, 4) query's RAS+ mm -> reference's RAS+ mm, without `bend`."""
        return self.after @ matrix_of(self.within) @ self.before

    def whole(self) -> sitk.Transform:
        """From points of the query to points of the reference, in ITK's LPS."""
        if self.bend is None:
            return affine_transform(_LPS @ self.affine @ _LPS)
        # A composite applies its last part first.
        return sitk.CompositeTransform([
            affine_transform(_LPS @ self.after @ matrix_of(self.within)),
            sitk.DisplacementFieldTransform(sitk.Image(self.bend)),
            affine_transform(self.before @ _LPS)])


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a reference lies on a query; applies to any volume in the reference's space.

    Attributes:
        query: the query's grid.
        stage: the last step that succeeded: `centre` (nothing fitted, middle on middle), `shift` (with a turn),
            `similarity`, `affine`, `demons`.
        quality: correlation of the query and the aligned reference where both show something, -1 to 1; comparable
            between references of one query.
        overlap: share of the query that the aligned reference's image covers, 0 to 1.
        remarks: which steps failed, and why; empty if all went well.
        seconds: that it took.
    """

    query: Geometry
    stage: Stage
    quality: float
    overlap: float
    remarks: tuple[str, ...]
    seconds: float
    steps: Steps

    def label(self, label: Volume, onto: Geometry | None = None) -> Volume:
        """The reference's label map on the query's grid: nearest voxel, in its own number type.

        Args:
            label: in the reference's space, on any grid.
            onto: another grid in the query's space, for example a part of the query.
        """
        onto = onto or self.query
        result = np.zeros(onto.shape, label.array.dtype)
        box = self.box(label, onto)
        if box is not None:
            result[box] = self._apply(label, onto, box, sitk.sitkNearestNeighbor, 0)
        return Volume(result, onto)

    def image(self, image: Volume, onto: Geometry | None = None, *, fill: float | None = None) -> Volume:
        """The reference's image on the query's grid: linear, float32.

        Args:
            image: in the reference's space, on any grid.
            onto: another grid in the query's space.
            fill: value outside the image; None takes its smallest.
        """
        onto = onto or self.query
        whole = (slice(None), slice(None), slice(None))
        fill = float(image.array.min()) if fill is None else fill
        image = image.with_array(image.array.astype(np.float32, copy=False))
        return Volume(self._apply(image, onto, whole, sitk.sitkLinear, fill), onto)

    def probabilities(self, label: Volume, labels: Sequence[int], onto: Geometry | None = None
                      ) -> npt.NDArray[np.float32]:
        """How much of every query voxel each label covers; softer than `label`, and better to fuse.

        Args:
            label: in the reference's space, on any grid; labels not asked for count as background.
            labels: without background.
            onto: another grid in the query's space.

        Returns:
            float32 (I, J, K, 1 + L), background first; sums to 1.
        """
        onto = onto or self.query
        result = np.zeros((*onto.shape, 1 + len(labels)), np.float32)
        result[..., 0] = 1
        for row, each in enumerate(labels, start=1):
            only = label.with_array((label.array == each).astype(np.float32))
            box = self.box(only, onto)
            if box is not None:
                covered = self._apply(only, onto, box, sitk.sitkLinear, 0)
                result[(*box, row)] = covered
                result[(*box, 0)] -= covered
        return result

    def box(self, label: Volume | Geometry, onto: Geometry | None = None, margin_mm: float = 0.0) -> Box | None:
        """Where on the query's grid the label falls, with a margin: slices of I, J, K; None if outside or empty.

        The box holds every voxel that `label` can reach, and more where the alignment turns or bends. A grid in the
        reference's space stands for all of its voxels.
        """
        onto = onto or self.query
        corners = corners_of(label) if isinstance(label, Geometry) else label_corners(label)
        if corners is None:
            return None
        mm = moved(np.linalg.inv(self.steps.affine), corners)
        margin_voxels = (self.steps.reach_mm + margin_mm) / np.array(plane_distances_mm(onto))
        index = onto.world_to_index(mm)
        low = np.maximum(np.floor(index.min(axis=0) - margin_voxels), 0).astype(int)
        high = np.minimum(np.ceil(index.max(axis=0) + margin_voxels) + 1, onto.shape).astype(int)
        if (low >= high).any():
            return None
        i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return i, j, k

    def points(self, mm: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Query positions (..., 3) in RAS+ mm -> where the reference shows the same; without the demons' bending."""
        return moved(self.steps.affine, np.asarray(mm, np.float64))

    def _apply(self, volume: Volume, onto: Geometry, box: Box, interpolator: int, fill: float) -> npt.NDArray:
        grid = part_of(onto, box)
        blank = to_sitk(Volume(np.broadcast_to(np.uint8(0), grid.shape), grid))
        warped = resampled(to_sitk(volume), blank, self.steps.whole(), interpolator=interpolator, fill=fill,
                           threads=self.steps.threads)
        return sitk.GetArrayViewFromImage(warped).transpose(2, 1, 0).astype(volume.array.dtype)
