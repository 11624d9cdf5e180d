"""What the processes of a run find out together between steps: its loss, and whether to end.

All of them must come to the same conclusion at the same step, or one would wait for the others
for ever. Between two looks nothing is exchanged and no device is waited for.

Shapes: W steps since the last look, S signals.
"""

import math
import time
from dataclasses import dataclass
from signal import Signals

import torch
from torch import Tensor

from train.distributed.signals import SIGNALS, StopRequest
from train.distributed.world import World

_LOOK_S = 1.0  # between looks of several processes, about: how long a signal may wait for an answer


@dataclass(frozen=True)
class SyncResult:
    """The same in every process."""

    loss: float  # of the last step, over the global batch
    broken_step: int | None  # the first since the last look whose loss is no number
    signal: Signals | None  # that a process has received


class StepSync:
    """Losses since the last look, by step; `every` is the most steps between two looks."""

    def __init__(self, world: World, request: StopRequest, *, every: int) -> None:
        self._world = world
        self._request = request
        self._every = every
        self._interval = 1  # steps between looks: the same in all processes
        self._losses: list[Tensor] = []
        self._looked = time.monotonic()

    def note(self, loss: Tensor) -> None:
        """loss: this process's share, a scalar, of the step that is done."""
        self._losses.append(loss)

    def is_due(self) -> bool:
        """Whether it is time to look, besides whenever something is to be logged or saved."""
        if self._world.size == 1:
            return self._request.received is not None
        return len(self._losses) >= self._interval

    def look(self, done: int) -> SyncResult:
        """After `done` steps; every process takes part."""
        num_steps = len(self._losses)
        now = time.monotonic()
        facts = [float(self._request.received is number) for number in SIGNALS]
        facts.append((now - self._looked) / num_steps)
        mine = torch.cat(
            [torch.stack(self._losses), torch.tensor(facts, device=self._losses[0].device)]
        )
        total = self._world.all_reduce_sum(mine).tolist()
        self._losses, self._looked = [], now
        losses, flags, seconds = total[:num_steps], total[num_steps:-1], total[-1]
        step_s = max(seconds / self._world.size, 1e-6)
        self._interval = max(1, min(self._every, int(_LOOK_S / step_s)))
        broken = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        return SyncResult(
            loss=losses[-1] / self._world.size,
            broken_step=done - num_steps + broken[0] if broken else None,
            signal=next((s for s, flag in zip(SIGNALS, flags, strict=True) if flag), None),
        )
