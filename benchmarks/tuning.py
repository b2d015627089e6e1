"""What tuning on the prompts and fine-tuning on own cases give, on validation lists of data the weights may not know.

    python benchmarks/tuning.py [--data ../shared/data] [--threads 1] [--only NAME ...] [--again]

Writes benchmarks/results/tuning.json and the tables of docs/how-to/fine-tune.md. What was measured with these weights
already is kept, so the command can be interrupted and repeated. Weights that were tuned here are thrown away: some of
the data is for evaluation only. Seconds are those of the processor (all threads together), so that they also hold on a
busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvg_core.predict import Predictor
from mvg_core.references import Reference
from mvg_core.tuning import TuningConfig
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume
from mvg_core.weights import file_sha256, find_weights

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "tuning.json", HERE.parent / "docs" / "how-to" / "fine-tune.md"
STEPS = (0, 10, 30, 100)
TITLES = {"heart_acdc": "heart, MR", "hippocampus_t1": "hippocampus, MR", "fetal_head_us": "fetal head, ultrasound"}


@dataclass(frozen=True)
class Case:
    """One query with its references; `score` takes the predicted label map."""

    query: Volume
    references: list[Reference]
    score: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Setting:
    """What is asked of one data set: so many references of other subjects, or 0 for one slice of the query itself."""

    dataset: str
    references: int
    subjects: int

    @property
    def name(self) -> str:
        """Key in the results."""
        return f"{self.dataset}, {self.references or 'one slice'}"

    def cases(self, data: Path) -> Iterator[Case]:
        """The first subjects of the validation list."""
        listing = json.loads((data / self.dataset / "dataset.json").read_text())
        solved = one_a_subject(listing.get("references") or listing["training"])
        for number, item in enumerate(one_a_subject(listing["validation"])[: self.subjects]):
            query, label = load(data, self.dataset, item)
            if not self.references:
                yield one_slice(query, label)
                continue
            chosen = [solved[(number * self.references + k) % len(solved)] for k in range(self.references)]
            yield Case(query, [Reference(*load(data, self.dataset, one)) for one in chosen],
                       lambda found, truth=label.array: mean_dice(found, truth, np.unique(truth)))


TEST_TIME = (Setting("heart_acdc", 0, 4), Setting("heart_acdc", 1, 3), Setting("hippocampus_t1", 1, 3),
             Setting("hippocampus_t1", 8, 3), Setting("fetal_head_us", 1, 6), Setting("fetal_head_us", 8, 6))
# Own cases, rank of adapters.
FINE_TUNING = ((5, 0), (20, 0), (5, 8))
OWN, FORGOTTEN = Setting("hippocampus_t1", 1, 6), Setting("heart_acdc", 0, 6)


def one_a_subject(items: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The first item of every subject."""
    return list({item["subject"]: item for item in reversed(items)}.values())[::-1]


def load(data: Path, dataset: str, item: Mapping[str, str]) -> tuple[Volume, Volume]:
    """Image and label."""
    return read_volume(data / dataset / item["image"]), read_volume(data / dataset / item["label"])


def one_slice(query: Volume, label: Volume) -> Case:
    """The slice with most labels, and of these most pixels, is solved; the others are scored."""
    truth = label.array
    shown = [(len(np.unique(part)), np.count_nonzero(part)) for part in np.moveaxis(truth, 2, 0)]
    number = shown.index(max(shown))
    solved, others = np.zeros_like(truth), np.arange(truth.shape[2]) != number
    solved[:, :, number] = truth[:, :, number]
    return Case(query, [Reference(query, label.with_array(solved))],
                lambda found: mean_dice(found[:, :, others], truth[:, :, others], np.unique(solved)))


def mean_dice(found: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> float:
    """Over the labels that the truth has."""
    scores = [2 * np.count_nonzero((found == label) & (truth == label))
              / (np.count_nonzero(found == label) + np.count_nonzero(truth == label))
              for label in labels if label and (truth == label).any()]
    return float(np.mean(scores))


def measure(setting: Setting, data: Path, weights: str | Path, threads: int, steps: int = 0) -> dict[str, Any]:
    """Dice of every query, and processor seconds for each."""
    tuning = TuningConfig(steps) if steps else None
    predictor = Predictor.load(weights, device="cpu", backend="torch", threads=threads, tuning=tuning)
    scores, cases = [], list(setting.cases(data))
    started = time.process_time()
    for case in cases:
        # Thick slices: `auto` would follow the whole heart's label, which fills the smallest share of sagittal slices.
        plane = "axial" if setting.dataset == "heart_acdc" else "auto"
        found = predictor.predict_volume(case.query, case.references, plane=plane)
        scores.append(round(case.score(found.volume.array), 4))
    return {"steps": steps, "dice": round(float(np.mean(scores)), 4), "of_each": scores,
            "seconds": round((time.process_time() - started) / len(cases), 1)}


def processor_seconds() -> float:
    """Of this process and of those that it started and that ended, such as the one that draws episodes."""
    return sum(os.times()[:4])


def fine_tune(own_cases: int, rank: int, data: Path, weights: str | Path, threads: int) -> dict[str, Any]:
    """Dice on own validation and on another organ, before and after; the tuned weights are not kept."""
    import torch

    from mvg_core.training.finetune import FinetuneConfig, finetune

    torch.set_num_threads(threads)
    folder = (data / OWN.dataset).resolve()
    listing = json.loads((folder / "dataset.json").read_text())
    items = [{"image": str(folder / item["image"]), "label": str(folder / item["label"]), "subject": item["subject"]}
             for item in one_a_subject(listing["references"])[:own_cases]]
    with tempfile.TemporaryDirectory() as scratch:
        datalist = Path(scratch, "own.json")
        datalist.write_text(json.dumps({"name": "own", "labels": {"1": "anterior", "2": "posterior"},
                                        "training": items}))
        started = processor_seconds(), time.perf_counter()
        found = finetune(weights, datalist, FinetuneConfig(adapters=rank), Path(scratch, "out"), device="cpu")
        spent = processor_seconds() - started[0], time.perf_counter() - started[1]
        after = {setting.name: measure(setting, data, found.path, threads) for setting in (OWN, FORGOTTEN)}
    return {"cases": own_cases, "adapters": rank, "best_step": found.steps, "own_score": found.score,
            "cpu_minutes": round(spent[0] / 60, 1), "minutes": round(spent[1] / 60, 1), "after": after}


def tables(results: Mapping[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = ["| example | n | no tuning | " + " | ".join(f"{steps} steps" for steps in STEPS[1:])
             + " | seconds | ", "|---|---|" + "---|" * (len(STEPS) + 1)]
    for setting in TEST_TIME:
        rows = {row["steps"]: row for row in results["test_time"].get(setting.name, [])}
        if set(rows) == set(STEPS):
            what = {0: "one slice of the volume"}.get(setting.references, f"{setting.references} other subject"
                                                      + "s" * (setting.references > 1))
            seconds = " / ".join(f"{rows[steps]['seconds']:.0f}" for steps in STEPS)
            lines.append(f"| {TITLES[setting.dataset]}: {what} | {setting.subjects} | "
                         + " | ".join(f"{rows[steps]['dice']:.3f}" for steps in STEPS) + f" | {seconds} |")
    lines += ["", "| fine-tuned on | own validation (n = 6): before | after | other organ (n = 6): before | after "
              "| processor minutes |", "|---|---|---|---|---|---|"]
    before = results["fine_tuning"].get("before", {})
    for key, row in results["fine_tuning"].items():
        if key != "before":
            learned = f"adapters of rank {row['adapters']}" if row["adapters"] else "all weights"
            own, other = ((before[s.name]["dice"], row["after"][s.name]["dice"]) for s in (OWN, FORGOTTEN))
            lines.append(f"| {row['cases']} cases, {learned} | {own[0]:.3f} | {own[1]:.3f} | {other[0]:.3f} "
                         f"| {other[1]:.3f} | {row['cpu_minutes']:.0f} |")
    return "\n".join(line.rstrip() for line in lines)


def keep(results: Mapping[str, Any]) -> None:
    """Write the results, and the tables into the page between its markers."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    page = PAGE.read_text()
    head, rest = page.split("<!-- tables -->")
    _, tail = rest.split("<!-- /tables -->")
    note = f"Weights `{results['checkpoint_sha256'][:12]}`."
    PAGE.write_text(f"{head}<!-- tables -->\n{note}\n\n{tables(results)}\n<!-- /tables -->{tail}")


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--weights", default="mvg_compact")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of what is measured")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sha256 = file_sha256(find_weights(options.weights))
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if options.again or results.get("checkpoint_sha256") != sha256:
        results = {"checkpoint_sha256": sha256, "threads": options.threads, "test_time": {}, "fine_tuning": {}}

    def wanted(name: str) -> bool:
        return not options.only or any(part in name for part in options.only)

    for setting in TEST_TIME:
        rows = results["test_time"].setdefault(setting.name, [])
        for steps in STEPS:
            if wanted(f"test-time {setting.name}") and steps not in [row["steps"] for row in rows]:
                rows.append(measure(setting, options.data, options.weights, options.threads, steps))
                print(setting.name, rows[-1], flush=True)
                keep(results)
    tuned = results["fine_tuning"]
    for cases, rank in FINE_TUNING:
        name = f"fine-tuning {cases} cases, rank {rank}"
        if not wanted(name) or name in tuned:
            continue
        tuned["before"] = tuned.get("before") or {
            setting.name: measure(setting, options.data, options.weights, options.threads)
            for setting in (OWN, FORGOTTEN)}
        tuned[name] = fine_tune(cases, rank, options.data, options.weights, options.threads)
        print(name, tuned[name], flush=True)
        keep(results)


if __name__ == "__main__":
    main()
