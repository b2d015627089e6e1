"""What a stage of training is told: checked, stored, compared with what a run was started with."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mvg_core.training import recipe
from mvg_core.training.augmentation import WarpConfig
from mvg_core.training.config import MAY_CHANGE, TrainingConfig
from mvg_core.training.episodes import EpisodeConfig


def test_a_configuration_survives_json():
    config = TrainingConfig(episodes=EpisodeConfig(size=64, prompts=(1.0,), warp=WarpConfig(zoom=2.0)), batch=3,
                            layer_decay=0.8, precision="fp16", patience=4)
    text = json.dumps(config.to_json())
    again = TrainingConfig.from_json(json.loads(text))
    assert again == config
    assert isinstance(again.episodes.prompts, tuple)
    assert all(TrainingConfig.from_json(stage.to_json()) == stage for stage in recipe.STAGES.values())


def test_fields_that_were_renamed_are_still_read():
    stored = TrainingConfig(iterations=7).to_json()
    for name in ("precision", "epoch_length", "accumulate", "layer_decay", "parallel", "compile", "patience"):
        del stored[name]
    old = {**stored, "mixed_precision": False, "checkpoint_every": 100}
    assert TrainingConfig.from_json(old) == TrainingConfig(iterations=7, precision="fp32", epoch_length=100)
    assert TrainingConfig.from_json({**old, "mixed_precision": True}).precision == "bf16"


@pytest.mark.parametrize(("fields", "message"), [
    ({"lerning_rate": 1.0}, r"training configuration has unknown fields \['lerning_rate'\]; known: .*learning_rate"),
    ({"episodes": {"sise": 64}}, r"training configuration, episodes, has unknown fields \['sise'\]"),
])
def test_unknown_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_json(fields)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("batch", 0, "batch must be at least 1, got 0"),
    ("accumulate", 0, "accumulate must be at least 1"),
    ("epoch_length", 0, "epoch_length must be at least 1"),
    ("warm_up", -1, "warm_up must not be negative"),
    ("patience", -1, "patience must not be negative"),
    ("learning_rate", 0.0, "learning_rate must be above 0"),
    ("layer_decay", 0.0, "layer_decay must be above 0"),
    ("ema", 1.0, r"ema must be in \[0, 1\), got 1.0"),
    ("precision", "fp8", "precision must be one of bf16, fp16, fp32, got 'fp8'"),
    ("parallel", "dp", "parallel must be one of ddp, fsdp, got 'dp'"),
])
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{field: value})


def test_fp16_is_refused_for_split_networks():
    with pytest.raises(ValueError, match="fp16 does not work with parallel fsdp: use bf16"):
        TrainingConfig(precision="fp16", parallel="fsdp")


def test_differences_are_named_unless_they_may_change():
    before = TrainingConfig()
    assert before.differences(TrainingConfig.from_json(before.to_json())) == []
    free = dataclasses.replace(before, iterations=9, epoch_length=3, precision="fp32", compile=True, parallel="fsdp")
    assert free.differences(before) == []
    warp = WarpConfig(zoom=2.0)
    other = dataclasses.replace(before, seed=3, episodes=EpisodeConfig(warp=warp, prompts=(1.0,)))
    assert other.differences(before) == [
        "episodes.prompts [0.7, 0.2, 0.1] instead of [1.0]", "episodes.warp.zoom 3.5 instead of 2.0",
        "seed 0 instead of 3"]
    assert {field.name for field in dataclasses.fields(TrainingConfig)} >= MAY_CHANGE
