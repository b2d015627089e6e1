"""Test-time tuning: it learns from the prompts it is given, and whatever was there before stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import TINY as MINIATURE
from miniature import tiny_painter
from tiny import write_weights
from typer.testing import CliRunner

from mvg_core.backends import MissingBackendError, TorchBackend, load_backend
from mvg_core.cli import app
from mvg_core.network.export import export_onnx
from mvg_core.predict import Predictor
from mvg_core.prompts import Prompt, Support
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.training.prompt_tuning import PromptEpisodes, tune_network
from mvg_core.tuning import Lesson, TuningConfig, lessons, thinned, tuned_backend
from mvg_core.volume import Volume
from mvg_core.volume_io import write_volume

SIZE = MINIATURE.size
STEPS = TuningConfig(steps=40, learning_rate=5e-3, batch=4)


def disc(seed: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc somewhere on dark ground, and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - rng.uniform(0.35, 0.65, 2)[:, None, None] * size
    label = (y**2 + x**2 < (size / 5) ** 2).astype(np.uint8)
    return np.clip(0.2 + 0.5 * label + rng.normal(0, 0.02, label.shape), 0, 1).astype(np.float32), label


def support(n_prompts: int = 3, label: int = 3) -> Support:
    solved = [disc(seed) for seed in range(n_prompts)]
    return Support(tuple(Prompt(image, where * np.uint8(label), f"s{k}", k / 10)
                         for k, (image, where) in enumerate(solved)), Task.segmentation())


def predictor(tuning: TuningConfig | int | None = STEPS) -> Predictor:
    return Predictor(TorchBackend(tiny_painter(), "cpu", "abc"), tuning=tuning)


def state(one: Predictor) -> dict[str, torch.Tensor]:
    assert isinstance(one.backend, TorchBackend)
    return {name: value.clone() for name, value in one.backend.network.state_dict().items()}


def dice(found: np.ndarray, expected: np.ndarray) -> float:
    return 2 * (found & expected).sum() / (found.sum() + expected.sum())


def volumes() -> tuple[Volume, Reference]:
    query, example = (np.stack([disc(10 * seed + k)[0] for k in range(3)], axis=2) for seed in (1, 2))
    label = np.stack([disc(20 + k)[1] for k in range(3)], axis=2)
    spacing = (1.0, 1.0, 4.0)
    return Volume.from_array(query, spacing), Reference(Volume.from_array(example, spacing),
                                                        Volume.from_array(label, spacing))


# --- what it does ---


@pytest.mark.parametrize("n_prompts", [1, 3])
def test_tuning_helps_a_network_that_knows_nothing(n_prompts: int) -> None:
    queries, expected = (np.stack(parts) for parts in zip(*(disc(seed) for seed in range(50, 56)), strict=True))
    examples = support(n_prompts)
    before, _ = predictor(None).predict_slices(queries, examples)
    tuned = predictor().tune(examples)
    after, _ = tuned.predict_slices(queries, examples)
    assert dice(before == 3, expected == 1) < 0.5
    assert dice(after == 3, expected == 1) > 0.8
    assert tuned.tuned is not None
    first, last = tuned.tuned["loss"]
    assert last < 0.7 * first


def test_adapters_alone_can_be_tuned() -> None:
    tuned = predictor(TuningConfig(steps=40, learning_rate=2e-2, batch=4, adapters=4)).tune(support())
    assert tuned.tuned is not None
    first, last = tuned.tuned["loss"]
    assert last < 0.8 * first
    before, after = state(predictor()), state(tuned)
    assert set(before) == set(after)
    assert torch.equal(before["image_encoder.position"], after["image_encoder.position"])
    assert torch.equal(before["image_encoder.stem.bias"], after["image_encoder.stem.bias"])
    assert not torch.equal(before["stage8.conv1.weight"], after["stage8.conv1.weight"])


def test_a_predictor_keeps_its_weights_bit_for_bit() -> None:
    one, queries = predictor(3), disc(7)[0][None]
    before, drawn = state(one), torch.get_rng_state()
    first, _ = one.predict_slices(queries, support())
    one.predict_volume(*volumes())
    assert all(torch.equal(value, before[name]) for name, value in state(one).items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert one.tuned is None
    again, _ = one.predict_slices(queries, support())
    np.testing.assert_array_equal(again, first)


def test_a_tuned_predictor_does_not_tune_again() -> None:
    one = predictor(2)
    tuned = one.tune(support())
    assert tuned is not one
    assert tuned.tune(support()) is tuned
    assert any(not torch.equal(value, state(one)[name]) for name, value in state(tuned).items())
    assert isinstance(tuned.backend, TorchBackend)
    assert (tuned.backend.checkpoint_sha256, tuned.backend.size) == ("abc", SIZE)


def test_without_tuning_the_predictor_is_used_as_it_is() -> None:
    one = predictor(None)
    assert one.tune(support()) is one
    assert one.predict_volume(*volumes()).provenance["tuning"] is None


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_gradients_flow_wherever_it_is_called(mode: Any) -> None:
    with mode():
        tuned = predictor(1).tune(support())
    assert any(not torch.equal(value, state(predictor())[name]) for name, value in state(tuned).items())


@pytest.mark.parametrize("adapters", [0, 2])
def test_a_tuned_network_is_ready_for_use(adapters: int) -> None:
    network, losses = tune_network(tiny_painter(), lessons(support().prompts, support(), "wide"),
                                   TuningConfig(2, adapters=adapters))
    assert not network.training
    assert len(losses) == 2


def test_a_frozen_network_can_be_tuned() -> None:
    one = predictor(1)
    assert isinstance(one.backend, TorchBackend)
    one.backend.network.requires_grad_(False)
    one.tune(support())
    assert not any(parameter.requires_grad for parameter in one.backend.network.parameters())


def test_a_volume_is_tuned_on_prompts_cut_for_it() -> None:
    told: list[tuple[int, int]] = []
    found = predictor(TuningConfig(steps=4, most_prompts=2)).predict_volume(
        *volumes(), plane="axial", progress=lambda done, total: told.append((done, total)))
    assert found.provenance["tuning"]["steps"] == 4
    assert found.provenance["tuning"]["prompts"] == 2
    assert json.loads(json.dumps(found.provenance)) == found.provenance
    assert {total for _, total in told} == {4 + 3}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (7, 7)


@pytest.mark.parametrize("kind", ["denoising", "inpainting", "synthesis"])
def test_images_can_be_tuned_on(kind: str) -> None:
    query, reference = volumes()
    task = Task(kind)  # type: ignore[arg-type]
    target = reference.image.with_array(1 - reference.image.array)
    hole = query.with_array((query.array > 0.5).astype(np.uint8)) if kind == "inpainting" else None
    found = predictor(2).predict_volume(query, Reference(reference.image, target), task, hole=hole)
    assert found.provenance["tuning"]["steps"] == 2


# --- what is drawn ---


def test_each_prompt_in_turn_is_the_query_of_the_others() -> None:
    episodes = PromptEpisodes(lessons(support(5).prompts, support(5), "wide"), batch=5, n_prompts=3, seed=0)
    counts = set()
    for _ in range(20):
        rows = episodes.rows(0)
        assert sorted(rows[:, 0]) == [0, 1, 2, 3, 4]
        assert all(len(set(row)) == len(row) for row in rows)
        counts.add(rows.shape[1] - 1)
    assert counts == {1, 2, 3}


def test_prompts_come_from_another_subject_and_the_same_place() -> None:
    image = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    label = np.ones((32, 32), np.uint8)
    prompts = [Prompt(image, label, subject, place) for subject in "ab" for place in np.linspace(0.05, 0.95, 10)]
    given = Support(tuple(prompts), Task.segmentation())
    episodes = PromptEpisodes(lessons(prompts, given, "wide"), batch=20, n_prompts=2, seed=0)
    rows = np.concatenate([episodes.rows(0)[:, :2] for _ in range(10)])
    assert ((rows[:, 0] < 10) != (rows[:, 1] < 10)).all()
    apart = np.abs(rows[:, 0] % 10 - rows[:, 1] % 10)
    assert (apart <= 2).mean() > 0.95
    assert len(np.unique(apart)) > 1


def test_of_one_subject_neighbours_serve() -> None:
    image, label = np.random.default_rng(0).random((32, 32)).astype(np.float32), np.ones((32, 32), np.uint8)
    prompts = [Prompt(image, label, "a", place) for place in np.linspace(0.05, 0.95, 10)]
    given = Support(tuple(prompts), Task.segmentation())
    rows = PromptEpisodes(lessons(prompts, given, "wide"), batch=100, n_prompts=1, seed=0).rows(0)
    apart = np.abs(rows[:, 0] - rows[:, 1])
    assert apart.min() > 0
    assert np.mean(apart == 1) > 0.7


def test_a_single_prompt_is_its_own_query_but_moved() -> None:
    episodes = PromptEpisodes(lessons(support(1).prompts, support(1), "wide"), batch=2, n_prompts=3, seed=0)
    np.testing.assert_array_equal(episodes.rows(0), [[0, 0], [0, 0]])
    drawn = episodes.draw()
    assert (drawn.images[:, 0] - drawn.images[:, 1]).abs().amax((1, 2, 3)).min() > 0.2
    assert set(drawn.classes.unique().tolist()) == {0, 1}
    rows = torch.arange(SIZE)[:, None] * torch.cat([episodes.draw().classes for _ in range(5)])
    heights = rows.sum((2, 3)) / (rows > 0).sum((2, 3)).clamp_min(1)
    assert (heights[:, 0] - heights[:, 1]).abs().mean() > 0.5  # pixels; elastic deformation alone does not do it


def test_colours_are_those_of_inference_and_follow_the_classes() -> None:
    (lesson,) = lessons(support().prompts, support(), "wide")
    assert lesson.colours is not None
    np.testing.assert_array_equal(lesson.colours, [[0, 0, 0], [1, 1, 1]])
    drawn = PromptEpisodes([lesson], batch=3, n_prompts=2, seed=0).draw()
    np.testing.assert_array_equal(drawn.labels[:, :, 0], drawn.classes.float())
    assert drawn.weights[drawn.classes[:, :, None] == 1].unique().tolist() == [1.0]


def test_the_query_is_not_asked_for_what_no_prompt_shows() -> None:
    images = np.full((2, 32, 32), 0.5, np.float32)
    rows = np.zeros((2, 32, 32), np.uint8)
    rows[0, 8:24, 8:24], rows[1, 8:24, 8:24] = 1, 2
    lesson = Lesson(images, rows, "segmentation", np.eye(3, dtype=np.float32))
    drawn = PromptEpisodes([lesson], batch=4, n_prompts=1, seed=0).draw()
    assert not drawn.classes[:, 0].any()  # one prompt shows label 1, the other label 2
    assert drawn.classes[:, 1].any()
    shown = drawn.in_palette[:, 1:].tolist()
    assert sorted(shown) == [[False, True], [False, True], [True, False], [True, False]]


def test_many_labels_are_learned_in_the_groups_that_are_painted() -> None:
    label = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 21  # 0 to 20
    images = [np.full((32, 32), 0.5, np.float32)] * 2
    prompts = Support((Prompt(images[0], label), Prompt(images[1], np.minimum(label, 10))), Task.segmentation())
    low, high = lessons(prompts.prompts, prompts, "wide")
    assert (len(low.images), len(high.images)) == (2, 1)  # the second prompt shows no label above 10
    np.testing.assert_array_equal(low.targets[0], np.where(label <= 10, label, 0))
    np.testing.assert_array_equal(high.targets[0], np.where(label > 10, label - 10, 0))


def test_crops_of_images_keep_their_targets_and_holes() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((3, 64, 64), dtype=np.float32)
    holes = images > 0.9
    lesson = Lesson(images, 1 - images, "inpainting", holes=holes)
    drawn = PromptEpisodes([lesson], batch=4, n_prompts=2, seed=0).draw()
    assert drawn.images.shape[-2:] == (48, 48)
    torch.testing.assert_close(drawn.labels[:, :, 0], 1 - drawn.images[:, :, 0])
    assert torch.equal(drawn.weights > 1, drawn.images > 0.9)
    assert np.isin(drawn.images.numpy(), images).all()  # never resampled
    assert drawn.kinds.unique().tolist() == [2]


def test_items_are_thinned_out_evenly() -> None:
    assert thinned([3, 4, 5], 3) == [3, 4, 5]
    assert thinned(list(range(11)), 3) == [0, 5, 10]
    assert thinned(list(range(11)), 1) == [0]


# --- what is refused ---


def test_without_pytorch_one_line_says_so(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "tiny.pt")
    export_onnx(torch_network(path), tmp_path, checkpoint_sha256=load_backend(path).checkpoint_sha256)
    one = Predictor.load(path, backend="onnx", tuning=3)
    with pytest.raises(MissingBackendError, match="tuning needs PyTorch, but the network runs in onnxruntime"):
        one.predict_slices(disc(0)[0][None], support())


def torch_network(path: Path) -> Any:
    backend = load_backend(path)
    assert isinstance(backend, TorchBackend)
    return backend.network


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("batch", 0), ("adapters", -1), ("most_prompts", 0),
                                              ("learning_rate", 0.0)])
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} of tuning must be"):
        TuningConfig(**{"steps": 1, field: value})  # type: ignore[arg-type]


def test_prompts_without_any_label_are_refused() -> None:
    empty = Support((Prompt(disc(0)[0], np.zeros((SIZE, SIZE), np.uint8)),), Task.segmentation())
    with pytest.raises(ValueError, match="no prompt shows a label"):
        tuned_backend(predictor().backend, empty, STEPS)


# --- from the command line ---


def test_the_command_tunes_when_asked(tmp_path: Path) -> None:
    query, reference = volumes()
    weights = write_weights(tmp_path / "tiny.pt")
    before = weights.read_bytes()
    for name, volume in (("query", query), ("image", reference.image), ("label", reference.label)):
        write_volume(volume, tmp_path / f"{name}.nii.gz")

    def predict(output: str, *more: str) -> dict[str, Any]:
        found = CliRunner().invoke(app, [
            "predict", str(tmp_path / "query.nii.gz"), "--reference", str(tmp_path / "image.nii.gz"),
            str(tmp_path / "label.nii.gz"), "--task", "segmentation", "--output", str(tmp_path / output), "--threads",
            "1", "--weights", str(weights), "--report", str(tmp_path / f"{output}.json"), *more])
        assert found.exit_code == 0, found.output
        return json.loads((tmp_path / f"{output}.json").read_text())

    assert predict("plain.nii.gz")["tuning"] is None
    assert predict("tuned.nii.gz", "--tune", "2")["tuning"]["steps"] == 2
    assert weights.read_bytes() == before
