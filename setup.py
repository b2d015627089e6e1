"""The one build step that pyproject.toml cannot say: the weights travel inside the wheel.

The repository holds a single weight file, bundle/models/model.pt, where MONAI expects it. A wheel carries a copy as
mvg_core/_weights/model.pt; a checkout (also one installed with `pip install -e`) uses the file in place.

The two ONNX files beside it, which let a wheel predict without PyTorch, hold the network and read its numbers from
model.pt; `make package` makes them again where they are of other weights.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
WEIGHTS = ROOT / "bundle" / "models" / "model.pt"
CHECKSUM = WEIGHTS.with_name("model.pt.sha256")
"""One line as sha256sum writes it: the digest, two spaces, model.pt."""

NUMBERS = WEIGHTS.with_name("model.numbers.json")
"""What was measured with the weights; may be missing."""

ONNX = tuple(WEIGHTS.with_name(name) for name in ("model_prompt.onnx", "model_query.onnx", "model_maps.onnx"))
"""Made from the weights, each with a record of its checksum; both may be missing, but not one of them."""


class BuildWithWeights(build_py):
    """Copies the weights and their checksum into the package that is being built."""

    def run(self) -> None:
        """Build as usual, then add the weights; an editable build is a checkout and needs no copy."""
        super().run()
        if self.editable_mode:
            return
        check_weights()
        onnx = checked_onnx()
        folder = Path(self.build_lib) / "mvg_core" / "_weights"
        folder.mkdir(parents=True, exist_ok=True)
        for path in (WEIGHTS, CHECKSUM, NUMBERS, *onnx):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def check_weights() -> None:
    """Refuse to build without weights, or with others than the checksum is of."""
    for path in (WEIGHTS, CHECKSUM):
        if not path.is_file():
            raise SystemExit(f"{path} is missing, and a wheel without it could not predict: restore it with git")
    digest, recorded = sha256(WEIGHTS), CHECKSUM.read_text().split()[0]
    if digest != recorded:
        raise SystemExit(
            f"{WEIGHTS} has SHA-256 {digest}, but {CHECKSUM.name} records {recorded}: after a training run "
            "`sha256sum model.pt > model.pt.sha256` in that folder, otherwise restore the weights with git"
        )


def checked_onnx() -> list[Path]:
    """The ONNX files and their records, if they are there; refuses damaged ones and those of other weights."""
    if not any(path.exists() for path in ONNX):
        return []
    files = []
    for path in ONNX:
        record = path.with_name(path.name + ".sha256")
        if not (path.is_file() and record.is_file()):
            raise SystemExit(f"{path} or {record.name} is missing: `make package` writes all of them")
        if sha256(path) != record.read_text().split()[0]:
            raise SystemExit(f"{path} is not the file that {record.name} was written for: `make package` writes both")
        # The checksum of the weights stands in the file as a text; reading it there needs no ONNX.
        if sha256(WEIGHTS).encode() not in path.read_bytes():
            raise SystemExit(f"{path} was made from other weights than {WEIGHTS.name}: `make package` makes it again")
        files += [path, record]
    return files


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


setup(cmdclass={"build_py": BuildWithWeights})
