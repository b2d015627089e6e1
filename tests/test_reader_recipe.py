"""A reader learns to be read out, from label maps; whoever is interrupted goes on as if nothing had happened."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import tiny_bank
from tiny import READER, tiny_network, write_weights

from mvg_core.network import create_network
from mvg_core.network.checkpoint import load_network, load_safely
from mvg_core.network.reader import LabelReader
from mvg_core.training import reader_recipe
from mvg_core.training.episodes import EpisodeConfig, Episodes, EpisodeSampler
from mvg_core.training.reader_loss import read_labels
from mvg_core.training.reader_recipe import STAGE, ReaderConfig, ReaderTrainer, new_reader, ramped_average

SMALL = replace(STAGE.episodes, size=32)
QUICK = ReaderConfig(episodes=SMALL, batch=3, steps=6, warm_up=2)


def tiny_reader(seed: int = 0) -> Any:
    return tiny_network(READER, seed)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- learning ---


def found_share(network: LabelReader, episodes: Episodes) -> float:
    """Mean Dice of the labels that are to be found in the queries."""
    with torch.no_grad():
        read = read_labels(network, episodes.images, episodes.classes).logits.argmax(1)
    scores = []
    for found, right in zip(read, episodes.classes[:, 0], strict=True):
        for number in range(1, int(right.max()) + 1):
            here, there = found == number, right == number
            if there.any():
                scores.append(2 * (here & there).sum().item() / (here.sum() + there.sum()).item())
    return sum(scores) / len(scores)


def test_a_reader_that_has_learned_finds_more_than_one_that_has_not(tmp_path):
    painted = replace(SMALL, families={"painted": 1.0}, size=64)
    torch.manual_seed(0)
    network: Any = create_network(READER)
    config = ReaderConfig(episodes=painted, batch=6, steps=40, warm_up=4, learning_rate=5e-3)
    trainer = ReaderTrainer(network, tiny_bank(), config, tmp_path)
    unseen = EpisodeSampler(tiny_bank(), painted, torch.Generator().manual_seed(10**6)).sample(32, 2)
    before = found_share(network, unseen)
    for step in range(config.steps):
        trainer.learn(step)
    kept: Any = trainer.averaged()
    assert min(found_share(network, unseen), found_share(kept, unseen)) > before + 0.15


def test_small_numbers_learn_faster_and_are_not_decayed(tmp_path):
    network = tiny_reader()
    trainer = ReaderTrainer(network, tiny_bank(), QUICK, tmp_path)
    decayed, single = trainer.optimizer.param_groups
    assert {id(one) for one in single["params"]} == {id(one) for one in network.parameters() if one.ndim < 2}
    assert len(decayed["params"]) + len(single["params"]) == len(list(network.parameters()))
    assert (decayed["weight_decay"], single["weight_decay"]) == (QUICK.weight_decay, 0)
    trainer.learn(3)
    assert single["lr"] == pytest.approx(3 * decayed["lr"])
    assert decayed["lr"] == pytest.approx(QUICK.learning_rate * (0.02 + 0.98 / 2))  # half way


def test_a_step_that_is_no_number_changes_nothing(tmp_path, monkeypatch):
    network = tiny_reader()
    trainer = ReaderTrainer(network, tiny_bank(), QUICK, tmp_path)
    episodes = trainer.episodes(0)
    episodes.images[0, 0] = float("nan")
    monkeypatch.setattr(trainer, "episodes", lambda _: episodes)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert trainer.learn(0)["skipped"] == 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_average_follows_at_once_and_then_ever_more_slowly():
    update = ramped_average(0.9)
    expected, averaged = 0.0, [torch.zeros(1)]
    for n_before, decay in ((1, 2 / 21), (2, 3 / 22), (1000, 0.9)):
        learned = [torch.full((1,), float(n_before))]
        update(averaged, learned, torch.tensor(n_before))
        expected = decay * expected + (1 - decay) * n_before
        assert averaged[0].item() == pytest.approx(expected)


# --- going on ---


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    ReaderTrainer(tiny_reader(), tiny_bank(), QUICK, folder(tmp_path / "whole")).run()
    monkeypatch.setattr(reader_recipe, "EVERY", 2)
    stopped = ReaderTrainer(tiny_reader(), tiny_bank(), QUICK, folder(tmp_path / "parts"))
    learn = stopped.learn

    def killed(step: int) -> dict[str, float]:
        if step == 3:
            raise KeyboardInterrupt
        return learn(step)

    monkeypatch.setattr(stopped, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert load_safely(tmp_path / "parts" / "last.pt")["step"] == 2
    ReaderTrainer(tiny_reader(seed=5), tiny_bank(), QUICK, tmp_path / "parts").run()
    one, other = (load_safely(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert one["step"] == other["step"] == QUICK.steps
    for part in ("reader", "average"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    moments = [[state["exp_avg_sq"] for state in run["optimizer"]["state"].values()] for run in (one, other)]
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))
    kept = [load_network(tmp_path / name / "weights.pt").state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    assert any(not torch.equal(one["reader"][name], one["average"][f"module.{name}"]) for name in one["reader"])


def test_episodes_belong_to_their_step_and_seed(tmp_path):
    trainer = ReaderTrainer(tiny_reader(), tiny_bank(), QUICK, tmp_path)
    first, second = trainer.episodes(0), trainer.episodes(1)
    alone = ReaderTrainer(tiny_reader(), tiny_bank(), QUICK, tmp_path).episodes(1)
    assert torch.equal(second.images, alone.images)
    assert torch.equal(second.classes, alone.classes)
    assert not torch.equal(first.images[:, :1], second.images[:, :1])
    other = ReaderTrainer(tiny_reader(), tiny_bank(), replace(QUICK, seed=1), tmp_path).episodes(1)
    assert not torch.equal(other.images[:, :1], second.images[:, :1])
    assert (second.kinds == 0).all()  # segmentation


def test_a_run_with_another_configuration_is_not_continued(tmp_path):
    ReaderTrainer(tiny_reader(), tiny_bank(), replace(QUICK, steps=1), tmp_path).run()
    with pytest.raises(ValueError, match=r"last\.pt belongs to another run"):
        ReaderTrainer(tiny_reader(), tiny_bank(), replace(QUICK, steps=2), tmp_path).run()


def test_when_the_time_is_up_the_rate_has_fallen_and_the_run_is_over(tmp_path):
    endless = replace(QUICK, steps=10**6, warm_up=1)
    trainer = ReaderTrainer(tiny_reader(), tiny_bank(), endless, tmp_path)
    trainer.run(minutes=1 / 30)
    stored = load_safely(tmp_path / "last.pt")
    assert 0 < stored["step"] < 1000
    assert stored["seconds"] >= 2
    assert (tmp_path / "weights.pt").is_file()
    trainer._set_rate(stored["step"])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * endless.learning_rate)
    ReaderTrainer(tiny_reader(), tiny_bank(), endless, tmp_path).run(minutes=1 / 30)
    assert load_safely(tmp_path / "last.pt")["step"] == stored["step"]


# --- the command ---


def test_the_command_trains_the_reader_that_is_shipped(tmp_path, monkeypatch):
    tiny_bank().save(folder(tmp_path / "packs") / "training.npz")
    small = ReaderConfig(episodes=SMALL, batch=2, steps=50)
    monkeypatch.setattr(reader_recipe, "ReaderConfig", lambda steps: replace(small, steps=steps))
    arguments = ["--data", str(tmp_path), "--packs", str(tmp_path / "packs"), "--device", "cpu", "--steps", "50"]
    initial = write_weights(tmp_path / "reader.pt", replace(READER, terms=16))
    monkeypatch.setattr(sys, "argv", ["recipe", *arguments, "--out", str(tmp_path / "run"), "--initial", str(initial)])
    reader_recipe.main()
    network = load_network(tmp_path / "run" / "weights.pt")
    assert isinstance(network, LabelReader)
    assert network.config.terms == 16
    (line,) = (tmp_path / "run" / "record.jsonl").read_text().splitlines()
    assert {"step", "loss", "cross_entropy", "dice", "scores", "norm"} <= set(json.loads(line))


def test_a_new_reader_is_that_of_the_preset_and_no_other_network_is_one(tmp_path):
    assert sum(parameter.numel() for parameter in new_reader().parameters()) == 3_006_620
    with pytest.raises(ValueError, match=r"painter\.pt holds a 'compact' network"):
        new_reader(write_weights(tmp_path / "painter.pt"))


@pytest.mark.parametrize(("episodes", "message"), [
    (replace(SMALL, size=48), "multiples of 32, got 48"),
    (EpisodeConfig(size=64), "leave the family 'restoration' out"),
])
def test_episodes_that_cannot_be_read_are_refused(episodes, message):
    with pytest.raises(ValueError, match=message):
        ReaderConfig(episodes=episodes)
