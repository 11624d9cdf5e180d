"""The log of a run: lines in a file, curves for TensorBoard, progress for whoever waits."""

import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from pydantic import JsonValue
from torch.utils.tensorboard import SummaryWriter

from pipeline import storage
from pipeline.dataset.keys import sha256_hex
from pipeline.errors import ConfigError
from pipeline.telemetry.metrics import Metrics
from pipeline.telemetry.progress import Progress
from train.config.settings import WandbConfig

ItemT = TypeVar("ItemT")


_CPU = torch.device("cpu")


# What of a line is also a metric.
_METRICS = {
    "loss": "infineg_train_loss",
    "learning_rate": "infineg_train_learning_rate",
    "samples_per_s": "infineg_train_samples_per_second",
    "data_wait": "infineg_train_data_wait_ratio",
}


class RunLog:
    """`log.jsonl`, a line each logged step; the same in `tensorboard/`; and a progress line.

    What an interrupted run logged at `first_step` or later is dropped: it happens again.
    `settings` are told to Weights & Biases, where that is asked for; `metrics` to Prometheus.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int,
        num_steps: int,
        batch_size: int,
        wandb: WandbConfig | None = None,
        settings: Mapping[str, JsonValue] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics({})
        self._metrics.set("infineg_train_steps_planned", num_steps)
        self._run_dir = run_dir
        self._first_step = first_step
        self._batch_size = batch_size
        samples_left = (num_steps - first_step) * batch_size
        self._progress = Progress("train", total=samples_left, unit="samples")
        self._wandb = wandb
        self._settings = dict(settings or {})

    def __enter__(self) -> Self:
        self._wandb_run = _begin_wandb(self._wandb, self._run_dir, self._settings)
        path = self._run_dir / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _is_before(line, self._first_step)]
        storage.write_atomic(str(path), "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(
            str(self._run_dir / "tensorboard"),
            purge_step=self._first_step * self._batch_size + 1,
        )
        self._progress.__enter__()
        return self

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured at `step` (from 0); the curves' x axis is the samples seen by then."""
        samples_seen = (step + 1) * self._batch_size
        line = {"step": step, "samples_seen": samples_seen, **values}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(f"train/{name}", value, samples_seen)
        if self._wandb_run is not None:
            named = {f"train/{name}": value for name, value in values.items()}
            self._wandb_run.log(named, step=samples_seen)
        for name, metric in _METRICS.items():
            if name in values:
                self._metrics.set(metric, values[name])
        self._metrics.set("infineg_train_step", step + 1)
        if "data_wait" in values:
            self._progress.note = f"data wait {values['data_wait']:.0%}"

    def advance(self) -> None:
        """Counts one step done."""
        self._metrics.set("infineg_train_last_step_timestamp_seconds", time.time())
        self._progress.advance(self._batch_size)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._tensorboard.close()
        self._file.close()
        if self._wandb_run is not None:
            self._wandb_run.finish(exit_code=0 if kind is None else 1)


class Meter(Generic[ItemT]):
    """Hands batches on, and measures how fast they go and how long they kept the loop waiting."""

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
        """Samples a second, and the share of the time spent waiting, since the last reading."""
        elapsed_s = time.perf_counter() - self._began
        values = {
            "samples_per_s": self._num_batches * self._batch_size / elapsed_s,
            "data_wait": self._waited_s / elapsed_s,
        }
        self.restart()
        return values

    def restart(self) -> None:
        """What passed since the last reading counts for nothing."""
        self._began = time.perf_counter()
        self._waited_s = 0.0
        self._num_batches = 0


def _begin_wandb(
    wandb: WandbConfig | None, run_dir: Path, settings: dict[str, JsonValue]
) -> Any | None:
    """A resumed run goes on under the same id, made of the folder's path."""
    if wandb is None:
        return None
    if wandb.mode == "offline":
        # Errors of its own it would report to its makers, online or not.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        module = importlib.import_module("wandb")
    except ImportError:
        raise ConfigError("train.wandb: wandb is not installed; pip install wandb") from None
    return module.init(
        project=wandb.project,
        name=wandb.name or run_dir.name,
        id=sha256_hex(str(run_dir.resolve()).encode())[:16],
        resume="allow",
        dir=str(run_dir),
        mode=wandb.mode,
        config=settings,
    )


def _is_before(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] < step)
    except json.JSONDecodeError:  # the line that a crash cut short
        return False
