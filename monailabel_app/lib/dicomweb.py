"""Images of a DICOMweb server, for OHIF; labels are DICOM segmentations (SEG) there."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import requests
from dicomweb_client.session_utils import create_session, create_session_from_user_pass
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from mvg_core.references import labels_in, whole_labels
from mvg_core.resample import resample_to
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume, write_volume
from pydicom import dcmread
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from lib.careful import UNFINISHED, CarefulDatastore
from lib.dicom_seg import read_seg, write_seg
from lib.errors import as_object, problem
from lib.names import names_in
from lib.store import check_label, check_name, read

IMAGES = ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "OT")
"""Modalities that are listed; MONAI Label's own setting lists CT alone."""
LISTED_S = 5.0
"""How long a list of the server's series is used."""
ANSWER_WITHIN_S = 120
FINAL = DefaultLabelTag.FINAL


@dataclass(frozen=True)
class Segmentation:
    """A series with a SEG object.

    Attributes:
        series, study: UIDs.
        image: UID of the series that it belongs to; empty if it does not say.
        when: date and time, as text that sorts.
    """

    series: str
    study: str
    image: str
    when: str


class DicomwebStudies(CarefulDatastore, DICOMWebDatastore):
    """Series are images by their UID; what is fetched of them is kept in a folder of this machine.

    MONAI Label's own class shows new labels after two hours only, looks for a label under the image's UID, lets a
    client name any folder of the machine as an image, and takes a download that was cut off for whole.

    Args:
        client: of the server.
        modalities: of the series that are images.
        search_filter: DICOMweb search that finds them instead.
        folder: for copies; None is a folder in ~/.cache/monailabel/dicom.
    """

    def __init__(self, client: DICOMwebClientX, modalities: Sequence[str] = IMAGES, *,
                 search_filter: Mapping[str, Any] | None = None, folder: str | None = None) -> None:
        self._modalities, self._filter = tuple(modalities), search_filter
        self._listed: tuple[float, dict[str, str], dict[str, Segmentation]] | None = None
        self._segmentations: dict[str, Segmentation] = {}
        self._unreadable: set[str] = set()
        super().__init__(client, {}, folder)

    # --- what there is ---

    def list_images(self) -> list[str]:
        """UIDs of the series that are images."""
        return list(self._list()[0])

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the images with a segmentation."""
        return list(self._list()[1])

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the images without one."""
        images, labelled = self._list()
        return [one for one in images if one not in labelled]

    def at_hand(self, ids: Sequence[str], most: int) -> list[str]:
        """Some of these images, those first that need not be fetched."""
        return sorted(ids, key=lambda one: not self._copy(one).is_file())[:most]

    def json(self) -> dict[str, Any]:
        """The list for clients, with images that were not fetched yet."""
        told = super().json()
        empty = {"image": {"ext": "", "info": {}}, "labels": {}}
        return {**told, "objects": {one: told["objects"].get(one, empty) for one in self.list_images()}}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images with their labels."""
        return [{"image": self.get_image_uri(one), "label": label} for one in self.get_labeled_images()
                if (label := self.get_label_uri(one, FINAL))]

    # --- copies ---

    def get_image_uri(self, image_id: str) -> str:
        """Path of a copy (NIfTI), fetched when it is first asked for; empty for what is no image of the server."""
        study = self._list()[0].get(image_id)
        if study is None:
            return ""
        path = self._copy(image_id)
        if not path.is_file():
            series = self._fetch(study, image_id)
            with tempfile.TemporaryDirectory() as folder:
                converted = Path(folder) / "image.nii.gz"
                write_volume(read(str(series), f"series {image_id}"), converted)
                CarefulDatastore.add_image(self, image_id, str(converted), self._dicom_info(image_id))
        return str(path)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label map; a final one is a copy of the latest segmentation of that image. Empty if none."""
        if label_tag != FINAL:
            return LocalDatastore.get_label_uri(self, label_id, label_tag)
        latest = self._list()[1].get(image_id or label_id)
        if latest is None:
            return ""
        if LocalDatastore.get_label_info(self, latest.image, FINAL).get("SeriesInstanceUID") != latest.series:
            try:
                self._fetch_label(latest)
            except ValueError as error:
                logging.getLogger(__name__).warning("a segmentation is left out: %s", error)
                self._unreadable.add(latest.series)
                self._listed = None
                return self.get_label_uri(label_id, label_tag, image_id)  # the one before, if there is one
        return LocalDatastore.get_label_uri(self, latest.image, FINAL)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is known about a label, with names of its segments."""
        if label_tag == FINAL and not self.get_label_uri(label_id, FINAL):
            return {}
        return LocalDatastore.get_label_info(self, label_id, label_tag)

    # --- changes ---

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any],
                   label_id: str = "") -> str:
        """Take in a label map; a final one is stored on the DICOMweb server as a segmentation.

        Raises:
            ValueError: it cannot be used, or the server refuses it.
        """
        check_name(label_tag, "tag")
        label_info = as_object(label_info or {})
        path = self.get_image_uri(image_id)
        if not path:
            raise problem(404, f"no image has the id {image_id!r}: GET /datastore/?output=all lists those there are")
        if label_tag != FINAL:
            return CarefulDatastore.save_label(self, image_id, label_filename, label_tag, label_info)
        with tempfile.TemporaryDirectory() as folder:
            seg, copy = Path(folder) / "label.dcm", Path(folder) / "label.nii.gz"
            label = _on_grid(image_id, path, label_filename, copy)
            names = names_in(label_info, sorted(labels_in(label.array)))
            write_seg(label, names, self._fetch(self._list()[0][image_id], image_id), seg)
            stored = dcmread(seg)
            if self._client.store_instances([stored]).get("FailedSOPSequence"):
                raise ValueError("the DICOMweb server did not take the segmentation in: see its log")
            self._listed = None
            write_volume(label, copy, overwrite=True)
            CarefulDatastore.save_label(self, image_id, str(copy), FINAL,
                                        {**label_info, "SeriesInstanceUID": str(stored.SeriesInstanceUID)})
        return image_id

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refused: images come from the server."""
        raise problem(422, "images come from the DICOMweb server: send the DICOM files there")

    def remove_image(self, image_id: str) -> None:
        """Refused: images belong to the server."""
        raise problem(422, "images belong to the DICOMweb server: remove them there")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove an answer; submitted labels belong to the server."""
        if label_tag == FINAL:
            raise problem(422, "submitted labels are DICOM segmentations on the DICOMweb server: remove them there")
        CarefulDatastore.remove_label(self, label_id, label_tag)

    # --- inside ---

    def _list(self) -> tuple[dict[str, str], dict[str, Segmentation]]:
        """Image -> its study, and labelled image -> its latest segmentation."""
        if self._listed is None or time.monotonic() - self._listed[0] > LISTED_S:
            found = self._series(self._filter or {})
            segmentations = found if self._filter is None else self._series({"Modality": "SEG"})
            images = {uid: study for uid, (study, kind) in found.items()
                      if (kind in self._modalities if self._filter is None else kind != "SEG")}
            latest: dict[str, Segmentation] = {}
            for one in sorted((self._described(uid, study) for uid, (study, kind) in segmentations.items()
                               if kind == "SEG"), key=lambda one: one.when):
                if one.image in images and one.series not in self._unreadable:
                    latest[one.image] = one
            self._listed = time.monotonic(), images, latest
        return self._listed[1:]

    def _series(self, search_filter: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Series -> its study and modality."""
        found = map(Dataset.from_json, self._client.search_for_series(search_filters=dict(search_filter)))
        return {str(one.SeriesInstanceUID): (str(one.StudyInstanceUID), str(one.get("Modality") or ""))
                for one in found}

    def _described(self, series: str, study: str) -> Segmentation:
        if series not in self._segmentations:
            headers = self._client.retrieve_series_metadata(study, series)
            about = Dataset.from_json(headers[0]) if headers else Dataset()
            referenced = about.get("ReferencedSeriesSequence")
            image = str(referenced[0].SeriesInstanceUID) if referenced else ""
            when = "".join(str(about.get(name) or "") for name in ("ContentDate", "ContentTime"))
            self._segmentations[series] = Segmentation(series, study, image, when)
        return self._segmentations[series]

    def _copy(self, image_id: str) -> Path:
        return Path(self._datastore.image_path()).resolve() / f"{image_id}.nii.gz"

    def _fetch(self, study: str, series: str) -> Path:
        """Folder with all files of a series."""
        folder = Path(self._datastore.image_path()).resolve() / series
        if not folder.is_dir():
            partial = folder.with_name(f".{uuid4().hex}{UNFINISHED}")
            dicom_web_download_series(study, series, str(partial), self._client,
                                      settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME)
            partial.rename(folder)
        return folder

    def _fetch_label(self, one: Segmentation) -> None:
        grid = read_volume(self.get_image_uri(one.image)).geometry
        with tempfile.TemporaryDirectory() as folder:
            dicom_web_download_series(one.study, one.series, str(Path(folder) / "seg"), self._client)
            label, names = read_seg(next((Path(folder) / "seg").iterdir()), grid)
            copy = Path(folder) / "label.nii.gz"
            write_volume(label, copy)
            info = [{"name": name, "idx": number} for number, name in names.items()]
            CarefulDatastore.save_label(self, one.image, str(copy), FINAL,
                                        {"label_info": info, "SeriesInstanceUID": one.series})


def _on_grid(image_id: str, image_path: str, label_path: str, temporary: Path) -> Volume:
    """A label map that a client sent, on the grid of its image.

    Raises:
        ValueError: it cannot serve as a reference.
    """
    if label_path.endswith(".bin"):  # OHIF version 2 sends voxels alone, the first index the fastest
        grid = read_volume(image_path)
        voxels = np.fromfile(label_path, np.uint8)
        if voxels.size != grid.array.size:
            raise ValueError(f"the label has {voxels.size} voxels, its image {grid.array.size}: send one byte for each")
        write_volume(grid.with_array(voxels.reshape(grid.array.shape, order="F")), temporary)
        label_path = str(temporary)
    image, label = check_label(image_id, image_path, label_path)
    label = label.with_array(whole_labels(label.array, "the label"))
    return label if label.geometry.is_close(image.geometry) else resample_to(label, image.geometry, is_label=True)


class _InTime(HTTPAdapter):
    """Does not wait for ever: while this server waits it answers nobody."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """See `HTTPAdapter.send`."""
        options["timeout"] = options.get("timeout") or ANSWER_WITHIN_S
        return super().send(request, *args, **options)


def connect(url: str, modalities: Sequence[str] = ()) -> DicomwebStudies:
    """The images of a DICOMweb server, with MONAI Label's settings.

    Args:
        url: of its DICOMweb service, such as http://127.0.0.1:8042/dicom-web.
        modalities: of the series that are images; by default all that hold images.
    """
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    session = create_session_from_user_pass(user, password) if user and password else create_session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _InTime())
    client = DICOMwebClientX(url=url, session=session, qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
                             wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
                             stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX)
    client.set_http_retry_params(retry=False)  # whoever waits is told at once
    # MONAI Label hands its default on to the processes of trainings as if somebody had set it.
    wanted = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    default = type(settings).model_fields["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"].default
    return DicomwebStudies(client, modalities or IMAGES, search_filter=None if wanted == default else wanted,
                           folder=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None)
