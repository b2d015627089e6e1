"""What the configs predict: a file, a folder, a datalist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from mvg_core.training.datalist import read_datalist

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".dcm")


def images_to_predict(source: str | PathLike[str] | Sequence[Any], split: str) -> list[dict[str, Any]]:
    """The items of a data set of MONAI: dictionaries with `image`, and what else a datalist knows.

    Args:
        source: an image file; a folder of images, of which folders with DICOM files count as one image each; a datalist
            (JSON); or a list of paths and dictionaries.
        split: of the datalist.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: an item of the list is neither path nor dictionary, or the datalist cannot be used.
    """
    if not isinstance(source, (str, PathLike)):
        return [_item(entry) for entry in source]
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder: give an image, a folder of images or a datalist, "
                                "--datalist PATH")
    if path.suffix.lower() == ".json":
        return [single_image(item) for item in read_datalist(path, split)]
    if path.is_file() or _is_dicom(path):
        return [{"image": str(path)}]
    found = sorted(one for one in path.iterdir() if _is_image(one) or (one.is_dir() and _is_dicom(one)))
    if not found:
        raise FileNotFoundError(f"{path}: no image in this folder ({', '.join(IMAGE_SUFFIXES)}, folders of DICOM "
                                "files): give another with --datalist PATH")
    return [{"image": str(one)} for one in found]


def single_image(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of a datalist with one `image` and, where it is known, its answer as `label`.

    Of several contrasts the first is taken; of a directed pair, source and target.

    Raises:
        ValueError: it has no image.
    """
    image = item.get("source") or item.get("image")
    if isinstance(image, Mapping):
        image = next(iter(image.values()), None)
    if not image:
        raise ValueError(f"{item.get('datalist')}: the item of {item.get('subject')!r} has no image: leave it out")
    answer = item.get("target") or item.get("label")
    return {**item, "image": image, **({"label": answer} if answer else {})}


def _item(entry: Any) -> dict[str, Any]:
    if isinstance(entry, (str, PathLike)):
        return {"image": str(entry)}
    if isinstance(entry, Mapping) and ("image" in entry or "source" in entry):
        return single_image(entry)
    raise ValueError(f"the datalist holds {entry!r}: give paths of images, or dictionaries with 'image'")


def _is_image(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")


def _is_dicom(folder: Path) -> bool:
    return any(path.suffix.lower() == ".dcm" for path in folder.iterdir())
