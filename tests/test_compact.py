"""The compact network: prompts are encoded once, hidden labels never leak, and every way of running it agrees.

Run this file as a script to write the frozen state dict anew, when old weights need not load any more.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from miniature import TINY, tiny_painter
from torch import Tensor, nn

from mvg_core.backends import N_CODEBOOKS
from mvg_core.network.checkpoint import EXTRA_KEY
from mvg_core.network.compact import GATE_GAIN, Codebook, ColourMixer, CompactPainter, CopyingAttention
from mvg_core.network.config import preset

GOLDEN = Path(__file__).parent / "golden" / "compact_state_dict.txt"


@pytest.fixture(scope="module")
def painter() -> CompactPainter:
    return tiny_painter()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def stacked(query: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Query (B, 1, H, W), prompts (B, S, 1, H, W) and (B, S, 3, H, W) as the one tensor that `forward` takes."""
    return torch.cat([query, torch.cat([images, labels], dim=2).flatten(1, 2)], dim=1)


def hidden_where(*patches: tuple[int, int], batch: int = 2) -> Tensor:
    hidden = torch.zeros(batch, 2, 2, dtype=torch.bool)
    for row, column in patches:
        hidden[:, row, column] = True
    return hidden


# --- encode once ---


@pytest.mark.parametrize("n_prompts", [1, 2, 3, 4])
def test_painting_from_encoded_prompts_is_forward(painter, n_prompts):
    query, images, labels = random(2, 1, 32, 32), random(2, n_prompts, 1, 32, 32), random(2, n_prompts, 3, 32, 32)
    painted = painter.paint(query, painter.encode(images, labels))
    assert painted.shape == (2, 3, 32, 32)
    assert torch.equal(painter(stacked(query, images, labels)), painted)


def test_prompts_are_encoded_alike_whatever_the_query(painter, monkeypatch):
    seen: list[list[Tensor]] = []
    encode = painter.encode

    def watched(*arguments: Any) -> list[Tensor]:
        seen.append(encode(*arguments))
        return seen[-1]

    monkeypatch.setattr(painter, "encode", watched)
    images, labels = random(2, 2, 1, 32, 32), random(2, 2, 3, 32, 32)
    first = painter(stacked(random(2, 1, 32, 32, seed=5), images, labels))
    second = painter(stacked(random(2, 1, 32, 32, seed=6), images, labels))
    assert not torch.allclose(first, second)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_prompts_do_not_see_each_other(painter):
    images, labels = random(1, 2, 1, 32, 32), random(1, 2, 3, 32, 32)
    both = painter.encode(images, labels)
    alone = [painter.encode(images[:, [s]], labels[:, [s]]) for s in (0, 1)]
    added = 0
    for together, first, second in zip(both, *alone, strict=True):
        is_joined = together.shape[2] == first.shape[2] + second.shape[2]
        joined = torch.cat([first, second], dim=2) if is_joined else first + second
        torch.testing.assert_close(together, joined, rtol=0, atol=1e-4)
        added += not is_joined
    assert added == N_CODEBOOKS


def test_one_encoded_prompt_serves_every_query(painter):
    queries, image, label = random(3, 1, 32, 32), random(1, 1, 1, 32, 32), random(1, 1, 3, 32, 32)
    painted = painter.paint(queries, painter.encode(image, label))
    repeated = painter(stacked(queries, image.expand(3, -1, -1, -1, -1), label.expand(3, -1, -1, -1, -1)))
    torch.testing.assert_close(painted, repeated, rtol=1e-4, atol=1e-5)


def test_queries_of_a_batch_do_not_see_each_other(painter):
    image = random(3, 9, 32, 32)
    torch.testing.assert_close(painter(image)[1:2], painter(image[1:2]))


def test_the_order_of_prompts_does_not_matter_but_each_prompt_does(painter):
    query, images, labels = random(1, 1, 32, 32), random(1, 3, 1, 32, 32), random(1, 3, 3, 32, 32)
    painted = painter(stacked(query, images, labels))
    order = [2, 0, 1]
    torch.testing.assert_close(painter(stacked(query, images[:, order], labels[:, order])), painted)
    for left_out in range(3):
        kept = [s for s in range(3) if s != left_out]
        assert (painter(stacked(query, images[:, kept], labels[:, kept])) - painted).abs().max() > 1e-3


def test_a_prompt_shown_twice_says_what_it_says_once(painter):
    query, image, label = random(1, 1, 32, 32), random(1, 1, 1, 32, 32), random(1, 1, 3, 32, 32)
    once, twice = (painter(stacked(query, image.expand(-1, n, -1, -1, -1), label.expand(-1, n, -1, -1, -1)))
                   for n in (1, 2))
    assert (once - twice).abs().max() < 0.01  # slots with few pixels count a little more


def test_the_prompt_label_changes_the_answer(painter):
    query, image, label = random(1, 1, 32, 32), random(1, 1, 1, 32, 32), random(1, 1, 3, 32, 32)
    change = painter(stacked(query, image, label)) - painter(stacked(query, image, 1 - label))
    assert change.abs().mean() > 1e-2


# --- hidden labels ---


def test_hidden_pixels_of_the_query_label_change_no_bit_and_no_gradient(painter):
    image, label, hidden = random(2, 5, 32, 32), random(2, 3, 32, 32), hidden_where((0, 1), (1, 0))

    def paint() -> tuple[Tensor, list[Tensor]]:
        painter.zero_grad()
        painted = painter(image, label, hidden)
        painted.square().sum().backward()
        return painted, [p.grad.clone() for p in painter.parameters() if p.grad is not None]

    painted, gradients = paint()
    label[:, :, :16, 16:] = math.nan
    label[:, :, 16:, :16] = math.inf
    leaked, leaked_gradients = paint()
    assert torch.equal(leaked, painted)
    assert torch.isfinite(painted).all()
    assert len(gradients) == len(leaked_gradients)
    assert all(torch.equal(a, b) for a, b in zip(gradients, leaked_gradients, strict=True))


def test_hidden_pixels_of_a_prompt_label_change_no_bit(painter):
    query, images, labels = random(2, 1, 32, 32), random(2, 2, 1, 32, 32), random(2, 2, 3, 32, 32)
    hidden = torch.stack([hidden_where((0, 0)), hidden_where((1, 1), (0, 1))], dim=1)
    painted = painter.paint(query, painter.encode(images, labels, hidden))
    labels[:, 0, :, :16, :16] = math.nan
    labels[:, 1, :, :, 16:] = math.nan
    assert torch.equal(painter.paint(query, painter.encode(images, labels, hidden)), painted)


@pytest.mark.parametrize("part", ["query", "prompt"])
def test_visible_pixels_of_a_label_are_seen(painter, part):
    query, images, labels = random(2, 1, 32, 32), random(2, 1, 1, 32, 32), random(2, 1, 3, 32, 32)
    own, hidden = random(2, 3, 32, 32), hidden_where((0, 0), (0, 1), (1, 0))

    def paint() -> Tensor:
        if part == "query":
            return painter.paint(query, painter.encode(images, labels), own, hidden)
        return painter.paint(query, painter.encode(images, labels, hidden[:, None]))

    before = paint()
    changed = own if part == "query" else labels[:, 0]
    changed[:, :, 31, 31] += 1.0
    assert (paint() - before).abs().max() > 1e-4


def test_hidden_patches_of_a_prompt_are_told_from_black_ones(painter):
    image, black = random(2, 1, 1, 32, 32), torch.zeros(2, 1, 3, 32, 32)
    shown, hidden = painter.encode(image, black), painter.encode(image, black, hidden_where((0, 0))[:, None])
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(shown, hidden, strict=True))


def test_none_hides_the_whole_query_label_and_no_prompt_label(painter):
    query, images, labels = random(2, 1, 32, 32), random(2, 2, 1, 32, 32), random(2, 2, 3, 32, 32)
    encoded = painter.encode(images, labels)
    nothing = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    assert all(torch.equal(a, b) for a, b in zip(encoded, painter.encode(images, labels, nothing), strict=True))
    painted = painter.paint(query, encoded)
    for label, hidden in [(random(2, 3, 32, 32), None), (None, ~nothing[:, 0]), (random(2, 3, 32, 32), ~nothing[:, 0])]:
        assert torch.equal(painter.paint(query, encoded, label, hidden), painted)


# --- its parts ---


def test_with_one_token_to_read_its_colours_are_copied():
    torch.manual_seed(0)
    attention = CopyingAttention(64)  # two heads
    colours = random(1, 3, 2, 2)
    key, value = attention.encode(random(1, 64, 1, 1), random(1, 64, 1, 1), F.pixel_unshuffle(colours, 2), 1)
    mixed, copied = attention(random(1, 64, 2, 3), random(1, 64, 2, 3), key, value)
    assert mixed.shape == (1, 64, 2, 3)
    torch.testing.assert_close(copied, colours.repeat(1, 2, 2, 3))


def test_a_place_finds_its_like_before_anything_is_learned():
    torch.manual_seed(0)
    attention = CopyingAttention(32)
    features = torch.randn(1, 32, 2, 4)
    patches = torch.eye(12)[:8].T.reshape(1, 12, 2, 4)  # another colour in every token
    key, value = attention.encode(features, features, patches, 1)
    moved = features.flip(3)
    _, copied = attention(moved, torch.randn(1, 32, 2, 4), key, value)
    found = F.pixel_unshuffle(copied, 2).argmax(1)[0]
    assert found.tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]


def test_heads_look_everywhere_or_near_the_same_spot():
    # Everything looks alike, so places alone decide: two tokens at x = -0.5 and 0.5, a distance of 1 apart.
    torch.manual_seed(0)
    attention = CopyingAttention(64)
    flat = torch.ones(1, 64, 1, 2)
    patches = torch.tensor([0.0, 1.0]).expand(1, 12, 1, 2)
    key, value = attention.encode(flat, flat, patches, 1)
    _, copied = attention(flat, flat, key, value)
    for head, precision in enumerate((0.05, 3.0)):
        away = math.exp(-0.5 * precision)
        share = away / (1 + away)  # of the other token
        expected = torch.tensor([share, share, 1 - share, 1 - share]).expand(3, 2, 4)
        torch.testing.assert_close(copied[0, 3 * head : 3 * head + 3], expected, rtol=0, atol=1e-5)


def test_codebook_gives_every_pixel_the_mean_colour_of_its_slot():
    # Assignment by the sign of the one feature: bright pixels to slot 0, dark ones to slot 1, with certainty.
    codebook = Codebook(1, 1, heads=1, slots=2)
    codebook.norm = nn.Identity()  # type: ignore[assignment]
    codebook.assign.weight.data = torch.tensor([50.0, -50.0]).view(2, 1, 1, 1)
    cast(Tensor, codebook.assign.bias).data.zero_()
    features = torch.tensor([1.0, 1.0, -1.0, -1.0]).view(1, 1, 1, 4)
    colours = torch.tensor([[0.2, 0.4, 1.0, 1.0], [0.0, 0.0, 0.5, 0.7], [1.0, 1.0, 0.0, 0.0]]).view(1, 3, 1, 4)
    sums = codebook.encode(features, features, colours)
    torch.testing.assert_close(sums[0, 0, :, -1], torch.tensor([0.5, 0.5]))  # half of the pixels each
    torch.testing.assert_close(sums[0, 0, 0, 1:4], torch.tensor([0.3, 0.0, 1.0]) / 2)
    _, read = codebook(-features, torch.zeros_like(features), sums)
    slots = torch.tensor([[1.0, 0.6, 0.0], [0.3, 0.0, 1.0]]) * 0.5 / 0.5001  # dark, bright
    torch.testing.assert_close(read[0, :, 0].T, slots[[0, 0, 1, 1]])


def test_mixed_colours_are_weighted_by_the_gate():
    mixer = ColourMixer(1, 2)
    mixer.gate.weight.data.zero_()
    cast(Tensor, mixer.gate.bias).data = torch.tensor([0.0, math.log(3.0) / GATE_GAIN])  # weights 1/4 and 3/4
    candidates = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0]).view(1, 6, 1, 1)
    assert mixer(torch.ones(1, 1, 1, 1), candidates).flatten().tolist() == pytest.approx([0.25, 0.0, 0.75])


def test_before_training_colours_are_mixtures_of_what_was_shown():
    torch.manual_seed(0)
    network = CompactPainter(TINY)
    image = 0.5 * random(2, 9, 32, 32)
    image[:, [2, 6]] = 0.0  # no prompt shows any red ...
    painted = network(image)
    assert painted.min() >= 0.0
    assert painted.max() <= 0.5
    # ... so red comes from the grey query alone, which is one candidate of several.
    assert painted[:, 0].mean() < painted[:, 1].mean() - 0.1


def test_every_parameter_gets_a_gradient():
    network = tiny_painter()
    hidden = hidden_where((0, 1))
    network(random(2, 9, 32, 32), random(2, 3, 32, 32), hidden).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


# --- sizes ---


@pytest.mark.parametrize(("height", "width"), [(48, 48), (64, 32), (16, 80)])
def test_other_sizes_than_the_native_one_are_painted(painter, height, width):
    assert painter(random(1, 9, height, width)).shape == (1, 3, height, width)


SIDES = [(24, 32), (32, 40), (8, 8)]


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_sides_that_do_not_fit_are_refused(painter, height, width):
    message = f"slices of {height} x {width} pixels do not fit: pad both sides to multiples of 16"
    with pytest.raises(ValueError, match=message):
        painter(random(1, 5, height, width))
    with pytest.raises(ValueError, match=message):
        painter.encode(random(1, 1, 1, height, width), random(1, 1, 3, height, width))
    with pytest.raises(ValueError, match=message):
        painter.paint(random(1, 1, height, width), painter.encode(random(1, 1, 1, 32, 32), random(1, 1, 3, 32, 32)))


def test_sides_must_be_multiples_of_a_larger_patch_too():
    network = tiny_painter(dataclasses.replace(TINY, patch=32))
    assert network(random(1, 5, 32, 64)).shape == (1, 3, 32, 64)
    with pytest.raises(ValueError, match="multiples of 32"):
        network(random(1, 5, 48, 32))


def test_smaller_patches_hide_smaller_squares():
    network = tiny_painter(dataclasses.replace(TINY, patch=8))
    label, hidden = random(1, 3, 32, 32), torch.zeros(1, 4, 4, dtype=torch.bool)
    hidden[:, 1, 2] = True
    before = network(random(1, 5, 32, 32), label, hidden)
    label[:, :, 8:16, 16:24] = math.nan
    assert torch.equal(network(random(1, 5, 32, 32), label, hidden), before)


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 8])
def test_channels_that_are_no_prompts_are_refused(painter, channels):
    with pytest.raises(ValueError, match=f"image has {channels} channels: needed are 1 for the query and 4 for each"):
        painter(random(1, channels, 32, 32))


# --- other ways of running it ---


def test_scripted_network_paints_the_same_and_refuses_the_same(painter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(painter)
    for image in (random(2, 5, 32, 32), random(1, 13, 48, 32)):
        torch.testing.assert_close(scripted(image), painter(image), rtol=0, atol=1e-6)
    label, hidden = random(2, 3, 32, 32), hidden_where((1, 1))
    given = (random(2, 9, 32, 32), label, hidden)
    torch.testing.assert_close(scripted(*given), painter(*given), rtol=0, atol=1e-6)
    with pytest.raises(torch.jit.Error, match="multiples of"):  # type: ignore[attr-defined]
        scripted(random(1, 5, 24, 32))


def _quietly(record: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        # Sizes are traced as symbols; the tests run sizes that were not traced.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        return record()


FREE = [(1, 1, 32, 32), (3, 2, 32, 32), (1, 4, 48, 64)]
"""Queries, prompts, height, width; none of them the traced 2, 2, 32, 32."""


def test_traced_network_is_free_in_batch_prompts_and_size(painter):
    traced = _quietly(lambda: torch.jit.trace(painter, (random(2, 9, 32, 32),), check_trace=False))
    for batch, prompts, height, width in FREE:
        image = random(batch, 1 + 4 * prompts, height, width)
        torch.testing.assert_close(traced(image), painter(image), rtol=0, atol=1e-5)


def test_exported_network_is_free_in_batch_prompts_and_size(painter, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path / "painter.onnx"
    axes = {0: "queries", 1: "channels", 2: "height", 3: "width"}
    # The older exporter: the newer one fixes the number of prompts, and needs ten times as long.
    _quietly(lambda: torch.onnx.export(painter, (random(2, 9, 32, 32),), path, input_names=["image"], opset_version=17,
                                       output_names=["painted"], dynamic_axes={"image": axes}, dynamo=False))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, prompts, height, width in FREE:
        image = random(batch, 1 + 4 * prompts, height, width)
        (painted,) = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(painted), painter(image), rtol=0, atol=1e-4)


# --- what ships ---


def test_the_shipped_network_is_small():
    sizes = {name: parameter.numel() for name, parameter in CompactPainter(preset("mvg_compact")).named_parameters()}
    maps = sum(size for name, size in sizes.items() if name.startswith("maps."))
    # A slice is answered by one or the other.
    assert sum(sizes.values()) - maps <= 6_000_000
    assert maps <= 1_500_000


def names_and_shapes() -> list[str]:
    state = CompactPainter(preset("mvg_compact")).state_dict()
    del state[EXTRA_KEY]  # its length is that of the card
    return [f"{name} {'x'.join(map(str, value.shape))}" for name, value in state.items()]


def test_state_dict_of_the_shipped_network_is_frozen():
    assert names_and_shapes() == GOLDEN.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(names_and_shapes()) + "\n", encoding="utf-8")
