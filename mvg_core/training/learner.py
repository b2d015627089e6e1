"""One step of learning, in any precision and number of processes, and everything that it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mvg_core.network.checkpoint import ConfiguredModule
from mvg_core.training import distributed
from mvg_core.training.compilation import compile_painter
from mvg_core.training.config import TrainingConfig
from mvg_core.training.episodes import Episodes
from mvg_core.training.objective import HybridObjective, Totals, draw_hidden, measure
from mvg_core.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from mvg_core.training.stream import draw_numbers, step_seed

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Learner:
    """A network that learns, its averaged copy, the optimizer and the loss scale.

    Args:
        network: changed in place.
        config: the stage.
        device: where it learns.

    Raises:
        ValueError: the configuration asks for what the network cannot do.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        if device.type == "cuda" and distributed.n_processes() > 1:
            torch.cuda.set_device(device)  # NCCL talks through the current one
        self.painter: Any = plain_network(network).to(device)
        _check_abilities(self.painter, config)
        distributed.same_weights(self.painter)
        split = distributed.n_processes() > 1 and config.parallel == "fsdp"
        if self.painter.config.architecture == "compact" and not split:  # sharding needs contiguous weights
            self.painter = self.painter.to(memory_format=torch.channels_last)
        if config.activation_checkpointing:
            self.painter.set_activation_checkpointing(True)
        self.average = AveragedModel(self.painter, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        if split:
            distributed.shard(self.average.module)
        if config.compile:
            compile_painter(self.painter, device)
        self.objective = distributed.prepare(HybridObjective(self.painter, config.objective), config.parallel, device)
        self.optimizer = build_optimizer(self.painter, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.generator = torch.Generator(device)

    @property
    def averaged(self) -> ConfiguredModule:
        """The averaged network, which is the one to validate and to keep."""
        return cast(ConfiguredModule, self.average.module)

    def learn(self, draws: Sequence[Episodes], step: int) -> dict[str, float]:
        """Take one step.

        Args:
            draws: batches of episodes of this process.
            step: 0, 1, ...

        Returns:
            `loss`, its parts `segmentation`, `image` and, where there are feature maps, `readout` (of all draws and
            processes), the gradient's `norm`, and `skipped`: 1 where the gradient was not finite, so that weights were
            left as they are.
        """
        set_learning_rate(self.optimizer, learning_rate(step, self.config))
        batches = self._with_hidden(draws, step)
        alone = len(batches) * distributed.n_processes() == 1
        totals = None if alone else Totals(*distributed.summed(
            torch.stack([measure(*batch, self.config.objective) for batch in batches]).sum(0)))
        self.objective.train()
        self.optimizer.zero_grad(set_to_none=True)
        costs = []
        numbers = draw_numbers(self.config, distributed.rank())
        for draw, batch in zip(numbers, batches, strict=True):
            # Stochastic depth draws from the global generator, which a resumed run must find in the same state.
            torch.manual_seed(step_seed(self.config.seed, 9_000_011, step, draw))
            with distributed.gradients(self.objective, exchanged=draw == numbers[-1]):
                costs.append(self._backward(batch, totals))
        loss, segmentation, image, readout = distributed.summed(torch.stack(costs).sum(0)).tolist()
        norm = self._move()
        known = {"readout": readout} if self.painter.config.maps else {}
        return {"loss": loss, "norm": norm.item(), "segmentation": segmentation, "image": image, **known,
                "skipped": float(not torch.isfinite(norm))}

    def _with_hidden(self, draws: Sequence[Episodes], step: int) -> list[tuple[Episodes, Tensor, Tensor]]:
        """Each batch with the patches that it hides."""
        patch, batches = self.painter.config.patch, []
        for draw, episodes in zip(draw_numbers(self.config, distributed.rank()), draws, strict=True):
            episodes = episodes.to(self.device)
            self.generator.manual_seed(step_seed(self.config.seed, 7_000_003, step, draw))
            n_images, patches = episodes.images.shape[1], episodes.images.shape[-1] // patch
            hidden, masked = draw_hidden(episodes.kinds, n_images, patches, self.config.objective, self.generator)
            batches.append((episodes, hidden, masked))
        return batches

    def _backward(self, batch: tuple[Episodes, Tensor, Tensor], totals: Totals | None) -> Tensor:
        """Add a batch's gradients; its loss, segmentation, image and readout cost as a vector."""
        precision = self.config.precision
        with torch.autocast(self.device.type, AUTOCAST[precision], enabled=precision != "fp32"):
            parts = self.objective(*batch, totals)
        # Processes average their gradients, while the costs of all of them add up to that of the step.
        self.scaler.scale(parts["loss"] * distributed.n_processes()).backward()
        return torch.stack([parts[name].detach() for name in ("loss", "segmentation", "image", "readout")])

    def _move(self) -> Tensor:
        """Clip the gradient and move the weights, unless it is not finite; its norm."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.painter.parameters(), self.config.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[operator]
        if torch.isfinite(norm):  # one bad batch must not poison the weights
            self.scaler.step(self.optimizer)
            self.average.update_parameters(self.painter)
        self.scaler.update()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in process 0, the same for any number of them; all must ask for it together."""
        state = {"network": self.painter.state_dict(), "average": self.average.state_dict(),
                 "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return {name: distributed.whole(part) for name, part in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, in this or another number of processes."""
        distributed.load_whole(self.painter, state["network"])
        distributed.load_whole(self.average, state["average"])
        distributed.load_whole_optimizer(self.optimizer, state["optimizer"])
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def plain_network(network: nn.Module) -> Any:
    """The network itself, if it came compiled.

    Raises:
        ValueError: it is wrapped for several processes already, or is none of this project's networks.
    """
    network = getattr(network, "_orig_mod", network)
    if isinstance(network, nn.parallel.DistributedDataParallel) or not hasattr(network, "config"):
        raise ValueError(f"a CompactPainter or VisionTransformerPainter is needed, got {type(network).__name__}: the "
                         "trainer wraps it for several processes itself (see TrainingConfig.parallel)")
    return network


def _check_abilities(painter: Any, config: TrainingConfig) -> None:
    """Refuse before the first step what would fail in it."""
    is_vit = painter.config.architecture == "vit"
    if config.activation_checkpointing and not is_vit:
        raise ValueError("activation_checkpointing needs transformer blocks, which only architecture 'vit' has: "
                         "use false")
    if is_vit and any(config.episodes.prompts[1:]):
        raise ValueError(f"architecture 'vit' takes one prompt, and episodes.prompts is {config.episodes.prompts}: "
                         "use (1.0,)")
    if config.episodes.size % painter.config.patch:
        raise ValueError(f"episodes.size {config.episodes.size} must be a multiple of the network's patch "
                         f"{painter.config.patch}")
