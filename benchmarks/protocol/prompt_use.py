"""Does the answer follow the prompt? Two experiments on one labelled volume -> new subject (heart_acdc).

    python -m benchmarks.protocol prompts [--list validation]

*Another label*: the same example is given twice, once with only the left ventricle labelled and once with only the
myocardium. Shown, if each answer overlaps its own structure more than the other's: the lower end of the paired interval
of that difference is above 0.

*An unrelated prompt*: an ultrasound picture of a fetal head with its outline instead of a heart. Shown, if the mean
confidence of what is labelled (of the whole image, where nothing is) falls: the interval of the difference is below 0.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol.network_rows import described_weights, make_engine
from benchmarks.protocol.places import RESULTS
from benchmarks.protocol.questions import all_questions
from mvg_core.evaluation.cases import Pair, examples_for, pair_for, read_cases, read_references
from mvg_core.evaluation.metrics import overlap
from mvg_core.evaluation.runner import read_label
from mvg_core.evaluation.statistics import Estimate, mean_over_subjects
from mvg_core.predict import Prediction
from mvg_core.references import Reference
from mvg_core.report import write_text
from mvg_core.tasks import Task
from mvg_core.volume import Volume
from mvg_core.volume_io import read_volume

DATA, UNRELATED = "heart_acdc", "fetal_head_us"
LABELS = (3, 2)
"""Left ventricle and myocardium."""


def measure(data: Path, split: str, limit: int | None) -> dict[str, Any]:
    """Run both experiments on one case of each subject."""
    cases = {case.subject: case for case in read_cases(data / DATA / "dataset.json", split)}
    pool = [pair_for(one, "segmentation") for one in read_references(data / DATA / "dataset.json")]
    strangers = [pair_for(one, "segmentation") for one in read_references(data / UNRELATED / "dataset.json")]
    own_minus_other, falls = [], []
    for case in list(cases.values())[:limit]:
        assert case.label is not None
        query, truth = read_volume(case.images["image"]), read_label(case.label).array
        example, stranger = (_reference(examples_for(case, pairs, 0)[0]) for pairs in (pool, strangers))
        answers = [_answer(query, _only(example, label)) for label in LABELS]
        dice = np.array([[overlap(answer.volume.array > 0, truth == label)[0] for label in LABELS]
                         for answer in answers])
        own_minus_other.append(float(np.trace(dice) - np.trace(dice[::-1])) / 2)
        falls.append(_sure(_answer(query, stranger)) - np.mean([_sure(answer) for answer in answers]))
    decided, fallen = mean_over_subjects(own_minus_other), mean_over_subjects(falls)
    return {"list": split, "data": all_questions()[f"{DATA}_volume_k1"].title, "unrelated": UNRELATED,
            "weights": dict(described_weights()),
            "label_decides": {"shown": decided.low > 0, **_named("own_minus_other_dice", decided)},
            "unrelated_prompt": {"shown": fallen.high < 0, **_named("confidence_difference", fallen)}}


def write(data: Path, split: str, limit: int | None) -> None:
    """Measure; the test list's result is committed."""
    found = measure(data, split, limit)
    print(json.dumps(found, indent=1))
    if split == "test":
        write_text(RESULTS / "prompt_use.json", json.dumps(found, indent=1) + "\n")


def _answer(query: Volume, reference: Reference) -> Prediction:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an example of another modality is what is wanted here
        return make_engine("fast").solve(query, [reference], Task.segmentation())


def _sure(answer: Prediction) -> float:
    assert answer.confidence is not None
    labelled = answer.volume.array > 0
    return float(answer.confidence.array[labelled if labelled.any() else ...].mean())


def _only(reference: Reference, label: int) -> Reference:
    return Reference(reference.image, reference.label.with_array((reference.label.array == label).astype(np.uint8)))


def _reference(pair: Pair) -> Reference:
    return Reference(read_volume(pair.image), read_label(pair.answer), pair.case.name)


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    return {"measure": name, **estimate.to_json()}
