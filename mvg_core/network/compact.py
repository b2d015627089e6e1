"""MVG compact: a convolutional pyramid whose query reads encoded prompts by attention at four scales.

The network is *segment-causal*: nothing computed for a prompt depends on the query, so a prompt is encoded once
(`encode`) and read by every query slice (`paint`). Three ways of reading, coarse to fine:

* 1/16 and 1/8: softmax attention over all prompt tokens (which place of the prompt looks like this place?);
* 1/8: the attended prompt label patches themselves;
* 1/4, 1/2 and 1: linear attention through a small codebook, which acts as a learned joint histogram (which colour do
  pixels like this one get?) at a cost that does not grow with the number of prompts.

Every reading brings colours of the prompt label with it. The answer is a mixture of these colours and of the query's
own grey, weighted pixel by pixel from coarse to fine, plus a correction at each scale: the network learns *where* a
colour belongs, any palette works, and an image is smoothed by taking its grey from a coarser scale.

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
from mvg_core.network.maps import FeatureMaps

COLOURS = 3
GATE_GAIN = 4.0  # lets a pixel decide for one colour within few steps of training
DESCRIPTORS = 3  # of a prompt: share of hidden pixels, mean colourfulness, mean difference from the image
LABEL_CHANNELS = COLOURS + 3  # colours, hidden, how colourful, how different from the image
HEAD_WIDTH = 32
PLACE_NUMBERS = 3  # of a key: y, x and their squared distance from the centre
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

    A head compares content (cosine) and place: a Gaussian of the distance, from none in the first head to narrow in the
    last, so that some heads look everywhere and some near the same spot. Each head's value is `HEAD_WIDTH - 12` learned
    numbers beside the token's label patch as 2 x 2 mean colours (12). A query token is made of the image alone, as keys
    are, so that a place finds its like before anything is learned; what the query has read so far is added to it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.learned = HEAD_WIDTH - PATCH_COLOURS
        self.norm_context = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.norm_value = nn.LayerNorm(width)
        content = HEAD_WIDTH - PLACE_NUMBERS
        self.to_key = nn.Linear(width, self.heads * content)
        self.to_query = nn.Linear(width, self.heads * content)
        nn.init.zeros_(self.to_query.weight)
        self.log_sharpness = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(12.0)))
        # 1 / variance of the Gaussian, image side = 2: none, then 3 and more.
        precision = torch.tensor([0.05] + [3.0 * 4.0**head for head in range(self.heads - 1)])
        self.log_precision = nn.Parameter(precision.log().reshape(1, -1, 1, 1))
        self.to_value = nn.Linear(width, self.heads * self.learned)
        self.out = nn.Linear(self.heads * self.learned, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def _places(self, height: int, width: int, like: Tensor) -> Tensor:
        """Token centres (1, 1, N, 2) in [-1, 1]."""
        y = (torch.arange(height, device=like.device) + 0.5) / height * 2 - 1
        x = (torch.arange(width, device=like.device) + 0.5) / width * 2 - 1
        place = torch.stack([y[:, None].expand(height, width), x[None, :].expand(height, width)], dim=2)
        return place.reshape(1, 1, height * width, 2)

    def encode(self, image: Tensor, label: Tensor, patches: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, S N, HEAD_WIDTH).

        Args:
            image: features of the prompt images (B S, D, h, w).
            label: features of images and labels (B S, D, h, w).
            patches: painted label patches (B S, 12, h, w).
            batch: B.
        """
        place = self._places(image.shape[2], image.shape[3], image)
        prompts = image.shape[0] // batch
        place = torch.cat([place, (place * place).sum(3, keepdim=True)], dim=3).repeat(1, 1, prompts, 1)
        value = self._split(self.to_value(self.norm_value(_tokens(label, batch))))
        copied = _tokens(patches, batch)[:, None].expand(-1, self.heads, -1, -1).to(value.dtype)
        key = F.normalize(self._split(self.to_key(self.norm_key(_tokens(image, batch)))), dim=3)
        key = torch.cat([key, place.expand(batch, self.heads, -1, -1).to(key.dtype)], dim=3)
        return key.to(value.dtype), torch.cat([value, copied], dim=3)

    def forward(self, image: Tensor, context: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What was read, and the copied label patches.

        Args:
            image: features of the query image alone (B, D, h, w).
            context: what the query knows so far (B, D, h, w).
            key: from `encode`.
            value: from `encode`.

        Returns:
            (B, D, h, w) and colours (B, 3 G, 2 h, 2 w).
        """
        batch, _, height, width = image.shape
        query = self.to_key(self.norm_key(_tokens(image, batch)))
        query = query + self.to_query(self.norm_context(_tokens(context, batch)))
        query = F.normalize(self._split(query), dim=3) * self.log_sharpness.exp()
        # -|p - q|^2 / 2 s^2 without the term that is the same for all keys.
        place = self._places(height, width, image) * self.log_precision.exp()
        far = (-0.5 * self.log_precision.exp()).expand(-1, -1, height * width, -1)
        place = torch.cat([place, far], dim=3).expand(batch, -1, -1, -1)
        query = torch.cat([query, place.to(query.dtype)], dim=3).to(key.dtype)
        read = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        mixed = self.out(read[..., : self.learned].transpose(1, 2).flatten(2)).transpose(1, 2)
        copied = read[..., self.learned :].transpose(2, 3).flatten(1, 2).reshape(batch, -1, height, width)
        return mixed.reshape(batch, -1, height, width), F.pixel_shuffle(copied, 2)


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
    so the codebooks of several prompts are merged by adding them. Query pixels are assigned as prompt pixels are, by
    the image alone; what the query has read so far is added to it.
    """

    def __init__(self, channels: int, value_channels: int, heads: int, slots: int) -> None:
        super().__init__()
        self.heads, self.slots = heads, slots
        self.colours = COLOURS
        self.norm = _norm(channels)
        self.norm_context = _norm(channels)
        self.assign = nn.Conv2d(channels, heads * slots, 1)
        nn.init.normal_(self.assign.weight, std=2 * channels**-0.5)
        self.assign_context = _zero(nn.Conv2d(channels, heads * slots, 1))
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
        weights = self._weights(self.assign(self.norm(features)))
        pixels = weights.shape[3]
        value = self.to_value(values).flatten(2).reshape(features.shape[0], self.heads, -1, pixels)
        colour = colours.flatten(2)[:, None].expand(-1, self.heads, -1, -1).to(value.dtype)
        mass = torch.ones_like(colour[:, :, :1])
        summed = torch.cat([value, colour, mass], dim=2).to(weights.dtype)
        return torch.einsum("bgmn,bgcn->bgmc", weights, summed).float() / pixels

    def forward(self, features: Tensor, context: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Read sums (B, G, M, C / G + 4) -> (B, C, h, w) and colours (B, 3 G, h, w).

        Args:
            features: of the query image alone (B, C, h, w).
            context: what the query knows so far (B, C, h, w).
            sums: what `encode` returned.
        """
        batch, _, height, width = features.shape
        weights = self._weights(self.assign(self.norm(features)) + self.assign_context(self.norm_context(context)))
        content = sums[..., :-1] / (sums[..., -1:] + 1e-4)
        read = torch.einsum("bgmn,bgmc->bgcn", weights, content.to(weights.dtype))
        colours = read[:, :, -self.colours :].flatten(1, 2).reshape(batch, -1, height, width)
        return self.out(read[:, :, : -self.colours].reshape(features.shape)), colours


class ColourMixer(nn.Module):
    """Mixes candidate colours pixel by pixel, with weights that sum to one, and adds a correction."""

    def __init__(self, channels: int, candidates: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, candidates, 1)
        self.correct = _zero(nn.Conv2d(channels, COLOURS, 1))
        self.gain = GATE_GAIN

    def forward(self, x: Tensor, candidates: Tensor) -> Tensor:
        """Features (B, C, h, w) and candidates (B, 3 K, h, w) -> colours (B, 3, h, w)."""
        weights = (self.gate(x).float() * self.gain).softmax(dim=1)
        batch, count, height, width = weights.shape
        colours = candidates.float().reshape(batch, count, -1, height, width)
        return (weights[:, :, None] * colours).sum(dim=1) + self.correct(x).float()


class Modulation(nn.Module):
    """Scales and shifts features by what the prompts as a whole say about the task."""

    def __init__(self, task_width: int, channels: int) -> None:
        super().__init__()
        self.to_scale = nn.Linear(task_width, channels)
        self.to_shift = nn.Linear(task_width, channels)
        nn.init.zeros_(self.to_scale.weight)
        nn.init.zeros_(self.to_shift.weight)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """Features (B, C, h, w) and task (B, D) -> (B, C, h, w)."""
        return x * (1 + self.to_scale(task))[:, :, None, None] + self.to_shift(task)[:, :, None, None]


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
        self.down2 = nn.Conv2d(LABEL_CHANNELS, 32, 3, stride=2, padding=1)
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
        """Described label (B, 6, H, W) -> (B, C, H / 4, W / 4)."""
        return self.down4(F.gelu(self.down2(label)))

    def forward(self, label: Tensor, features: list[Tensor]) -> list[Tensor]:
        """Described label (B, 6, H, W) and image features -> values at 1/4, 1/8, 1/16."""
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
        self.norm_task = nn.LayerNorm(c16)
        self.task = nn.Linear(c16 + DESCRIPTORS, c8)
        self.modulate8 = Modulation(c8, c8)
        self.modulate4 = Modulation(c8, c4)
        self.modulate2 = Modulation(c8, c2)
        self.modulate1 = Modulation(c8, c1)
        self.up8 = nn.Conv2d(c16, 4 * c8, 1)
        self.read8 = CopyingAttention(c8)
        self.stage8 = ResidualBlock(c8)
        self.up4 = nn.Conv2d(c8, 4 * c4, 1)
        self.codebook4 = Codebook(c4, c4, 4, config.slots)
        self.colours4 = nn.Conv2d(COLOURS * (self.read8.heads + 5), c4, 1)
        self.stage4 = nn.Sequential(ResidualBlock(c4), ResidualBlock(c4))
        self.mix4 = ColourMixer(c4, self.read8.heads + 5)
        self.up2 = nn.Conv2d(c4, 4 * c2, 1)
        self.codebook2 = Codebook(c2, c2, 2, config.slots)
        self.colours2 = nn.Conv2d(COLOURS * 4, c2, 1)
        self.stage2 = nn.Sequential(ResidualBlock(c2), ResidualBlock(c2))
        self.mix2 = ColourMixer(c2, 4)
        self.up1 = nn.Conv2d(c2, 4 * c1, 1)
        self.codebook1 = Codebook(c1, c1, 2, config.slots // 2)
        # What the last layers see: features, what was read, the query itself and four candidates for the colour.
        self.paint1 = nn.Conv2d(2 * c1 + COLOURS * 4, c1, 3, padding=1)
        self.refine1 = _zero(nn.Conv2d(c1, c1, 3, padding=1))
        self.mix1 = ColourMixer(c1, 4)
        if config.maps:
            self.maps = FeatureMaps(config.maps, config.maps_widths)

    def _shown(self, image: Tensor, label: Tensor, hidden: Tensor | None) -> Tensor:
        """What the network is told of a label (B, 6, H, W).

        Hidden patches become zeros, by selection so that not even NaN leaks. Beside the colours stand the hidden flag,
        how colourful a pixel is and how it differs from its image: these tell a label map from an image at a glance.
        """
        batch, _, height, width = label.shape
        if hidden is None:
            pixels = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=label.device).expand(batch, 1, height, width)
        else:
            pixels = hidden[:, None].repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        colours = torch.where(pixels, torch.zeros_like(label), label)
        colourful = colours.amax(dim=1, keepdim=True) - colours.amin(dim=1, keepdim=True)
        differs = torch.where(pixels, torch.zeros_like(image), (colours.mean(dim=1, keepdim=True) - image).abs())
        return torch.cat([colours, pixels.to(label.dtype), colourful, differs], dim=1)

    def encode(self, image: Tensor, label: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """Encode prompts once.

        Args:
            image: prompt images (B, S, 1, H, W).
            label: painted prompt labels (B, S, 3, H, W).
            hidden: label patches (B, S, h, w) to be ignored, True = hidden; None shows everything.

        Returns:
            Keys and values at 1/16 per block, key and value at 1/8, codebooks at 1/4, 1/2 and 1, and the sum of the
            prompts' summaries. Tokens of several prompts are joined; codebooks and summaries are added.

        Raises:
            ValueError: H or W is no multiple of 16 and of the patch.
        """
        _check_sides(image.shape[3], image.shape[4], self.side_multiple)
        batch, prompts = image.shape[:2]
        shown = self._shown(image.flatten(0, 1), label.flatten(0, 1), None if hidden is None else hidden.flatten(0, 1))
        features = self.image_encoder(image.flatten(0, 1))
        values = self.label_encoder(shown, features)

        encoded: list[Tensor] = []
        image16, label16 = _tokens(features[4], batch), _tokens(values[2], batch)
        for block in self.blocks16:
            key, value = block.encode(image16, label16)  # type: ignore[operator]
            encoded.append(key)
            encoded.append(value)
        colours = shown[:, : self.colours]
        patches = F.pixel_unshuffle(F.avg_pool2d(colours, 4), 2)
        key, value = self.read8.encode(features[3], values[1], patches, batch)
        encoded.append(key)
        encoded.append(value)
        code4 = self.codebook4.encode(features[2], values[0], F.avg_pool2d(colours, 4))
        code2 = self.codebook2.encode(features[1], features[1], F.avg_pool2d(colours, 2))
        code1 = self.codebook1.encode(features[0], features[0], colours)
        encoded.append(code4.reshape(batch, prompts, code4.shape[1], code4.shape[2], code4.shape[3]).sum(1))
        encoded.append(code2.reshape(batch, prompts, code2.shape[1], code2.shape[2], code2.shape[3]).sum(1))
        encoded.append(code1.reshape(batch, prompts, code1.shape[1], code1.shape[2], code1.shape[3]).sum(1))
        described = shown[:, self.colours :].mean((2, 3)).reshape(batch, prompts, -1).sum(1)
        summary = torch.cat([label16.float().mean(1) * prompts, described.float()], dim=1)[:, None, None]
        # Not F.pad: a traced graph would keep the number of prompts that it was traced with.
        encoded.append(torch.cat([summary, torch.ones_like(summary[..., :1]) * prompts], dim=3))
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
        visible = self.label_encoder.visible(self._shown(image, label, hidden))

        summary = (encoded[-1][..., :-1] / encoded[-1][..., -1:])[:, 0, 0]
        # The descriptors are small numbers between 0 and 1: made large enough to be noticed.
        summary = torch.cat([self.norm_task(summary[:, : self.norm_task.weight.shape[0]]),
                             summary[:, self.norm_task.weight.shape[0] :] * 8], dim=1)
        task = F.gelu(self.task(summary))  # (B, D)

        x16 = features[4] + visible[2]
        tokens = _tokens(x16, batch)
        for i, block in enumerate(self.blocks16):
            tokens = block(tokens, encoded[2 * i], encoded[2 * i + 1])
        x16 = tokens.transpose(1, 2).reshape(x16.shape)

        x8 = F.pixel_shuffle(self.up8(x16), 2) + features[3] + visible[1]
        read8, copied = self.read8(features[3], x8, encoded[-6], encoded[-5])
        x8 = self.stage8(self.modulate8(x8 + read8, task))

        x4 = F.pixel_shuffle(self.up4(x8), 2) + features[2] + visible[0]
        read4, looked_up = self.codebook4(features[2], x4, encoded[-4])
        grey = image.expand(-1, self.colours, -1, -1).to(looked_up.dtype)
        candidates = torch.cat([copied, looked_up, F.avg_pool2d(grey, 4)], dim=1)
        x4 = self.stage4(self.modulate4(x4 + read4 + self.colours4(candidates), task))
        colour = self.mix4(x4, candidates)

        x2 = F.pixel_shuffle(self.up2(x4), 2) + features[1]
        read2, looked_up = self.codebook2(features[1], x2, encoded[-3])
        candidates = torch.cat([_double(colour).to(looked_up.dtype), looked_up, F.avg_pool2d(grey, 2)], dim=1)
        x2 = self.stage2(self.modulate2(x2 + read2 + self.colours2(candidates), task))
        colour = self.mix2(x2, candidates)

        x1 = F.pixel_shuffle(self.up1(x2), 2) + features[0]
        read1, looked_up = self.codebook1(features[0], x1, encoded[-2])
        candidates = torch.cat([_double(colour).to(looked_up.dtype), looked_up, grey], dim=1)
        x1 = F.gelu(self.modulate1(self.paint1(torch.cat([x1, read1, candidates], dim=1)), task))
        x1 = x1 + F.gelu(self.refine1(x1))
        return self.mix1(x1, candidates)

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
        if not _is_tracing() and (channels < 5 or channels % 4 != 1):
            raise ValueError(f"image has {channels} channels: needed are 1 for the query and 4 for each prompt")
        prompts = image[:, 1:].reshape(batch, -1, 1 + self.colours, height, width)
        encoded = self.encode(prompts[:, :, :1], prompts[:, :, 1:])
        return self.paint(image[:, :1], encoded, query_label, hidden)


def _is_tracing() -> bool:
    """While a graph is recorded, sizes are symbols, which a comparison would fix."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


def _check_sides(height: int, width: int, multiple: int) -> None:
    if not _is_tracing() and (height % multiple != 0 or width % multiple != 0):
        raise ValueError(f"slices of {height} x {width} pixels do not fit: pad both sides to multiples of {multiple}")


def _tokens(x: Tensor, batch: int) -> Tensor:
    """(B S, C, h, w) -> (B, S h w, C)."""
    return x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1])
