"""MVG compact: a convolutional pyramid whose query reads encoded prompts by attention at four scales.

The network is *segment-causal*: nothing computed for a prompt depends on the query, so a prompt is encoded once
(`encode`) and read by every query slice (`paint`). Three ways of reading, coarse to fine:

* 1/16 and 1/8: softmax attention over all prompt tokens (which place of the prompt looks like this place?);
* 1/8: the attended prompt label patches themselves;
* 1/4, 1/2 and 1: linear attention through a small codebook, which acts as a learned joint histogram (which colour do
  pixels like this one get?) at a cost that does not grow with the number of prompts.

Every reading brings colours of the prompt label with it. The answer is a mixture of these colours, weighted pixel by
pixel from coarse to fine, plus a correction: the network learns *where* a colour belongs, and any palette works.

Shape letters: B batch, S prompts, C channels, H W pixels, h w tokens, N tokens, D width, M codebook slots, G heads.

Source: canvas semantics from Ren et al. 2024, arXiv 2406.05565; linear attention as in Shen et al. 2021,
arXiv 1812.01243.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.network.config import COARSEST, NetworkConfig

COLOURS = 3
HEAD_WIDTH = 32
PATCH_COLOURS = 4 * COLOURS  # a 1/8 token's label patch, as 2 x 2 mean colours


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // 16), channels)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a GELU, pre-normalised, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.conv2(F.gelu(self.conv1(self.norm(x))))


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from elsewhere."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, G, N, D / G)."""
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read split `key` and `value` (B, G, N', D / G) from `x` (B, N, D) -> (B, N, D)."""
        read = F.scaled_dot_product_attention(self.split(self.to_query(x)), key, value)
        return self.out(read.transpose(1, 2).flatten(2))

    def attend_self(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D), every token reading all tokens."""
        return self.forward(x, self.split(self.to_key(x)), self.split(self.to_value(x)))


class CopyingAttention(nn.Module):
    """Cosine attention whose values carry the label patches themselves, so that colours are copied.

    Each head's value is `HEAD_WIDTH - 12` learned numbers beside the token's label patch as 2 x 2 mean colours (12).
    Queries start as keys do, so that a place finds its like before anything is learned.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.learned = HEAD_WIDTH - PATCH_COLOURS
        self.norm_query = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.norm_value = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, self.heads * HEAD_WIDTH)
        self.to_key = nn.Linear(width, self.heads * HEAD_WIDTH)
        self.to_query.load_state_dict(self.to_key.state_dict())
        self.sharpness = nn.Parameter(torch.full((1, self.heads, 1, 1), 12.0))
        self.to_value = nn.Linear(width, self.heads * self.learned)
        self.out = nn.Linear(self.heads * self.learned, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def encode(self, image_tokens: Tensor, label_tokens: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, N, HEAD_WIDTH) from tokens (B, N, D) and label patches (B, N, 12)."""
        value = self._split(self.to_value(self.norm_value(label_tokens)))
        copied = patches[:, None].expand(-1, self.heads, -1, -1).to(value.dtype)
        key = F.normalize(self._split(self.to_key(self.norm_key(image_tokens))), dim=3)
        return key.to(value.dtype), torch.cat([value, copied], dim=3)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D) -> what was read (B, N, D) and the copied label patches (B, 12 G, N)."""
        query = F.normalize(self._split(self.to_query(self.norm_query(x))), dim=3) * self.sharpness
        read = F.scaled_dot_product_attention(query.to(key.dtype), key, value, scale=1.0)
        mixed = self.out(read[..., : self.learned].transpose(1, 2).flatten(2))
        return mixed, read[..., self.learned :].transpose(2, 3).flatten(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, int(width * ratio))
        self.shrink = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.shrink(F.gelu(self.expand(x)))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attention.attend_self(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PaintingBlock(nn.Module):
    """A transformer block that reads the prompt tokens first."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.norm_value = nn.LayerNorm(width)
        self.read = Attention(width, heads)
        self.read.to_query.load_state_dict(self.read.to_key.state_dict())
        self.block = TransformerBlock(width, heads, ratio)

    def encode(self, image_tokens: Tensor, label_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, N, D / G) from prompt tokens (B, N, D)."""
        key = self.read.split(self.read.to_key(self.norm_key(image_tokens)))
        return key, self.read.split(self.read.to_value(self.norm_value(label_tokens)))

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.block(x + self.read(self.norm(x), key, value))


class Codebook(nn.Module):
    """Linear attention: prompt pixels are pooled into slots, query pixels mix the slots.

    A slot's content is the mean value and the mean colour of the pixels assigned to it. Sums and masses are kept apart,
    so the codebooks of several prompts are merged by adding them. Queries start assigned as prompts are.
    """

    def __init__(self, channels: int, value_channels: int, heads: int, slots: int) -> None:
        super().__init__()
        self.heads, self.slots = heads, slots
        self.colours = COLOURS
        self.norm = _norm(channels)
        self.assign_prompt = nn.Conv2d(channels, heads * slots, 1)
        self.assign_query = nn.Conv2d(channels, heads * slots, 1)
        nn.init.normal_(self.assign_prompt.weight, std=2 * channels**-0.5)
        self.assign_query.load_state_dict(self.assign_prompt.state_dict())
        self.to_value = nn.Conv2d(value_channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def _weights(self, logits: Tensor) -> Tensor:
        batch = logits.shape[0]
        return logits.reshape(batch, self.heads, self.slots, -1).softmax(dim=2)  # (B, G, M, N)

    def encode(self, features: Tensor, values: Tensor, colours: Tensor) -> Tensor:
        """Sums and masses (B, G, M, C / G + 4) of prompt pixels.

        Args:
            features: (B, C, h, w), of the image alone.
            values: (B, C', h, w), of image and label.
            colours: painted label (B, 3, h, w).
        """
        weights = self._weights(self.assign_prompt(self.norm(features)))
        pixels = weights.shape[3]
        value = self.to_value(values).flatten(2).reshape(features.shape[0], self.heads, -1, pixels)
        colour = colours.flatten(2)[:, None].expand(-1, self.heads, -1, -1).to(value.dtype)
        mass = torch.ones_like(colour[:, :, :1])
        summed = torch.cat([value, colour, mass], dim=2).to(weights.dtype)
        return torch.einsum("bgmn,bgcn->bgmc", weights, summed).float() / pixels

    def forward(self, x: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Read sums (B, G, M, C / G + 4) from query features (B, C, h, w) -> (B, C, h, w) and colours (B, 3 G, h, w)."""
        batch, _, height, width = x.shape
        weights = self._weights(self.assign_query(self.norm(x)))
        content = sums[..., :-1] / (sums[..., -1:] + 1e-4)
        read = torch.einsum("bgmn,bgmc->bgcn", weights, content.to(weights.dtype))
        colours = read[:, :, -self.colours :].flatten(1, 2).reshape(batch, -1, height, width)
        return self.out(read[:, :, : -self.colours].reshape(x.shape)), colours


class ColourMixer(nn.Module):
    """Mixes candidate colours pixel by pixel, with weights that sum to one."""

    def __init__(self, channels: int, candidates: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, candidates, 1)

    def forward(self, x: Tensor, candidates: Tensor) -> Tensor:
        """Features (B, C, h, w) and candidates (B, 3 K, h, w) -> colours (B, 3, h, w)."""
        weights = self.gate(x).float().softmax(dim=1)
        batch, count, height, width = weights.shape
        colours = candidates.float().reshape(batch, count, -1, height, width)
        return (weights[:, :, None] * colours).sum(dim=1)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start a layer that adds to a residual stream silently."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class ImageEncoder(nn.Module):
    """A pyramid of features of one grey image, finest first, with top-down context at 1/8 and 1/4."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c1, c2, c4, c8, c16 = config.widths
        self.stem = nn.Conv2d(1, c1, 3, padding=1)
        self.down2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.stage2 = ResidualBlock(c2)
        self.down4 = nn.Conv2d(c2, c4, 3, stride=2, padding=1)
        self.stage4 = nn.Sequential(ResidualBlock(c4), ResidualBlock(c4))
        self.down8 = nn.Conv2d(c4, c8, 3, stride=2, padding=1)
        self.stage8 = nn.Sequential(ResidualBlock(c8), ResidualBlock(c8))
        self.down16 = nn.Conv2d(c8, c16, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(1, c16, config.position_grid, config.position_grid) * 0.02)
        self.block1 = TransformerBlock(c16, config.heads, config.mlp_ratio)
        self.block2 = TransformerBlock(c16, config.heads, config.mlp_ratio)
        self.context8 = nn.Conv2d(c16, c8, 1)
        self.context4 = nn.Conv2d(c8, c4, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, H, W) in [0, 1] -> features at 1, 1/2, 1/4, 1/8, 1/16."""
        f1 = F.gelu(self.stem(image * 2 - 1))
        f2 = self.stage2(self.down2(f1))
        f4 = self.stage4(self.down4(f2))
        f8 = self.stage8(self.down8(f4))
        f16 = self.down16(f8)
        position = F.interpolate(self.position, size=f16.shape[2:], mode="bilinear", align_corners=False)
        f16 = f16 + position.to(f16.dtype)
        tokens = self.block2(self.block1(f16.flatten(2).transpose(1, 2)))
        f16 = tokens.transpose(1, 2).reshape(f16.shape)
        f8 = f8 + F.interpolate(self.context8(f16), scale_factor=2.0, mode="nearest")
        f4 = f4 + F.interpolate(self.context4(f8), scale_factor=2.0, mode="nearest")
        return [f1, f2, f4, f8, f16]


class LabelEncoder(nn.Module):
    """Joins a painted label with the features of its image: what the query reads."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        _, _, c4, c8, c16 = config.widths
        self.down2 = nn.Conv2d(COLOURS + 1, 32, 3, stride=2, padding=1)
        self.down4 = nn.Conv2d(32, c4, 3, stride=2, padding=1)
        self.stage4 = ResidualBlock(c4)
        self.down8 = nn.Conv2d(c4, c8, 3, stride=2, padding=1)
        self.stage8 = ResidualBlock(c8)
        self.down16 = nn.Conv2d(c8, c16, 3, stride=2, padding=1)
        self.block16 = TransformerBlock(c16, config.heads, config.mlp_ratio)
        self.visible4 = _zero(nn.Conv2d(c4, c4, 1))
        self.visible8 = _zero(nn.Conv2d(c4, c8, 2, stride=2))
        self.visible16 = _zero(nn.Conv2d(c4, c16, 4, stride=4))

    def embed(self, label: Tensor) -> Tensor:
        """Label with hidden channel (B, 4, H, W) -> (B, C, H / 4, W / 4)."""
        return self.down4(F.gelu(self.down2(label)))

    def forward(self, label: Tensor, features: list[Tensor]) -> list[Tensor]:
        """Label with hidden channel (B, 4, H, W) and image features -> values at 1/4, 1/8, 1/16."""
        v4 = self.stage4(self.embed(label) + features[2])
        v8 = self.stage8(self.down8(v4) + features[3])
        v16 = self.down16(v8) + features[4]
        tokens = self.block16(v16.flatten(2).transpose(1, 2))
        return [v4, v8, tokens.transpose(1, 2).reshape(v16.shape)]

    def visible(self, label: Tensor) -> list[Tensor]:
        """What a query shows of its own label, at 1/4, 1/8, 1/16: a light embedding, constant when all is hidden."""
        embedded = self.embed(label)
        return [self.visible4(embedded), self.visible8(embedded), self.visible16(embedded)]


class CompactPainter(ConfiguredModule):
    """The network that MVG ships: `encode` prompts once, `paint` any number of queries.

    H and W must be multiples of 16 and of the patch. All tensors are floating point, images and colours in [0, 1].
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        c1, c2, c4, c8, c16 = config.widths
        self.patch = config.patch
        self.side_multiple = math.lcm(COARSEST, config.patch)
        self.colours = COLOURS  # TorchScript reads attributes, not globals
        self.image_encoder = ImageEncoder(config)
        self.label_encoder = LabelEncoder(config)
        self.blocks16 = nn.ModuleList(PaintingBlock(c16, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.up8 = _zero(nn.Conv2d(c16, 4 * c8, 1))
        self.read8 = CopyingAttention(c8)
        self.stage8 = ResidualBlock(c8)
        self.up4 = _zero(nn.Conv2d(c8, 4 * c4, 1))
        self.codebook4 = Codebook(c4, c4, 4, config.slots)
        self.colours4 = nn.Conv2d(COLOURS * (self.read8.heads + 4), c4, 1)
        self.stage4 = nn.Sequential(ResidualBlock(c4), ResidualBlock(c4))
        self.mix4 = ColourMixer(c4, self.read8.heads + 4)
        self.up2 = _zero(nn.Conv2d(c4, 4 * c2, 1))
        self.codebook2 = Codebook(c2, c2, 2, config.slots)
        self.colours2 = nn.Conv2d(COLOURS * 3, c2, 1)
        self.stage2 = nn.Sequential(ResidualBlock(c2), ResidualBlock(c2))
        self.mix2 = ColourMixer(c2, 3)
        self.up1 = _zero(nn.Conv2d(c2, 4 * c1, 1))
        self.codebook1 = Codebook(c1, c1, 2, config.slots // 2)
        # What the last layers see: features, what was read, the query itself and four candidates for the colour.
        self.paint1 = nn.Conv2d(2 * c1 + COLOURS * 4, c1, 3, padding=1)
        self.mix1 = ColourMixer(c1, 4)
        self.correct = _zero(nn.Conv2d(c1, COLOURS, 3, padding=1))

    def _hide(self, label: Tensor, hidden: Tensor | None) -> Tensor:
        """Replace hidden patches by zeros, by selection so that not even NaN leaks, and append the hidden channel."""
        batch, _, height, width = label.shape
        if hidden is None:
            return torch.cat([label, torch.zeros_like(label[:, :1])], dim=1)
        pixels = hidden[:, None].repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        pixels = pixels.expand(batch, 1, height, width)
        return torch.cat([torch.where(pixels, torch.zeros_like(label), label), pixels.to(label.dtype)], dim=1)

    def encode(self, image: Tensor, label: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """Encode prompts once.

        Args:
            image: prompt images (B, S, 1, H, W).
            label: painted prompt labels (B, S, 3, H, W).
            hidden: label patches (B, S, h, w) to be ignored, True = hidden; None shows everything.

        Returns:
            Keys and values at 1/16 per block, key, value and copied label patches at 1/8, codebooks at 1/4, 1/2 and 1.

        Raises:
            ValueError: H or W is no multiple of 16 and of the patch.
        """
        _check_sides(image.shape[3], image.shape[4], self.side_multiple)
        batch, prompts = image.shape[:2]
        shown = self._hide(label.flatten(0, 1), None if hidden is None else hidden.flatten(0, 1))
        features = self.image_encoder(image.flatten(0, 1))
        values = self.label_encoder(shown, features)

        encoded: list[Tensor] = []
        image16, label16 = _tokens(features[4], batch), _tokens(values[2], batch)
        for block in self.blocks16:
            key, value = block.encode(image16, label16)
            encoded.append(key)
            encoded.append(value)
        colours = shown[:, : self.colours]
        patches = F.pixel_unshuffle(F.avg_pool2d(colours, 4), 2)
        key, value = self.read8.encode(_tokens(features[3], batch), _tokens(values[1], batch), _tokens(patches, batch))
        encoded.append(key)
        encoded.append(value)
        code4 = self.codebook4.encode(features[2], values[0], F.avg_pool2d(colours, 4))
        code2 = self.codebook2.encode(features[1], features[1], F.avg_pool2d(colours, 2))
        code1 = self.codebook1.encode(features[0], features[0], colours)
        encoded.append(code4.reshape(batch, prompts, code4.shape[1], code4.shape[2], code4.shape[3]).sum(1))
        encoded.append(code2.reshape(batch, prompts, code2.shape[1], code2.shape[2], code2.shape[3]).sum(1))
        encoded.append(code1.reshape(batch, prompts, code1.shape[1], code1.shape[2], code1.shape[3]).sum(1))
        return encoded

    def paint(
        self, image: Tensor, encoded: list[Tensor], label: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Paint the label of each query.

        Args:
            image: queries (B, 1, H, W).
            encoded: what `encode` returned; a batch of 1 serves every query.
            label: what is known of the query labels (B, 3, H, W); None hides everything.
            hidden: label patches (B, h, w) to be painted, True = hidden; None hides everything.

        Returns:
            Painted labels (B, 3, H, W), not clamped.

        Raises:
            ValueError: H or W is no multiple of 16 and of the patch.
        """
        batch, _, height, width = image.shape
        _check_sides(height, width, self.side_multiple)
        if label is None:
            label = torch.zeros(batch, self.colours, height, width, dtype=image.dtype, device=image.device)
        if hidden is None:
            hidden = torch.ones(batch, height // self.patch, width // self.patch, dtype=torch.bool, device=image.device)
        encoded = [e.expand(batch, -1, -1, -1) for e in encoded]
        features = self.image_encoder(image)
        visible = self.label_encoder.visible(self._hide(label, hidden))

        x16 = features[4] + visible[2]
        tokens = _tokens(x16, batch)
        for i, block in enumerate(self.blocks16):
            tokens = block(tokens, encoded[2 * i], encoded[2 * i + 1])
        x16 = tokens.transpose(1, 2).reshape(x16.shape)

        x8 = F.pixel_shuffle(self.up8(x16), 2) + features[3] + visible[1]
        read8, copied = self.read8(_tokens(x8, batch), encoded[-5], encoded[-4])
        x8 = self.stage8(x8 + read8.transpose(1, 2).reshape(x8.shape))
        copied = F.pixel_shuffle(copied.reshape(batch, -1, x8.shape[2], x8.shape[3]), 2)  # (B, 3 G, H / 4, W / 4)

        x4 = F.pixel_shuffle(self.up4(x8), 2) + features[2] + visible[0]
        read4, looked_up = self.codebook4(x4, encoded[-3])
        candidates = torch.cat([copied, looked_up], dim=1)
        x4 = self.stage4(x4 + read4 + self.colours4(candidates))
        colour = self.mix4(x4, candidates)

        x2 = F.pixel_shuffle(self.up2(x4), 2) + features[1]
        read2, looked_up = self.codebook2(x2, encoded[-2])
        candidates = torch.cat([_double(colour).to(looked_up.dtype), looked_up], dim=1)
        x2 = self.stage2(x2 + read2 + self.colours2(candidates))
        colour = self.mix2(x2, candidates)

        x1 = F.pixel_shuffle(self.up1(x2), 2) + features[0]
        read1, looked_up = self.codebook1(x1, encoded[-1])
        grey = image.expand(-1, self.colours, -1, -1).to(looked_up.dtype)
        candidates = torch.cat([_double(colour).to(looked_up.dtype), looked_up, grey], dim=1)
        x1 = F.gelu(self.paint1(torch.cat([x1, read1, candidates], dim=1)))
        return self.mix1(x1, candidates) + self.correct(x1).float()

    def forward(self, image: Tensor, query_label: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """The one-tensor contract of the MONAI bundle.

        Args:
            image: (B, 1 + 4 S, H, W): the query, then for each prompt its image (1) and its painted label (3).
            query_label: what is known of the query labels (B, 3, H, W); None hides everything.
            hidden: query label patches (B, h, w) to be painted, True = hidden; None hides everything.

        Returns:
            Painted labels (B, 3, H, W), not clamped.

        Raises:
            ValueError: another number of channels, or H or W is no multiple of 16 and of the patch.
        """
        batch, channels, height, width = image.shape
        if not torch.jit.is_tracing() and (channels < 5 or channels % 4 != 1):
            raise ValueError(f"image has {channels} channels: needed are 1 for the query and 4 for each prompt")
        prompts = image[:, 1:].reshape(batch, -1, 1 + self.colours, height, width)
        encoded = self.encode(prompts[:, :, :1], prompts[:, :, 1:])
        return self.paint(image[:, :1], encoded, query_label, hidden)


def _check_sides(height: int, width: int, multiple: int) -> None:
    # While tracing, sizes are symbols that a comparison would fix.
    if not torch.jit.is_tracing() and (height % multiple != 0 or width % multiple != 0):
        raise ValueError(f"slices of {height} x {width} pixels do not fit: pad both sides to multiples of {multiple}")


def _tokens(x: Tensor, batch: int) -> Tensor:
    """(B S, C, h, w) -> (B, S h w, C)."""
    return x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1])
