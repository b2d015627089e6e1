"""Fine-tuning on a user's own cases: it learns, it can be interrupted, and it never leaves anything worse behind."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from miniature import TINY, tiny_painter
from torch import Tensor
from typer.testing import CliRunner

from mvg_core.cli import app
from mvg_core.network import ConfiguredModule, NetworkConfig, create_network
from mvg_core.network.checkpoint import load_network, save_weights
from mvg_core.network.errors import CheckpointError
from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.training.datalist import DatalistError, read_datalist
from mvg_core.training.episodes import EpisodeSampler
from mvg_core.training.finetune import (
    FinetuneConfig,
    Finetuned,
    StopAfter,
    cut_cases,
    finetune,
    split_cases,
    training_config,
    usable_device,
    validation_config,
)
from mvg_core.volume import Volume
from mvg_core.volume_io import write_volume
from mvg_core.weights import file_sha256

CONFIG = FinetuneConfig(steps=24, learning_rate=4e-3, batch=4, epoch_length=8, validation_episodes=8)
REPOSITORY = Path(__file__).resolve().parents[1]
SHORT = dataclasses.replace(CONFIG, steps=4, epoch_length=2, validation_episodes=2)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = tiny_painter()
    network.card = {"name": "tiny", "licence": "CC0", "training_data": ["nothing"]}
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    save_weights(network, path)
    return path


def picture(seed: int, radius: float = 6) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on dark ground, as a thin volume, and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - rng.uniform(11, 21, 2)[:, None, None]
    label = (y**2 + x**2 < radius**2).astype(np.uint8)[..., None]
    return (50 + 120 * label + rng.normal(0, 4, label.shape)).astype(np.float32), label


def write_cases(folder: Path, n_training: int = 5, n_validation: int = 0, name: str = "list.json") -> Path:
    """A datalist of pictures, one for each subject."""
    items = []
    for number in range(n_training + n_validation):
        image, label = picture(number)
        for kind, array in (("image", image), ("label", label)):
            write_volume(Volume.from_array(array), folder / f"{kind}{number}.nii.gz")
        items.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz",
                      "subject": f"Jane Doe {number}"})
    listing = {"name": "discs", "labels": {"1": "disc"}, "training": items[:n_training]}
    return write_json(folder / name, listing | ({"validation": items[n_training:]} if n_validation else {}))


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="session")
def run(weights: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    return finetune(weights, cases, CONFIG, tmp_path_factory.mktemp("run") / "out", device="cpu")


def parameters(network: ConfiguredModule) -> Mapping[str, Tensor]:
    return dict(network.named_parameters())


# --- what it does ---


def test_it_learns_the_users_own_cases(run: Finetuned) -> None:
    before, after = run.score
    assert after > before + 0.2
    assert run.steps > 0
    losses = [json.loads(line)["loss"] for line in (run.path.parent / "record.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]


def test_the_result_is_used_like_any_other_weights(run: Finetuned, weights: Path) -> None:
    image, label = picture(100)
    query, expected = picture(101)
    example = Reference(Volume.from_array(image), Volume.from_array(label))

    def dice(path: Path) -> float:
        found = Predictor.load(path, device="cpu").predict_volume(Volume.from_array(query), example)
        assert found.provenance["checkpoint_sha256"] == file_sha256(path)
        return 2 * (found.volume.array & expected).sum() / (found.volume.array.sum() + expected.sum())

    assert dice(run.path) > dice(weights) + 0.2
    run.path.with_name("model.pt.sha256").write_text("0" * 64)
    with pytest.raises(RuntimeError, match="was changed or damaged"):
        Predictor.load(run.path)
    run.path.with_name("model.pt.sha256").write_text(file_sha256(run.path) + "  model.pt\n")


def test_the_card_says_what_became_of_the_weights(run: Finetuned, weights: Path, cases: Path) -> None:
    card = load_network(run.path).card
    assert card["finetuned_from"] == {"sha256": file_sha256(weights), "name": "tiny", "card": {
        "name": "tiny", "licence": "CC0", "training_data": ["nothing"]}}
    assert card["licence"].startswith("CC0")
    assert card["finetuned_on"] == {
        "cases": 4, "subjects": 4, "data_sets": ["discs"], "tasks": ["segmentation"], "labels": ["disc"],
        "steps": run.steps, "held_out_cases": 1, "score_before": round(run.score[0], 4),
        "score": round(run.score[1], 4)}
    assert "training_data" not in card
    for path in (run.path, run.path.with_name("finetune.json"), run.path.with_name("record.jsonl")):
        assert b"Jane" not in path.read_bytes()
        assert str(cases.parent).encode() not in path.read_bytes()


def test_adapters_change_weights_by_little_rank_and_nothing_else(weights: Path, cases: Path, tmp_path: Path) -> None:
    found = finetune(weights, cases, dataclasses.replace(CONFIG, adapters=2, learning_rate=2e-2), tmp_path / "out")
    assert found.score[1] > found.score[0]
    before, after = (parameters(load_network(path)) for path in (weights, found.path))
    for name in before:
        difference = (after[name] - before[name]).detach()
        if name.endswith("weight") and difference.ndim > 1 and difference.any():
            values = torch.linalg.svdvals(difference.flatten(1))
            assert values[2:].sum() < 0.03 * values.sum(), name  # the rest is rounding to half precision
        else:
            assert not difference.any(), name
    assert not torch.equal(after["stage8.conv1.weight"], before["stage8.conv1.weight"])


def test_what_does_not_help_is_not_kept(weights: Path, cases: Path, tmp_path: Path) -> None:
    found = finetune(weights, cases, dataclasses.replace(SHORT, learning_rate=50.0), tmp_path / "out")
    assert found.steps == 0
    assert found.score[0] == found.score[1]
    before, after = (parameters(load_network(path)) for path in (weights, found.path))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "no better weights" in load_network(found.path).card["note"]


def test_pairs_of_images_are_learned_too(weights: Path, tmp_path: Path) -> None:
    items = []
    for number in range(4):
        clean, _ = picture(number)
        noisy = clean + np.random.default_rng(number).normal(0, 20, clean.shape).astype(np.float32)
        for kind, array in (("noisy", noisy), ("clean", clean)):
            write_volume(Volume.from_array(array), tmp_path / f"{kind}{number}.nii.gz")
        items.append({"source": f"noisy{number}.nii.gz", "target": f"clean{number}.nii.gz", "subject": str(number)})
    path = write_json(tmp_path / "list.json", {"name": "noise", "task": "denoising", "training": items})
    found = finetune(weights, path, SHORT, tmp_path / "out")
    validation = [json.loads(line) for line in (tmp_path / "out" / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in validation] == [0, 2, 4]
    assert all("ssim" in line and "dice" not in line for line in validation)
    assert load_network(found.path).card["finetuned_on"]["tasks"] == ["denoising"]


# --- interrupted ---


class Interrupt:
    """Ends a run after a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.stop)

    def stop(self, engine: Engine) -> None:
        if engine.state.iteration == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("adapters", [0, 2])
def test_an_interrupted_run_is_gone_on_with(adapters: int, weights: Path, cases: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, adapters=adapters)
    whole = finetune(weights, cases, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        finetune(weights, cases, config, tmp_path / "out", train_handlers=[Interrupt(3)])
    assert not (tmp_path / "out" / "model.pt").exists()
    resumed = finetune(weights, cases, config, tmp_path / "out")
    assert dataclasses.replace(resumed, path=whole.path, seconds=0.0) == dataclasses.replace(whole, seconds=0.0)
    expected = parameters(load_network(tmp_path / "whole" / "weights.pt"))
    for name, value in parameters(load_network(tmp_path / "out" / "weights.pt")).items():
        assert torch.equal(value, expected[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "validation.jsonl").read_text().splitlines()]
    assert steps == [0, 2, 4]


def test_a_finished_run_is_left_as_it_is_and_can_be_prolonged(weights: Path, cases: Path, tmp_path: Path) -> None:
    first = finetune(weights, cases, SHORT, tmp_path / "out")
    before = first.path.read_bytes()
    again = finetune(weights, cases, SHORT, tmp_path / "out")
    assert (again.steps, again.score, again.path.read_bytes()) == (first.steps, first.score, before)
    finetune(weights, cases, dataclasses.replace(SHORT, steps=6), tmp_path / "out")
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["step"] == 6


def test_a_folder_of_other_cases_or_settings_is_refused(weights: Path, cases: Path, tmp_path: Path) -> None:
    finetune(weights, cases, dataclasses.replace(SHORT, steps=2), tmp_path / "out")
    others = write_cases(tmp_path, n_training=6)
    before = (tmp_path / "out" / "model.pt").read_bytes()
    for datalist, config, expected in ((others, SHORT, "other cases, cases_sha256"),
                                       (cases, dataclasses.replace(SHORT, adapters=2), "other settings")):
        with pytest.raises(ValueError, match=expected):
            finetune(weights, datalist, config, tmp_path / "out")
    assert (tmp_path / "out" / "model.pt").read_bytes() == before


# --- time ---


@pytest.mark.parametrize(("epoch_s", "minutes", "epochs"), [(10.0, 0.5, 3), (10.0, 0.51, 3), (10.0, 0.1, 1),
                                                            (10.0, 60.0, 5)])
def test_no_epoch_is_begun_that_would_end_too_late(epoch_s: float, minutes: float, epochs: int) -> None:
    now = [0.0]
    engine = Engine(lambda *_: now.__setitem__(0, now[0] + epoch_s))
    StopAfter(minutes, clock=lambda: now[0]).attach(engine)
    engine.run([0], max_epochs=5)
    assert engine.state.epoch == epochs


def test_a_run_that_ran_out_of_time_has_a_result_and_a_checkpoint(weights: Path, cases: Path, tmp_path: Path) -> None:
    found = finetune(weights, cases, dataclasses.replace(SHORT, minutes=1e-6), tmp_path / "out")
    assert found.path.is_file()
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["step"] == 2


# --- what is drawn ---


def test_subjects_are_held_out_where_there_are_enough(tmp_path: Path) -> None:
    training, validation = split_cases(write_cases(tmp_path, 5))
    assert len(validation) == 1
    assert {item["subject"] for item in training} | {validation[0]["subject"]} == {f"Jane Doe {k}" for k in range(5)}
    assert len(training) == 4


@pytest.mark.parametrize("pairs", [False, True])
def test_held_out_queries_are_solved_from_prompts_that_are_learned_from(pairs: bool, tmp_path: Path) -> None:
    items = []
    for number in range(6):
        image, label = picture(number, radius=9 if number < 3 else 4)
        for kind, array in (("image", image), ("label", label)):
            write_volume(Volume.from_array(array), tmp_path / f"{kind}{number}.nii.gz")
        keys = ("source", "target") if pairs else ("image", "label")
        files = [str(tmp_path / f"{kind}{number}.nii.gz") for kind in ("image", "label")]
        items.append({**dict(zip(keys, files, strict=True)), "subject": str(number),
                      "task": "synthesis" if pairs else "segmentation"})
    bank, held_out = cut_cases(items[:3], items[3:], TINY.size)
    assert len(bank.images) == (6 if pairs else 3)
    stage = validation_config(training_config(CONFIG, items, TINY, torch.device("cpu")))
    sampler = EpisodeSampler(held_out, stage.episodes, torch.Generator().manual_seed(0))
    drawn = sampler.sample(16)
    areas = (drawn.labels.amax(2) > 0.25).sum((2, 3))  # of any colour
    assert areas.shape == (16, 2)
    assert areas[:, 0].max() < 100 < areas[:, 1].min()  # pi 4^2 = 50 and pi 9^2 = 254, a little warped
    own = EpisodeSampler(bank, stage.episodes, torch.Generator().manual_seed(0)).sample(16)
    assert (own.labels.amax(2) > 0.25).sum((2, 3)).min() > 100


def test_without_held_out_cases_the_slices_are_the_same(cases: Path) -> None:
    items = read_datalist(cases, "training")
    bank, held_out = cut_cases(items, items, TINY.size)
    assert bank is held_out


def test_with_few_subjects_all_are_learned_from(tmp_path: Path) -> None:
    training, validation = split_cases(write_cases(tmp_path, 3))
    assert training == validation
    assert len(training) == 3


def test_the_lists_own_validation_is_used(tmp_path: Path) -> None:
    training, validation = split_cases(write_cases(tmp_path, 4, 2))
    assert [item["subject"] for item in validation] == ["Jane Doe 4", "Jane Doe 5"]
    assert len(training) == 4


def test_shares_of_what_is_drawn_worked_by_hand() -> None:
    def stage(*tasks: str) -> Any:
        items = [{"task": task} for task in tasks]
        return training_config(FinetuneConfig(others=0.2), items, TINY, torch.device("cpu")).episodes

    assert stage("segmentation").families == pytest.approx({"real": 0.8, "painted": 0.1, "restoration": 0.1})
    mixed = stage("segmentation", "synthesis", "denoising", "segmentation")
    assert mixed.families == pytest.approx({"real": 0.4, "painted": 0.1, "restoration": 0.5})
    assert mixed.kinds == {"synthesis": 0.25, "denoising": 0.25}
    assert stage("synthesis").families == pytest.approx({"real": 0.0, "painted": 0.1, "restoration": 0.9})
    assert stage("segmentation").size == TINY.size


# --- what is refused ---


def test_one_slice_is_too_little(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.json: solved slices with an image among .*: 1, too few"):
        finetune(weights, write_cases(tmp_path, 1), SHORT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_labels_are_named(weights: Path, cases: Path, tmp_path: Path) -> None:
    listing = json.loads(cases.read_text())
    listing["training"] = [{**item, **{key: str(cases.parent / item[key]) for key in ("image", "label")}}
                           for item in listing["training"]]
    del listing["training"][1]["label"]
    with pytest.raises(DatalistError, match=r"training\[1\] \(Jane Doe 1\): has an 'image' but no 'label'"):
        finetune(weights, write_json(tmp_path / "a.json", listing), SHORT, tmp_path / "out")
    listing["training"][1]["label"] = "gone.nii.gz"
    with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz is missing"):
        finetune(weights, write_json(tmp_path / "b.json", listing), SHORT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture_are_refused(cases: Path, tmp_path: Path) -> None:
    vit = NetworkConfig(architecture="vit", size=16, widths=(16,), heads=2, depth=3, patch=8, position_grid=2,
                        merge_after=1, feature_blocks=(1, 2), decoder_width=4)
    save_weights(create_network(vit), tmp_path / "vit.pt")
    with pytest.raises(CheckpointError, match=r"vit\.pt holds a 'vit' network: .* needs a 'compact' one"):
        finetune(tmp_path / "vit.pt", cases, SHORT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("minutes", 0.0), ("adapters", -1), ("others", 1.0)])
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        FinetuneConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    assert usable_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cuda' cannot be used"):
        usable_device("cuda")


# --- from the command line ---


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["finetune", *map(str, arguments), "--threads", "1"])


def test_the_command_leaves_weights_and_says_what_they_are_worth(weights: Path, cases: Path, tmp_path: Path) -> None:
    found = command(cases, "--out", tmp_path / "out", "--steps", 1, "--weights", weights, "--device", "cpu")
    assert found.exit_code == 0, found.output
    assert "score on 1 held-out cases: 0." in found.output
    assert f"weights: {tmp_path / 'out' / 'model.pt'}" in found.output
    assert load_network(tmp_path / "out" / "model.pt").card["finetuned_on"]["cases"] == 4


@pytest.mark.parametrize(("change", "expected"), [
    (lambda options: options | {"LIST": "nowhere.json"}, "no datalist"),
    (lambda options: options | {"--weights": "nowhere.pt"}, "no weights 'nowhere.pt'"),
    (lambda options: options | {"--minutes": "-1"}, "minutes of fine-tuning must be above 0")])
def test_the_command_says_what_is_wrong(change: Callable[[dict[str, str]], dict[str, str]], expected: str,
                                        weights: Path, cases: Path, tmp_path: Path) -> None:
    options = change({"LIST": str(cases), "--out": str(tmp_path / "out"), "--weights": str(weights)})
    found = command(options.pop("LIST"), *(word for pair in options.items() for word in pair))
    assert found.exit_code == 2
    assert expected in " ".join(found.output.split())
    assert "Traceback" not in found.output
    assert not (tmp_path / "out").exists()


# --- from the bundle ---


def fine_tuned_bundle(root: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The stock command with the overlay, in a bundle folder."""
    configs = REPOSITORY / "bundle" / "configs"
    files = ", ".join(f"'{configs / name}'" for name in ("train.json", "finetune.json"))
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"[{files}]", "--bundle_root", str(root),
         *overrides], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)


def test_the_bundles_overlay_does_the_same(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("fire", reason="python -m monai.bundle needs it")
    (tmp_path / "data").mkdir()
    write_cases(tmp_path / "data", name="datalist.json")
    finished = fine_tuned_bundle(tmp_path, "--initial", str(weights), "--finetuning#steps", "4",
                                 "--finetuning#epoch_length", "2", "--finetuning#adapters", "2",
                                 "--finetuning#learning_rate", "0.02", "--finetuning#validation_episodes", "2")
    assert finished.returncode == 0, finished.stderr
    (run,) = (tmp_path / "eval" / "finetune").iterdir()
    validation = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in validation] == [0, 2, 4]
    result = load_network(tmp_path / "models" / "trained.pt")
    assert result.card["finetuned_from"]["sha256"] == file_sha256(weights)
    assert result.card["finetuned_on"]["cases"] == 4
    before, last = parameters(load_network(weights)), parameters(load_network(run / "weights.pt"))
    same = [name for name, value in last.items() if torch.equal(value, before[name])]
    assert "stage8.conv1.bias" in same
    assert "stage8.conv1.weight" not in same


def test_the_overlay_restates_no_default() -> None:
    overlay = json.loads((REPOSITORY / "bundle" / "configs" / "finetune.json").read_text(encoding="utf-8"))
    assert overlay["finetuning"] == {"_target_": "mvg_core.training.finetune.FinetuneConfig"}
