"""The network as two ONNX files, for machines without PyTorch.

One file encodes a prompt, the other paints queries that read what the first one returned, so a prompt is encoded once
and prompts are joined outside (`mvg_core.backends`). Beside the weight file that they were made from, both read its
numbers, so that weights are stored once. Free are the number of queries, the number of prompt tokens, and the sides of
the slices (multiples of 16; the prompts' and the queries' are the same).

Shape letters: B queries, H W pixels.
"""

from __future__ import annotations

import copy
import json
import math
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvg_core.backends import N_CODEBOOKS, ONNX_MAPS, ONNX_METADATA, ONNX_PROMPT, ONNX_QUERY, ONNX_SUM
from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.weights import checksum_record, record_checksum

# Old enough for every ONNX Runtime that runs with a supported NumPy; group normalisation came later and is spelt out.
OPSET = 17
LEAST_HALVED = 256
"""Numbers in a weight tensor from which on it is worth a node to widen it."""
_HEADER, _LENGTHS_AT = 30, 26
"""Bytes of the header of a zip entry, and where in it the lengths of what follows are."""


class _PromptEncoder(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        """(1, 1, 1, H, W) and (1, 1, 3, H, W) -> the tensors of `encode`."""
        return tuple(self.network.encode(image, label))


class _QueryPainter(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, *encoded: Tensor) -> Tensor:
        """(B, 1, H, W) and what the prompts say -> (B, 3, H, W)."""
        return self.network.paint(image, list(encoded))


class _MapMaker(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.maps = network.maps

    def forward(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, H, W) twice -> maps (B, K, H, W), and the prior of their readout with its logarithmic shrinkage."""
        # Sums, or the exporter would leave out numbers that nothing is done with.
        return self.maps(image, hole), self.maps.prior + 0.0, self.maps.log_shrinkage + 0.0


def export_onnx(network: ConfiguredModule, folder: Path, *, checkpoint_sha256: str = "", weights: str = ""
                ) -> tuple[Path, ...]:
    """Write `model_prompt.onnx` and `model_query.onnx`, and `model_maps.onnx` if the network makes feature maps.

    Older ones are replaced once all are complete. Needs the package onnx. All files carry the network's configuration,
    its card and the checksum of its weight file; beside each lies a record of its own checksum.

    Args:
        network: a `CompactPainter`; not changed.
        folder: made if it is missing.
        checkpoint_sha256: of the weight file that the network came from, see `weights.file_sha256`.
        weights: name of that file, if it lies in `folder`: the ONNX files refer to its numbers instead of holding them.

    Returns:
        Their paths.

    Raises:
        ValueError: the network is not of the compact architecture.
    """
    if network.config.architecture != "compact":
        raise ValueError(f"a {network.config.architecture!r} network cannot be exported in two parts: its prompts and "
                         "queries are computed together, only 'compact' ones encode prompts on their own")
    # In single precision on the CPU, whatever the caller trains with.
    exported = copy.deepcopy(network).eval().float().cpu()
    written = json.dumps(network.config.to_json()), json.dumps(network.card), checkpoint_sha256, weights
    held = _numbers_in(folder / weights) if weights else {}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
        names = _export_all(exported, Path(temporary))
        for name in names:
            _finish(Path(temporary) / name, dict(zip(ONNX_METADATA, written, strict=True)), weights, held)
            record_checksum(Path(temporary) / name)
        for name in names:
            os.replace(Path(temporary) / name, folder / name)
            os.replace(checksum_record(Path(temporary) / name), checksum_record(folder / name))
    return tuple(folder / name for name in names)


def _export_all(network: Any, folder: Path) -> list[str]:
    side = network.config.size
    image, label = torch.zeros(1, 1, 1, side, side), torch.zeros(1, 1, 3, side, side)
    with torch.no_grad():
        encoded = network.encode(image, label)
    n_tokens = len(encoded) - N_CODEBOOKS
    names = [f"{'tokens' if number < n_tokens else ONNX_SUM}_{number}" for number in range(len(encoded))]
    # Every pair of keys and values has its own number of tokens: 1/16 and 1/8 of the side.
    tokens = {name: {2: f"n_tokens_{number // 2}"} for number, name in enumerate(names[:n_tokens])}
    prompt_axes = {"image": {3: "height", 4: "width"}, "label": {3: "height", 4: "width"}}
    query_axes = {"image": {0: "queries", 2: "height", 3: "width"}, "painted": {0: "queries", 2: "height", 3: "width"}}
    _export(_PromptEncoder(network), (image, label), folder / ONNX_PROMPT, ["image", "label"], names,
            {**prompt_axes, **tokens})
    _export(_QueryPainter(network), (torch.zeros(2, 1, side, side), *encoded), folder / ONNX_QUERY, ["image", *names],
            ["painted"], {**query_axes, **tokens})
    if not network.config.maps:
        return [ONNX_PROMPT, ONNX_QUERY]
    free = {0: "images", 2: "height", 3: "width"}
    nothing = torch.zeros(2, 1, side, side)
    _export(_MapMaker(network), (nothing, nothing), folder / ONNX_MAPS, ["image", "hole"],
            ["maps", "prior", "log_shrinkage"], {"image": free, "hole": free, "maps": free})
    return [ONNX_PROMPT, ONNX_QUERY, ONNX_MAPS]


def _export(module: nn.Module, arguments: tuple[Tensor, ...], path: Path, inputs: list[str], outputs: list[str],
            axes: dict[str, dict[int, str]]) -> None:
    with _attention_head_by_head(), warnings.catch_warnings():
        # It warns of computing with shapes (the tests compare sizes that were not traced), and of being the old one
        # (the new exporter writes the same numbers, but takes twenty times as long).
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), arguments, path, input_names=inputs, output_names=outputs, dynamic_axes=axes,
                          opset_version=OPSET, dynamo=False,
                          do_constant_folding=False)  # ONNX Runtime does that, and weights stay as they are stored


@contextmanager
def _attention_head_by_head() -> Iterator[None]:
    """Trace attention one head after the other.

    ONNX has no operator that spares the table of all weights, a GB for all heads at 512 x 512 pixels and three prompts.
    """
    together = F.scaled_dot_product_attention

    def one_by_one(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        heads = zip(query.split(1, dim=1), key.split(1, dim=1), value.split(1, dim=1), strict=True)
        return torch.cat([together(*head, **settings) for head in heads], dim=1)

    F.scaled_dot_product_attention = one_by_one  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = together


def _finish(path: Path, texts: dict[str, str], weights: str, held: dict[bytes, tuple[int, int]]) -> None:
    """Add the texts, and store numbers in half the size, or not at all, where that changes none."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, texts)
    _store_halves(model, weights, held)
    path.write_bytes(model.SerializeToString())


def _store_halves(model: Any, weights: str, held: dict[bytes, tuple[int, int]]) -> None:
    """Store in half precision the weights that it holds exactly, as it does those of weight files.

    ONNX Runtime widens them once, when it loads the file, and computes in single precision as before.

    Args:
        model: changed in place.
        weights: name of the file that holds numbers.
        held: what it holds, see `_numbers_in`.
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


def _numbers_in(path: Path) -> dict[bytes, tuple[int, int]]:
    """What a weight file holds, a zip archive that compresses nothing: bytes -> where they start, and length."""
    content, held = path.read_bytes(), {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                continue
            # The entry's own header: 30 bytes, of which the last four say how long name and extra field are.
            name, extra = struct.unpack_from("<HH", content, entry.header_offset + _LENGTHS_AT)
            start = entry.header_offset + _HEADER + name + extra
            held[content[start : start + entry.file_size]] = start, entry.file_size
    return held
