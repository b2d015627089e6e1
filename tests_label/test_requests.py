"""Single requests to a server whose folder holds labels: every way to a reference, geometry, formats, mistakes."""

from __future__ import annotations

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mvg_core.references import marked_slices
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume

from conftest import Studies
from dicom import write_series
from patients import Patient, dice
from serving import Server, infer
from slicer import Slicer, named_segments

BODIES: list[dict[str, Any]] = [
    {}, {"json": {}}, {"json": []}, {"data": {"params": "{bad", "info": "[]"}},
    {"data": {"params": "[1]", "info": "3"}, "files": {key: ("a.nii.gz", b"xx") for key in ("label", "file", "files")}}]
"""What programs with a mistake might send."""
SCRIBBLES = ("background_scribbles", "foreground_scribbles")


@pytest.fixture
def annotator(server: Server, tmp_path: Path) -> Slicer:
    return Slicer(server.url, tmp_path)


def result(answer: requests.Response, folder: Path, suffix: str = ".nii.gz") -> Volume:
    """The file of an answer with `output=image`."""
    assert answer.status_code == 200, answer.text
    path = folder / f"answer{suffix}"
    path.write_bytes(answer.content)
    return read_volume(path)


def saved(volume: Volume, folder: Path, name: str = "label.nii.gz") -> Path:
    path = folder / name
    write_volume(volume, path, overwrite=True)
    return path


def only(label: np.ndarray, axis: int, numbers: list[int]) -> np.ndarray:
    """A label map with these slices alone."""
    kept = np.zeros_like(label)
    for number in numbers:
        np.moveaxis(kept, axis, 0)[number] = np.moveaxis(label, axis, 0)[number]
    return kept


# --- Slicer's Scribbles: paint a slice, Update ---


@pytest.fixture
def painted(studies: Studies) -> tuple[Patient, int, np.ndarray]:
    """A patient, a slice (along the last axis), and what an annotator paints there: one structure."""
    one = studies.oblique
    truth = one.truth.array == 1
    middle = int(np.argmax(truth.sum(axis=(0, 1))))
    return one, middle, only(truth, 2, [middle])


@pytest.mark.parametrize("name", ["oblique", "oblique_nrrd"])
def test_one_painted_slice_becomes_a_volume_for_an_unmodified_slicer(
        annotator: Slicer, painted: tuple[Patient, int, np.ndarray], name: str) -> None:
    one, middle, drawn = painted
    scene = ["tumour", *SCRIBBLES]

    answer, told = annotator.update_scribbles("mvg_propagate", name, one.image.with_array(drawn * 3), scene, "tumour")

    assert set(np.unique(answer.array)) == {0, 1}
    assert answer.geometry.is_close(one.image.geometry)
    assert np.array_equal(answer.array[..., middle], drawn[..., middle])  # what was drawn stays
    around = [middle - 1, middle + 1]
    assert dice(answer.array[..., around], (one.truth.array == 1)[..., around]) > 0.6
    assert told["painted_slices"] == [middle]
    assert list(named_segments(answer, told["label_names"])) == ["tumour"]


def test_a_correction_counts_where_it_was_painted_and_the_old_answer_nowhere_else(
        annotator: Slicer, painted: tuple[Patient, int, np.ndarray]) -> None:
    one, middle, drawn = painted
    before = np.zeros_like(drawn)
    before[2:6, 2:6, :] = True  # the answer before was wrong everywhere
    label = before * 1 + (drawn & ~before) * 3
    removed = before & (np.arange(drawn.shape[2]) == middle)
    label[removed] = 2

    answer, told = annotator.update_scribbles("mvg_propagate", "oblique", one.image.with_array(label),
                                              ["tumour", *SCRIBBLES], "tumour")

    assert told["painted_slices"] == [middle]
    assert np.array_equal(answer.array[..., middle], drawn[..., middle] & ~before[..., middle])


def test_a_region_of_interest_bounds_the_answer(annotator: Slicer, painted: tuple[Patient, int, np.ndarray]) -> None:
    one, middle, drawn = painted
    shape = drawn.shape
    roi = [0, shape[0] - 1, 0, shape[1] - 1, middle - 2, middle + 1]

    answer, _ = annotator.update_scribbles("mvg_propagate", "oblique", one.image.with_array(drawn * 3),
                                           ["tumour", *SCRIBBLES], "tumour", roi)

    assert set(marked_slices(answer.array, 2)) <= set(range(middle - 2, middle + 2))


# --- the other ways to a reference ---


def test_an_uploaded_label_of_some_slices_comes_first_and_keeps_its_numbers(
        server: Server, painted: tuple[Patient, int, np.ndarray], tmp_path: Path) -> None:
    one, middle, _ = painted
    label = only(np.where(one.truth.array == 1, 7, np.where(one.truth.array == 2, 3, 0)).astype(np.uint8), 2, [middle])
    path = saved(one.image.with_array(label), tmp_path)
    info = [{"name": "left", "idx": 7}, {"name": "right", "idx": 3}]

    told = infer(server, "mvg_segment", "oblique", label=path, output="json",
                 params={"label_info": info, "reference_ids": ["nobody"]}).json()
    answer = result(infer(server, "mvg_segment", "oblique", label=path, output="image",
                          params={"label_info": info}), tmp_path)

    assert told["reference_source"] == "uploaded label"
    assert told["label_names"] == {"right": 3, "left": 7}
    assert np.array_equal(answer.array[..., middle], label[..., middle])
    assert answer.geometry.is_close(one.image.geometry)


def test_references_are_named_by_id_or_chosen_from_a_list(server: Server, studies: Studies) -> None:
    first, second = (one.name for one in studies.people.labelled[1:3])
    query = studies.people.queries[0].name

    for params, expected in (({"reference_ids": [second, first], "reference": first}, [second, first]),
                             ({"reference_ids": f"{second}, "}, [second]),
                             ({"reference": first}, [first])):
        told = infer(server, "mvg_segment", query, params={**params, "preset": "plain"}, output="json").json()
        assert told["references"] == expected
        assert told["reference_source"] == "reference_ids"


def test_labels_that_lie_in_the_folder_serve_and_the_image_itself_does_not(server: Server, studies: Studies) -> None:
    own = studies.people.labelled[1].name

    told = infer(server, "mvg_segment", own, params={"preset": "plain"}, output="json").json()

    assert told["references"] == [studies.people.labelled[2].name]


def test_slicer_gets_names_of_what_was_found_and_of_nothing_else(annotator: Slicer, studies: Studies,
                                                                 tmp_path: Path) -> None:
    one = studies.people.labelled[3]
    number = max(studies.people.names)
    second_only = one.image.with_array(np.where(one.truth.array == number, number, 0))

    path = saved(second_only, tmp_path)
    told = infer_json(annotator, one.name, path)

    assert told["label_names"] == {studies.people.names[number]: number}


def infer_json(annotator: Slicer, image: str, label: Path) -> dict[str, Any]:
    _, told = annotator.client.infer("mvg_segment", image, {"preset": "plain"}, str(label))
    return told


def test_ohif_sends_changed_options_alone_and_reads_numbers_as_the_description_says(
        server: Server, studies: Studies, tmp_path: Path) -> None:
    # Source: plugins/ohifv3/extensions/monai-label of MONAI Label 0.8.5, MonaiLabelClient.infer.
    params = {"preset": "plain", "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False,
              "restore_label_idx": False}
    query = studies.people.queries[0]

    answer = result(infer(server, "mvg_segment", query.name, params=params, output="image"), tmp_path, ".nrrd")

    described = requests.get(f"{server.url}/info/", timeout=900).json()["models"]["mvg_segment"]["labels"]
    assert {described[name]: name for name in studies.people.names.values()} == studies.people.names
    assert set(np.unique(answer.array)) - {0} <= set(described.values())
    assert answer.geometry.is_close(query.image.geometry)


# --- formats ---


def test_pictures_are_answered_by_pictures_as_png(server: Server, studies: Studies, tmp_path: Path) -> None:
    one = studies.pictures[1]

    answer = result(infer(server, "mvg_segment", "picture_b", output="image"), tmp_path, ".png")

    assert answer.array.dtype == np.uint8
    assert answer.array.shape == one.image.array.shape
    assert dice(answer.array, one.truth.array) > 0.5


def test_an_image_that_is_not_in_the_folder_is_answered_in_a_session(annotator: Slicer, studies: Studies,
                                                                    tmp_path: Path) -> None:
    one = studies.people.queries[0]
    path = saved(one.image, tmp_path, "mine.nii.gz")

    session = annotator.client.create_session(str(path))["session_id"]
    file, told = annotator.client.infer("mvg_segment", "", {"preset": "plain"}, session_id=session)

    assert read_volume(file).geometry.is_close(one.image.geometry)
    assert told["reference_source"] == "latest labels"
    annotator.client.remove_session(session)
    answer = infer_session(annotator, session)
    assert (answer.status_code, "PUT /session/" in answer.text) == (404, True)


def infer_session(annotator: Slicer, session: str) -> requests.Response:
    return requests.post(f"{annotator.client.get_server_url()}/infer/mvg_segment",
                         params={"session_id": session}, data={"params": "{}"}, timeout=900)


def test_a_dicom_series_is_answered_in_a_session_on_its_own_grid(server: Server, studies: Studies,
                                                                 tmp_path: Path) -> None:
    one = studies.oblique
    series = tmp_path / "series"
    write_series(series, one.image)
    files = [("files", (path.name, path.read_bytes())) for path in sorted(series.iterdir())]
    session = requests.put(f"{server.url}/session/", files=files, timeout=900).json()["session_id"]

    answer = result(infer(server, "mvg_segment", session=session, params={"preset": "plain"}, output="image"), tmp_path)

    expected = read_volume(series)
    assert answer.array.shape == expected.array.shape
    assert answer.geometry.is_close(expected.geometry)


# --- images ---


def test_denoising_by_a_pair_of_images_gives_fractions(server: Server, studies: Studies, tmp_path: Path) -> None:
    first = studies.people.labelled[0]
    noise = np.random.default_rng(0).normal(scale=0.5 * first.image.array.std(), size=first.image.array.shape)
    noisy = first.image.with_array((first.image.array + noise).astype(np.float32))
    path = saved(noisy, tmp_path, "noisy.nii.gz")
    requests.put(f"{server.url}/datastore/image", params={"image": "noisy"}, timeout=900,
                 files={"file": ("noisy.nii.gz", path.read_bytes())})
    try:
        answer = result(infer(server, "mvg_image", "noisy", output="image",
                              params={"task": "denoising", "reference_pairs": [["noisy", first.name]]}), tmp_path)
    finally:
        requests.delete(f"{server.url}/datastore/image", params={"id": "noisy"}, timeout=900)

    assert answer.array.dtype == np.float32
    assert answer.geometry.is_close(first.image.geometry)
    assert np.abs(answer.array - first.image.array).mean() < np.abs(noisy.array - first.image.array).mean()


def test_inpainting_changes_the_uploaded_hole_alone(server: Server, studies: Studies, tmp_path: Path) -> None:
    one, example = studies.people.queries[0], studies.people.labelled[1].name
    hole = np.zeros(one.image.array.shape, np.uint8)
    hole[10:16, 12:18, 8:10] = 1

    answer = result(infer(server, "mvg_image", one.name, label=saved(one.image.with_array(hole), tmp_path),
                          output="image", params={"task": "inpainting", "reference_pairs": f"{example}={example}"}),
                    tmp_path)

    changed = ~np.isclose(answer.array, one.image.array)
    assert changed[hole > 0].mean() > 0.5
    assert not changed[hole == 0].any()


def test_synthesis_answers_in_the_units_of_the_example(server: Server, studies: Studies, tmp_path: Path) -> None:
    one, example = studies.people.queries[0], studies.people.labelled[0]
    other = example.image.with_array((5000 - example.image.array.astype(np.float32)).astype(np.float32))
    path = saved(other, tmp_path, "other.nii.gz")
    requests.put(f"{server.url}/datastore/image", params={"image": "other"}, timeout=900,
                 files={"file": ("other.nii.gz", path.read_bytes())}).raise_for_status()
    try:
        answer = result(infer(server, "mvg_image", one.name, output="image", params={
            "task": "synthesis", "preset": "plain", "reference_pairs": f"{example.name}=other"}), tmp_path)
    finally:
        requests.delete(f"{server.url}/datastore/image", params={"id": "other"}, timeout=900)

    assert answer.geometry.is_close(one.image.geometry)
    assert answer.array.dtype == np.float32
    assert other.array.min() - 1 <= answer.array.min() < answer.array.max() <= other.array.max() + 1


# --- mistakes: 4xx, with what to do ---


def elsewhere(volume: Volume) -> Volume:
    """The same, a metre away."""
    affine = volume.geometry.affine.copy()
    affine[:3, 3] += 1000
    return Volume(volume.array, Geometry(volume.geometry.shape, affine))


@pytest.mark.parametrize(("model", "image", "params", "status", "says"), [
    ("mvg_segment", "nobody", {}, 404, "no image has the id 'nobody'"),
    ("mvg_segment", "/etc/hostname", {}, 404, "no image has the id"),
    ("mvg_segment", "../names.json", {}, 404, "no image has the id"),
    ("nothing", "oblique", {}, 404, "no model 'nothing'"),
    ("mvg_segment", "oblique", {"reference_ids": ["nobody"]}, 404, "no image has the id 'nobody'"),
    ("mvg_segment", "oblique", {"reference": "ct"}, 404, "submit its label first"),
    ("mvg_segment", "oblique", {"reference": "oblique_nrrd"}, 422, "oblique_nrrd.nii.gz"),
    ("mvg_segment", "oblique", {"reference": "picture_a"}, 422, "a picture, the other a volume"),
    ("mvg_segment", "ct", {"reference": "picture_a"}, 422, "looks like CT"),
    ("mvg_segment", "ct", {}, 422, "of another modality"),
    ("mvg_segment", "oblique", {"reference": "prompts folder"}, 422, "prompts folder"),
    ("mvg_segment", "oblique", {"preset": "brilliant"}, 422, "use one of plain, fast"),
    ("mvg_segment", "oblique", {"plane": "diagonal"}, 422, "diagonal"),
    ("mvg_segment", "oblique", {"weights": "fine-tuned"}, 422, "train first"),
    ("mvg_segment", "oblique", {"result_extension": ".exe"}, 422, "result_extension '.exe'"),
    ("mvg_segment", "oblique", {"label": "/etc/hostname"}, 422, "must be uploaded"),
    ("mvg_segment", "oblique", {"n_references": "many"}, 422, "n_references"),
    ("mvg_propagate", "oblique", {}, 422, "no label map was uploaded"),
    ("mvg_image", "oblique", {"task": "inpainting"}, 422, "inpainting needs a hole"),
    ("mvg_image", "oblique", {}, 422, "reference_pairs"),
    ("mvg_image", "oblique", {"task": "alchemy"}, 422, "task 'alchemy' is unknown"),
    ("mvg_image", "oblique", {"reference_pairs": ["a"]}, 422, "must be a list such as"),
])
def test_a_request_that_cannot_be_answered_says_what_to_do(server: Server, model: str, image: str,
                                                           params: dict[str, Any], status: int, says: str) -> None:
    answer = infer(server, model, image, params=params)

    assert (answer.status_code, answer.json()["detail"]) == (status, answer.json()["detail"])
    assert says in answer.json()["detail"]


def test_a_reference_of_another_modality_serves_if_that_is_wanted(server: Server) -> None:
    answer = infer(server, "mvg_segment", "ct", output="json",
                   params={"reference": "picture_a", "any_modality": True, "preset": "plain"})

    assert answer.status_code == 200
    assert any("CT" in warning for warning in answer.json()["warnings"])


def test_uploads_that_cannot_be_used_are_refused_and_not_kept(server: Server, studies: Studies, tmp_path: Path) -> None:
    grid = studies.oblique.image
    empty, full = grid.with_array(np.zeros(grid.array.shape, np.uint8)), grid.with_array(studies.oblique.truth.array)
    fractions = grid.with_array(full.array * np.float32(0.5))
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    before = set(server.temporary.iterdir())

    for model in ("mvg_segment", "mvg_propagate"):
        for label, says in ((saved(empty, tmp_path, "empty.nii.gz"), "paint"),
                            (saved(fractions, tmp_path, "half.nii.gz"), "fractions"),
                            (saved(elsewhere(full), tmp_path, "far.nii.gz"), "overlap in space"),
                            (tmp_path / "broken.nii.gz", "nii.gz")):
            answer = infer(server, model, "oblique", label=label)
            assert answer.status_code == 422, answer.text
            assert says in answer.json()["detail"] or "label at least one slice" in answer.json()["detail"]
    assert not set(server.temporary.iterdir()) - before


@pytest.mark.parametrize(("kind", "status", "says"), [
    ("unknown image", 404, "no image has the id"), ("empty", 422, "is empty"), ("far", 422, "overlap in space"),
    ("broken", 422, "cannot be read"), ("tag", 422, "cannot be the tag")])
def test_a_label_that_could_not_serve_is_not_taken_in(server: Server, studies: Studies, tmp_path: Path, kind: str,
                                                      status: int, says: str) -> None:
    grid = studies.oblique.image
    full = grid.with_array(studies.oblique.truth.array)
    given = {"empty": grid.with_array(np.zeros(grid.array.shape, np.uint8)), "far": elsewhere(full)}.get(kind, full)
    path = saved(given, tmp_path)
    content = b"no image" if kind == "broken" else path.read_bytes()

    answer = requests.put(f"{server.url}/datastore/label", files={"label": ("x.nii.gz", content)}, timeout=900,
                          params={"image": "nobody" if kind == "unknown image" else "oblique",
                                  "tag": "../../outside" if kind == "tag" else "final"})

    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    assert not (server.studies / "labels" / "final" / "oblique.nii.gz").exists()
    assert not (server.studies.parent / "outside").exists()


def test_an_image_cannot_be_put_outside_the_folder(server: Server, studies: Studies, tmp_path: Path) -> None:
    path = saved(studies.oblique.image, tmp_path)

    answer = requests.put(f"{server.url}/datastore/image", params={"image": "../outside"}, timeout=900,
                          files={"file": ("x.nii.gz", path.read_bytes())})

    assert answer.status_code == 422
    assert not (server.studies.parent / "outside.nii.gz").exists()


@pytest.mark.parametrize(("method", "path", "status", "says"), [
    ("post", "/train/nothing", 404, "no model 'nothing'"),
    ("post", "/batch/infer/nothing", 404, "no model 'nothing'"),
    ("post", "/scoring/nothing?run_sync=true", 404, "nothing"),
    ("post", "/activelearning/nothing", 404, "nothing"),
    ("get", "/datastore/image?image=nobody", 404, "NOT Found")])
def test_unknown_names_are_no_server_errors(server: Server, method: str, path: str, status: int, says: str) -> None:
    answer = getattr(requests, method)(f"{server.url}{path}", timeout=900)

    assert (answer.status_code, says in answer.text) == (status, True), answer.text


@pytest.mark.parametrize(("method", "path", "form", "status", "says"), [
    ("post", "/infer/mvg_segment?image=oblique", {"params": "[1]"}, 422, "must be a JSON object"),
    ("put", "/datastore/image/info?image=oblique", {"info": "3"}, 422, "must be a JSON object"),
    ("put", "/datastore/label?image=oblique", {"params": "[1]"}, 422, "must be a JSON object"),
    ("put", "/datastore/image?image=new", {"params": "3"}, 422, "must be a JSON object"),
    ("put", "/model/mvg_segment", {}, 422, "NOT configured"),
    ("put", "/session/?uncompress=true", {}, 422, "uncompress is for zip and tar files"),
    ("post", "/infer/mvg_segment", {}, 422, "is provided")])
def test_what_reaches_no_task_is_told_too(server: Server, studies: Studies, tmp_path: Path, method: str, path: str,
                                          form: dict[str, str], status: int, says: str) -> None:
    files = None
    if method == "put" and "info" not in path:
        label = saved(studies.oblique.image.with_array(studies.oblique.truth.array), tmp_path)
        files = {key: ("a.nii.gz", label.read_bytes()) for key in ("label", "file", "files")}

    answer = requests.request(method, f"{server.url}{path}", data=form, files=files, timeout=900)

    assert (answer.status_code, says in answer.text) == (status, True), answer.text


def test_nonsense_is_nowhere_answered_with_a_server_error(server: Server) -> None:
    wrong, routes = [], requests.get(f"{server.url}/openapi.json", timeout=900).json()["paths"]
    for path, operations in routes.items():
        for method, operation in operations.items():
            if (method, path) in (("post", "/train/"), ("post", "/scoring/")):
                continue  # without a name they start all there are
            for value, body in product(("nobody", "../x", "\0", "a" * 3000), BODIES):
                named = [one["name"] for one in operation.get("parameters", [])
                         if not any(kind in str(one["schema"]) for kind in ("boolean", "enum", "integer"))]
                url = path
                for name in named:
                    url = url.replace("{" + name + "}", requests.utils.quote(value, safe=""))
                answer = requests.request(method, f"{server.url}{url}", params=dict.fromkeys(named, value), timeout=900,
                                          allow_redirects=False, **body)
                if answer.status_code >= 500:
                    wrong.append((method, path, value[:20], body, answer.text[:200]))
    assert not wrong


def test_an_archive_cannot_lead_out_of_its_folder(server: Server, tmp_path: Path) -> None:
    archive, outside = tmp_path / "a.tar", server.temporary / "outside.txt"
    (tmp_path / "x").write_text("x")
    with tarfile.open(archive, "w") as made:
        made.add(tmp_path / "x", arcname=str(outside))
        made.add(tmp_path / "x", arcname="../outside.txt")

    answer = requests.put(f"{server.url}/session/", params={"uncompress": True}, timeout=900,
                          files={"files": ("a.tar", archive.read_bytes())})

    assert (answer.status_code, "cannot be unpacked" in answer.text) == (422, True), answer.text
    assert not outside.exists()


def test_parameters_that_are_no_json_are_told(server: Server) -> None:
    answer = requests.post(f"{server.url}/infer/mvg_segment", params={"image": "oblique"}, data={"params": "{bad"},
                           timeout=900)

    assert (answer.status_code, "JSON" in answer.json()["detail"]) == (400, True)


def test_web_pages_of_other_servers_cannot_read_images(server: Server) -> None:
    answer = requests.get(f"{server.url}/info/", headers={"Origin": "http://elsewhere.example"}, timeout=900)

    assert "access-control-allow-origin" not in answer.headers


def test_logs_name_no_image(server: Server, studies: Studies) -> None:
    infer(server, "mvg_segment", studies.people.queries[0].name, params={"preset": "plain"})

    assert studies.people.queries[0].name not in server.log.read_text()


# --- many requests ---


def test_concurrent_requests_get_the_answers_that_single_ones_get(server: Server, studies: Studies) -> None:
    small = [(query.name, {"preset": "plain", "n_references": 1, "plane": plane})
             for query, plane in zip(studies.people.queries, ("axial", "coronal"), strict=True)]
    to_ask = [*small, ("picture_b", {"preset": "fast"}), ("picture_b", {"preset": "plain"})]

    def ask(one: tuple[str, dict[str, Any]]) -> bytes:
        answer = infer(server, "mvg_segment", one[0], params={**one[1], "result_extension": ".nrrd"}, output="image")
        assert answer.status_code == 200
        return answer.content

    single = [ask(one) for one in to_ask]
    with ThreadPoolExecutor(4) as crew:
        together = list(crew.map(ask, to_ask))

    assert together == single


def test_memory_and_files_do_not_grow_with_requests(server: Server) -> None:
    def ask(count: int) -> None:
        for _ in range(count):
            infer(server, "mvg_segment", "picture_b", params={"preset": "plain"}, output="image")

    ask(5)
    before, files = server.memory_mb(), len(list(server.temporary.iterdir()))
    ask(40)

    assert server.memory_mb() < before + 60
    assert len(list(server.temporary.iterdir())) <= files + 1  # the last answer is removed once it was sent


def test_the_description_for_clients_is_complete(server: Server) -> None:
    info = requests.get(f"{server.url}/info/", timeout=900).json()

    assert {name: model["type"] for name, model in info["models"].items()} == {
        "mvg_segment": "segmentation", "mvg_propagate": "scribbles", "mvg_image": "others"}
    assert next(iter(info["strategies"])) == "least_alike"
    assert info["models"]["mvg_segment"]["config"]["reference"][:2] == ["auto", "latest labels"]
    json.dumps(info)
