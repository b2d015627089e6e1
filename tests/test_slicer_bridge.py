"""Volumes, segments, views and results of the Slicer extension on real MRML."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported, and MVGLib is found by tests/slicer_scenes.py.
from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import slicer_scenes as scenes
from slicer_scenes import FRAMES, frame, segmentArray

scenes.needSlicer()

import slicer  # noqa: E402
import vtk  # noqa: E402
from MVGLib import geometry, mrml_bridge, views  # noqa: E402
from MVGLib.geometry import SlicePosition  # noqa: E402
from MVGLib.output import MADE_BY, SegmentsOutput, VolumeOutput  # noqa: E402
from MVGLib.segments import SegmentStyle, segmentIds, segmentMask, styleOf, tag  # noqa: E402
from MVGLib.thumbnails import thumbnail  # noqa: E402

from mvg_core.volume import Geometry  # noqa: E402

SHAPE = (20, 24, 9)
LIVER = SegmentStyle("liver", (0.5, 0.25, 0.125), "SCT^123^liver")
SPLEEN = SegmentStyle("spleen", (0.0, 0.5, 1.0))


@pytest.fixture
def scene():
    return scenes.newScene()


def blob(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A lopsided mask that touches no border."""
    i, j, k = np.indices(shape)
    centre = np.array(shape) * (0.4 + 0.1 * seed)
    inside = sum(((x - c) / (n * 0.22)) ** 2 for x, c, n in zip((i, j, k), centre, shape, strict=True)) < 1
    return inside & ~((i < centre[0]) & (j < centre[1]))


def image(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(-100, 900, shape).astype(np.int16)


def within(mask, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    whole = np.zeros(shape, bool)
    whole[mask.box] = mask.array
    return whole


# --- geometry ---


@pytest.mark.parametrize("oblique", [False, True])
def test_planes_and_display_are_those_of_the_library(oblique: bool) -> None:
    turned = scenes.turn(28)[:3, :3] if oblique else np.eye(3)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = turned @ (np.eye(3)[:, list(order)] * signs) * (0.7, 1.2, 3)
        library = Geometry(SHAPE, affine)
        for axis in range(3):
            assert geometry.planeOfAxis(affine, axis) == library.plane_of_axis(axis)
            assert geometry.axisOfPlane(affine, library.plane_of_axis(axis)) == axis
            assert geometry.display(affine, axis) == tuple(library.display(axis))


# --- volumes ---


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("isTransformed", [False, True])
def test_a_volume_knows_where_its_voxels_are(scene, name: str, isTransformed: bool) -> None:
    node = scenes.addVolume(scene, image(), frame(name))
    if isTransformed:
        outer, inner = scenes.addTransform(scene, scenes.turn(20)), scenes.addTransform(scene, scenes.turn(-33))
        inner.SetAndObserveTransformNodeID(outer.GetID())
        node.SetAndObserveTransformNodeID(inner.GetID())

    found = mrml_bridge.volumeData(node)

    ijk = (3, 11, 7)
    local, world = np.zeros(3), np.zeros(3)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    local = matrix.MultiplyPoint((*ijk, 1))[:3]
    node.TransformPointToWorld(local, world)
    np.testing.assert_allclose((found.affine @ [*ijk, 1])[:3], world, atol=1e-9)
    assert found.array[ijk] == node.GetImageData().GetScalarComponentAsDouble(*ijk, 0)
    np.testing.assert_array_equal(found.array, image())


def test_a_bending_transform_is_refused_by_name(scene) -> None:
    node = scenes.addVolume(scene, image(), frame("oblique"))
    node.SetAndObserveTransformNodeID(scenes.addBending(scene).GetID())
    with pytest.raises(ValueError, match=r"'CT' lies under the transform 'Bending'.*harden"):
        mrml_bridge.volumeData(node)


def test_colour_images_and_empty_volumes_are_refused(scene) -> None:
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Photo")
    colours = vtk.vtkImageData()
    colours.SetDimensions(4, 4, 1)
    colours.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    node.SetAndObserveImageData(colours)
    with pytest.raises(ValueError, match="'Photo' has 3 numbers a voxel"):
        mrml_bridge.volumeData(node)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
    with pytest.raises(ValueError, match="'Empty' holds no voxels"):
        mrml_bridge.volumeData(empty)


def test_the_key_of_a_volume_follows_its_voxels_and_place(scene) -> None:
    node = scenes.addVolume(scene, image(), frame("straight"))
    first = mrml_bridge.volumeData(node).key
    assert mrml_bridge.volumeData(node).key == first
    mrml_bridge.volumeArray(node)[1, 2, 3] = 5
    mrml_bridge.volumeChanged(node)
    second = mrml_bridge.volumeData(node).key
    node.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(5)).GetID())
    assert len({first, second, mrml_bridge.volumeData(node).key}) == 3


# --- segments ---


@pytest.mark.parametrize("name", FRAMES)
def test_segments_come_back_as_they_were_painted(scene, name: str) -> None:
    volume = scenes.addVolume(scene, image(), frame(name))
    volume.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(20)).GetID())
    masks = {"one": blob(0), "two": blob(1)}  # they overlap
    assert (masks["one"] & masks["two"]).any()
    node = scenes.addSegmentation(scene, volume, masks)
    for title, mask in masks.items():
        np.testing.assert_array_equal(within(segmentMask(node, title, volume)), mask)
        for axis, index in ((0, 8), (1, 13), (2, 5)):
            part = within(segmentMask(node, title, volume, SlicePosition(axis, index)))
            wanted = np.zeros_like(mask)
            at = tuple(index if one == axis else slice(None) for one in range(3))
            wanted[at] = mask[at]
            np.testing.assert_array_equal(part, wanted)


def test_segments_that_share_a_label_map_stay_apart(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("flipped"))
    masks = {"one": blob(0), "two": blob(0)[::-1] & ~blob(0), "three": blob(1)}
    node = scenes.addSegmentation(scene, volume, masks)
    node.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert node.GetSegmentation().GetNumberOfLayers() == 2
    for title, mask in masks.items():
        np.testing.assert_array_equal(within(segmentMask(node, title, volume)), mask)


def nearest(mask: np.ndarray, fromGrid: np.ndarray, toGrid: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """By hand: what the nearest voxel of another grid says; and NaN where two are equally near."""
    ijk = np.indices(shape).reshape(3, -1).T
    between = np.linalg.inv(fromGrid) @ toGrid
    at = ijk @ between[:3, :3].T + between[:3, 3]
    clear = (np.abs(at - np.floor(at) - 0.5) > 0.01).all(axis=1)
    whole = np.round(at).astype(int)
    inside = ((whole >= 0) & (whole < mask.shape)).all(axis=1)
    found = np.zeros(len(ijk))
    found[inside] = mask[tuple(whole[inside].T)]
    found[~clear] = np.nan
    return found.reshape(shape)


@pytest.mark.parametrize("name", ["oblique", "sagittal stack"])
def test_segments_on_another_grid_and_under_another_transform(scene, name: str) -> None:
    shape = (30, 16, 14)
    source = scenes.addVolume(scene, image(), frame("oblique"))
    node = scenes.addSegmentation(scene, source, {"one": blob(0)})
    moved, affine = scenes.turn(9, shift=(1, 2, -3)), frame(name, (1.3, 0.9, 1.7))
    # The middles of both grids meet in the world.
    middles = [np.array([*((np.array(one) - 1) / 2), 1]) for one in (shape, SHAPE)]
    affine[:3, 3] += (np.linalg.inv(moved) @ frame("oblique") @ middles[1] - affine @ middles[0])[:3]
    target = scenes.addVolume(scene, image(shape), affine, "MR")
    target.SetAndObserveTransformNodeID(scenes.addTransform(scene, moved).GetID())

    found = within(segmentMask(node, "one", target), shape)

    wanted = nearest(blob(0), mrml_bridge.worldAffine(source), mrml_bridge.worldAffine(target), shape)
    clear = ~np.isnan(wanted)
    assert clear.mean() > 0.9
    assert wanted[clear].sum() > 50
    np.testing.assert_array_equal(found[clear], wanted[clear] > 0)
    for axis in range(3):
        part = segmentMask(node, "one", target, SlicePosition(axis, 7))
        at = tuple(7 if one == axis else slice(None) for one in range(3))
        np.testing.assert_array_equal(within(part, shape)[at], found[at])


def test_a_bending_transform_over_both_image_and_segments_cancels(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    volume.SetAndObserveTransformNodeID(scenes.addBending(scene).GetID())
    node = scenes.addSegmentation(scene, volume, {"one": blob(0)})
    np.testing.assert_array_equal(within(segmentMask(node, "one", volume)), blob(0))


def test_a_bending_transform_over_the_segments_alone_is_followed(scene) -> None:
    shape = (20, 24, 30)
    volume = scenes.addVolume(scene, image(shape), frame("straight", (1, 1, 1), (20, 20, 0)))
    flat = np.zeros(shape, bool)
    flat[2:18, 2:22, 4:7] = True
    node = scenes.addSegmentation(scene, volume, {"one": flat})
    # The middle rises between ends that stay, so the corners of its box tell nothing of where it goes.
    ends = [(x, y, z, 0) for x in (0, 21) for y in (-4, 21) for z in (0, 30)]
    node.SetAndObserveTransformNodeID(scenes.addBending(scene, [*ends, (11, 9, 5, 14)]).GetID())
    wanted = segmentArray(node, "one", volume)
    assert wanted[:, :, 14:].any()
    np.testing.assert_array_equal(within(segmentMask(node, "one", volume), shape), wanted)


def test_a_segment_that_is_only_a_surface_is_used_and_left_alone(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    node = scenes.addSegmentation(scene, volume, {"one": blob(0)})
    assert node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    node.RemoveBinaryLabelmapRepresentation()
    found = within(segmentMask(node, "one", volume))
    assert 2 * (found & blob(0)).sum() / (found.sum() + blob(0).sum()) > 0.8
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


# --- views ---


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("orientation", ["Axial", "Coronal", "Sagittal"])
def test_a_view_in_the_planes_of_a_volume_shows_one_slice(scene, name: str, orientation: str) -> None:
    volume = scenes.addVolume(scene, image(), frame(name))
    volume.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(8)).GetID())
    view = scenes.addView(scene, orientation)
    view.RotateToVolumePlane(volume)
    affine = mrml_bridge.worldAffine(volume)
    axis = geometry.axisOfPlane(affine, orientation.lower())
    ijk = [9.0, 10.0, 3.0]
    ijk[axis] = 4.0 + 0.3  # a view may stop between two slices
    view.JumpSliceByOffsetting(*(affine @ [*ijk, 1])[:3])
    assert views.sliceOfView(view, volume) == SlicePosition(axis, 4)


@pytest.mark.parametrize("name", FRAMES)
def test_jumping_to_a_slice_shows_it_however_the_view_was(scene, name: str) -> None:
    volume = scenes.addVolume(scene, image(), frame(name))
    view = scenes.addView(scene)
    for axis in range(3):
        views.jumpTo(view, volume, SlicePosition(axis, 5))
        assert views.sliceOfView(view, volume) == SlicePosition(axis, 5)
        row, column, down, across = geometry.display(frame(name), axis)
        matrix = mrml_bridge.matrixArray(view.GetSliceToRAS())
        # Up the view and across it run as pictures for radiologists do.
        assert matrix[:3, 1] @ frame(name)[:3, row] * (1 if down else -1) > 0
        assert matrix[:3, 0] @ frame(name)[:3, column] * (-1 if across else 1) > 0
        np.testing.assert_allclose(matrix[:3, :3].T @ matrix[:3, :3], np.eye(3), atol=1e-9)


def test_an_oblique_view_is_refused_with_what_to_do(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    view = scenes.addView(scene, "Axial", "Red")
    with pytest.raises(ValueError, match=r"the Red view is oblique to volume 'CT'.*Rotate to volume plane"):
        views.sliceOfView(view, volume)


def test_how_far_a_view_may_tilt(scene) -> None:
    # 101 slices of 101 x 101 mm, 2 mm apart: half a slice is 1 mm at 50 mm, an angle of 1.146 degrees.
    volume = scenes.addVolume(scene, np.ones((101, 101, 11), np.int16), frame("straight", (1, 1, 2), (50, 50, -10)))
    for degrees, isFine in ((1.1, True), (1.2, False)):
        view = scenes.addView(scene, "Axial", f"View{degrees}")
        tilted = scenes.turn(degrees, (1, 0, 0), (0, 0, 0)) @ mrml_bridge.matrixArray(view.GetSliceToRAS())
        view.GetSliceToRAS().DeepCopy(mrml_bridge.vtkMatrix(tilted))
        view.UpdateMatrices()
        if isFine:
            assert views.sliceOfView(view, volume) == SlicePosition(2, 5)
        else:
            with pytest.raises(ValueError, match="oblique"):
                views.sliceOfView(view, volume)


def test_a_view_beside_the_volume_is_refused(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("straight"))
    view = scenes.addView(scene)
    view.SetSliceOffset(500)
    with pytest.raises(ValueError, match="shows no slice of volume 'CT'"):
        views.sliceOfView(view, volume)


# --- pictures ---


def test_a_thumbnail_shows_the_patient_as_radiologists_do(scene) -> None:
    # i to Right, j to Anterior; a bright voxel at the patient's right front, a segment at the left back.
    array = np.zeros((4, 4, 3), np.int16)
    array[3, 3, 1] = 100
    volume = scenes.addVolume(scene, array, np.diag([1.0, 1.0, 1.0, 1.0]))
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 100)
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    picture = thumbnail(volume, SlicePosition(2, 1), [(mask, (1.0, 0.0, 0.0))], size=4)
    assert picture.dtype == np.uint8
    assert picture.shape == (4, 4, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]  # right front: top left
    assert picture[3, 3].tolist() == [128, 0, 0]  # left back: bottom right, half opaque
    assert picture[1, 1].tolist() == [0, 0, 0]


def test_a_thumbnail_keeps_proportions(scene) -> None:
    volume = scenes.addVolume(scene, np.arange(200, dtype=np.int16).reshape(10, 10, 2), np.diag([1.0, 2.0, 1.0, 1.0]))
    picture = thumbnail(volume, SlicePosition(2, 1), [], size=20)
    shown = picture.any(axis=(0, 2))
    assert shown[5:15].all()
    assert not shown[:5].any()
    assert not shown[15:].any()


# --- results ---


def test_new_segments_leave_the_old_ones_alone(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    node = scenes.addSegmentation(scene, volume, {"liver": blob(0)})
    output = SegmentsOutput(scene, volume, node, runName="r1")
    layer = output.addLayer({1: LIVER, 2: SPLEEN})
    labels = np.where(blob(1), 1, 0) + np.where(blob(1)[::-1] & ~blob(1), 2, 0)
    layer.writeAll(labels.astype(np.uint8))
    output.finish()

    names = {one: node.GetSegmentation().GetSegment(one).GetName() for one in segmentIds(node)}
    assert list(names.values()) == ["liver", "liver 2", "spleen"]
    first, second, third = names
    np.testing.assert_array_equal(segmentArray(node, first, volume), blob(0))
    np.testing.assert_array_equal(segmentArray(node, second, volume), labels == 1)
    np.testing.assert_array_equal(segmentArray(node, third, volume), labels == 2)
    segment = node.GetSegmentation().GetSegment(second)
    assert styleOf(segment) == SegmentStyle("liver 2", LIVER.colour, LIVER.terminology)
    assert tag(segment, MADE_BY) == "r1"
    assert output.segmentIds == [second, third]


def test_segments_grow_slice_by_slice_and_may_overlap_those_of_another_layer(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("flipped"))
    volume.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(12)).GetID())
    output = SegmentsOutput(scene, volume)
    layers = [output.addLayer({7: LIVER}), output.addLayer({1: SPLEEN})]
    told = []
    output.node.GetSegmentation().AddObserver(slicer.vtkSegmentation.SourceRepresentationModified,
                                              lambda *_: told.append(1))
    for layer, number, mask in zip(layers, (7, 1), (blob(0), blob(1)), strict=True):
        layer.writeSlices(1, [(at, mask[:, at].astype(np.uint8) * number) for at in range(8, 12)])
    assert told
    for one, mask in zip(output.segmentIds, (blob(0), blob(1)), strict=True):
        grown = np.zeros_like(mask)
        grown[:, 8:12] = mask[:, 8:12]
        np.testing.assert_array_equal(segmentArray(output.node, one, volume), grown)
    layers[0].writeSlices(1, [(8, np.zeros((SHAPE[0], SHAPE[2]), np.uint8))])  # painted again: replaced
    output.finish()
    found = segmentArray(output.node, output.segmentIds[0], volume)
    assert not found[:, 8].any()
    assert found[:, 9].any()
    assert output.node.GetTransformNodeID() == volume.GetTransformNodeID()
    assert output.node.GetSegmentation().GetSegment(output.segmentIds[0]).GetRepresentation(
        "Binary labelmap").GetNumberOfPoints() < np.prod(SHAPE)


def test_layers_without_an_answer_leave_nothing(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    output = SegmentsOutput(scene, volume)
    output.addLayer({1: LIVER}).writeSlices(2, [(3, np.ones(SHAPE[:2], np.uint8))])
    output.addLayer({1: SPLEEN})
    output.finish()
    assert [output.node.GetSegmentation().GetSegment(one).GetName() for one in segmentIds(output.node)] == ["liver"]

    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    nothing = SegmentsOutput(scene, volume)
    nothing.addLayer({1: LIVER})
    nothing.finish()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == count


def test_replacing_takes_only_what_a_run_made_and_undo_brings_it_back(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    node = scenes.addSegmentation(scene, volume, {"liver": blob(0), "other": blob(1)})
    first = SegmentsOutput(scene, volume, node, runName="r1")
    first.addLayer({1: SegmentStyle("kidney"), 2: LIVER}).writeAll(blob(0).astype(np.uint8))
    first.finish()
    before = {one: segmentArray(node, one, volume) for one in segmentIds(node)}
    assert [node.GetSegmentation().GetSegment(one).GetName() for one in before] == [
        "liver", "other", "kidney", "liver 2"]

    second = SegmentsOutput(scene, volume, node, replace=True, runName="r2")
    second.addLayer({1: SegmentStyle("kidney"), 2: LIVER}).writeAll(blob(1).astype(np.uint8))
    second.finish()
    names = [node.GetSegmentation().GetSegment(one).GetName() for one in segmentIds(node)]
    assert sorted(names) == ["kidney", "liver", "liver 2", "liver 3", "other"]  # the user's liver stays
    np.testing.assert_array_equal(segmentArray(node, second.segmentIds[0], volume), blob(1))

    assert second.canUndo
    assert second.undo()
    assert not second.canUndo
    assert segmentIds(node) == list(before)
    for one, mask in before.items():
        np.testing.assert_array_equal(segmentArray(node, one, volume), mask)
    assert second.redo()
    np.testing.assert_array_equal(segmentArray(node, second.segmentIds[0], volume), blob(1))
    assert len(segmentIds(node)) == 5


def test_undo_removes_a_new_segmentation_and_redo_brings_it_back_displayed(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    count = scene.GetNumberOfNodes()
    output = SegmentsOutput(scene, volume, name="Result")
    output.addLayer({3: LIVER}).writeAll(blob(0).astype(np.uint8) * 3)
    output.finish()
    assert output.undo()
    assert not scene.IsNodePresent(output.node)
    assert scene.GetNumberOfNodes() == count
    assert output.redo()
    assert scene.IsNodePresent(output.node)
    assert output.node.GetDisplayNode() is not None
    np.testing.assert_array_equal(segmentArray(output.node, output.segmentIds[0], volume), blob(0))


def test_a_result_under_a_transform_is_saved_as_it_is(scene, tmp_path) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    volume.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(20)).GetID())
    output = SegmentsOutput(scene, volume, name="Result")
    output.addLayer({1: LIVER, 2: SPLEEN}).writeAll(blob(0) + 2 * (blob(1) & ~blob(0)).astype(np.uint8))
    output.finish()
    again = scenes.reopened(scene, tmp_path)
    node, there = again.GetFirstNodeByName("Result"), again.GetFirstNodeByName("CT")
    first, second = segmentIds(node)
    np.testing.assert_array_equal(segmentArray(node, first, there), blob(0))
    np.testing.assert_array_equal(segmentArray(node, second, there), blob(1) & ~blob(0))
    assert styleOf(node.GetSegmentation().GetSegment(first)) == LIVER


def test_edits_after_a_run_survive_its_undo(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    node = scenes.addSegmentation(scene, volume, {"mine": blob(0)})
    output = SegmentsOutput(scene, volume, node)
    output.addLayer({1: LIVER}).writeAll(blob(1).astype(np.uint8))
    output.finish()
    scenes.paint(node, "mine", volume, blob(0)[::-1])
    assert output.undo()
    np.testing.assert_array_equal(segmentArray(node, "mine", volume), blob(0)[::-1])


def test_results_go_into_a_segmentation_under_another_transform(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    node = scenes.addSegmentation(scene, volume, {"mine": blob(0)})
    node.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(25)).GetID())
    output = SegmentsOutput(scene, volume, node)
    output.addLayer({1: LIVER}).writeAll(blob(1).astype(np.uint8))
    output.finish()
    np.testing.assert_array_equal(within(segmentMask(node, output.segmentIds[0], volume)), blob(1))
    node.SetAndObserveTransformNodeID(scenes.addBending(scene).GetID())
    with pytest.raises(ValueError, match=r"not linear lies between.*choose a new segmentation"):
        SegmentsOutput(scene, volume, node)


def test_the_undo_of_the_scene_takes_a_result_back(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    scene.SetUndoOn()
    for name in ("vtkMRMLSegmentationNode", "vtkMRMLScalarVolumeNode", "vtkMRMLScalarVolumeDisplayNode",
                 "vtkMRMLSegmentationDisplayNode"):
        default = scene.CreateNodeByClass(name)
        default.SetUndoEnabled(True)
        scene.AddDefaultNode(default)
    output = SegmentsOutput(scene, volume)
    output.addLayer({1: LIVER}).writeAll(blob(1).astype(np.uint8))
    output.finish()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    scene.Undo()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    VolumeOutput(scene, volume, "new").writeAll(image())
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2
    scene.Undo()
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1


def test_a_new_volume_looks_and_lies_like_the_query(scene) -> None:
    volume = scenes.addVolume(scene, image(), frame("oblique"))
    volume.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(12)).GetID())
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(350, 40)
    output = VolumeOutput(scene, volume, "CT", start=image())
    painted = np.full((SHAPE[0], SHAPE[1]), 7.5, np.float32)
    output.writeSlices(2, [(4, painted)])
    node = output.node
    wanted = image().astype(np.float32)
    wanted[:, :, 4] = 7.5
    np.testing.assert_array_equal(mrml_bridge.volumeArray(node), wanted)
    assert node.GetName() == "CT 2"
    np.testing.assert_array_equal(mrml_bridge.worldAffine(node), mrml_bridge.worldAffine(volume))
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    shown = node.GetDisplayNode()
    assert (shown.GetWindow(), shown.GetLevel(), shown.GetAutoWindowLevel()) == (350, 40, 0)
    output.writeAll(wanted + 1)
    np.testing.assert_array_equal(mrml_bridge.volumeArray(node), wanted + 1)
    np.testing.assert_array_equal(mrml_bridge.volumeArray(volume), image())
    assert output.undo()
    assert not scene.IsNodePresent(node)
    assert output.redo()
    assert scene.IsNodePresent(node)
    assert (node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()) == (350, 40)
