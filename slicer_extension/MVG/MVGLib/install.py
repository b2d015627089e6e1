"""Where mvg_core is, what its worker needs, and how that is installed into Slicer's Python; imports nothing of it.

mvg_core is never installed from an index: it comes with the extension (folder MVGCore), or is the checkout that this
file is in.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .worker import Worker

MODULE_FOLDER = Path(__file__).resolve().parents[1]
"""Holds MVG.py, Resources and this package, in a checkout and in an installed extension."""
REQUIREMENTS = MODULE_FOLDER / "Resources" / "requirements.txt"
REQUESTER = "MVG"

_START = ("import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
          "runpy.run_module('mvg_core', run_name='__main__', alter_sys=True)")
"""Puts our mvg_core before anything that may be installed under the same name."""


class InstallError(RuntimeError):
    """Packages could not be installed, or files of the extension are missing; the message says what to do."""


# --- where mvg_core is ---


def coreFolder(moduleFolder: Path = MODULE_FOLDER) -> Path:
    """The folder that holds `mvg_core` and `bundle/models`: of the installed extension, else of the checkout.

    Raises:
        InstallError: it is in neither.
    """
    candidates = [moduleFolder / "MVGCore", moduleFolder.parents[1]]
    for folder in candidates:
        if (folder / "mvg_core" / "__init__.py").is_file():
            return folder
    raise InstallError(f"mvg_core is in none of {', '.join(map(str, candidates))}: install the extension again, or "
                       "keep slicer_extension inside its checkout")


def missingFiles(core: Path, backend: str = "onnx") -> list[str]:
    """Which weight files a backend lacks, as sentences; empty if all are there."""
    weights = ("model.pt", "model_reader.pt")
    exported = ("model_prompt.onnx", "model_query.onnx", "model_maps.onnx", "model_reader_terms.onnx",
                "model_reader_outlines.onnx")
    needed = (*weights, *(exported if backend == "onnx" else ()))
    folders = _weightFolders(core)
    missing = [name for name in needed if not any((folder / name).is_file() for folder in folders)]
    if not missing:
        return []
    remedy = ("restore it with git, or install the extension again" if set(weights) & set(missing) else
              "run `make package` once in the checkout, or install the extension again")
    return [f"{' and '.join(missing)} not found in {folders[0]}: {remedy}."]


def workerCommand(core: Path, *arguments: str, python: str | None = None) -> list[str]:
    """The command that starts `mvg ARGUMENTS` from a folder, whatever else is installed.

    Args:
        core: see `coreFolder`.
        arguments: of the command `mvg`.
        python: program; None: `slicerPython()`.
    """
    return [python or slicerPython(), "-c", _START, str(core), *arguments]


def localWorker(core: Path | None = None, backend: str = "onnx") -> Worker:
    """A worker on this machine, not started yet; a `with` block starts and ends it.

    Args:
        core: see `coreFolder`.
        backend: `onnx`, or `torch`, which computes on a GPU if there is one.

    Raises:
        InstallError: files are missing.
    """
    folder = coreFolder() if core is None else core
    return Worker(workerCommand(folder, "serve", "--worker", "--backend", backend))


def slicerPython() -> str:
    """The Python that belongs to Slicer; outside of Slicer the one that runs this."""
    name = Path(sys.executable).stem.lower()
    if name.startswith("python"):
        return sys.executable
    launcher = shutil.which("PythonSlicer") or shutil.which(
        "PythonSlicer", path=os.path.join(os.environ.get("SLICER_HOME", ""), "bin"))
    if launcher is None:
        raise InstallError("PythonSlicer was not found: start Slicer with its launcher (Slicer, not SlicerApp-real)")
    return launcher


# --- versions ---


def coreVersion(core: Path) -> str:
    """The version of the mvg_core in a folder, read from its text."""
    text = (core / "mvg_core" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise InstallError(f"{core / 'mvg_core'} does not say its version: install the extension again")
    return found.group(1)


def weightsChecksum(core: Path, name: str = "model.pt") -> str:
    """The recorded SHA-256 of shipped weights; empty if there is no record."""
    for folder in _weightFolders(core):
        record = folder / f"{name}.sha256"
        if record.is_file():
            return record.read_text(encoding="utf-8").split()[0]
    return ""


def versionProblems(core: Path, health: Mapping[str, Any], capabilities: Mapping[str, Any]) -> list[str]:
    """How what answers differs from what this module came with, as sentences; empty if it does not."""
    problems = []
    ours, theirs = coreVersion(core), str(health.get("version", "unknown"))
    if ours != theirs:
        problems.append(f"This module is version {ours}, what computes is {theirs}.")
    weights = capabilities.get("weights") or {}
    for name, key in (("model.pt", "sha256"), ("model_reader.pt", "reader_sha256")):
        expected, found = weightsChecksum(core, name), str(weights.get(key, ""))
        if expected and found and expected != found:
            problems.append(f"The weights {name} are others ({found[:12]}) than those of this module "
                            f"({expected[:12]}).")
    return problems


def _weightFolders(core: Path) -> tuple[Path, Path]:
    """Where weight files may be; a wheel unpacked by hand keeps them in the package."""
    return core / "bundle" / "models", core / "mvg_core" / "_weights"


# --- packages ---


def readRequirements(path: Path = REQUIREMENTS) -> list[str]:
    """The lines of a requirements file without comments, such as `onnxruntime>=1.19`."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def requirementsOf(backend: str) -> list[str]:
    """What a worker needs that computes with a backend; PyTorch itself is left to the extension of that name."""
    return [text for text in readRequirements() if backend == "onnx" or _requirement(text).name != "onnxruntime"]


def checkTorch() -> None:
    """Refuse to compute with PyTorch where it is not installed; it is not imported.

    Raises:
        InstallError: it is not; says what to do.
    """
    if importlib.util.find_spec("torch") is None:
        raise InstallError("PyTorch is not installed in Slicer: install the extension PyTorch, open its module PyTorch "
                           "Utils and press Install. Or choose This computer under Where it computes, which does "
                           "without it.")


def missingRequirements(requirements: Iterable[str] | None = None) -> list[str]:
    """Those that are not installed, or too old."""
    return [text for text in (readRequirements() if requirements is None else requirements) if not _isMet(text)]


def constraints(requirements: Iterable[str]) -> list[str]:
    """`name==version` of everything installed but what is asked for, so that nothing else is replaced."""
    asked = {_normalised(_requirement(text).name) for text in requirements}
    found = {}
    for distribution in importlib.metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        # Local builds ("2.5.0+slicer") are in no index; nothing could replace them but by force.
        if name and version and "+" not in version and _normalised(name) not in asked:
            found.setdefault(_normalised(name), f"{name}=={version}")
    return sorted(found.values())


def ensureRequirements(requirements: Iterable[str] | None = None) -> bool:
    """Install what is missing, after a question; on the main thread.

    Returns:
        Whether all is there now; False: the user declined.

    Raises:
        InstallError: it failed; says what to do.
    """
    missing = missingRequirements(requirements)
    if not missing:
        return True
    with tempfile.TemporaryDirectory(prefix="mvg-install-") as folder:
        limits = Path(folder) / "constraints.txt"
        limits.write_text("\n".join(constraints(missing)) + "\n", encoding="utf-8")
        try:
            if not _install(missing, limits):
                return False
        except subprocess.CalledProcessError as error:
            raise InstallError(failureMessage(missing)) from error
    importlib.invalidate_caches()
    left = missingRequirements(missing)
    if left:
        raise InstallError(f"{', '.join(left)} still missing after the installation: restart Slicer and try again. "
                           f"{offlineHint()}")
    return True


def failureMessage(missing: Iterable[str]) -> str:
    """What to tell when pip failed."""
    return (f"{', '.join(missing)} could not be installed. Either there is no connection to the package index, or "
            f"another extension holds a package at a version that does not fit (the log names it). {offlineHint()}")


def offlineHint() -> str:
    """How to install without a connection."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return (f"Without internet: on a connected computer with the same operating system and Python {python} run "
            f"`pip download -d wheels -r requirements.txt` with the file {REQUIREMENTS}, copy the folder wheels here, "
            f'then `PythonSlicer -m pip install --no-index --find-links wheels -r "{REQUIREMENTS}"` and restart '
            "Slicer. Or choose a server under Where it computes.")


def _install(missing: list[str], limits: Path) -> bool:
    """Through `slicer.packaging` (5.12), else through `slicer.util.pip_install` (5.10); whether the user agreed."""
    import slicer.util

    try:
        ensure = importlib.import_module("slicer.packaging").pip_ensure
    except (ImportError, AttributeError):
        listed = "\n".join(missing)
        question = f"MVG needs Python packages:\n\n{listed}\n\nInstall them into Slicer's Python now?"
        if not slicer.util.confirmOkCancelDisplay(question, f"{REQUESTER} - Install Python packages"):
            return False
        slicer.util.pip_install([*missing, "-c", str(limits)])
        return True
    try:
        ensure(missing, constraints=limits, requester=REQUESTER)
    except subprocess.CalledProcessError:
        raise
    except RuntimeError as error:
        # "User declined package installation"; it has no class of its own.
        if "declined" in str(error):
            return False
        raise InstallError(f"{error}. {offlineHint()}") from error
    return True


def _isMet(text: str) -> bool:
    needed = _requirement(text)
    if needed.marker is not None and not needed.marker.evaluate():
        return True
    try:
        return needed.specifier.contains(importlib.metadata.version(needed.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _requirement(text: str) -> Any:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # pip carries a copy, and Slicer carries pip
        from pip._vendor.packaging.requirements import Requirement
    return Requirement(text)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
