"""The files of the MONAI bundle: complete, true, without restated defaults, and of parts that exist."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundles import BUNDLE, CONFIGS, REPOSITORY
from monai.bundle.config_item import ComponentLocator
from monai.bundle.config_parser import ConfigParser
from monai.bundle.workflows import _apply_logging_file

from mvg_core import __version__
from mvg_core.network import preset
from mvg_core.network.checkpoint import load_network
from mvg_core.weights import file_sha256

OVERLAYS = {"train.json": [], "multi_gpu_train.json": ["train.json"], "paper.json": ["train.json"],
            "finetune.json": ["train.json"], "inference.json": [], "evaluate.json": ["inference.json"],
            "multi_gpu_evaluate.json": ["inference.json", "evaluate.json"]}
"""Each config, and what it is laid over."""

METADATA = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
NEW_KEYS = {"initial", "episodes_at_once", "_desc_", "finetuning", "cases", "scores", "key_metric", "sampler",
            "evaluator#key_val_metric", "dataloader#sampler", "finalize", "postprocessing#transforms#0#_disabled_"}
"""Keys that overlays add on purpose."""


def merged(name: str) -> dict[str, Any]:
    return ConfigParser.load_config_files([str(CONFIGS / part) for part in [*OVERLAYS[name], name]])


def components(part: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dictionary with a `_target_`, and where it stands."""
    if isinstance(part, dict):
        if "_target_" in part:
            yield where, part
        for key, value in part.items():
            yield from components(value, f"{where}#{key}")
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from components(value, f"{where}#{number}")


def below(name: str) -> dict[str, Any]:
    return ConfigParser.load_config_files([str(CONFIGS / part) for part in OVERLAYS[name]])


def stated(name: str) -> Iterator[Any]:
    """Every component of a config, without the arguments that only take back what the config below states."""
    base = dict(components(below(name)))
    for where, part in components(merged(name)):
        kept = {key: value for key, value in part.items() if base.get(where, part).get(key, value) == value}
        yield pytest.param(kept, id=f"{name}{where}")


ALL = [parameter for name in OVERLAYS for parameter in stated(name)]


def parameters_of(target: str) -> dict[str, inspect.Parameter]:
    """The parameters of a component, found as MONAI finds it."""
    module = ComponentLocator().get_component_module_name(target)
    component: Any = locate(target if module is None else f"{module}.{target}")
    assert component is not None, f"{target} does not exist"
    return dict(inspect.signature(component).parameters)


# --- configs ---


@pytest.mark.parametrize("part", ALL)
def test_every_part_exists_and_takes_its_arguments_and_none_restates_a_default(part: dict[str, Any]) -> None:
    parameters = parameters_of(part["_target_"])
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in part.items():
        if key.startswith("_"):
            continue
        if part["_target_"].endswith("network.preset") and key != "name":
            default: Any = getattr(preset(part["name"]), key)
        else:
            assert key in parameters or takes_all, f"{part['_target_']} takes no {key!r}"
            default = parameters[key].default if key in parameters else inspect.Parameter.empty
        assert not is_restated(value, default), f"{key} {value!r} is the default of {part['_target_']}: leave it out"


def is_restated(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        default = list(default)
    return type(value) is type(default) and value == default


@pytest.mark.parametrize(("value", "default", "restated"), [
    (16, 16, True), (16, 8, False), ([1.0], (1.0,), True), (None, None, True), (True, 1, False), ("@a", None, False)])
def test_restated_defaults_are_noticed(value: Any, default: Any, restated: bool) -> None:
    assert is_restated(value, default) is restated


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_change_what_is_there(name: str) -> None:
    base = ConfigParser(below(name))
    for key in json.loads((CONFIGS / name).read_text(encoding="utf-8")) if OVERLAYS[name] else ():
        if key.removeprefix("+") not in NEW_KEYS:
            parent = key.removeprefix("+").rpartition("#")[0]
            is_argument = parent in base and isinstance(base[parent], dict) and "_target_" in base[parent]
            assert key.removeprefix("+") in base or is_argument, f"{name}: {key} changes nothing"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_reference_has_its_item(name: str) -> None:
    config = merged(name)
    parser = ConfigParser(config)
    for reference in set(re.findall(r"@([A-Za-z_][A-Za-z0-9_#]*)", json.dumps(config))):
        assert reference in parser, f"{name} refers to @{reference}, which it does not have"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_command_refuses_wrong_overrides_first(name: str) -> None:
    assert merged(name)["initialize"][0] == "$check_command_line()"


def test_training_and_inference_mean_the_same_network_whose_weights_are_shipped() -> None:
    assert merged("train.json")["network_def"] == merged("inference.json")["network_def"]
    config = merged("inference.json")["network_def"]["config"]
    assert load_network(BUNDLE / "models" / "model.pt").config == preset(config["name"])


def test_the_paper_recipe_sees_128_episodes_a_step_on_any_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    config = merged("paper.json")
    config["train"]["dataset"] = {"_target_": "types.SimpleNamespace", "dataset_weights": {},
                                  "bank": SimpleNamespace(images=np.zeros(12_800))}
    for processes in (1, 4, 8):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        training = ConfigParser(config).get_parsed_content("training")
        assert training.batch * training.accumulate * processes == 128
        assert (training.epoch_length, training.warm_up) == (100, 500)
    assert config["train"]["trainer"]["max_epochs"] == 100
    assert (training.learning_rate, training.weight_decay, training.layer_decay) == (1e-3, 0.05, 0.8)
    shares = training.objective.masked_share
    assert (shares["segmentation"], {shares[kind] for kind in training.episodes.kinds}) == (0.0, {0.9})
    network = ConfigParser(config).get_parsed_content("network_def#config")
    assert (network.architecture, network.size, network.drop_path) == ("vit", training.episodes.size, 0.1)


def test_monai_label_finds_what_it_asks_for() -> None:
    inference, train = merged("inference.json"), ConfigParser(merged("train.json"))
    assert {"network_def", "preprocessing", "inferer", "postprocessing", "device", "bundle_root"} <= set(inference)
    for key in ("train#trainer#max_epochs", "train#dataset#data", "train#handlers", "validate#dataset#data", "network",
                "device", "bundle_root"):
        assert key in train
    assert isinstance(train["train#handlers"], list)  # it inserts a handler of its own
    assert next(iter(METADATA["network_data_format"]["inputs"])) == "image"
    assert next(iter(METADATA["network_data_format"]["outputs"])) == "pred"


def test_monai_accepts_the_logging_file() -> None:
    _apply_logging_file(str(CONFIGS / "logging.conf"))


# --- metadata ---


def metadata_script() -> Any:
    spec = importlib.util.spec_from_file_location("bundle_metadata", REPOSITORY / "scripts" / "bundle_metadata.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metadata_is_up_to_date() -> None:
    script = metadata_script()
    assert script.up_to_date(METADATA) == METADATA, "run python scripts/bundle_metadata.py"


def test_metadata_that_is_stale_is_noticed() -> None:
    script = metadata_script()
    stale = {**METADATA, "numpy_version": "1.0.0", "eval_metrics": {"demo_dice_grey_matter": 1.0}}
    assert script.up_to_date(stale) == METADATA


def test_metadata_tells_the_numbers_of_these_weights() -> None:
    numbers = json.loads((BUNDLE / "models" / "model.numbers.json").read_text())
    assert numbers["checkpoint_sha256"] == file_sha256(BUNDLE / "models" / "model.pt")
    assert METADATA["eval_metrics"]["demo_dice_grey_matter"] == numbers["demo"]["dice"]["grey matter"]
    assert METADATA["eval_metrics"]["demo_denoising_psnr_after"] == numbers["demo"]["denoising"]["psnr_after"]
    assert not any("copy" in name or "before" in name for name in METADATA["eval_metrics"])


def test_metadata_has_this_version_and_says_what_is_new_in_it() -> None:
    assert METADATA["version"] == __version__
    assert METADATA["changelog"][__version__]


def test_metadata_describes_the_network() -> None:
    size = preset("mvg_compact").size
    data_format = METADATA["network_data_format"]
    for tensor in (data_format["inputs"]["image"], data_format["outputs"]["pred"]):
        assert tensor["spatial_shape"] == [size, size]
        assert list(tensor["channel_def"]) == [str(channel) for channel in range(tensor["num_channels"])]


# --- other files ---


def test_licence_is_that_of_the_repository() -> None:
    assert (BUNDLE / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()


def tracked_files() -> list[Path]:
    """Files of the bundle, without what its use leaves there."""
    ignored = {"prompts", "eval", "data", "__pycache__"}
    return [path for path in BUNDLE.rglob("*") if path.is_file() and not ignored & set(path.relative_to(BUNDLE).parts)
            and path.suffix not in (".ts", ".onnx") and path.name != "trained.pt"]


def test_no_file_is_too_large_for_the_model_zoo() -> None:
    assert not [path for path in tracked_files() if path.stat().st_size > 25_000_000]
    assert not list(BUNDLE.glob("large_files.*"))  # needed above that size only


@pytest.mark.parametrize("name", [
    "LICENSE", "configs/metadata.json", "configs/inference.json", "configs/train.json", "configs/evaluate.json",
    "configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json", "configs/logging.conf", "models/model.pt",
    "docs/README.md", "docs/data_license.txt", "docs/performance.png", "scripts/__init__.py"])
def test_the_bundle_is_complete(name: str) -> None:
    assert (BUNDLE / name).is_file()


README = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("heading", [
    "# Model Overview", "## Data", "## Training configuration", "### Input", "### Output", "## Performance",
    "## MONAI Bundle Commands", "## API usage", "# References", "# License"])
def test_readme_has_the_headings_of_the_model_zoo(heading: str) -> None:
    assert heading in README.splitlines()


def test_readme_names_configs_and_pictures_that_exist() -> None:
    for name in re.findall(r"configs/[a-z_]+\.json", README):
        assert (BUNDLE / name).is_file(), name
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (BUNDLE / "docs" / name).is_file(), name


def test_readme_tells_the_measured_numbers() -> None:
    for name in ("demo_dice_grey_matter", "demo_dice_white_matter"):
        assert f"{METADATA['eval_metrics'][name]:.3f}".lstrip("0") in README
