"""Who may import whom, read from the sources, and what importing the core really loads.

The layers of mvg_core, each of which may import itself and those above it:

    core (every module not named here)  ->  network  ->  training  ->  evaluation  ->  bundle  ->  cohort, server, cli
    (adapters)

A module may import a layer below it inside a function only, and nothing but an adapter may import an adapter at all.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

ADAPTERS = ("cohort", "server", "cli", "demo", "__main__")
LAYERS = {"network": 1, "training": 2, "evaluation": 3, "bundle": 4, **dict.fromkeys(ADAPTERS, 5)}

SLICER = ("slicer", "vtk", "vtkmodules", "qt", "ctk", "PySide6", "PyQt5", "PyQt6")
FILE_FORMATS = ("SimpleITK", "itk", "nibabel", "pydicom", "highdicom", "PIL", "imageio", "mvg_core.volume_io")
OPTIONAL = (
    "torch",
    "onnxruntime",
    "onnx",
    "scipy",
    "skimage",
    "itk",
    "pydicom",
    "highdicom",
    "matplotlib",
    "nilearn",
    "ray",
    "fastapi",
    "uvicorn",
)


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is loaded together with the importing one."""

    name: str
    line: int
    at_load: bool


# --- the rules ---


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What the module with this dotted name imports but may not; one line each, nothing if all is well."""
    imports = imports_of(module, source, is_package=is_package)
    judged = [(imported, _forbidden(module, imported)) for imported in imports]
    return [f"{module}:{imported.line} imports {imported.name}: {reason}" for imported, reason in judged if reason]


def _forbidden(module: str, imported: Import) -> str | None:
    layer, name = _layer(module), imported.name
    if layer is None:  # the Slicer extension
        if _is_any(name, ("torch", "onnxruntime", "monai")):
            return "Slicer's own process computes nothing, the worker does"
        return None
    if _is_any(name, ("monailabel", "monailabel_app", "slicer_extension", "MVGLib", "bundle", *SLICER)):
        return "mvg_core knows neither its adapters nor Slicer"
    if layer == 0 and _is_any(name, ("monai",)):
        return "inference does not need MONAI"
    if layer == 0 and imported.at_load and _is_any(name, OPTIONAL):
        return "an optional package is imported inside the function that needs it"
    if layer == 1 and _is_any(name, FILE_FORMATS):
        return "the network knows no file formats"
    return _upside_down(layer, imported)


def _upside_down(layer: int, imported: Import) -> str | None:
    """Why a layer may not import this part of mvg_core, if it is one."""
    target = _layer(imported.name) if _is_any(imported.name, ("mvg_core",)) else 0
    if target is None or target <= layer:
        return None
    if target == LAYERS["cli"]:
        return "only an adapter may import an adapter"
    return "a lower layer is imported inside the function that needs it" if imported.at_load else None


def _layer(module: str) -> int | None:
    """0 for the core, more for what builds on it; None for the Slicer extension."""
    package, _, rest = module.partition(".")
    return LAYERS.get(rest.partition(".")[0], 0) if package == "mvg_core" else None


def _is_any(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# --- reading imports ---


def imports_of(module: str, source: str, *, is_package: bool) -> Iterator[Import]:
    """Every import of a source text, by absolute name; `from a import b` counts as `a.b`."""
    parent = module if is_package else module.rpartition(".")[0]
    for node, at_load in _import_nodes(ast.parse(source), at_load=True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                levels = parent.split(".")
                base = ".".join([*levels[: len(levels) - node.level + 1], *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            yield Import(name, node.lineno, at_load)


def _import_nodes(tree: ast.AST, *, at_load: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, at_load
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _import_nodes(node, at_load=False)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _import_nodes(ast.Module(node.body, []), at_load=False)
            yield from _import_nodes(ast.Module(node.orelse, []), at_load=at_load)
        else:
            yield from _import_nodes(node, at_load=at_load)


def sources() -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every source that has rules."""
    for folder in ("mvg_core", "slicer_extension"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            yield ".".join(parts[:-1] if path.name == "__init__.py" else parts), path


CORE = [module for module, _ in sources() if _layer(module) == 0]


# --- the tests ---


@pytest.mark.parametrize(("module", "path"), [pytest.param(*source, id=source[0]) for source in sources()])
def test_imports_follow_the_directions(module: str, path: Path) -> None:
    assert violations(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("mvg_core.predict", "import torch", "optional package"),
        ("mvg_core.predict", "import torch.nn.functional as F", "optional package"),
        ("mvg_core.backends", "from onnxruntime import InferenceSession", "optional package"),
        ("mvg_core.volume_io", "try:\n    import pydicom\nexcept ImportError:\n    pydicom = None", "optional package"),
        ("mvg_core.slices", "class A:\n    import scipy", "optional package"),
        ("mvg_core.predict", "def f():\n    import monai", "does not need MONAI"),
        ("mvg_core.volume", "def f():\n    import vtk", "nor Slicer"),
        ("mvg_core.training.trainer", "import slicer", "nor Slicer"),
        ("mvg_core.cli", "import monailabel.interfaces", "its adapters"),
        ("mvg_core.network.compact", "import nibabel", "no file formats"),
        ("mvg_core.network.compact", "def f():\n    from PIL import Image", "no file formats"),
        ("mvg_core.network.compact", "from mvg_core.volume_io import read_volume", "no file formats"),
        ("mvg_core.network.compact", "from ..volume_io import read_volume", "no file formats"),
        ("mvg_core.predict", "from mvg_core.network.compact import Compact", "lower layer"),
        ("mvg_core.predict", "from .network import compact", "lower layer"),
        ("mvg_core", "from .training import losses", "lower layer"),
        ("mvg_core.network.compact", "from mvg_core import training", "lower layer"),
        ("mvg_core.training.losses", "from ..evaluation import tables", "lower layer"),
        ("mvg_core.evaluation.tables", "from mvg_core.bundle import scores", "lower layer"),
        ("mvg_core.bundle.inferer", "def f():\n    from mvg_core.cli import main", "import an adapter"),
        ("mvg_core.evaluation.tables", "def f():\n    from mvg_core.cli import main", "import an adapter"),
        ("mvg_core.predict", "if TYPE_CHECKING:\n    from mvg_core.server import Server", "import an adapter"),
        ("slicer_extension.MVG.MVGLib.job", "def f():\n    import torch", "Slicer's own process"),
        ("slicer_extension.MVG.MVG", "import onnxruntime", "Slicer's own process"),
    ],
)
def test_planted_violations_are_found(module: str, source: str, reason: str) -> None:
    found = violations(module, source, is_package=module == "mvg_core")
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mvg_core.backends", "def load():\n    import torch\n    from mvg_core.network.checkpoint import load"),
        (
            "mvg_core.predict",
            "if TYPE_CHECKING:\n    import torch\n    from mvg_core.network.config import NetworkConfig",
        ),
        (
            "mvg_core.predict",
            "import numpy\nimport SimpleITK\nfrom mvg_core.slices import SlicePlan\nfrom . import codecs",
        ),
        (
            "mvg_core.network.compact",
            "import torch\nfrom mvg_core.codecs import LabelCodec\nfrom .config import preset",
        ),
        (
            "mvg_core.training.trainer",
            "import monai, nibabel\nfrom ..network import compact\nfrom ..volume_io import a",
        ),
        ("mvg_core.cli", "import typer\nfrom mvg_core import cohort, predict\nfrom mvg_core.evaluation import tables"),
        ("slicer_extension.MVG.MVG", "import slicer, vtk, qt\nimport numpy"),
    ],
)
def test_allowed_imports_are_not_reported(module: str, source: str) -> None:
    assert violations(module, source) == []


def loaded_after(*modules: str) -> set[str]:
    """Top-level packages in a fresh Python that has imported `modules`."""
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(list(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return {name.partition(".")[0] for name in json.loads(finished.stdout)}


def test_the_core_really_loads_neither_torch_nor_monai() -> None:
    loaded = loaded_after(*CORE)
    assert "mvg_core" in loaded
    assert loaded & {"torch", "monai", "ignite", "onnxruntime"} == set()


def test_importing_the_package_alone_is_light() -> None:
    assert loaded_after("mvg_core") & {"torch", "SimpleITK", "nibabel", "typer", "rich", "yaml"} == set()
