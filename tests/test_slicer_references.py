"""The set of references of the Slicer extension on real MRML: adding, saving, reopening, and what is made of it."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported, and MVGLib is found by tests/slicer_scenes.py.
from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import slicer_scenes as scenes
from slicer_scenes import frame, segmentArray

scenes.needSlicer()

from MVGLib import mrml_bridge, plan, views  # noqa: E402
from MVGLib.geometry import SlicePosition  # noqa: E402
from MVGLib.plan import RunSettings  # noqa: E402
from MVGLib.references import ReferenceSet  # noqa: E402
from MVGLib.segments import Mask  # noqa: E402

SHAPE = (20, 24, 9)
TERMS = {"liver": "SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes~^^~^^|"}
COLOURS = {"liver": (0.5, 0.25, 0.125), "spleen": (0.0, 0.5, 1.0)}


def image(seed: int = 3, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 900, shape).astype(np.int16)


def box(*sides: tuple[int, int], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


LIVER, SPLEEN = box((3, 9), (4, 11), (2, 7)), box((12, 17), (5, 20), (3, 8))


@pytest.fixture
def scene():
    return scenes.newScene()


@pytest.fixture
def query(scene):
    """An oblique volume under a transform."""
    node = scenes.addVolume(scene, image(), frame("oblique"))
    node.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(20)).GetID())
    return node


@pytest.fixture
def segments(scene, query):
    return scenes.addSegmentation(scene, query, {"liver": LIVER, "spleen": SPLEEN}, colours=COLOURS, terminology=TERMS)


def finished(steps):
    """What the steps come to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


# --- slices ---


@pytest.mark.parametrize(("axis", "index", "plane"), [(0, 5, "sagittal"), (1, 8, "coronal"), (2, 4, "axial")])
def test_a_slice_keeps_its_segments_with_their_looks(scene, query, segments, axis: int, index: int, plane: str) -> None:
    references = ReferenceSet(scene)
    entry = references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(axis, index))
    assert entry.name == f"CT, {plane} slice {index}: liver, spleen"
    assert entry.shape == SHAPE
    np.testing.assert_array_equal(entry.matrix, mrml_bridge.worldAffine(query))
    assert [(one.name, one.colour) for one in entry.segments] == list(COLOURS.items())
    assert entry.segments[0].terminology == TERMS["liver"]
    assert "^Tissue~" in entry.segments[1].terminology  # what Slicer gives a segment without one
    masks = references.sliceMasks(entry.id)
    np.testing.assert_array_equal(masks["liver"], np.take(LIVER, index, axis=axis))
    np.testing.assert_array_equal(masks["spleen"], np.take(SPLEEN, index, axis=axis))

    scenes.paint(segments, "liver", query, SPLEEN)  # painting on changes nothing until it is added again
    np.testing.assert_array_equal(references.sliceMasks(entry.id)["liver"], np.take(LIVER, index, axis=axis))


def test_a_corrected_slice_replaces_and_extends(scene, query, segments) -> None:
    references = ReferenceSet(scene)
    first = references.addSlice(query, segments, ["liver"], SlicePosition(2, 4))
    other = references.addSlice(query, segments, ["liver"], SlicePosition(2, 5))
    scenes.paint(segments, "liver", query, LIVER[::-1])
    again = references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(2, 4))
    assert again.id == first.id
    assert [one.id for one in references.entries] == [first.id, other.id]
    np.testing.assert_array_equal(references.sliceMasks(first.id)["liver"], LIVER[::-1][:, :, 4])
    np.testing.assert_array_equal(references.sliceMasks(first.id)["spleen"], SPLEEN[:, :, 4])
    scenes.paint(segments, "spleen", query, SPLEEN[::-1])
    references.addSlice(query, segments, ["spleen"], SlicePosition(2, 4))  # the liver stays as it was
    np.testing.assert_array_equal(references.sliceMasks(first.id)["liver"], LIVER[::-1][:, :, 4])
    np.testing.assert_array_equal(references.sliceMasks(first.id)["spleen"], SPLEEN[::-1][:, :, 4])


def test_a_slice_may_be_labelled_as_free_of_a_structure(scene, query, segments) -> None:
    references = ReferenceSet(scene)
    entry = references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(2, 2))  # the spleen begins at 3
    assert not references.sliceMasks(entry.id)["spleen"].any()


def test_slices_that_cannot_be_references_are_refused(scene, query, segments) -> None:
    references = ReferenceSet(scene)
    with pytest.raises(ValueError, match=r"axial slice 0 of 'CT' shows none of the chosen segments"):
        references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(2, 0))
    with pytest.raises(ValueError, match="there is no slice 9"):
        references.addSlice(query, segments, ["liver"], SlicePosition(2, 9))
    with pytest.raises(ValueError, match="no segment is chosen"):
        references.addSlice(query, segments, [], SlicePosition(2, 4))
    with pytest.raises(ValueError, match="'Segmentation' has no segment 'gone'"):
        references.addSlice(query, segments, ["gone"], SlicePosition(2, 4))
    segments.GetSegmentation().GetSegment("spleen").SetName("liver")
    with pytest.raises(ValueError, match="two of the chosen segments are called 'liver'"):
        references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(2, 4))
    assert references.entries == []


def test_the_slice_of_a_view_is_added(scene, query, segments) -> None:
    references, view = ReferenceSet(scene), scenes.addView(scene, "Coronal")
    with pytest.raises(ValueError, match="Rotate to volume plane"):
        references.addSliceOfView(view, query, segments, ["liver"])
    views.jumpTo(view, query, SlicePosition(1, 8))
    assert references.addSliceOfView(view, query, segments, ["liver"]).position == SlicePosition(1, 8)


# --- volumes ---


def test_volumes_pairs_and_images(scene, query, segments) -> None:
    other = scenes.addVolume(scene, image(4), frame("flipped"), "MR")
    references = ReferenceSet(scene)
    volume = references.addVolume(query, segments)
    pair = references.addPair(query, other)
    intact = references.addImage(other, "intact one")
    assert [one.name for one in references.entries] == ["CT: liver, spleen", "CT → MR", "intact one"]
    assert references.addVolume(query, segments, ["liver"]).id == volume.id  # replaced
    assert [one.name for one in references.entry(volume.id).segments] == ["liver"]
    assert [one.id for one in references.forTask("segmentation")] == [volume.id]
    assert [one.id for one in references.forTask("synthesis")] == [pair.id]
    assert [one.id for one in references.forTask("inpainting")] == [intact.id]
    with pytest.raises(ValueError, match="'CT' is chosen as source and as target"):
        references.addPair(query, query)
    with pytest.raises(ValueError, match="no segmentation is chosen for 'CT'"):
        references.addVolume(query, None)


def test_the_list_can_be_changed(scene, query, segments) -> None:
    references = ReferenceSet(scene)
    told = []
    references.node.AddObserver("ModifiedEvent", lambda *_: told.append(1))
    a, b, c = (references.addSlice(query, segments, ["liver"], SlicePosition(2, at)).id for at in (3, 4, 5))
    assert len(told) == 3
    references.move(c, 0)
    references.setEnabled(b, False)
    assert [one.id for one in references.entries] == [c, a, b]
    assert [one.id for one in references.forTask("segmentation")] == [c, a]
    assert references.addSlice(query, segments, ["liver"], SlicePosition(2, 4)).enabled  # added again: wanted again
    references.remove(a)
    assert [one.id for one in references.entries] == [c, b]
    assert references.node.GetNodeReference(f"image.{a}") is None
    with pytest.raises(KeyError, match="no reference"):
        references.remove(a)
    references.clear()
    assert references.entries == []


def test_what_is_gone_is_said(scene, query, segments) -> None:
    references = ReferenceSet(scene)
    entry = references.addSlice(query, segments, ["liver"], SlicePosition(2, 4))
    whole = references.addVolume(query, segments)
    assert references.problem(entry.id) is None
    assert references.problem(whole.id) is None
    segments.GetSegmentation().RemoveSegment("spleen")
    assert "segment 'spleen'" in str(references.problem(whole.id))
    assert references.problem(entry.id) is None  # it has its own copy
    mrml_bridge.setVolumeArray(query, image(shape=(5, 5, 5)))
    assert "add the slice again" in str(references.problem(entry.id))
    scene.RemoveNode(segments)
    assert "the segmentation of reference" in str(references.problem(whole.id))
    scene.RemoveNode(query)
    assert "volume 'CT'" in str(references.problem(entry.id))
    assert references.thumbnail(entry.id).shape == (96, 96, 3)
    assert references.goTo(entry.id, [scenes.addView(scene)]) is None


def test_thumbnails_and_going_there(scene, query, segments) -> None:
    references = ReferenceSet(scene)
    entry = references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(2, 4))
    whole = references.addVolume(query, segments)
    picture = references.thumbnail(entry.id, 48).astype(int)
    assert picture.shape == (48, 48, 3)
    assert (picture[..., 2] > picture[..., 0] + 40).any()  # the spleen is blue
    assert (picture[..., 0] > picture[..., 2] + 40).any()  # the liver is brown
    coloured = (np.ptp(references.thumbnail(whole.id, 48).astype(int), axis=2) > 20).sum()
    assert coloured > 100
    red, yellow = scenes.addView(scene, "Axial", "Red"), scenes.addView(scene, "Sagittal", "Yellow")
    assert references.goTo(entry.id, [yellow, red]) is red
    assert views.sliceOfView(red, query) == SlicePosition(2, 4)


# --- saving ---


def test_the_set_survives_saving_and_reopening_the_scene(scene, query, segments, tmp_path: Path) -> None:
    references = ReferenceSet(scene)
    other = scenes.addVolume(scene, image(4), frame("flipped"), "Ärztin's MR; 2%")
    entry = references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(1, 8))
    whole = references.addVolume(query, segments, ["liver"])
    pair = references.addPair(query, other, 'from "CT" <&> %22')
    references.setEnabled(pair.id, False)
    before = references.entries

    again = ReferenceSet.fromScene(scenes.reopened(scene, tmp_path))

    assert again.entries == before
    assert all(again.problem(one.id) is None for one in before)
    np.testing.assert_array_equal(again.sliceMasks(entry.id)["spleen"], SPLEEN[:, 8])
    np.testing.assert_array_equal(mrml_bridge.volumeArray(again.volumeNode(entry.id)), image())
    np.testing.assert_allclose(mrml_bridge.worldAffine(again.volumeNode(entry.id)), mrml_bridge.worldAffine(query),
                               atol=1e-5)
    assert again.targetNode(pair.id).GetName() == other.GetName()
    np.testing.assert_array_equal(
        segmentArray(again.segmentationNode(whole.id), "liver", again.volumeNode(whole.id)), LIVER)
    assert again.addSlice(again.volumeNode(entry.id), again.segmentationNode(whole.id), ["liver"],
                          SlicePosition(1, 8)).id == entry.id  # known as the same slice


def test_an_imported_scene_brings_its_references_with_it(scene, query, segments, tmp_path: Path) -> None:
    references = ReferenceSet(scene)
    entry = references.addSlice(query, segments, ["liver"], SlicePosition(2, 4))
    references.addVolume(query, segments)
    assert scene.WriteToMRB(str(tmp_path / "saved.mrb"), None)
    with zipfile.ZipFile(tmp_path / "saved.mrb") as packed:
        packed.extractall(tmp_path)
    scene.SetURL(str(next(tmp_path.rglob("*.mrml"))))
    assert scene.Import()  # beside what is there
    assert [one.kind for one in references.entries] == ["slice", "volume", "slice", "volume"]
    assert len({one.id for one in references.entries}) == 4
    assert references.volumeNode(entry.id) is query
    imported = references.entries[2].id
    assert references.volumeNode(imported) is not query
    assert references.problem(imported) is None
    np.testing.assert_array_equal(mrml_bridge.volumeArray(references.volumeNode(imported)), image())


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_the_set_as_files(scene, query, segments, tmp_path: Path, name: str) -> None:
    references = ReferenceSet(scene)
    other = scenes.addVolume(scene, image(4).astype(np.float32), frame("flipped"), "MR")
    references.addSlice(query, segments, ["liver", "spleen"], SlicePosition(2, 2))  # without spleen
    references.addSlice(query, segments, ["spleen", "liver"], SlicePosition(0, 13))  # without liver
    references.addVolume(query, segments)
    references.addPair(query, other)
    references.addImage(other)
    references.setEnabled(references.entries[1].id, False)
    references.save(tmp_path / name)
    references.save(tmp_path / name)  # over itself
    assert {path.name for path in tmp_path.iterdir()} == {name}
    if name == "set":
        assert sum(path.name.startswith("image-") for path in (tmp_path / name).iterdir()) == 2  # each once

    fresh = scenes.newScene()
    loaded = ReferenceSet(fresh)
    loaded.load(tmp_path / name)

    def known(one):
        return (one.kind, one.name, one.volumeName, one.position, one.enabled, one.shape,
                [(style.name, style.terminology) for style in one.segments])

    assert [known(one) for one in loaded.entries] == [known(one) for one in references.entries]
    for mine, theirs in zip(loaded.entries, references.entries, strict=True):
        np.testing.assert_allclose(mine.matrix, theirs.matrix, atol=1e-4)  # the transform is part of the files
        np.testing.assert_allclose([one.colour for one in mine.segments], [one.colour for one in theirs.segments],
                                   atol=1e-3)
        if mine.kind == "slice":
            for title, mask in references.sliceMasks(theirs.id).items():
                np.testing.assert_array_equal(loaded.sliceMasks(mine.id)[title], mask)
    whole = loaded.entries[2]
    np.testing.assert_array_equal(segmentArray(loaded.segmentationNode(whole.id), whole.segmentIds[1],
                                               loaded.volumeNode(whole.id)), SPLEEN)
    assert fresh.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2

    # Read where the volumes are: they are recognised, and the set grows or is replaced.
    references.load(tmp_path / name, append=True)
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2
    assert [one.kind for one in references.entries] == ["slice", "slice", "volume", "pair", "image", "volume"]
    references.load(tmp_path / name)
    assert len(references.entries) == 5


def test_files_that_are_no_set_change_nothing(scene, query, segments, tmp_path: Path) -> None:
    references = ReferenceSet(scene)
    with pytest.raises(ValueError, match="no references to save"):
        references.save(tmp_path / "set")
    references.addSlice(query, segments, ["liver"], SlicePosition(2, 4))
    references.addVolume(query, segments)
    references.save(tmp_path / "set")
    before, nodes = references.entries, scene.GetNumberOfNodes()

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(ValueError, match="photos exists and is no set of references"):
        references.save(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"photos holds no readable references\.json"):
        references.load(tmp_path / "photos")
    with pytest.raises(ValueError, match="does not exist"):
        references.load(tmp_path / "nowhere")

    listing = json.loads((tmp_path / "set" / "references.json").read_text())

    def spoilt(change) -> None:
        values = json.loads(json.dumps(listing))
        change(values)
        (tmp_path / "set" / "references.json").write_text(json.dumps(values))

    (tmp_path / "secret.nrrd").write_bytes((tmp_path / "set" / "image-1.nrrd").read_bytes())
    for change, message in (
            (lambda values: values.update(version=2), "has version 2, this module reads 1"),
            (lambda values: values.update(format="x"), "describes no references"),
            (lambda values: values["references"][0].pop("segments"), "lacks 'segments'"),
            (lambda values: values["references"][1].update(image="../secret.nrrd"), "which is no file of the folder"),
            (lambda values: values["references"][1].update(segmentation="gone.nrrd"), r"gone\.nrrd is missing"),
            (lambda values: values["references"][0]["slice"].update(index=99), "names slice 99"),
    ):
        spoilt(change)
        with pytest.raises(ValueError, match=message):
            references.load(tmp_path / "set")
    assert references.entries == before
    assert scene.GetNumberOfNodes() == nodes


def test_a_zip_file_writes_nowhere_else(scene, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.writestr("../outside.txt", "x")
    with pytest.raises(ValueError, match=r"holds '\.\./outside\.txt'"):
        ReferenceSet(scene).load(tmp_path / "bad.zip")
    assert not (tmp_path.parent / "outside.txt").exists()
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"is no readable \.zip file"):
        ReferenceSet(scene).load(tmp_path / "bad.zip")


# --- plans ---


def mask(*sides: tuple[int, int]) -> Mask:
    whole = box(*sides)
    start = tuple(side[0] for side in sides)
    return Mask((start[0], start[1], start[2]), whole[tuple(slice(*side) for side in sides)])


def test_segments_share_a_label_map_only_if_it_can_hold_them() -> None:
    a, b, c = mask((0, 5), (0, 5), (0, 3)), mask((4, 9), (4, 9), (2, 4)), mask((5, 9), (0, 4), (0, 3))
    assert plan.overlap(a, b)
    assert not plan.overlap(a, c)
    assert not plan.overlap(b, c)
    assert plan.grouped({"a": {"r": a}, "b": {"r": b}, "c": {"r": c}}) == [["a", "c"], ["b"]]
    # They overlap in one of two references.
    assert plan.grouped({"a": {"r": a, "s": a}, "b": {"r": c, "s": b}}) == [["a"], ["b"]]
    # Not labelled is not the same as not there.
    assert plan.grouped({"a": {"r": a, "s": a}, "c": {"s": c}}) == [["a"], ["c"]]
    many = {f"m{at}": {"r": Mask((at % 20, at // 20, 0), np.ones((1, 1, 1), bool))} for at in range(300)}
    assert [len(group) for group in plan.grouped(many)] == [255, 45]


def test_the_label_maps_of_a_plan(scene, query) -> None:
    overlapping = box((8, 14), (5, 12), (3, 6))
    node = scenes.addSegmentation(scene, query, {"liver": LIVER, "spleen": SPLEEN, "tumour": overlapping})
    references = ReferenceSet(scene)
    for at in (4, 3):
        references.addSlice(query, node, ["liver", "spleen", "tumour"], SlicePosition(2, at))
    references.addSlice(query, node, ["liver"], SlicePosition(0, 5))
    other = scenes.addVolume(scene, image(4), frame("flipped"), "MR")
    theirs = scenes.addSegmentation(scene, other, {"liver": LIVER[::-1], "spleen": SPLEEN[::-1],
                                                   "tumour": overlapping[::-1]})
    references.addVolume(other, theirs)
    settings = RunSettings(query)
    assert plan.problems(references, settings) == []
    assert plan.chosenAxis(references, settings) == 2
    assert plan.warningsOf(references, settings) == ["1 reference slice lies in another plane than the run and is left "
                                                     "out"]

    made = finished(plan.prepare(references, settings))

    assert made.axis == 2
    assert [[style.name for style in layer.styles.values()] for layer in made.layers] == [
        ["liver", "spleen"], ["tumour"]]
    own, foreign = made.layers[0].references
    assert own.slices == (3, 4)
    assert foreign.slices is None
    wanted = np.zeros(SHAPE, np.uint8)
    wanted[LIVER], wanted[SPLEEN] = 1, 2
    np.testing.assert_array_equal(foreign.label.array, wanted[::-1])
    wanted[:, :, :3], wanted[:, :, 5:] = 0, 0
    np.testing.assert_array_equal(own.label.array, wanted)
    np.testing.assert_array_equal(own.label.affine, mrml_bridge.worldAffine(query))
    np.testing.assert_array_equal(made.layers[1].references[0].label.array[:, :, 4], overlapping[:, :, 4])

    identities = {id(one): f"sha{at}" for at, one in enumerate(made.volumes(made.layers[0]))}
    job = made.job(settings, made.layers[0], identities)
    assert job["plane"] == 2
    assert job["labels"] == {"1": "liver", "2": "spleen"}
    assert "CT" not in json.dumps(job)
    assert "MR" not in json.dumps(job)


def test_layers_are_made_once(scene, query, segments) -> None:
    references, earlier = ReferenceSet(scene), {}
    whole = references.addVolume(query, segments)
    first = finished(plan.prepare(references, RunSettings(query), earlier))
    assert finished(plan.prepare(references, RunSettings(query), earlier)).layers[0] is first.layers[0]
    scenes.paint(segments, "liver", query, LIVER[::-1] & ~SPLEEN)
    changed = finished(plan.prepare(references, RunSettings(query), earlier))
    assert changed.layers[0] is not first.layers[0]
    np.testing.assert_array_equal(changed.layers[0].references[0].label.array == 1, LIVER[::-1] & ~SPLEEN)
    references.setEnabled(whole.id, False)
    assert plan.problems(references, RunSettings(query))
    assert plan.problems(references, RunSettings(query, references=[whole.id])) == []  # named: wanted


def test_what_is_missing_is_said_before_a_run(scene, query, segments) -> None:
    references = ReferenceSet(scene)

    def said(**settings) -> str:
        return " ".join(plan.problems(references, RunSettings(**{"queryNode": query, **settings})))

    assert said(queryNode=None) == "choose the volume to solve"
    assert "unknown" in said(task="magic")
    assert "label one slice" in said()
    assert "as its target" in said(task="synthesis")
    assert "without noise" in said(task="denoising")
    assert "choose the segment that marks the hole" in said(task="inpainting")
    assert said(task="inpainting", holeSegmentation=segments) == ""
    references.addSlice(query, segments, ["liver"], SlicePosition(2, 4))
    assert said() == ""
    assert "the reference slices are axial, but the run is sagittal" in said(axis=0)
    assert "from 0 to 8" in said(sliceRange=(3, 9), axis=2)
    assert "low to high" in said(window=(5, 5))
    assert "preset 'x' is unknown" in said(preset="x")
    scene.RemoveNode(query)
    other = scenes.addVolume(scene, image(4), frame("flipped"), "MR")
    assert "volume 'CT' of reference" in said(queryNode=other)
    other.SetAndObserveTransformNodeID(scenes.addBending(scene).GetID())
    assert "harden" in said(queryNode=other)


def test_a_hole_leaves_its_intact_slices_as_references(scene, query) -> None:
    hole = scenes.addSegmentation(scene, query, {"hole": box((5, 9), (5, 9), (3, 6))}, "Hole")
    settings = RunSettings(query, "inpainting", holeSegmentation=hole)
    made = finished(plan.prepare(ReferenceSet(scene), settings))
    assert made.layers[0].references[0].slices == (0, 1, 2, 6, 7, 8)
    assert made.hole is not None
    assert made.axis == 2
    np.testing.assert_array_equal(made.hole.array, box((5, 9), (5, 9), (3, 6)))
    scenes.paint(hole, "hole", query, box((5, 9), (5, 9), (0, 9)))
    with pytest.raises(ValueError, match="the hole touches every slice"):
        finished(plan.prepare(ReferenceSet(scene), settings))
    scenes.paint(hole, "hole", query, np.zeros(SHAPE, bool))
    with pytest.raises(ValueError, match="the hole is empty in volume 'CT'"):
        finished(plan.prepare(ReferenceSet(scene), settings))


def test_the_process_of_the_panel_loads_no_network() -> None:
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import MVGLib.logic; "
            "print(*{name.split('.')[0] for name in sys.modules})")
    command = [sys.executable, "-c", code, str(scenes.EXTENSION)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert {"MVGLib", "slicer", "vtk"} <= loaded
    assert not loaded & {"torch", "onnxruntime", "mvg_core", "monai", "qt", "PySide6"}
