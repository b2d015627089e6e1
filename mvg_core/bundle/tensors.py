"""MONAI's tensors <-> `Volume`."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils.enums import MetaKeys, SpaceKeys
from monai.utils.misc import ImageMetaKey
from torch import Tensor

from mvg_core.predict import PredictionWarning
from mvg_core.volume import Geometry, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# As `read_volume` places pictures: columns grow to the patient's left, rows to the back, so that the axial view shows
# the picture as it is.
_PICTURE = _LPS_TO_RAS


def to_volumes(images: Tensor) -> list[Volume]:
    """The volumes of a batch.

    Args:
        images: (B, 1, I, J, K), or pictures (B, 1, W, H). Of a `MetaTensor` the affine is kept; without one, voxels of
            1 mm whose axes run to Right, Anterior and Superior are assumed, with a warning.

    Raises:
        ValueError: other numbers of axes or channels.
    """
    if images.ndim not in (4, 5) or images.shape[1] != 1:
        raise ValueError(f"images have shape {tuple(images.shape)}, needed (B, 1, I, J, K), or (B, 1, W, H) for "
                         "pictures: load them with LoadImaged(ensure_channel_first=True), and choose one channel")
    arrays = (images.as_tensor() if isinstance(images, MetaTensor) else images).detach().cpu().numpy()[:, 0]
    if images.ndim == 4:
        arrays = arrays[..., None]
    return [Volume(array, Geometry(array.shape, affine))
            for array, affine in zip(arrays, _affines(images), strict=True)]


def file_names(images: Tensor) -> list[str]:
    """Where the images of a batch come from, as far as that is known; for messages."""
    if not isinstance(images, MetaTensor):
        return ["image"] * len(images)
    names = images.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "image")
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else [str(Path(str(names)))] * len(images)


def _affines(images: Tensor) -> list[np.ndarray]:
    """RAS+ affine (4, 4) of each image."""
    is_picture = images.ndim == 4
    if not isinstance(images, MetaTensor):
        if not is_picture:
            warnings.warn("the images come without an affine: taken as voxels of 1 mm whose axes run to Right, "
                          "Anterior and Superior", PredictionWarning, stacklevel=3)
        return [_PICTURE if is_picture else np.eye(4)] * len(images)
    affines = torch.as_tensor(images.affine).detach().cpu().numpy().astype(np.float64)
    if affines.ndim == 2:
        affines = np.broadcast_to(affines, (len(images), *affines.shape))
    spaces = images.meta.get(MetaKeys.SPACE, SpaceKeys.RAS)
    if isinstance(spaces, str):
        spaces = [spaces] * len(images)
    return [_ras(affine, str(space), is_picture) for affine, space in zip(affines, spaces, strict=True)]


def _ras(affine: np.ndarray, space: str, is_picture: bool) -> np.ndarray:
    if is_picture and np.array_equal(affine, np.eye(len(affine))):  # the reader knew no orientation
        return _PICTURE
    affine = to_affine_nd(3, affine)
    return _LPS_TO_RAS @ affine if space == SpaceKeys.LPS else affine
