"""What the Slicer module installs, and what it starts: nothing of Slicer's is replaced, and the right mvg_core runs."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported; scripts/ and the extension are put on the path below.
from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = REPOSITORY / "slicer_extension" / "MVG"
sys.path.insert(0, str(MODULE))

from MVGLib import install  # noqa: E402
from MVGLib.install import InstallError  # noqa: E402

BUNDLED = {"numpy", "simpleitk"}
"""What mvg_core needs and Slicer brings."""


@pytest.fixture
def fake_slicer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`slicer.util` that records, as in Slicer 5.10, which has no `slicer.packaging`."""
    slicer, util = ModuleType("slicer"), ModuleType("slicer.util")
    slicer.__path__ = []  # type: ignore[attr-defined]
    slicer.util = util  # type: ignore[attr-defined]
    util.questions, util.installed, util.answer = [], [], True  # type: ignore[attr-defined]
    util.confirmOkCancelDisplay = (  # type: ignore[attr-defined]
        lambda text, title: util.questions.append(text) or util.answer)
    util.pip_install = lambda words: util.installed.append(  # type: ignore[attr-defined]
        (words, Path(words[-1]).read_text()))
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    monkeypatch.setitem(sys.modules, "slicer.util", util)
    monkeypatch.delitem(sys.modules, "slicer.packaging", raising=False)
    return util


def with_packaging(monkeypatch: pytest.MonkeyPatch, ensure: Any) -> None:
    """As in Slicer 5.12."""
    packaging = ModuleType("slicer.packaging")
    packaging.pip_ensure = ensure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is there, until `_install` was called."""
    met = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "fastapi"):
            raise importlib.metadata.PackageNotFoundError(name)
        return met(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


# --- requirements ---


def test_requirements_are_those_of_the_project_without_what_slicer_brings() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()

    def listed(name: str) -> list[str]:
        found = re.search(rf"^{name} = \[(.*?)\]\n", text, re.MULTILINE | re.DOTALL)
        assert found is not None, name
        return re.findall(r'"([^"]+)"', found.group(1))

    wanted = {one for name in ("dependencies", "onnx", "server") for one in listed(name)}
    wanted = {one for one in wanted if Requirement(one).name.lower() not in BUNDLED}
    assert set(install.readRequirements()) == wanted


def test_neither_mvg_nor_anything_of_slicers_is_asked_for() -> None:
    names = {Requirement(one).name.lower() for one in install.readRequirements()}
    assert not names & {"mvg", "mvg-core", "mvg_core", "torch", "vtk", "slicer", *BUNDLED}


def closure(requirements: list[str]) -> set[str]:
    """Names of everything that installing them brings."""
    names: set[str] = set()
    waiting = [Requirement(one) for one in requirements]
    while waiting:
        one = waiting.pop()
        if (name := normalised(one.name)) not in names:
            names.add(name)
            needs = [Requirement(text) for text in importlib.metadata.requires(one.name) or ()]
            waiting += [each for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return names


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_worker_starts_where_nothing_else_is_installed() -> None:
    allowed = closure(install.readRequirements()) | BUNDLED | {"mvg-core", "pip", "setuptools"}
    hidden = [name for name, owners in importlib.metadata.packages_distributions().items()
              if not {normalised(owner) for owner in owners} & allowed]
    assert {"torch", "scipy", "monai", "pydicom"} <= set(hidden)
    code = f"""
import sys
class Hidden:
    names = set({hidden!r})
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import mvg_core.cli, mvg_core.engine, mvg_core.backends, onnxruntime
import mvg_core.server.process, mvg_core.server.app, mvg_core.server.solver
print("ready", "torch" in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert finished.stdout.split() == ["ready", "False"], finished.stderr


def test_what_is_missing_is_found(absent: None) -> None:
    assert install.missingRequirements() == ["onnxruntime>=1.19", "fastapi>=0.110"]
    assert install.missingRequirements(["numpy>=1.0", "numpy>=999"]) == ["numpy>=999"]
    assert install.missingRequirements(["no-such-package; python_version < '3'"]) == []


# --- installing ---


def test_everything_installed_is_held_where_it_is(fake_slicer: Any, absent: None) -> None:
    held = install.constraints(["onnxruntime>=1.19"])
    assert f"numpy=={importlib.metadata.version('numpy')}" in held
    assert not [line for line in held if line.lower().startswith("onnxruntime==")]
    with pytest.raises(InstallError, match="still missing"):  # the recording pip installs nothing
        install.ensureRequirements(["onnxruntime>=1.19"])
    ((words, limits),) = fake_slicer.installed
    assert words[:2] == ["onnxruntime>=1.19", "-c"]
    assert limits.splitlines() == held


def test_pip_obeys_the_constraints(tmp_path: Path) -> None:
    limits = tmp_path / "constraints.txt"
    limits.write_text("\n".join(install.constraints(install.readRequirements())))
    version = importlib.metadata.version("numpy")
    finished = subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", "--no-deps",
                               "-c", str(limits), f"numpy!={version}"], capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "conflict" in finished.stderr.lower() or f"numpy!={version},=={version}" in finished.stderr


def test_slicer_5_12_asks_and_installs(fake_slicer: Any, absent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    with_packaging(monkeypatch, lambda reqs, constraints, requester: calls.append((reqs, requester)))
    with pytest.raises(InstallError, match="restart Slicer"):
        install.ensureRequirements()
    assert calls == [(["onnxruntime>=1.19", "fastapi>=0.110"], "MVG")]
    assert fake_slicer.questions == fake_slicer.installed == []


def test_a_no_is_a_no(fake_slicer: Any, absent: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slicer.answer = False
    assert install.ensureRequirements() is False
    assert fake_slicer.installed == []

    def decline(*_: Any, **__: Any) -> None:
        raise RuntimeError("User declined package installation")

    with_packaging(monkeypatch, decline)
    assert install.ensureRequirements() is False


def test_without_a_network_the_message_says_what_to_do(fake_slicer: Any, absent: None,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "pip install")

    with_packaging(monkeypatch, fail)
    with pytest.raises(InstallError) as caught:
        install.ensureRequirements()
    text = str(caught.value)
    assert "onnxruntime>=1.19" in text
    assert "PythonSlicer -m pip install --no-index --find-links" in text
    assert str(install.REQUIREMENTS) in text


def test_nothing_happens_when_all_is_there(fake_slicer: Any) -> None:
    assert install.ensureRequirements(["numpy"]) is True
    assert fake_slicer.questions == fake_slicer.installed == []


# --- where mvg_core is, and that it is the one that runs ---


def test_an_unbuilt_checkout_uses_its_own_files_and_an_extension_those_it_brings(tmp_path: Path) -> None:
    assert install.coreFolder() == REPOSITORY
    installed = tmp_path / "lib" / "Slicer-5.12" / "qt-scripted-modules"
    (installed / "MVGCore" / "mvg_core").mkdir(parents=True)
    with pytest.raises(InstallError, match="install the extension again"):
        install.coreFolder(installed)
    (installed / "MVGCore" / "mvg_core" / "__init__.py").touch()
    assert install.coreFolder(installed) == installed / "MVGCore"


def test_the_worker_runs_that_mvg_core_whatever_else_is_installed(tmp_path: Path) -> None:
    for name in ("ours", "other"):
        package = tmp_path / name / "mvg_core"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"import sys; print({name!r}, sys.argv[1:])")
    command = install.workerCommand(tmp_path / "ours", "serve", "--worker")
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(tmp_path / "other")})
    assert finished.stdout.strip() == "ours ['serve', '--worker']"


def test_missing_weight_files_are_named_with_a_remedy(tmp_path: Path) -> None:
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    for name in ("model.pt", "model_prompt.onnx"):
        (models / name).touch()
    (text,) = install.missingFiles(tmp_path)
    assert "model_reader.pt and model_query.onnx" in text
    assert "model_reader_terms.onnx and model_reader_outlines.onnx not found" in text
    assert "git" in text
    (models / "model_reader.pt").touch()
    (text,) = install.missingFiles(tmp_path)
    assert "model_query.onnx" in text
    assert "not found" in text
    assert "make package" in text
    assert install.missingFiles(tmp_path, "torch") == []
    (models / "model.pt").unlink()
    assert "git" in install.missingFiles(tmp_path)[0]


def test_versions_of_module_worker_and_weights_are_compared(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "mvg_core", tmp_path / "mvg_core",
                    ignore=lambda folder, names: [name for name in names if name != "__init__.py"])
    record = tmp_path / "bundle" / "models" / "model.pt.sha256"
    record.parent.mkdir(parents=True)
    record.write_text(f"{'a' * 64}  model.pt\n")
    record.with_name("model_reader.pt.sha256").write_text(f"{'c' * 64}  model_reader.pt\n")
    import mvg_core

    same = ({"version": mvg_core.__version__}, {"weights": {"sha256": "a" * 64}})
    assert install.versionProblems(tmp_path, *same) == []
    version, weights = install.versionProblems(tmp_path, {"version": "9.9"}, {"weights": {"sha256": "b" * 64}})
    assert mvg_core.__version__ in version
    assert "9.9" in version
    assert "bbbbbbbbbbbb" in weights
    for sha256, problems in (("c" * 64, 0), ("d" * 64, 1), ("", 0)):
        capabilities = {"weights": {"sha256": "a" * 64, "reader_sha256": sha256}}
        assert len(install.versionProblems(tmp_path, same[0], capabilities)) == problems
