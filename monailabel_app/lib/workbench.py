"""What all tasks of the app share."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from mvg_core.engine import EngineConfig
from mvg_core.references import Reference
from mvg_core.report import read_names
from mvg_core.volume import Geometry, Volume
from mvg_core.weights import SHIPPED_NAME

from lib.engines import Engines
from lib.references import References
from lib.volumes import Volumes

SHIPPED, FINETUNED = "shipped", "fine-tuned"
"""Choices of the option `weights`."""
STATS = "train_stats.json"


class Workbench:
    """Images, references and network of one server.

    Args:
        app_dir: folder of the app.
        studies: folder or address of the images.
        conf: `--conf KEY VALUE` of the command line: `prompts` (folder), `labels` (file of names), `weights` (name or
            path), `device`, `threads`, `model_dir`.
        datastore: the images.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str], datastore: Datastore) -> None:
        self.datastore = datastore
        self.volumes = Volumes()
        self.engines = Engines(conf.get("device", "auto"), int(conf["threads"]) if conf.get("threads") else None)
        prompts = Path(conf.get("prompts") or Path(app_dir).parent / "bundle" / "prompts")
        names = read_names(Path(conf["labels"]))[0] if conf.get("labels") else {}
        self.references = References(datastore, self.volumes, prompts, names)
        # What was learned in one project stays there.
        project = f"{Path(studies).name}-{hashlib.sha256(str(studies).encode()).hexdigest()[:8]}"
        self.model_dir = Path(conf.get("model_dir") or Path(app_dir) / "model") / re.sub(r"[^\w.-]", "_", project)
        self._shipped = conf.get("weights") or SHIPPED_NAME
        self.lock = threading.Lock()
        """Held while the network is used: its caches are for one request at a time."""

    @property
    def stats(self) -> dict[str, Any]:
        """Of the last training, from disk: trainings run in a process of their own."""
        path = self.model_dir / STATS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def weights_choices(self) -> list[str]:
        """What the option `weights` offers, the one that is used by default first."""
        return [FINETUNED, SHIPPED] if self._finetuned() else [SHIPPED]

    def weights(self, choice: str) -> str | Path:
        """The weights that are meant.

        Raises:
            ValueError: an unknown choice, or nothing was fine-tuned yet.
        """
        if choice == SHIPPED:
            return self._shipped
        found = self._finetuned()
        if choice != FINETUNED or found is None:
            known = ", ".join(self.weights_choices)
            raise ValueError(f"weights {choice!r} are not there: choose {known}" + (
                "; train first" if choice == FINETUNED else ""))
        return found

    def warm_up(self) -> None:
        """Do everything once that is slow the first time: the network, and the libraries that it needs."""
        ramp = np.linspace(0, 1, 48 * 48 * 6, dtype=np.float32).reshape(48, 48, 6)
        image = Volume(ramp, Geometry(ramp.shape, np.eye(4)))
        label = np.zeros(ramp.shape, np.uint8)
        label[12:30, 12:30, 2] = 1
        with self.lock:
            engine = self.engines.engine(self.weights(self.weights_choices[0]), EngineConfig.preset("fast"))
            engine.solve(image, Reference(image, image.with_array(label)))

    def _finetuned(self) -> Path | None:
        path = Path(self.stats.get("weights") or "")
        return path if path.name and path.is_file() else None
