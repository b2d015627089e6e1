"""Build the wheel and the source distribution, with the ONNX files that let the wheel predict without PyTorch.

    python scripts/package.py [--output dist]

1. bundle/models/model.pt -> model_prompt.onnx, model_query.onnx and model_maps.onnx beside it, which read its numbers
   (kept if they are of these weights), and a comparison of what both say.
2. The source distribution, and from it alone the wheel, so that nothing can be missing from the one or left over from
   an older build in the other.
3. A look into the wheel: the four files are there and have the recorded checksums.

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
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "bundle" / "models"
TOLERANCE = 1e-3
"""Largest difference between the two backends, in colours from 0 to 1."""


def export(models: Path) -> tuple[Path, ...]:
    """The ONNX files of `model.pt` in a folder, made if they are missing or of other weights.

    Raises:
        WeightsError: the weights are missing or damaged.
    """
    from mvg_core.backends import ONNX_MAPS, ONNX_PROMPT, ONNX_QUERY, OnnxBackend
    from mvg_core.network.checkpoint import load_network
    from mvg_core.network.export import export_onnx
    from mvg_core.weights import WeightsError, file_sha256, find_weights

    weights = find_weights(models / "model.pt")
    checksum = file_sha256(weights)
    try:
        kept = OnnxBackend(models, "cpu").checkpoint_sha256 == checksum
    except WeightsError:
        kept = False
    if not kept:
        export_onnx(load_network(weights), models, checkpoint_sha256=checksum, weights=weights.name)
    return tuple(models / name for name in (ONNX_PROMPT, ONNX_QUERY, ONNX_MAPS) if (models / name).is_file())


def largest_difference(models: Path, n_prompts: int = 2) -> float:
    """How far PyTorch and ONNX Runtime are apart on one made-up slice of the native size."""
    from mvg_core.backends import load_backend

    random = np.random.default_rng(0)
    painted, maps = [], []
    backends = [load_backend(models / "model.pt", backend=name, device="cpu", precision="fp32")
                for name in ("torch", "onnx")]
    size = backends[0].size
    query = random.random((1, size, size), np.float32)
    prompts = [(random.random((size, size), np.float32), random.random((size, size, 3), np.float32))
               for _ in range(n_prompts)]
    for backend in backends:
        painted.append(backend.paint(query, backend.merge([backend.encode(*prompt) for prompt in prompts])))
        if backend.prior is not None:
            maps.append(backend.maps(query))
    return max(float(np.abs(one - other).max()) for one, other in filter(None, (painted, maps)))


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
        for name in ("model.pt", "model_prompt.onnx", "model_query.onnx", "model_maps.onnx"):
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
