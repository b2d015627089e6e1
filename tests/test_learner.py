"""One step of learning: precisions, several draws, layer rates, memory and compilation."""

from __future__ import annotations

import dataclasses
import functools
import warnings

import pytest
import torch
from miniature import TINY, tiny_bank, tiny_painter
from test_distributed import COMPACT, TINY_VIT, VIT
from tiny import tiny_network
from torch import Tensor, nn

from mvg_core.network.vit import VisionTransformerPainter
from mvg_core.training import compilation, learner, objective
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import EpisodeConfig, Episodes, EpisodeSampler
from mvg_core.training.learner import Learner
from mvg_core.training.objective import HybridConfig, Totals, draw_hidden, hybrid_loss, measure
from mvg_core.training.optimizer import parameter_groups, set_learning_rate, vit_layer

CPU = torch.device("cpu")
ALONE = dataclasses.replace(VIT, parallel="ddp", layer_decay=1.0, activation_checkpointing=False)


@pytest.fixture(scope="module")
def draws() -> list[Episodes]:
    """Batches with segmentations, with image-to-image tasks, and with both."""
    batches = []
    for families in ({"real": 1.0}, {"restoration": 1.0}, {"real": 1.0, "restoration": 1.0}):
        sampler = EpisodeSampler(tiny_bank(), EpisodeConfig(size=32, families=families), torch.Generator())
        sampler.reseed(1)
        batches.append(sampler.sample(3, n_prompts=1))
    assert [(batch.kinds == 0).float().mean().item() for batch in batches] == pytest.approx([1, 0, 2 / 3])
    return batches


# --- several draws ---


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("architecture", ["compact", "vit"])
def test_the_costs_of_draws_add_up_to_that_of_all_of_them_together(draws, architecture, share):
    network = tiny_network(TINY_VIT) if architecture == "vit" else tiny_painter()
    config = HybridConfig(masked_share=dict.fromkeys(("denoising", "inpainting", "synthesis", "restoration"), share))
    generator = torch.Generator().manual_seed(2)
    patches = 32 // network.config.patch
    batches = [(batch, *draw_hidden(batch.kinds, 2, patches, config, generator)) for batch in draws]
    joined = Episodes.cat(draws), torch.cat([batch[1] for batch in batches]), torch.cat([b[2] for b in batches])
    assert bool(joined[2].any()) == (share > 0)
    whole = hybrid_loss(network, *joined, config)  # type: ignore[arg-type]
    totals = torch.stack([measure(*batch, config) for batch in batches]).sum(0)
    torch.testing.assert_close(totals, measure(*joined, config), rtol=1e-6, atol=0)
    parts = [hybrid_loss(network, *batch, config, Totals(*totals)) for batch in batches]  # type: ignore[arg-type]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-6, atol=1e-6)


def test_several_draws_move_the_weights_as_one_larger_batch_does(draws):
    config = dataclasses.replace(COMPACT, objective=HybridConfig(masked_share={}), warm_up=0, learning_rate=1e-3)
    one = Learner(tiny_painter(), dataclasses.replace(config, accumulate=1), CPU)
    three = Learner(tiny_painter(), dataclasses.replace(config, accumulate=3), CPU)
    costs = one.learn([Episodes.cat(draws)], 0), three.learn(draws, 0)
    assert costs[1] == pytest.approx(costs[0], rel=1e-6)
    # The gradient, not what AdamW makes of it: that divides by its size, also where it is noise.
    for first, second in zip(one.painter.parameters(), three.painter.parameters(), strict=True):
        assert first.grad is not None
        assert second.grad is not None
        torch.testing.assert_close(second.grad, first.grad, rtol=1e-5, atol=5e-6)


def test_a_step_needs_as_many_draws_as_configured(draws):
    with pytest.raises(ValueError, match="zip"):
        Learner(tiny_painter(), dataclasses.replace(COMPACT, accumulate=2), CPU).learn(draws[:1], 0)


# --- precision ---


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_about_the_same(draws, precision):
    plain = Learner(tiny_painter(), COMPACT, CPU)
    half = Learner(tiny_painter(), dataclasses.replace(COMPACT, precision=precision), CPU)
    assert half.scaler.is_enabled() == (precision == "fp16")
    half.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=precision == "fp16")  # found soon, not at once
    for step in range(2):
        expected, found = plain.learn(draws[2:], step), half.learn(draws[2:], step)
        assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
        assert found["loss"] != expected["loss"]
        assert found["norm"] == pytest.approx(expected["norm"], rel=0.2)  # the scale is taken out again
    assert all(parameter.dtype == torch.float32 for parameter in half.painter.parameters())


def test_a_gradient_that_overflows_lowers_the_scale_and_moves_nothing(draws, monkeypatch):
    training = Learner(tiny_painter(), dataclasses.replace(COMPACT, precision="fp16"), CPU)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = [parameter.detach().clone() for parameter in training.painter.parameters()]
    honest = objective.hybrid_loss

    def too_large(*arguments: object) -> dict[str, Tensor]:
        parts = honest(*arguments)  # type: ignore[arg-type]
        return {**parts, "loss": parts["loss"] * 1e38}

    monkeypatch.setattr(objective, "hybrid_loss", too_large)
    assert training.learn(draws[2:], 0)["skipped"] == 1.0
    assert training.scaler.get_scale() == 512
    assert all(torch.equal(a, b) for a, b in zip(before, training.painter.parameters(), strict=True))
    monkeypatch.setattr(objective, "hybrid_loss", honest)
    assert training.learn(draws[2:], 1)["skipped"] == 0.0
    again = Learner(tiny_painter(), dataclasses.replace(COMPACT, precision="fp16"), CPU)
    again.load_state_dict(training.state_dict())
    assert again.scaler.get_scale() == 512


# --- rates of layers ---


def test_layers_of_a_vision_transformer_are_numbered_from_the_embeddings():
    names = {"pos_embed": 0, "patch_embed.proj.weight": 0, "mask_token": 0, "segment_token_x": 0,
             "blocks.0.norm1.bias": 1, "blocks.11.attn.qkv.weight": 12, "norm.weight": 25, "decoder_embed.weight": 25,
             "decoder_pred.0.bias": 25}
    assert {name: vit_layer(name, 24) for name in names} == names


def test_earlier_layers_learn_more_slowly():
    network = tiny_network(TINY_VIT)  # 3 blocks: layers 0 to 4
    groups = parameter_groups(network, 0.05, layer_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(optimizer, 2.0)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    found = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    assert found["patch_embed.proj.weight"] == (2.0 * 0.5**4, 0.05)
    assert found["pos_embed"] == found["mask_token"] == found["patch_embed.proj.bias"] == (2.0 * 0.5**4, 0.0)
    assert found["blocks.0.attn.rel_pos_h"] == (2.0 * 0.5**3, 0.0)
    assert found["blocks.2.mlp.fc1.weight"] == (2.0 * 0.5, 0.05)
    assert found["decoder_embed.weight"] == (2.0, 0.05)
    assert found["norm.weight"] == (2.0, 0.0)


def test_frozen_weights_are_left_out():
    network = tiny_painter()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("mix1.correct" in name)
    groups = parameter_groups(network, 0.05)
    assert sum(len(group["params"]) for group in groups) == 2


# --- what a network cannot do ---


@pytest.mark.parametrize(("architecture", "changes", "message"), [
    ("compact", {"layer_decay": 0.8}, "layer_decay 0.8 needs layers in a row, which only architecture 'vit'"),
    ("compact", {"activation_checkpointing": True}, "activation_checkpointing needs transformer blocks"),
    ("vit", {"episodes": EpisodeConfig(size=32)}, r"'vit' takes one prompt, and episodes.prompts is \(0.7, 0.2, 0.1\)"),
    ("compact", {"episodes": EpisodeConfig(size=40)}, "episodes.size 40 must be a multiple of the network's patch 16"),
])
def test_what_a_network_cannot_do_is_refused_before_the_first_step(architecture, changes, message):
    network = tiny_network(TINY_VIT) if architecture == "vit" else tiny_painter()
    with pytest.raises(ValueError, match=message):
        Learner(network, dataclasses.replace(COMPACT, **changes), CPU)


# --- the vision transformer ---


def test_a_vision_transformer_paints_prompt_and_query_at_once(draws):
    network = tiny_network(TINY_VIT)
    assert isinstance(network, VisionTransformerPainter)
    episodes = draws[1]
    hidden = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    query, prompt = network.paint_both(episodes.images, episodes.labels, hidden)
    stacked = torch.cat([episodes.images[:, 0], episodes.images[:, 1], episodes.labels[:, 1]], 1)
    torch.testing.assert_close(query, network(stacked, episodes.labels[:, 0], hidden.flip(1)))
    # What is hidden of the prompt label is never looked at.
    poisoned = episodes.labels.clone()
    pixels = hidden.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, None].expand_as(poisoned)
    poisoned[pixels] = float("nan")
    for first, second in zip((query, prompt), network.paint_both(episodes.images, poisoned, hidden), strict=True):
        assert torch.equal(first, second)
    # Without a change of anything else, another query changes the prompt's half too: both are one canvas.
    other = episodes.images.clone()
    other[:, 0] = 0
    assert not torch.equal(network.paint_both(other, episodes.labels, hidden)[1], prompt)
    with pytest.raises(ValueError, match="takes one prompt, got 2: choose one"):
        network.paint_both(torch.zeros(1, 3, 1, 32, 32), torch.zeros(1, 3, 3, 32, 32), hidden[:1])


def test_recomputed_activations_change_nothing(draws):
    deep = dataclasses.replace(TINY_VIT, drop_path=0.5)
    found = []
    for recompute in (False, True):
        training = Learner(tiny_network(deep), dataclasses.replace(ALONE, activation_checkpointing=recompute), CPU)
        costs = training.learn(draws[2:], 0)
        found.append((costs, [parameter.grad for parameter in training.painter.parameters()]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(first, second)


def test_recomputing_keeps_fewer_activations(draws):
    kept: list[int] = []
    for recompute in (False, True):
        training = Learner(tiny_network(TINY_VIT), dataclasses.replace(ALONE, activation_checkpointing=recompute), CPU)
        kept.append(0)

        def keep(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            training.learn(draws[2:], 0)
    assert kept[1] < kept[0]


def test_stochastic_depth_of_a_step_is_the_same_whenever_it_is_taken(draws):
    def loss(step: int, before: int) -> float:
        config = dataclasses.replace(ALONE, objective=HybridConfig(masked_share={}))
        training = Learner(tiny_network(dataclasses.replace(TINY_VIT, drop_path=0.5)), config, CPU)
        torch.rand(before)
        return training.learn(draws[2:], step)["loss"]

    assert loss(3, before=7) == loss(3, before=11)
    # The autoregressive objective hides the same in every step: only the depth differs.
    assert loss(3, before=7) != loss(4, before=7)


# --- compilation ---


def test_a_compiled_network_costs_the_same_and_keeps_the_names_of_its_weights(draws, monkeypatch):
    # Without generated C++, which takes minutes; the tracing is the real one.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    network = tiny_network(TINY_VIT)
    names = set(network.state_dict())
    plain = Learner(tiny_network(TINY_VIT), ALONE, CPU)
    compiled = Learner(network, dataclasses.replace(ALONE, compile=True), CPU)
    assert hasattr(network.paint_both, "_torchdynamo_orig_callable")
    assert compiled.learn(draws[1:2], 0) == pytest.approx(plain.learn(draws[1:2], 0), rel=1e-6)
    assert set(compiled.painter.state_dict()) == names
    assert set(compiled.averaged.state_dict()) == names
    assert not any("_orig_mod" in name for name in compiled.state_dict()["average"])


def test_a_network_that_came_compiled_is_unpacked():
    network = tiny_painter()
    assert learner.plain_network(torch.compile(network)) is network  # type: ignore[arg-type]


def test_without_a_compiler_training_goes_on_with_a_warning(draws, monkeypatch):
    def broken(function: object) -> object:
        def fail(*_: object) -> None:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmany more lines")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(RuntimeWarning, match=r"goes on without it \(InvalidCxxCompiler: No working"):
        training = Learner(tiny_network(TINY_VIT), dataclasses.replace(ALONE, compile=True), CPU)
    assert training.learn(draws[1:2], 0)["skipped"] == 0.0


def test_a_part_that_does_not_compile_runs_as_it_is(draws, monkeypatch):
    asked: list[int] = []

    def picky(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        asked.append(len(graph.graph.nodes))
        if len(graph.graph.nodes) > 10:
            raise RuntimeError("too large")
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=picky))
    training = Learner(tiny_network(TINY_VIT), dataclasses.replace(ALONE, compile=True), CPU)
    expected = Learner(tiny_network(TINY_VIT), ALONE, CPU).learn(draws[1:2], 0)
    assert training.learn(draws[1:2], 0) == pytest.approx(expected, rel=1e-6)
    assert max(asked) > 10


def test_the_probe_is_compiled_for_real(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compilation.compile_painter(nn.Module(), CPU)


def test_only_networks_of_this_project_are_trained():
    with pytest.raises(ValueError, match="got Linear"):
        Learner(nn.Linear(2, 2), TrainingConfig(), CPU)
    assert learner.plain_network(tiny_painter(TINY)).config == TINY
