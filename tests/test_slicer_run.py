"""Runs of the Slicer extension end to end: real MRML, its own client, a real server process, the shipped weights.

The file needs about 15 s of processor time, most of it for the server's start and its network.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported, and MVGLib is found by tests/slicer_scenes.py.
from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer_scenes as scenes
from slicer_scenes import frame, segmentArray

scenes.needSlicer()
pytest.importorskip("fastapi", reason="needs the extra [server]")
pytest.importorskip("uvicorn", reason="needs the extra [server]")

from MVGLib import mrml_bridge  # noqa: E402
from MVGLib.client import Client  # noqa: E402
from MVGLib.geometry import SlicePosition  # noqa: E402
from MVGLib.logic import MVGLogic, RunSettings  # noqa: E402
from MVGLib.segments import segmentIds, segmentMask, styleOf  # noqa: E402
from MVGLib.worker import Worker  # noqa: E402

SHAPE = (48, 44, 20)
REPOSITORY = Path(__file__).resolve().parents[1]


def body(seed: int = 0, shift: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy trunk with a liver and a kidney, which are easy to see; and where they are."""
    i, j, k = np.indices(SHAPE)
    trunk = ((i - 24) / 21) ** 2 + ((j - 22) / 19) ** 2 < 1
    liver = ((i - 16 - shift) / 7) ** 2 + ((j - 20) / 9) ** 2 + ((k - 10) / 8) ** 2 < 1
    kidney = ((i - 32 - shift) / 6) ** 2 + ((j - 24) / 7) ** 2 + ((k - 10) / 8) ** 2 < 1
    image = trunk * 60 + liver * 60 + kidney * 120 + np.random.default_rng(seed).normal(0, 4, SHAPE) - 20
    return image.astype(np.int16), liver, kidney


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """The local worker, started as the module starts it."""
    started = Worker([sys.executable, "-m", "mvg_core", "serve", "--worker", "--threads", "1"], folder=REPOSITORY,
                     startSeconds=300)
    started.waitUntilReady()
    yield started
    started.stop()


@pytest.fixture
def scene():
    return scenes.newScene()


@pytest.fixture
def logic(scene, worker: Worker) -> Iterator[MVGLogic]:
    made = MVGLogic(scene, worker.client)
    yield made
    made.cleanup()


@pytest.fixture
def query(scene) -> Any:
    """An oblique volume under a transform."""
    node = scenes.addVolume(scene, body()[0], frame("oblique", (1.0, 1.2, 2.5)))
    node.SetAndObserveTransformNodeID(scenes.addTransform(scene, scenes.turn(14)).GetID())
    return node


@pytest.fixture
def drawn(scene, query) -> Any:
    """What the user painted: liver and kidney in slice 10 alone."""
    _, liver, kidney = body()
    only = np.zeros(SHAPE, bool)
    only[:, :, 10] = True
    return scenes.addSegmentation(scene, query, {"liver": liver & only, "kidney": kidney & only},
                                  colours={"liver": (0.5, 0.25, 0.125)}, terminology={"liver": "SCT^1^Liver"})


def waitFor(run: Any, enough: Any, seconds: float = 120) -> None:
    """Poll until something is so."""
    end = time.monotonic() + seconds
    while not enough(run.poll()):
        assert time.monotonic() < end, f"still {run.status}"


def ended(status: Any) -> bool:
    return status.finished


def test_one_labelled_slice_gives_the_volume(scene, logic: MVGLogic, query, drawn) -> None:
    _, liver, kidney = body()
    before = {one: segmentArray(drawn, one, query) for one in segmentIds(drawn)}
    logic.references.addSlice(query, drawn, ["liver", "kidney"], SlicePosition(2, 10))
    told = []

    result = logic.process(query, progress=told.append, outputSegmentation=drawn)

    assert not result.isPartial
    assert result.axis == 2
    assert result.segmentationNode is drawn
    assert [drawn.GetSegmentation().GetSegment(one).GetName() for one in result.segmentIds] == ["liver 2", "kidney 2"]
    found = {one: segmentArray(drawn, one, query) for one in result.segmentIds}
    for mask, answer in zip((liver, kidney), found.values(), strict=True):
        assert dice(answer, mask) > 0.85
        np.testing.assert_array_equal(answer[:, :, 10], mask[:, :, 10])  # what the user painted stays
    style = styleOf(drawn.GetSegmentation().GetSegment(result.segmentIds[0]))
    assert style.colour == (0.5, 0.25, 0.125)
    assert style.terminology == "SCT^1^Liver"
    for one, mask in before.items():
        np.testing.assert_array_equal(segmentArray(drawn, one, query), mask)

    fractions = [one.fraction for one in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert max(one.paintedSlices for one in told[:-1]) > 5  # it grew while it ran
    assert result.report["task"] == "segmentation"
    assert result.slicesDone
    assert result.confidence is not None
    assert result.confidence.shape == SHAPE
    assert result.confidence.max() <= 100
    suggested = logic.nextSliceToLabel()
    assert suggested is not None
    assert suggested.axis == 2
    assert suggested.index != 10

    overlay = logic.showConfidence(result)
    np.testing.assert_array_equal(mrml_bridge.volumeArray(overlay), result.confidence)
    np.testing.assert_array_equal(mrml_bridge.worldAffine(overlay), mrml_bridge.worldAffine(query))
    assert logic.showConfidence(result) is overlay

    assert logic.canUndo
    assert logic.undo()
    assert segmentIds(drawn) == ["liver", "kidney"]
    assert logic.canRedo
    assert logic.redo()
    for one, answer in found.items():
        np.testing.assert_array_equal(segmentArray(drawn, one, query), answer)


def test_overlapping_segments_are_both_solved(scene, logic: MVGLogic, query) -> None:
    _, liver, kidney = body()
    both = liver | kidney
    drawn = scenes.addSegmentation(scene, query, {"liver": liver, "organs": both})
    logic.references.addSlice(query, drawn, ["liver", "organs"], SlicePosition(2, 10))
    result = logic.process(query, sliceRange=(7, 12))
    assert [styleOf(result.segmentationNode.GetSegmentation().GetSegment(one)).name for one in result.segmentIds] == [
        "liver", "organs"]
    for one, mask in zip(result.segmentIds, (liver, both), strict=True):
        found = segmentArray(result.segmentationNode, one, query)
        assert dice(found[:, :, 7:13], mask[:, :, 7:13]) > 0.85
        assert not found[:, :, :7].any()
        assert not found[:, :, 13:].any()


def test_another_patient_serves_as_reference(scene, logic: MVGLogic, query) -> None:
    image, liver, kidney = body(1, shift=2)
    # Stored the other way round: i and k run against the query's.
    patient = scenes.addVolume(scene, image[::-1, :, ::-1], frame("oblique", (1.0, 1.2, 2.5)) @ np.diag([-1, 1, -1, 1]),
                               "Patient 2")
    theirs = scenes.addSegmentation(scene, patient, {"liver": liver[::-1, :, ::-1], "kidney": kidney[::-1, :, ::-1]})
    logic.references.addVolume(patient, theirs)
    result = logic.process(query, sliceRange=(8, 12), axis=2, wantConfidence=False)
    for one, mask in zip(result.segmentIds, body()[1:], strict=True):
        found = within(result.segmentationNode, one, query)
        assert dice(found[:, :, 8:13], mask[:, :, 8:13]) > 0.7
    assert result.confidence is None
    assert logic.showConfidence(result) is None


def within(node: Any, segmentId: str, volume: Any) -> np.ndarray:
    found, whole = segmentMask(node, segmentId, volume), np.zeros(SHAPE, bool)
    whole[found.box] = found.array
    return whole


@pytest.mark.parametrize("task", ["denoising", "inpainting", "synthesis"])
def test_tasks_that_paint_images(scene, logic: MVGLogic, query, task: str) -> None:
    settings: dict[str, Any] = {"sliceRange": (9, 11), "axis": 2}
    if task == "inpainting":
        hole = np.zeros(SHAPE, bool)
        hole[20:26, 18:24, 8:12] = True
        settings["holeSegmentation"] = scenes.addSegmentation(scene, query, {"hole": hole}, "Hole")
    else:
        source = scenes.addVolume(scene, body(2)[0], frame("straight", (1.0, 1.2, 2.5)), "Source")
        target = scenes.addVolume(scene, 500 - body(3)[0], frame("straight", (1.0, 1.2, 2.5)), "Target")
        target.GetDisplayNode().SetAutoWindowLevel(False)
        target.GetDisplayNode().SetWindowLevel(222, 333)
        logic.references.addPair(source, target)
    result = logic.process(query, task, **settings)
    node, image = result.volumeNode, body()[0]
    found = mrml_bridge.volumeArray(node)
    assert found.shape == SHAPE
    assert not np.array_equal(found[:, :, 9:12], image[:, :, 9:12])
    np.testing.assert_array_equal(mrml_bridge.worldAffine(node), mrml_bridge.worldAffine(query))
    assert node.GetTransformNodeID() == query.GetTransformNodeID()
    if task == "inpainting":
        changed = found != image
        assert changed[20:26, 18:24, 9:12].mean() > 0.9
        changed[20:26, 18:24, 9:12] = False
        assert not changed.any()
    if task == "synthesis":
        assert (node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()) == (222, 333)
        assert found[:, :, 9:12].mean() > 300  # it looks like the target
    assert logic.undo()
    assert not scene.IsNodePresent(node)


def test_a_cancelled_run_keeps_what_was_painted_or_not(scene, logic: MVGLogic, query, drawn) -> None:
    logic.references.addSlice(query, drawn, ["liver", "kidney"], SlicePosition(2, 10))
    run = logic.start(RunSettings(query))
    with pytest.raises(RuntimeError, match="a run is going on"):
        logic.start(RunSettings(query))
    waitFor(run, lambda status: status.paintedSlices >= 3)
    run.cancel(keep=True)
    waitFor(run, ended)
    assert run.status.state == "cancelled"
    assert run.result is not None
    assert run.result.isPartial
    found = segmentArray(run.result.segmentationNode, run.result.segmentIds[0], query)
    assert dice(found[:, :, 10], body()[1][:, :, 10]) > 0.9
    assert logic.undo()

    count = scene.GetNumberOfNodes()
    run = logic.start(RunSettings(query))
    waitFor(run, lambda status: status.paintedSlices >= 2)
    assert scene.GetNumberOfNodes() > count
    run.cancel(keep=False)
    waitFor(run, ended)
    assert run.status.state == "cancelled"
    assert run.result is not None
    assert run.result.segmentIds == []
    assert scene.GetNumberOfNodes() == count

    run = logic.start(RunSettings(query))  # at once
    run.cancel(keep=True)
    waitFor(run, ended)
    assert run.status.state == "cancelled"
    assert scene.GetNumberOfNodes() == count


def test_a_correction_is_used_and_the_earlier_result_gives_way(scene, logic: MVGLogic, query, drawn) -> None:
    logic.references.addSlice(query, drawn, ["liver"], SlicePosition(2, 10))
    first = logic.process(query, sliceRange=(9, 13), outputSegmentation=drawn)
    kept = segmentArray(drawn, first.segmentIds[0], query)
    # The user empties slice 13 and says that it is right so.
    corrected = kept.copy()
    corrected[:, :, 13] = False
    scenes.paint(drawn, first.segmentIds[0], query, corrected)
    drawn.GetSegmentation().GetSegment(first.segmentIds[0]).SetName("liver")
    drawn.GetSegmentation().GetSegment("liver").SetName("my liver")
    logic.references.addSlice(query, drawn, [first.segmentIds[0]], SlicePosition(2, 13), anyShown=False)
    second = logic.process(query, sliceRange=(9, 13), outputSegmentation=drawn, replace=True)
    assert [drawn.GetSegmentation().GetSegment(one).GetName() for one in segmentIds(drawn)] == [
        "my liver", "kidney", "liver"]
    found = segmentArray(drawn, second.segmentIds[0], query)
    assert kept[:, :, 13].any()
    assert not found[:, :, 13].any()
    assert logic.undo()
    np.testing.assert_array_equal(segmentArray(drawn, first.segmentIds[0], query), corrected)


def test_a_preview_shows_one_slice_and_goes(scene, logic: MVGLogic, query, drawn) -> None:
    with pytest.raises(ValueError, match="label one slice"):
        logic.preview(RunSettings(query), 8)
    logic.references.addSlice(query, drawn, ["liver", "kidney"], SlicePosition(2, 10))
    warm = logic.warmUp(RunSettings(query))
    assert warm is not None
    waitFor(warm, ended)
    assert warm.status.state == "done", warm.status.message
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    for number in (8, 12):
        preview = logic.preview(RunSettings(query), number)
        waitFor(preview, ended)
        assert preview.status.state == "done", preview.status.message
        assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == count + 1
        for one, mask in zip(segmentIds(preview.node), body()[1:], strict=True):
            found = within(preview.node, one, query)
            assert dice(found[:, :, number], mask[:, :, number]) > 0.8
            assert not np.delete(found, number, axis=2).any()
    logic.removePreview()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == count
    with pytest.raises(ValueError, match="there is no slice 20"):
        logic.preview(RunSettings(query), 20)


def test_a_volume_that_the_server_dropped_is_sent_again(logic: MVGLogic, query, drawn) -> None:
    logic.references.addSlice(query, drawn, ["liver"], SlicePosition(2, 10))
    settings: dict[str, Any] = {"sliceRange": (9, 11), "wantConfidence": False}
    logic.process(query, **settings)
    assert logic.client is not None
    sent = set(logic._identities.values())
    assert len(sent) == 2
    for identity in sent:
        logic.client.deleteVolume(identity)
    assert logic.process(query, **settings).segmentIds


def test_errors_of_the_server_are_told_and_leave_nothing(scene, logic: MVGLogic, worker: Worker, query, drawn) -> None:
    logic.references.addSlice(query, drawn, ["liver"], SlicePosition(2, 10))
    count = scene.GetNumberOfNodes()
    with pytest.raises(RuntimeError, match="no part 'magic'"):
        logic.process(query, parts={"magic": 1})
    assert logic.client is not None
    logic.client = Client(logic.client.url, "wrong")
    with pytest.raises(RuntimeError, match=r"(?i)token|key"):
        logic.process(query)
    logic.client = None
    with pytest.raises(ValueError, match="no server is connected"):
        logic.process(query)
    assert scene.GetNumberOfNodes() == count
    assert logic.run is not None
    assert not logic.canUndo


def test_a_result_that_is_deleted_while_it_grows(scene, logic: MVGLogic, query, drawn) -> None:
    logic.references.addSlice(query, drawn, ["liver"], SlicePosition(2, 10))
    run = logic.start(RunSettings(query))
    waitFor(run, lambda status: status.paintedSlices >= 2)
    nodes = [scene.GetNthNodeByClass(at, "vtkMRMLSegmentationNode")
             for at in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))]
    scene.RemoveNode(next(node for node in nodes if node is not drawn))
    waitFor(run, ended)
    assert run.status.state == "failed"
    assert "deleted from the scene" in run.status.message


def test_a_killed_worker_loses_nothing(scene, logic: MVGLogic, worker: Worker, query, drawn) -> None:
    """The last of this file: the worker is gone after it."""
    logic.references.addSlice(query, drawn, ["liver", "kidney"], SlicePosition(2, 10))
    run = logic.start(RunSettings(query, outputSegmentation=drawn))
    waitFor(run, lambda status: status.paintedSlices >= 3)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    waitFor(run, ended, 60)
    assert run.status.state == "failed"
    assert run.status.message
    assert run.result is not None
    assert run.result.isPartial
    assert len(run.result.slicesDone) >= 3
    found = segmentArray(drawn, run.result.segmentIds[0], query)
    painted = np.flatnonzero(found.any(axis=(0, 1)))
    assert set(painted.tolist()) <= set(run.result.slicesDone)
    assert len(painted) >= 3
    assert segmentIds(drawn)[:2] == ["liver", "kidney"]
    assert logic.undo()
    assert segmentIds(drawn) == ["liver", "kidney"]
    with pytest.raises(RuntimeError):
        logic.process(query)
