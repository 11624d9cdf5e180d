"""Agreement of all ranks between steps: the loss, non-finite steps, and whether to end.

All must come to the same conclusion at the same step, or one would wait for the others forever.
Between two syncs nothing is exchanged and no device is waited for.

Shapes: W steps since the last sync, S signals.
"""

import math
import time
from dataclasses import dataclass
from signal import Signals

import torch
from torch import Tensor

from train.distributed.signals import SIGNALS, StopRequest
from train.distributed.world import World

_SYNC_S = 1.0  # between syncs of several processes, about: how long a signal may wait


@dataclass(frozen=True)
class SyncResult:
    """The same in every process."""

    loss: float  # of the last step, over the global batch
    nonfinite_step: int | None  # the first since the last sync whose loss is not finite
    signal: Signals | None  # that a process has received


class StepSync:
    """Collects the losses between syncs; `every` is the most steps between two of them."""

    def __init__(self, world: World, request: StopRequest, *, every: int) -> None:
        self._world = world
        self._request = request
        self._every = every
        self._interval = 1  # steps between syncs: the same in all processes
        self._losses: list[Tensor] = []
        self._synced = time.monotonic()

    def note(self, loss: Tensor) -> None:
        """loss: this process's share, a scalar, of the step just done."""
        self._losses.append(loss)

    def is_due(self) -> bool:
        """Whether it is time for a sync, besides those before something is logged or saved."""
        if self._world.size == 1:
            return self._request.received is not None
        return len(self._losses) >= self._interval

    def sync(self, done: int) -> SyncResult:
        """After `done` steps; every process takes part."""
        num_steps = len(self._losses)
        now = time.monotonic()
        values = [float(self._request.received is number) for number in SIGNALS]
        values.append((now - self._synced) / num_steps)
        own = torch.cat(
            [torch.stack(self._losses), torch.tensor(values, device=self._losses[0].device)]
        )
        total = self._world.all_reduce_sum(own).tolist()
        self._losses, self._synced = [], now
        losses, flags, seconds = total[:num_steps], total[num_steps:-1], total[-1]
        step_s = max(seconds / self._world.size, 1e-6)
        self._interval = max(1, min(self._every, int(_SYNC_S / step_s)))
        nonfinite = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        return SyncResult(
            loss=losses[-1] / self._world.size,
            nonfinite_step=done - num_steps + nonfinite[0] if nonfinite else None,
            signal=next((s for s, flag in zip(SIGNALS, flags, strict=True) if flag), None),
        )
