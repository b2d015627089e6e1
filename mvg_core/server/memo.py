"""How references lie on queries: found out once, and needed again by previews of other slices and by the job."""

from __future__ import annotations

from collections.abc import Callable

from mvg_core.recent import Recent
from mvg_core.registration import Alignment, align
from mvg_core.remembering import checksum
from mvg_core.volume import Volume


class Registrations:
    """Remembers how references lie on queries.

    Args:
        most: pairs that are remembered.
    """

    def __init__(self, most: int = 32) -> None:
        self._found: Recent[Alignment] = Recent(most)

    def between(self, identities: dict[int, str]) -> Callable[..., Alignment]:
        """A stand-in for `registration.align`.

        Args:
            identities: of images, by the `id` of their array.
        """

        def register(query: Volume, image: Volume, *, label: Volume, affine_only: bool) -> Alignment:
            key = (identities[id(query.array)], identities[id(image.array)], checksum(label.array), affine_only)
            return self._found.get(key, lambda: align(query, image, label=label, affine_only=affine_only))

        return register
