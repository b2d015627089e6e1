"""The one build step that pyproject.toml cannot say: the weights travel inside the wheel.

The repository holds a single weight file, bundle/models/model.pt, where MONAI expects it. A wheel carries a copy as
mvg_core/_weights/model.pt; a checkout (also one installed with `pip install -e`) uses the file in place.
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


class BuildWithWeights(build_py):
    """Copies the weights and their checksum into the package that is being built."""

    def run(self) -> None:
        """Build as usual, then add the weights; an editable build is a checkout and needs no copy."""
        super().run()
        if self.editable_mode:
            return
        check_weights()
        folder = Path(self.build_lib) / "mvg_core" / "_weights"
        folder.mkdir(parents=True, exist_ok=True)
        for path in (WEIGHTS, CHECKSUM, NUMBERS):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def check_weights() -> None:
    """Refuse to build without weights, or with others than the checksum is of."""
    for path in (WEIGHTS, CHECKSUM):
        if not path.is_file():
            raise SystemExit(f"{path} is missing, and a wheel without it could not predict: restore it with git")
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    recorded = CHECKSUM.read_text().split()[0]
    if digest != recorded:
        raise SystemExit(
            f"{WEIGHTS} has SHA-256 {digest}, but {CHECKSUM.name} records {recorded}: after a training run "
            "`sha256sum model.pt > model.pt.sha256` in that folder, otherwise restore the weights with git"
        )


setup(cmdclass={"build_py": BuildWithWeights})
