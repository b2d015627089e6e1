"""The outcome of a check of datalists: what was found, and what the splits hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mvg_core.training.check_items import Severity
from mvg_core.training.cutting import Cutting


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or deserves a look.

    Attributes:
        severity: an `error` stops training or makes its results worthless; a `warning` deserves a look.
        kind: the same few words for findings of one kind.
        where: list, split, number and subject of the item, or the list.
        message: what was found and what to do.
    """

    severity: Severity
    kind: str
    where: str
    message: str


@dataclass(frozen=True)
class SplitSummary:
    """What one split of one data set holds. Ranges are (smallest, largest), None without any image.

    Attributes:
        dataset: name of the data set.
        split: its name.
        items: that can be used as far as the list says.
        subjects: how many there are.
        modalities: modality -> items.
        tasks: task -> items.
        shape: of the images, voxels along every axis.
        spacing_mm: of the voxels.
        intensity: of all voxels.
        slices: most slices of images and label maps that training cuts.
    """

    dataset: str
    split: str
    items: int
    subjects: int
    modalities: dict[str, int]
    tasks: dict[str, int]
    shape: tuple[list[int], list[int]] | None
    spacing_mm: tuple[list[float], list[float]] | None
    intensity: tuple[float, float] | None
    slices: int

    @property
    def megabytes(self) -> int:
        """What the slices take in memory or on disk, images and labels."""
        return round(2 * self.slices * Cutting().size ** 2 / 1e6)


@dataclass(frozen=True)
class ClassSize:
    """How much of a label a split holds.

    Attributes:
        dataset: name of the data set.
        name: of the label.
        is_named: False for a number that its item's table of labels lacks.
        numbers: of the label in the files.
        split: name of the split.
        cases: items that show it.
        voxels: in all of them.
        ml: in all of them; without meaning for pictures.
    """

    dataset: str
    name: str
    is_named: bool
    numbers: list[int]
    split: str
    cases: int
    voxels: int
    ml: float


@dataclass
class CheckReport:
    """The outcome of a check.

    Attributes:
        lists: paths of the datalists that could be opened.
        findings: errors first.
        splits: what each split of each data set holds.
        classes: how much of each label each split holds.
    """

    lists: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    splits: list[SplitSummary] = field(default_factory=list)
    classes: list[ClassSize] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return len(self.findings) - self.errors

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable; with the sums on top."""
        splits = [asdict(split) | {"megabytes": split.megabytes} for split in self.splits]
        return {"errors": self.errors, "warnings": self.warnings} | asdict(self) | {"splits": splits}
