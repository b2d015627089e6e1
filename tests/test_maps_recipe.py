"""Feature maps learn to be read out, from slices with their own pixels; whoever is interrupted goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import tiny_bank, write_listing
from tiny import WITH_MAPS, write_weights
from tiny import tiny_network as any_tiny_network

from mvg_core.network.compact import CompactPainter
from mvg_core.network.config import NetworkConfig
from mvg_core.readout import PRIOR_OF
from mvg_core.training.datasets import read_training_set
from mvg_core.training.episodes import EpisodeConfig, EpisodeSampler
from mvg_core.training.maps_recipe import MapsConfig, MapsTrainer, with_maps
from mvg_core.training.native_slices import NativeSlices, cut_native
from mvg_core.training.objective import HybridConfig, draw_hidden, hybrid_loss
from mvg_core.training.restorations import TASKS, RestorationSampler
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume


def tiny_network(config: NetworkConfig, seed: int = 0) -> CompactPainter:
    network = any_tiny_network(config, seed)
    assert isinstance(network, CompactPainter)
    return network


QUICK = MapsConfig(side=32, episodes=(("noise", 2), ("holes", 1), ("contrast", 1)), steps=6, warm_up=1)


@pytest.fixture(scope="module")
def slices() -> NativeSlices:
    """Two data sets: one with two contrasts of 3 subjects, one with one; slices of different sizes."""
    random = np.random.default_rng(0)
    images, rows = [], []
    site = 0
    for dataset, contrasts in ((0, (0, 1)), (1, (2,))):
        for subject in range(3):
            for place in range(4):
                shape = (40 + 4 * subject, 60 + dataset)
                picture = random.random((shape[0] // 4, shape[1] // 4 + 1)).repeat(4, 0).repeat(4, 1)
                picture = picture[: shape[0], : shape[1]] * 0.8 + 0.1
                for contrast in contrasts:
                    shown = 1 - picture if contrast == 1 else picture
                    images.append(np.round(shown * 255).astype(np.uint8))
                    rows.append((dataset, subject, site, contrast, place / 3))
                site += 1
    dataset, subject, sites, contrast, place = (np.array(column) for column in zip(*rows, strict=True))
    return NativeSlices(np.concatenate([image.ravel() for image in images]),
                        np.cumsum([0, *(image.size for image in images)]), np.array([image.shape for image in images]),
                        dataset.astype(int), subject.astype(int), sites.astype(int), contrast.astype(int),
                        place.astype(np.float32), np.array(["two", "one"]), np.array(["t1", "t2", "image"]))


def write_two_contrasts(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Two subjects with co-registered t1 and t2, 1 x 1 x 4 mm."""
    items = []
    for subject in ("a", "b"):
        t1 = np.random.default_rng(len(items)).random(shape).astype(np.float32) * 100 + 20
        paths = {name: folder / name / f"{subject}.nii.gz" for name in ("t1", "t2")}
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(Volume.from_array(t1 if name == "t1" else 300 - t1, (1.0, 1.0, 4.0)), path)
        items.append({"subject": subject, **{name: str(path.relative_to(folder)) for name, path in paths.items()}})
    return write_listing(folder, {"training": items})


def test_slices_are_cut_without_resampling(tmp_path):
    cut = cut_native([read_training_set(write_two_contrasts(tmp_path / "mr", (48, 52, 6)))])
    assert list(cut.contrasts) == ["t1", "t2"]
    assert {tuple(shape) for shape in cut.shape.tolist()} == {(48, 52)}  # other planes have long pixels
    assert len(cut) == 2 * 2 * len(np.unique(cut.place))
    stored = read_volume(tmp_path / "mr" / "t1" / "a.nii.gz").array
    number = round(float(cut.place[0]) * 5)
    low, high = np.percentile(stored, [0.5, 99.5])
    expected = np.clip((stored[:, :, number] - low) / (high - low), 0, 1)
    assert np.abs(cut.image(0) - expected).max() < 0.02
    pair = np.flatnonzero(cut.site == cut.site[0])
    one, other = (cut.image(int(row)).ravel() for row in pair)
    assert np.corrcoef(one, other)[0, 1] < -0.98


def test_slices_too_small_to_learn_from_are_left_out(tmp_path):
    with pytest.raises(ValueError, match="no slice shows anything"):
        cut_native([read_training_set(write_two_contrasts(tmp_path / "mr", (30, 52, 6)))])


def test_what_is_stored_comes_back(tmp_path, slices):
    slices.save(tmp_path / "native.npz")
    again = NativeSlices.load(tmp_path / "native.npz")
    assert len(again) == len(slices) == 36
    assert np.array_equal(again.image(7), slices.image(7))
    assert again.image(7).shape == tuple(slices.shape[7])


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_makes_episodes_whose_prompts_show_what_the_query_is_asked(slices, task):
    episodes = RestorationSampler(slices, 48, {"two": 2.0}, seed=3).draw(task, 4, 3)
    for part in (episodes.shown, episodes.answers, episodes.counts, episodes.holes):
        assert part.shape == (4, 3, 48, 48)
        assert torch.isfinite(part).all()
    assert episodes.shown.min() >= 0
    assert episodes.shown.max() <= 1
    assert [PRIOR_OF[prior] for prior in episodes.priors] == [TASKS[task]] * 4
    changed = (episodes.shown - episodes.answers).abs() > 0.01
    assert changed.any()
    if task not in ("curve", "holes"):  # what is no image stays as it is
        assert not (changed & (episodes.counts == 0)).any()
    if task == "holes":
        assert set(episodes.holes.unique().tolist()) == {0.0, 1.0}
        assert not changed[episodes.holes == 0].any()
        assert (episodes.counts[episodes.holes == 1] <= 1).all()
    else:
        assert not episodes.holes.any()
    if task == "contrast":  # in these data, one contrast is the other inverted
        for answer, shown, inside in zip(*(part.flatten(0, 1) for part in episodes[:3]), strict=True):
            assert torch.corrcoef(torch.stack([answer[inside > 0], shown[inside > 0]]))[0, 1] < -0.9


def test_prompts_are_as_often_of_other_subjects_as_said(slices):
    sampler = RestorationSampler(slices, 32, {}, seed=0)
    rows = np.flatnonzero(slices.dataset == 1)
    drawn = [sampler._related(rows, 2) for _ in range(300)]
    share = np.mean([slices.subject[first] != slices.subject[other] for first, other in drawn])
    assert 0.6 < share < 0.8


def test_maps_learn_and_nothing_else_changes(slices, tmp_path):
    network = tiny_network(WITH_MAPS)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = MapsTrainer(network, slices, replace(QUICK, steps=40, learning_rate=5e-3), tmp_path)
    costs = [trainer.learn(step)["loss"] for step in range(40)]
    assert np.mean(costs[-10:]) < np.mean(costs[:10]) - 0.05
    changed = {name.split(".")[0] for name, value in network.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed == {"maps"}


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(slices, tmp_path, monkeypatch):
    MapsTrainer(tiny_network(WITH_MAPS), slices, QUICK, folder(tmp_path / "whole")).run()
    monkeypatch.setattr("mvg_core.training.maps_recipe.EVERY", 3)
    stopped = MapsTrainer(tiny_network(WITH_MAPS), slices, QUICK, folder(tmp_path / "parts"))
    learn = stopped.learn

    def killed(step: int) -> dict[str, float]:
        if step == 4:
            raise KeyboardInterrupt
        return learn(step)

    monkeypatch.setattr(stopped, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    MapsTrainer(tiny_network(WITH_MAPS, seed=5), slices, QUICK, tmp_path / "parts").run()
    one, other = (with_maps(tmp_path / name / "weights.pt").maps.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_with_another_configuration_is_not_continued(slices, tmp_path):
    MapsTrainer(tiny_network(WITH_MAPS), slices, QUICK, folder(tmp_path / "run")).run()
    with pytest.raises(ValueError, match="belongs to another run"):
        MapsTrainer(tiny_network(WITH_MAPS), slices, replace(QUICK, steps=7), tmp_path / "run").run()


def test_maps_are_added_only_to_the_network_they_belong_to(tmp_path):
    assert with_maps(write_weights(tmp_path / "maps.pt", WITH_MAPS)).config == WITH_MAPS
    with pytest.raises((ValueError, RuntimeError)):
        with_maps(write_weights(tmp_path / "tiny.pt"))


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_hybrid_objective_trains_maps_too():
    generator = torch.Generator().manual_seed(0)
    sampler = EpisodeSampler(tiny_bank(), EpisodeConfig(size=32, families={"restoration": 1.0}), generator)
    episodes = sampler.sample(8)
    network = tiny_network(WITH_MAPS)
    hidden, masked = draw_hidden(episodes.kinds, episodes.images.shape[1], 2, HybridConfig(), generator)
    parts = hybrid_loss(network, episodes, hidden, masked, HybridConfig())
    parts["loss"].backward()
    assert parts["readout"] < 0
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0
               for name, parameter in network.named_parameters() if name.startswith("maps.out"))
