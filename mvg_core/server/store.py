"""Volumes that were uploaded, within a budget of memory."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mvg_core.server.errors import ApiError
from mvg_core.volume import Volume


class Share:
    """Memory that was set aside; given back by `free`, which may be called twice."""

    def __init__(self, store: VolumeStore, size: int) -> None:
        self._store, self.size = store, size

    def shrink(self, size: int) -> None:
        """Give back what is above `size`."""
        if size < self.size:
            self._store._give(self.size - size)
            self.size = size

    def free(self) -> None:
        """Give all of it back."""
        self.shrink(0)


class VolumeStore:
    """Holds volumes by their identity; the least recently used ones go when memory is needed.

    Args:
        memory_bytes: most bytes of volumes, and of what else takes a share.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._most = memory_bytes
        self._lock = threading.RLock()
        self._held: OrderedDict[str, Volume] = OrderedDict()
        self._in_use: Counter[str] = Counter()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Bytes in use."""
        return self._taken

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, identity: str) -> bool:
        """Whether a volume is held; it counts as used."""
        with self._lock:
            if identity not in self._held:
                return False
            self._held.move_to_end(identity)
            return True

    def reserve(self, size: int) -> Share:
        """Set memory aside; volumes that nobody uses make room.

        Raises:
            ApiError: there is too little.
        """
        with self._lock:
            unused = [identity for identity in self._held if not self._in_use[identity]]
            while self._taken + size > self._most and unused:
                self._drop(unused.pop(0))
            if self._taken + size > self._most:
                raise ApiError(507, "no_memory", f"the server has no memory for {size / 1e6:.0f} MB more (it may use "
                               f"{self._most / 1e6:.0f} MB): delete finished jobs, wait for running ones, or start it "
                               "with a higher --memory")
            self._taken += size
            return Share(self, size)

    def put(self, identity: str, volume: Volume, share: Share) -> bool:
        """Keep a volume, whose share becomes the store's; False if it was held already."""
        with self._lock:
            if identity in self._held:
                share.free()
                return False
            volume.array.flags.writeable = False  # many may read it
            self._held[identity] = volume
            return True

    def size_of(self, identity: str) -> int:
        """Bytes of a held volume.

        Raises:
            ApiError: it is not held.
        """
        with self._lock:
            return self._get(identity).array.nbytes

    @contextmanager
    def using(self, identities: Iterable[str]) -> Iterator[dict[str, Volume]]:
        """Volumes, which stay until the end of the block.

        Raises:
            ApiError: one is not held.
        """
        wanted = set(identities)
        with self._lock:
            volumes = {identity: self._get(identity) for identity in sorted(wanted)}
            self._in_use.update(wanted)
        try:
            yield volumes
        finally:
            with self._lock:
                self._in_use.subtract(wanted)
                self._in_use += Counter()  # forget zeros

    def delete(self, identity: str) -> None:
        """Forget a volume.

        Raises:
            ApiError: it is not held, or a job needs it.
        """
        with self._lock:
            self._get(identity)
            if self._in_use[identity]:
                raise ApiError(409, "in_use", "a job needs this volume: cancel the job first, or wait")
            self._drop(identity)

    def _get(self, identity: str) -> Volume:
        if identity not in self._held:
            raise ApiError(404, "unknown_volume", f"volume {identity[:12]}... is not held: upload it (again)")
        self._held.move_to_end(identity)
        return self._held[identity]

    def _drop(self, identity: str) -> None:
        self._give(self._held.pop(identity).array.nbytes)

    def _give(self, size: int) -> None:
        with self._lock:
            self._taken -= size
