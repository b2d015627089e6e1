"""How hard a registration looks for a match."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mvg_core.demons import DemonsConfig

Metric = Literal["correlation", "mutual_information"]


@dataclass(frozen=True)
class RegistrationConfig:
    """How hard to look for a match.

    Attributes:
        turns_degrees: turns in the plane of the slices that are tried, each with every shift, in stacks of thick
            slices; hearts, say, are imaged at any angle.
        metric: what the affine registration compares; correlation is for one modality and faster.
        affine_mm: images are made this coarse for the affine registration, if they are finer.
        affine_iterations: most steps at each of two resolutions.
        samples: most voxels that the affine metric looks at.
        demons_mm: images are made this coarse for the demons, if they are finer; None leaves the demons out.
        demons: how far the demons go.
        seed: of the choice of voxels.
        threads: most CPU threads, also of the demons.

    Raises:
        ValueError: a number is out of range, or the metric unknown.
    """

    turns_degrees: tuple[float, ...] = (0, -30, 30, -60, 60)
    metric: Metric = "correlation"
    affine_mm: float = 4.0
    affine_iterations: int = 60
    samples: int = 8_000
    demons_mm: float | None = 1.5
    demons: DemonsConfig = field(default_factory=lambda: DemonsConfig(smooth=1.0))
    seed: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns_degrees", tuple(self.turns_degrees) or (0.0,))
        if self.metric not in get_args(Metric):
            raise ValueError(f"metric {self.metric!r} is unknown: use one of {', '.join(get_args(Metric))}")
        for name in ("affine_mm", "affine_iterations", "samples", "threads", "demons_mm"):
            number = getattr(self, name)
            if number is not None and not number > 0:
                raise ValueError(f"{name} must be above 0, got {number}")
