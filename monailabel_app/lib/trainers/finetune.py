"""Fine-tuning of the network on the labels that were submitted."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from mvg_core.report import write_report
from mvg_core.training.finetune import FinetuneConfig, Finetuned, finetune

from lib.errors import problem, told_to_clients
from lib.workbench import STATS, Workbench

FEWEST = 2
_KEPT_RUNS = 2


class FinetuneTask(TrainTask):
    """Learns from the final labels; the best weights serve from the next request on.

    Args:
        workbench: images, references and network.
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("Fine-tunes on the submitted labels; the weights before are kept if nothing is better")
        self._bench = workbench

    def config(self) -> dict[str, Any]:
        """The options; MONAI Label's own, such as `max_epochs`, are not used."""
        return {"steps": FinetuneConfig.steps, "minutes": 10, "adapters": FinetuneConfig.adapters, "from": ["shipped"]}

    def stats(self) -> dict[str, Any]:
        """What the last training gave, as clients read it; without paths."""
        return {key: value for key, value in self._bench.stats.items() if key != "weights"}

    def check(self) -> None:
        """Refuse what cannot be begun, before a process is started for it.

        Raises:
            HTTPException: too few labels.
        """
        count = len(self._bench.references.labelled())
        if count < FEWEST:
            raise problem(422, f"{count} images have a submitted label, training needs at least {FEWEST}: submit more "
                               "labels first")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, and write the stats.

        Args:
            request: options.
            datastore: not used: the workbench has it.
        """
        with told_to_clients():
            self.check()
            datalist = self._datalist()
            found = finetune(self._bench.weights("shipped"), datalist, _config(request), datalist.parent,
                             train_handlers=[Stats(self._bench.model_dir / STATS, self._bench.stats)])
            stats = _stats(found, self._bench.stats)
            write_report(self._bench.model_dir / STATS, stats)
            self._forget_old_runs(datalist.parent)
        return self.stats()

    def _datalist(self) -> Path:
        """The labelled images as a datalist, in a folder of its own: other labels begin another run."""
        references, datastore = self._bench.references, self._bench.datastore
        items = []
        for one in references.labelled():
            names = references.names_of(one)
            items.append({"image": datastore.get_image_uri(one), "label": references.label_file(one), "subject": one,
                          "labels": {str(number): name for number, name in names.items()}})
        state = [[item, Path(item["label"]).stat().st_mtime_ns] for item in items]
        digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
        folder = self._bench.model_dir / f"run-{digest}-{int(time.time())}"
        folder.mkdir(parents=True)
        path = folder / "datalist.json"
        write_report(path, {"name": "studies", "training": items})
        return path

    def _forget_old_runs(self, newest: Path) -> None:
        runs = sorted((one for one in self._bench.model_dir.glob("run-*") if one != newest),
                      key=lambda one: one.stat().st_mtime)
        for one in runs[: max(0, len(runs) - _KEPT_RUNS + 1)]:
            shutil.rmtree(one, ignore_errors=True)


class Stats:
    """Keeps the stats file up to date while a training runs.

    Args:
        path: of the file.
        before: what it held, of which the weights stay in use.
    """

    def __init__(self, path: Path, before: Mapping[str, Any]) -> None:
        self._path, self._before, self._started = path, before, time.time()

    def attach(self, engine: Engine) -> None:
        """Write after every epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        write_report(self._path, {**self._before, "status": "running", "start_ts": int(self._started),
                                  "epoch": engine.state.epoch, "total_epochs": engine.state.max_epochs,
                                  "total_time": round(time.time() - self._started, 1)})


def _config(request: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return FinetuneConfig(steps=int(request.get("steps") or FinetuneConfig.steps),
                              minutes=float(request.get("minutes") or 10),
                              adapters=int(request.get("adapters") or 0))
    except TypeError as error:
        raise ValueError(f"steps, minutes and adapters must be numbers: {error}") from error


def _stats(found: Finetuned, before: Mapping[str, Any]) -> dict[str, Any]:
    start = before.get("start_ts", int(time.time() - found.seconds))
    return {"status": "done", "start_ts": start, "total_time": round(found.seconds, 1), "best_metric": found.score[1],
            "best_metric_before": found.score[0], "best_step": found.steps, "cases": found.cases,
            "held_out": found.held_out, "weights": str(found.path)}
