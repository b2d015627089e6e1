"""The studies folder, which takes nothing in that could not be used later."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag
from mvg_core.references import labels_in, whole_labels
from mvg_core.volume import Volume
from mvg_core.volume_io import VolumeReadError, read_volume

from lib.careful import CarefulDatastore
from lib.errors import problem

# Ids and tags become names of files and folders.
_NAME = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,200}")


class StudiesFolder(CarefulDatastore):
    """Images with labels beside them, in a folder."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take in an image, once it is known that it can be read."""
        check_name(image_id or Path(image_filename).name, "image id")
        read(image_filename, f"the image {image_id!r}")
        return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Take in a label map; one that is to serve as a reference must lie on its image and hold something."""
        check_name(label_tag, "tag")
        if not self.get_image_uri(image_id):
            raise problem(404, f"no image has the id {image_id!r}: GET /datastore/?output=all lists those there are")
        if label_tag == DefaultLabelTag.FINAL:
            check_label(image_id, self.get_image_uri(image_id), label_filename)
        return super().save_label(image_id, label_filename, label_tag, label_info)


def check_label(image_id: str, image_path: str, label_path: str) -> tuple[Volume, Volume]:
    """An image and its label map, of which it is known that they can serve as a reference.

    Raises:
        ValueError: one cannot be read, the label is empty, or it lies elsewhere.
    """
    name = f"the label of {image_id!r}"
    label = read(label_path, name)
    if not labels_in(whole_labels(label.array, name)):
        raise ValueError(f"{name} is empty: label at least one slice before you submit it")
    image = read(image_path, f"the image {image_id!r}")
    if not label.geometry.overlaps(image.geometry):
        raise ValueError(f"{name} (shape {label.geometry.shape}) and its image (shape {image.geometry.shape}) do "
                         "not overlap in space: save the label of this very image")
    return image, label


def check_name(name: str, what: str) -> None:
    """Refuse what cannot be part of a path.

    Raises:
        HTTPException: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise problem(422, f"{name!r} cannot be the {what}: use no slashes, and do not begin with a dot")


def read(path: str, name: str) -> Volume:
    """A volume; errors name it as the client knows it.

    Raises:
        ValueError: it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read_volume(path)
        except VolumeReadError as error:  # without the path of a temporary file, which says nothing to a client
            raise ValueError(f"{name} cannot be read: {str(error).removeprefix(f'{path}: ')}") from error
