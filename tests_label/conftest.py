"""What the tests of the MONAI Label app share: patients, a server with labels in its studies folder, a client."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from mvg_core.demo import load_template
from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import read_volume, write_volume
from pydicom.data import get_testdata_file

from patients import Patient, Patients, patients
from serving import APP, Server, serving

sys.path.insert(0, str(APP))  # as MONAI Label does, for `lib`


@dataclass(frozen=True, eq=False)
class Studies:
    """What the shared server has.

    Attributes:
        people: patients; the second and third are labelled.
        oblique: a patient on an oblique, anisotropic grid, as `oblique` (NIfTI) and `oblique_nrrd`.
        pictures: `picture_a`, labelled, and `picture_b` (PNG).
    """

    people: Patients
    oblique: Patient
    pictures: tuple[Patient, Patient]


@pytest.fixture(scope="session")
def people() -> Patients:
    return patients()


@pytest.fixture(scope="session")
def studies(people: Patients) -> Studies:
    first = people.labelled[0]
    grid = oblique_grid(first.image.array.shape)
    oblique = Patient("oblique", Volume(first.image.array, grid), Volume(first.truth.array, grid))
    return Studies(people, oblique, (_picture("picture_a", 95), _picture("picture_b", 100)))


@pytest.fixture(scope="session")
def server(studies: Studies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose folder holds labels already; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("server")
    images = folder / "studies"
    final = images / "labels" / "final"
    final.mkdir(parents=True)
    for one in (*studies.people.labelled, *studies.people.queries, studies.oblique):
        write_volume(one.image, images / f"{one.name}.nii.gz")
    for one in studies.people.labelled[1:3]:
        write_volume(one.truth, final / f"{one.name}.nii.gz")
    write_volume(studies.oblique.image, images / "oblique_nrrd.nrrd")
    for one in studies.pictures:
        write_volume(one.image, images / f"{one.name}.png")
    write_volume(studies.pictures[0].truth, final / "picture_a.png")
    (final / "oblique_nrrd.nii.gz").write_bytes(b"no label map")  # somebody put it there by hand
    write_volume(read_volume(str(get_testdata_file("CT_small.dcm"))), images / "ct.nii.gz")
    names = folder / "names.json"
    names.write_text(str({str(number): name for number, name in studies.people.names.items()}).replace("'", '"'))
    with serving(folder, images, {"labels": str(names), "prompts": str(folder / "prompts")}) as running:
        yield running


def oblique_grid(shape: tuple[int, ...]) -> Geometry:
    """Turned by 25 and 15 degrees, voxels of 0.9 x 1.1 x 1.6 mm."""
    a, b = np.deg2rad(25), np.deg2rad(15)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([0.9, 1.1, 1.6])
    affine[:3, 3] = (-31.5, 12.25, 40)
    return Geometry(shape, affine)  # type: ignore[arg-type]


def _picture(name: str, number: int) -> Patient:
    """An axial slice of the brain template as a picture."""
    template = load_template()
    image = np.rint(255 * template.image.array[::2, ::2, number]).astype(np.uint8)[..., None]
    truth = template.truth.array[::2, ::2, number][..., None]
    grid = Geometry(image.shape, np.diag([-1.0, -1.0, 1.0, 1.0]))
    return Patient(name, Volume(image, grid), Volume(np.ascontiguousarray(truth), grid))
