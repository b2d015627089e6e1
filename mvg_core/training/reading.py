"""Image files of a training item through MONAI's `LoadImaged`, and from its tensors to `Volume`.

The reader is `read_volume` of inference behind MONAI's reader interface: nibabel for NIfTI, ITK for NRRD, MHA, DICOM,
PNG and JPEG, with the same orientation, colour and number type, and the same refusals of damaged files. MONAI's own
readers can be named instead.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from monai.config.type_definitions import KeysCollection, PathLike
from monai.data.image_reader import ImageReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.io.dictionary import LoadImaged
from monai.utils.misc import ensure_tuple

from mvg_core.volume import Geometry, Volume
from mvg_core.volume_io import PICTURES, read_volume

_PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


class VolumeReader(ImageReader):
    """`read_volume` as a MONAI reader: NIfTI, NRRD, MHA, DICOM (file or folder), PNG, JPEG; one channel, RAS+."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Any name: what cannot be read is refused with a reason when it is read."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Volume:
        """Read one file or DICOM folder.

        Raises:
            VolumeReadError: see `read_volume`.
            ValueError: several files.
        """
        paths = ensure_tuple(data)
        if len(paths) != 1:
            raise ValueError(f"needed one file for one image, got {len(paths)}: name the channels as contrasts instead")
        return read_volume(paths[0])

    def get_data(self, img: Volume) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels (I, J, K) and what MONAI calls meta data."""
        affine = np.array(img.geometry.affine)
        return img.array, {"affine": affine, "original_affine": affine, "spatial_shape": np.array(img.array.shape),
                           "original_channel_dim": float("nan"), "space": "RAS", "stored_type": img.array.dtype.str}


class LoadVolumesd(LoadImaged):
    """MONAI's `LoadImaged`, which reads as inference does unless a reader is named.

    Unlike a reader passed to `LoadImaged`, a failure is not followed by trying other readers, which may make something
    of a damaged file.

    Args:
        keys: of the items that hold paths.
        reader: name or class of a MONAI reader; None reads with `VolumeReader`.
        allow_missing_keys: accept items without some of the keys.
    """

    def __init__(self, keys: KeysCollection, reader: Any = None, allow_missing_keys: bool = False) -> None:
        with _quiet():  # MONAI makes all its readers, and one of them complains of a package that it could use
            super().__init__(keys, reader=reader, dtype=None, image_only=True, allow_missing_keys=allow_missing_keys)
        self.own_reader = VolumeReader() if reader is None else None

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Replace paths by tensors with their affine."""
        return super().__call__(data, reader or self.own_reader)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            yield
    finally:
        logger.setLevel(level)


def to_volume(image: MetaTensor, path: str = "image") -> Volume:
    """What MONAI loaded, as the volume that `read_volume` gives for the same file.

    Args:
        image: (I, J) or (I, J, K), its affine maps voxels to RAS+ mm.
        path: for messages and, by its suffix, to know pictures, which have no patient and unit spacing.

    Raises:
        ValueError: more than one channel, or a tensor without meta data.
    """
    if not isinstance(image, MetaTensor):
        raise ValueError(f"{path}: MONAI kept no affine of it: switch it on again with monai.data.set_track_meta(True)")
    array = np.asarray(image.detach().cpu().numpy())
    if (stored := image.meta.get("stored_type")) is not None:
        array = array.astype(np.dtype(str(stored)), copy=False)  # torch lacks some unsigned types
    picture = Path(path).suffix.lower() in PICTURES
    if array.ndim > 3 or (picture and array.ndim == 3 and array.shape[2] != 1):
        raise ValueError(f"{path}: has shape {array.shape}, needed one volume of one channel: pick a frame or channel")
    i, j, k = (*array.shape, 1, 1)[:3]
    affine = _PICTURE_AFFINE if picture else np.asarray(image.affine, dtype=np.float64)
    return Volume(array.reshape(i, j, k), Geometry((i, j, k), affine))
