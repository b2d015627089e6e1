"""The MONAI Label app: a server that segments as the labels show that annotators have submitted so far.

    monailabel start_server --app monailabel_app --studies FOLDER --host 127.0.0.1

Options (`--conf KEY VALUE`) and everything else: docs/how-to/monai-label.md.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mvg_core
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.others.generic import remove_file

# All at once: MONAI Label takes this folder out of the search path again when this module is loaded.
from lib import dicomweb, errors, web
from lib.batch import Batch
from lib.infers.image import Image
from lib.infers.propagate import Propagate
from lib.infers.segment import Segment
from lib.scoring.quality import ExpectedQuality
from lib.sessions import CarefulSessions
from lib.store import StudiesFolder
from lib.strategies.least_alike import LeastAlike
from lib.strategies.lowest_quality import LowestQuality
from lib.trainers.finetune import FinetuneTask
from lib.workbench import Workbench

SEGMENT, PROPAGATE, IMAGE = "mvg_segment", "mvg_propagate", "mvg_image"
FINETUNE, QUALITY = "mvg_finetune", "mvg_quality"
_LOG_LEVEL = "MVG_LABEL_LOG_LEVEL"
# How Python calls temporary files, into which MONAI Label writes what is uploaded.
_TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}(\.\S+)?")


class MVGApp(MONAILabelApp):
    """Tasks get the app's workbench, since MONAI Label tells an inference nothing about the other images."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        # MONAI Label's processes for trainings and batches log everything, file names too, whatever the server logs.
        logging.getLogger().setLevel(os.environ.setdefault(_LOG_LEVEL, logging.getLevelName(logging.getLogger().level)))
        super().__init__(app_dir, studies, conf, name=f"MVG {mvg_core.__version__}", version=mvg_core.__version__,
                         description="Segments, denoises and inpaints by example: from the labels submitted so far")
        # After every sample, in a process of its own, on all cores: no help for whoever waits for an answer.
        self._auto_update_scoring = str(conf.get("auto_scoring", "")).lower() == "true"

    def init_datastore(self) -> Datastore:
        """The images, and with them what all tasks share."""
        if not self.studies.startswith(("http://", "https://")):
            datastore = self._folder()
        elif settings.MONAI_LABEL_DATASTORE or "googleapis.com" in self.studies:
            datastore = self.init_remote_datastore()
        else:
            datastore = dicomweb.connect(self.studies, re.findall(r"\w+", self.conf.get("modalities", "").upper()))
        self.bench = Workbench(self.app_dir, self.studies, self.conf, datastore)
        return datastore

    def _folder(self) -> StudiesFolder:
        return StudiesFolder(
            self.studies, extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY)

    def init_infers(self) -> dict[str, InferTask]:
        """Segmentation by references, completion of painted volumes, and images."""
        return {SEGMENT: Segment(self.bench), PROPAGATE: Propagate(self.bench), IMAGE: Image(self.bench)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Fine-tuning."""
        return {FINETUNE: FinetuneTask(self.bench)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The first is what clients show as default."""
        least_alike = LeastAlike(self.bench)
        return {"least_alike": least_alike, "lowest_quality": LowestQuality(least_alike), "first": First(),
                "random": Random()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Expected quality."""
        return {QUALITY: ExpectedQuality(self.bench, Segment(self.bench), remove_file)}

    def init_batch_infer(self) -> Callable[..., Any]:
        """One image after the other."""
        return Batch()

    def on_init_complete(self) -> None:
        """Make the server ready: the first request is as fast as all others."""
        super().on_init_complete()
        from monailabel.app import app as server  # only where it exists: not in the processes of trainings

        web.prepare(server, self.conf.get("origins", ""))
        self.bench.warm_up()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer an image; see the tasks in lib/infers."""
        image, label = request.get("image"), request.get("label")
        try:
            with errors.told_to_clients():
                request = {**request, "image": self._known_image(image)}
                if label and not self._is_upload(label):
                    raise errors.problem(422, "label must be uploaded as the form's file 'label', not named in params")
                return super().infer(request, datastore)
        except Exception:
            # After an error MONAI Label does not remove what was uploaded.
            if isinstance(image, str) and self._is_upload(image):
                remove_file(image)
            raise
        finally:
            if label and self._is_upload(label):
                remove_file(label)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train; see lib/trainers."""
        with errors.told_to_clients():
            return super().train(request)

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Score; see lib/scoring."""
        with errors.told_to_clients():
            return super().scoring(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Choose the next image; see lib/strategies."""
        with errors.told_to_clients():
            return super().next_sample(request)

    def bundle_path(self, model: str | None) -> str | None:
        """No bundle; but MONAI Label asks this before it starts a process, so mistakes can be told to the client."""
        trainer = self._trainers.get(model)
        if isinstance(trainer, FinetuneTask):
            trainer.check()
        elif model is not None and model not in self._infers:
            raise errors.problem(404, f"there is no model {model!r}: GET /info/ lists those there are")
        return None

    def _load_sessions(self, load: bool = False) -> CarefulSessions | None:
        if not load:
            return None
        return CarefulSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)

    def _known_image(self, image: str) -> str:
        """The id or path of an image, if the client may name it.

        Raises:
            HTTPException: no such id; a file of the server that was not uploaded.
        """
        if image and (self._datastore.get_image_uri(image) or self._is_upload(image) or self._is_session(image)):
            return image
        if not image:
            raise errors.problem(404, "the session is not there any more: create it again with PUT /session/")
        raise errors.problem(404, f"no image has the id {image!r}: GET /datastore/?output=all lists those there are")

    def _is_upload(self, path: str) -> bool:
        """Whether a client sent this file with the request."""
        file = Path(path)
        return (file.parent.resolve() == Path(tempfile.gettempdir()).resolve() and file.is_file()
                and _TEMPORARY.fullmatch(file.name) is not None)

    def _is_session(self, path: str) -> bool:
        """Whether a client sent this file or folder as a session."""
        if self._sessions is None:
            return False
        real = Path(path).resolve()
        return real.exists() and real.is_relative_to(Path(self._sessions.store_path).resolve())
