"""Where the numbers of an ONNX file are kept: in half the size, or in the weight file beside it.

ONNX Runtime widens them once, when it loads the file, and computes in single precision as before.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Held = dict[bytes, tuple[int, int]]
"""What a weight file holds: bytes -> where they start, and how many they are."""
LEAST_HALVED = 256
"""Numbers in a weight tensor from which on it is worth a node to widen it."""
_HEADER, _LENGTHS_AT = 30, 26
"""Bytes of the header of a zip entry, and where in it the lengths of what follows are."""


def store_halves(model: Any, weights: str, held: Held) -> None:
    """Store in half precision the weights that it holds exactly, as it does those of weight files.

    Args:
        model: changed in place.
        weights: name of the file that holds numbers.
        held: what it holds, see `numbers_in`.
    """
    from onnx import TensorProto, helper, numpy_helper

    widened = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < LEAST_HALVED:
            continue
        numbers = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = numbers.astype(np.float16)
        if np.array_equal(halves, numbers):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}_half"))
            place = held.get(tensor.raw_data)
            if place is not None:
                _refer(tensor, weights, *place)
            widened.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*widened, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _refer(tensor: Any, weights: str, offset: int, length: int) -> None:
    """Leave the numbers of a tensor out, and say where in a file beside the ONNX file they are."""
    from onnx import TensorProto

    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", weights), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def numbers_in(path: Path) -> Held:
    """What a weight file holds, if it is a zip archive that compresses nothing; of other formats nothing is read."""
    content, held = path.read_bytes(), {}
    if not zipfile.is_zipfile(path):
        return held
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                continue
            # The entry's own header: 30 bytes, of which the last four say how long name and extra field are.
            name, extra = struct.unpack_from("<HH", content, entry.header_offset + _LENGTHS_AT)
            start = entry.header_offset + _HEADER + name + extra
            held[content[start : start + entry.file_size]] = start, entry.file_size
    return held
