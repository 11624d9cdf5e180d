"""AdamW over head and backbone, rates that are a pure function of the step, averaged weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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
