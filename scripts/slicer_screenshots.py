"""Pictures of the Slicer module for its documentation: the real panel, with results that it computed itself.

    python scripts/slicer_screenshots.py [--output docs/images] [--only one-slice|other-patient]

Nobody has to press anything: the panel of MVG.ui runs on PySide6 with a real MRML scene (slicer-core), its buttons are
pressed by this script, the worker process computes with the shipped weights. The slices beside the panel are drawn here
from the scene, as Slicer's own views need the application. Data: the MNI152 template that nilearn carries, and the two
made-up patients of the module's sample data. Needs the extra `dev` and the files of `make package`; some minutes.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported; scripts/ and the extension are put on the path below.
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import slicer_scenes  # noqa: E402
import slicer_standins  # noqa: E402
from PIL import Image  # noqa: E402
from PySide6 import QtCore, QtGui  # noqa: E402

from mvg_core.preview import overlay  # noqa: E402

PANEL_WIDTH, TILE, GAP, STRIP = 470, 330, 10, 30
PAPER, INK, FAINT = "#0e1016", "#e6e9f0", "#8a92a6"
Tile = tuple[str, np.ndarray]
"""Caption and (H, W, 3) picture."""


def one_slice(scene: Any, output: Path) -> None:
    """Label one slice, get the volume: a brain template, of which the panel is given one labelled slice."""
    from mvg_core.demo import load_template

    template = load_template()
    image, truth = (one.array[10:-10:2, 10:-10:2, 20:150:5] for one in (template.image, template.truth))
    affine = template.image.geometry.affine @ np.diag([2.0, 2.0, 5.0, 1.0])
    labelled = image.shape[2] // 2
    panel = start(scene)
    volume = slicer_scenes.addVolume(scene, (1000 * image).astype(np.int16), affine, "MNI152 T1")
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(900, 450)
    colours = {"grey matter": (0.15, 0.78, 0.75), "white matter": (1.0, 0.65, 0.26)}
    masks = {}
    for number, name in enumerate(colours, 1):
        masks[name] = np.zeros(truth.shape, bool)
        masks[name][..., labelled] = truth[..., labelled] == number
    labels = slicer_scenes.addSegmentation(scene, volume, masks, "My labels", colours)
    panel.enter()
    panel.parameters.queryVolume, panel.parameters.labelSegmentation = volume, labels
    panel.logic.jumpTo(panel.sliceNode(), volume, 2, labelled)
    panel.ui.addSliceButton.click()
    run(panel)
    shown = [labelled, labelled - 7, labelled - 4, labelled + 4, labelled + 8]
    tiles = [(f"slice {n}: {'the labelled one' if n == labelled else 'by MVG'}",
              drawn(image[..., n], masks if n == labelled else found(panel), n, colours)) for n in shown]
    confidence = panel.run.result.confidence[..., shown[-1]]
    tiles.append((f"slice {shown[-1]}: confidence (bright: unsure)", heat(image[..., shown[-1]], confidence)))
    save(panel, tiles, "Label one slice, get the volume", output / "slicer-one-slice.png")
    panel.cleanup()


def other_patient(scene: Any, output: Path) -> None:
    """A solved patient, the next one: the made-up patients of the sample data."""
    from MVGLib import sample_data
    from MVGLib.parameters import Plane

    panel = start(scene)
    volume, _ = sample_data.addPatient(0, [])
    reference, labels = sample_data.addPatient(1)
    panel.enter()
    panel.ui.referenceTabs.setCurrentIndex(1)
    parameters = panel.parameters
    parameters.queryVolume, parameters.referenceVolume, parameters.referenceSegmentation = volume, reference, labels
    panel.ui.addVolumeButton.click()
    parameters.plane, parameters.allSlices = Plane.axial, False
    parameters.firstSlice, parameters.lastSlice = 10, 26
    run(panel)
    colours = {name: colour for name, (_, colour) in sample_data.ORGANS.items()}
    solved, new = sample_data.phantom(1), sample_data.phantom(0)
    tiles = [(f"reference, slice {n}: its labels", drawn(window(solved.image[..., n]), solved.masks, n, colours))
             for n in (14, 20)]
    answers = found(panel)
    tiles += [(f"new patient, slice {n}: by MVG", drawn(window(new.image[..., n]), answers, n, colours))
              for n in (12, 16, 20, 24)]
    save(panel, tiles, "Pick a solved patient, get the next one", output / "slicer-other-patient.png")
    panel.cleanup()


# --- the panel ---


def start(scene: Any) -> Any:
    """A panel on a scene."""
    import MVG

    return slicer_standins.panel_of(MVG.MVGWidget)


def run(panel: Any, seconds: float = 900) -> None:
    """Press Run, and wait as the application would.

    Raises:
        SystemExit: it did not end well.
    """
    import slicer

    panel.ui.runButton.click()
    if not wait(lambda: not panel.run.isBusy, seconds) or panel.run.result is None or slicer.app.errors:
        raise SystemExit(f"no result: {panel.ui.statusLabel.text()} {slicer.app.errors}")
    print(panel.ui.resultLabel.text())


def wait(until: Callable[[], bool], seconds: float) -> bool:
    """Let the application live until something is so; whether it came to be."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        slicer_standins.process_events()
        time.sleep(0.01)
    return until()


def found(panel: Any) -> dict[str, np.ndarray]:
    """Name -> (I, J, K) bool of the segments that the run made."""
    result = panel.run.result
    segmentation = result.segmentationNode.GetSegmentation()
    return {segmentation.GetSegment(one).GetName(): slicer_scenes.segmentArray(result.segmentationNode, one,
                                                                             result.queryNode)
            for one in result.segmentIds}


# --- pictures ---


def window(image: np.ndarray) -> np.ndarray:
    """Hounsfield units as grey from 0 to 1."""
    return np.clip((image + 140) / 400, 0, 1)


def drawn(image: np.ndarray, masks: dict[str, np.ndarray], number: int, colours: dict[str, Any]) -> np.ndarray:
    """A slice with its segments, as radiologists see it: right on the left, front up."""
    label = np.zeros(image.shape, np.uint8)
    shades = {}
    for value, name in enumerate(colours, 1):
        label[masks[name][..., number]] = value
        shades[value] = np.round(255 * np.array(colours[name])).astype(np.uint8)
    return overlay(upright(image).astype(np.float32), upright(label), shades)


def heat(image: np.ndarray, percent: np.ndarray) -> np.ndarray:
    """A slice with what the network is unsure of in bright colours."""
    unsure = upright(1 - percent / 100.0)[..., None]
    grey = np.repeat(upright(np.clip(image, 0, 1))[..., None], 3, axis=-1)
    return np.round(255 * ((1 - unsure) * 0.5 * grey + unsure * np.array((1.0, 0.75, 0.25)))).astype(np.uint8)


FLIPPED = [False]
"""Whether the first voxel axis of what is drawn grows to the right of the patient (the template's), not to the left."""


def upright(image: np.ndarray) -> np.ndarray:
    """(I, J) -> rows from the front to the back, columns from the patient's right to the left."""
    return np.ascontiguousarray(image.T[::-1, ::-1] if FLIPPED[0] else image.T)


def save(panel: Any, tiles: list[Tile], title: str, path: Path) -> None:
    """Draw panel and tiles beside each other."""
    panel.window.resize(PANEL_WIDTH, panel.window.sizeHint().height())
    panel.window.show()
    slicer_standins.process_events()
    shot = panel.window.grab()
    width = PANEL_WIDTH + 3 * GAP + 2 * TILE + GAP
    height = max(shot.height(), STRIP + 3 * (TILE + STRIP) + GAP) + STRIP
    picture = QtGui.QImage(width, height, QtGui.QImage.Format.Format_RGB32)
    picture.fill(QtGui.QColor(PAPER))
    painter = QtGui.QPainter(picture)
    painter.drawPixmap(0, 0, shot)
    x, y = PANEL_WIDTH + 2 * GAP, GAP
    write(painter, x, y + 18, title, 15, INK, bold=True)
    for number, (caption, tile) in enumerate(tiles):
        left, top = x + number % 2 * (TILE + GAP), y + STRIP + number // 2 * (TILE + STRIP)
        rows, columns = tile.shape[:2]
        image = QtGui.QImage(tile.tobytes(), columns, rows, 3 * columns, QtGui.QImage.Format.Format_RGB888)
        scaled = image.scaled(TILE, TILE, QtCore.Qt.AspectRatioMode.KeepAspectRatio,
                              QtCore.Qt.TransformationMode.SmoothTransformation)
        painter.drawImage(left + (TILE - scaled.width()) // 2, top + (TILE - scaled.height()) // 2, scaled)
        write(painter, left, top + TILE + 18, caption, 10, FAINT)
    painter.end()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(str(path))
    # 256 colours are enough, and a third of the bytes.
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def write(painter: Any, x: int, y: int, text: str, size: int, colour: str, bold: bool = False) -> None:
    """A line of text."""
    font = QtGui.QFont("DejaVu Sans", size)
    font.setBold(bold)
    painter.setFont(font)
    painter.setPen(QtGui.QColor(colour))
    painter.drawText(x, y, text)


def main() -> None:
    """Make both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--only", choices=("one-slice", "other-patient"))
    options = parser.parse_args()
    for name, draw, flipped in (("one-slice", one_slice, True), ("other-patient", other_patient, False)):
        if options.only in (None, name):
            scene = slicer_scenes.newScene()
            slicer_standins.install(scene)
            slicer_standins.add_slice_views(scene)
            FLIPPED[0] = flipped
            draw(scene, options.output)


if __name__ == "__main__":
    main()
