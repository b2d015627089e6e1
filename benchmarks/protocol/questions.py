"""What is asked: the tasks of tables A (segmentation) and B (image to image), on the lists of the data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mvg_core.evaluation.queries import ACQUISITION
from mvg_core.evaluation.runner import EvaluationSettings
from mvg_core.tasks import TaskKind

VOLUMES = ("heart_acdc", "hippocampus_t1", "headneck_ct")
PICTURES = ("nerve_us", "fetal_head_us", "breast_us", "heart_echo", "chest_xray")
UNSEEN = ("heart_acdc", "hippocampus_t1", "heart_echo", "chest_xray")
"""Data sets of organs that no weights were trained on."""
NOMINAL_SPACING = ("heart_acdc", "heart_echo")
"""Their spacing is not real: no distances in mm."""
FEW_SUBJECTS = ("brain_ms", "sarcoma_ct_pet_mr")
OPEN_LICENCE = ("nerve_us", "fetal_head_us", "breast_us", "headneck_ct", "brain_ms", "sarcoma_ct_pet_mr")
"""CC-BY or MIT: their pictures may be shown, with credit."""
RESTORED = ("heart_acdc", "headneck_ct", "brain_ms", "fetal_head_us")
SIGMAS = (0.05, 0.1, 0.2)
N_EXAMPLES = 3
"""Solved volumes or pictures for every image-to-image query; brain_ms has no more."""
DRAWS = 5
"""Of the example, for the use "one labelled volume -> new subject"."""

Inputs = Literal["whole", "thinned", "low_dose"]


@dataclass(frozen=True)
class Question:
    """One task on one data set.

    Attributes:
        table: "A" or "B".
        name: unique; a file name.
        title: for people.
        data: name of the data set.
        kind: of the task.
        use: what is given, for tables.
        asked: further `EvaluationSettings`.
        draws: of the examples.
        inputs: which files are read: the data set as it is, eight slices of each volume, or those with simulated
            low-dose CT beside them.
    """

    table: Literal["A", "B"]
    name: str
    title: str
    data: str
    kind: TaskKind
    use: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 1
    inputs: Inputs = "whole"

    def settings(self, data: Path, prepared: Path, split: str) -> EvaluationSettings:
        """What `evaluate_list` is asked.

        Args:
            data: folder of the data sets.
            prepared: folder of what `inputs` wrote.
            split: `test` or `validation`.
        """
        folder = data / self.data if self.inputs == "whole" else prepared / self.inputs / self.data
        return EvaluationSettings(folder / "dataset.json", split, self.kind, **self.asked)

    @property
    def region(self) -> str | None:
        """The part of the image that is scored; None takes what the task is about."""
        return "inside" if self.asked.get("target") == "mr_t1" else None


def segmentations() -> list[Question]:
    """Table A."""
    found = []
    for data in VOLUMES:
        distances = {"distances": False} if data in NOMINAL_SPACING else {}
        plane = {"plane": ACQUISITION} if data == "heart_acdc" else {}
        found.append(_segmentation(f"{data}_slice", data, "one slice -> volume", one_slice=True, **plane, **distances))
        for n in (1, 8):
            found.append(_segmentation(f"{data}_volume_k{n}", data, f"{_volumes(n)} -> new subject", n_references=n,
                                       draws=DRAWS if n == 1 else 1, **distances))
    for data in PICTURES:
        found += [_segmentation(f"{data}_k{n}", data, f"{_pictures(n)} -> new subject", n_references=n, distances=False,
                                draws=DRAWS if n == 1 else 1) for n in (1, 8)]
    return found


def restorations() -> list[Question]:
    """Table B."""
    found = []
    for data in RESTORED:
        inputs: Inputs = "whole" if data in PICTURES else "thinned"
        source = {"source": "t1"} if data == "brain_ms" else {}
        found += [_image(f"{data}_noise_{sigma:g}", data, "denoising", f"Gaussian noise, sigma {sigma:g}", inputs,
                         sigma=sigma, **source) for sigma in SIGMAS]
        found.append(_image(f"{data}_inpaint", data, "inpainting", "holes", inputs, **source))
    found += [_image(f"{data}_low_dose", data, "denoising", "simulated low-dose CT", "low_dose")
              for data in ("headneck_ct", "sarcoma_ct_pet_mr")]
    found += [_image(f"brain_{source}_{target}", "brain_ms", "synthesis", f"{source.upper()} -> {target.upper()}",
                     "thinned", source=source, target=target)
              for source, target in (("t1", "t2"), ("t1", "flair"), ("t2", "t1"))]
    found += [_image(f"sarcoma_ct_{target}", "sarcoma_ct_pet_mr", "synthesis", title, "thinned", source="ct",
                     target=target) for target, title in (("mr_t1", "CT -> MR"), ("pet", "CT -> PET (unseen)"))]
    return found


def all_questions() -> dict[str, Question]:
    """Every question by its name."""
    return {question.name: question for question in (*segmentations(), *restorations())}


def _segmentation(name: str, data: str, use: str, *, draws: int = 1, **asked: Any) -> Question:
    return Question("A", name, f"{data}, {use}", data, "segmentation", use, asked, draws)


def _image(name: str, data: str, kind: TaskKind, use: str, inputs: Inputs, **asked: Any) -> Question:
    return Question("B", name, f"{data}, {use}", data, kind, use, {"n_references": N_EXAMPLES, **asked}, 1, inputs)


def _volumes(n: int) -> str:
    return "1 volume" if n == 1 else f"{n} volumes"


def _pictures(n: int) -> str:
    return "1 picture" if n == 1 else f"{n} pictures"
