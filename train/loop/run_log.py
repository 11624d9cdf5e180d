"""The log of a run: lines in a file, curves for TensorBoard, progress, metrics."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TextIO, TypeVar

import torch
from pydantic import JsonValue
from torch.utils.tensorboard import SummaryWriter

from pipeline import storage
from pipeline.telemetry.metrics import Metrics
from pipeline.telemetry.progress import Progress
from train.config import TrackerConfig
from train.loop.tracking import Tracker, open_tracker

ItemT = TypeVar("ItemT")
_CPU = torch.device("cpu")
LOG_FILE = "log.jsonl"
# Logged values that are also Prometheus metrics.
_METRICS = {
    "loss": "infineg_train_loss",
    "learning_rate": "infineg_train_learning_rate",
    "samples_per_s": "infineg_train_samples_per_second",
    "data_wait": "infineg_train_data_wait_ratio",
}


@dataclass(frozen=True)
class RunLog:
    """`log.jsonl`, one line per logged step; the same in `tensorboard/`; and a progress line."""

    batch_size: int
    file: TextIO
    tensorboard: SummaryWriter
    progress: Progress
    metrics: Metrics
    tracker: Tracker | None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values measured at `step` (from 0); the curves' x axis is the samples seen by then."""
        samples_seen = (step + 1) * self.batch_size
        line = {"step": step, "samples_seen": samples_seen, **values}
        self.file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self.tensorboard.add_scalar(f"train/{name}", value, samples_seen)
        if self.tracker is not None:
            named = {f"train/{name}": value for name, value in values.items()}
            self.tracker.log(named, step=samples_seen)
        for name, metric in _METRICS.items():
            if name in values:
                self.metrics.set(metric, values[name])
        self.metrics.set("infineg_train_step", step + 1)
        if "data_wait" in values:
            self.progress.note = f"data wait {values['data_wait']:.0%}"

    def advance(self) -> None:
        """Counts one step as done."""
        self.metrics.set("infineg_train_last_step_timestamp_seconds", time.time())
        self.progress.advance(self.batch_size)


@contextmanager
def open_run_log(
    run_dir: Path,
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    tracker: TrackerConfig | None = None,
    settings: Mapping[str, JsonValue] | None = None,
    metrics: Metrics | None = None,
) -> Iterator[RunLog]:
    """Drops what an interrupted run logged at `first_step` or later: those steps run again.

    `settings` go to the tracker, if there is one; `metrics` to Prometheus.
    """
    metrics = metrics or Metrics({})
    metrics.set("infineg_train_steps_planned", num_steps)
    with ExitStack() as stack:
        tracked = stack.enter_context(open_tracker(tracker, run_dir, settings or {}))
        path = run_dir / LOG_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _is_before(line, first_step)]
        storage.write_atomic(str(path), "".join(f"{line}\n" for line in kept).encode())
        file = stack.enter_context(path.open("a", buffering=1))
        writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step * batch_size + 1)
        tensorboard = stack.enter_context(closing(writer))
        samples_left = (num_steps - first_step) * batch_size
        progress = Progress("train", total=samples_left, unit="samples")
        stack.enter_context(progress)
        yield RunLog(batch_size, file, tensorboard, progress, metrics, tracked)


class Meter(Generic[ItemT]):
    """Iterates over batches and measures their rate and how long the loop waited for them."""

    def __init__(
        self, batches: Iterator[ItemT], batch_size: int, device: torch.device = _CPU
    ) -> None:
        self._batches = batches
        self._batch_size = batch_size
        self._device = device
        self._issued: torch.cuda.Event | None = None
        self.restart()

    def __iter__(self) -> Iterator[ItemT]:
        return self

    def __next__(self) -> ItemT:
        if self._device.type == "cuda":
            self._let_device_catch_up()
        asked = time.perf_counter()
        batch = next(self._batches)
        self._waited_s += time.perf_counter() - asked
        self._num_batches += 1
        return batch

    def _let_device_catch_up(self) -> None:
        """Waits for the step before the last.

        A loop further ahead of its GPU would wait for data that the GPU does not need yet.
        """
        issued = torch.cuda.current_stream(self._device).record_event()
        if self._issued is not None:
            self._issued.synchronize()
        self._issued = issued

    def read(self) -> dict[str, float]:
        """Samples per second, and the share of time spent waiting, since the last reading."""
        elapsed_s = time.perf_counter() - self._began
        values = {
            "samples_per_s": self._num_batches * self._batch_size / elapsed_s,
            "data_wait": self._waited_s / elapsed_s,
        }
        self.restart()
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in the block is not measured."""
        paused = time.perf_counter()
        yield
        self._began += time.perf_counter() - paused

    def restart(self) -> None:
        """Forgets the time since the last reading."""
        self._began = time.perf_counter()
        self._waited_s = 0.0
        self._num_batches = 0


def _is_before(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] < step)
    except json.JSONDecodeError:  # a line that a crash cut short
        return False
