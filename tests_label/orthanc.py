"""An Orthanc DICOM server in a process of its own (Debian: apt-get install orthanc orthanc-dicomweb)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from serving import end_with_parent, free_port

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
PLUGIN = next((path for folder in ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins")
               for path in Path(folder).glob("libOrthancDicomWeb*")), None)
MISSING = "needs Orthanc with its DICOMweb plugin (Debian: apt-get install orthanc orthanc-dicomweb)"


@dataclass(frozen=True)
class Orthanc:
    """A running server.

    Attributes:
        url: of Orthanc's own interface, without a slash at the end.
        process: of the server.
    """

    url: str
    process: subprocess.Popen

    @property
    def dicomweb(self) -> str:
        """Address of the DICOMweb service."""
        return f"{self.url}/dicom-web"

    def store(self, path: Path) -> str:
        """Store a DICOM file; its id in Orthanc."""
        answer = requests.post(f"{self.url}/instances", data=path.read_bytes(), timeout=60)
        answer.raise_for_status()
        return str(answer.json()["ID"])

    def segmentations(self) -> dict[str, str]:
        """Series Instance UID -> id in Orthanc of all segmentations."""
        found = {}
        for one in requests.get(f"{self.url}/series", params={"expand": ""}, timeout=60).json():
            if one["MainDicomTags"]["Modality"] == "SEG":
                found[one["MainDicomTags"]["SeriesInstanceUID"]] = one["ID"]
        return found


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Start one with nothing in it on a free port of this machine, and end it afterwards."""
    port = free_port()
    config = folder / "orthanc.json"
    config.write_text(json.dumps({
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "Plugins": [str(PLUGIN)],
        "HttpPort": port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomServerEnabled": False}))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([str(PROGRAM), str(config)], stdout=log, stderr=subprocess.STDOUT,
                                   preexec_fn=end_with_parent)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, folder / "orthanc.log")
        yield Orthanc(url, process)
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/dicom-web/series", timeout=10).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise RuntimeError(f"Orthanc does not answer:\n{log.read_text()[-4000:]}")
