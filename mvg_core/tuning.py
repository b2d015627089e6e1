"""Test-time tuning: a few gradient steps on the solved examples, before they are used as prompts.

Every prompt in turn is the query of the others, warped and shaded anew each time, so that one prompt is enough. A copy
of the network is tuned and thrown away afterwards: neither the predictor nor its weight file changes.

The steps themselves need PyTorch and are in `mvg_core.training.prompt_tuning`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mvg_core.backends import Backend, MissingBackendError, TorchBackend, reader_of
from mvg_core.codecs import LabelCodec, PaletteKind, label_groups
from mvg_core.prompts import Prompt, Support

RATE, RATE_OF_ADAPTERS = 1e-3, 3e-3


@dataclass(frozen=True)
class TuningConfig:
    """How a network is tuned on its prompts.

    Attributes:
        steps: of the optimiser.
        learning_rate: at the first step; falls linearly to 0. None chooses one that suits weights or adapters.
        batch: episodes for each step; one is as good as two in equal steps, and sooner done.
        adapters: rank of the adapters that are tuned; 0 tunes all weights.
        most_prompts: more than these are thinned out evenly.
        seed: of the episodes.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int
    learning_rate: float | None = None
    batch: int = 1
    adapters: int = 0
    most_prompts: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("adapters", 0), ("most_prompts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} of tuning must be at least {least}, got {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate of tuning must be above 0, got {self.learning_rate}")

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.learning_rate or (RATE_OF_ADAPTERS if self.adapters else RATE)


@dataclass(frozen=True)
class Lesson:
    """The prompts of one label group as the network sees them.

    Attributes:
        images: float32 (P, S, S) in [0, 1].
        targets: rows of `colours`, uint8 (P, S, S); images float32 (P, S, S) in [0, 1] for image-to-image tasks.
        kind: of the task.
        colours: float32 (1 + L, 3), background first; None for image-to-image tasks.
        holes: bool (P, S, S), where the image is missing; None without holes.
        subjects: (P,) numbers that stand for whom the images show; None: all show one subject.
        places: (P,) where the slices lie, 0 to 1; None where that means nothing.
    """

    images: npt.NDArray[np.float32]
    targets: npt.NDArray[Any]
    kind: str
    colours: npt.NDArray[np.float32] | None = None
    holes: npt.NDArray[np.bool_] | None = None
    subjects: npt.NDArray[np.intp] | None = None
    places: npt.NDArray[np.float64] | None = None


def tuned_backend(backend: Backend, support: Support, config: TuningConfig, *, palette: PaletteKind = "wide",
                  n_prompts: int = 3, progress: Callable[[int, int], None] | None = None
                  ) -> tuple[Backend, dict[str, Any]]:
    """A backend whose network was tuned on prompts, and what that took.

    Args:
        backend: stays as it is.
        support: prompts; those that show no label are not learned from.
        config: settings.
        palette: colours in which segmentations will be painted.
        n_prompts: most prompts that will serve one slice.
        progress: called with steps done and steps in all.

    Returns:
        The tuned backend, and steps, seconds, prompts and mean losses of the first and last fifth of the steps.

    Raises:
        MissingBackendError: the backend does not run PyTorch.
    """
    # Not its class: one that wraps a PyTorch backend, such as `RememberingBackend`, passes its network on.
    network = getattr(backend, "network", None)
    if network is None:
        raise MissingBackendError(f"tuning needs PyTorch, but the network runs in {backend.name}: leave tuning out, or "
                                  "pip install 'mvg-core[torch]' and choose the backend 'torch'")
    from mvg_core.training.prompt_tuning import tune_network

    started = time.perf_counter()
    chosen = thinned(support.prompts, config.most_prompts)
    network, losses = tune_network(network, lessons(chosen, support, palette), config, n_prompts=n_prompts,
                                   progress=progress)
    tuned = TorchBackend(network, str(getattr(backend, "device", "auto")), backend.checkpoint_sha256,
                         getattr(backend, "precision", "fp32"), reader_of(backend))
    fifth = max(1, len(losses) // 5)
    return tuned, {"steps": config.steps, "prompts": len(chosen), "adapters": config.adapters,
                   "seconds": round(time.perf_counter() - started, 2),
                   "loss": [round(float(np.mean(part)), 4) for part in (losses[:fifth], losses[-fifth:])]}


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[k] for k in np.linspace(0, len(items) - 1, most).round().astype(int)]


def lessons(prompts: Sequence[Prompt], support: Support, palette: PaletteKind) -> list[Lesson]:
    """What can be learned from prompts: one lesson for every group of labels, or one of images.

    Raises:
        ValueError: no prompt shows a label.
    """
    kind = support.task.kind
    if not support.task.is_segmentation:
        holes = [prompt.hole for prompt in prompts if prompt.hole is not None]
        return [Lesson(_stack(prompts, "image"), _stack(prompts, "label"), kind,
                       holes=np.stack(holes) if len(holes) == len(prompts) else None, **_whereabouts(prompts))]
    found = []
    shown = sorted(set().union(*(np.unique(prompt.label).tolist() for prompt in prompts)) - {0})
    for group in label_groups(shown):
        codec = LabelCodec.for_labels(group, palette)
        row_of_label = np.zeros(256, np.uint8)
        row_of_label[list(codec.labels)] = np.arange(1, len(codec.labels) + 1)
        useful = [prompt for prompt in prompts if np.isin(prompt.label, codec.labels).any()]
        found.append(Lesson(_stack(useful, "image"), row_of_label[_stack(useful, "label")], kind, codec.colours,
                            **_whereabouts(useful)))
    if not found:
        raise ValueError("no prompt shows a label: nothing can be tuned on them")
    return found


def _whereabouts(prompts: Sequence[Prompt]) -> dict[str, npt.NDArray[Any] | None]:
    """Whom prompts show, and where."""
    places = [prompt.position_mm for prompt in prompts if prompt.position_mm is not None]
    return {"subjects": np.unique([prompt.subject for prompt in prompts], return_inverse=True)[1],
            "places": np.array(places) if len(places) == len(prompts) else None}


def _stack(prompts: Sequence[Prompt], name: str) -> npt.NDArray[Any]:
    return np.stack([getattr(prompt, name) for prompt in prompts])
