"""The throughput benchmark: its made-up slices can be learned from, and what it derives is worked by hand."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from miniature import tiny_painter

from mvg_core.training.episodes import EpisodeConfig, EpisodeSampler
from mvg_core.training.learner import Learner
from mvg_core.training.recipe import STAGES

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "throughput.py"


@pytest.fixture(scope="module")
def throughput() -> ModuleType:
    spec = importlib.util.spec_from_file_location("throughput", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bank(throughput: ModuleType) -> Any:
    return throughput.made_up_bank()


def test_every_family_of_episodes_is_drawn_from_the_made_up_slices(bank):
    for family in ("real", "painted", "restoration"):
        config = EpisodeConfig(size=32, families={family: 1.0})
        episodes = EpisodeSampler(bank, config, torch.Generator().manual_seed(0)).sample(3, 2)
        assert episodes.images.shape == (3, 3, 1, 32, 32)
        assert float(episodes.labels.std()) > 0


def test_the_parts_of_a_step_add_up_to_it(throughput, bank):
    config = dataclasses.replace(STAGES["start"], batch=2)
    learner = Learner(tiny_painter(), config, torch.device("cpu"))
    clock = throughput.StepClock(learner, time.perf_counter)
    draws = [EpisodeSampler(bank, EpisodeConfig(size=32), torch.Generator().manual_seed(0)).sample(2, 1)]
    started = time.perf_counter()
    learner.learn(draws, 0)
    ended = time.perf_counter()
    parts = clock.parts(started, ended)
    assert set(parts) == {"forward_s", "backward_s", "optimizer_s"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(ended - started)


def test_flops_are_those_of_the_operations(throughput):
    network = tiny_painter().to("meta").train()
    one, two = (throughput.episode_flops(network, 32, n) for n in (1, 2))
    assert two["encoding"] == 2 * one["encoding"] > 0
    # The backward pass of a product costs about as much as two of them.
    assert 2 < one["training"] / (one["encoding"] + one["painting"]) <= 3


def test_rates_and_shares_are_worked_by_hand(throughput):
    row = {"step_s": 2.0, "waiting_s": 0.5, "drawing_s": 0.5, "samples_per_s": 4.0, "peak_mb": 700.0, "size": 64,
           "network": "compact", "prompts": [0.75, 0.25]}
    results = {"start": row, "idle": {"peak_mb": 300.0}, "flops": {"compact": {
        "64 1": {"training": 100e9}, "64 2": {"training": 300e9}}}}
    throughput.derived(results, 1.2)
    assert row["gflop_per_sample"] == 150  # 0.75 x 100 + 0.25 x 300
    assert row["tflop_per_s"] == pytest.approx(0.6)
    assert row["utilisation"] == pytest.approx(0.5)
    assert row["memory_mb"] == 400
    assert row["waiting_share"] == 0.25
    assert row["drawing_share"] == 0.25  # 0.5 s of drawing beside 1.5 s of learning
    throughput.derived(results, None)
    assert row["utilisation"] is None


def test_the_page_and_the_plot_are_made_of_the_results(throughput, tmp_path):
    row = {"step_s": 2.0, "waiting_s": 0.5, "forward_s": 0.5, "backward_s": 0.75, "optimizer_s": 0.25, "drawing_s": 0.5,
           "samples_per_s": 4.0, "peak_mb": 700.0, "size": 64, "network": "compact", "prompts": [1.0], "batch": 8,
           "steps": 6, "activation_checkpointing": False, "device": "x86_64", "torch": "2"}
    point = {"training_s": 1.0, "encoding_s": 0.25, "painting_s": 0.5, "drawing_s": 0.1}
    double = {name: 2 * value for name, value in point.items()}
    results = {"start": row, "idle": {"peak_mb": 300.0}, "vit_large": {"failed": "needs about 12 GB of memory"},
               "sizes": {"points": {"64": point, "128": double}}, "prompts": {"points": {"1": point, "2": double}},
               "flops": {"compact": {f"{size} {n}": {"training": 1e9} for size in (64, 96, 128) for n in (1, 2)}}}
    throughput.derived(results, None)
    page = throughput.markdown(results, argparse.Namespace(device="cpu", threads=2))
    assert "| mvg_compact, stage start | 64 | 8 | 4 | 25% | 25% | 33% | 50% | 17% | 400 | 1 | 4 | - |" in page
    assert "not measured: needs about 12 GB of memory" in page
    assert "| 128 | 2 (2.0x) | 0.5 (2.0x) | 1 (2.0x) | 0.2 (2.0x) | 1 |" in page
    for line in page.splitlines():
        assert not line.startswith("|") or line.endswith("|")
    throughput.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
