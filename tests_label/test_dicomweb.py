"""Images on a DICOMweb server, as OHIF has them: a real Orthanc and a real MONAI Label server, in order of use."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK
from dicomweb_client import DICOMwebClient
from lib.dicom_seg import read_seg, write_seg
from lib.dicomweb import LISTED_S, DicomwebStudies
from monailabel.datastore.dicom import DICOMwebClientX
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume
from pydicom import dcmread

from dicom import write_series
from orthanc import MISSING, PLUGIN, PROGRAM, Orthanc, orthanc
from patients import Patient, Patients, dice
from serving import Server, infer, serving, wait_for
from slicer import Slicer

NAMES = {1: "Hippocampus ant./é", 2: "hippocampus post."}


@dataclass(frozen=True, eq=False)
class Study:
    """A patient on the server.

    Attributes:
        uid: Series Instance UID.
        folder: of its DICOM files.
        patient: the truth.
    """

    uid: str
    folder: Path
    patient: Patient

    def label(self) -> Volume:
        """The truth on the grid of the series."""
        return read_volume(self.folder).with_array(self.patient.truth.array)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if PROGRAM is None or PLUGIN is None:
        pytest.skip(MISSING)
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def series(pacs: Orthanc, people: Patients, tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    """Three patients; the third is the one to answer."""
    folder = tmp_path_factory.mktemp("series")
    found = []
    for one in (*people.labelled[1:3], people.queries[0]):
        uid = write_series(folder / one.name, one.image, patient=one.name)
        for path in sorted((folder / one.name).iterdir()):
            pacs.store(path)
        found.append(Study(uid, folder / one.name, one))
    return found


@pytest.fixture(scope="module")
def server(pacs: Orthanc, series: list[Study], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dicomweb")
    with serving(folder, pacs.dicomweb, {"prompts": str(folder / "prompts"), "model_dir": str(folder / "model")},
                 environment={"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "copies")}) as running:
        yield running


@pytest.fixture
def annotator(server: Server, tmp_path: Path) -> Slicer:
    return Slicer(server.url, tmp_path)


def test_series_of_all_modalities_are_images(annotator: Slicer, series: list[Study]) -> None:
    assert set(annotator.client.datastore()["objects"]) == {one.uid for one in series}
    assert annotator.client.info()["datastore"]["total"] == 3


def test_the_next_sample_says_which_study_ohif_is_to_open(annotator: Slicer, series: list[Study]) -> None:
    sample = annotator.client.next_sample("least_alike", {})

    one = next(one for one in series if one.uid == sample["id"])
    headers = dcmread(next(one.folder.iterdir()))
    assert (sample["StudyInstanceUID"], sample["PatientID"]) == (headers.StudyInstanceUID, one.patient.name)


def test_without_a_reference_the_server_says_how_to_get_one(server: Server, series: list[Study]) -> None:
    answer = infer(server, "mvg_segment", series[2].uid)

    assert (answer.status_code, "no reference yet" in answer.text) == (422, True)


def test_a_submitted_label_becomes_a_segmentation_on_the_dicom_server(
        annotator: Slicer, pacs: Orthanc, series: list[Study], tmp_path: Path) -> None:
    one = series[0]
    annotator.submit(one.uid, one.label(), [NAMES[1], NAMES[2]])

    stored = pacs.segmentations()
    assert len(stored) == 1
    path = _fetched(pacs, next(iter(stored.values())), tmp_path)
    headers, first = dcmread(path), dcmread(next(one.folder.iterdir()))
    assert headers.ReferencedSeriesSequence[0].SeriesInstanceUID == one.uid
    assert (headers.StudyInstanceUID, headers.PatientID) == (first.StudyInstanceUID, one.patient.name)
    label, names = read_seg(path, one.label().geometry)
    assert names == NAMES
    assert np.array_equal(label.array, one.label().array)


def _fetched(pacs: Orthanc, series: str, folder: Path) -> Path:
    instance = requests.get(f"{pacs.url}/series/{series}", timeout=60).json()["Instances"][0]
    path = folder / "seg.dcm"
    path.write_bytes(requests.get(f"{pacs.url}/instances/{instance}/file", timeout=60).content)
    return path


def test_it_serves_at_once_and_the_answer_lies_on_the_grid_of_the_series(server: Server, series: list[Study],
                                                                         tmp_path: Path) -> None:
    query = series[2]
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "restore_label_idx": False}  # as OHIF sends it

    told = infer(server, "mvg_segment", query.uid, params=params, output="json").json()
    file = tmp_path / "answer.nrrd"
    file.write_bytes(infer(server, "mvg_segment", query.uid, params=params, output="image").content)

    assert (told["reference_source"], told["references"]) == ("latest labels", [series[0].uid])
    assert set(told["label_names"]) == set(NAMES.values())
    answer, reader = SimpleITK.ReadImage(str(file)), SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(query.folder)))
    image = reader.Execute()  # the order of voxels that viewers have
    assert answer.GetSize() == image.GetSize()
    assert np.allclose([*answer.GetOrigin(), *answer.GetDirection(), *answer.GetSpacing()],
                       [*image.GetOrigin(), *image.GetDirection(), *image.GetSpacing()], atol=1e-4)
    assert dice(SimpleITK.GetArrayFromImage(answer).T, query.patient.truth.array) > 0.5


def test_a_segmentation_that_a_viewer_exported_serves_too(server: Server, pacs: Orthanc, series: list[Study],
                                                          tmp_path: Path) -> None:
    one = series[1]
    turned = one.label().with_array(np.array([0, 2, 1], np.uint8)[one.label().array])
    write_seg(turned, {1: NAMES[2], 2: NAMES[1]}, one.folder, tmp_path / "export.dcm")
    # As OHIF stores what its Segmentation panel exports: wadoRoot of plugins/ohifv3/config/monai_label.js.
    proxied = DICOMwebClient(f"{server.url}/proxy/dicom/wado")
    proxied.store_instances([dcmread(tmp_path / "export.dcm")])
    assert len(pacs.segmentations()) == 2
    time.sleep(LISTED_S + 0.5)

    told = infer(server, "mvg_segment", series[2].uid, output="json", params={"preset": "fast"}).json()

    assert told["references"] == [one.uid, series[0].uid]
    assert told["label_names"] == {NAMES[1]: 1, NAMES[2]: 2}  # matched by name
    described = requests.get(f"{server.url}/info/", timeout=900).json()["models"]["mvg_segment"]["labels"]
    assert described == {NAMES[1]: 1, NAMES[2]: 2}


def test_ohif_2_submits_voxels_alone(server: Server, pacs: Orthanc, series: list[Study], tmp_path: Path) -> None:
    # Source: plugins/ohif/monai-label/src/components/actions/ActiveLearning.js of MONAI Label 0.8.5.
    one, before = series[1], set(pacs.segmentations())
    voxels = one.label().array.tobytes(order="F")

    for content, status in ((voxels[:-1], 422), (voxels, 200)):
        answer = requests.put(f"{server.url}/datastore/label", params={"image": one.uid}, timeout=900,
                              files={"label": ("label.bin", content)},
                              data={"params": json.dumps({"label_info": [{"name": name} for name in NAMES.values()]})})
        assert answer.status_code == status, answer.text

    (new,) = set(pacs.segmentations()) - before
    label, names = read_seg(_fetched(pacs, pacs.segmentations()[new], tmp_path), one.label().geometry)
    assert (names, np.array_equal(label.array, one.label().array)) == (NAMES, True)


def test_trainings_and_batches_in_their_own_processes_find_the_images(server: Server, annotator: Slicer,
                                                                      series: list[Study]) -> None:
    annotator.client.train_start("mvg_finetune", {"steps": 1})
    assert wait_for(f"{server.url}/train/")["status"] == "DONE"
    requests.post(f"{server.url}/batch/infer/mvg_segment", params={"images": "unlabeled"}, timeout=900,
                  json={"preset": "plain", "n_references": 1, "weights": "shipped"})
    assert wait_for(f"{server.url}/batch/infer")["status"] == "DONE"

    assert "original" in annotator.client.datastore()["objects"][series[2].uid]["labels"]


def test_a_segmentation_that_cannot_be_read_does_not_stop_the_others(server: Server, pacs: Orthanc,
                                                                     series: list[Study], tmp_path: Path) -> None:
    write_seg(series[1].label(), NAMES, series[1].folder, tmp_path / "bad.dcm")
    headers = dcmread(tmp_path / "bad.dcm")
    headers.PixelData, headers.NumberOfFrames = b"", 0
    headers.ContentDate = "20991231"
    headers.save_as(tmp_path / "bad.dcm")
    stored = pacs.store(tmp_path / "bad.dcm")
    time.sleep(LISTED_S + 0.5)

    told = infer(server, "mvg_segment", series[2].uid, output="json", params={"preset": "plain"}).json()
    requests.delete(f"{pacs.url}/instances/{stored}", timeout=60).raise_for_status()

    assert told["references"] == [series[1].uid, series[0].uid]  # by the segmentation before


def test_a_segmentation_that_was_removed_there_serves_no_more(server: Server, pacs: Orthanc, series: list[Study]
                                                              ) -> None:
    for one in pacs.segmentations().values():
        requests.delete(f"{pacs.url}/series/{one}", timeout=60).raise_for_status()
    time.sleep(LISTED_S + 0.5)

    assert infer(server, "mvg_segment", series[2].uid).status_code == 422


def test_what_is_listed_can_be_restricted(pacs: Orthanc, series: list[Study], tmp_path: Path) -> None:
    client = DICOMwebClientX(pacs.dicomweb)
    one = series[1]

    assert DicomwebStudies(client, ["CT", "PT"], folder=str(tmp_path)).list_images() == []
    found = DicomwebStudies(client, search_filter={"PatientID": one.patient.name}, folder=str(tmp_path))
    assert found.list_images() == [one.uid]


@pytest.mark.parametrize("image", ["1.2.3", "/etc", "../../etc", "."])
def test_only_series_of_the_server_are_images(server: Server, image: str) -> None:
    answer = infer(server, "mvg_segment", image)

    assert (answer.status_code, "no image has the id" in answer.text) == (404, True)


@pytest.mark.parametrize(("method", "path"), [("delete", "image"), ("delete", "label"), ("put", "image")])
def test_what_belongs_to_the_dicom_server_is_changed_there(server: Server, series: list[Study], method: str, path: str,
                                                           tmp_path: Path) -> None:
    write_volume(series[0].patient.image, tmp_path / "x.nii.gz")
    files = {"file": ("x.nii.gz", (tmp_path / "x.nii.gz").read_bytes())} if method == "put" else None

    answer = requests.request(method, f"{server.url}/datastore/{path}", timeout=900, files=files,
                              params={"id": series[0].uid, "image": series[0].uid, "tag": "final"})

    assert (answer.status_code, "DICOMweb server" in answer.text) == (422, True), answer.text


def test_a_dicom_server_that_is_down_is_named_and_this_one_runs_on(server: Server, pacs: Orthanc, series: list[Study]
                                                                   ) -> None:
    pacs.process.terminate()
    pacs.process.wait(20)
    time.sleep(LISTED_S + 0.5)

    for _ in range(2):
        answer = infer(server, "mvg_segment", series[2].uid)
        assert (answer.status_code, "does not answer: start it" in answer.text) == (502, True), answer.text
    assert requests.get(f"{server.url}/info/", timeout=900).status_code == 502
    assert server.process.poll() is None
