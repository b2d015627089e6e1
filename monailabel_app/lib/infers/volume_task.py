"""What all inferences have in common: settings, the image, the answer's file."""

from __future__ import annotations

import tempfile
import time
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from mvg_core.engine import PRESETS, EngineConfig, VolumeEngine
from mvg_core.predict import Prediction
from mvg_core.report import VOLUME_SUFFIXES
from mvg_core.volume import Volume
from mvg_core.volume_io import write_volume

from lib.errors import told_to_clients
from lib.workbench import Workbench

PLANES = ["auto", "axial", "coronal", "sagittal"]
OWN, OTHERS = "fast", "balanced"
"""What the preset `auto` stands for: where slices of the image itself are labelled, and where other images are."""


class VolumeTask(InferTask):
    """Solves one image with the volume engine.

    Args:
        workbench: images, references and network.
        type: what clients show it as.
        description: for people.
    """

    def __init__(self, workbench: Workbench, type: InferType, description: str) -> None:
        super().__init__(type, None, 3, description)
        self.bench = workbench

    def is_valid(self) -> bool:
        """Whether clients are offered it."""
        return True

    def info(self) -> dict[str, Any]:
        """What clients are told; its labels are those of the references there are."""
        return {**super().info(), "labels": self._labels(), "config": self.config()}

    def config(self) -> dict[str, Any]:
        """The options; of a list the first is the default."""
        return {"preset": ["auto", *PRESETS], "plane": list(PLANES), "weights": self.bench.weights_choices}

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Solve an image.

        Args:
            request: options, `image` (path), `label` (path), `result_extension`.

        Returns:
            Path of the answer, and what is known about it.

        Raises:
            HTTPException: something in the request cannot be used; says what to do.
        """
        with told_to_clients(), self.bench.lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those that matter are in the answer
            started = time.perf_counter()
            settings = self.settings(request)
            suffix = self._suffix(settings)
            query = self.bench.volumes.read(settings["image"])
            read = time.perf_counter()
            prediction, facts = self.solve(query, settings)
            solved = time.perf_counter()
            path = _write(prediction.volume, suffix)
            done = time.perf_counter()
        facts["latencies"] = {"pre": round(read - started, 3), "infer": round(solved - read, 3),
                              "write": round(done - solved, 3), "total": round(done - started, 3)}
        facts["checkpoint_sha256"] = prediction.provenance["checkpoint_sha256"]
        facts["cache"] = self.bench.engines.facts()
        return path, facts

    @abstractmethod
    def solve(self, query: Volume, settings: Mapping[str, Any]) -> tuple[Prediction, dict[str, Any]]:
        """The answer, and what is told about it."""

    def settings(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request with defaults; clients may send the whole list of an option that was not touched."""
        options = self.config()
        known = {**options, **{key: value for key, value in request.items() if value is not None}}
        return {key: value[0] if isinstance(options.get(key), list) and isinstance(value, list) and value else value
                for key, value in known.items()}

    def engine(self, settings: Mapping[str, Any], *, own: bool = True) -> VolumeEngine:
        """The engine that a request asks for.

        Args:
            settings: of the request.
            own: slices of the image itself are labelled.
        """
        preset = str(settings["preset"])
        if preset == "auto":
            preset = OWN if own else OTHERS
        return self.bench.engines.engine(self.bench.weights(str(settings["weights"])), EngineConfig.preset(preset))

    def _labels(self) -> dict[str, int]:
        return {name: number for number, name in self.bench.references.names().items()}

    def _suffix(self, settings: Mapping[str, Any]) -> str:
        """Of the answer: what was asked for, else as the image."""
        asked = settings.get("result_extension")
        suffix = str(asked or self._default_suffix(Path(settings["image"]).name.lower()))
        if suffix not in VOLUME_SUFFIXES:
            raise ValueError(f"result_extension {suffix!r} cannot be written: use one of {', '.join(VOLUME_SUFFIXES)}")
        return suffix

    def _default_suffix(self, name: str) -> str:
        if name.endswith((".jpg", ".jpeg", ".png")):
            return ".png"
        return next((one for one in (".nii.gz", ".nii", ".nrrd", ".mha") if name.endswith(one)), ".nii.gz")


def found_labels(label: np.ndarray, names: Mapping[int, str]) -> dict[str, int]:
    """Name -> number of the labels in an answer, by number.

    Slicer gives the names one after the other to the numbers that it finds, so those that were not found must not be
    there: else all that follow get wrong names.
    """
    present = np.unique(label)
    return {names.get(int(number), f"label {number}"): int(number) for number in present if number}


def quality_of(provenance: Mapping[str, Any]) -> float | None:
    """The Dice that is to be expected of a whole answer: the mean over its slices by area; 0 if nothing was found."""
    slices = provenance.get("slice_quality")
    if slices is None:  # the preset `plain` does not tell
        return None
    weight = sum(one["voxels"] for one in slices.values())
    found = sum(one["voxels"] * one["expected_dice"] for one in slices.values())
    return round(found / weight, 4) if weight else 0.0


def _write(volume: Volume, suffix: str) -> str:
    """The answer in a temporary file; the server sends and removes it."""
    with tempfile.NamedTemporaryFile(prefix="mvg-", suffix=suffix, delete=False) as file:
        path = Path(file.name)
    try:
        write_volume(volume, path, overwrite=True)
    except Exception:
        path.unlink(missing_ok=True)
        raise
    return str(path)
