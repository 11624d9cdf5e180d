"""When to stop, and which step was best: a small state that a checkpoint carries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

_PREFIX = "early_stopping."

Metric = Literal["val_loss", "val_auroc", "val_average_precision", "val_tpr_at_fpr"]


class EarlyStopping(BaseModel, frozen=True, extra="forbid"):
    """Looks at the val split now and then; the best weights by `metric` become the model.

    Of several targets the mean counts. Negatives weigh 1 / inclusion_probability.
    """

    metric: Metric = "val_auroc"  # val_loss: the lower, the others: the higher, the better
    every: int = Field(100, ge=1)  # optimizer steps between looks; the last step is looked at, too
    patience: int = Field(5, ge=1)  # looks without a better value after which training ends
    fpr: float = Field(0.01, gt=0, lt=1)  # of val_tpr_at_fpr: the false-positive rate allowed


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
