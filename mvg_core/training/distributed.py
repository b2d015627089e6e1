"""Several processes that train one network: who is who, wrapping the network, and states that fit any number of them.

Start them with `torchrun`; `start` joins them. A state that is gathered here is whole and on the CPU of process 0,
whatever the wrapping, so a run may go on with another number of processes or another `parallel`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mvg_core.training.config import Parallel

Value = TypeVar("Value")


def start(device: str | None = None) -> torch.device:
    """Join the processes that `torchrun` started, if it did; the device of this process.

    Args:
        device: kind of device; None takes GPUs where there are any.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "LOCAL_RANK" not in os.environ:
        return torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    return torch.device(kind)


def stop() -> None:
    """Leave the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process; 0 is the one that writes and speaks."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def n_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if n_processes() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def agreed(value: Value) -> Value:
    """What process 0 says."""
    if n_processes() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def all_values(value: Value) -> list[Value]:
    """What every process says."""
    if n_processes() == 1:
        return [value]
    said: list[Any] = [None] * n_processes()
    dist.all_gather_object(said, value)
    return said


def same_weights(network: nn.Module) -> None:
    """Give every process the weights of process 0, before anything is wrapped or copied."""
    if n_processes() > 1:
        for tensor in [*network.parameters(), *network.buffers()]:
            dist.broadcast(tensor.detach(), src=0)


def prepare(network: nn.Module, mode: Parallel, device: torch.device | str) -> nn.Module:
    """A module that trains with those of the other processes; the same module where there is only one.

    Call the result's `forward`, nothing else of it, and build the optimizer afterwards from the parameters of
    `network`: sharding replaces them.

    Args:
        network: on its device.
        mode: `ddp`: every process holds the whole network; `fsdp`: each holds a part of every weight (FSDP2).
        device: of this process.

    Raises:
        RuntimeError: `fsdp` with a PyTorch older than 2.6.
    """
    if n_processes() == 1:
        return network
    if mode == "ddp":
        device = torch.device(device)
        return DistributedDataParallel(network, device_ids=None if device.type == "cpu" else [device])
    return shard(network)


def shard(network: nn.Module) -> nn.Module:
    """The same module with weights that are split over all processes, block by block.

    Raises:
        RuntimeError: PyTorch is older than 2.6.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise RuntimeError(f"parallel 'fsdp' needs torch 2.6 or newer, this is {torch.__version__}: "
                           "use parallel 'ddp' or install a newer one") from error
    for name, block in network.named_modules():
        if name.rpartition(".")[0].endswith("blocks"):
            fully_shard(block)
    fully_shard(network)
    return network


@contextlib.contextmanager
def gradients(network: nn.Module, *, exchanged: bool) -> Iterator[None]:
    """Around a forward and backward pass: whether processes exchange gradients at its end, or later."""
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP2
        network.set_requires_gradient_sync(exchanged)  # type: ignore[operator]
        yield
    elif isinstance(network, DistributedDataParallel) and not exchanged:
        with network.no_sync():
            yield
    else:
        yield


def whole(state: Any) -> Any:
    """A state with every split tensor gathered; all processes must ask for it together.

    Returns:
        The state, on the CPU if there are several processes; only process 0 has the numbers, the others' are empty.
    """
    if isinstance(state, Tensor):
        if n_processes() == 1:
            return state
        if hasattr(state, "full_tensor"):
            state = state.full_tensor()  # type: ignore[operator]
        return state.detach().cpu() if rank() == 0 else torch.empty(0, dtype=state.dtype)
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value) for value in state)
    return state


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor split as another one is."""
    if not hasattr(like, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def load_whole(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a whole state into a network that may be split."""
    ours = network.state_dict()
    network.load_state_dict({name: split_like(value, ours[name]) if isinstance(ours.get(name), Tensor) else value
                             for name, value in state.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole optimizer state for parameters that may be split."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: split_like(value, parameters[number]) if isinstance(value, Tensor) and value.ndim else value
                 for name, value in own.items()}
        for number, own in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
