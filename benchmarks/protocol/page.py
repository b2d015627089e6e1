"""docs/benchmarks.md: what was measured, how, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.protocol.figures import write_figures
from benchmarks.protocol.places import IMAGES, RESULTS
from benchmarks.protocol.tables import Book

HEAD = """# Benchmark

`make benchmark` asks every method the same questions on the same test subjects and scores the answers with the same
code; interrupted runs go on where they were, and a row is computed again only when its code, settings or weights have
changed. `make benchmark ARGS="--list validation --limit 3"` is a quick look. This page is written by the same command.
All numbers: `benchmarks/results/table_a.md` to `table_d.md`, and the same as JSON.

## How it is measured

* **Subjects.** Lists are split by subject and fixed in each `dataset.json`. `heart_acdc`, `hippocampus_t1`,
  `heart_echo` and `chest_xray` are *unseen*: no weights were trained on them or on their organs. The others are test
  lists of data sets whose training lists were trained on. Settings were chosen on validation lists alone.
* **Use 1, one slice -> volume.** The slice with most labels, then most labelled voxels, is given with its labels; it
  does not count, nor do labels that it does not show. `heart_acdc` uses its short-axis slices.
* **Use 2, one volume (or 8) -> new subject.** Examples are drawn by a hash of the names; one example is drawn five
  times for each subject, and the spread is given. Eight examples are drawn once.
* **Image to image.** Three solved examples. Eight slices of every volume are used, evenly spread; pictures as they
  are. Images are scaled to [0, 1] by percentiles 0.5 and 99.5 of the target (CT: -1000 to 1000 HU). Low-dose CT is
  simulated by Poisson noise in 180 projections (20,000 photons at 1 mm); inpainting is scored in the holes alone;
  CT -> MR inside the field of view of the MR image.
* **Intervals** are 95 % percentile bootstrap intervals over subjects; differences are paired by subject. `nerve_us`
  has no subject identifiers: nothing is paired there. `brain_ms` and `sarcoma_ct_pet_mr` have 5 and 3 test subjects:
  the tables give every subject, and intervals "within subject" from a block bootstrap over slices.
* **heart_acdc and heart_echo have nominal spacing**, so no distances in mm.

## The rows

| row | what it is |
|---|---|
"""


def page(book: Book, summary: Mapping[str, Any]) -> str:
    """The page; draws its pictures."""
    from benchmarks.protocol.report import summary_markdown

    rows = {answers.row.name: answers.row.title for answers in book.values()}
    lines = [HEAD + "\n".join(f"| {name} | {title} |" for name, title in rows.items()), "", "## What was to be reached",
             "", summary_markdown(summary), *_learned(), *_tables(), "## Pictures", ""]
    for name, caption in write_figures(book, IMAGES):
        lines += [f"![{caption}](images/benchmark/{name})", "", caption, ""]
    return "\n".join(lines)


def _learned() -> list[str]:
    """What the learned baselines were trained for."""
    from benchmarks.protocol.learned import CHANNELS, NAMES, reached_by

    lines = ["## Learned baselines", "",
             "Our own implementation of UniverSeg's architecture (arXiv 2304.06131) with "
             f"{' + '.join(map(str, CHANNELS))} channels, trained at 64 pixels on the slices that our network was "
             "trained on; U-Nets of MONAI, one for each task. All have the same CPU time, far less than our network "
             "had: what they reach says nothing about what the architectures can reach.", "",
             "| baseline | episodes | CPU minutes |", "|---|---|---|"]
    for name in NAMES:
        reached = reached_by(name)
        lines.append(f"| {name} | not trained | |" if reached is None else
                     f"| {name} | {reached['episodes']:,} | {reached['cpu_s'] / 60:.1f} |")
    return [*lines, ""]


def _tables() -> list[str]:
    """Tables C and D in full; A and B are long."""
    found = []
    for letter, title in (("c", "Parts of the engine"), ("d", "Cost")):
        path = RESULTS / f"table_{letter}.md"
        if path.is_file():
            found += [f"## {title}", "", path.read_text(encoding="utf-8")]
    return found
