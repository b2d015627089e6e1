"""The bundle, unchanged, in MONAI Label's own app `monaibundle`: offline, with a prompts folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.client.client import MONAILabelClient
from mvg_core.bundle.prompts_folder import add_case
from mvg_core.volume_io import read_volume, write_volume

from patients import Patients, dice
from serving import REPOSITORY, Server, infer, serving, wait_for

NAME = "mvg_compact"


@pytest.fixture(scope="module")
def stock(people: Patients, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("stock")
    app, images = folder / "app", folder / "studies"
    shutil.copytree(Path(sys.prefix) / "monailabel/sample-apps/monaibundle", app)
    shutil.copytree(REPOSITORY / "bundle", app / "model" / NAME,
                    ignore=shutil.ignore_patterns("eval", "data", "prompts", "*.onnx*", "trained.pt"))
    for name, one in zip(("liver", "other"), people.labelled[:2], strict=True):
        add_case(app / "model" / NAME / "prompts", one.image, one.truth, name=name)
    images.mkdir()
    for one in (*people.labelled[2:4], people.queries[0]):
        write_volume(one.image, images / f"{one.name}.nii.gz")
    (images / "broken.nii.gz").write_bytes(b"no image")
    with serving(folder, images, {"models": NAME}, app=app) as running:
        yield running


def test_it_answers_by_the_prompts_folder_with_the_options_that_it_shows(stock: Server, people: Patients,
                                                                         tmp_path: Path) -> None:
    client, query = MONAILabelClient(stock.url, str(tmp_path)), people.queries[0]
    config = client.info()["models"][NAME]["config"]
    assert {"preset", "plane", "task", "cases"} <= set(config)

    path, _ = client.infer(NAME, query.name, {"preset": "fast", "cases": "liver"})
    other, _ = client.infer(NAME, query.name, {"preset": "fast", "cases": "other"})

    answer = read_volume(path)
    assert answer.geometry.is_close(query.image.geometry)
    assert dice(answer.array, query.truth.array) > 0.2
    assert not np.array_equal(answer.array, read_volume(other).array)


@pytest.mark.parametrize(("image", "params", "says"), [
    (None, {"cases": "spleen"}, "no reference case is called 'spleen', only liver"),
    (None, {"task": "denoising"}, "no reference case shows 'denoising'"),
    (None, {"preset": "brilliant"}, "use one of plain, fast"),
    (None, {"plane": "diagonal"}, "diagonal"),
    ("nobody", {}, "no image has this id"),
    ("broken", {}, "broken.nii.gz")])
def test_mistakes_are_told_to_the_client(stock: Server, people: Patients, image: str | None, params: dict[str, str],
                                         says: str) -> None:
    answer = infer(stock, NAME, image or people.queries[0].name, params=params, output="json")

    assert (answer.status_code, says in answer.text) == (422, True), answer.text


def test_it_trains_and_offers_what_was_trained(stock: Server, people: Patients, tmp_path: Path) -> None:
    client = MONAILabelClient(stock.url, str(tmp_path))
    for one in people.labelled[2:4]:
        path = tmp_path / f"{one.name}.nii.gz"
        write_volume(one.truth, path)
        client.save_label(one.name, str(path), "final")

    client.train_start(NAME, {"max_epochs": 1, "val_split": 0.5, "batch": 1, "epoch_length": 1, "learning_rate": 1e-4,
                              "model_filename": "model.pt", "multi_gpu": False})
    finished = wait_for(f"{stock.url}/train/")

    assert finished["status"] == "DONE", finished["details"]
    trained = stock.studies.parent / "app" / "model" / NAME / "models" / "trained.pt"
    assert trained.is_file()
    answer = requests.post(f"{stock.url}/infer/{NAME}", params={"image": people.queries[0].name, "output": "json"},
                           data={"params": '{"model_filename": "trained.pt", "preset": "plain"}'}, timeout=900)
    assert answer.status_code == 200
