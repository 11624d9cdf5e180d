"""AdamW over head and backbone, rates that are a pure function of the step, averaged weights."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from train.config import TrainConfig
from train.loop.phases import opening_steps
from train.model.detector import DetectorModel, Head
from train.model.groups import backbone_groups

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


def trained_part(detector: DetectorModel, train_config: TrainConfig) -> nn.Module:
    """The module that learns: the head, or all of it."""
    return detector.head if train_config.mode == "head" else detector


def make_optimizer(
    detector: DetectorModel, train_config: TrainConfig, *, num_rows: int
) -> torch.optim.AdamW:
    """AdamW with two groups for each part: matrices decay; biases and norms do not.

    A linear head decays by an L2 penalty in its loss, which converges to the same weights whatever
    the rates, as decoupled decay does not.

    Not timm's param_groups_layer_decay: it needs a group_matcher, which torchvision's networks
    lack, and each group here has a schedule of its own.
    """
    decay, groups = train_config.weight_decay, []
    if train_config.is_logistic:
        decay = _penalty(detector.head, train_config, num_rows)
    for parameters, schedule in _scheduled_parts(detector, train_config):
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        plain = [parameter for parameter in parameters if parameter.ndim <= 1]
        for members, factor in ((decayed, decay), (plain, 0.0)):
            groups.append({
                "params": members, "weight_decay": factor, "schedule": schedule,
                "decoupled_weight_decay": not train_config.is_logistic,
            })  # fmt: skip
    # Fused: a head on cached embeddings is bound by this update (3 times faster on one core).
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def _penalty(head: Head, train_config: TrainConfig, num_rows: int) -> float:
    """What a weight of a linear head adds to its gradient, in units of the weight.

    A logistic regression minimises |w|^2 / 2 + C * (sum of n losses) on features of norm 1. Here
    the features have norm sqrt(D), and a head's share of the loss is its mean over the columns.
    """
    (dim,), num_folds = head.norm.normalized_shape, train_config.folds
    num_seen = num_rows * (1 - 1 / num_folds) if num_folds > 1 else num_rows
    return train_config.weight_decay * dim / num_seen / (num_folds * head.num_targets)


def _scheduled_parts(
    detector: DetectorModel, train_config: TrainConfig
) -> Iterator[tuple[list[nn.Parameter], Schedule]]:
    """The head, then in finetune the groups of the backbone, with rates that decay by depth."""
    warmup, last = train_config.warmup_steps, train_config.steps
    head = list(detector.head.parameters())
    yield head, Schedule(train_config.learning_rate, 0, warmup, last)
    if train_config.mode == "head":
        return
    groups = backbone_groups(detector.encoder.backbone)
    openings = opening_steps(len(groups), train_config)
    for index, (group, first) in enumerate(zip(groups, openings, strict=True)):
        num_behind = len(groups) - 1 - index
        decay = train_config.finetuning.layer_decay**num_behind
        rate = train_config.backbone_learning_rate * decay
        yield group, Schedule(rate, first, warmup, last)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets each group's rate to that of its schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["schedule"].learning_rate(step)


def average_weights(detector: DetectorModel, train_config: TrainConfig) -> AveragedModel | None:
    """The moving average of `ema_decay`, if any."""
    if train_config.ema_decay is None:
        return None
    return average_of(trained_part(detector, train_config), train_config.ema_decay)


def average_of(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a module's weights (Polyak and Juditsky 1992).

    After n updates it keeps min(decay, (1 + n) / (10 + n)) of itself: otherwise the first weights,
    which are random, would be a third of it after 1,000 steps at 0.999.
    """

    def update(averaged: _Tensors, current: _Tensors, _: Tensor | int) -> None:
        num = int(average.n_averaged)  # the argument is a copy on the device, slow to wait for
        kept = min(decay, (1 + num) / (10 + num))
        torch._foreach_lerp_(averaged, current, 1 - kept)

    average = AveragedModel(module, multi_avg_fn=update)
    return average


def update_state(scaler: torch.amp.GradScaler, average: AveragedModel | None) -> dict[str, Tensor]:
    """What a checkpoint holds besides weights and optimizer."""
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
    """Restores what `update_state` returned."""
    if scaler.is_enabled():
        scale = state[f"{_SCALER}scale"].item()
        tracker = int(state[f"{_SCALER}_growth_tracker"].item())
        numbers = {"scale": scale, "_growth_tracker": tracker}
        scaler.load_state_dict(scaler.state_dict() | numbers)
    if average is not None:
        own = {k.removeprefix(_AVERAGE): v for k, v in state.items() if k.startswith(_AVERAGE)}
        average.load_state_dict(own)
