"""Weights of other projects, loaded by name into the vision transformer.

Two kinds of checkpoint are understood: those of Painter-style networks, which name every parameter as ours does, and
those of plain vision transformers such as MAE, which fill the encoder only. Files are opened with
`torch.load(weights_only=True)`: no code in them can run.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mvg_core.network.checkpoint import EXTRA_KEY
from mvg_core.network.config import NetworkConfig
from mvg_core.network.errors import CheckpointError
from mvg_core.network.vit import VisionTransformerPainter, interpolate_offsets

CheckpointKind = Literal["painter", "encoder"]

WRAPPERS = ("model", "state_dict")
"""Keys under which training scripts store the weights beside optimiser state and arguments."""

PARALLEL_PREFIX = "module."
"""What `DistributedDataParallel` puts before every name."""

ENCODER_NAMES = ("pos_embed", "patch_embed.", "blocks.", "norm.")
"""What a plain vision transformer shares with ours. Its decoder has some names in common too, of another meaning."""


@dataclass(frozen=True)
class ConversionReport:
    """What became of every name in a checkpoint and in the network.

    Attributes:
        kind: `painter`, a whole network, or `encoder`, a plain vision transformer.
        loaded: parameters that took their values from the checkpoint, reshaped ones included.
        missing: parameters that the checkpoint does not hold; they keep their initial values.
        unused: names in the checkpoint that the network does not take.
        reshaped: parameters interpolated to the network's size, as `name: (old shape) -> (new shape)`.
    """

    kind: CheckpointKind
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Every parameter of the network was loaded: it can paint without training."""
        return not self.missing

    def __str__(self) -> str:
        lines = [f"{self.kind} checkpoint: {len(self.loaded)} parameters loaded"]
        for title, names in (("missing", self.missing), ("unused", self.unused), ("reshaped", self.reshaped)):
            lines += [f"{len(names)} {title}:", *(f"  {name}" for name in names)] if names else []
        return "\n".join(lines)


def convert_checkpoint(path: str | Path, config: NetworkConfig) -> tuple[VisionTransformerPainter, ConversionReport]:
    """Build the network of `config` with the weights of a Painter-style or MAE checkpoint.

    Position embeddings are interpolated to the network's grid (bicubic; the class token's position is kept as it is,
    and 0 where the checkpoint has none), relative positions to its canvas (linear). All else must have the same shape.

    Source: position handling as in ViTDet (arXiv 2203.16527), which Painter builds on.

    Raises:
        CheckpointError: the file cannot be read, holds more than weights, or does not fit the configuration.
        ValueError: the configuration is not of architecture `vit`.
    """
    weights = read_weights(path)
    network = VisionTransformerPainter(config)
    return network, load_weights(network, weights)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its name, without wrapping keys and prefixes.

    Raises:
        CheckpointError: the file cannot be read, or holds no named tensors.
    """
    content = _load(Path(path))
    for _ in WRAPPERS:  # at most one inside the other
        if isinstance(content, Mapping) and (wrapper := _wrapper(content)):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not named weights: save the state_dict of the network"
        )
    weights = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not weights:
        raise CheckpointError(
            f"{path} holds no weights; its keys are {sorted(map(str, content))[:8]}: expected a "
            f"state_dict, plain or under one of {WRAPPERS}"
        )
    if all(name.startswith(PARALLEL_PREFIX) for name in weights):
        weights = {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in weights.items()}
    return weights


def load_weights(network: VisionTransformerPainter, weights: Mapping[str, Tensor]) -> ConversionReport:
    """Copy into `network` every weight that it has a parameter for; the others are reported.

    Raises:
        CheckpointError: no name fits, or a shape does not; the network is then unchanged.
    """
    kind: CheckpointKind = "encoder" if "cls_token" in weights else "painter"
    # The configuration that our own files carry is no weight: the network keeps the one it was built with.
    needed = {name: tensor.shape for name, tensor in network.state_dict().items() if name != EXTRA_KEY}
    usable = {
        name: tensor
        for name, tensor in weights.items()
        if name in needed and (kind == "painter" or name.startswith(ENCODER_NAMES))
    }
    if not usable:
        raise CheckpointError(
            f"none of the {len(weights)} names in the checkpoint is one of the network's: found "
            f"{sorted(weights)[:4]}, needed names such as {sorted(needed)[:4]}"
        )
    fitted = {name: _fit(name, tensor.float(), needed[name]) for name, tensor in usable.items()}
    wrong = [
        _change(name, usable[name].shape, needed[name])
        for name, tensor in fitted.items()
        if tensor.shape != needed[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} weights have another shape than the network (found -> needed): "
            f"{'; '.join(wrong[:4])}. Choose the configuration that the checkpoint was trained with"
        )
    network.load_state_dict(fitted, strict=False)
    return ConversionReport(
        kind=kind,
        loaded=tuple(fitted),
        missing=tuple(name for name in needed if name not in fitted),
        unused=tuple(name for name in weights if name not in fitted),
        reshaped=tuple(
            _change(name, tensor.shape, needed[name]) for name, tensor in usable.items() if tensor.shape != needed[name]
        ),
    )


def _load(path: Path) -> Any:
    try:
        # Painter's training script stores its command line beside the weights; a Namespace holds plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise CheckpointError(f"{path} is not a PyTorch checkpoint, or is damaged") from error
        raise CheckpointError(
            f"{path} holds an object of type {refused[1]} beside its weights, which is not loaded "
            "because it could run code: if you trust the file, save its state_dict alone"
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damage surfaces as almost any type: struct.error, OSError, KeyError ...
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint, or is damaged ({type(error).__name__}): "
            "fetch it again and compare its size"
        ) from error


def _wrapper(content: Mapping[Any, Any]) -> str | None:
    return next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)


def _fit(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """`tensor` interpolated to `shape` where `name` is a position that may have another size; else unchanged."""
    if tensor.shape == shape or tensor.ndim != len(shape) or tensor.shape[-1] != shape[-1]:
        return tensor
    if name == "pos_embed":
        return interpolate_positions(tensor, round((shape[1] - 1) ** 0.5))
    if name.endswith((".rel_pos_h", ".rel_pos_w")):
        return interpolate_offsets(tensor, (shape[0] + 1) // 2)
    return tensor


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Absolute positions (1, n^2 or 1 + n^2, D) of a square grid, bicubically resized to (1, 1 + side^2, D).

    Raises:
        CheckpointError: the positions are not those of a square grid, with or without a class token.
    """
    n_positions = positions.shape[1]
    old = int(n_positions**0.5)  # floor(sqrt(n^2 + 1)) = n
    n_class = n_positions - old**2
    if n_class > 1:
        raise CheckpointError(
            f"pos_embed has {n_positions} positions: expected a square grid, with or without one "
            "position for a class token"
        )
    class_position = positions[:, :1] if n_class else torch.zeros_like(positions[:, :1])
    grid = positions[:, n_class:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    if old != side:
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((class_position, grid.flatten(2).transpose(1, 2)), dim=1)


def _change(name: str, found: torch.Size, needed: torch.Size) -> str:
    return f"{name}: {tuple(found)} -> {tuple(needed)}"
