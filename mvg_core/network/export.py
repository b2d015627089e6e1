"""Networks as ONNX files, for machines without PyTorch.

A painter becomes one file that encodes a prompt and one that paints queries, which read what the first one returned,
so a prompt is encoded once and prompts are joined outside (`mvg_core.backends`); with feature maps, a third one makes
them. A reader becomes one file that looks at images and one that decodes scores (`mvg_core.reader_backends`). Beside
the weight file that they were made from, all read its numbers, so that weights are stored once. Free are the numbers of
images, queries and prompt tokens, and the sides of the slices (multiples of 16, for a reader of 32; those of prompts
and queries are the same).
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mvg_core.backends import ONNX_METADATA
from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.network.onnx_parts import Part, parts_of
from mvg_core.network.onnx_storage import Held, numbers_in, store_halves
from mvg_core.weights import checksum_record, record_checksum

# Old enough for every ONNX Runtime that runs with a supported NumPy; group normalisation came later and is spelt out.
OPSET = 17


def export_onnx(network: ConfiguredModule, folder: Path, *, checkpoint_sha256: str = "", weights: str = ""
                ) -> tuple[Path, ...]:
    """Write a painter as `model_prompt.onnx`, `model_query.onnx` and, if it makes feature maps, `model_maps.onnx`.

    A reader becomes `model_reader_terms.onnx` and `model_reader_outlines.onnx`. Older files are replaced once all are
    complete. Needs the package onnx. All files carry the network's configuration, its card and the checksum of its
    weight file; beside each lies a record of its own checksum.

    Args:
        network: a `CompactPainter` or `LabelReader`; not changed.
        folder: made if it is missing.
        checkpoint_sha256: of the weight file that the network came from, see `weights.file_sha256`.
        weights: name of that file, if it lies in `folder`: the ONNX files refer to its numbers instead of holding them.

    Returns:
        Their paths.

    Raises:
        ValueError: the network is of an architecture that cannot be exported in parts.
    """
    # In single precision on the CPU, whatever the caller trains with.
    exported = copy.deepcopy(network).eval().float().cpu()
    written = json.dumps(network.config.to_json()), json.dumps(network.card), checkpoint_sha256, weights
    held = numbers_in(folder / weights) if weights else {}
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
    parts = parts_of(network)
    for part in parts:
        _trace(part, folder / part.file)
    return [part.file for part in parts]


def _trace(part: Part, path: Path) -> None:
    with _attention_head_by_head(), warnings.catch_warnings():
        # It warns of computing with shapes (the tests compare sizes that were not traced), and of being the old one
        # (the new exporter writes the same numbers, but takes twenty times as long).
        warnings.simplefilter("ignore")
        torch.onnx.export(part.module.eval(), part.arguments, path, input_names=part.inputs, output_names=part.outputs,
                          dynamic_axes=part.free, opset_version=OPSET, dynamo=False,
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


def _finish(path: Path, texts: dict[str, str], weights: str, held: Held) -> None:
    """Add the texts, and store numbers in half the size, or not at all, where that changes none."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, texts)
    store_halves(model, weights, held)
    path.write_bytes(model.SerializeToString())
