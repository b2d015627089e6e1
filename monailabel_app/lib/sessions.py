"""Images that clients upload for an hour, without putting them into the studies folder."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import Sessions

from lib.errors import problem


class CarefulSessions(Sessions):
    """MONAI Label's sessions; archives are unpacked into a folder of their own and nowhere else."""

    def add_session(self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
                    ) -> tuple[str, Any]:
        """Take in an uploaded file or folder.

        Raises:
            HTTPException: `uncompress` is wanted of what is no archive, or one that leads out of its folder.
        """
        received = Path(data_file)
        try:
            if uncompress and received.is_file():
                data_file, uncompress = _unpacked(received), False
            return super().add_session(data_file, expiry, uncompress, session_id)
        except Exception:  # MONAI Label removes the upload only if all went well
            folder = received if received.is_dir() else received.parent
            if folder.parent == Path(tempfile.gettempdir()):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _unpacked(archive: Path) -> str:
    """Folder with what a zip or tar file holds."""
    folder = tempfile.mkdtemp()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as found:
                found.extractall(folder)  # leaves ".." and absolute paths out
            return folder
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as found:
                found.extractall(folder, filter="data")
            return folder
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise problem(422, f"the archive cannot be unpacked ({type(error).__name__}): send a zip or tar file of one "
                           "image") from error
    shutil.rmtree(folder, ignore_errors=True)
    raise problem(422, "uncompress is for zip and tar files, and this is none: leave it out")
