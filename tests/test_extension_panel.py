"""The module's panel at work: the real .ui and widget code on PySide6, a real MRML scene, a real worker process.

The worker runs a tiny network, so answers are nonsense; what is looked at is what the panel makes of them. Stand-ins
are in scripts/slicer_standins.py. About half a minute.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported; scripts/ and the extension are put on the path below.
from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer_scenes
from tiny import WITH_MAPS, add_reader, tiny_network

pytest.importorskip("PySide6")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("fastapi")
slicer_scenes.needSlicer()

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

sys.path.insert(0, str(REPOSITORY / "slicer_extension" / "MVG" / "Testing" / "Python"))

import MVGModuleTest as for_the_application  # noqa: E402
import slicer_standins  # noqa: E402

SIDE, DEPTH, LABELLED = 32, 6, 2
CENTRE = np.array([16, 14, 0])


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed mvg_core with a tiny network in place of the shipped one."""
    from mvg_core.network.checkpoint import load_network, save_weights
    from mvg_core.network.export import export_onnx
    from mvg_core.weights import file_sha256, record_checksum

    root = tmp_path_factory.mktemp("core")
    ignored = shutil.ignore_patterns("__pycache__", "_weights")
    shutil.copytree(REPOSITORY / "mvg_core", root / "mvg_core", ignore=ignored)
    models = root / "bundle" / "models"
    models.mkdir(parents=True)
    network = tiny_network(WITH_MAPS)
    save_weights(network, models / "model.pt")
    record_checksum(models / "model.pt")
    export_onnx(network, models, checkpoint_sha256=file_sha256(models / "model.pt"))
    reader = add_reader(models)
    export_onnx(load_network(reader), models, checkpoint_sha256=file_sha256(reader))
    return root


@pytest.fixture(scope="session")
def worker(core: Path) -> Iterator[Any]:
    """A worker that panels share, because starting one takes seconds; they cannot end it."""
    from MVGLib import install
    from MVGLib.worker import Worker

    class Shared(Worker):
        def stop(self, seconds: float = 0) -> None:
            """Stays."""

    shared = Shared(install.localWorker(core).command, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    shared.start()
    yield shared
    Worker.stop(shared)


@pytest.fixture(scope="session")
def application() -> tuple[Any, Any]:
    """Scene and application, for all tests of this file."""
    scene = slicer_scenes.newScene()
    application = slicer_standins.install(scene)
    slicer_standins.add_slice_views(scene)
    return scene, application


@pytest.fixture
def panel(application: tuple[Any, Any], core: Path, worker: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The panel, a volume, and a segmentation with one labelled slice (`panel.volume`, `panel.labels`)."""
    import MVG
    from MVGLib import install

    monkeypatch.setattr(install, "coreFolder", lambda *_: core)
    monkeypatch.setattr(install, "localWorker", lambda *_: worker)
    scene, app = application
    app.errors, app.questions, app.answer = [], [], True
    for kind in ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLScriptedModuleNode"):
        for node in [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]:
            scene.RemoveNode(node)
    widget = slicer_standins.panel_of(MVG.MVGWidget)
    widget.app = app
    widget.volume, widget.labels = add_subject(scene, "patient 1", [LABELLED])
    widget.enter()
    widget.parameters.queryVolume, widget.parameters.labelSegmentation = widget.volume, widget.labels
    yield widget
    widget.cleanup()


def add_subject(scene: Any, name: str, labelled: list[int] | None = None, depth: int = DEPTH) -> tuple[Any, Any]:
    places = np.moveaxis(np.indices((SIDE, SIDE, depth)), 0, -1)
    ball = np.linalg.norm((places - CENTRE) * (1, 1, 2 * DEPTH / depth), axis=-1) < 8
    image = (100 * ball + np.random.default_rng(0).normal(0, 5, ball.shape)).astype(np.int16)
    affine = slicer_scenes.frame("straight")
    shown = ball.copy()
    if labelled is not None:
        shown[..., [z for z in range(depth) if z not in labelled]] = False
    volume = slicer_scenes.addVolume(scene, image, affine, name)
    return volume, slicer_scenes.addSegmentation(scene, volume, {"ball": shown, "top": shown & (places[..., 1] < 10)},
                                                 f"{name} labels")


def wait(panel: Any, until: Callable[[], bool], seconds: float = 60) -> float:
    """Let the application live until something is so; the longest time it stood still, in seconds."""
    end, longest = time.monotonic() + seconds, 0.0
    while not until():
        assert time.monotonic() < end, f"{panel.ui.statusLabel.text()} / {panel.ui.connectionLabel.text()}"
        started = time.monotonic()
        slicer_standins.process_events()
        longest = max(longest, time.monotonic() - started)
        time.sleep(0.005)
    return longest


def finish(panel: Any) -> float:
    return wait(panel, lambda: not panel.run.isBusy)


def show(panel: Any, number: int) -> None:
    panel.logic.jumpTo(panel.sliceNode(), panel.volume, 2, number)


def add_reference(panel: Any) -> None:
    show(panel, LABELLED)
    panel.ui.addSliceButton.click()
    slicer_standins.process_events()


def segmentations() -> int:
    import slicer

    return slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")


# --- references ---


def test_the_panel_says_what_is_missing_and_then_lets_run(panel: Any) -> None:
    assert not panel.ui.runButton.isEnabled()
    assert "reference" in panel.ui.runButton.toolTip().lower()
    add_reference(panel)
    assert panel.app.errors == []
    assert panel.ui.runButton.isEnabled()
    assert panel.ui.previewButton.isEnabled()
    assert panel.ui.statusLabel.text() == "Ready: Preview this slice, or Run.", "not what was missing before"
    assert panel.ui.referencesList.count() == 1
    assert not panel.ui.referencesList.item(0).icon().isNull()
    assert "slice 2" in panel.ui.referencesList.item(0).text()


def test_only_ticked_segments_become_part_of_the_reference(panel: Any) -> None:
    from PySide6.QtCore import Qt

    assert [panel.ui.segmentsList.item(row).text() for row in range(2)] == ["ball", "top"]
    panel.ui.segmentsList.item(0).setCheckState(Qt.CheckState.Unchecked)
    add_reference(panel)
    (entry,) = panel.logic.references.entries
    assert [one.name for one in entry.segments] == ["top"]
    panel.ui.segmentsList.item(1).setCheckState(Qt.CheckState.Unchecked)
    assert not panel.ui.addSliceButton.isEnabled()


def test_references_are_unticked_shown_removed_and_cleared(panel: Any) -> None:
    from PySide6.QtCore import Qt

    add_reference(panel)
    panel.ui.referencesList.item(0).setCheckState(Qt.CheckState.Unchecked)
    assert not panel.logic.references.entries[0].enabled
    slicer_standins.process_events()
    assert not panel.ui.runButton.isEnabled()
    show(panel, 5)
    panel.ui.goToReferenceButton.click()
    assert panel.logic.sliceOfView(panel.sliceNode(), panel.volume).index == LABELLED
    panel.app.answer = False
    panel.ui.clearReferencesButton.click()
    assert panel.ui.referencesList.count() == 1, "the user said no"
    panel.ui.removeReferenceButton.click()
    assert panel.ui.referencesList.count() == 0
    assert panel.logic.references.entries == []


def test_references_are_saved_and_loaded(panel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qt

    add_reference(panel)
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", staticmethod(lambda *_: str(tmp_path / "set")))
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", staticmethod(lambda *_: str(tmp_path / "set.zip")))
    panel.ui.saveReferencesButton.click()
    assert (tmp_path / "set.zip").is_file()
    panel.ui.clearReferencesButton.click()
    assert panel.ui.referencesList.count() == 0
    panel.ui.loadReferencesButton.click()
    assert panel.app.errors == []
    assert panel.ui.referencesList.count() == 1


def test_another_patient_is_a_reference_and_image_tasks_ask_for_pairs(panel: Any) -> None:
    import slicer
    from MVGLib.parameters import Task

    image, labels = add_subject(slicer.mrmlScene, "patient 2")
    panel.parameters.referenceVolume, panel.parameters.referenceSegmentation = image, labels
    panel.ui.addVolumeButton.click()
    assert panel.app.errors == []
    assert [entry.kind for entry in panel.logic.references.entries] == ["volume"]
    assert panel.ui.referenceTargetSelector.isHidden()
    panel.parameters.task = Task.denoising
    assert not panel.ui.referenceTargetSelector.isHidden()
    assert panel.ui.referenceSegmentationSelector.isHidden()
    assert not panel.ui.runButton.isEnabled(), "a segmentation's reference says nothing of noise"
    panel.ui.addVolumeButton.click()
    assert "answer" in panel.app.errors[-1]
    panel.parameters.referenceTarget = panel.volume
    panel.ui.addVolumeButton.click()
    assert [entry.kind for entry in panel.logic.references.entries] == ["volume", "pair"]
    assert panel.ui.runButton.isEnabled()
    panel.parameters.task = Task.inpainting
    assert not panel.ui.holeSegmentSelector.isHidden()


# --- running ---


def test_preview_run_result_undo(panel: Any) -> None:
    add_reference(panel)
    before = segmentations()
    show(panel, 4)
    panel.ui.previewButton.click()
    assert not panel.ui.stopButtons.isHidden()
    longest = finish(panel)
    assert panel.app.errors == []
    assert "Preview shown" in panel.ui.statusLabel.text()
    assert "onnxruntime on cpu" in panel.ui.connectionLabel.text()

    panel.ui.runButton.click()
    assert not panel.ui.runButton.isEnabled()
    longest = max(longest, finish(panel))
    assert panel.app.errors == []
    assert longest < 0.5, f"the application stood still for {longest:.2f} s"
    result = panel.run.result
    assert result is not None
    assert not result.isPartial
    assert "Segmented" in panel.ui.resultLabel.text()
    assert segmentations() == before + 1, "one new segmentation, and the preview is gone"
    assert panel.ui.confidenceCheckBox.isEnabled()
    panel.ui.confidenceCheckBox.setChecked(True)
    panel.ui.confidenceOpacitySlider.setValue(70)
    (red,) = [one for one in panel.compositeNodes() if one.GetLayoutName() == "Red"]
    assert red.GetForegroundVolumeID()
    assert red.GetForegroundOpacity() == pytest.approx(0.7)
    panel.ui.confidenceCheckBox.setChecked(False)
    assert not red.GetForegroundVolumeID()

    assert panel.ui.undoButton.isEnabled()
    panel.ui.undoButton.click()
    assert panel.ui.redoButton.isEnabled()
    assert panel.app.errors == []


def test_the_worker_starts_and_gets_ready_while_the_user_looks_for_a_slice(panel: Any) -> None:
    assert panel.server.client is None
    add_reference(panel)
    wait(panel, lambda: panel.server.isReady)
    wait(panel, lambda: not panel.run.isPreparing and panel.logic._warmUp is not None)
    assert panel.logic._warmUp.status.state == "done"
    assert panel.app.errors == panel.app.questions == []
    assert panel.ui.stopButtons.isHidden(), "nothing that the user would have to wait for"


def test_a_reference_asks_nothing_and_sends_nothing_to_a_server(panel: Any, worker: Any) -> None:
    from MVGLib.parameters import Computer

    panel.parameters.computer = Computer.remote
    add_reference(panel)
    assert panel.server.client is None, "no address yet, and no message about it"
    panel.ui.serverUrlLineEdit.setText(worker.waitUntilReady().url)
    panel.ui.serverKeyLineEdit.setText(worker.client._token)
    panel.ui.testConnectionButton.click()
    wait(panel, lambda: panel.server.isReady)
    panel.ui.addSliceButton.click()
    assert panel.logic._warmUp is None
    assert panel.app.errors == panel.app.questions == []


def test_the_next_slice_to_label_is_shown_and_its_answer_is_ready_to_be_corrected(panel: Any) -> None:
    from MVGLib.geometry import SlicePosition

    add_reference(panel)
    panel.parameters.allSlices = False
    panel.ui.firstSliceSpinBox.setValue(1)
    panel.ui.lastSliceSpinBox.setValue(3)
    panel.ui.runButton.click()
    finish(panel)
    result = panel.run.result
    assert set(result.slicesDone) <= {1, 2, 3}
    result.suggestedSlices[:] = [SlicePosition(2, LABELLED), SlicePosition(2, 4)]
    panel.update()
    panel.ui.nextSliceButton.click()
    assert panel.logic.sliceOfView(panel.sliceNode(), panel.volume).index == 4, "slice 2 is labelled already"
    assert panel.parameters.labelSegmentation.GetID() == result.segmentationNode.GetID()
    assert set(panel.references.tickedSegments) == set(result.segmentIds)


def test_a_corrected_slice_serves_the_next_run_and_replaces_its_segments(panel: Any) -> None:
    from MVGLib.geometry import SlicePosition

    add_reference(panel)
    panel.ui.runButton.click()
    finish(panel)
    first = panel.run.result
    assert first.report["labelled_slices"] == [LABELLED]
    before = segmentations()
    first.suggestedSlices[:] = [SlicePosition(2, 4)]
    panel.update()
    panel.ui.nextSliceButton.click()
    node, segmentId = first.segmentationNode, first.segmentIds[0]
    corrected = slicer_scenes.segmentArray(node, segmentId, panel.volume) > 0
    corrected[...] = False
    corrected[5:20, 5:20, 4] = True
    slicer_scenes.paint(node, segmentId, panel.volume, corrected)
    panel.ui.addSliceButton.click()
    slicer_standins.process_events()
    assert [entry.position.index for entry in panel.logic.references.entries] == [LABELLED, 4]
    panel.parameters.outputSegmentation = node
    panel.ui.replaceResultCheckBox.setChecked(True)
    panel.ui.runButton.click()
    finish(panel)
    assert panel.app.errors == []
    second = panel.run.result
    assert second.report["labelled_slices"] == [LABELLED, 4]
    assert segmentations() == before, "no further segmentation"
    kept = slicer_scenes.segmentArray(second.segmentationNode, second.segmentIds[0], panel.volume) > 0
    assert np.array_equal(kept[..., 4], corrected[..., 4]), "what was corrected stays as it is"
    assert panel.logic.nextSliceToLabel(first) is None, "both are labelled now"


@pytest.mark.parametrize("keep", [True, False])
def test_stop_keeps_or_discards_what_was_painted(panel: Any, keep: bool) -> None:
    import slicer

    panel.volume, panel.labels = add_subject(slicer.mrmlScene, "tall", [LABELLED], depth=150)
    panel.parameters.queryVolume, panel.parameters.labelSegmentation = panel.volume, panel.labels
    add_reference(panel)
    before = segmentations()
    panel.ui.runButton.click()
    wait(panel, lambda: panel.run._run is not None and panel.run._run.status.paintedSlices > 0)
    assert not panel.ui.stopButtons.isHidden()
    (panel.ui.cancelKeepButton if keep else panel.ui.cancelDiscardButton).click()
    finish(panel)
    assert panel.app.errors == []
    assert panel.ui.runButton.isEnabled()
    assert segmentations() == before + keep
    if keep:
        assert panel.run.result.isPartial
        assert "partial" in panel.ui.resultLabel.text()


def test_a_killed_worker_gives_a_message_and_a_restart_and_none_is_left_behind(
    panel: Any, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MVGLib import install
    from MVGLib.worker import Worker

    command = install.workerCommand(core, "serve", "--worker", "--backend", "onnx", "--threads", "1")
    monkeypatch.setattr(install, "localWorker", lambda *_: Worker(command))
    add_reference(panel)
    panel.ui.testConnectionButton.click()
    wait(panel, lambda: panel.server.isReady)
    os.kill(panel.server._worker.pid, signal.SIGKILL)
    wait(panel, lambda: bool(panel.server.error))
    assert "Press Restart" in panel.ui.connectionLabel.text()
    assert "ended unexpectedly" in panel.ui.connectionLabel.text()
    assert panel.logic.client is None
    panel.ui.restartWorkerButton.click()
    wait(panel, lambda: panel.server.isReady)
    panel.ui.previewButton.click()
    finish(panel)
    assert "Preview shown" in panel.ui.statusLabel.text()
    pid = panel.server._worker.pid
    panel.server.disconnect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_hangs_is_told_and_comes_back_or_is_started_again(
    panel: Any, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MVGLib import install
    from MVGLib.worker import Worker

    command = install.workerCommand(core, "serve", "--worker", "--backend", "onnx", "--threads", "1")
    monkeypatch.setattr(install, "localWorker", lambda *_: Worker(command, checkSeconds=0.1, silentSeconds=1.0))
    add_reference(panel)
    panel.ui.testConnectionButton.click()
    wait(panel, lambda: panel.server.isReady)
    panel.server.client._shortSeconds = panel.server._worker.client._shortSeconds = 0.3
    pid = panel.server._worker.pid
    os.kill(pid, signal.SIGSTOP)
    longest = wait(panel, lambda: bool(panel.server.error))
    assert longest < 0.5, f"the application stood still for {longest:.2f} s"
    assert "not answered" in panel.ui.connectionLabel.text()
    assert "Press Restart" in panel.ui.connectionLabel.text()
    assert not panel.ui.restartWorkerButton.isHidden()
    os.kill(pid, signal.SIGCONT)
    wait(panel, lambda: panel.server.isReady)
    os.kill(pid, signal.SIGSTOP)
    wait(panel, lambda: bool(panel.server.error))
    panel.ui.restartWorkerButton.click()
    wait(panel, lambda: panel.server.isReady)
    assert panel.server._worker.pid != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    panel.server.disconnect()


def test_missing_packages_are_told_and_installed_by_the_button(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from MVGLib import install

    missing = ["onnxruntime>=1.19"]
    monkeypatch.setattr(install, "missingRequirements", lambda *_: missing)
    panel.server.update()
    assert not panel.ui.setupFrame.isHidden()
    assert "onnxruntime" in panel.ui.setupLabel.text()
    add_reference(panel)
    panel.ui.runButton.click()
    assert "press Install packages" in panel.app.errors[-1]
    assert not panel.run.isBusy
    monkeypatch.setattr(install, "ensureRequirements", lambda *_: missing.clear() or True)
    panel.ui.installButton.click()
    assert panel.ui.setupFrame.isHidden()


def test_another_version_of_the_library_is_told(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from MVGLib import install

    monkeypatch.setattr(install, "coreVersion", lambda *_: "9.9.9")
    panel.ui.testConnectionButton.click()
    wait(panel, lambda: panel.server.isReady)
    assert "9.9.9" in panel.ui.statusLabel.text()


# --- PyTorch ---


def test_pytorch_computes_if_chosen_and_is_never_installed_by_us(panel: Any, core: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from MVGLib import install
    from MVGLib.parameters import Computer
    from MVGLib.worker import Worker

    commands = []

    def started(*arguments: Any) -> Worker:
        commands.append(install.workerCommand(core, "serve", "--worker", "--backend", arguments[1]))
        return Worker(commands[-1], environment={**os.environ, "OMP_NUM_THREADS": "1"})

    monkeypatch.setattr(install, "localWorker", started)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "torch" else found(name))
    panel.parameters.computer = Computer.localTorch
    panel.ui.testConnectionButton.click()
    assert "install the extension PyTorch" in panel.app.errors[-1]
    assert commands == []
    monkeypatch.undo()
    monkeypatch.setattr(install, "coreFolder", lambda *_: core)
    monkeypatch.setattr(install, "localWorker", started)
    panel.ui.testConnectionButton.click()
    wait(panel, lambda: panel.server.isReady, 90)
    assert commands[0][-1] == "torch"
    assert "torch on cpu" in panel.ui.connectionLabel.text()
    assert not any("torch" in text or "onnx" in text for text in install.requirementsOf("torch"))
    assert any("onnxruntime" in text for text in install.requirementsOf("onnx"))


# --- a server elsewhere ---


def test_nothing_is_sent_elsewhere_without_consent(panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from MVGLib import server_panel
    from MVGLib.parameters import Computer

    asked = []
    monkeypatch.setattr(server_panel, "BackgroundCall", lambda work: asked.append(work) or Never())
    add_reference(panel)
    panel.parameters.computer = Computer.remote
    asked.clear()  # the worker of this computer was greeted before
    assert not panel.ui.serverUrlLineEdit.isHidden()
    panel.ui.runButton.click()
    assert "Enter the URL" in panel.app.errors[-1]
    panel.ui.serverUrlLineEdit.setText("https://mvg.example.org")
    panel.app.answer = False
    panel.ui.runButton.click()
    assert "https://mvg.example.org" in panel.app.questions[-1]
    assert not panel.run.isBusy
    assert asked == []
    panel.app.answer = True
    panel.ui.runButton.click()
    assert len(asked) == 1
    panel.ui.cancelKeepButton.click()
    questions = len(panel.app.questions)
    panel.ui.previewButton.click()
    assert len(panel.app.questions) == questions, "asked once until Slicer is closed"
    panel.ui.serverUrlLineEdit.setText("https://other.example.org")
    panel.ui.runButton.click()
    assert len(panel.app.questions) == questions + 1, "another server is another question"


@pytest.mark.parametrize(("url", "note"), [
    ("https://mvg.example.org", ""), ("http://mvg.example.org:8642", "not encrypted"),
    ("HTTP://mvg.example.org:8642", "not encrypted"), ("http://127.0.0.1:8642", "tunnel"),
    ("http://localhost:8642", "tunnel")])
def test_the_question_says_what_the_address_means(panel: Any, url: str, note: str) -> None:
    from MVGLib.parameters import Computer

    panel.parameters.computer = Computer.remote
    panel.ui.serverUrlLineEdit.setText(url)
    panel.app.answer = False
    assert not panel.server.mayUpload()
    (question,) = panel.app.questions
    assert url in question
    for one in ("not encrypted", "tunnel"):
        assert (one in question) == (one == note)


@pytest.mark.parametrize(("url", "key", "reason"), [
    ("", "", "Enter the URL of the server"),
    ("mvg.example.org", "", "write it as http://HOST:PORT"),
    ("https://mvg.example.org", "k\u00e9y", "copy it again")])
def test_a_connection_that_cannot_be_tried_is_not_said_to_be_tried(panel: Any, url: str, key: str, reason: str) -> None:
    from MVGLib.parameters import Computer

    panel.parameters.computer = Computer.remote
    panel.ui.serverUrlLineEdit.setText(url)
    panel.ui.serverKeyLineEdit.setText(key)
    panel.ui.testConnectionButton.click()
    assert reason in panel.app.errors[-1]
    assert panel.ui.connectionLabel.text() == "Not connected yet."


def test_a_server_that_is_not_there_is_told_once_with_what_to_do(panel: Any) -> None:
    from MVGLib.parameters import Computer

    panel.parameters.computer = Computer.remote
    panel.ui.serverUrlLineEdit.setText("http://127.0.0.1:9")
    panel.ui.testConnectionButton.click()
    wait(panel, lambda: bool(panel.server.error))
    for label in (panel.ui.connectionLabel, panel.ui.statusLabel):
        assert label.text().endswith("check the address. Then press Test connection.")
    assert panel.app.errors == []


def test_a_closed_scene_leaves_the_server_that_it_had_chosen(panel: Any, worker: Any,
                                                             capfd: pytest.CaptureFixture[str]) -> None:
    """The next scene says This computer; what is solved in it must not go to the server of the one before."""
    import slicer
    from MVGLib.parameters import Computer

    panel.parameters.computer = Computer.remote
    panel.ui.serverUrlLineEdit.setText(worker.waitUntilReady().url)
    panel.ui.serverKeyLineEdit.setText(worker.client._token)
    add_reference(panel)
    panel.ui.previewButton.click()
    finish(panel)
    assert "Preview shown" in panel.ui.statusLabel.text()
    assert panel.logic.client is not None
    slicer.mrmlScene.Clear(0)
    slicer_standins.process_events()
    assert panel.parameters.computer == Computer.local
    assert panel.server.client is None
    assert panel.logic.client is None
    assert not panel.server.isReady
    assert "Traceback" not in capfd.readouterr().err, "Slicer empties the node of the choices before it is taken anew"
    assert panel.parameters.preset.name == "fast"


class Never:
    """A call that does not end."""

    def poll(self) -> bool:
        return False


def test_the_key_is_sent_but_not_saved_or_logged(panel: Any) -> None:
    import slicer
    from MVGLib.parameters import Computer

    panel.parameters.computer = Computer.remote
    panel.ui.serverUrlLineEdit.setText("https://mvg.example.org")
    panel.ui.serverKeyLineEdit.setText("secret-key-1")
    assert panel.server._remoteClient()._token == "secret-key-1"
    scene = slicer.mrmlScene
    scene.SetSaveToXMLString(1)
    scene.Commit()
    text = scene.GetSceneXMLString()
    scene.SetSaveToXMLString(0)
    assert "mvg.example.org" in text
    assert "secret-key-1" not in text
    assert "secret-key-1" not in panel.ui.logTextEdit.toPlainText()


# --- errors and the scene ---


def test_names_of_volumes_stay_out_of_the_log(panel: Any, caplog: pytest.LogCaptureFixture) -> None:
    panel.volume.SetName("Doe^John")
    add_reference(panel)
    panel.guarded(lambda: panel.logic.jumpTo(panel.sliceNode(), panel.volume, 2, 999), "It cannot be shown.")
    assert "Doe^John" in panel.app.errors[-1], "the user may see it"
    assert "It cannot be shown." in panel.ui.logTextEdit.toPlainText()
    assert "Doe" not in panel.ui.logTextEdit.toPlainText() + caplog.text


def test_an_oblique_view_gives_one_clear_message(panel: Any) -> None:
    from MVGLib.mrml_bridge import vtkMatrix

    panel.sliceNode().GetSliceToRAS().DeepCopy(vtkMatrix(slicer_scenes.turn(20, (1, 0, 0))))
    panel.sliceNode().UpdateMatrices()
    panel.ui.addSliceButton.click()
    (text,) = panel.app.errors
    assert text.startswith("The slice cannot be used as a reference.")
    assert len(text.splitlines()) == 3, "what failed, a blank line, why and what to do"
    assert panel.logic.references.entries == []


def test_an_error_at_a_tick_of_the_timer_is_told_once(panel: Any) -> None:
    class Broken:
        def poll(self) -> None:
            raise RuntimeError("broken")

        def cancel(self, keep: bool) -> None:
            """Nothing to do."""

    panel.run._run = Broken()
    for _ in range(3):
        panel.poll()
    assert len(panel.app.errors) == 1
    assert not panel.run.isBusy


def test_the_range_ends_where_the_volume_does(panel: Any) -> None:
    from MVGLib.parameters import Plane

    panel.parameters.allSlices = False
    panel.parameters.plane = Plane.axial
    assert panel.ui.lastSliceSpinBox.maximum() == DEPTH - 1
    panel.parameters.plane = Plane.sagittal
    assert panel.ui.lastSliceSpinBox.maximum() == SIDE - 1
    panel.parameters.plane = Plane.axial
    show(panel, 4)
    panel.ui.lastFromViewButton.click()
    show(panel, 1)
    panel.ui.firstFromViewButton.click()
    assert panel.app.errors == []
    assert panel.run.settings().sliceRange == (1, 4)
    assert panel.run.settings().axis == 2


# --- the tests that are made for the application ---


@pytest.fixture
def asInSlicer(panel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What tests in the application ask Slicer for."""
    import slicer.util

    segmentations = SimpleNamespace(logic=lambda: slicer.mrmlScene.logics[0])
    monkeypatch.setattr(slicer, "modules", SimpleNamespace(segmentations=segmentations), raising=False)
    monkeypatch.setattr(slicer.util, "selectModule", lambda *_: None)
    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda *_: panel)
    monkeypatch.setattr(panel.app, "isTesting", True)
    return panel


def passes(case: unittest.TestCase) -> None:
    found = unittest.TestResult()
    case.run(found)
    assert found.testsRun == 1
    assert found.skipped == []
    for _, text in found.errors + found.failures:
        pytest.fail(text)


@pytest.mark.parametrize("name", unittest.TestLoader().getTestCaseNames(for_the_application.MVGModuleTest))
def test_the_tests_for_the_application_pass_on_stand_ins(asInSlicer: Any, name: str) -> None:
    passes(for_the_application.MVGModuleTest(name))


def test_the_self_test_passes_on_stand_ins_with_the_shipped_weights(asInSlicer: Any, monkeypatch: pytest.MonkeyPatch
                                                                     ) -> None:
    import MVG
    from MVGLib import install
    from MVGLib.worker import Worker

    command = install.workerCommand(REPOSITORY, "serve", "--worker", "--backend", "onnx", "--threads", "1")
    monkeypatch.setattr(install, "localWorker", lambda *_: Worker(command))
    passes(MVG.MVGTest("runTest"))
