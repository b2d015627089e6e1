"""Refuse a repository that has grown too large to clone.

Every version of a weight file that was ever committed stays in each clone, so the sum over the whole history counts.

    python scripts/check_size.py

Exits with 1 and says what is too large, otherwise prints one line per measure. What is staged counts as committed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".ts", ".safetensors", ".onnx", ".npz")
MAX_WEIGHTS_MB = 60
MAX_GIT_MB = 100
BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class Blob:
    """One version of one file: size in bytes, and the path under which git found it first."""

    size: int
    path: str


def weight_blobs(repository: Path) -> list[Blob]:
    """Every version of every weight file in the history and the index, the largest first; equal contents count once."""
    objects = _git(repository, "rev-list", "--objects", "--all", "--indexed-objects")
    candidates = [line for line in objects.splitlines() if line.endswith(WEIGHT_SUFFIXES)]
    sizes = _git(
        repository, "cat-file", "--batch-check=%(objecttype) %(objectsize) %(rest)", text="\n".join(candidates)
    )
    rows = [line.split(" ", 2) for line in sizes.splitlines()]
    return sorted((Blob(int(size), path) for kind, size, path in rows if kind == "blob"), key=lambda blob: -blob.size)


def git_folder_bytes(repository: Path) -> int:
    """Bytes of all files under .git, which is what a clone takes on disk before the checkout."""
    folder = repository / _git(repository, "rev-parse", "--git-common-dir").strip()
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def check(repository: Path, max_weights_mb: float, max_git_mb: float) -> list[str]:
    """Print the two measures of a repository; returns what is wrong, nothing if all is well."""
    blobs = weight_blobs(repository)
    weights_mb = sum(blob.size for blob in blobs) / BYTES_PER_MB
    git_mb = git_folder_bytes(repository) / BYTES_PER_MB
    print(f"weights in history: {weights_mb:6.1f} MB in {len(blobs)} versions (at most {max_weights_mb:g} MB)")
    print(f".git folder:        {git_mb:6.1f} MB (at most {max_git_mb:g} MB)")
    if _git(repository, "rev-parse", "--is-shallow-repository").strip() == "true":
        print("this clone is shallow: only the commits it holds were counted")

    problems = []
    if weights_mb > max_weights_mb:
        largest = ", ".join(f"{blob.path} {blob.size / BYTES_PER_MB:.1f} MB" for blob in blobs[:5])
        problems.append(
            f"weight files take {weights_mb:.1f} MB, more than {max_weights_mb:g} MB: drop the last ones before "
            f"pushing (largest: {largest})"
        )
    if git_mb > max_git_mb:
        problems.append(
            f".git takes {git_mb:.1f} MB, more than {max_git_mb:g} MB: look for large files with "
            "`git rev-list --objects --all`, or run `git gc` if they are gone already"
        )
    return problems


def _git(repository: Path, *arguments: str, text: str | None = None) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Check the repository named on the command line, by default the one this script is in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--max-weights-mb", type=float, default=MAX_WEIGHTS_MB)
    parser.add_argument("--max-git-mb", type=float, default=MAX_GIT_MB)
    options = parser.parse_args()
    problems = check(options.repository, options.max_weights_mb, options.max_git_mb)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
