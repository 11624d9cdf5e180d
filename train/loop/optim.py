"""AdamW over head and backbone, rates that are a pure function of the step, averaged weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from train.config.settings import TrainConfig
from train.model.detector import DetectorModel
from train.model.groups import Stage, backbone_groups

_Tensors = tuple[Tensor, ...] | list[Tensor]


_AVERAGE, _SCALER = "average.", "scaler."


@dataclass(frozen=True)
class Schedule:
    """Linear rise over `warmup` steps from step `first`, then half a cosine down to 0 at `last`."""

    peak: float  # learning rate
    first: int
    warmup: int
    last: int

    def learning_rate(self, step: int) -> float:
        """The rate at `step`; 0 before `first`."""
        if step < self.first:
            return 0.0
        since = step - self.first
        if since < self.warmup:
            return self.peak * (since + 1) / (self.warmup + 1)
        progress = (since - self.warmup) / max(1, self.last - self.first - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(
    parts: Iterable[tuple[Iterable[nn.Parameter], Schedule]], *, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with two groups a part: matrices decay, biases and norms (one-dimensional) do not."""
    groups = []
    for members, schedule in parts:
        parameters = list(members)
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        plain = [parameter for parameter in parameters if parameter.ndim <= 1]
        for of_group, decay in ((decayed, weight_decay), (plain, 0.0)):
            groups.append({"params": of_group, "weight_decay": decay, "schedule": schedule})
    # Fused: a head on cached embeddings is bound by this update (3 times faster on one core).
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets each group's rate to that of its schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["schedule"].learning_rate(step)


def average_of(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a module's weights (Polyak and Juditsky 1992).

    After n updates it keeps min(decay, (1 + n) / (10 + n)) of itself: the first weights, which are
    random, would else be a third of it after 1,000 steps at 0.999.
    """

    def update(averaged: _Tensors, current: _Tensors, _: Tensor | int) -> None:
        num = int(average.n_averaged)  # the argument is a copy on the device, slow to wait for
        kept = min(decay, (1 + num) / (10 + num))
        torch._foreach_lerp_(averaged, current, 1 - kept)

    average = AveragedModel(module, multi_avg_fn=update)
    return average


def update_state(scaler: torch.amp.GradScaler, average: AveragedModel | None) -> dict[str, Tensor]:
    """What a checkpoint carries beside weights and optimizer."""
    state = {}
    if scaler.is_enabled():
        numbers = scaler.state_dict()
        state = {
            f"{_SCALER}{name}": torch.tensor(float(numbers[name]), dtype=torch.float64)
            for name in ("scale", "_growth_tracker")
        }
    if average is not None:
        state |= {_AVERAGE + name: tensor for name, tensor in average.state_dict().items()}
    return state


def restore_update_state(
    scaler: torch.amp.GradScaler, average: AveragedModel | None, state: Mapping[str, Tensor]
) -> None:
    """Brings both to where `update_state` saw them."""
    if scaler.is_enabled():
        scale = state[f"{_SCALER}scale"].item()
        tracker = int(state[f"{_SCALER}_growth_tracker"].item())
        numbers = {"scale": scale, "_growth_tracker": tracker}
        scaler.load_state_dict(scaler.state_dict() | numbers)
    if average is not None:
        mine = {k.removeprefix(_AVERAGE): v for k, v in state.items() if k.startswith(_AVERAGE)}
        average.load_state_dict(mine)


def trained_part(detector: DetectorModel, train_config: TrainConfig) -> nn.Module:
    """The module that learns, and that checkpoints carry."""
    return detector.head if train_config.mode == "head" else detector


def optimizer_of(detector: DetectorModel, train_config: TrainConfig) -> torch.optim.AdamW:
    warmup, last = train_config.warmup_steps, train_config.steps
    parts: list[tuple[Iterable[nn.Parameter], Schedule]] = [
        (detector.head.parameters(), Schedule(train_config.learning_rate, 0, warmup, last))
    ]
    if train_config.mode == "finetune":
        groups = backbone_groups(detector.encoder.backbone)
        opening_steps = _opening_steps(detector, train_config)
        for index, (group, first) in enumerate(zip(groups, opening_steps, strict=True)):
            num_behind = len(groups) - 1 - index
            rate = train_config.backbone_learning_rate
            rate *= train_config.finetuning.layer_decay**num_behind
            parts.append((group, Schedule(rate, first, warmup, last)))
    return make_optimizer(parts, weight_decay=train_config.weight_decay)


def _opening_steps(detector: DetectorModel, train_config: TrainConfig) -> list[int]:
    return train_config.finetuning.opening_steps(
        len(backbone_groups(detector.encoder.backbone)),
        first=train_config.head_steps,
        never=train_config.steps,
    )


def average_of_weights(detector: DetectorModel, train_config: TrainConfig) -> AveragedModel | None:
    if train_config.ema_decay is None:
        return None
    return average_of(trained_part(detector, train_config), train_config.ema_decay)


def stages_of(detector: DetectorModel, train_config: TrainConfig) -> list[Stage]:
    """Of the steps on images."""
    return train_config.finetuning.stages(
        _opening_steps(detector, train_config),
        range(train_config.head_steps, train_config.steps),
        image_size=detector.encoder.preprocessing.image_size,
    )
