"""Build the wheel and the source distribution, with the ONNX files that let the wheel predict without PyTorch.

    python scripts/package.py [--output dist]

1. bundle/models/model.pt -> model_prompt.onnx, model_query.onnx and model_maps.onnx beside it, and model_reader.pt ->
   model_reader_terms.onnx and model_reader_outlines.onnx. All read the numbers of their weights, and are kept if they
   are of these. Then a comparison of what PyTorch and ONNX Runtime say.
2. The source distribution, and from it alone the wheel, so that nothing can be missing from the one or left over from
   an older build in the other.
3. A look into the wheel: all these files are there and have the recorded checksums.

Needs the extra `dev`; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "bundle" / "models"
TOLERANCE = 1e-3
"""Largest difference between the two backends, in colours from 0 to 1, and in terms and logits of the reader."""
WEIGHT_FILES = ("model.pt", "model_prompt.onnx", "model_query.onnx", "model_maps.onnx", "model_reader.pt",
                "model_reader_terms.onnx", "model_reader_outlines.onnx")
"""What a wheel carries, each with the record of its checksum."""


def export(models: Path) -> tuple[Path, ...]:
    """The ONNX files of the weights in a folder, made if they are missing or of other weights.

    Raises:
        WeightsError, CheckpointError: the weights are missing or damaged.
    """
    from mvg_core.backends import OnnxBackend, onnx_reader
    from mvg_core.network.checkpoint import load_network
    from mvg_core.reader_backends import reader_network, reader_path
    from mvg_core.weights import find_weights

    painter = find_weights(models / "model.pt")
    reader = reader_path(painter)
    _export(load_network(painter), painter, lambda: OnnxBackend(models, "cpu").checkpoint_sha256)
    _export(reader_network(reader), reader, lambda: onnx_reader(models, reader, "cpu", None).checkpoint_sha256)
    return tuple(models / name for name in WEIGHT_FILES if name.endswith(".onnx") and (models / name).is_file())


def _export(network: Any, weights: Path, made_from: Callable[[], str]) -> None:
    """The ONNX files of one weight file, unless those beside it were made from it."""
    from mvg_core.network.export import export_onnx
    from mvg_core.weights import WeightsError, file_sha256

    checksum = file_sha256(weights)
    try:
        kept = made_from() == checksum
    except WeightsError:
        kept = False
    if not kept:
        export_onnx(network, weights.parent, checkpoint_sha256=checksum, weights=weights.name)


def largest_difference(models: Path, n_prompts: int = 2) -> float:
    """How far PyTorch and ONNX Runtime are apart on one made-up slice of the native size."""
    from mvg_core.backends import MapBackend, load_backend, reader_of
    from mvg_core.label_readout import REDUCED, SCORES

    random = np.random.default_rng(0)
    backends = [load_backend(models / "model.pt", backend=name, device="cpu", precision="fp32")
                for name in ("torch", "onnx")]
    size = backends[0].size
    query = random.random((1, size, size), np.float32)
    prompts = [(random.random((size, size), np.float32), random.random((size, size, 3), np.float32))
               for _ in range(n_prompts)]
    scores, others = random.random((2, 3, SCORES, size // REDUCED, size // REDUCED), np.float32)

    def said(backend: MapBackend) -> Iterator[np.ndarray]:
        yield backend.paint(query, backend.merge([backend.encode(*prompt) for prompt in prompts]))
        if backend.prior is not None:
            yield backend.maps(query)
        reader = reader_of(backend)
        if reader is not None:
            seen = reader.look(query)
            yield from (seen.terms, reader.outlines(scores, others, seen, 0))

    return max(float(np.abs(one - other).max()) for one, other in zip(*map(said, backends), strict=True))


def build(root: Path, output: Path) -> tuple[Path, Path]:
    """Source distribution and wheel of a source tree.

    Raises:
        SystemExit: the build failed; what it said was printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    source = output / _call_setuptools("build_sdist", root, output)
    with tempfile.TemporaryDirectory(prefix="mvg-package-") as temporary:
        with tarfile.open(source) as archive:
            archive.extractall(temporary, filter="data")
        (unpacked,) = Path(temporary).iterdir()
        wheel = output / _call_setuptools("build_wheel", unpacked, output)
    return source, wheel


def _call_setuptools(step: str, root: Path, output: Path) -> str:
    code = f"from setuptools import build_meta; print(build_meta.{step}({str(output.resolve())!r}))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        print(finished.stdout, finished.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"{step} failed in {root}: see above")
    return finished.stdout.splitlines()[-1]


def check_wheel(wheel: Path, models: Path) -> list[tuple[str, int]]:
    """Name and size of the weight files in a wheel, after a comparison with those of a folder.

    Raises:
        SystemExit: one is missing or another one.
    """
    found = []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in WEIGHT_FILES:
            inside = f"mvg_core/_weights/{name}"
            if not {inside, f"{inside}.sha256"} <= names:
                raise SystemExit(f"{wheel} lacks {inside} or its checksum: report this, setup.py should have put it in")
            content = archive.read(inside)
            digest = hashlib.sha256(content).hexdigest()
            recorded = archive.read(f"{inside}.sha256").decode().split()[0]
            ours = (models / f"{name}.sha256").read_text().split()[0]
            if not digest == recorded == ours:
                raise SystemExit(f"{inside} in {wheel} is another file than {models / name}: build again")
            found.append((inside, len(content)))
    return found


def main() -> None:
    """Export, compare, build, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the two packages")
    options = parser.parse_args()
    for path in export(MODELS):
        print(f"onnx:   {path} ({path.stat().st_size / 1e6:.1f} MB)")
    difference = largest_difference(MODELS)
    if difference > TOLERANCE:
        raise SystemExit(f"PyTorch and ONNX Runtime differ by {difference:.1e}, more than {TOLERANCE:g}: the export is "
                         "wrong, nothing was built")
    print(f"onnx:   differs from PyTorch by {difference:.1e} at most")
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    source, wheel = build(ROOT, options.output)
    for name, size in check_wheel(wheel, MODELS):
        print(f"wheel:  {name} ({size / 1e6:.1f} MB)")
    for path in (source, wheel):
        print(f"built:  {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
