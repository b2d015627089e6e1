"""Which parts of a network become ONNX files, and what goes into and comes out of each.

Shape letters: B images or queries, R rows to decode, K maps, D terms, H W pixels, h w = H/4 W/4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mvg_core.backends import N_CODEBOOKS, ONNX_MAPS, ONNX_PROMPT, ONNX_QUERY, ONNX_SUM
from mvg_core.label_readout import SCORES
from mvg_core.reader_backends import ONNX_OUTLINES, ONNX_TERMS, SIDE_MULTIPLE

Axes = dict[int, str]


@dataclass(frozen=True, eq=False)
class Part:
    """One ONNX file.

    Attributes:
        file: its name.
        module: what is traced.
        arguments: of its call.
        inputs: their names.
        outputs: the names of what it returns.
        free: which of all these have sides that were not fixed by the arguments: name -> axis -> what it counts.
    """

    file: str
    module: nn.Module
    arguments: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]
    free: dict[str, Axes]


def parts_of(network: Any) -> list[Part]:
    """The parts of a network, by its architecture.

    Raises:
        ValueError: it cannot be taken apart.
    """
    architecture = network.config.architecture
    if architecture not in _PARTS:
        raise ValueError(f"a {architecture!r} network cannot be exported in parts: its prompts and queries are "
                         "computed together, only 'compact' ones encode prompts on their own")
    return _PARTS[architecture](network)


# --- a painter: prompts are encoded by one file, queries painted by another, and maps made by the third ---


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


def _painter_parts(network: Any) -> list[Part]:
    side = network.config.size
    image, label = torch.zeros(1, 1, 1, side, side), torch.zeros(1, 1, 3, side, side)
    with torch.no_grad():
        encoded = network.encode(image, label)
    n_tokens = len(encoded) - N_CODEBOOKS
    names = [f"{'tokens' if number < n_tokens else ONNX_SUM}_{number}" for number in range(len(encoded))]
    # Every pair of keys and values has its own number of tokens: 1/16 and 1/8 of the side.
    tokens = {name: {2: f"n_tokens_{number // 2}"} for number, name in enumerate(names[:n_tokens])}
    whole: Axes = {3: "height", 4: "width"}
    queries, nothing = _free_sides("queries"), torch.zeros(2, 1, side, side)
    parts = [Part(ONNX_PROMPT, _PromptEncoder(network), (image, label), ["image", "label"], names,
                  {"image": whole, "label": whole, **tokens}),
             Part(ONNX_QUERY, _QueryPainter(network), (nothing, *encoded), ["image", *names], ["painted"],
                  {"image": queries, "painted": queries, **tokens})]
    if network.config.maps:
        images = _free_sides("images")
        parts.append(Part(ONNX_MAPS, _MapMaker(network), (nothing, nothing), ["image", "hole"],
                          ["maps", "prior", "log_shrinkage"], dict.fromkeys(("image", "hole", "maps"), images)))
    return parts


# --- a reader: one file looks at images, the other decodes scores ---


class _TermMaker(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 1, H, W) -> terms (B, D, h, w), the image for the decoder at 1/4 and 1/2, and how readouts are fitted."""
        # Sums for the same reason as in `_MapMaker`.
        return *self.network(image), self.network.log_shrinkage + 0.0, self.network.balance + 0.0


class _OutlineMaker(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, scores: Tensor, others: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
        """What `decode` takes -> logits (R, 1, H, W)."""
        return self.network.decode(scores, others, coarse, fine)


def _reader_parts(network: Any) -> list[Part]:
    image = torch.zeros(2, 1, 2 * SIDE_MULTIPLE, 2 * SIDE_MULTIPLE)
    with torch.no_grad():
        terms, coarse, fine = network(image)
    scores = torch.zeros(len(terms), SCORES, *terms.shape[2:])
    inputs = ["scores", "others", "coarse", "fine"]
    seen, shown = _free_sides("images", "_4"), _free_sides("rows", "_4")
    looked = {"image": _free_sides("images"), "terms": seen, "coarse": seen, "fine": _free_sides("images", "_2")}
    decoded = {"scores": shown, "others": shown, "coarse": shown, "fine": _free_sides("rows", "_2"),
               "logits": _free_sides("rows")}
    return [Part(ONNX_TERMS, _TermMaker(network), (image,), ["image"],
                 ["terms", "coarse", "fine", "log_shrinkage", "balance"], looked),
            Part(ONNX_OUTLINES, _OutlineMaker(network), (scores, scores, coarse, fine), inputs, ["logits"], decoded)]


def _free_sides(counted: str, scale: str = "") -> Axes:
    """Of (B, C, H, W); `scale` tells the sides of coarser tensors from those of images."""
    return {0: counted, 2: f"height{scale}", 3: f"width{scale}"}


_PARTS: dict[str, Callable[[Any], list[Part]]] = {"compact": _painter_parts, "reader": _reader_parts}
