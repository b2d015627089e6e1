"""Weight files: one plain state dict that also says which network it belongs to.

The configuration and a model card travel as a JSON text inside the state dict (a byte tensor under `EXTRA_KEY`, through
torch's extra-state mechanism), so the file stays a plain dictionary of tensors: it loads with `weights_only=True`, with
MONAI's checkpoint loaders and with `load_state_dict`, which refuses weights of another configuration.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvg_core.network.config import NetworkConfig
from mvg_core.network.errors import CheckpointError

EXTRA_KEY = "_extra_state"

SAFETENSORS = ".safetensors"

class ConfiguredModule(nn.Module):
    """A network that carries its configuration and card into its state dict."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        # Set here, not annotated on the class: TorchScript would try to compile the annotations.
        self.config = config
        self.card: dict[str, Any] = {}

    @torch.jit.unused
    def get_extra_state(self) -> Tensor:
        """Configuration and card as bytes of JSON, uint8 (length,)."""
        text = json.dumps({"network": self.config.to_json(), "card": self.card}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()

    @torch.jit.unused
    def set_extra_state(self, state: Tensor) -> None:
        """Take over the card.

        Raises:
            CheckpointError: the weights belong to another configuration.
        """
        config, card = decode_extra(state)
        ours, theirs = self.config.to_json(), config.to_json()
        # Native size and regularisation do not change what the weights mean.
        differing = [key for key in ours if ours[key] != theirs[key] and key not in ("size", "drop_path")]
        if differing:
            found = ", ".join(f"{key} {theirs[key]} instead of {ours[key]}" for key in differing)
            raise CheckpointError(
                f"the weights belong to another network: {found}. Build the network with "
                "load_network(), which reads the configuration from the file"
            )
        self.card = card


def decode_extra(state: Tensor) -> tuple[NetworkConfig, dict[str, Any]]:
    """Configuration and card from the bytes that a state dict carries.

    Raises:
        CheckpointError: the bytes are not what this project writes.
    """
    try:
        stored = json.loads(bytes(state.to(torch.uint8).tolist()).decode())
        return NetworkConfig.from_json(stored["network"]), dict(stored["card"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint's configuration cannot be read ({error})") from error


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """Write to a temporary file in the same folder, then rename: a good file is never half replaced.

    `path` ending in `.safetensors` gets that format (tensors only), any other what `torch.save` writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            if path.suffix == SAFETENSORS:
                from safetensors.torch import save

                file.write(save({key: value.contiguous() for key, value in state.items()}))
            else:
                torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict, with weights that are computed from others (adapters) as the numbers they amount to."""
    state = dict(network.state_dict())
    for name, module in network.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        own = f"{name}." if name else ""
        state = {key: value for key, value in state.items() if not key.startswith(f"{own}parametrizations.")}
        for weight in module.parametrizations:  # type: ignore[union-attr]
            state[own + weight] = getattr(module, weight).detach()
    return state


def save_weights(network: ConfiguredModule, path: Path) -> None:
    """Write a network's weights in half precision, with configuration and card; the suffix chooses the format."""
    state = {key: value.half() if value.is_floating_point() else value for key, value in plain_state(network).items()}
    save_atomically(state, path)


def load_safely(path: Path, device: str = "cpu") -> Any:
    """What `save_atomically` wrote, as far as it can be read without executing code from the file.

    Raises:
        CheckpointError: damaged, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(path, device=device)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():  # torch compares no checksums
                    raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damage surfaces as almost any type: struct.error, EOFError, KeyError ...
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} cannot be loaded safely: it is damaged or no weight file ({reason}). Download or export it again"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a weight file, never executing code from it.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged, tampered with, or not a state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}: pass a path to a .pt file, or a preset name")
    state = load_safely(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no plain state dict: convert it with `mvg convert-checkpoint`")
    return state


def load_network(path: Path) -> ConfiguredModule:
    """Build the network that a weight file describes, in float32 and evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: damaged file, no configuration in it, or weights that do not fit it.
    """
    from mvg_core.network import create_network

    state = read_state(path)
    if EXTRA_KEY not in state:
        raise CheckpointError(
            f"{path} does not say which network it belongs to: convert it with `mvg convert-checkpoint`"
        )
    config, _ = decode_extra(state[EXTRA_KEY])
    try:
        network = create_network(config)
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit its own configuration: {error}") from error
    return network.eval()
