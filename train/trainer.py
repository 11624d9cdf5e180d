"""The training loop: head on cached embeddings, then (finetune) head and backbone on images.

Shapes: B samples of this process, K targets.
"""

import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Config
from pipeline.errors import InfinegError
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.config import Mode, TrainConfig
from train.data import Batch
from train.distributed import join_world
from train.job import Job, describe_model, open_stream, prepare_job
from train.model import save_model
from train.objective import batch_loss
from train.optim import set_learning_rates
from train.run_dir import Run, open_run, write_config
from train.run_log import Meter, RunLog

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Phase:
    """Steps in which the same parameters are trained on the same kind of input."""

    mode: Mode
    steps: range


def train(config: Config, train_config: TrainConfig, *, resume: bool = False) -> Path:
    """Trains one run and returns its folder; does nothing where the run is finished.

    Alone, or as one of the processes that torchrun started. `resume` continues after the last
    checkpoint with the very next sample. Raises ConfigError for settings that cannot work and
    InfinegError where the data set or the loss cannot be used.
    """
    with join_world() as world:
        run = open_run(config, train_config, resume=resume)
        if run.is_finished:
            _log.info("%s is finished, nothing to do", run.path)
            return run.path
        job = prepare_job(config, train_config, run.dataset, run.generation, world)
        first_step = 0
        if run.checkpoint is not None:
            load_checkpoint(run.path, run.checkpoint, module=job.trained, optimizer=job.optimizer)
            first_step = run.checkpoint.step
            _log.info("%s continues at step %s", run.path, f"{first_step:,}")
        if world.is_main:
            write_config(run, config, train_config)
        log = RunLog(
            run.path,
            first_step=first_step,
            num_steps=train_config.steps,
            batch_size=train_config.batch_size,
        )
        with log if world.is_main else nullcontext() as log_of_main:
            for phase in _phases(train_config, first_step):
                _run_phase(job, run, phase, log_of_main)
        if world.is_main:
            save_model(run.path, job.detector, describe_model(job, run.settings))
            _log.info("trained %s on %s samples", run.path, f"{train_config.num_samples:,}")
        world.barrier()
        return run.path


def _phases(train_config: TrainConfig, first_step: int) -> list[_Phase]:
    """The phases that are left at `first_step`."""
    head_stop = train_config.steps if train_config.mode == "head" else train_config.head_steps
    bounds: list[tuple[Mode, int, int]] = [
        ("head", 0, head_stop),
        ("finetune", head_stop, train_config.steps),
    ]
    phases = [_Phase(mode, range(max(start, first_step), stop)) for mode, start, stop in bounds]
    return [phase for phase in phases if phase.steps]


def _run_phase(job: Job, run: Run, phase: _Phase, log: RunLog | None) -> None:
    """The loop itself."""
    train_config = job.train_config
    model = _begin_phase(job, phase)
    meter = Meter(open_stream(job, phase.mode, phase.steps), train_config.batch_size)
    for step, batch in zip(phase.steps, meter, strict=True):
        loss, clipped_mass = train_step(job, model, batch, step)
        done = step + 1
        if done % train_config.log_every == 0 or done == phase.steps.stop:
            # Every process takes part in the sum, one writes it.
            values = {
                "loss": _finite(job.world.all_reduce_sum(loss).item() / job.world.size, step),
                "clipped_mass": clipped_mass.item(),
                "learning_rate": job.optimizer.param_groups[0]["lr"],
                **meter.read(),
            }
            if log is not None:
                log.write(step, values)
        if log is not None:
            log.advance()
        if done % train_config.checkpoint_every == 0 and done < train_config.steps:
            _save(job, run, done)


def _begin_phase(job: Job, phase: _Phase) -> nn.Module:
    """The module to call on the phase's inputs, its trained parameters thawed."""
    if phase.mode == "head":
        model: nn.Module = job.detector.head.train()
    else:
        job.detector.train_backbone()
        model = job.detector
    if job.world.size == 1:
        return model
    devices = [job.world.device] if job.world.device.type == "cuda" else None
    # Static: no gradient reaches the blocks above a penultimate layer.
    return DistributedDataParallel(model, device_ids=devices, static_graph=True)


def train_step(job: Job, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns this process's share of the loss, and the clipped mass."""
    train_config, world = job.train_config, job.world
    set_learning_rates(job.optimizer, step)
    # Noise is a function of the step too, so that a checkpoint needs no generator's state.
    noise_seed = np.random.SeedSequence((train_config.seed, step, world.rank))
    torch.manual_seed(int(noise_seed.generate_state(1)[0]))
    batch = Batch(*(tensor.to(world.device) for tensor in batch))
    with torch.autocast(world.device.type, torch.bfloat16, enabled=_uses_bf16(job)):
        logits_BK = model(batch.inputs)
    loss, clipped_mass = batch_loss(logits_BK, batch, train_config, world)
    job.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    job.optimizer.step()
    return loss.detach(), clipped_mass


def _uses_bf16(job: Job) -> bool:
    amp = job.train_config.amp
    return amp == "bf16" or (amp == "auto" and job.world.device.type == "cuda")


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise InfinegError(
            f"the loss is {loss} at step {step}; lower train.learning_rate or "
            "train.backbone_learning_rate, or set train.amp: off"
        )
    return loss


def _save(job: Job, run: Run, step: int) -> None:
    if not job.world.is_main:
        return
    checkpoint = Checkpoint(
        step=step,
        samples_seen=step * job.train_config.batch_size,
        generation=run.generation.number,
        settings=run.settings,
    )
    keep = job.train_config.keep_checkpoints
    save_checkpoint(run.path, checkpoint, module=job.trained, optimizer=job.optimizer, keep=keep)
