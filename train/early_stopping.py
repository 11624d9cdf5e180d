"""When to stop, and which step was best: a small state that a checkpoint carries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from train.config.settings import Metric

_PREFIX = "early_stopping."


@dataclass(frozen=True)
class Watch:
    """The best look so far. `value` is of the metric, nan before the first look."""

    step: int = 0  # optimizer steps done at the best look
    value: float = math.nan
    num_worse: int = 0  # looks since

    def after(self, step: int, value: float, metric: Metric) -> "Watch":
        """What a look says. An equal value is no better one."""
        is_better = value < self.value if metric == "val_loss" else value > self.value
        if is_better or math.isnan(self.value):
            return Watch(step, value)
        return Watch(self.step, self.value, self.num_worse + 1)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {
            _PREFIX + name: torch.tensor(float(value), dtype=torch.float64)
            for name, value in vars(self).items()
        }

    @staticmethod
    def of_state(state: Mapping[str, Tensor]) -> "Watch":
        """As `state` gave it; a new one where there is none."""
        if _PREFIX + "step" not in state:
            return Watch()
        step, value, num_worse = (
            state[_PREFIX + name].item() for name in ("step", "value", "num_worse")
        )
        return Watch(int(step), value, int(num_worse))
