"""The same training on a Ray cluster, by Ray Train: one process per worker, restarted on failure.

Ray carries nothing between attempts. The run's own folder, which all machines reach, holds the
checkpoints, and every attempt resumes from the last one.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.cluster.ray_data import open_ray
from pipeline.config.build import BuildConfig
from pipeline.config.schema import Config
from pipeline.errors import ConfigError, InfinegError
from pipeline.telemetry.heartbeat import doing
from train.config import TrainConfig
from train.distributed.world import LostProcess, World
from train.loop.run_dir import GenerationSwitch, open_run
from train.loop.run_log import LOG_FILE
from train.loop.trainer import train

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # read when Ray Train is imported

import ray
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

_log = logging.getLogger(__name__)
_LINE_BYTES = 2000  # more than a line of the log


@dataclass(frozen=True)
class Workers:
    """At least `min` and at most `max`: as many as the cluster has room for."""

    min: int
    max: int

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}:{self.max}"


def parse_workers(text: str) -> Workers:
    """`--num-workers`: 8, or 2:8."""
    first, _, last = text.partition(":")
    try:
        workers = Workers(int(first), int(last or first))
    except ValueError:
        workers = Workers(0, 0)
    if not 1 <= workers.min <= workers.max:
        raise ConfigError(f"--num-workers: {text!r}; give a number from 1, or MIN:MAX")
    return workers


def train_on_ray(
    config: Config,
    train_config: TrainConfig,
    *,
    workers: Workers | None,
    max_restarts: int,
    address: str | None = None,
    resume: bool = False,
    generation: GenerationSwitch = None,
) -> Path:
    """`train` in the workers of a cluster; default one worker per GPU, or one without GPUs.

    Raises ConfigError before anything starts if settings cannot work, and InfinegError if the run
    fails too often, or in a way that a restart cannot fix.
    """
    _check_shares(train_config, workers)
    config, train_config = _with_absolute_paths(config, train_config)
    # Refused here, and not in workers, which Ray would restart again and again.
    found = open_run(config, train_config, World.alone(), resume=resume, wanted=generation)
    if found.is_finished:
        _log.info("%s is finished, nothing to do", found.path)
        return found.path
    address = address or ("auto" if os.environ.get("RAY_ADDRESS") else None)
    with open_ray(BuildConfig(address=address, workers=workers.max if workers else None)):
        folder = found.path / "ray" / f"{time.time_ns()}"  # Ray's own records of this launch
        task = {
            "config": config.model_dump_json(),
            "train": train_config.model_dump_json(),
            "generation": generation,
            "verdict": str(folder / "verdict"),
        }
        with doing(_progress(found.path / LOG_FILE, train_config)):
            _fit(task, _scaling(train_config, workers), train_config, folder, max_restarts)
        verdict = folder / "verdict"
        if verdict.exists():
            kind, _, message = verdict.read_text().partition("\n")
            raise (ConfigError if kind == ConfigError.__name__ else InfinegError)(message)
    return found.path


def _fit(
    task: dict[str, Any],
    scaling: ScalingConfig,
    train_config: TrainConfig,
    folder: Path,
    max_restarts: int,
) -> None:
    is_debug = _log.isEnabledFor(logging.DEBUG)
    # Ray's types know only the older RunConfig.
    run_config: Any = RunConfig(
        name=folder.name,
        storage_path=str(folder.parent),
        failure_config=FailureConfig(max_failures=max_restarts),
        logging_config=LoggingConfig(log_level="DEBUG" if is_debug else "ERROR"),
    )
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=task,
        torch_config=TorchConfig(timeout_s=int(train_config.timeout_s)),
        scaling_config=scaling,
        run_config=run_config,
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise InfinegError(
            f"Ray Train gave up after {max_restarts} restarts (--max-restarts): {reason}. The same "
            "command with --resume continues from the last checkpoint; --debug shows all of it"
        ) from error


def _progress(log: Path, train_config: TrainConfig) -> Callable[[], str]:
    """What is going on in the workers, whose own lines Ray keeps: by the log that they write."""
    num_samples = train_config.steps * train_config.batch_size
    began = time.time()

    def describe() -> str:
        try:
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - _LINE_BYTES))
                last = json.loads(file.read().splitlines()[-1])
            silent_s = time.time() - max(began, log.stat().st_mtime)
        except (OSError, ValueError, IndexError):
            last, silent_s = {"samples_seen": 0}, time.time() - began
        waits = f", none for {silent_s:.0f} s: Ray Train starts workers" if silent_s > 5 else ""
        return f"train: {last['samples_seen']:,} of {num_samples:,} samples{waits}"

    return describe


def _train_worker(task: dict[str, Any]) -> None:
    """In a worker of Ray Train. What a restart cannot fix is a verdict, not an error."""
    try:
        train(
            Config.model_validate_json(task["config"]),
            TrainConfig.model_validate_json(task["train"]),
            resume=True,
            generation=task["generation"],
        )
    except LostProcess:
        raise
    except InfinegError as error:
        storage.write_atomic(task["verdict"], f"{type(error).__name__}\n{error}".encode())


def _scaling(train_config: TrainConfig, workers: Workers | None) -> ScalingConfig:
    resources: Any = ray.cluster_resources
    has = resources()
    num_gpus = int(has.get("GPU", 0)) if train_config.device != "cpu" else 0
    workers = workers or Workers(max(1, num_gpus), max(1, num_gpus))
    cpus = max(1, int(has.get("CPU", 1)) // workers.max)
    _log.info(
        "Ray Train: %s workers, each with %s",
        workers, "a GPU" if num_gpus else f"{cpus} of {int(has.get('CPU', 0))} CPUs",
    )  # fmt: skip
    return ScalingConfig(
        num_workers=workers.min if workers.min == workers.max else (workers.min, workers.max),
        use_gpu=num_gpus > 0,
        resources_per_worker=None if num_gpus else {"CPU": cpus},
    )


def _check_shares(train_config: TrainConfig, workers: Workers | None) -> None:
    for size in range(workers.min, workers.max + 1) if workers else ():
        if train_config.batch_size % size:
            raise ConfigError(
                f"--num-workers {workers}: train.batch_size {train_config.batch_size} must be a "
                f"multiple of every possible number of workers, and is not of {size}"
            )


def _with_absolute_paths(config: Config, train_config: TrainConfig) -> tuple[Config, TrainConfig]:
    """Workers start in folders of their own, in which relative paths lead elsewhere."""
    run = str(Path(train_config.run).absolute())
    root = config.output.path
    if "://" not in root:
        root = str(Path(root).absolute())
    output = config.output.model_copy(update={"path": root})
    return (
        config.model_copy(update={"output": output}),
        train_config.model_copy(update={"run": run}),
    )
