r"""Volumes as bytes, as the MVG server sends and receives them; protocol version 1.

This file exists twice, word for word: in `mvg_core/server/` and in the Slicer extension, whose client runs without
mvg_core. It needs NumPy and nothing else.

A volume body is the line `MVGVOL1`, one line of JSON (shape, dtype, affine, encoding), and the voxels in C order,
little endian, as they are or deflated (zlib). The identity of a volume is the SHA-256 of

    b"MVGVOL1\n", the dtype as text (such as b"<i2"), b"\n",
    shape (3 little-endian int64), affine (16 little-endian float64, row by row, no negative zeros), voxels (C order)

so it depends neither on the encoding nor on how a program writes numbers as text. I J K are the voxel indices; the
affine maps them to RAS+ millimetres.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

PROTOCOL = 1
MAGIC = b"MVGVOL1\n"
MEDIA = "application/x-mvg-volume"
SLICES = b"MVGSLC1\n"
DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8")
ENCODINGS = ("raw", "zlib")
LONGEST = 2**16
"""Most bytes of the line of JSON."""
PIECE = 2**20
"""Bytes sent or unpacked at once."""


class WireError(ValueError):
    """Bytes that are no volume, or voxels that cannot be sent; says what is wrong."""


class WireTooLarge(WireError):
    """A volume that is larger than allowed."""


def portable(array: np.ndarray) -> np.ndarray:
    """The array in a type that can be sent, no copy if it has one already.

    Booleans become u1, half floats f4; 64-bit integers the smallest of i4, u4, f8 that holds them exactly.

    Raises:
        WireError: not (I, J, K), no voxels, or a type that cannot be sent.
    """
    array = np.asarray(array)
    if array.ndim != 3 or not array.size:
        raise WireError(f"a volume has three axes (I, J, K) and at least one voxel, got shape {array.shape}")
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype == np.float16:
        return array.astype("<f4")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return array.astype(_narrow(int(array.min()), int(array.max())))
    wanted = array.dtype.newbyteorder("<")
    if wanted.str not in DTYPES:
        raise WireError(f"voxels of type {array.dtype} cannot be sent: convert them to one of {', '.join(DTYPES)}")
    return array.astype(wanted, copy=False)


def identity(array: np.ndarray, affine: Any) -> str:
    """The SHA-256 that a volume is known by, in hexadecimal.

    Args:
        array: (I, J, K), see `portable`.
        affine: (4, 4), voxel index -> RAS+ mm.

    Raises:
        WireError: see `portable`; or no such affine.
    """
    array = portable(array)
    digest = _digest(array.shape, array.dtype, _matrix(affine))
    for piece in _pieces(array):
        digest.update(piece)
    return digest.hexdigest()


def head(array: np.ndarray, affine: Any, encoding: str = "raw") -> bytes:
    """The first two lines of the body of a `portable` array."""
    if encoding not in ENCODINGS:
        raise WireError(f"encoding {encoding!r} is unknown: use one of {', '.join(ENCODINGS)}")
    line = {"shape": list(array.shape), "dtype": array.dtype.newbyteorder("<").str, "affine": _matrix(affine).tolist(),
            "encoding": encoding}
    return MAGIC + json.dumps(line).encode() + b"\n"


def chunks(array: np.ndarray, affine: Any, encoding: str = "raw") -> Iterator[bytes | memoryview]:
    """The body of a volume, piece by piece, without a copy of the whole."""
    array = portable(array)
    yield head(array, affine, encoding)
    if encoding == "raw":
        yield from _pieces(array)
        return
    packer = zlib.compressobj(1)
    for piece in _pieces(array):
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


def length(array: np.ndarray, affine: Any) -> int:
    """Bytes of the raw body of a `portable` array."""
    return len(head(array, affine)) + array.nbytes


def parse(body: bytes, limit: int | None = None) -> Reader:
    """Read a whole body; the finished reader holds array, affine and identity.

    Raises:
        WireError: it is no volume, or larger than `limit` bytes of voxels.
    """
    reader = Reader(limit)
    reader.feed(body)
    reader.finish()
    return reader


class Reader:
    """Reads a body that arrives in pieces.

    Args:
        limit: most bytes of voxels; None: no limit.
        hashed: whether the identity is worked out.

    Attributes:
        shape: of the array; None until the head has arrived.
        size: bytes of voxels that the head announces.
        received: bytes of voxels so far.
        array: (I, J, K); complete after `finish`.
        affine: (4, 4) float64.
        identity: of the volume, after `finish`.
    """

    def __init__(self, limit: int | None = None, *, hashed: bool = True) -> None:
        self._limit, self._hashed = limit, hashed
        self._start = bytearray()
        self.received = 0
        self.shape: tuple[int, int, int] | None = None
        self.size = 0
        self.identity = ""

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next piece.

        Raises:
            WireError: what arrived so far is no volume, or too large.
        """
        if self.shape is None:
            rest = self._read_head(memoryview(piece))
            if rest is None:
                return
            piece = rest
        if self._packer is None:
            self._put(piece)
            return
        waiting = bytes(piece)
        while waiting:
            # A little at a time: a few bytes may unpack to gigabytes.
            try:
                unpacked = self._packer.decompress(waiting, PIECE)
            except zlib.error as error:
                raise WireError(f"the voxels cannot be unpacked ({error}): send the volume again") from error
            self._put(unpacked)
            if self._packer.eof:
                if self._packer.unused_data:
                    raise WireError("there are bytes after the end of the voxels: send one volume in a body")
                return
            waiting = self._packer.unconsumed_tail

    def finish(self) -> None:
        """Say that nothing more comes.

        Raises:
            WireError: the volume is not complete.
        """
        if self.shape is None:
            self._check_magic()
            raise WireError("the body ends before its first two lines are complete: it was cut off, send it again")
        if self.received != self.size or (self._packer is not None and not self._packer.eof):
            raise WireError(f"the voxels of shape {list(self.shape)} take {self.size} bytes, but {self.received} came: "
                            "the body was cut off, send it again")
        if self._hashed:
            self.identity = self._hash.hexdigest()

    # --- parts ---

    def _read_head(self, piece: memoryview) -> memoryview | None:
        """The bytes after the head; None if it is not complete yet."""
        before = len(self._start)
        self._start += piece[: len(MAGIC) + LONGEST + 1 - before]
        self._check_magic()
        end = self._start.find(b"\n", len(MAGIC))
        if end < 0:
            if len(self._start) > len(MAGIC) + LONGEST:
                raise WireError(f"the second line is longer than {LONGEST} bytes: it should be a line of JSON")
            return None
        shape, dtype, self.affine, encoding = _checked_head(bytes(self._start[len(MAGIC):end]))
        size = math.prod(shape) * dtype.itemsize
        if self._limit is not None and size > self._limit:
            raise WireTooLarge(f"the voxels of shape {list(shape)} take {size} bytes, more than the {self._limit} "
                               "allowed: crop or resample the volume, or raise the limit")
        self._hash = _digest(shape, dtype, self.affine)
        self._packer = zlib.decompressobj() if encoding == "zlib" else None
        try:
            self.array = np.empty(shape, dtype)  # not touched, so not taken, before bytes arrive
        except (MemoryError, ValueError):
            raise WireError(f"there is no memory for {size} bytes of voxels: crop or resample the volume") from None
        self._bytes = self.array.reshape(-1).view(np.uint8).data
        self.shape, self.size = shape, size
        self._start = bytearray()
        return piece[end + 1 - before :]

    def _check_magic(self) -> None:
        if self._start[: len(MAGIC)] != MAGIC[: len(self._start)]:
            raise WireError("this is no volume: the first line must be MVGVOL1")

    def _put(self, piece: bytes | memoryview) -> None:
        end = self.received + len(piece)
        if end > self.size:
            raise WireError(f"more bytes came than the {self.size} that shape and dtype ask for: check both")
        self._bytes[self.received:end] = piece
        self.received = end
        if self._hashed:
            self._hash.update(piece)


def pack(numbers: Sequence[int], slices: Sequence[np.ndarray], axis: int, following: int) -> bytes:
    """Painted slices as bytes.

    Args:
        numbers: of the slices.
        slices: (H, W) each, all of one shape and type.
        axis: index axis of the volume along which the numbers count.
        following: what to ask for next time.
    """
    array = portable(np.stack(slices)) if slices else np.zeros((0, 0, 0), np.uint8)
    line = {"numbers": list(numbers), "axis": axis, "next": following, "shape": list(array.shape[1:]),
            "dtype": array.dtype.str}
    return SLICES + json.dumps(line).encode() + b"\n" + zlib.compress(array.tobytes(), 1)


def unpack(body: bytes) -> tuple[list[tuple[int, np.ndarray]], int, int]:
    """What `pack` wrote: pairs of slice number and (H, W), the axis, and what to ask for next time.

    Raises:
        WireError: these are no slices.
    """
    end = body.find(b"\n", len(SLICES))
    if not body.startswith(SLICES) or end < 0:
        raise WireError("these are no slices: the first line must be MVGSLC1")
    try:
        line = json.loads(body[len(SLICES):end])
        shape = (len(line["numbers"]), *line["shape"])
        array = np.frombuffer(zlib.decompress(body[end + 1:]), line["dtype"]).reshape(shape)
        pairs = [(int(number), array[place]) for place, number in enumerate(line["numbers"])]
        return pairs, int(line["axis"]), int(line["next"])
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise WireError(f"the slices cannot be read ({error}): ask again") from error


def _narrow(low: int, high: int) -> str:
    if low >= -2**31 and high < 2**31:
        return "<i4"
    if low >= 0 and high < 2**32:
        return "<u4"
    if low >= -2**53 and high <= 2**53:
        return "<f8"
    raise WireError(f"voxels from {low} to {high} do not fit any type that can be sent: they need more than 53 bits")


def _matrix(affine: Any) -> np.ndarray:
    """(4, 4) little-endian float64 without negative zeros."""
    try:
        matrix = np.asarray(affine, dtype="<f8")
    except (TypeError, ValueError) as error:
        raise WireError("the affine must be 4 x 4 numbers") from error
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise WireError("the affine must be 4 x 4 finite numbers, voxel index to RAS+ mm")
    return matrix + 0.0


def _digest(shape: Sequence[int], dtype: np.dtype, affine: np.ndarray) -> Any:
    name = dtype.newbyteorder("<").str.encode()
    start = MAGIC + name + b"\n" + np.asarray(shape, "<i8").tobytes() + np.ascontiguousarray(affine, "<f8").tobytes()
    return hashlib.sha256(start)


def _pieces(array: np.ndarray) -> Iterator[memoryview]:
    """The voxels in C order, about `PIECE` bytes at a time; only pieces are copied, if anything."""
    rows = max(1, PIECE // max(1, array[0].nbytes))
    for start in range(0, len(array), rows):
        flat = np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data
        for at in range(0, len(flat), PIECE):
            yield flat[at : at + PIECE]


def _checked_head(line: bytes) -> tuple[tuple[int, int, int], np.dtype, np.ndarray, str]:
    """Shape, dtype, affine and encoding of a body."""
    try:
        values = json.loads(line)
    except ValueError as error:  # includes bytes that are no text
        raise WireError(f"the second line is no JSON ({error})") from error
    except RecursionError:
        raise WireError("the second line is no JSON of a volume") from None
    if not isinstance(values, dict) or set(values) != {"shape", "dtype", "affine", "encoding"}:
        raise WireError("the second line must be a JSON object with shape, dtype, affine and encoding")
    shape, dtype, encoding = values["shape"], values["dtype"], values["encoding"]
    # Numbers above 2**31 along an axis are no image, and products of them would overflow.
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 1 <= n < 2**31 for n in shape)
    if not whole:
        raise WireError("shape must be three whole numbers, each at least 1")
    if dtype not in DTYPES:
        raise WireError(f"dtype must be one of {', '.join(DTYPES)}")
    if encoding not in ENCODINGS:
        raise WireError(f"encoding must be one of {', '.join(ENCODINGS)}")
    return (shape[0], shape[1], shape[2]), np.dtype(dtype), _matrix(values["affine"]), encoding
