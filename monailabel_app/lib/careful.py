"""MONAI Label's folder of images and labels, which a killed server cannot damage and several processes can change."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException
from mvg_core.report import write_text

from lib.errors import as_object, problem

UNFINISHED = ".part"
"""Suffix of files that are being written; no image or label has it."""
UNFINISHED_S = 3600
"""Nobody writes for so long."""


class CarefulDatastore(LocalDatastore):
    """Keeps the list of images and labels as MONAI Label does, with two differences.

    Files appear whole or not at all. And every change is made to the list as it is on disk at that moment: trainings
    and batches run in processes of their own, whose changes MONAI Label's own class overwrites, and with them the
    names of labels that somebody submitted meanwhile.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._turn = threading.RLock()  # the thread that watches the folder reads the list, too
        super().__init__(*args, **kwargs)
        if hasattr(self, "_handler"):  # MONAI Label watches the folder
            self._handler.on_moved = self._on_any_event
        self._forget_unfinished()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take in an image."""
        image_info = as_object(image_info or {})
        name, suffix = self._to_id(os.path.basename(image_filename))
        image_id = image_id or name
        with self._changing() as objects:
            file = self._filename(image_id, suffix)
            _put(image_filename, Path(self._datastore.image_path()) / file)
            objects[image_id] = ImageLabelModel(image=_described(image_info, file, suffix))
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Take in a label map."""
        label_info = as_object(label_info or {})
        _, suffix = self._to_id(os.path.basename(label_filename))
        with self._changing() as objects:
            if image_id not in objects:
                raise ImageNotFoundException(f"Image {image_id} not found")
            file, folder = self._filename(image_id, suffix), Path(self._datastore.label_path(label_tag))
            folder.mkdir(parents=True, exist_ok=True)
            before = objects[image_id].labels.get(label_tag)
            _put(label_filename, folder / file)
            objects[image_id].labels[label_tag] = _described(label_info, file, suffix)
        if before is not None and before.ext != suffix:
            (folder / self._filename(image_id, before.ext)).unlink(missing_ok=True)
        return image_id

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known about an image."""
        with self._changing() as objects:
            if image_id not in objects:
                raise ImageNotFoundException(f"Image {image_id} not found")
            objects[image_id].image.info.update(as_object(info))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known about a label."""
        with self._changing() as objects:
            label = objects[label_id].labels.get(label_tag) if label_id in objects else None
            if label is None:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            label.info.update(as_object(info))

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; gone when this returns."""
        super().remove_image(image_id)
        self.refresh()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; gone when this returns."""
        super().remove_label(label_id, label_tag)
        self.refresh()

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Zip file of the labelled images, with their labels; one file, which the next call replaces.

        Raises:
            HTTPException: no image has a final label.
        """
        if not self.get_labeled_images():
            raise problem(422, "no image has a submitted label: there is nothing to download")
        path = Path(tempfile.gettempdir()) / f"mvg-dataset-{os.getpid()}.zip"
        os.replace(super().get_dataset_archive(limit_cases), path)
        return str(path)

    # --- what MONAI Label's class calls ---

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ImageLabelModel]]:
        """The list as it is now, for all processes; kept when the block ends without an error."""
        with self._turn, FileLock(self._lock_file):
            self._read()
            before = copy.deepcopy(self._datastore.objects)
            try:
                yield self._datastore.objects
            except BaseException:
                self._datastore.objects = before
                raise
            if self._datastore.objects != before:
                self._write()

    def _forget_unfinished(self) -> None:
        """Remove what killed servers left half written."""
        labels = Path(self._datastore.label_path(None))
        for folder in (Path(self._datastore.image_path()), *(path for path in labels.iterdir() if path.is_dir())):
            for path in folder.glob(f".*{UNFINISHED}"):
                if time.time() - _age(path) > UNFINISHED_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _reconcile_datastore(self) -> None:
        """Make the list true: people put files into the folder, and take them away."""
        with self._changing():
            self._datastore.objects = self._found()

    def _found(self) -> dict[str, ImageLabelModel]:
        """The images and labels that there are, with what is known about them."""
        known, objects = self._datastore.objects, dict[str, ImageLabelModel]()
        images = self._files(self._datastore.image_path())
        for one in (*(one for one in known if one in images), *sorted(set(images) - set(known))):
            suffixes = images[one]
            same = known.get(one) if one in known and known[one].image.ext in suffixes else None
            image = same.image if same else _described({}, self._filename(one, suffixes[0]), suffixes[0])
            objects[one] = ImageLabelModel(image=image)
        for tag in sorted(path.name for path in Path(self._datastore.label_path(None)).iterdir() if path.is_dir()):
            for one, suffixes in self._files(self._datastore.label_path(tag)).items():
                if one not in objects:
                    logging.getLogger(__name__).info("a label belongs to no image: it is left alone")
                    continue
                label = known[one].labels.get(tag) if one in known else None
                if label is None or label.ext not in suffixes:
                    label = _described({}, self._filename(one, suffixes[0]), suffixes[0])
                objects[one].labels[tag] = label
        return objects

    def _files(self, folder: str) -> dict[str, list[str]]:
        """Id -> suffixes of its files, the latest first."""
        found: dict[str, list[str]] = {}
        files = [file for file in self._list_files(folder, self._extensions) if not file.startswith(".")]
        for file in sorted(files, key=lambda file: -_age(Path(folder) / file)):
            one, suffix = self._to_id(file)
            found.setdefault(one, []).append(suffix)
        return found

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the list if it changed; files are always whole, so no lock is needed."""
        self._read()

    def _update_datastore_file(self, lock: bool = True) -> None:
        if not lock:
            self._write()
            return
        with FileLock(self._lock_file):
            self._write()

    def _on_modify_event(self, event: Any) -> None:
        if event.src_path == self._datastore_config_path:
            self._read()

    def _on_any_event(self, event: Any) -> None:
        self.refresh()

    def _read(self) -> None:
        with self._turn:
            self._read_if_changed()

    def _read_if_changed(self) -> None:
        path = Path(self._datastore_config_path)
        if not path.is_file():
            return
        changed = path.stat().st_mtime_ns
        if changed == self._config_ts:
            return
        try:
            found = type(self._datastore).model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:  # written by MONAI Label's own class, which was killed while it wrote
            aside = path.with_suffix(f".damaged-{int(time.time())}.json")
            path.rename(aside)
            logging.getLogger(__name__).warning("%s was damaged and is kept as %s; the list is made anew from the "
                                                "files, names of segments are lost (%s)", path, aside.name, error)
            return
        found.base_path = self._datastore_path
        self._datastore, self._config_ts = found, changed

    def _write(self) -> None:
        path = Path(self._datastore_config_path)
        write_text(path, json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str))
        self._config_ts = path.stat().st_mtime_ns


def _described(info: dict[str, Any], file: str, suffix: str) -> DataModel:
    return DataModel(info={**info, "ts": int(time.time()), "name": file}, ext=suffix)


def _put(source: str, path: Path) -> None:
    """Copy a file so that `path` holds all of it or is untouched."""
    temporary = path.with_name(f".{uuid4().hex}{UNFINISHED}")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _age(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
