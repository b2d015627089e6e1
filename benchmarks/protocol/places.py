"""Where the benchmark reads and writes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
KEPT = ROOT / "runs" / "benchmark"
"""Answers, prepared inputs and trained baselines; not part of the repository."""
RESULTS = ROOT / "benchmarks" / "results"
TUNED = Path(__file__).with_name("tuned.json")
"""Settings of the classical methods, chosen on validation subjects."""
IMAGES = ROOT / "docs" / "images" / "benchmark"
PAGE = ROOT / "docs" / "benchmarks.md"
