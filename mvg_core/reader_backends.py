"""The network that reads label maps (`network.reader`) behind one small interface, in PyTorch or ONNX Runtime.

Shape letters: B images, R rows to decode, D terms, H W pixels (multiples of 32), h w = H/4 W/4.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mvg_core.label_readout import Ridge
from mvg_core.precision import Precision
from mvg_core.weights import WeightsError, check_checksum, file_sha256

READER_SUFFIX = "_reader"
"""The reader of the weights `model.pt` is `model_reader.pt` beside them."""
ONNX_TERMS, ONNX_OUTLINES = "model_reader_terms.onnx", "model_reader_outlines.onnx"
SIDE_MULTIPLE = 32
_ROWS_AT_ONCE = 24
"""Decoding many labels at once takes memory and is no faster."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of images.

    Attributes:
        terms: float32 (B, D, h, w).
        coarse: for the decoder, at 1/4 of the resolution; what the reader that made it can read.
        fine: for the decoder, at 1/2.
    """

    terms: npt.NDArray[np.float32]
    coarse: Any
    fine: Any


class Reader(Protocol):
    """Looks at images, and decodes scores.

    Attributes:
        ridge: how readouts of its terms are fitted.
        checkpoint_sha256: of its weight file; empty if there is none.
    """

    ridge: Ridge
    checkpoint_sha256: str

    def look(self, images: npt.NDArray[np.float32]) -> Seen:
        """At images (B, H, W) in [0, 1]."""
        ...

    def outlines(self, scores: npt.NDArray[np.float32], others: npt.NDArray[np.float32], seen: Seen, number: int
                 ) -> npt.NDArray[np.float32]:
        """How firmly each label is seen, logits (R, H, W).

        Args:
            scores: (R, SCORES, h, w), one row for each label.
            others: (R, SCORES, h, w) the highest of the other labels.
            seen: of the image among others.
            number: of the image.
        """
        ...


def reader_path(weights: Path) -> Path:
    """Where the weight file of the reader lies that belongs to a weight file, if there is one."""
    return weights.with_name(f"{weights.stem}{READER_SUFFIX}{weights.suffix}")


def reader_beside(weights: Path) -> Path | None:
    """The weight file of the reader that belongs to a weight file; None if there is none."""
    path = reader_path(weights)
    return path if path.is_file() else None


def reader_network(path: Path) -> Any:
    """The `LabelReader` of a weight file.

    Raises:
        WeightsError: the file is missing, or was changed since its checksum was recorded.
        CheckpointError: it cannot be read, or holds another kind of network.
    """
    from mvg_core.network.checkpoint import load_network
    from mvg_core.network.errors import CheckpointError

    if not path.is_file():
        raise WeightsError(f"no reader {path}: restore it (git checkout, or install the package again), or do without")
    check_checksum(path)
    network = load_network(path)
    if network.config.architecture != "reader":
        raise CheckpointError(f"{path} holds a {network.config.architecture!r} network where a reader is needed: move "
                              "it away, or rename it")
    return network


def load_reader(path: Path, device: Any = "cpu", precision: Precision = "fp32") -> TorchReader:
    """The reader of a weight file, in PyTorch.

    Args:
        path: see `reader_network`, also for errors.
        device: torch device that can be used.
        precision: see `TorchReader`.
    """
    return TorchReader(reader_network(path), device, file_sha256(path), precision)


class TorchReader:
    """In PyTorch.

    Args:
        network: a `LabelReader`.
        device: torch device that can be used.
        checkpoint_sha256: of its weight file.
        precision: `fp32` or `bf16`, of its convolutions.
    """

    def __init__(self, network: Any, device: Any = "cpu", checkpoint_sha256: str = "", precision: Precision = "fp32"
                 ) -> None:
        import torch

        self.device = torch.device(device)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)
        self.checkpoint_sha256 = checkpoint_sha256
        self._precision: Precision = precision
        self.ridge = Ridge(float(network.log_shrinkage.detach().exp()), float(network.balance.detach().clamp(0, 1)))

    def on(self, device: Any) -> TorchReader:
        """The same on another device; its network moves there."""
        return TorchReader(self.network, device, self.checkpoint_sha256, self._precision)

    def look(self, images: npt.NDArray[np.float32]) -> Seen:
        """See `Reader`."""
        import torch

        with torch.inference_mode(), self._autocast():
            terms, coarse, fine = self.network(self._tensor(images)[:, None])
        return Seen(terms.cpu().numpy(), coarse, fine)

    def outlines(self, scores: npt.NDArray[np.float32], others: npt.NDArray[np.float32], seen: Seen, number: int
                 ) -> npt.NDArray[np.float32]:
        """See `Reader`."""
        import torch

        coarse, fine = seen.coarse[number : number + 1], seen.fine[number : number + 1]
        found = []
        with torch.inference_mode(), self._autocast():
            for start in range(0, len(scores), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                n = len(scores[rows])
                found.append(self.network.decode(
                    self._tensor(scores[rows]), self._tensor(others[rows]), coarse.expand(n, -1, -1, -1),
                    fine.expand(n, -1, -1, -1))[:, 0].float().cpu().numpy())
        return np.concatenate(found)

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()

    def _tensor(self, array: npt.NDArray[np.float32]) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)


class OnnxReader:
    """In ONNX Runtime, from the files that `mvg export-onnx` writes.

    Args:
        terms: session of `ONNX_TERMS`.
        outlines: session of `ONNX_OUTLINES`.
        checkpoint_sha256: of the weight file that they were made from.
    """

    def __init__(self, terms: Any, outlines: Any, checkpoint_sha256: str) -> None:
        self._terms, self._outlines, self.checkpoint_sha256 = terms, outlines, checkpoint_sha256
        nothing = np.zeros((1, 1, SIDE_MULTIPLE, SIDE_MULTIPLE), np.float32)
        shrinkage, balance = terms.run(["log_shrinkage", "balance"], {"image": nothing})
        self.ridge = Ridge(float(np.exp(shrinkage)), float(np.clip(balance, 0, 1)))

    def look(self, images: npt.NDArray[np.float32]) -> Seen:
        """See `Reader`."""
        names = ["terms", "coarse", "fine"]
        each = [self._terms.run(names, {"image": np.ascontiguousarray(image, np.float32)[None, None]})
                for image in images]
        return Seen(*(np.concatenate(parts) for parts in zip(*each, strict=True)))

    def outlines(self, scores: npt.NDArray[np.float32], others: npt.NDArray[np.float32], seen: Seen, number: int
                 ) -> npt.NDArray[np.float32]:
        """See `Reader`."""
        coarse, fine = seen.coarse[number : number + 1], seen.fine[number : number + 1]
        # Row by row: no slower, and many labels of a large slice would need much memory.
        rows = [self._outlines.run(["logits"], {
            "scores": np.ascontiguousarray(score[None]), "others": np.ascontiguousarray(other[None]), "coarse": coarse,
            "fine": fine})[0][0, 0] for score, other in zip(scores, others, strict=True)]
        return np.stack(rows)
