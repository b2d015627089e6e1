"""Validation during training: what is asked, how it is scored, and the pictures of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from miniature import TINY, tiny_bank, tiny_painter
from monai.handlers.stats_handler import StatsHandler
from PIL import Image
from torch import Tensor, nn

from mvg_core.network.errors import CheckpointError
from mvg_core.training import panels
from mvg_core.training.bank import SliceBank
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import KINDS, EpisodeConfig, Episodes
from mvg_core.training.panels import Panels
from mvg_core.training.validation import (
    HybridEvaluator,
    ValidationEpisodes,
    episode_dice,
    families_to_validate,
    measures,
    stacked,
)

CONFIG = TrainingConfig(episodes=EpisodeConfig(size=32), precision="fp32", validation_episodes=20, batch=2)
COLOURS = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.fixture(scope="module")
def episodes() -> list[Episodes]:
    return list(ValidationEpisodes(tiny_bank(), CONFIG))


class Oracle(nn.Module):
    """Knows every answer: the queries of a validation, in the order in which they are asked."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.config = TINY
        self.answers = iter(answers)

    def forward(self, image: Tensor) -> Tensor:
        answer = next(self.answers)
        assert image.shape[0] == len(answer)
        return answer


# --- what is asked ---


def test_the_same_episodes_every_time_and_for_every_training_seed(episodes):
    again = ValidationEpisodes(tiny_bank(), dataclasses.replace(CONFIG, seed=5, batch=7))
    assert len(again) == 3
    assert [len(batch.kinds) for batch in again] == [8, 8, 4]
    for first, second in zip(episodes, again, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    assert not torch.equal(episodes[0].palette, episodes[1].palette)


def test_painted_label_maps_are_no_validation_unless_there_is_nothing_else():
    bank = tiny_bank()
    assert set(families_to_validate(bank, EpisodeConfig())) == {"real", "restoration"}
    only_real = EpisodeConfig(families={"real": 1.0, "painted": 1.0, "restoration": 0.0})
    assert families_to_validate(bank, only_real) == {"real": 1.0}
    rows = ~bank.has_image
    maps = SliceBank(**{field.name: getattr(bank, field.name)[rows] for field in dataclasses.fields(bank)
                        if field.name not in ("names", "weights")}, names=bank.names, weights=bank.weights)
    assert families_to_validate(maps, EpisodeConfig()) == EpisodeConfig().families
    assert families_to_validate(maps, only_real) == only_real.families
    unlabelled = dataclasses.replace(bank, labelled=np.zeros_like(bank.labelled))
    assert set(families_to_validate(unlabelled, EpisodeConfig())) == {"restoration"}
    empty = dataclasses.replace(bank, images=bank.images[:0])
    with pytest.raises(ValueError, match="no slices to validate on"):
        families_to_validate(empty, EpisodeConfig())


def test_something_without_slices_is_refused():
    with pytest.raises(ValueError, match="a SliceDataset or SliceBank is needed, got list"):
        HybridEvaluator(tiny_painter(), [], CONFIG)


def test_the_one_tensor_input_is_query_then_prompts(episodes):
    batch = episodes[0]
    prompts = batch.images.shape[1] - 1
    image = stacked(batch)
    assert image.shape == (8, 1 + 4 * prompts, 32, 32)
    assert torch.equal(image[:, 0], batch.images[:, 0, 0])
    assert torch.equal(image[:, 1], batch.images[:, 1, 0])
    assert torch.equal(image[:, 2:5], batch.labels[:, 1])
    # No leak: the query's own label is not in it.
    hidden = dataclasses.replace(batch, labels=batch.labels.index_fill(1, torch.tensor([0]), math.nan))
    assert torch.equal(stacked(hidden), image)


# --- how it is scored ---


def test_dice_worked_by_hand():
    # Four pixels; labels 1, 2 and 3 are in use.
    truth = torch.tensor([[[1, 1], [2, 0]]])
    answer = torch.tensor([[[1, 0], [2, 0]]])  # half of label 1, all of 2, none of 3
    used = torch.tensor([[True, True, True, True]])
    painted = COLOURS[answer].movedim(-1, 1) + 0.2  # still nearest to the same colours
    dice = episode_dice(painted, truth, COLOURS[None], used)
    assert dice.tolist() == pytest.approx([(2 / 3 + 1 + 1) / 3])  # 3 is neither there nor painted: 1
    # Painted where it is not: 0. A colour that is not in use is never decoded.
    wrong = COLOURS[torch.tensor([[[1, 1], [2, 3]]])].movedim(-1, 1)
    assert episode_dice(wrong, truth, COLOURS[None], used).tolist() == pytest.approx([(1 + 1 + 0) / 3])
    two = torch.tensor([[True, True, True, False]])
    violet = torch.tensor([0.6, 0, 0.7]).view(1, 3, 1, 1)  # nearest to 3, then to 1
    assert episode_dice(violet, torch.tensor([[[1]]]), COLOURS[None], two).tolist() == [1.0]
    assert episode_dice(violet, torch.tensor([[[1]]]), COLOURS[None], used).tolist() == pytest.approx([1 / 3])


def test_every_episode_has_the_measures_of_its_kind(episodes):
    batch = episodes[0]
    found = measures(batch.labels[:, 0] * 0.9, batch)
    is_segmentation = batch.kinds == 0
    assert 0 < is_segmentation.sum() < 8
    assert torch.equal(found["dice"].isnan(), ~is_segmentation)
    assert torch.equal(found["ssim"].isnan(), is_segmentation)
    assert torch.equal(found["psnr"].isnan(), is_segmentation)
    assert torch.equal(found["score"], torch.where(is_segmentation, found["dice"], found["ssim"]))
    row = int((~is_segmentation).nonzero()[0])
    error = ((batch.labels[row, 0] * 0.1) ** 2).mean()
    assert found["psnr"][row].item() == pytest.approx(-10 * math.log10(error), abs=1e-3)


def test_an_oracle_gets_full_marks_and_a_black_picture_does_not(episodes):
    evaluator = HybridEvaluator(Oracle([batch.labels[:, 0] for batch in episodes]), tiny_bank(), CONFIG)
    evaluator.run()
    metrics = evaluator.state.metrics
    assert metrics["dice"] == pytest.approx(1)
    assert metrics["ssim"] == pytest.approx(1)
    assert metrics["score"] == pytest.approx(1)
    assert metrics["psnr"] > 60
    black = HybridEvaluator(Oracle([torch.zeros_like(b.labels[:, 0]) for b in episodes]), tiny_bank(), CONFIG)
    black.run()
    assert black.state.metrics["score"] < 0.5


def test_the_score_is_the_mean_over_episodes_not_over_batches(episodes):
    evaluator = HybridEvaluator(tiny_painter(), tiny_bank(), CONFIG)
    numbers: list[float] = []

    def note(engine: HybridEvaluator) -> None:
        numbers.extend(episode["score"] for episode in engine.state.output)

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, note)
    evaluator.run()
    assert len(numbers) == 20
    assert evaluator.state.metrics["score"] == pytest.approx(sum(numbers) / 20)
    assert evaluator.state.key_metric_name == "score"
    assert evaluator.state.best_metric == evaluator.state.metrics["score"]


def test_a_measure_that_no_episode_has_is_nan():
    families = {"real": 0.0, "painted": 0.0, "restoration": 1.0}
    config = dataclasses.replace(CONFIG, episodes=EpisodeConfig(size=32, families=families), validation_episodes=2)
    evaluator = HybridEvaluator(tiny_painter(), tiny_bank(), config)
    evaluator.run()
    assert math.isnan(evaluator.state.metrics["dice"])
    assert evaluator.state.metrics["score"] == evaluator.state.metrics["ssim"]


def test_the_network_is_left_in_the_mode_it_was_in():
    network = tiny_painter().train()
    seen: list[bool] = []
    network.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    HybridEvaluator(network, tiny_bank(), dataclasses.replace(CONFIG, validation_episodes=1)).run()
    assert seen == [False]
    assert network.training


def test_a_validation_can_be_followed_with_handlers_of_monai(capsys):
    handler = StatsHandler(name="followed", iteration_log=False)
    evaluator = HybridEvaluator(tiny_painter(), tiny_bank(), dataclasses.replace(CONFIG, validation_episodes=1),
                                val_handlers=[handler])
    evaluator.run()
    said = capsys.readouterr().out
    assert "score:" in said
    assert "Key metric: score best value" in said
    assert set(evaluator.state.output[0]) == {"image", "label", "pred", "score", "dice", "ssim", "psnr"}
    assert evaluator.state.output[0]["pred"].shape == (3, 32, 32)


# --- pictures ---


def test_a_picture_shows_each_kind_from_prompt_to_target(tmp_path, episodes):
    config = dataclasses.replace(CONFIG, validation_episodes=16)
    evaluator = HybridEvaluator(Oracle([b.labels[:, 0] for b in episodes]), tiny_bank(), config, panels=tmp_path / "p")
    evaluator.step = 250
    evaluator.run()
    (path,) = (tmp_path / "p").iterdir()
    assert path.name == "step_000250.png"
    sheet = np.asarray(Image.open(path))
    kinds = [kind for batch in episodes[:2] for kind in batch.kinds.tolist()]
    n_rows = sum(min(panels.PER_KIND, kinds.count(kind)) for kind in range(len(KINDS)))
    step = panels.TILE + panels.GAP
    assert sheet.shape == (panels.HEAD + n_rows * step, panels.SIDE + 5 * step, 3)
    # The oracle's answer looks like the target, in the first row (a segmentation) as in the last.
    for row in (0, n_rows - 1):
        top = panels.HEAD + row * step
        tiles = [sheet[top : top + panels.TILE, left : left + panels.TILE]
                 for left in range(panels.SIDE, sheet.shape[1], step)]
        assert np.array_equal(tiles[3], tiles[4])
        assert not np.array_equal(tiles[0], tiles[1])
        assert not np.array_equal(tiles[2], tiles[4])
        assert sheet[top : top + panels.TILE, : panels.SIDE].max() > 200  # what it is, and how good, is written there
    assert kinds[0] == 0


def test_pictures_show_their_images_in_order(tmp_path, episodes):
    drawn, batch = Panels(), episodes[0]
    answers = [{"pred": torch.zeros(3, 32, 32), "dice": 0.5, "ssim": 0.5, "psnr": 20.0}] * 8
    drawn.add(batch, answers)
    first = drawn.rows[0]
    assert (first.kind, first.score) == ("segmentation", "Dice 0.50")
    assert drawn.rows[-1].score == "SSIM 0.50\n20.0 dB"
    shown = [batch.images[0, 1, 0], batch.labels[0, 1, 0], batch.images[0, 0, 0], torch.zeros(32, 32),
             batch.labels[0, 0, 0]]
    for picture, image in zip(first.images, shown, strict=True):
        assert np.array_equal(picture[..., 0], (image * 255).round().byte().numpy())
    assert all([row.kind for row in drawn.rows].count(kind) <= panels.PER_KIND for kind in KINDS)


def test_a_picture_is_replaced_only_by_a_complete_one(tmp_path, episodes, monkeypatch):
    drawn = Panels()
    drawn.add(episodes[0], [{"pred": torch.zeros(3, 32, 32), "dice": 0.5, "ssim": 0.5, "psnr": 20.0}] * 8)
    path = tmp_path / "panel.png"
    drawn.write(path)
    before = path.read_bytes()

    def half(self: Image.Image, file: Path, format: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(CheckpointError, match=r"panel\.png could not be written \(No space left on device\)"):
        drawn.write(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["panel.png"]


