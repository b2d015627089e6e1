"""MONAI's own commands on the bundle, as users type them: what they write, and what they say when something is wrong.

Every start of MONAI costs seconds, so commands that need no process of their own share one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from bundles import (
    BUNDLE,
    LABELS,
    NETWORK,
    TRAINING,
    as_arguments,
    copy_bundle,
    oblique_affine,
    run,
    subject,
    write_data,
)
from monai.bundle.scripts import ckpt_export, create_workflow, verify_metadata, verify_net_in_out
from monai.bundle.workflows import ConfigWorkflow
from tiny import tiny_network

from mvg_core.backends import TorchBackend
from mvg_core.bundle.command_line import _message, check_command_line
from mvg_core.bundle.prompts_folder import add_case
from mvg_core.bundle.references import ReferenceSource
from mvg_core.bundle.scores import CaseScores
from mvg_core.engine import VolumeEngine
from mvg_core.network.checkpoint import load_network, save_weights
from mvg_core.network.config import NetworkConfig
from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume

SCHEMA = Path(__file__).parent / "bundle_schema.json"
INFERENCE, TRAIN = "configs/inference.json", "configs/train.json"
EVALUATE = f"['{INFERENCE}','configs/evaluate.json']"
# Several commands in one process; each as if it were the only one.
SEVERAL = """
import json, runpy, sys, traceback
failed = 0
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["monai.bundle", *arguments]
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    except BaseException:
        traceback.print_exc()
        failed += 1
sys.exit(failed)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `datalist.json`."""
    return write_data(tmp_path_factory.mktemp("data")).parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A bundle with a tiny network, one reference case, and its overrides in args.json."""
    folder = copy_bundle(tmp_path_factory.mktemp("bundle") / "mvg")
    add_case(folder / "prompts", data / "image5.nii.gz", data / "label5.nii.gz", name="phantom", labels=LABELS)
    (folder / "args.json").write_text(json.dumps(NETWORK))
    shutil.copy(SCHEMA, folder / "schema.json")
    return folder


def expected(image: Path, bundle: Path) -> np.ndarray:
    """What the library makes of an image by the bundle's reference case."""
    network = load_network(bundle / "models" / "model.pt")
    case = bundle / "prompts" / "phantom"
    reference = Reference(read_volume(case / "image.nii.gz"), read_volume(case / "label.nii.gz"))
    engine = VolumeEngine(Predictor(TorchBackend(network, "cpu")))
    return engine.solve(read_volume(image), reference, Task.segmentation(LABELS)).volume.array


def check_answer(path: Path, image: Path, bundle: Path) -> None:
    answer, query = read_volume(path), read_volume(image)
    assert answer.array.dtype == np.uint8
    assert answer.geometry.is_close(query.geometry)
    np.testing.assert_array_equal(answer.array, expected(image, bundle))


# --- commands that predict, evaluate, check and export ---


@pytest.fixture(scope="module")
def done(bundle: Path, data: Path) -> Path:
    """The bundle after all these commands, run in it."""
    images = bundle / "images"
    images.mkdir()
    shutil.copy(data / "image3.nii.gz", images)
    (bundle / "evaluate_args.json").write_text(json.dumps({
        **NETWORK, "workflow_type": "eval", "config_file": [INFERENCE, "configs/evaluate.json"],
        "datalist": str(data / "datalist.json"), "output_dir": "eval/workflow"}))
    common = ["--meta_file", "configs/metadata.json", "--config_file", INFERENCE, *as_arguments(NETWORK)]
    size = as_arguments({"_meta_#network_data_format#inputs#image#spatial_shape": [32, 32]})
    weights = ["--ckpt_file", "models/model.pt"]
    pair = [str(data / f"{kind}5.nii.gz") for kind in ("image", "label")]
    predict, listing = ["run", "--args_file", "args.json", "--config_file"], str(data / "datalist.json")
    commands = [
        [*predict, INFERENCE, "--datalist", "images", "--output_dir", "eval/folder"],
        [*predict, INFERENCE, "--datalist", listing, "--reference", str(pair), "--prompts_dir", "nowhere",
         "--output_dir", "eval/list"],
        [*predict, EVALUATE, "--datalist", listing, "--output_dir", "eval/scores"],
        ["run_workflow", "--args_file", "evaluate_args.json"],
        ["verify_metadata", "--meta_file", "configs/metadata.json", "--filepath", "schema.json"],
        ["verify_net_in_out", "network_def", *common],
        ["ckpt_export", "network_def", "--filepath", "models/script.ts", *weights, *common],
        ["ckpt_export", "network_def", "--filepath", "models/trace.ts", "--use_trace", "True", *weights, *common,
         *size],
        ["onnx_export", "network_def", "--filepath", "models/model.onnx", "--use_trace", "True", "--converter_kwargs",
         "{'dynamo': False, 'opset_version': 17}", *weights, *common, *size]]
    finished = run(json.dumps(commands), cwd=bundle, launcher=("-c", SEVERAL))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return bundle


def test_inference_on_a_folder_with_the_prompts_folder(done: Path) -> None:
    answers = list((done / "eval" / "folder").iterdir())
    assert [path.name for path in answers] == ["image3_mvg.nii.gz"]
    check_answer(answers[0], done / "images" / "image3.nii.gz", done)


def test_inference_on_a_datalist_with_another_reference(done: Path, data: Path) -> None:
    answers = sorted((done / "eval" / "list").iterdir())
    assert [path.name for path in answers] == ["image3_mvg.nii.gz", "image4_mvg.nii.gz"]
    check_answer(answers[1], data / "image4.nii.gz", done)


@pytest.mark.parametrize("folder", ["scores", "workflow"])
def test_evaluation_scores_every_answer_in_3d_and_reports(done: Path, data: Path, folder: str) -> None:
    out = done / "eval" / folder
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["cases"], summary["task"]) == (2, "segmentation")
    truth, answer = read_volume(data / "label3.nii.gz").array, expected(data / "image3.nii.gz", done)
    ball = 2 * np.sum((truth == 2) & (answer == 2)) / (np.sum(truth == 2) + np.sum(answer == 2))
    rows = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("dice")
    dice = next(float(row[column]) for row in rows if row[0] == "s3" and "ball" in row)
    assert dice == pytest.approx(ball, abs=1e-5)
    assert (out / "report.html").is_file()
    assert not list(out.glob("*_mvg.nii.gz"))


@pytest.mark.parametrize("name", ["script.ts", "trace.ts"])
def test_torchscript_gives_the_same_numbers(done: Path, name: str) -> None:
    image = torch.rand(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = load_network(done / "models" / "model.pt")(image)
        got = torch.jit.load(done / "models" / name)(image)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_onnx_gives_the_same_numbers(done: Path) -> None:
    image = torch.rand(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(done / "models" / "model.onnx")
    with torch.inference_mode():
        wanted = load_network(done / "models" / "model.pt")(image).numpy()
    got = np.asarray(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])
    np.testing.assert_allclose(got, wanted, atol=1e-4)


# --- commands in processes of their own ---


def test_training_writes_weights_that_inference_can_use(bundle: Path, data: Path) -> None:
    folder = bundle.parent / "trained"
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("eval", "*.ts", "*.onnx"))
    finished = run("run", "--config_file", TRAIN, "--dataset_dir", data, "--initial", "models/model.pt",
                   *as_arguments(NETWORK | TRAINING), cwd=folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    trained = folder / "models" / "trained.pt"
    before, after = (load_network(path).state_dict() for path in (folder / "models" / "model.pt", trained))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    runs = list((folder / "eval").glob("run-*"))
    assert len(runs) == 1
    assert (runs[0] / "best.pt").read_bytes() == trained.read_bytes()
    assert list((folder / "eval").glob("events*"))


@pytest.fixture(scope="module")
def together(bundle: Path, data: Path) -> Path:
    """The bundle after both commands for several processes."""
    folder = bundle.parent / "together"
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("eval", "*.ts", "*.onnx"))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle")
    evaluated = run("run", "--config_file", f"{EVALUATE[:-1]},'configs/multi_gpu_evaluate.json']", "--args_file",
                    "args.json", "--dataset_dir", data, cwd=folder, launcher=launcher)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    trained = run("run", "--config_file", f"['{TRAIN}','configs/multi_gpu_train.json']", "--dataset_dir", data,
                  *as_arguments(NETWORK | TRAINING), cwd=folder, launcher=launcher)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    return folder


def test_two_processes_train_one_network(together: Path) -> None:
    assert load_network(together / "models" / "trained.pt").config.size == 32
    assert len(list((together / "eval").glob("events*"))) == 1  # the second process draws no curves


def test_two_processes_share_the_cases_of_an_evaluation(together: Path, done: Path) -> None:
    alone, both = ((folder / "metrics.csv").read_text() for folder in (done / "eval" / "scores", together / "eval"))
    assert sorted(alone.splitlines()) == sorted(both.splitlines())


def test_without_a_reference_one_line_says_what_to_do(bundle: Path, data: Path) -> None:
    finished = run("run", "--config_file", INFERENCE, "--args_file", "args.json", "--datalist", data / "image3.nii.gz",
                   "--prompts_dir", "empty", cwd=bundle)
    assert finished.returncode == 1
    assert [line for line in finished.stderr.splitlines() if "Error" in line or "Traceback" in line] == [
        "Error: empty has no reference case, and the network needs a solved example: add one with `mvg prompts add "
        "IMAGE LABEL`, try `mvg prompts demo`, or name one with --reference \"['image','label']\""]


# --- as MONAI's tools use the bundle: in their own process ---


def workflow_of(bundle: Path, kind: str, config: Any, **overrides: Any) -> ConfigWorkflow:
    """As the unit tests of the model zoo make it."""
    files = [str(bundle / one) for one in ([config] if isinstance(config, str) else config)]
    return create_workflow(config_file=files, workflow_type=kind, logging_file=False, bundle_root=str(bundle),
                           meta_file=str(bundle / "configs" / "metadata.json"), **(NETWORK | overrides))


def evaluation_of(bundle: Path, items: list[Any], out: Path) -> ConfigWorkflow:
    files = [INFERENCE, "configs/evaluate.json"]
    return workflow_of(bundle, "eval", files, datalist=items, output_dir=str(out))


def check_workflow(workflow: ConfigWorkflow) -> None:
    """All required properties, optional ones under the right names; then it runs."""
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()


def test_inference_is_a_workflow_with_all_properties(bundle: Path, data: Path, tmp_path: Path) -> None:
    workflow = workflow_of(bundle, "infer", INFERENCE, datalist=[{"image": str(data / "image4.nii.gz")}],
                           output_dir=str(tmp_path))
    check_workflow(workflow)
    check_answer(tmp_path / "image4_mvg.nii.gz", data / "image4.nii.gz", bundle)


def test_evaluation_is_a_workflow_with_all_properties(bundle: Path, data: Path, tmp_path: Path) -> None:
    workflow = workflow_of(bundle, "eval", [INFERENCE, "configs/evaluate.json"], dataset_dir=str(data),
                           output_dir=str(tmp_path))
    check_workflow(workflow)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert workflow.evaluator.state.metrics["score"] == pytest.approx(summary["metrics"]["dice"]["mean"], abs=1e-4)


def test_training_is_a_workflow_with_all_properties(bundle: Path, data: Path, tmp_path: Path) -> None:
    workflow = workflow_of(bundle, "train", TRAIN, dataset_dir=str(data), output_dir=str(tmp_path / "eval"),
                           ckpt_dir=str(tmp_path), **TRAINING)
    check_workflow(workflow)
    assert workflow.trainer.state.iteration == 2
    assert (tmp_path / "trained.pt").is_file()


def test_the_paper_recipe_trains_a_vision_transformer_from_other_weights(bundle: Path, data: Path, tmp_path: Path
                                                                         ) -> None:
    """In small: its schedule, objective and layer decay, on a tiny network that starts as an encoder's would."""
    network: dict[str, Any] = {"architecture": "vit", "size": 32, "widths": [16], "heads": 2, "depth": 3, "patch": 8,
                               "position_grid": 2, "merge_after": 1, "feature_blocks": [1, 2], "decoder_width": 4}
    save_weights(tiny_network(NetworkConfig.from_json(network)), tmp_path / "start.pt")
    overrides = TRAINING | {"network_def#config": {"_target_": "mvg_core.network.NetworkConfig", **network},
                            "initial": str(tmp_path / "start.pt"), "training#accumulate": 2, "episodes_at_once": 2,
                            "dataset_dir": str(data), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    files = [str(bundle / TRAIN), str(bundle / "configs" / "paper.json")]
    workflow = create_workflow(config_file=files, workflow_type="train", logging_file=False, bundle_root=str(bundle),
                               meta_file=str(bundle / "configs" / "metadata.json"), **overrides)
    check_workflow(workflow)
    trained = load_network(tmp_path / "trained.pt")
    before = load_network(tmp_path / "start.pt").state_dict()
    changes = {name: (value - before[name]).abs().max() for name, value in trained.named_parameters()}
    assert 0 < changes["blocks.0.mlp.fc1.weight"] < changes["blocks.2.mlp.fc1.weight"]  # layer decay


def test_monai_label_trains_with_its_own_items_and_handler(bundle: Path, data: Path, tmp_path: Path) -> None:
    """As its stock app overrides the config: bare items, epochs, and a loader of the shipped weights put first."""
    items = [{key: str(data / f"{key}{number}.nii.gz") for key in ("image", "label")} for number in range(3)]
    loader = {"_target_": "CheckpointLoader", "load_path": str(bundle / "models" / "model.pt"),
              "load_dict": {"model": "$@network"}, "strict": False}
    overrides = TRAINING | {"train#dataset#data": items[:2], "validate#dataset#data": items[2:],
                            "train#handlers": [loader], "training#learning_rate": 1e-9}
    workflow = workflow_of(bundle, "train", TRAIN, output_dir=str(tmp_path / "eval"), ckpt_dir=str(tmp_path),
                           device=torch.device("cpu"), **overrides)
    workflow.run()
    wanted = load_network(bundle / "models" / "model.pt").state_dict()
    got = load_network(tmp_path / "trained.pt").state_dict()
    for name, value in wanted.items():
        if value.is_floating_point():
            torch.testing.assert_close(got[name], value, atol=1e-3, rtol=1e-2, msg=name)


def test_monai_label_predicts_with_the_parts_it_asks_for(bundle: Path, data: Path) -> None:
    """As its stock app puts them together: an item of its own, a batch of one by indexing, the result by indexing."""
    parser = workflow_of(bundle, "infer", INFERENCE, datalist=[{"image": str(data / "image4.nii.gz")}]).parser
    item: dict[str, Any] = {"image": str(data / "image4.nii.gz"), "image_path": "kept", "device": "cpu", "labels": {}}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        item = transform(item)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    answer = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    assert item["image_path"] == "kept"
    assert tuple(answer.shape[1:]) == tuple(int(n) for n in item["image"].meta["spatial_shape"])
    np.testing.assert_array_equal(np.asarray(answer)[0], expected(data / "image4.nii.gz", bundle))
    np.testing.assert_allclose(item["image"].meta["original_affine"], oblique_affine(), atol=1e-5)


# --- what people get wrong ---


def refusal(act: Callable[[], Any]) -> str:
    """What would be printed."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps errors in its own
        act()
    message = _message(caught.value)
    assert message is not None, f"a traceback would be shown: {caught.value!r}"
    assert "\n" not in message
    return message


def test_a_damaged_file_of_a_datalist_is_named(bundle: Path, data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "half.nii.gz"
    damaged.write_bytes((data / "image3.nii.gz").read_bytes()[:5000])
    message = refusal(workflow_of(bundle, "infer", INFERENCE, datalist=[str(damaged)]).run)
    assert str(damaged) in message
    assert "copy or export it again" in message


def test_an_image_that_cannot_be_answered_is_named(bundle: Path, tmp_path: Path) -> None:
    image, _ = subject(0)
    write_volume(image.with_array(np.full_like(image.array, 7)), tmp_path / "flat.nii.gz")
    message = refusal(workflow_of(bundle, "infer", INFERENCE, datalist=[str(tmp_path / "flat.nii.gz")]).run)
    assert message.startswith(f"{tmp_path / 'flat.nii.gz'}: the query is constant")


@pytest.mark.parametrize(("overrides", "words"), [
    ({"network_def#config#sise": 32}, "unexpected keyword argument 'sise'"),
    ({"network_def#config#size": 100}, "size 100 must be a multiple of"),
    ({"network_def#config#depth": 2}, "the weights belong to another network: depth 1 instead of 2"),
    ({"ckpt_file": "nowhere.pt"}, "no weights 'nowhere.pt'"),
    ({"references#names": ["liver"]}, "no reference case is called 'liver', only phantom (segmentation)"),
    ({"references#task": "denoising"}, "no reference case shows 'denoising'"),
    ({"reference": "a.nii.gz"}, "a.nii.gz is one file: give an image and its label"),
    ({"datalist": "nowhere"}, "nowhere: no such file or folder"),
    ({"datalist": [3]}, "the datalist holds 3"),
    ({"network": "@nothing"}, "nothing"),
    ({"inferer#_target_": "mvg_core.nothing"}, "Cannot locate class or function path: 'mvg_core.nothing'"),
])
def test_wrong_values_are_told_in_one_line(bundle: Path, data: Path, overrides: dict[str, Any], words: str) -> None:
    given = {"datalist": [str(data / "image3.nii.gz")]} | overrides
    assert words in refusal(lambda: workflow_of(bundle, "infer", INFERENCE, **given).run())


@pytest.mark.parametrize(("overrides", "words"), [
    ({"datalist": "nowhere.json"}, "nowhere.json"),
    ({"initial": "nowhere.pt"}, "no weights 'nowhere.pt'"),
    ({"training#batch": 0}, "batch must be at least 1"),
    ({"train#trainer#max_epoch": 3}, "unexpected keyword argument 'max_epoch'"),
])
def test_wrong_values_of_a_training_are_told_in_one_line(bundle: Path, data: Path, tmp_path: Path,
                                                         overrides: dict[str, Any], words: str) -> None:
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)} | TRAINING | overrides
    assert words in refusal(lambda: workflow_of(bundle, "train", TRAIN, **options).run())
    assert not (tmp_path / "trained.pt").exists()


def test_a_reference_is_never_scored_by_itself(bundle: Path, data: Path, tmp_path: Path) -> None:
    items = [{key: str(data / f"{key}5.nii.gz") for key in ("image", "label")}]
    workflow = evaluation_of(bundle, items, tmp_path)
    assert "is reference case 'phantom' itself" in refusal(workflow.run)


def test_labels_with_two_meanings_are_not_scored(bundle: Path, data: Path, tmp_path: Path) -> None:
    items = [{key: str(data / f"{key}3.nii.gz") for key in ("image", "label")} | {"labels": {1: "kidney"}}]
    workflow = evaluation_of(bundle, items, tmp_path)
    assert "label 1 is 'kidney' in the datalist and 'block' in the references" in refusal(workflow.run)


def test_a_truth_on_another_grid_is_not_scored(bundle: Path, data: Path, tmp_path: Path) -> None:
    label = read_volume(data / "label3.nii.gz")
    write_volume(Volume.from_array(label.array), tmp_path / "label.nii.gz")
    items = [{"image": str(data / "image3.nii.gz"), "label": str(tmp_path / "label.nii.gz")}]
    message = refusal(evaluation_of(bundle, items, tmp_path).run)
    assert f"the answer to {data / 'image3.nii.gz'} and {tmp_path / 'label.nii.gz'} lie on different grids" in message


def test_answers_to_other_images_are_not_scored(bundle: Path, data: Path, tmp_path: Path) -> None:
    items = [{key: str(data / f"{key}3.nii.gz") for key in ("image", "label")}]
    scores = CaseScores(items, ReferenceSource(bundle / "prompts"), tmp_path)
    with pytest.raises(ValueError, match="is none of the items to be scored"):
        scores.update([{"image": torch.zeros(1, 4, 4, 4), "pred": torch.zeros(1, 4, 4, 4)}])


def test_an_item_without_answer_is_not_scored(bundle: Path, data: Path, tmp_path: Path) -> None:
    message = refusal(lambda: evaluation_of(bundle, [str(data / "image3.nii.gz")], tmp_path).run())
    assert "has no answer to be compared with" in message


@pytest.mark.parametrize(("arguments", "words"), [
    (["--datlist", "x"], "no config has an item 'datlist': did you mean --datalist?"),
    (["--datlist=x"], "did you mean --datalist?"),
    (["--inferers#plane", "axial"], "did you mean --inferer?"),
    (["--zzz", "1"], "so --zzz would change nothing"),
])
def test_misspelt_overrides_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
                                        ) -> None:
    monkeypatch.chdir(bundle)
    with pytest.raises(ValueError, match="no config has an item") as caught:
        check_command_line(["run", "--config_file", INFERENCE, *arguments])
    assert words in str(caught.value)


@pytest.mark.parametrize("arguments", [
    ["--config_file", INFERENCE, "--datalist", "x"],
    [f"--config_file={EVALUATE}", "--scores#output_dir", "x", "--logging_file", "y"],
    ["--config_file", f"{INFERENCE},configs/evaluate.json", "--scores::output_dir", "x"],
    ["--args_file", "both.json", "--scores#output_dir", "x"],
    ["--config_file", INFERENCE, "--_meta_#version", "2"],
    ["--config_file", TRAIN, "--tracking", "mlflow", "--tracking_uri", "x", "--experiment_name", "y"],
])
def test_overrides_that_change_something_are_accepted(bundle: Path, monkeypatch: pytest.MonkeyPatch,
                                                      arguments: list[str]) -> None:
    monkeypatch.chdir(bundle)
    (bundle / "both.json").write_text(json.dumps({"config_file": [INFERENCE, "configs/evaluate.json"]}))
    check_command_line(["run", *arguments])


def test_none_which_monai_leaves_out_is_refused_with_what_it_takes(bundle: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    for arguments in (["--reader", "None"], ["--reader=None"]):
        with pytest.raises(ValueError, match=r"--reader None would change nothing: write --reader '\$None'"):
            check_command_line(["run", "--config_file", INFERENCE, *arguments])
    check_command_line(["run", "--config_file", INFERENCE, "--reader", "$None", "--run_id", "None"])


def test_outside_the_command_nothing_is_changed() -> None:
    hook = sys.excepthook
    check_command_line()
    assert sys.excepthook is hook


class Broken:
    """A part of a config with a defect."""

    def __init__(self) -> None:
        raise ZeroDivisionError("a defect")


@pytest.mark.parametrize("value", [{"_target_": f"{__name__}.Broken"}, "$1 / 0"])
def test_a_defect_keeps_its_traceback(bundle: Path, value: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        workflow_of(bundle, "infer", INFERENCE, references=value)
    assert _message(caught.value) is None


# --- the model zoo ---


def test_the_shipped_bundle_passes_the_checks_of_the_model_zoo(tmp_path: Path) -> None:
    """Its files, and network and TorchScript with the shipped weights; licence and sizes are checked elsewhere."""
    root = tmp_path / "models" / "mvg_compact"
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("prompts", "eval", "data", "*.ts", "trained.pt"))
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    (root / "eval").mkdir()
    shutil.copy(SCHEMA, root / "eval" / "schema.json")
    files: dict[str, Any] = {"meta_file": str(root / "configs" / "metadata.json"), "bundle_root": str(root),
                             "config_file": str(root / "configs" / "inference.json")}
    verify_metadata(meta_file=files["meta_file"], filepath=str(root / "eval" / "schema.json"))
    verify_net_in_out(net_id="network_def", **files)
    ckpt_export(net_id="network_def", filepath=str(root / "models" / "model.ts"),
                ckpt_file=str(root / "models" / "model.pt"), **files)
    assert torch.jit.load(root / "models" / "model.ts")(torch.rand(1, 5, 192, 192)).shape == (1, 3, 192, 192)


def test_the_schema_of_the_tests_refuses_incomplete_metadata(bundle: Path, tmp_path: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    del metadata["network_data_format"]["outputs"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    shutil.copy(SCHEMA, tmp_path / "schema.json")
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))
