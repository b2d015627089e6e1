"""The parts of the app without a server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lib.errors import as_http
from lib.infers.volume_task import found_labels, quality_of
from lib.names import Numbering, names_in, renumbered
from lib.volumes import Volumes, checksum
from mvg_core.training.config import TrainingConfig
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import write_volume

from serving import REPOSITORY


def volume(value: float = 1.0) -> Volume:
    array = np.full((4, 5, 6), value, np.float32)
    return Volume(array, Geometry(array.shape, np.eye(4)))


@pytest.mark.parametrize(("info", "present", "expected"), [
    ({"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}, [1, 2], {1: "liver", 2: "spleen"}),
    ({"label_info": [{"name": "liver", "id": 5}]}, [5], {5: "liver"}),
    # Slicer counted two segments of scribbles between the two that it saved.
    ({"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 4}]}, [1, 2], {1: "liver", 2: "spleen"}),
    ({"params": {"label_names": {"liver": 3}}}, [3], {3: "liver"}),
    ({}, [1], {}),
])
def test_names_are_read_as_clients_send_them(info: dict, present: list[int], expected: dict[int, str]) -> None:
    assert names_in(info, present) == expected


def test_names_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ValueError, match="label_info must be a list"):
        names_in({"label_info": ["liver"]}, [1])


def test_one_name_gets_one_number_whatever_the_files_say() -> None:
    numbering = Numbering()
    assert numbering.take([1, 2], {1: "liver", 2: "spleen"}) == {1: 1, 2: 2}
    assert numbering.take([1, 2], {1: "Spleen", 2: "liver"}) == {1: 2, 2: 1}
    assert numbering.take([1], {1: "kidney"}) == {1: 3}
    assert numbering.take([1, 9], {}) == {1: 1, 9: 9}  # without names, numbers are all there is
    assert numbering.names == {1: "liver", 2: "spleen", 3: "kidney", 9: "label 9"}


def test_renumbering_exchanges_labels_and_drops_what_is_not_named() -> None:
    assert renumbered(np.array([0, 1, 2, 3], np.uint8), {1: 2, 2: 1}).tolist() == [0, 2, 1, 0]
    assert renumbered(np.array([0, 1, 2], np.uint8), {1: 1}).tolist() == [0, 1, 0]


def test_labels_that_were_not_found_are_not_named() -> None:
    assert found_labels(np.array([0, 2, 2]), {1: "liver", 2: "spleen"}) == {"spleen": 2}


def test_quality_is_the_mean_over_slices_by_area() -> None:
    slices = {"0": {"voxels": 30, "expected_dice": 0.9}, "1": {"voxels": 10, "expected_dice": 0.5}}
    assert quality_of({"slice_quality": slices}) == 0.8
    assert quality_of({"slice_quality": {}}) == 0.0
    assert quality_of({}) is None


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path) -> None:
    volumes, path = Volumes(), tmp_path / "a.nii.gz"
    write_volume(volume(1), path)
    first = volumes.read(path)
    assert volumes.read(path) is first
    write_volume(volume(2).with_array(np.arange(120, dtype=np.float32).reshape(4, 5, 6)), path, overwrite=True)
    assert checksum(volumes.read(path)) != checksum(first)


def test_no_more_is_kept_than_was_allowed(tmp_path: Path) -> None:
    volumes = Volumes(most_bytes=1000)
    for number in range(5):
        write_volume(volume(number), tmp_path / f"{number}.nii.gz")
        volumes.read(tmp_path / f"{number}.nii.gz")
    assert volumes.n_bytes <= 1000


def test_only_our_own_messages_reach_a_client() -> None:
    with pytest.raises(ValueError, match="reshape") as caught:
        np.zeros(3).reshape(2, 2)

    assert as_http(caught.value).status_code == 500  # a defect, not the client's mistake


def test_torchvision_can_be_imported_whatever_build_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", "import torchvision.utils"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_options_of_the_bundle_are_the_defaults_of_its_training() -> None:
    config = json.loads((REPOSITORY / "bundle/configs/train.json").read_text(encoding="utf-8"))
    for name, value in config["displayable_configs"].items():
        assert getattr(TrainingConfig(), name) == value
        assert config["training"][name] == f"@displayable_configs#{name}"
