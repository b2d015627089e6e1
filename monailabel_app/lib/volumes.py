"""Images and label maps of the studies folder, read once, as long as they fit."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
from mvg_core.intensity import check_finite
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume

MOST_BYTES = 512 * 10**6


def checksum(volume: Volume) -> str:
    """SHA-256 of voxels and grid."""
    digest = hashlib.sha256(str((volume.array.shape, volume.array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(volume.geometry.affine).tobytes())
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


class Volumes:
    """Reads files; keeps those that were used last.

    Args:
        most_bytes: that are kept.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple, Volume] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        """What is kept now."""
        return sum(volume.array.nbytes for volume in self._kept.values())

    def read(self, path: str | Path) -> Volume:
        """A volume; one object as long as its file is the same.

        Raises:
            VolumeReadError, ValueError: see `read_volume`; or it holds NaN.
        """
        path = Path(path)
        key = self._key(path)
        if key is None or key not in self._kept:
            volume = read_volume(path)
            check_finite(volume.array, path.name)
            if key is None:
                return volume
            self._keep(key, volume)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: tuple, volume: Volume) -> None:
        for other in [one for one in self._kept if one[0] == key[0]]:
            del self._kept[other]  # an older state of the file
        self._kept[key] = volume
        while len(self._kept) > 1 and self.n_bytes > self._most_bytes:
            self._kept.popitem(last=False)

    def _key(self, path: Path) -> tuple | None:
        if not path.is_file():  # a folder of DICOM files can change without showing it
            return None
        state = path.stat()
        return str(path), state.st_mtime_ns, state.st_size
