"""Train the learned baselines on the training bank: UniverSeg's architecture, and U-Nets for one task each.

    python -m benchmarks.protocol train universeg --minutes 60
    python -m benchmarks.protocol train unet:headneck_ct --minutes 20
    python -m benchmarks.protocol train all --minutes 10

`universeg` and the U-Nets `unet:denoising` and `unet:inpainting` draw their episodes from the slices that our network
is trained on (`packs/training.npz`: training lists of the sets whose role is `train`), warped by the same code. The
others (`unet:` and a name of `specialist.LESSONS`) see the training list of one data set. One process, one thread;
resumed when called again; `all` gives each the same CPU time, round after round. What was reached (episodes, CPU
seconds) is in the checkpoint and in every report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.protocol.places import KEPT, ROOT
from benchmarks.protocol.specialist import LESSONS, Lesson, drawn, read_slices, segmentation_loss
from benchmarks.protocol.universeg import UniverSeg
from mvg_core.training.augmentation import WarpConfig
from mvg_core.training.bank import SliceBank
from mvg_core.training.episodes import EpisodeConfig, Episodes, EpisodeSampler
from mvg_core.training.recipe import DATASET_WEIGHTS

LEARNED = KEPT / "learned"
BANK = ROOT / "packs" / "training.npz"
SIZE = 64
"""Of training slices in pixels; answers are made at 128."""
CHANNELS = (32, 32, 32, 32)
"""The paper's 64 need four times the time, which this budget does not have."""
PROMPTS = (0.2, 0.15, 0.15, 0.1, 0.1, 0.1, 0.1, 0.1)
"""Probability of 1, 2, ... 8 examples."""
WARP = WarpConfig(zoom=4.0, zoomed=0.5, rotation_deg=15, shift=0.08, scale=0.2, jitter=0.35, elastic=0.025)
RESTORATIONS = ("denoising", "inpainting")
SAVE_SECONDS = 120
SEED = 11


NAMES = ("universeg", *(f"unet:{name}" for name in (*RESTORATIONS, *LESSONS)))
Step = Callable[[nn.Module, int], Tensor]
"""Network and number of the step -> loss."""


@dataclass(frozen=True)
class Recipe:
    """How one baseline is trained.

    Attributes:
        network: makes it.
        steps: reads the data, and returns what makes the loss of a step.
        batch: episodes a step.
        rate: of Adam.
    """

    network: Callable[[], nn.Module]
    steps: Callable[[Path, Path], Step]
    batch: int = 8
    rate: float = 1e-3


def recipe(name: str) -> Recipe:
    """By its name, one of `NAMES`.

    Raises:
        ValueError: there is no such baseline.
    """
    if name not in NAMES:
        raise ValueError(f"no baseline {name!r}: choose among {', '.join(NAMES)}")
    task = name.removeprefix("unet:")
    if name == "universeg":
        episodes = EpisodeConfig(size=SIZE, families={"real": 0.6, "painted": 0.4}, dataset_weights=DATASET_WEIGHTS,
                                 warp=WARP, prompts=PROMPTS)
        return Recipe(lambda: UniverSeg(CHANNELS), lambda bank, _: _episode_steps(bank, episodes, 8, universeg_loss))
    if task in RESTORATIONS:
        episodes = EpisodeConfig(size=96, families={"restoration": 1.0}, kinds={task: 1.0}, warp=WARP,
                                 real_in_restoration=1.0, prompts=(1.0,))
        return Recipe(lambda: unet(1, 1), lambda bank, _: _episode_steps(bank, episodes, 8, restoration_loss))
    lesson = LESSONS[task]
    return Recipe(lambda: unet(1, max(1, lesson.labels)), lambda _, data: _lesson_steps(lesson, data, 8))


def _episode_steps(bank: Path, config: EpisodeConfig, batch: int, loss: Callable[..., Tensor]) -> Step:
    sampler, random = EpisodeSampler(SliceBank.load(bank), config, torch.Generator()), torch.Generator()

    def step(network: nn.Module, number: int) -> Tensor:
        sampler.reseed(SEED * 1_000_003 + number)
        random.manual_seed(SEED * 7 + number)
        return loss(network, sampler.sample(batch), random)

    return step


def _lesson_steps(lesson: Lesson, data: Path, batch: int) -> Step:
    slices, random = read_slices(lesson, data), torch.Generator()

    def step(network: nn.Module, number: int) -> Tensor:
        random.manual_seed(SEED * 7 + number)
        shown, answers = drawn(*slices, batch, random)
        painted = network(shown)
        return segmentation_loss(painted, answers) if lesson.labels else F.l1_loss(painted, answers)

    return step


def unet(n_inputs: int, n_outputs: int) -> nn.Module:
    """MONAI's U-Net with residual units, 1.6 million parameters."""
    from monai.networks.nets.unet import UNet

    return UNet(2, n_inputs, n_outputs, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)


def universeg_loss(network: nn.Module, episodes: Episodes, random: torch.Generator) -> Tensor:
    """Soft Dice + cross-entropy of one label of each episode against everything else."""
    shown = episodes.in_palette.float()
    shown[:, 0] = 0
    usable = shown.sum(1) > 0
    shown[~usable, 1] = 1
    chosen = torch.multinomial(shown, 1, generator=random)[:, 0]
    labels = (episodes.classes == chosen[:, None, None, None]).float()[:, :, None]  # (B, N, 1, H, W)
    logits = network(episodes.images[:, 0], episodes.images[:, 1:], labels[:, 1:])
    return binary_loss(logits, labels[:, 0])


def binary_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice + cross-entropy."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * truth).sum((1, 2, 3)) + 1
    size = probability.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1
    return (1 - overlap / size).mean() + F.binary_cross_entropy_with_logits(logits, truth)


def restoration_loss(network: nn.Module, episodes: Episodes, random: torch.Generator) -> Tensor:
    """Absolute error, weighted as for our network; every image of an episode is an example of its own."""
    shown, target = episodes.images.flatten(0, 1), episodes.labels.flatten(0, 1)[:, :1]
    weights = episodes.weights.flatten(0, 1)
    return ((network(shown) - target).abs() * weights).sum() / weights.sum()


def train(name: str, minutes: float, data: Path, bank: Path = BANK, out: Path = LEARNED) -> dict[str, Any]:
    """Train one baseline for so many CPU minutes more, or resume it.

    Args:
        name: see `recipe`.
        minutes: CPU minutes of this process, reading not counted.
        data: folder of the data sets.
        bank: slices.
        out: folder of checkpoints.

    Returns:
        What was reached in all: `steps`, `episodes`, `cpu_s`, and the mean `loss` of the last steps.
    """
    torch.set_num_threads(1)
    chosen = recipe(name)
    torch.manual_seed(SEED)
    network = chosen.network()
    optimizer = torch.optim.Adam(network.parameters(), chosen.rate)
    reached: dict[str, Any] = {"steps": 0, "episodes": 0, "cpu_s": 0.0, "loss": None}
    path = checkpoint_of(name, out)
    if path.is_file():
        stored = torch.load(path, weights_only=True)
        network.load_state_dict(stored["network"])
        optimizer.load_state_dict(stored["optimizer"])
        reached = stored["reached"]
    loss_of = chosen.steps(bank, data)
    started, saved, before = time.process_time(), time.monotonic(), reached["cpu_s"]
    losses: list[float] = []
    while time.process_time() - started < 60 * minutes:
        loss = loss_of(network, reached["steps"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses = [*losses[-99:], float(loss.detach())]
        reached = {"steps": reached["steps"] + 1, "episodes": reached["episodes"] + chosen.batch,
                   "cpu_s": round(before + time.process_time() - started, 1), "loss": round(float(np.mean(losses)), 4)}
        if time.monotonic() - saved > SAVE_SECONDS:
            _save(path, network, optimizer, reached)
            saved = time.monotonic()
            print(name, reached, flush=True)
    _save(path, network, optimizer, reached)
    return reached


def train_all(minutes: float, rounds: int, data: Path) -> None:
    """Every baseline for the same CPU time, round after round."""
    for number in range(1, rounds + 1):
        for name in NAMES:
            print(f"round {number}", name, train(name, minutes, data), flush=True)


def checkpoint_of(name: str, out: Path = LEARNED) -> Path:
    """Where a baseline is kept."""
    return out / f"{name.replace(':', '_')}.pt"


def reached_by(name: str, out: Path = LEARNED) -> dict[str, Any] | None:
    """What a baseline was trained for; None if it was not."""
    path = checkpoint_of(name, out)
    return torch.load(path, weights_only=True)["reached"] if path.is_file() else None


def load(name: str, out: Path = LEARNED) -> nn.Module:
    """A trained baseline, ready to answer."""
    network = recipe(name).network()
    network.load_state_dict(torch.load(checkpoint_of(name, out), weights_only=True)["network"])
    return network.eval()


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, reached: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "reached": reached}, temporary)
    temporary.replace(path)
