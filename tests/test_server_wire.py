"""Volume bodies: what is sent is what arrives, the identity is what the protocol says, and nonsense is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mvg_core.server import wire

REPOSITORY = Path(__file__).resolve().parents[1]
OBLIQUE = np.array([[0.8, -0.1, 0, -100.25], [0.1, 0.8, 0, 33.125], [0, 0, 2.5, 1e-7], [0, 0, 0, 1]])
VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4) - 7


def body(array: np.ndarray = VOXELS, affine: np.ndarray = OBLIQUE, encoding: str = "raw") -> bytes:
    return b"".join(wire.chunks(array, affine, encoding))


def with_head(**changes: Any) -> bytes:
    """A body whose second line is changed."""
    _, line, voxels = body().split(b"\n", 2)
    return b"MVGVOL1\n" + json.dumps({**json.loads(line), **changes}).encode() + b"\n" + voxels


def test_the_extension_and_the_server_have_the_same_file() -> None:
    theirs, ours = (REPOSITORY / path for path in ("slicer_extension/MVG/MVGLib/wire.py", "mvg_core/server/wire.py"))
    assert theirs.read_bytes() == ours.read_bytes(), f"copy one over the other: cp {theirs} {ours}"


def test_the_protocol_needs_numpy_only() -> None:
    import subprocess

    code = "import sys; from mvg_core.server import wire; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"fastapi", "starlette", "pydantic", "torch", "SimpleITK"} & set(eval(loaded.stdout))


def test_the_identity_is_what_the_protocol_says() -> None:
    by_hand = hashlib.sha256()
    by_hand.update(b"MVGVOL1\n<i2\n" + struct.pack("<3q", 2, 3, 4) + struct.pack("<16d", *OBLIQUE.ravel()))
    by_hand.update(struct.pack("<24h", *range(-7, 17)))
    assert wire.identity(VOXELS, OBLIQUE) == by_hand.hexdigest()


@given(hnp.arrays(st.sampled_from([np.dtype(name) for name in wire.DTYPES]),
                  hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)),
       st.sampled_from(wire.ENCODINGS), st.integers(1, 300), st.booleans())
def test_what_is_sent_arrives(array: np.ndarray, encoding: str, piece: int, turned: bool) -> None:
    if turned:  # not in C order
        array = array.transpose(2, 0, 1)[::-1]
    sent = body(array, OBLIQUE, encoding)
    reader = wire.Reader()
    for start in range(0, len(sent), piece):
        reader.feed(sent[start : start + piece])
    reader.finish()
    assert reader.array.tobytes() == np.ascontiguousarray(array).tobytes()  # NaN too
    assert (reader.array.dtype, reader.array.shape) == (array.dtype, array.shape)
    assert np.array_equal(reader.affine, OBLIQUE)
    assert reader.identity == wire.identity(array, OBLIQUE)


def test_a_volume_larger_than_a_piece_arrives() -> None:
    array = np.arange(3 * 700 * 801, dtype="<i4").reshape(3, 700, 801)
    assert np.array_equal(wire.parse(body(array)).array, array)
    assert len(body(array)) == wire.length(array, OBLIQUE)


def test_everything_that_makes_a_volume_another_one_changes_its_identity() -> None:
    moved = OBLIQUE + np.eye(4, k=3) * 1e-9
    others = [(VOXELS + np.int16(1), OBLIQUE), (VOXELS, moved), (VOXELS.reshape(3, 2, 4), OBLIQUE),
              (VOXELS.view("<u2"), OBLIQUE)]
    assert len({wire.identity(*one) for one in [(VOXELS, OBLIQUE), *others]}) == 5
    assert wire.identity(VOXELS, np.eye(4)) == wire.identity(VOXELS, np.eye(4) - 0.0 * np.eye(4)[::-1])


@pytest.mark.parametrize(("given_dtype", "sent"), [
    (">i2", "<i2"), ("bool", "|u1"), ("<f2", "<f4"), ("<i8", "<i4"), (">f8", "<f8"), ("<u8", "<i4")])
def test_other_types_are_sent_as_one_that_holds_them(given_dtype: str, sent: str) -> None:
    array = (np.arange(8).reshape(2, 2, 2) % 2).astype(given_dtype)
    portable = wire.portable(array)
    assert portable.dtype.str == sent
    assert np.array_equal(portable, array)


@pytest.mark.parametrize(("value", "sent"), [(2**31, "<u4"), (-(2**31) - 1, "<f8"), (2**53, "<f8")])
def test_long_integers_keep_their_values(value: int, sent: str) -> None:
    portable = wire.portable(np.full((1, 1, 1), value, np.int64))
    assert (portable.dtype.str, int(portable[0, 0, 0])) == (sent, value)


@pytest.mark.parametrize("array", [
    np.zeros((2, 2), "<i2"), np.zeros((0, 2, 2), "<i2"), np.zeros((1, 1, 1), complex), np.zeros((1, 1, 1), object),
    np.full((1, 1, 1), 2**60 + 1)])
def test_what_cannot_be_sent_is_refused(array: np.ndarray) -> None:
    with pytest.raises(wire.WireError):
        wire.portable(array)


@pytest.mark.parametrize(("sent", "message"), [
    (b"", "cut off"),
    (b"MVGVO", "cut off"),
    (b"PNG", "MVGVOL1"),
    (b"MVGVOL1\n{", "cut off"),
    (b"MVGVOL1\n" + b" " * 2**17, "longer"),
    (b"MVGVOL1\nnonsense\n", "JSON"),
    (b"MVGVOL1\n[1]\n", "object"),
    (b"MVGVOL1\n" + b"[" * 60000 + b"\n", "JSON"),
    (b"MVGVOL1\n\xff\xfe\n", "JSON"),
    (with_head(shape=[2, 3]), "shape"),
    (with_head(shape=[2, 3, 0]), "shape"),
    (with_head(shape=[2, 3, 4.0]), "shape"),
    (with_head(shape=[2, 3, True]), "shape"),
    (with_head(shape=[2, 3, -4]), "shape"),
    (with_head(shape=[2**40, 2**40, 2**40]), "shape"),
    (with_head(shape=[2**30, 2**30, 2**30]), "memory"),
    (with_head(dtype="O"), "dtype"),
    (with_head(dtype=["<i2"]), "dtype"),
    (with_head(encoding="gzip"), "encoding"),
    (with_head(affine=[[1, 2], [3]]), "affine"),
    (with_head(affine=[["a"] * 4] * 4), "affine"),
    (with_head(affine=np.full((4, 4), np.inf).tolist()), "affine"),
    (with_head(more=1), "object"),
    (body()[:-1], "cut off"),
    (body() + b"x", "more bytes"),
    (body(encoding="zlib")[:-2], "cut off"),
    (body(encoding="zlib") + b"x", "after the end"),
    (with_head(encoding="zlib"), "unpacked"),
])
def test_nonsense_is_refused_in_words(sent: bytes, message: str) -> None:
    with pytest.raises(wire.WireError, match=message):
        wire.parse(sent)


def test_a_large_volume_is_refused_before_it_arrives() -> None:
    with pytest.raises(wire.WireTooLarge, match="48 bytes, more than the 47"):
        wire.Reader(47).feed(body()[:-48])
    wire.parse(body(), 48)


def test_a_few_bytes_do_not_unpack_to_more_than_announced() -> None:
    bomb = with_head(encoding="zlib")[: -VOXELS.nbytes] + zlib.compress(bytes(50_000_000))
    assert len(bomb) < 60_000
    with pytest.raises(wire.WireError, match="more bytes"):
        wire.parse(bomb)


def test_slices_arrive() -> None:
    slices = [np.full((2, 3), number, np.float32) for number in (4, 9)]
    pairs, axis, following = wire.unpack(wire.pack([4, 9], slices, 1, 17))
    assert [number for number, _ in pairs] == [4, 9]
    assert all(np.array_equal(found, sent) for (_, found), sent in zip(pairs, slices, strict=True))
    assert (axis, following) == (1, 17)
    assert wire.unpack(wire.pack([], [], 2, 5)) == ([], 2, 5)


@pytest.mark.parametrize("sent", [b"", b"MVGSLC1\n", b"MVGSLC1\n{}\n", wire.pack([], [], 0, 0)[:-3]])
def test_nonsense_slices_are_refused(sent: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.unpack(sent)
