"""The extension's CMake files: metadata, and a package that holds exactly the source files.

Slicer itself is replaced by a few macros that copy and install as Slicer's and CTK's do.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jsonschema import validate

pytest.importorskip("cmake")

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = REPOSITORY / "slicer_extension" / "MVG"
CMAKE = Path(sys.executable).with_name("cmake")
ONNX_OF = {"model.pt": ("model_prompt.onnx", "model_query.onnx", "model_maps.onnx"),
           "model_reader.pt": ("model_reader_terms.onnx", "model_reader_outlines.onnx")}
SCRIPTED = "lib/Slicer-5.12/qt-scripted-modules"

CATALOG_SCHEMA = {
    "required": ["$schema", "category", "scm_url"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"const": "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/"
                             "slicer-extension-catalog-entry-schema-v1.0.1.json#"},
        "category": {"type": "string"},
        "scm_url": {"type": "string", "pattern": "^https://"},
        "scm_revision": {"type": "string"},
        "scm_type": {"enum": ["git", "local"]},
        "build_dependencies": {"type": "array", "items": {"type": "string"}},
        "build_subdirectory": {"type": "string"},
        "enabled": {"type": "boolean"},
        "tier": {"enum": [1, 3, 5]},
    },
}
"""The schema 1.0.1 of Slicer's extension catalog, without its titles."""

STAND_IN = r"""
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/use.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/empty.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/cpack.cmake")
set(Slicer_FOUND TRUE)
"""
USE = r"""
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "@SCRIPTED@")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "@SCRIPTED@")
set(Slicer_LAUNCHER_EXECUTABLE "${CMAKE_COMMAND}")
option(BUILD_TESTING "" ON)
if(BUILD_TESTING)
  enable_testing()
endif()
# As CTK does it: files are copied while building, and the folder they were copied to is installed.
macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(MY "NO_INSTALL_SUBDIR;GLOBAL_TARGET" "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR"
    "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown arguments: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  set(copied)
  foreach(file IN LISTS MY_SCRIPTS MY_RESOURCES)
    if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
      message(FATAL_ERROR "nonexistent file ${file}")
    endif()
    add_custom_command(DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${file}" OUTPUT "${MY_DESTINATION_DIR}/${file}"
      COMMAND ${CMAKE_COMMAND} -E copy "${CMAKE_CURRENT_SOURCE_DIR}/${file}" "${MY_DESTINATION_DIR}/${file}")
    list(APPEND copied "${MY_DESTINATION_DIR}/${file}")
  endforeach()
  add_custom_target(Copy${MY_TARGET_NAME} ALL DEPENDS ${copied})
  set(folder "${MY_DESTINATION_DIR}")
  if(MY_NO_INSTALL_SUBDIR)
    set(folder "${MY_DESTINATION_DIR}/")
  endif()
  install(DIRECTORY "${folder}" DESTINATION "${MY_INSTALL_DIR}" USE_SOURCE_PERMISSIONS)
endmacro()
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MODULE_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "unknown arguments: ${MODULE_UNPARSED_ARGUMENTS}")
  endif()
  ctkMacroCompilePythonScript(TARGET_NAME ${MODULE_NAME} SCRIPTS "${MODULE_SCRIPTS}" RESOURCES "${MODULE_RESOURCES}"
    DESTINATION_DIR "${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}"
    INSTALL_DIR "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}" NO_INSTALL_SUBDIR)
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "TESTNAME_PREFIX;SCRIPT" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT}")
    message(FATAL_ERROR "nonexistent test ${TEST_SCRIPT}")
  endif()
  get_filename_component(name "${TEST_SCRIPT}" NAME_WE)
  add_test(NAME py_${name} COMMAND ${Slicer_LAUNCHER_EXECUTABLE} -E true)
endmacro()
""".replace("@SCRIPTED@", SCRIPTED)
CPACK = 'set(CPACK_GENERATOR "ZIP")\nset(CPACK_PACKAGE_FILE_NAME "MVG")\ninclude(CPack)\n'


def metadata() -> dict[str, str]:
    text = (REPOSITORY / "CMakeLists.txt").read_text()
    return dict(re.findall(r'^set\(EXTENSION_(\w+) "([^"]*)"\)$', text, re.MULTILINE))


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(one) for one in command], cwd=cwd, capture_output=True, text=True, check=False)


def configure(source: Path, build: Path) -> subprocess.CompletedProcess[str]:
    macros = build.with_name("macros")
    macros.mkdir(exist_ok=True)
    (macros / "SlicerConfig.cmake").write_text(STAND_IN)
    (macros / "use.cmake").write_text(USE)
    (macros / "cpack.cmake").write_text(CPACK)
    (macros / "empty.cmake").touch()
    # Slicer looks for a compiler, which a module of Python files does not need.
    languages = [f"-DCMAKE_{one}_COMPILER{what}" for one in ("C", "CXX") for what in ("=/bin/true", "_FORCED=ON")]
    return run(CMAKE, "-S", source, "-B", build, f"-DSlicer_DIR={macros}", *languages)


# --- the catalog entry ---


def test_the_catalog_entry_follows_its_schema_and_agrees_with_cmake() -> None:
    entry = json.loads((REPOSITORY / "MVG.json").read_text())
    validate(entry, CATALOG_SCHEMA)
    name = re.search(r"^project\((\w+)", (REPOSITORY / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert name is not None
    assert name.group(1) == "MVG", "the file MVG.json must have the project's name"
    found = metadata()
    assert entry["category"] == found["CATEGORY"]
    assert entry["scm_url"].removesuffix(".git") == found["HOMEPAGE"]
    assert entry["build_dependencies"] == ([] if found["DEPENDS"] == "NA" else found["DEPENDS"].split())


def test_metadata_is_complete_and_names_pictures_of_this_repository() -> None:
    found = metadata()
    assert {"HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"} <= set(found)
    assert "Research use only" in found["DESCRIPTION"]
    start = found["HOMEPAGE"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    for url in (found["ICONURL"], *found["SCREENSHOTURLS"].split()):
        assert url.startswith(start)
        assert (REPOSITORY / url.removeprefix(start)).is_file(), url


def test_the_icon_is_a_png_of_128_by_128() -> None:
    content = (MODULE / "Resources" / "Icons" / "MVG.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert struct.unpack(">II", content[16:24]) == (128, 128)


def test_the_registration_file_is_short_and_loads_nothing_heavy() -> None:
    lines = (MODULE / "MVG.py").read_text().splitlines()
    assert len(lines) < 120
    heavy = re.compile(r"^(import|from) (torch|onnxruntime|monai|mvg_core|scipy|fastapi)\b")
    for path in (MODULE / "MVG.py", *(MODULE / "MVGLib").glob("*.py")):
        found = [line for line in path.read_text().splitlines() if heavy.match(line.strip())]
        assert not found, f"{path.name}: {found}"


# --- configure, build, package ---


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension's files in a folder of their own, with small files in place of the weights."""
    root = tmp_path_factory.mktemp("extension") / "source"
    root.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "_weights")
    for name in ("CMakeLists.txt", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, root / name)
    for name in ("mvg_core", "slicer_extension"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignore)
    write_weights(root)
    return root


def write_weights(root: Path) -> None:
    import hashlib

    models = root / "bundle" / "models"
    models.mkdir(parents=True, exist_ok=True)
    for weights, names in ONNX_OF.items():
        content = weights.encode()
        (models / weights).write_bytes(content)
        made_from = hashlib.sha256(content).hexdigest().encode()
        for name in names:
            (models / name).write_bytes(b"\x00graph " + made_from + b" end\x00")
    for path in list(models.glob("model*")):
        if path.suffix != ".sha256":
            path.with_name(f"{path.name}.sha256").write_text(
                f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


@pytest.fixture(scope="module")
def package(source: Path) -> dict[str, bytes]:
    """Name -> content of the files in the extension's package."""
    build = source.with_name("build")
    for finished in (configure(source, build), run(CMAKE, "--build", build),
                     run(CMAKE.with_name("cpack"), "-G", "ZIP", "-B", build, cwd=build)):
        assert finished.returncode == 0, finished.stdout + finished.stderr
    with zipfile.ZipFile(build / "MVG.zip") as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {name.removeprefix(f"MVG/{SCRIPTED}/"): archive.read(name) for name in names}


def test_the_package_holds_exactly_the_source_files(source: Path, package: dict[str, bytes]) -> None:
    module = source / "slicer_extension" / "MVG"
    expected = {"MVG.py": module / "MVG.py", "Resources/requirements.txt": module / "Resources" / "requirements.txt"}
    for pattern in ("MVGLib/*.py", "Resources/UI/*.ui", "Resources/Icons/*.png"):
        expected |= {path.relative_to(module).as_posix(): path for path in module.glob(pattern)}
    for pattern in ("mvg_core/**/*.py", "mvg_core/**/*.json", "mvg_core/py.typed", "bundle/models/*"):
        expected |= {f"MVGCore/{path.relative_to(source).as_posix()}": path for path in source.glob(pattern)}
    assert set(package) == set(expected)
    changed = [name for name, path in expected.items() if package[name] != path.read_bytes()]
    assert not changed


def test_ctest_lists_the_tests(source: Path, package: dict[str, bytes]) -> None:
    listed = run(CMAKE.with_name("ctest"), "-N", cwd=source.with_name("build")).stdout
    assert set(re.findall(r"py_\w+", listed)) == {"py_MVG", "py_MVGModuleTest"}


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda models: (models / "model_query.onnx").unlink(), "model_query.onnx is missing"),
    (lambda models: (models / "model_prompt.onnx.sha256").unlink(), "model_prompt.onnx.sha256 is missing"),
    (lambda models: (models / "model_query.onnx").write_bytes(b"damaged"), "is not the file that"),
    (lambda models: (models / "model_reader.pt").unlink(), "model_reader.pt is missing"),
    (lambda models: (models / "model_reader.pt").write_bytes(b"damaged"), "is not the file that"),
    (lambda models: (models / "model_reader_outlines.onnx").unlink(), "model_reader_outlines.onnx is missing"),
    (lambda models: (models / "model_reader_terms.onnx.sha256").unlink(), "model_reader_terms.onnx.sha256 is missing"),
])
def test_without_the_right_files_nothing_is_built(source: Path, tmp_path: Path, break_it, message: str) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    break_it(copy / "bundle" / "models")
    finished = configure(copy, tmp_path / "build")
    assert finished.returncode != 0
    assert message in " ".join(finished.stderr.split())


@pytest.mark.parametrize("name", ["model.pt", "model_reader.pt"])
def test_onnx_files_of_other_weights_are_refused(source: Path, tmp_path: Path, name: str) -> None:
    import hashlib

    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    models = copy / "bundle" / "models"
    (models / name).write_bytes(b"newer weights")
    digest = hashlib.sha256(b"newer weights").hexdigest()
    (models / f"{name}.sha256").write_text(f"{digest}  {name}\n")
    finished = configure(copy, tmp_path / "build")
    assert finished.returncode != 0
    assert f"was made from other weights than bundle/models/{name}" in " ".join(finished.stderr.split())
