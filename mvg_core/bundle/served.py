"""Mistakes as a web server tells them, where MONAI Label serves the bundle: it answers others with a bare 500."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mvg_core.training.reading import LoadVolumesd


def in_monai_label() -> bool:
    """Whether this is a process of MONAI Label's server."""
    return "monailabel" in sys.modules and "starlette.exceptions" in sys.modules


@contextmanager
def told_to_clients() -> Iterator[None]:
    """Let a server's client read what is wrong and what to do (422); elsewhere errors stay as they are."""
    try:
        yield
    except ValueError as error:
        if not in_monai_label():
            raise
        raise sys.modules["starlette.exceptions"].HTTPException(status_code=422, detail=str(error)) from error


class LoadQueryd(LoadVolumesd):
    """`LoadVolumesd` whose refusals reach the client of a server."""

    def __call__(self, data: Mapping[Any, Any], reader: Any = None) -> dict[Any, Any]:
        """See `LoadVolumesd`; MONAI Label names an image that it does not know by an empty path."""
        with told_to_clients():
            if any(data.get(key) == "" for key in self.keys):
                raise ValueError("no image has this id: GET /datastore/?output=all lists those there are")
            return super().__call__(data, reader)
