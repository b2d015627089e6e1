"""In which precision the network computes: bfloat16 where the processor is faster with it, otherwise single."""

from __future__ import annotations

from typing import Any, Literal, get_args

Precision = Literal["auto", "fp32", "bf16"]
"""`bf16` multiplies in bfloat16 and adds up in single precision; `auto` takes it where it is faster."""


def checked_precision(precision: str) -> Precision:
    """The same text, if it names a precision.

    Raises:
        ValueError: it does not.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is unknown: use one of {', '.join(get_args(Precision))}")
    return precision  # type: ignore[return-value]


def torch_precision(precision: Precision, device: Any) -> Literal["fp32", "bf16"]:
    """What PyTorch computes in on a `torch.device`.

    Raises:
        ValueError: unknown precision, or bfloat16 where this kind of device has none.
    """
    wanted = checked_precision(precision)
    if wanted != "auto":
        if wanted == "bf16" and device.type not in ("cpu", "cuda"):
            raise ValueError(f"precision 'bf16' is not used on device {str(device)!r}: use 'auto' or 'fp32'")
        return wanted
    return "bf16" if _is_fast(device) else "fp32"


def _is_fast(device: Any) -> bool:
    """Whether a device multiplies bfloat16 in hardware; emulated, it is slower than single precision."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere, the first
    if device.type != "cpu":
        return False
    # Not torch.ops.mkldnn._is_mkldnn_bf16_supported, which also counts processors that emulate it.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
