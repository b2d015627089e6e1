"""A volume as a stack of square slices for the network, and exactly back.

Every slice is shown as a radiologist sees it (`Geometry.display`), resampled to square pixels and centred on a square
of `size` pixels. Rows and columns are resampled one after the other by a small weight matrix each; where the grid
already fits, nothing is resampled and `restore(extract(v)) == v`, bit for bit.

Only the slices asked for are read: a huge volume goes through `extract(array, index)`, `restore_slice` and `insert`
without a copy of the whole.

Shape letters: I J K voxels; N slices; S side of the square; C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from numbers import Integral

import numpy as np

from mvg_core.volume import Geometry, Plane

DEFAULT_SIZE = 192
THICK = 2.0
"""Slices further apart than this multiple of the larger voxel side in them are thick."""

# A side that drifts less than this over its whole length (in pixels) is not worth blurring the image for.
_NEGLIGIBLE_DRIFT = 0.01
# Slices resampled at once: enough for fast products, few enough for the processor's cache.
_BLOCK = 8
# Coverages are float32 sums: one half must count as one half.
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class SlicePlan:
    """How a volume becomes square slices along one of its axes.

    Attributes:
        geometry: the volume's grid.
        axis: index axis (0, 1, 2) along which the slices are stacked.
        size: side S of the square in pixels.
        spacing_mm: side of a square pixel in mm.

    Raises:
        ValueError: the axis is not 0, 1 or 2, the size not a positive whole number, the spacing not a positive number.
    """

    geometry: Geometry
    axis: int
    size: int
    spacing_mm: float

    def __post_init__(self) -> None:
        _check_axis_and_size(self.axis, self.size)
        if not (np.isfinite(self.spacing_mm) and self.spacing_mm > 0):
            raise ValueError(f"spacing_mm must be a positive number, got {self.spacing_mm!r}")

    @classmethod
    def for_volume(
        cls,
        geometry: Geometry,
        plane: Plane | int,
        *,
        size: int = DEFAULT_SIZE,
        spacing_mm: float | None = None,
    ) -> SlicePlan:
        """A plan for slices of an anatomical plane, or along an index axis.

        Args:
            geometry: the volume's grid.
            plane: 'axial', 'coronal', 'sagittal' (oblique grids: the nearest axis), or an index axis 0, 1, 2.
            size: side of the square in pixels.
            spacing_mm: pixel side in mm; what does not fit is cropped around the centre. None fits the longer side of
                the slice to the square.

        Raises:
            GeometryError: unknown plane name.
            ValueError: axis, size or spacing out of range.
        """
        axis = geometry.anatomical_axis(plane) if isinstance(plane, str) else plane
        _check_axis_and_size(axis, size)
        if spacing_mm is None:
            sides_mm = [geometry.shape[other] * geometry.spacing_mm[other] for other in range(3) if other != axis]
            spacing_mm = max(sides_mm) / size
        return cls(geometry, axis, size, float(spacing_mm))

    @classmethod
    def of_voxels(cls, geometry: Geometry, axis: int, *, multiple: int = 1) -> SlicePlan:
        """A plan that resamples nothing: its pixels are the voxels, which are taken for squares.

        Args:
            geometry: the volume's grid.
            axis: index axis along which the slices are stacked.
            multiple: the side of the square is the smallest multiple of it that shows all.
        """
        in_plane = [other for other in range(3) if other != axis]
        pixel_mm = min(geometry.spacing_mm[other] for other in in_plane)
        affine = geometry.affine.copy()
        for other in in_plane:
            affine[:3, other] *= pixel_mm / geometry.spacing_mm[other]
        side = max(geometry.shape[other] for other in in_plane)
        return cls(Geometry(geometry.shape, affine), axis, -(-side // multiple) * multiple, pixel_mm)

    @property
    def n_slices(self) -> int:
        """Number of slices N."""
        return self.geometry.shape[self.axis]

    @property
    def is_exact(self) -> bool:
        """Whether nothing is resampled or cropped, so that `restore(extract(v)) == v`."""
        return all(not side.resampled and not side.cropped for side in (self._rows, self._columns))

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector perpendicular to the slices, towards Right, Anterior or Superior, whichever is nearest."""
        across, along = (self.geometry.affine[:3, other] for other in range(3) if other != self.axis)
        normal = np.cross(across, along)
        normal /= np.linalg.norm(normal)
        stored = self.geometry.affine[:3, self.axis] @ normal
        return normal if (stored > 0) == self._grows_positive else -normal

    @property
    def slice_positions_mm(self) -> np.ndarray:
        """(N,) position of every slice's centre along `normal`, in world mm.

        Comparable between volumes of one patient however their files store the slices: positions grow towards Right,
        Anterior or Superior, so they fall with the slice number where the file is stored the other way round.
        """
        centres = np.tile((np.array(self.geometry.shape) - 1) / 2, (self.n_slices, 1))
        centres[:, self.axis] = np.arange(self.n_slices)
        return self.geometry.index_to_world(centres) @ self.normal

    @property
    def relative_positions(self) -> np.ndarray:
        """(N,) position of every slice in its volume: 0 at the Left, Posterior or Inferior end, 1 at the other.

        Comparable between patients whose volumes show the same part of the body. A single slice is at 0.5.
        """
        if self.n_slices == 1:
            return np.array([0.5])
        positions = np.linspace(0.0, 1.0, self.n_slices)
        return positions if self._grows_positive else positions[::-1].copy()

    def extract(
        self, array: np.ndarray, index: int | Sequence[int] | np.ndarray | None = None, *, fill: float = 0.0
    ) -> np.ndarray:
        """Slices of an image: linear interpolation, averaged over the pixel's area where the image is made smaller.

        Args:
            array: (I, J, K) numbers, in any unit; NaN spreads along rows and columns, so check for it first.
            index: slice numbers 0..N-1, one or several in any order; None for all.
            fill: value around the image, in the unit of the array.

        Returns:
            (N, S, S) float32; one slice is (1, S, S).

        Raises:
            ValueError: the array does not have the shape of the plan's grid.
            IndexError: a slice number out of range.
        """
        numbers = self._numbers(index)
        stack = np.full((len(numbers), self.size, self.size), fill, dtype=np.float32)
        content = stack[:, self._rows.window, self._columns.window]
        for block in _blocks(len(numbers)):
            shown = self._shown(array, numbers[block]).astype(np.float32)
            content[block] = self._columns.to_canvas(self._rows.to_canvas(shown, -2), -1)
        return stack

    def extract_label(self, array: np.ndarray, index: int | Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Slices of a label map; no label appears that was not there, and small or thin structures stay.

        A pixel is foreground where labels cover at least half of it, and takes the label that covers most. A structure
        too small or thin for that keeps the pixels it covers most: it becomes one or two pixels wide instead of
        vanishing, unless that would remove another label altogether. Around the image is background, 0.

        Args:
            array: (I, J, K) label numbers, 0 is background; real numbers are accepted when they are whole.
            index: as in `extract`.

        Returns:
            (N, S, S) in the integer type of the array (uint8 for booleans, int32 for real numbers).

        Raises:
            ValueError: wrong shape, or labels that are not whole numbers.
            IndexError: a slice number out of range.
        """
        numbers = self._numbers(index)
        array = np.asarray(array)
        stack = np.zeros((len(numbers), self.size, self.size), dtype=_label_type(array.dtype))
        content = stack[:, self._rows.window, self._columns.window]
        for position, number in enumerate(numbers):
            shown = _whole(self._shown(array, numbers[position : position + 1])[0], number).astype(stack.dtype)
            content[position] = self._label_to_canvas(shown)
        return stack

    def restore(self, stack: np.ndarray, *, fill: float = 0.0) -> np.ndarray:
        """The inverse of `extract` for a whole stack.

        Args:
            stack: (N, S, S) or (N, S, S, C) numbers, all slices in order.
            fill: value of voxels that were cropped away.

        Returns:
            (I, J, K) or (I, J, K, C) float32.

        Raises:
            ValueError: the stack does not have N slices of S x S pixels.
        """
        stack = self._checked_stack(stack)
        native = np.empty((*self._stored_shape, *stack.shape[3:]), dtype=np.float32)
        for block in _blocks(self.n_slices):
            native[block] = self._from_canvas(stack[block], fill)
        return np.moveaxis(native, 0, self.axis)

    def restore_label(self, stack: np.ndarray, *, fill: int = 0) -> np.ndarray:
        """The inverse of `extract_label` for a whole stack (N, S, S) of integers: (I, J, K), nearest pixel."""
        stack = self._checked_stack(_integers(stack))
        native = np.empty((*self._stored_shape, *stack.shape[3:]), dtype=stack.dtype)
        for block in _blocks(self.n_slices):
            native[block] = self._label_from_canvas(stack[block], fill)
        return np.moveaxis(native, 0, self.axis)

    def restore_slice(self, image: np.ndarray, *, fill: float = 0.0) -> np.ndarray:
        """One slice (S, S) or (S, S, C) back on the volume's grid: float32, the two in-plane axes in index order."""
        image = self._checked_stack(np.asarray(image)[None], n_slices=1)
        return self._from_canvas(image, fill)[0]

    def restore_label_slice(self, image: np.ndarray, *, fill: int = 0) -> np.ndarray:
        """One slice (S, S) of integers back on the volume's grid: nearest pixel, the in-plane axes in index order."""
        image = self._checked_stack(_integers(image)[None], n_slices=1)
        return self._label_from_canvas(image, fill)[0]

    def insert(self, array: np.ndarray, index: int, restored: np.ndarray) -> None:
        """Write one restored slice into `array` (I, J, K[, C]), in place.

        Raises:
            ValueError: array or slice do not have the shape of the plan's grid.
            IndexError: the slice number is out of range.
        """
        (number,) = self._numbers(int(index))
        if array.shape[:3] != self.geometry.shape:
            raise ValueError(f"array has shape {array.shape}, the plan was made for {self.geometry.shape}")
        target = np.moveaxis(array, self.axis, 0)[number]
        if np.shape(restored) != target.shape:
            raise ValueError(
                f"slice has shape {np.shape(restored)}, needed {target.shape}: pass what restore_slice gave"
            )
        target[...] = restored

    @cached_property
    def _rows(self) -> _Side:
        shown = self.geometry.display(self.axis)
        return self._side(shown.row_axis, shown.flip_rows)

    @cached_property
    def _columns(self) -> _Side:
        shown = self.geometry.display(self.axis)
        return self._side(shown.column_axis, shown.flip_columns)

    def _side(self, axis: int, flipped: bool) -> _Side:
        return _Side(self.geometry.shape[axis], self.size, self.spacing_mm / self.geometry.spacing_mm[axis], flipped)

    @property
    def _transposed(self) -> bool:
        """Whether the stored slice must be transposed to be shown."""
        shown = self.geometry.display(self.axis)
        return shown.row_axis > shown.column_axis

    @property
    def _grows_positive(self) -> bool:
        return self.geometry.axis_codes[self.axis] in "RAS"

    @property
    def _stored_shape(self) -> tuple[int, int, int]:
        first, second = (self.geometry.shape[other] for other in range(3) if other != self.axis)
        return self.n_slices, first, second

    def _numbers(self, index: int | Sequence[int] | np.ndarray | None) -> np.ndarray:
        """(N,) slice numbers asked for."""
        if index is None:
            return np.arange(self.n_slices)
        numbers = np.atleast_1d(np.asarray(index))
        if numbers.size == 0:
            return np.zeros(0, dtype=np.intp)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise IndexError(f"slice numbers must be whole numbers 0..{self.n_slices - 1}, got {index!r}")
        if numbers.min() < 0 or numbers.max() >= self.n_slices:
            raise IndexError(f"slice numbers must be within 0..{self.n_slices - 1}, got {numbers.tolist()}")
        return numbers.astype(np.intp)

    def _shown(self, array: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """(n, rows, columns) stored slices, turned for display but not yet flipped."""
        if np.shape(array) != self.geometry.shape:
            raise ValueError(
                f"array has shape {np.shape(array)}, the plan was made for {self.geometry.shape}:"
                " make a plan for this array's geometry"
            )
        stored = np.moveaxis(array, self.axis, 0)[numbers]
        return stored.swapaxes(1, 2) if self._transposed else stored

    def _checked_stack(self, stack: np.ndarray, n_slices: int | None = None) -> np.ndarray:
        stack = np.asarray(stack)
        needed = (self.n_slices if n_slices is None else n_slices, self.size, self.size)
        if stack.ndim not in (3, 4) or stack.shape[:3] != needed:
            raise ValueError(
                f"stack has shape {stack.shape}, needed {needed} with at most one axis of channels after it"
            )
        return stack

    def _from_canvas(self, stack: np.ndarray, fill: float) -> np.ndarray:
        """(n, S, S[, C]) -> (n, in-plane axes in index order[, C]) float32."""
        content = stack[:, self._rows.window, self._columns.window].astype(np.float32)
        if content.ndim == 4:
            content = np.moveaxis(content, -1, 1)
        content = self._columns.from_canvas(self._rows.from_canvas(content, -2), -1)
        if content.ndim == 4:
            content = np.moveaxis(content, 1, -1)
        return self._placed(content, fill)

    def _label_from_canvas(self, stack: np.ndarray, fill: int) -> np.ndarray:
        return self._placed(stack[:, self._rows.nearest][:, :, self._columns.nearest], fill)

    def _placed(self, content: np.ndarray, fill: float) -> np.ndarray:
        """The kept part of slices (n, rows, columns[, C]) on the full grid, in-plane axes in index order."""
        shape = (len(content), self._rows.n_voxels, self._columns.n_voxels, *content.shape[3:])
        placed = np.full(shape, fill, dtype=content.dtype)
        placed[:, self._rows.kept, self._columns.kept] = content
        return placed.swapaxes(1, 2) if self._transposed else placed

    def _label_to_canvas(self, shown: np.ndarray) -> np.ndarray:
        """(rows, columns) labels -> the window of the canvas."""
        if not (self._rows.resampled or self._columns.resampled):
            return self._columns.to_canvas(self._rows.to_canvas(shown, -2), -1)
        labels = np.unique(shown)
        labels = labels[labels != 0]
        shape = (_length(self._rows.window), _length(self._columns.window))
        if not labels.size:
            return np.zeros(shape, dtype=shown.dtype)
        coverage = np.stack([self._coverage(shown == label) for label in labels])
        return _label_by_coverage(coverage, labels)

    def _coverage(self, covered: np.ndarray) -> np.ndarray:
        """(rows, columns) bool -> share of every pixel in the window that is covered, float32."""
        # Most labels are small: outside their box there is nothing to multiply.
        box = []
        for other in (1, 0):
            (hit,) = np.nonzero(covered.any(axis=other))
            box.append(slice(int(hit[0]), int(hit[-1]) + 1))
        small = covered[tuple(box)].astype(np.float32)
        return self._rows.forward[:, box[0]] @ small @ self._columns.forward[:, box[1]].T


@dataclass(frozen=True, eq=False)
class _Side:
    """One in-plane direction: voxels of the volume on one hand, pixels of the canvas on the other.

    Pixel and voxel coordinates are 0 at the first centre. The content is `n_pixels` long, centred on the canvas; its
    middle is the middle of the volume.
    """

    n_voxels: int
    size: int
    ratio: float  # pixel side / voxel side
    flipped: bool

    @property
    def resampled(self) -> bool:
        return self.n_voxels * abs(self.ratio - 1.0) > _NEGLIGIBLE_DRIFT

    @property
    def n_pixels(self) -> int:
        return max(1, round(self.n_voxels / self.ratio)) if self.resampled else self.n_voxels

    @property
    def cropped(self) -> bool:
        return self.n_pixels > self.size

    @property
    def start(self) -> int:
        """Canvas pixel of the first content pixel; negative where it is cropped."""
        return (self.size - self.n_pixels) // 2

    @cached_property
    def window(self) -> slice:
        """The part of the canvas that shows content."""
        return slice(max(0, self.start), min(self.size, self.start + self.n_pixels))

    @cached_property
    def pixel_of_voxel(self) -> np.ndarray:
        """(n_voxels,) canvas coordinate of every voxel, in stored order."""
        shown = np.arange(self.n_voxels, dtype=np.float64)
        if self.flipped:
            shown = shown[::-1]
        if not self.resampled:
            return shown + self.start
        return (shown + 0.5 - self.n_voxels / 2) / self.ratio + self.n_pixels / 2 - 0.5 + self.start

    @cached_property
    def kept(self) -> slice:
        """The voxels, in stored order, whose centre is on the canvas."""
        if not self.cropped:
            return slice(0, self.n_voxels)
        (inside,) = np.nonzero((self.pixel_of_voxel > -0.5) & (self.pixel_of_voxel <= self.size - 0.5))
        return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)

    @cached_property
    def nearest(self) -> np.ndarray:
        """(kept,) canvas pixel nearest to every kept voxel."""
        pixel = np.ceil(self.pixel_of_voxel[self.kept] - 0.5).astype(np.intp)
        return np.clip(pixel, self.window.start, self.window.stop - 1)

    @cached_property
    def forward(self) -> np.ndarray:
        """(window, n_voxels) float32 weights of stored voxels in every pixel; rows sum to 1."""
        pixels = np.arange(self.window.start, self.window.stop) - self.start
        ratio = self.ratio if self.resampled else 1.0
        voxels = (pixels + 0.5 - self.n_pixels / 2) * ratio + self.n_voxels / 2 - 0.5
        weights = _box_weights(voxels, max(1.0, ratio), self.n_voxels)
        return np.ascontiguousarray(weights[:, ::-1]) if self.flipped else weights

    @cached_property
    def backward(self) -> np.ndarray:
        """(kept, window) float32 weights of pixels in every kept voxel; rows sum to 1."""
        return _box_weights(
            self.pixel_of_voxel[self.kept] - self.window.start, max(1.0, 1.0 / self.ratio), _length(self.window)
        )

    def to_canvas(self, image: np.ndarray, axis: int) -> np.ndarray:
        """Stored voxels -> window pixels, along `axis` -2 (rows) or -1 (columns)."""
        if self.resampled:
            return _product(self.forward, image, axis)
        return self._picked(image, self.kept, axis)

    def from_canvas(self, image: np.ndarray, axis: int) -> np.ndarray:
        """Window pixels -> kept voxels, along `axis` -2 (rows) or -1 (columns)."""
        if self.resampled:
            return _product(self.backward, image, axis)
        return self._picked(image, slice(None), axis)

    def _picked(self, image: np.ndarray, part: slice, axis: int) -> np.ndarray:
        # No arithmetic here: what is not resampled stays the same to the last bit.
        step = slice(None, None, -1 if self.flipped else 1)
        return image[..., part, :][..., step, :] if axis == -2 else image[..., part][..., step]


def choose_plane(geometry: Geometry, label: np.ndarray | None = None) -> int:
    """The index axis along which slices should be taken, from a reference label map or the grid alone.

    An axis with one voxel always wins: the volume is a picture. Next wins a label on one single slice: somebody drew on
    it. Thick slices, more than twice as far apart as the voxels in them, are taken as they were acquired. Otherwise it
    is the axis in which the label fills the smallest share of the slices. Without foreground, and for ties: the axis
    with the largest spacing, and of equal ones axial, coronal, sagittal.

    Args:
        geometry: the volume's grid.
        label: (I, J, K) label map, non-zero is foreground; None without a reference.

    Raises:
        ValueError: the label map does not have the shape of the grid.
    """
    candidates = [geometry.anatomical_axis(plane) for plane in ("axial", "coronal", "sagittal")]
    flat = [axis for axis in candidates if geometry.shape[axis] == 1]
    if flat:
        candidates = flat
    elif label is not None:
        candidates = _axes_of_fewest_slices(geometry, label, candidates)
    largest_mm = max(geometry.spacing_mm[axis] for axis in candidates)
    # Spacings from float32 headers differ in the last digits.
    return next(axis for axis in candidates if geometry.spacing_mm[axis] >= largest_mm * (1 - 1e-3))


def _axes_of_fewest_slices(geometry: Geometry, label: np.ndarray, candidates: list[int]) -> list[int]:
    """The candidates that the label decides for; all of them when it is empty, or leaves it to thick slices."""
    if np.shape(label) != geometry.shape:
        raise ValueError(f"label map has shape {np.shape(label)}, its grid {geometry.shape}: they must be the same")
    foreground = np.asarray(label) != 0
    filled = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled.append(int(np.count_nonzero(foreground.any(axis=others))))
    if not any(filled):
        return candidates
    spacing_mm = geometry.spacing_mm
    if 1 not in filled and max(spacing_mm) > THICK * sorted(spacing_mm)[1]:
        return candidates
    share = {axis: 0.0 if filled[axis] == 1 else filled[axis] / geometry.shape[axis] for axis in candidates}
    return [axis for axis in candidates if share[axis] == min(share.values())]


def _check_axis_and_size(axis: int, size: int) -> None:
    if isinstance(axis, bool) or not isinstance(axis, Integral) or not 0 <= axis <= 2:
        raise ValueError(f"slices run along index axis 0, 1 or 2, got {axis!r}")
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}")


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def _length(part: slice) -> int:
    return part.stop - part.start


def _product(matrix: np.ndarray, image: np.ndarray, axis: int) -> np.ndarray:
    return np.matmul(matrix, image) if axis == -2 else np.matmul(image, matrix.T)


def _box_weights(centres: np.ndarray, width: float, n: int) -> np.ndarray:
    """(len(centres), n) float32: share of cell j in a box of `width` cells around each centre; rows sum to 1.

    A box as wide as a cell gives linear interpolation, a wider one the average over its area. At the border the box is
    cut, which repeats the outermost cell.
    """
    centres = np.clip(centres, -0.5, n - 0.5)[:, None]
    cell = np.arange(n)
    upper = np.minimum(centres + width / 2, cell + 0.5)
    lower = np.maximum(centres - width / 2, cell - 0.5)
    overlap = np.clip(upper - lower, 0.0, None)
    overlap[overlap < 1e-9] = 0.0
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)


def _label_by_coverage(coverage: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(L, rows, columns) share of every pixel that each label covers -> (rows, columns) labels."""
    enough = coverage.sum(axis=0) >= 0.5 - _ROUNDING
    by_size = np.where(enough, coverage.argmax(axis=0), -1)
    winner, strength = by_size.copy(), np.zeros(by_size.shape, dtype=np.float32)
    for number, mine in enumerate(coverage):
        # Nothing of this label won nearby: here it would be gone.
        lost = (mine > _ROUNDING) & ~_largest_of_neighbours(by_size == number)
        if lost.any():
            wanted = lost & (mine >= _largest_of_neighbours(mine) - _ROUNDING) & (mine > strength)
            if wanted.any():
                saved = _granted(wanted, by_size)
                winner[saved], strength[saved] = number, mine[saved]
    return np.where(winner >= 0, labels[winner], 0).astype(labels.dtype)


def _granted(wanted: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """The wanted pixels that a vanishing label gets: background, or else those of a label that has more of them."""
    from_background = wanted & (winner < 0)
    around = np.pad(winner, 1, constant_values=-1)
    rows, columns = winner.shape
    has_company = np.zeros(winner.shape, dtype=bool)
    for down, right in product(range(3), repeat=2):
        if (down, right) != (1, 1):
            has_company |= around[down : down + rows, right : right + columns] == winner
    return from_background | (wanted & has_company & ~_largest_of_neighbours(from_background))


def _largest_of_neighbours(image: np.ndarray) -> np.ndarray:
    """(rows, columns) -> largest value among each pixel and its eight neighbours; for booleans: any."""
    rows = image.copy()
    np.maximum(rows[1:], image[:-1], out=rows[1:])
    np.maximum(rows[:-1], image[1:], out=rows[:-1])
    largest = rows.copy()
    np.maximum(largest[:, 1:], rows[:, :-1], out=largest[:, 1:])
    np.maximum(largest[:, :-1], rows[:, 1:], out=largest[:, :-1])
    return largest


def _label_type(dtype: np.dtype) -> np.dtype:
    """Integer type in which labels of an array of `dtype` are returned."""
    if dtype.kind in "iu":
        return dtype
    return np.dtype(np.uint8 if dtype.kind == "b" else np.int32)


def _whole(labels: np.ndarray, number: int) -> np.ndarray:
    """The labels of slice `number`, after a check that real numbers are whole."""
    if labels.dtype.kind not in "biu":
        wrong = labels[labels != np.round(labels)]  # NaN differs from itself
        if wrong.size:
            raise ValueError(
                f"label map holds {wrong[0]} in slice {number}: labels are whole numbers;"
                " pass the label map, not the image, or resample it with the nearest neighbour"
            )
    return labels


def _integers(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels must be integers, got {labels.dtype}: use restore for images and probabilities")
    return labels.astype(_label_type(labels.dtype), copy=False)
