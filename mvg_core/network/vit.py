"""The paper's network: a vision transformer that paints the hidden part of a label canvas.

Two canvases, prompt above query, go in: grey images and painted labels. Both are cut into patches by the same
embedding; hidden label patches become a learned mask token. The two token streams share the first blocks, are averaged,
and one stream goes on. Outputs of four blocks are concatenated and decoded to colours at full resolution.

Parameter names equal those of Painter-style checkpoints, which load by name (see `convert`).

Sources: Ren et al. 2024 (MVG, arXiv 2406.05565); Wang et al. 2023 (Painter, arXiv 2212.02499); decomposed relative
positions: Li et al. 2022 (MViTv2, arXiv 2112.01526) and ViTDet (arXiv 2203.16527).

Letters: B batch, C channels, H W pixels of a slice, h w patches of a canvas, N = h w tokens, D width, n heads,
d = D / n, p patch side, F decoder width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.network.config import NetworkConfig

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet statistics of colours in [0, 1]; Painter normalises images and labels with them."""

LAYER_NORM_EPS = 1e-6


class VisionTransformerPainter(ConfiguredModule):
    """The vision transformer of the `mvg_vit_large` preset, or a smaller one of the same shape.

    Args:
        config: a configuration with architecture `vit`.

    Raises:
        ValueError: the configuration is of another architecture.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        if config.architecture != "vit":
            raise ValueError(f"this network needs architecture 'vit', got {config.architecture!r}")
        width, patch = config.widths[0], config.patch
        grid = (2 * config.size // patch, config.size // patch)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.segment_token_x = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.segment_token_y = nn.Parameter(torch.zeros(1, 1, 1, width))
        # The first position belongs to the class token of the pre-trained network: kept for its checkpoints, unused.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.position_grid**2, width))
        self.patch_embed = PatchEmbedding(width, patch)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(width, config.heads, int(width * config.mlp_ratio), grid, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.decoder_embed = nn.Linear(width * len(config.feature_blocks), patch**2 * config.decoder_width)
        self.decoder_pred = nn.Sequential(
            nn.Conv2d(config.decoder_width, config.decoder_width, kernel_size=3, padding=1),
            ChannelLayerNorm(config.decoder_width),
            nn.GELU(),
            nn.Conv2d(config.decoder_width, 3, kernel_size=1),
        )
        self.register_buffer("_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)
        self._activation_checkpointing = False
        self._initialise()

    def forward(self, image: Tensor, query_label: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Paint the label of a query beside one solved example.

        Args:
            image: (B, 5, H, W) in [0, 1]: the grey query, the grey prompt image, and the painted prompt label in
                channels 2:5. H and W are multiples of the patch.
            query_label: (B, 3, H, W) in [0, 1], the painted query label where `hidden` leaves it visible.
            hidden: (B, 2, H/patch, W/patch) bool, True = painted by the network; [:, 0] covers the prompt label and
                [:, 1] the query label. None hides the whole query label and nothing else.

        Returns:
            (B, 3, H, W) painted query label in the units of `image`, not clamped. Visible patches are painted too.

        Raises:
            ValueError: more than one prompt, shapes that do not fit, or a visible query label that is not given.
        """
        return self._paint_labels(image, query_label, hidden)[1]

    def _paint_labels(self, image: Tensor, query_label: Tensor | None, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """The painted labels of prompt and query; see `forward`."""
        _check_slices(image, query_label, hidden, self.config.patch)
        batch, _, height, width = image.shape
        if hidden is None:
            hidden = image.new_zeros(
                (batch, 2, height // self.config.patch, width // self.config.patch), dtype=torch.bool
            )
            hidden[:, 1] = True
        if query_label is None:
            query_label = torch.zeros_like(image[:, 2:5])
        canvas = torch.cat((image[:, 1:2], image[:, 0:1]), dim=2).expand(-1, 3, -1, -1)  # (B, 3, 2H, W)
        label = torch.cat((image[:, 2:5], query_label), dim=2)
        painted = self.paint_canvas(self._normalise(canvas), self._normalise(label), hidden.flatten(1))
        painted = painted * self._std + self._mean
        return painted[:, :, :height], painted[:, :, height:]

    @torch.jit.unused
    def paint_both(self, image: Tensor, label: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Paint the hidden patches of both labels at once, for training.

        Args:
            image: (B, 2, 1, H, W) in [0, 1]: the query, then the prompt image.
            label: (B, 2, 3, H, W), their painted labels.
            hidden: (B, 2, h, w) bool in the same order, True = painted by the network.

        Returns:
            Painted labels (B, 3, H, W) of the query and of the prompt, not clamped.

        Raises:
            ValueError: more than one prompt, or shapes that do not fit.
        """
        if image.shape[1] != 2:
            raise ValueError(f"the vit architecture takes one prompt, got {image.shape[1] - 1}: choose one")
        stacked = torch.cat((image[:, 0], image[:, 1], label[:, 1]), dim=1)
        prompt, query = self._paint_labels(stacked, label[:, 0], hidden.flip(1))
        return query, prompt

    def paint_canvas(self, image: Tensor, label: Tensor, hidden: Tensor) -> Tensor:
        """Paint a whole label canvas in normalised colours, as the reference network does.

        Args:
            image: (B, 3, 2H, W), prompt image above query image, normalised by the ImageNet mean and deviation.
            label: (B, 3, 2H, W), prompt label above query label, normalised alike. Hidden pixels are never looked at
                and may be NaN.
            hidden: (B, N) bool, True = painted by the network; patches of the canvas row by row.

        Returns:
            (B, 3, 2H, W) painted labels of prompt and query, normalised.

        Raises:
            ValueError: shapes do not fit, or `hidden` is not boolean.
        """
        hidden = self._canvas_patches(image, label, hidden)
        tokens = self._embed(image, label, hidden)
        features = []
        for index, block in enumerate(self.blocks):
            tokens = self._run(block, tokens)
            if index + 1 == self.config.merge_after:
                images, labels = tokens.chunk(2)
                tokens = (images + labels) * 0.5
            if index in self.config.feature_blocks:
                features.append(self.norm(tokens))
        return self._decode(torch.cat(features, dim=-1))

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks in the backward pass of training: slower, with far less memory."""
        self._activation_checkpointing = enabled

    def _run(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if self._activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, tokens, use_reentrant=False)
        return block(tokens)

    def _canvas_patches(self, image: Tensor, label: Tensor, hidden: Tensor) -> Tensor:
        """`hidden` as (B, h, w), once all shapes are known to fit."""
        if image.ndim != 4 or image.shape[1] != 3 or image.shape != label.shape:
            raise ValueError(
                f"image and label canvas must both be (B, 3, 2H, W), got {tuple(image.shape)} and {tuple(label.shape)}"
            )
        batch, _, height, width = image.shape
        patch = self.config.patch
        if height % patch or width % patch:
            raise ValueError(f"canvas {height} x {width} must have sides that are multiples of patch {patch}")
        grid = (height // patch, width // patch)
        if hidden.dtype != torch.bool or hidden.shape != (batch, grid[0] * grid[1]):
            raise ValueError(
                f"hidden must be bool and cover {grid[0]} x {grid[1]} patches of each of {batch} "
                f"canvases, got {hidden.dtype} {tuple(hidden.shape)}"
            )
        return hidden.view(batch, *grid)

    def _embed(self, image: Tensor, label: Tensor, hidden: Tensor) -> Tensor:
        """(2B, h, w, D): the tokens of the images, then those of the labels."""
        pixels = hidden.repeat_interleave(self.config.patch, 1).repeat_interleave(self.config.patch, 2)
        # Hidden pixels are replaced before the embedding too: 0 x NaN would reach the gradient of its weights.
        label = torch.where(pixels[:, None], 0.0, label)
        images = self.patch_embed(image) + self.segment_token_x
        labels = torch.where(hidden[..., None], self.mask_token, self.patch_embed(label)) + self.segment_token_y
        return torch.cat((images, labels)) + self._positions(hidden.shape[1], hidden.shape[2])

    def _positions(self, rows: int, columns: int) -> Tensor:
        """(1, h, w, D) absolute positions of the canvas, interpolated from the pre-training grid."""
        side = self.config.position_grid
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if (rows, columns) != (side, side):
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1)

    def _decode(self, features: Tensor) -> Tensor:
        """(B, h, w, 4D) features to (B, 3, 2H, W) normalised colours."""
        batch, rows, columns, _ = features.shape
        patch = self.config.patch
        pixels = self.decoder_embed(features).reshape(batch, rows, columns, patch, patch, -1)  # (B, h, w, p, p, F)
        pixels = pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, columns * patch)
        return self.decoder_pred(pixels)

    def _normalise(self, colours: Tensor) -> Tensor:
        return (colours - self._mean) / self._std

    def _initialise(self) -> None:
        """Truncated normal of deviation 0.02 for linear maps, tokens and positions; relative positions start at 0."""
        for parameter in (self.mask_token, self.segment_token_x, self.segment_token_y, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) pixels to (B, h, w, D) tokens; one linear map of every p x p patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """The tokens of an image whose sides are multiples of the patch."""
        return self.proj(image).permute(0, 2, 3, 1)


class Block(nn.Module):
    """A pre-norm transformer block over a grid of tokens (B, h, w, D)."""

    def __init__(self, width: int, heads: int, hidden_width: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = GridAttention(width, heads, grid)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, hidden_width)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens after attention and MLP, each added to what it was given."""
        tokens = tokens + self._drop(self.attn(self.norm1(tokens)))
        return tokens + self._drop(self.mlp(self.norm2(tokens)))

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: in training the branch of a sample is left out, the others grow to keep the mean."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) < keep
        return torch.where(kept, branch / keep, 0.0)


class GridAttention(nn.Module):
    """Self-attention over a grid, with relative positions of rows and columns added to the logits.

    Args:
        width: D, of all heads together.
        heads: n.
        grid: (h, w) that the relative positions are stored for; other grids interpolate them.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width // heads))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, D): every token as a mean of values over the whole grid."""
        batch, rows, columns, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, rows * columns, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, n, N, d)
        bias = self._position_logits(query.unflatten(2, (rows, columns)))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(attended.transpose(1, 2).reshape(batch, rows, columns, width))

    def _position_logits(self, query: Tensor) -> Tensor:
        """(B, n, N, N) from the unscaled query (B, n, h, w, d): a term of the row offset and one of the column's."""
        rows, columns = query.shape[2:4]
        to_rows = torch.einsum("bnhwd,hkd->bnhwk", query, _relative_table(self.rel_pos_h, rows))
        to_columns = torch.einsum("bnhwd,wkd->bnhwk", query, _relative_table(self.rel_pos_w, columns))
        return (to_rows[..., :, None] + to_columns[..., None, :]).flatten(4, 5).flatten(2, 3)


class MLP(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens, each on its own through both maps."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of every pixel of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, pixels: Tensor) -> Tensor:
        """The normalised (B, C, H, W), scaled and shifted by channel."""
        pixels = pixels.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS).permute(0, 3, 1, 2)


def interpolate_offsets(offsets: Tensor, side: int) -> Tensor:
    """Relative positions (2 * old - 1, d) of a grid side, linearly resized to (2 * side - 1, d)."""
    if len(offsets) == 2 * side - 1:
        return offsets
    return F.interpolate(offsets.T[None], size=2 * side - 1, mode="linear", align_corners=False)[0].T


def _relative_table(offsets: Tensor, side: int) -> Tensor:
    """(side, side, d): the relative position of query index i to key index j, stored by offset i - j + side - 1."""
    index = torch.arange(side, device=offsets.device)
    return interpolate_offsets(offsets, side)[index[:, None] - index[None, :] + side - 1]


def _check_slices(image: Tensor, query_label: Tensor | None, hidden: Tensor | None, patch: int) -> None:
    if image.ndim != 4 or image.shape[1] != 5:
        raise ValueError(
            f"image must be (B, 5, H, W), got {tuple(image.shape)}: the vit architecture takes one prompt "
            "(query, prompt image, three channels of prompt label); choose one prompt for each query"
        )
    batch, _, height, width = image.shape
    if height % patch or width % patch:
        raise ValueError(f"slices of {height} x {width} must have sides that are multiples of patch {patch}: pad them")
    if query_label is not None and query_label.shape != (batch, 3, height, width):
        raise ValueError(f"query_label must be {(batch, 3, height, width)}, got {tuple(query_label.shape)}")
    if hidden is None:
        return
    needed = (batch, 2, height // patch, width // patch)
    if hidden.shape != needed:
        raise ValueError(
            f"hidden must be {needed}, the patches of the prompt then of the query, got {tuple(hidden.shape)}"
        )
    if query_label is None and not bool(hidden[:, 1].all()):
        raise ValueError("hidden leaves part of the query label visible: pass query_label, or hide all of hidden[:, 1]")
