"""Fine-tuning: a trained network learns a little more, on a user's own cases, in minutes.

What is its own: cautious defaults, made-up episodes mixed in so that nothing is forgotten, a comparison with the
weights it started from, and a card that says what became of them. Everything else is `HybridTrainer`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events

from mvg_core.network.checkpoint import ConfiguredModule, load_network, save_weights
from mvg_core.network.config import NetworkConfig
from mvg_core.network.errors import CheckpointError
from mvg_core.report import write_text
from mvg_core.tasks import TASK_KINDS
from mvg_core.training.adapters import add_adapters
from mvg_core.training.augmentation import WarpConfig
from mvg_core.training.bank import SliceBank
from mvg_core.training.config import TrainingConfig
from mvg_core.training.cutting import TARGET, UNDIRECTED
from mvg_core.training.datalist import files_of, read_datalists, split_by_subject
from mvg_core.training.episodes import KINDS, EpisodeConfig
from mvg_core.training.objective import HybridConfig
from mvg_core.training.prompt_tuning import fast_bfloat16
from mvg_core.training.slice_dataset import SliceDataset
from mvg_core.training.trainer import HybridTrainer
from mvg_core.training.validation import HybridEvaluator
from mvg_core.weights import file_sha256, find_weights

RESULT, REQUEST = "model.pt", "finetune.json"
"""Files in the folder of a run, beside those of the trainer: the tuned weights, and what was asked for."""
HELD_OUT_FROM = 4
"""From so many subjects on, some are held out to choose the best weights; with fewer every case is needed to learn."""
HELD_OUT_SHARE = 0.2

WARP = WarpConfig(zoom=2.0, rotation_deg=15, shift=0.08, scale=0.2, jitter=0.4, elastic=0.025, flip=0.1)
# Inference paints whole labels: nothing else has to be learned here.
OBJECTIVE = HybridConfig(masked_share=dict.fromkeys(KINDS, 0.0))


@dataclass(frozen=True)
class FinetuneConfig:
    """How a network is fine-tuned.

    Attributes:
        steps: most steps.
        minutes: training ends at the first validation that leaves no time for another; None takes all steps.
        adapters: rank of the adapters that learn instead of the weights; 0 lets all weights learn.
        learning_rate: constant after a short warm-up, because the averaged weights are what counts; None chooses.
        batch: episodes for each step.
        others: share of made-up episodes (painted label maps, restoration), so that the network does not forget.
        same_subject: probability that the prompts of an episode are slices of the query's own subject.
        epoch_length: steps between validations.
        patience: validations without a better score after which training ends; 0 never ends it.
        validation_episodes: episodes of one validation.
        seed: of episodes and adapters.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int = 300
    minutes: float | None = None
    adapters: int = 0
    learning_rate: float | None = None
    batch: int = 4
    others: float = 0.25
    same_subject: float = 0.4
    epoch_length: int = 25
    patience: int = 5
    validation_episodes: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps of fine-tuning must be at least 1, got {self.steps}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes of fine-tuning must be above 0, got {self.minutes}")
        if self.adapters < 0:
            raise ValueError(f"adapters is a rank, 0 or more, got {self.adapters}")
        if not 0 <= self.others < 1:
            raise ValueError(f"others is a share, 0 or more and below 1, got {self.others}")


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning gave.

    Attributes:
        path: weights for `Predictor.load` and `mvg predict --weights`.
        steps: of the best weights; 0 if those it started from were the best.
        seconds: that this call took.
        score: on the validation episodes, Dice or SSIM, before and after.
        cases: number of items that were learned from.
        held_out: number of items that chose the best weights; 0 if these were the cases themselves.
    """

    path: Path
    steps: int
    seconds: float
    score: tuple[float, float]
    cases: int
    held_out: int


def finetune(weights: str | PathLike[str], datalist: Any, config: FinetuneConfig, out: Path | str, *,
             device: torch.device | str = "auto", train_handlers: Sequence[Any] = ()) -> Finetuned:
    """Fine-tune weights on a datalist.

    A folder with an unfinished run of the same weights, cases and settings is gone on with.

    Args:
        weights: name or path.
        datalist: path of a datalist, or any mixture that `read_datalists` takes.
        config: settings.
        out: folder of the run; the tuned weights are `model.pt` in it, with their checksum beside them.
        device: torch device; `auto` takes a GPU if there is one.
        train_handlers: MONAI or ignite handlers.

    Raises:
        WeightsError, CheckpointError: no such weights, or of an architecture that cannot be used for prediction.
        FileNotFoundError, DatalistError: see `read_datalists`.
        ValueError: too few cases, another run is in the folder, or the device cannot be used.
    """
    started = time.perf_counter()
    out, device = Path(out), usable_device(device)
    training, validation = split_cases(datalist)
    network = starting_network(weights, training, adapters=config.adapters, seed=config.seed)
    bank, held_out = cut_cases(training, validation, network.config.size)
    _check_enough(bank, training)
    stage = training_config(config, training, network.config, device)
    _claim(out, weights, config, training)
    handlers: list[Any] = [ValidateFirst(), *train_handlers]
    if config.minutes is not None:
        handlers.insert(0, StopAfter(config.minutes - (time.perf_counter() - started) / 60))
    trainer = HybridTrainer(network, bank, stage, out, device, train_handlers=handlers,
                            validator=HybridEvaluator(network, held_out, validation_config(stage), device))
    trainer.run()
    scores = [line["score"] for line in _lines(out / "validation.jsonl")]
    found = Finetuned(out / RESULT, int(trainer.best["step"]), time.perf_counter() - started,
                      (scores[0], round(float(trainer.best["score"]), 5)), len(training),
                      0 if held_out is bank else len(validation))
    _write_result(trainer.folder.best, found)
    return found


# --- the parts, which the bundle's config uses too ---


def split_cases(datalist: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items to learn from, and items to choose the best weights with.

    The second are the list's own `validation`, or some subjects of `training` where there are enough; else all of
    `training`, which cannot show that too much was learned.

    Raises:
        FileNotFoundError, DatalistError: see `read_datalists`.
    """
    training = read_datalists(datalist, "training")
    validation = read_datalists(datalist, "validation", allow_missing=True)
    if validation:
        return training, validation
    subjects = {(item["dataset"], item["subject"]) for item in training}
    return split_by_subject(training, HELD_OUT_SHARE) if len(subjects) >= HELD_OUT_FROM else (training, training)


def cut_cases(training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], size: int,
              cache: Path | str | None = None) -> tuple[SliceBank, SliceBank]:
    """Slices to learn from, and slices to choose the best weights with; the same, if nothing is held out.

    From the second, held-out slices are drawn as queries and slices that are learned from as their prompts, as the
    weights will be used. Two held-out subjects that served each other would not show what was learned of the others.

    Args:
        training: items to learn from.
        validation: held-out items, or `training` again.
        size: side of the slices in pixels.
        cache: see `SliceDataset`.

    Raises:
        DatalistError: an item cannot be used.
    """
    if list(validation) == list(training):
        bank = SliceDataset(training, size=size, cache=cache).bank
        return bank, bank
    dataset = SliceDataset([*training, *validation], size=size, cache=cache)
    bank = dataset.bank
    count = sum(len(stack["numbers"]) for index in range(len(training)) for stack in dataset[index]["stacks"])
    columns = [field.name for field in dataclasses.fields(SliceBank) if field.name not in ("names", "weights")]
    learned = dataclasses.replace(bank, **{name: getattr(bank, name)[:count] for name in columns})
    # An episode begins with a prompt that is labelled, or the source of a pair; its query is of another subject.
    known = np.arange(len(bank.images)) < count
    return learned, dataclasses.replace(
        bank, subject=np.where(known, 0, 1), labelled=bank.labelled & known,
        direction=np.where(known | (bank.direction == TARGET), bank.direction, UNDIRECTED))


def starting_network(weights: str | PathLike[str], items: Sequence[Mapping[str, Any]], *, adapters: int = 0,
                     seed: int = 0) -> ConfiguredModule:
    """The network that is fine-tuned, with a card that says where it comes from.

    Args:
        weights: name or path.
        items: what it will learn from.
        adapters: rank; 0 lets all weights learn.
        seed: of the adapters.

    Raises:
        WeightsError: no such weights, or they were changed since their checksum was recorded.
        CheckpointError: damaged, or a network that cannot be used for prediction.
    """
    path = find_weights(weights)
    network = load_network(path)
    if network.config.architecture != "compact":
        raise CheckpointError(f"{path} holds a {network.config.architecture!r} network: fine-tuning for prediction "
                              "needs a 'compact' one")
    network.card = _card(network.card, path, items)
    if adapters:
        add_adapters(network, adapters, seed=seed)
    return network


def training_config(config: FinetuneConfig, items: Sequence[Mapping[str, Any]], network: NetworkConfig,
                    device: torch.device) -> TrainingConfig:
    """The stage of training that fine-tuning is.

    Args:
        config: settings.
        items: what is learned from; their tasks decide what is drawn.
        network: slices have its native size.
        device: decides the precision.
    """
    rate = config.learning_rate or (2e-3 if config.adapters else 4e-4)
    shares = {kind: sum(item["task"] == kind for item in items) / len(items) for kind in TASK_KINDS}
    own, others = 1 - config.others, config.others / 2
    families = {"real": own * shares["segmentation"], "painted": others,
                "restoration": own * (1 - shares["segmentation"]) + others}
    images = {kind: share for kind, share in shares.items() if kind != "segmentation" and share}
    episodes = EpisodeConfig(size=network.size, families=families, same_subject=config.same_subject, warp=WARP)
    if images:
        episodes = dataclasses.replace(episodes, kinds=images, pairs=0.9)
    return TrainingConfig(
        episodes=episodes, objective=OBJECTIVE, batch=config.batch, iterations=config.steps,
        epoch_length=min(config.epoch_length, config.steps), learning_rate=rate, final_rate=1.0,
        warm_up=min(10, config.steps), ema=0.95, seed=config.seed, patience=config.patience,
        precision="bf16" if fast_bfloat16(device) else "fp32", validation_episodes=config.validation_episodes,
        report_every=min(config.epoch_length, config.steps))


def validation_config(stage: TrainingConfig) -> TrainingConfig:
    """The same stage for its validation: the user's own tasks, one prompt of another subject, little moved."""
    episodes = stage.episodes
    families = {"real": episodes.families["real"], "restoration": 0.0}
    if not families["real"]:
        families = {"restoration": 1.0}
    warp = WarpConfig(zoom=1.2, rotation_deg=4, shift=0.02, scale=0.05, jitter=0.5, elastic=0.0, flip=0.0)
    return dataclasses.replace(stage, episodes=dataclasses.replace(
        episodes, families=families, warp=warp, pairs=1.0, same_subject=0.0, prompts=(1.0,)))


class ValidateFirst:
    """Scores the weights that training starts from, so that only better ones replace them."""

    def attach(self, engine: Engine) -> None:
        """Score once, before the first step; a resumed run has done so."""
        engine.add_event_handler(Events.STARTED, self._score)

    def _score(self, engine: Engine) -> None:
        trainer = cast(HybridTrainer, engine)
        if trainer.state.iteration == 0 and trainer.validator is not None:
            trainer.validator.run()


class StopAfter:
    """Ends training in time.

    Args:
        minutes: no epoch is begun that would probably end later.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._limit_s, self._clock = minutes * 60, clock
        self._started = self._last = 0.0

    def attach(self, engine: Engine) -> None:
        """Look at the clock after every epoch."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._look)

    def _start(self) -> None:
        self._started = self._last = self._clock()

    def _look(self, engine: Engine) -> None:
        now = self._clock()
        if now - self._started + (now - self._last) > self._limit_s:
            engine.terminate()
        self._last = now


def usable_device(device: torch.device | str) -> torch.device:
    """The device that is meant; `auto` takes a GPU if there is one.

    Raises:
        ValueError: this machine or this build of PyTorch cannot use it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used ({reason}): use 'auto' or 'cpu'") from error


# --- inside ---


def _check_enough(bank: SliceBank, items: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what no query with another prompt can be drawn from.

    Raises:
        ValueError: fewer than two slices.
    """
    useful = bank.has_image & (bank.direction != TARGET)
    if all(item["task"] == "segmentation" for item in items):
        useful &= bank.labelled
    if (count := int(useful.sum())) < 2:
        raise ValueError(f"{items[0]['datalist']}: solved slices with an image among the training cases: {count}, too "
                         "few to learn from. Add a case, or tune on the example when it is used (`mvg predict --tune "
                         "30`)")


def _claim(out: Path, weights: str | PathLike[str], config: FinetuneConfig, items: Sequence[Mapping[str, Any]]) -> None:
    """Note what is asked for, and compare it with what a folder with a checkpoint was made for.

    Raises:
        ValueError: the folder belongs to another request.
    """
    facts = [[item["task"], [[file, Path(file).stat().st_size] for file in files_of(item)]] for item in items]
    asked = {"weights_sha256": file_sha256(find_weights(weights)), "cases": len(items),
             "cases_sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
             "settings": {key: value for key, value in dataclasses.asdict(config).items()
                          if key not in ("steps", "minutes", "patience")}}
    path = out / REQUEST
    if path.is_file() and (out / "last.pt").is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in asked if before.get(key) != asked[key]]:
            raise ValueError(f"{out} holds a fine-tuning with other {', '.join(differing)}: choose another folder, or "
                             "repeat the same request to go on with it")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asked, indent=1) + "\n")


def _card(before: Mapping[str, Any], path: Path, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `mvg info` will tell; numbers and names of data sets and labels, nothing about any patient."""
    names = sorted({name for item in items for name in item["labels"].values()})
    return {"name": "fine-tuned", "licence": f"{before.get('licence', 'unknown')} (the weights it was tuned from)",
            "intended_use": before.get("intended_use", "research only, no clinical use"),
            "finetuned_from": {"sha256": file_sha256(path), "name": before.get("name", path.stem),
                               "card": dict(before)},
            "finetuned_on": {"cases": len(items), "subjects": len({(i["dataset"], i["subject"]) for i in items}),
                             "data_sets": sorted({item["dataset"] for item in items}),
                             "tasks": sorted({item["task"] for item in items}), "labels": names}}


def _write_result(best: Path, found: Finetuned) -> None:
    """`model.pt` and its checksum, from the best weights."""
    network = load_network(best)
    if found.steps == 0:
        network.card["note"] = "fine-tuning found no better weights: these are the ones it started from"
    network.card["finetuned_on"] |= {"steps": found.steps, "held_out_cases": found.held_out,
                                     "score_before": round(found.score[0], 4), "score": round(found.score[1], 4)}
    save_weights(network, found.path)
    write_text(found.path.with_name(found.path.name + ".sha256"), f"{file_sha256(found.path)}  {found.path.name}\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
