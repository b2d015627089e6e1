"""How much memory painting takes, and what of it fits below a limit.

The numbers were measured with mvg_compact (`benchmarks/volume_cost.py` compares them with what is really taken); they
are rounded up, and smaller networks take less. MB are 10^6 bytes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

_PAINTING_BYTES = {("torch", "fp32"): 1500, ("torch", "bf16"): 800, ("onnxruntime", "fp32"): 1700}
"""Most that is held at once for every pixel of the slices that are painted together."""
_ENCODED_BYTES = 32
"""An encoded prompt, for every pixel."""
_TABLE_BYTES = 4 * 2
"""ONNX Runtime writes down how much every token of a slice attends to every token of its prompts; twice for a moment.
PyTorch does not."""
_PIXELS_PER_TOKEN = 64
_WORKSPACE_MB = 60
"""Buffers of the libraries, and what the system does not take back at once."""
_ANSWER_BYTES = 5
"""Label and confidence of a voxel; an image takes no more."""
_WRITING_BYTES = 9
"""Measuring and writing the answer, for every voxel, when painting is over."""
_UNKNOWN_MB = 450
"""Taken by Python, its packages and the weights, where the system does not tell."""


@dataclass(frozen=True)
class Room:
    """What fits.

    Attributes:
        block: slices that can be painted at once.
        cached_prompts: encoded prompts that can be kept.
        needed_mb: an upper estimate of what the whole process will take with these.
    """

    block: int
    cached_prompts: int
    needed_mb: float


@dataclass(frozen=True)
class Work:
    """What is to be painted.

    Attributes:
        backend: its name.
        precision: in which it computes.
        side: of the slices in pixels.
        prompts: that serve one slice.
        groups: of labels, painted one after the other.
        voxels: of the answer.
    """

    backend: str
    precision: str
    side: int
    prompts: int
    groups: int = 1
    voxels: int = 0

    @property
    def slice_mb(self) -> float:
        """For every slice that is painted at once."""
        pixels = self.side**2
        return pixels * _PAINTING_BYTES.get((self.backend, self.precision), 1700) / 1e6

    @property
    def prompt_mb(self) -> float:
        """For every prompt that is kept encoded."""
        return self.side**2 * _ENCODED_BYTES / 1e6

    @property
    def fixed_mb(self) -> float:
        """While anything is painted, beside the slices: the prompts joined, and workspace."""
        tokens = self.side**2 / _PIXELS_PER_TOKEN
        table = tokens * tokens * self.prompts * _TABLE_BYTES / 1e6 if self.backend == "onnxruntime" else 0.0
        return _WORKSPACE_MB + table + self.prompts * self.groups * self.prompt_mb


def room(limit_mb: float, work: Work, *, block: int, cached_prompts: int, taken_mb: float | None = None) -> Room:
    """What fits below a limit, never more than `block` and `cached_prompts`.

    Args:
        limit_mb: most that the process may take.
        work: what is to be painted.
        block: wanted.
        cached_prompts: wanted.
        taken_mb: what the process takes already; None asks the system.

    Raises:
        ValueError: not even one slice at a time fits; says how much would.
    """
    taken = resident_mb() if taken_mb is None else taken_mb
    answer, writing = work.voxels * _ANSWER_BYTES / 1e6, work.voxels * _WRITING_BYTES / 1e6
    fewest = work.prompts * work.groups
    least = work.fixed_mb + work.slice_mb + fewest * work.prompt_mb
    if taken + answer + max(least, writing) > limit_mb:
        raise ValueError(
            f"at most {limit_mb:.0f} MB of memory are allowed (--max-memory), about "
            f"{taken + answer + max(least, writing):.0f} MB are needed: {taken:.0f} are taken already by the program "
            f"and the images, {answer:.0f} are for the answer, {least:.0f} to paint slices of {work.side} x "
            f"{work.side} pixels one by one with {work.prompts} prompts, or {writing:.0f} to write the answer. Allow "
            "more, or give a smaller image")
    free = limit_mb - taken - answer - work.fixed_mb - work.slice_mb
    cached = min(cached_prompts, max(fewest, int(free / 2 / work.prompt_mb)))
    more = max(0, int((free - cached * work.prompt_mb) / work.slice_mb))
    chosen = min(block, 1 + more)
    painting = work.fixed_mb + chosen * work.slice_mb + cached * work.prompt_mb
    return Room(chosen, cached, taken + answer + max(painting, writing))


def resident_mb() -> float:
    """What this process takes now; where the system does not tell, the most that it took so far, or an estimate."""
    if sys.platform == "linux":
        # proc(5): the second number is the resident set in pages.
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e6
    from mvg_core.report import peak_memory_mb

    peak = peak_memory_mb()
    return _UNKNOWN_MB if peak is None else peak
