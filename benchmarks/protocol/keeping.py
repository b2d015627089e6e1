"""Where answers are kept, and when they are no longer those of the present code.

    runs/benchmark/answers/<list>/<question>/<row>-<key>/cases/<case>.<draw>.json

The key is a checksum of everything that decides an answer: the code of the row (without comments and docstrings), its
settings, and its weights.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.protocol.places import KEPT, ROOT
from mvg_core.evaluation.results import CaseResult
from mvg_core.evaluation.runner import CASES

ANSWERS = KEPT / "answers"
SHARED = ("mvg_core/evaluation/cases.py", "mvg_core/evaluation/queries.py", "mvg_core/evaluation/scoring.py",
          "mvg_core/evaluation/metrics.py")
"""What decides the queries and the scores of every row."""


def key_of(code: Iterable[str], settings: Mapping[str, Any]) -> str:
    """Twelve digits that change with the code (files or folders below the repository) or the settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted({*SHARED, *code}):
        path = ROOT / name
        for one in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(meaning_of(one).encode())
    return digest.hexdigest()[:12]


@cache
def meaning_of(path: Path) -> str:
    """The code of a Python file without comments, docstrings and layout; of another file a checksum."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not (
                isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
                and isinstance(part.value.value, str))] or [ast.Pass()]
    return ast.dump(tree)


def folder_of(split: str, question: str, row: str, key: str) -> Path:
    """Where the answers of a row to a question are."""
    return ANSWERS / split / question / f"{row}-{key}"


def kept_folder(split: str, question: str, row: str, key: str) -> tuple[Path | None, bool]:
    """The folder with answers of a row, and whether they are of the present code; else the newest of an earlier one."""
    present = folder_of(split, question, row, key)
    if any((present / CASES).glob("*.json")):
        return present, True
    others = [folder for folder in present.parent.glob(f"{row}-*") if any((folder / CASES).glob("*.json"))]
    newest = max(others, key=lambda folder: folder.stat().st_mtime, default=None)
    return newest, False


def kept_results(folder: Path) -> list[CaseResult]:
    """What was kept in a folder, in the order of the file names; what is damaged is left out."""
    found = []
    for path in sorted((folder / CASES).glob("*.json")):
        try:
            found.append(CaseResult.from_json(json.loads(path.read_text(encoding="utf-8"))))
        except ValueError:
            continue
    return found
