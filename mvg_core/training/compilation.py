"""`torch.compile` where there is a compiler."""

from __future__ import annotations

import warnings

import torch
from torch import nn


def compile_painter(painter: nn.Module, device: torch.device) -> bool:
    """Compile what training calls of a network, in place; with a warning and no change where that cannot work.

    The network stays the same module, so the names of its weights do not change.

    Returns:
        Whether it is compiled.
    """
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:  # a missing compiler surfaces as one of many types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        warnings.warn(f"torch.compile does not work here, so training goes on without it ({reason}). It needs a C++ "
                      "compiler, and Triton on a GPU", RuntimeWarning, stacklevel=2)
        return False
    # What fails to compile later, with the network's own shapes, runs as it is too; torch logs that.
    torch._dynamo.config.suppress_errors = True  # type: ignore[attr-defined]
    for name in ("encode", "paint", "paint_both"):
        if hasattr(painter, name):
            setattr(painter, name, torch.compile(getattr(painter, name)))
    return True


def _probe(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * 2 + 1
