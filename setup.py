"""The one build step that pyproject.toml cannot say: the weights travel inside the wheel.

The repository holds two weight files: bundle/models/model.pt, where MONAI expects it, and model_reader.pt beside it. A
wheel carries copies in mvg_core/_weights; a checkout (also one installed with `pip install -e`) uses them in place.

The ONNX files beside them, which let a wheel predict without PyTorch, hold the networks and read their numbers from the
weight files; `make package` makes them again where they are of other weights.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODELS = ROOT / "bundle" / "models"
ONNX_OF = {"model.pt": ("model_prompt.onnx", "model_query.onnx", "model_maps.onnx"),
           "model_reader.pt": ("model_reader_terms.onnx", "model_reader_outlines.onnx")}
"""The weight files, and what is made from each; beside every file lies a record of its checksum, one line as sha256sum
writes it. The ONNX files may all be missing, but not some of them."""

NUMBERS = MODELS / "model.numbers.json"
"""What was measured with the weights; may be missing."""


class BuildWithWeights(build_py):
    """Copies the weights and their checksum into the package that is being built."""

    def run(self) -> None:
        """Build as usual, then add the weights; an editable build is a checkout and needs no copy."""
        super().run()
        if self.editable_mode:
            return
        files = [*checked_weights(), *checked_onnx()]
        folder = Path(self.build_lib) / "mvg_core" / "_weights"
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*files, *filter(Path.is_file, [NUMBERS])):
            shutil.copyfile(path, folder / path.name)


def checked_weights() -> list[Path]:
    """The weights and their records; refuses to build without them, or with others than the checksums are of."""
    files = [path for name in ONNX_OF for path in (MODELS / name, record_of(MODELS / name))]
    for path in files:
        if not path.is_file():
            raise SystemExit(f"{path} is missing, and a wheel without it could not predict: restore it with git")
    for path, record in zip(files[::2], files[1::2], strict=True):
        digest, recorded = sha256(path), record.read_text().split()[0]
        if digest != recorded:
            raise SystemExit(
                f"{path} has SHA-256 {digest}, but {record.name} records {recorded}: after a training run "
                f"`sha256sum {path.name} > {record.name}` in that folder, otherwise restore the weights with git"
            )
    return files


def checked_onnx() -> list[Path]:
    """The ONNX files and their records, if they are there; refuses damaged ones and those of other weights."""
    made = [(MODELS / name, MODELS / weights) for weights, names in ONNX_OF.items() for name in names]
    if not any(path.exists() for path, _ in made):
        return []
    files = []
    for path, weights in made:
        record = record_of(path)
        if not (path.is_file() and record.is_file()):
            raise SystemExit(f"{path} or {record.name} is missing: `make package` writes all of them")
        if sha256(path) != record.read_text().split()[0]:
            raise SystemExit(f"{path} is not the file that {record.name} was written for: `make package` writes both")
        # The checksum of the weights stands in the file as a text; reading it there needs no ONNX.
        if sha256(weights).encode() not in path.read_bytes():
            raise SystemExit(f"{path} was made from other weights than {weights.name}: `make package` makes it again")
        files += [path, record]
    return files


def record_of(path: Path) -> Path:
    """Where the checksum of a file is recorded."""
    return path.with_name(f"{path.name}.sha256")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


setup(cmdclass={"build_py": BuildWithWeights})
