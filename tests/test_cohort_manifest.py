"""Manifests: what may be written in them, and that what cannot work is found before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cohort_folder import of_example, write_manifest, write_scans

from mvg_core.cohort.cases import CohortSettings, stem_of
from mvg_core.cohort.checks import check_cohort
from mvg_core.cohort.manifest import Defaults, ManifestError, read_manifest
from mvg_core.volume_io import VolumeWriteError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scans(tmp_path, ["p1", "p2"])
    return tmp_path


def settings(folder: Path, **others: Any) -> CohortSettings:
    return CohortSettings(folder / "out", "mvg_compact", "0" * 64, "plain", **others)


def refused(folder: Path, rows: list[dict[str, str]], *expected: str, defaults: Defaults | None = None) -> None:
    """One line with the manifest's name and all of this; nothing is made."""
    with pytest.raises(ManifestError) as caught:
        check_cohort(read_manifest(write_manifest(folder / "list.csv", rows), defaults), settings(folder))
    message = str(caught.value)
    for text in ("list.csv, row ", *expected):
        assert text in message, message
    assert "\n" not in message
    assert not (folder / "out").exists()


def row(**cells: str) -> dict[str, str]:
    return of_example("p1")[0] | cells


# --- reading ---


def test_all_columns(folder: Path) -> None:
    write_manifest(folder / "list.csv", [row(
        output="left/p1.nrrd", task="inpainting", reference_image="example.nii.gz;p2.nii.gz",
        reference_label="example_label.nii.gz; p2.nii.gz", plane="coronal", frame="all", window="-200 300",
        hole="hole.nii.gz", reference_frame="2", reference_slices="40;52", age="63")])
    read = read_manifest(folder / "list.csv")
    case = read.cases[0]
    assert (case.name, case.row, case.query) == ("p1", 2, folder / "p1.nii.gz")
    assert case.references == ((folder / "example.nii.gz", folder / "example_label.nii.gz"),
                               (folder / "p2.nii.gz", folder / "p2.nii.gz"))
    assert (case.answer, case.task, case.plane, case.frame) == ("left/p1.nrrd", "inpainting", "coronal", "all")
    assert (case.window, case.hole) == ((-200.0, 300.0), folder / "hole.nii.gz")
    assert (case.reference_frame, case.reference_slices) == (2, (40, 52))
    assert read.unused == ("age",)


def test_what_a_row_leaves_open_is_taken_from_the_command(folder: Path) -> None:
    shared = ((folder / "example.nii.gz", folder / "example_label.nii.gz"),)
    rows = [{"query": "p1.nii.gz"}, {"query": "p2.nii.gz", "plane": "axial", "reference_label": "p2_slice.nii.gz"}]
    first, second = read_manifest(write_manifest(folder / "list.csv", rows), Defaults(
        shared, "denoising", "sagittal", (0.0, 1.0), 3, ".mha")).cases
    assert (first.name, first.answer, first.references) == ("p1", "p1.mha", shared)
    assert (first.task, first.plane, first.window, first.frame) == ("denoising", "sagittal", (0.0, 1.0), 3)
    assert second.plane == "axial"
    # A label without an image is one of the query: one labelled slice of each case.
    assert second.references == ((folder / "p2.nii.gz", folder / "p2_slice.nii.gz"),)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_other_countries_with_a_byte_order_mark_and_empty_rows(folder: Path, delimiter: str) -> None:
    rows = [*of_example("p1"), {"case": ""}, *of_example("p2")]
    path = write_manifest(folder / "list.csv", rows, delimiter)
    path.write_text("\ufeff" + path.read_text().replace("case", "Case", 1), encoding="utf-8")
    assert [(case.name, case.row) for case in read_manifest(path).cases] == [("p1", 2), ("p2", 4)]


def test_a_datalist_with_references_of_other_subjects(folder: Path) -> None:
    pair = {"image": "example.nii.gz", "label": "example_label.nii.gz"}
    listing = {"labels": {"1": "a"}, "references": [{**pair, "subject": "e"}, {**pair, "subject": "p1"}],
               "test": [{"image": "p1.nii.gz", "label": "p1.nii.gz", "subject": "p1"},
                        {"image": "p2.nii.gz", "label": "p2.nii.gz", "subject": "p2"}]}
    (folder / "list.json").write_text(json.dumps(listing))
    cases = read_manifest(folder / "list.json").cases
    assert [(case.name, case.query.name, len(case.references)) for case in cases] == [
        ("p1", "p1.nii.gz", 1), ("p2", "p2.nii.gz", 2)]
    shared = Defaults(((folder / "p1.nii.gz", folder / "p1.nii.gz"),))
    assert read_manifest(folder / "list.json", shared).cases[1].references == shared.references
    del listing["references"]
    (folder / "list.json").write_text(json.dumps(listing))
    with pytest.raises(ManifestError, match=r"row 1: has no solved example"):
        read_manifest(folder / "list.json")


def test_files_that_are_no_manifest(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        read_manifest(folder / "nothing.csv")
    for content, expected in ((b"", "no column 'query'"), (b"image,label\n", "no column 'query'"),
                              (b"query\n", "lists no case"), (b"query,note\na,\xfc\n", "CSV UTF-8"),
                              (b"query,query\na,b\n", "more than once"), (b'query\n"a\n', "not a CSV table")):
        (folder / "list.csv").write_bytes(content)
        with pytest.raises(ManifestError, match=expected):
            read_manifest(folder / "list.csv")


def test_names_without_suffix() -> None:
    assert [stem_of(name) for name in ("a.nii.gz", "b/a.x.SEG.NRRD", "a.b.nii", "a")] == ["a", "b/a.x", "a.b", "a"]


# --- what is refused ---


@pytest.mark.parametrize(("cells", "expected"), [
    ({"query": ""}, "the query is missing"),
    ({"query": "p9.nii.gz"}, "p9.nii.gz does not exist"),
    ({"reference_image": "p9.nii.gz"}, "p9.nii.gz does not exist"),
    ({"reference_label": ""}, "1 reference images and 0 labels"),
    ({"reference_image": "", "reference_label": ""}, "no solved example"),
    ({"task": "segment"}, "task 'segment' is unknown"),
    ({"plane": "oblique"}, "plane 'oblique' is unknown"),
    ({"window": "300 -200"}, "needed two numbers, low and high"),
    ({"window": "5"}, "needed two numbers, low and high"),
    ({"frame": "-1"}, "needed a number from 0, or all"),
    ({"reference_slices": "4-5"}, "needed slice numbers"),
    ({"reference_slices": "4", "reference_image": "p2.nii.gz;p2.nii.gz", "reference_label": "p2.nii.gz;p2.nii.gz"},
     "one reference"),
    ({"hole": "p2.nii.gz"}, "a hole belongs to inpainting"),
    ({"task": "inpainting"}, "needs a mask"),
    ({"case": "../p1"}, "not fit for a file name"),
    ({"case": "=cmd()"}, "not fit for a file name"),
    ({"output": "/tmp/p1.nii.gz"}, "inside the folder of --out"),
    ({"output": "../p1.nii.gz"}, "inside the folder of --out"),
    ({"output": "p1.jpg"}, "cannot write this kind of file"),
    ({"output": "p1"}, "cannot write this kind of file|names no kind of file"),
    ({"output": "records/p1.nii.gz"}, "needs itself"),
])
def test_a_row_that_cannot_work_is_named(folder: Path, cells: dict[str, str], expected: str) -> None:
    rows = [*of_example("p2"), row(**cells)]
    with pytest.raises(ManifestError, match=expected) as caught:
        check_cohort(read_manifest(write_manifest(folder / "list.csv", rows)), settings(folder))
    assert "list.csv, row 3: " in str(caught.value)
    assert not (folder / "out").exists()


def test_other_rows_with_problems_are_listed(folder: Path) -> None:
    rows = [row(case=f"c{n}", query="p1.nii.gz" if n == 3 else f"gone{n}.nii.gz") for n in range(6)]
    refused(folder, rows, "row 2: query", "gone0.nii.gz", "(rows with problems as well: 3, 4, 6, 7)")


def test_names_that_are_given_twice(folder: Path) -> None:
    refused(folder, [row(), row(case="P1")], "row 3", "also the name of row 2")
    refused(folder, [row(), row(case="c", output="p1.nii.gz")], "row 3", "also written for row 2")
    rows = [row(), row(case="c", output="p1_confidence.nii.gz")]
    manifest = read_manifest(write_manifest(folder / "list.csv", rows))
    with pytest.raises(ManifestError, match="also written for row 2"):
        check_cohort(manifest, settings(folder, confidence=True))


def test_a_cell_too_many_is_no_shifted_row(folder: Path) -> None:
    (folder / "list.csv").write_text("query,reference_label\np1.nii.gz,a.nii.gz,b.nii.gz\n")
    with pytest.raises(ManifestError, match="row 2: has 3 cells, the header 2"):
        read_manifest(folder / "list.csv")


def test_what_is_read_is_never_replaced(folder: Path) -> None:
    manifest = read_manifest(write_manifest(folder / "list.csv", [row(case="c"), row(output="example.nii.gz")]))
    with pytest.raises(ManifestError, match=r"row 3: output .*example\.nii\.gz is read by this run"):
        check_cohort(manifest, CohortSettings(folder, "mvg_compact", "0" * 64, "plain"))


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "out").write_text("a file")
    manifest = read_manifest(write_manifest(folder / "list.csv", of_example("p1")))
    with pytest.raises(VolumeWriteError, match="out cannot be made"):
        check_cohort(manifest, settings(folder))
