"""Type stubs of Slicer, made from slicer-core and PySide6, and the module's code checked against them with pyright.

    python scripts/slicer_stubs.py [--folder FOLDER]

VTK's own generator writes a stub for every compiled module; `slicer` and `qt` are put together from them. They are made
anew each time (half a minute) and not kept: no such stubs are published. Exits with pyright's code.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# slicer-core builds its namespace when it is imported; scripts/ and the extension are put on the path below.
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "slicer_extension" / "MVG"

SLICER = """
from typing import Any
from slicer_core.MRMLCore import vtkMRMLScene as vtkMRMLScene
from slicer import util as util
{imports}
app: Any
modules: Any
mrmlScene: vtkMRMLScene
"""
STAND_INS = {
    "slicer/ScriptedLoadableModule.pyi": """
from typing import Any
class ScriptedLoadableModule:
    parent: Any
    def __init__(self, parent: Any) -> None: ...
class ScriptedLoadableModuleWidget:
    parent: Any
    layout: Any
    def __init__(self, parent: Any = None) -> None: ...
    def setup(self) -> None: ...
    def onReload(self) -> None: ...
    def resourcePath(self, filename: str) -> str: ...
class ScriptedLoadableModuleLogic: ...
import unittest
class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message: str, msec: int = ...) -> None: ...
""",
    "slicer/parameterNodeWrapper.pyi": "from typing import Any\nparameterNodeWrapper: Any\n",
    "slicer/packaging.pyi": "from typing import Any\npip_ensure: Any\n",
    # PythonQt has the values of enums in their class, and gives paths alone.
    "qt.pyi": "from typing import Any\nfrom PySide6.QtCore import *\nfrom PySide6.QtGui import *\n"
              "from PySide6.QtWidgets import *\nQt: Any\nQFileDialog: Any\n",
    "vtk/__init__.pyi": "from vtkmodules.all import *\n",
    "vtk/util/__init__.pyi": "",
    "vtk/util/numpy_support.pyi": "from typing import Any\nnumpy_to_vtk: Any\nvtk_to_numpy: Any\n"
                                  "get_vtk_array_type: Any\n",
    "SampleData.pyi": "from typing import Any\nSampleDataLogic: Any\n",
}
GENERATE = """
import re, sys
from vtkmodules import generate_pyi
original = generate_pyi.fix_annotations
generate_pyi.fix_annotations = lambda text: original(re.sub(r"(=-?[0-9]+[.][0-9]*)f", r"\\1", text))
sys.exit(generate_pyi.main(sys.argv))
"""
"""VTK's generator; C++ literals such as 0.0f, which slicer-core leaves in default values, are read as 0.0."""

CONFIG = {"typeCheckingMode": "standard", "pythonVersion": "3.11", "reportMissingModuleSource": "none",
          # VTK's generated classes override each other's methods with other arguments; not ours to mend.
          "reportIncompatibleMethodOverride": "none", "reportOptionalMemberAccess": "none"}


def compiled_modules() -> list[str]:
    """Names of slicer-core's compiled modules, such as `MRMLCore`."""
    import slicer_core

    folder = Path(str(slicer_core.__file__)).parent
    return sorted({path.name.split(".")[0] for path in folder.glob("*.cpython-*") if not path.name.startswith("lib")}
                  | {path.name.split(".")[0] for path in folder.glob("*.pyd")})


def write_stubs(folder: Path) -> int:
    """Write all stubs into a folder; returns how many modules were read.

    Raises:
        subprocess.CalledProcessError: VTK's generator failed.
    """
    modules = compiled_modules()
    package = folder / "slicer_core"
    package.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", GENERATE, "-p", "slicer_core", "-o", str(package), *modules],
                   check=True, capture_output=True, text=True)
    (package / "__init__.pyi").touch()
    for name, text in STAND_INS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    imports = "\n".join(f"from slicer_core.{name} import *" for name in modules if (package / f"{name}.pyi").is_file())
    (folder / "slicer" / "__init__.pyi").write_text(SLICER.format(imports=imports))
    import slicer.util

    (folder / "slicer" / "util.py").write_text(Path(str(slicer.util.__file__)).read_text())
    return len(list(package.glob("*.pyi"))) - 1


def sources() -> list[Path]:
    """The module's files that use Slicer, VTK or Qt; the others are checked as any Python file is."""
    uses = re.compile(r"^\s*(import|from) (slicer|vtk|qt|ctk)\b", re.MULTILINE)
    return [path for path in sorted(MODULE.rglob("*.py")) if uses.search(path.read_text())]


def check(folder: Path, sources: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run pyright over files with the stubs in a folder."""
    # pyright takes what is to be checked relative to its configuration only.
    include = [os.path.relpath(path, folder) for path in sources]
    config = {**CONFIG, "include": include, "extraPaths": [str(folder), str(MODULE)],
              "venvPath": str(Path(sys.prefix).parent), "venv": Path(sys.prefix).name}
    path = folder / "pyrightconfig.json"
    path.write_text(json.dumps(config))
    return subprocess.run([sys.executable, "-m", "pyright", "--project", str(path)], capture_output=True, text=True,
                          check=False)


def main() -> int:
    """Make stubs, check the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the stubs here, for an editor")
    chosen = parser.parse_args().folder
    with tempfile.TemporaryDirectory(prefix="mvg-stubs-") as temporary:
        folder = chosen or Path(temporary)
        print(f"stubs of {write_stubs(folder)} modules")
        checked = check(folder, sources())
    print(checked.stdout, checked.stderr, sep="\n")
    return checked.returncode


if __name__ == "__main__":
    sys.exit(main())
