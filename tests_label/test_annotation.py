"""An annotation project from its first image on, in order of use: each test goes on where the one before ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mvg_core.bundle.prompts_folder import add_case
from mvg_core.volume import Volume
from mvg_core.volume_io import write_volume

from patients import Patients, dice
from serving import Server, infer, serving, wait_for
from slicer import Slicer, named_segments

MEASURED: dict[str, float] = {}
"""Mean Dice of the queries, by what served as reference."""


@pytest.fixture(scope="module")
def project(people: Patients, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("project")
    images = folder / "studies"
    images.mkdir()
    for one in (*people.labelled[1:4], *people.queries):
        write_volume(one.image, images / f"{one.name}.nii.gz")
    with serving(folder, images, {"prompts": str(folder / "prompts"), "model_dir": str(folder / "model")}) as running:
        yield running


@pytest.fixture
def annotator(project: Server, tmp_path: Path) -> Slicer:
    return Slicer(project.url, tmp_path)


def answers(annotator: Slicer, people: Patients, **options: Any) -> tuple[float, dict[str, Any]]:
    """Mean Dice of the queries, by name of the labels; what was told about the last."""
    found, told = [], {}
    for query in people.queries:
        answer, told = annotator.segment("mvg_segment", query.name, **options)
        assert answer.geometry.is_close(query.image.geometry)
        segments = named_segments(answer, told["label_names"])
        named = np.zeros_like(answer.array)
        for number, name in people.names.items():
            named[segments.get(name, np.zeros(answer.array.shape, bool))] = number
        found.append(dice(named, query.truth.array))
    return float(np.mean(found)), told


def test_without_any_reference_the_server_says_how_to_get_one(project: Server, people: Patients) -> None:
    answer = infer(project, "mvg_segment", people.queries[0].name)

    assert answer.status_code == 422
    assert "Submit Label" in answer.json()["detail"]
    assert "prompts folder" in answer.json()["detail"]


def test_the_first_sample_is_an_image_of_the_folder(annotator: Slicer, project: Server) -> None:
    sample = annotator.client.next_sample("least_alike", {})

    assert Path(sample["path"]).parent == project.studies.resolve()
    assert sample["id"] in annotator.client.datastore()["objects"]


def test_another_annotator_gets_another_image(annotator: Slicer, project: Server) -> None:
    mine = annotator.client.next_sample("least_alike", {})["id"]
    theirs = requests.post(f"{project.url}/activelearning/least_alike", json={"client_id": "b"}, timeout=900).json()

    assert mine != theirs["id"]


def test_the_prompts_folder_serves_until_there_is_a_label(annotator: Slicer, project: Server, people: Patients) -> None:
    first = people.labelled[0]
    add_case(project.studies.parent / "prompts", first.image, first.truth, name="first", labels=people.names)

    MEASURED["prompts folder"], told = answers(annotator, people)

    assert (told["reference_source"], told["references"]) == ("prompts folder", ["first"])


def test_a_submitted_label_is_used_from_then_on(annotator: Slicer, people: Patients) -> None:
    one = people.labelled[1]
    annotator.submit(one.name, one.truth, list(people.names.values()))

    MEASURED["1 label"], told = answers(annotator, people)

    assert (told["reference_source"], told["references"]) == ("latest labels", [one.name])
    assert annotator.client.info()["datastore"]["completed"] == 1


def test_labels_keep_their_names_when_a_case_numbers_them_otherwise(annotator: Slicer, people: Patients) -> None:
    for one in people.labelled[2:4]:  # segments drawn in the reverse order
        turned = [*reversed(people.names)]
        array = np.select([one.truth.array == old for old in turned], range(1, len(turned) + 1), 0)
        annotator.submit(one.name, one.truth.with_array(array), [people.names[number] for number in turned])

    MEASURED["3 labels"], told = answers(annotator, people)

    assert told["references"] == [one.name for one in reversed(people.labelled[1:4])]
    assert told["label_names"] == {name: number for number, name in people.names.items()}
    assert annotator.client.info()["models"]["mvg_segment"]["labels"] == told["label_names"]


def test_three_labels_are_not_worse_than_the_prompts_folder(people: Patients,
                                                           record_property: Callable[[str, object], None]) -> None:
    record_property("dice", MEASURED)
    print(f"\nmean Dice, {people.source}: " + ", ".join(f"{name} {value:.3f}" for name, value in MEASURED.items()))

    assert MEASURED["3 labels"] >= MEASURED["prompts folder"] - 0.02
    assert MEASURED["3 labels"] > 0.5


def test_batch_inference_answers_what_has_no_label(annotator: Slicer, project: Server, people: Patients) -> None:
    started = requests.post(f"{project.url}/batch/infer/mvg_segment", params={"images": "unlabeled"},
                            json={"preset": "fast", "n_references": 1}, timeout=900)
    assert started.status_code == 200
    finished = wait_for(f"{project.url}/batch/infer")

    assert finished["status"] == "DONE", finished["details"]
    labels = {one: about["labels"] for one, about in annotator.client.datastore()["objects"].items()}
    answered = {one: tags["original"]["info"] for one, tags in labels.items() if "original" in tags}
    assert set(answered) == {query.name for query in people.queries}
    assert all(info["params"]["label_names"] for info in answered.values())
    assert set(annotator.client.info()["datastore"]["label_tags"]) == {"final", "original"}


def test_scoring_finds_the_expected_quality_and_the_worst_comes_next(annotator: Slicer, project: Server,
                                                                     people: Patients) -> None:
    answer = requests.post(f"{project.url}/scoring/mvg_quality", params={"run_sync": True},
                           json={"preset": "fast", "n_references": 1}, timeout=900)
    scored = answer.json()["scored"]
    sample = annotator.client.next_sample("lowest_quality", {})

    assert set(scored) == {query.name for query in people.queries}
    assert all(0 < quality < 1 for quality in scored.values())
    assert sample["id"] == min(scored, key=lambda one: scored[one])
    assert sample["mvg_quality"]["expected_dice"] == scored[sample["id"]]


def test_training_learns_from_the_labels_and_serves_from_then_on(annotator: Slicer, project: Server,
                                                                 people: Patients) -> None:
    annotator.client.train_start("mvg_finetune", {**annotator.options("mvg_finetune", "trainers"), "steps": 1})
    finished = wait_for(f"{project.url}/train/")
    assert finished["status"] == "DONE", finished["details"]

    info = annotator.client.info()
    stats = info["train_stats"]["mvg_finetune"]
    assert (stats["status"], stats["cases"]) == ("done", 3)
    assert 0 < stats["best_metric"] <= 1
    assert info["models"]["mvg_segment"]["config"]["weights"] == ["fine-tuned", "shipped"]
    before = annotator.segment("mvg_segment", people.queries[0].name, preset="plain", weights="shipped")[1]
    after = annotator.segment("mvg_segment", people.queries[0].name, preset="plain")[1]
    assert after["weights"] == "fine-tuned"
    assert after["checkpoint_sha256"] != before["checkpoint_sha256"]


def test_what_was_drawn_is_what_a_download_gives(annotator: Slicer, people: Patients) -> None:
    one = people.labelled[1]
    path = annotator.client.download_label(one.name, "final")

    saved = _read(path)
    assert np.array_equal(saved.array, one.truth.array)
    assert saved.geometry.is_close(one.image.geometry)


def test_logs_of_background_tasks_name_no_image(project: Server, people: Patients) -> None:
    log = project.log.read_text()

    assert [one.name for one in (*people.labelled, *people.queries) if one.name in log] == []


def _read(path: str) -> Volume:
    from mvg_core.volume_io import read_volume

    return read_volume(path)
