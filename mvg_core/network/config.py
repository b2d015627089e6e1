"""The one configuration of every MVG network, and the presets that the project ships or reproduces."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Architecture = Literal["compact", "vit", "reader"]

NORM_GROUPS = 8
"""Groups of channels that are normalised together in a reader."""
COARSEST = 16
"""Pixels to a token at the coarsest scale of the compact network: sides of slices are multiples of it."""


@dataclass(frozen=True)
class NetworkConfig:
    """Describes a network completely; stored in every checkpoint.

    Two architectures share the canvas semantics (prompt image, prompt label, query image, hidden query label):
    `compact` is a convolutional pyramid with attention from the query to encoded prompts, `vit` is the paper's network.
    The third, `reader`, reads label maps out of features by weights that are fitted to the prompts (`LabelReader`); it
    stands beside a `compact` one.

    Attributes:
        architecture: `compact`, `vit` or `reader`.
        size: native side H = W of one slice in pixels; a canvas is 2 size x size.
        widths: channels. compact: one per scale (1, 1/2, 1/4, 1/8, 1/16); reader: one per scale (1/2 to 1/32); vit: the
            single token width.
        heads: attention heads (compact: at 1/16; finer scales keep the same width per head).
        depth: transformer blocks. compact: painting blocks at 1/16; vit: all blocks.
        mlp_ratio: hidden width of the MLPs, relative to the token width.
        slots: compact only, codebook entries a head of the linear attention at 1/4 and 1/2 (half as many at 1).
        patch: side in pixels of a label patch that is hidden or shown as a whole; vit: also the token patch.
        position_grid: side of the grid on which position embeddings are stored; other sizes interpolate it.
        merge_after: vit only, image and label streams are averaged after this many blocks.
        feature_blocks: vit only, indices of the blocks whose outputs feed the decoder.
        decoder_width: vit only, channels of the decoder at full resolution.
        drop_path: largest stochastic-depth rate, reached at the last block.
        maps: compact only, feature maps whose readout is fitted to the prompts of image-to-image tasks (`FeatureMaps`);
            0: these answers are painted like label maps.
        maps_widths: compact only, channels of what makes the maps, at 1/2, 1/4, 1/8 and 1/16.
        terms: reader only, learned features of a pixel (at 1/4) that its readout weighs.

    Raises:
        ValueError: a value is out of range, or does not fit the others.
    """

    architecture: Architecture = "compact"
    size: int = 192
    widths: tuple[int, ...] = (16, 32, 64, 128, 224)
    heads: int = 7
    depth: int = 2
    mlp_ratio: float = 3.0
    slots: int = 32
    patch: int = 16
    position_grid: int = 12
    merge_after: int = 3
    feature_blocks: tuple[int, ...] = (5, 11, 17, 23)
    decoder_width: int = 64
    drop_path: float = 0.0
    maps: int = 0
    maps_widths: tuple[int, ...] = (40, 72, 104, 128)
    terms: int = 48

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture {self.architecture!r} is unknown: use 'compact', 'vit' or 'reader'")
        n_widths = 1 if self.architecture == "vit" else 5
        if len(self.widths) != n_widths:
            raise ValueError(f"{self.architecture} needs {n_widths} widths, got {len(self.widths)}: {self.widths}")
        for name in ("size", "heads", "depth", "slots", "patch", "position_grid", "decoder_width", "terms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.widths) < 1:
            raise ValueError(f"widths must be at least 1, got {self.widths}")
        if self.size % self.patch:
            raise ValueError(f"size {self.size} must be a multiple of patch {self.patch}")
        if self.architecture == "reader":
            self._check_reader()
            return
        if self.widths[-1] % self.heads:
            raise ValueError(f"width {self.widths[-1]} cannot be split into {self.heads} heads")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if self.architecture == "compact":
            self._check_compact()
        else:
            self._check_vit()

    def _check_compact(self) -> None:
        if self.size % COARSEST:
            raise ValueError(f"size {self.size} must be a multiple of {COARSEST}, the coarsest scale of compact")
        if self.maps < 0 or len(self.maps_widths) != 4 or min(self.maps_widths) < 1:
            raise ValueError(f"maps must be at least 0 and have 4 widths, got {self.maps} and {self.maps_widths}")
        if self.slots < 2:
            raise ValueError(f"slots must be at least 2, half of them serve full resolution, got {self.slots}")

    def _check_reader(self) -> None:
        if any(width % NORM_GROUPS for width in self.widths):
            raise ValueError(f"widths of a reader must be multiples of {NORM_GROUPS}, got {self.widths}")

    def _check_vit(self) -> None:
        if not self.feature_blocks or not 0 <= min(self.feature_blocks) <= max(self.feature_blocks) < self.depth:
            raise ValueError(f"feature_blocks {self.feature_blocks} must be blocks of a depth of {self.depth}")
        first = min(self.feature_blocks)
        if not 1 <= self.merge_after <= first + 1:
            raise ValueError(f"merge_after {self.merge_after} must be in 1..{first + 1}: the streams are averaged "
                             f"before the first decoded block, {first}, has been read")

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary that `from_json` turns back into an equal configuration."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> NetworkConfig:
        """Rebuild a configuration.

        Raises:
            ValueError: a field is unknown or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"network configuration has unknown fields {unknown}; known: {sorted(known)}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        return cls(**values)  # type: ignore[arg-type]


PRESETS: dict[str, NetworkConfig] = {
    # What the project ships: for CPUs and small data.
    "mvg_compact": NetworkConfig(maps=16),
    "mvg_reader": NetworkConfig(architecture="reader", widths=(32, 64, 96, 128, 160)),
    # The paper's network (Ren et al. 2024, arXiv 2406.05565): ViT-L, canvas 896 x 448.
    "mvg_vit_large": NetworkConfig(
        architecture="vit",
        size=448,
        widths=(1024,),
        heads=16,
        depth=24,
        mlp_ratio=4.0,
        patch=16,
        position_grid=14,
        drop_path=0.1,
    ),
}


def preset(name: str, **changes: Any) -> NetworkConfig:
    """The preset called `name`, with some fields changed.

    Raises:
        ValueError: no preset has this name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: choose one of {sorted(PRESETS)}")
    return dataclasses.replace(PRESETS[name], **changes)
