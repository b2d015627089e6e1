"""`python -m monai.bundle` with messages for people.

MONAI wraps an error in others ("Failed to evaluate ...", "applying transform ..."), prints all their tracebacks, and
takes a misspelt override for a new item of the config. The configs call `check_command_line` first, which changes both
for this one program; everywhere else (MONAI Label, notebooks) errors are raised as usual.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from monai.bundle.config_parser import ConfigParser
from monai.bundle.scripts import run, run_workflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.bundle.workflows import ConfigWorkflow

_PACKAGE = str(Path(__file__).resolve().parents[1])
_READING = ("bundle/config_parser.py", "bundle/reference_resolver.py", "bundle/workflows.py", "utils/module.py")
_OPTIONS = {name for function in (run, run_workflow, ConfigWorkflow.__init__)
            for name in inspect.signature(function).parameters} | set(DEFAULT_MLFLOW_SETTINGS["configs"])


def check_command_line(arguments: Sequence[str] | None = None) -> None:
    """Refuse overrides that would change nothing, and have errors told in one line from now on.

    Does nothing outside `python -m monai.bundle`. With `MVG_DEBUG` in the environment, tracebacks stay.

    Args:
        arguments: of the command; None takes this program's own.

    Raises:
        ValueError: an override names something that no config has, or is None, which MONAI leaves out.
    """
    if arguments is None:
        main = getattr(sys.modules.get("__main__"), "__spec__", None)
        if main is None or main.name != "monai.bundle.__main__":
            return
        arguments = sys.argv[1:]
        if int(os.environ.get("RANK", 0)) > 0:
            logging.getLogger().setLevel(logging.WARNING)
        if not os.environ.get("MVG_DEBUG"):
            sys.excepthook = tell
    known = _OPTIONS | _ids(arguments)
    for name in _overridden(arguments):
        first = name.split("#")[0].split("::")[0]
        if first not in known:
            near = difflib.get_close_matches(first, sorted(known), n=1)
            hint = f": did you mean --{near[0]}?" if near else ", so --" + name + " would change nothing"
            raise ValueError(f"no config has an item {first!r}{hint}")
        if first not in _OPTIONS and _value(arguments, f"--{name}") == "None":
            raise ValueError(f"--{name} None would change nothing: write --{name} '$None'")


def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An `excepthook` that says in one line what users can mend; anything else is shown with its traceback."""
    message = _message(error)
    if message is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"Error: {message}", file=sys.stderr)


def _message(error: BaseException) -> str | None:
    """What is wrong, if our own code or MONAI's reading of the config says it."""
    chain = list(_chain(error))
    for one in chain:  # the outermost of ours: it knows which file was read
        if _is_ours(one):
            return str(one)
    for outer, inner in itertools.pairwise(chain):
        if str(outer).startswith("Failed to instantiate component") and isinstance(inner, (TypeError, ValueError)):
            return f"{str(outer).splitlines()[0]}: {inner}"
    told = next((one for one in reversed(chain) if _is_of_config(one)), None)
    return None if told is None else str(told).splitlines()[0]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised, not only passed on, by this package."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not isinstance(error, (ValueError, IndexError, RuntimeError, OSError)):
        return False
    return os.path.abspath(frames[-1].filename).startswith(_PACKAGE) and (frames[-1].line or "").startswith("raise ")


def _is_of_config(error: BaseException) -> bool:
    """Whether MONAI could not read a config, or find what something in it refers to."""
    frames = traceback.extract_tb(error.__traceback__)
    reading = tuple(os.path.join("monai", *name.split("/")) for name in _READING)
    return bool(frames) and isinstance(error, (ValueError, OSError, ImportError)) and frames[-1].filename.endswith(
        reading)


def _ids(arguments: Sequence[str]) -> set[str]:
    """The top-level ids of all configs that the command names."""
    ids = {"_meta_"}
    for path in _config_files(arguments):
        ids |= {str(key).split("#")[0] for key in ConfigParser.load_config_file(path)}
    return ids


def _config_files(arguments: Sequence[str]) -> list[str]:
    given = _value(arguments, "--config_file")
    defaults = _value(arguments, "--args_file")
    if given is None and defaults is not None:
        given = ConfigParser.load_config_file(defaults).get("config_file")
    if isinstance(given, str):
        given = given.strip("[]()").split(",")
    return [path.strip(" '\"") for path in given or () if path.strip(" '\"")]


def _value(arguments: Sequence[str], option: str) -> str | None:
    """What follows an option, in the next argument or after `=`."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[position + 1 :]), None)
    return None


def _overridden(arguments: Sequence[str]) -> list[str]:
    """Names of all `--name value` and `--name=value`."""
    return [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
