"""Whole volumes by example, as a MONAI inferer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers.inferer import Inferer
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor, nn

from mvg_core.backends import TorchBackend
from mvg_core.bundle.served import in_monai_label, told_to_clients
from mvg_core.bundle.tensors import file_names, to_volumes
from mvg_core.engine import EngineConfig, VolumeEngine
from mvg_core.predict import Predictor
from mvg_core.reader_backends import load_reader
from mvg_core.references import Reference
from mvg_core.tasks import Task
from mvg_core.volume import Volume


class InContextInferer(Inferer):
    """Answers volumes on their own grid with the volume engine.

    Args:
        references: gives the solved examples and what they show, see `ReferenceSource`.
        preset: of the engine: plain, fast, balanced or accurate.
        parts: changes to the preset, see `EngineConfig`.
        plane: see `Predictor.predict_volume`.
        window: see `Predictor.predict_volume`.
        reader: weight file of what reads label maps beside the network, with its checksum beside it; None: the network
            paints them alone.
        settings: go to `Predictor`.

    Raises:
        WeightsError, CheckpointError: there is no such reader, or it is damaged or another kind of network.
    """

    def __init__(self, references: Callable[[], tuple[list[Reference], Task]], *, preset: str = "balanced",
                 parts: Mapping[str, Any] | None = None, plane: str = "auto",
                 window: tuple[float, float] | None = None, reader: str | os.PathLike[str] | None = None,
                 **settings: Any) -> None:
        super().__init__()
        self._reader = None if reader is None else load_reader(Path(reader))
        self.references, self._plane, self._window, self._settings = references, plane, window, settings
        self._mistake: ValueError | None = None
        try:
            self._config = EngineConfig.preset(preset, **(parts or {}))
        except ValueError as error:
            if not in_monai_label():
                raise
            self._mistake = error  # told when a client asks: MONAI's configs would hide it behind an error of theirs
        self._network: nn.Module | None = None
        self._engine: VolumeEngine | None = None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], hole: Tensor | None = None,  # type: ignore[override]
                 **_: Any) -> Tensor:
        """Answer a batch.

        Args:
            inputs: see `to_volumes`; in the units of their files.
            network: a `CompactPainter`, also within DistributedDataParallel.
            hole: masks of the shape of `inputs`, inpainting only.

        Returns:
            Of the shape and type of `inputs`, with their grid: label maps (uint8), or images (float32).

        Raises:
            PromptsError: no reference.
            ValueError: another kind of network, or an image that cannot be answered; the message names its file. Both
                errors are the client's 422 in MONAI Label's server.
        """
        with told_to_clients():
            if self._mistake is not None:
                raise self._mistake
            return self._answers(inputs, network, hole)

    def _answers(self, inputs: Tensor, network: Callable[..., Any], hole: Tensor | None) -> Tensor:
        references, task = self.references()
        engine = self._engine_of(network, inputs.device)
        images = to_volumes(inputs)
        holes = [None] * len(images) if hole is None else [
            image.with_array(one.detach().cpu().numpy().reshape(image.array.shape))
            for image, one in zip(images, hole, strict=True)]
        answers = [self._answer(engine, *each, references, task)
                   for each in zip(images, holes, file_names(inputs), strict=True)]
        stacked = torch.from_numpy(np.stack(answers).reshape(inputs.shape))
        return convert_to_dst_type(stacked, inputs, dtype=stacked.dtype)[0]  # type: ignore[return-value]

    def _answer(self, engine: VolumeEngine, image: Volume, hole: Volume | None, name: str,
                references: list[Reference], task: Task) -> np.ndarray:
        window = None if self._window is None else (self._window[0], self._window[1])
        try:
            prediction = engine.solve(image, references, task, plane=self._plane, hole=hole, window=window)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        array = prediction.volume.array
        return array if task.is_segmentation else array.astype(np.float32, copy=False)

    def _engine_of(self, network: Any, device: torch.device) -> VolumeEngine:
        network = getattr(network, "module", network)
        if self._engine is None or self._network is not network:
            if not (hasattr(network, "encode") and hasattr(network, "config")):
                raise ValueError(f"the network is a {type(network).__name__}, which cannot encode prompts on their "
                                 "own: use the network_def of inference.json (exported ones are for other programs)")
            reader = None if self._reader is None else self._reader.on(device)
            predictor = Predictor(TorchBackend(network, str(device), reader=reader), **self._settings)
            self._engine = VolumeEngine(predictor, self._config)
            self._network = network
        return self._engine
