"""The training loop: head on cached embeddings, then (finetune) head and backbone on images.

Shapes: B samples of this process, K targets.
"""

import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Config
from pipeline.errors import InfinegError
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.config import Mode, TrainConfig
from train.describe import describe_model
from train.device import on_device
from train.distributed import join_world
from train.early_stopping import Watch
from train.job import Job, open_stream, prepare_job
from train.learning import stages_of
from train.model import save_model
from train.optim import restore_update_state, update_state
from train.run_dir import Run, open_run, write_config
from train.run_log import Meter, RunLog
from train.step import StepResult, train_step
from train.validation import Validation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Phase:
    """Steps in which the same parameters are trained on the same kind of input."""

    mode: Mode
    steps: range
    num_open: int  # of the backbone's last groups
    image_size: int  # pixels


def train(
    config: Config,
    train_config: TrainConfig,
    *,
    resume: bool = False,
    generation: int | Literal["latest"] | None = None,
) -> Path:
    """Trains one run and returns its folder; does nothing where the run is finished.

    Alone, or as one of the processes that torchrun started. `resume` continues after the last
    checkpoint with the very next sample; with a newer `generation`, it goes on with its rows.
    Raises ConfigError for settings that cannot work and InfinegError where the data set or the
    loss cannot be used.
    """
    with join_world(train_config.device) as world:
        run = open_run(config, train_config, world, resume=resume, adopt=generation)
        if run.is_finished:
            _log.info("%s is finished, nothing to do", run.path)
            return run.path
        job = prepare_job(
            config, train_config, run.dataset, run.generation, world,
            segments=run.segments,
            first_step=0 if run.checkpoint is None else run.checkpoint.step,
        )  # fmt: skip
        first_step, extra = _restore(job, run)
        validation = None
        if train_config.early_stopping is not None:
            watch = Watch.of_state(extra)
            validation = Validation(job, train_config.early_stopping, run.path, watch)
        if world.is_main:
            write_config(run, config, train_config)
        log = RunLog(
            run.path,
            first_step=first_step,
            num_steps=train_config.steps,
            batch_size=train_config.batch_size,
            wandb=train_config.wandb,
            settings=run.settings,
        )
        with log if world.is_main else nullcontext() as log_of_main:
            for phase in _phases(job, first_step):
                if validation is None or not validation.is_over:
                    _run_phase(job, run, phase, log_of_main, validation)
        if world.is_main:
            _export(job, run, validation)
        world.barrier()
        return run.path


def _phases(job: Job, first_step: int) -> list[_Phase]:
    """The phases that are left at `first_step`."""
    train_config = job.train_config
    size = job.detector.encoder.preprocessing.image_size
    is_head = train_config.mode == "head"
    head_stop = train_config.steps if is_head else train_config.head_steps
    phases = [_Phase("head", range(head_stop), num_open=0, image_size=size)]
    if not is_head:
        phases += [
            _Phase("finetune", stage.steps, stage.num_open, stage.image_size)
            for stage in stages_of(job.detector, train_config)
        ]
    left = [
        replace(phase, steps=range(max(phase.steps.start, first_step), phase.steps.stop))
        for phase in phases
    ]
    return [phase for phase in left if phase.steps]


def _run_phase(
    job: Job, run: Run, phase: _Phase, log: RunLog | None, validation: Validation | None
) -> None:
    """The loop itself. Ends early where validation says so."""
    train_config = job.train_config
    model = _begin_phase(job, phase)
    device = job.world.device
    batches = open_stream(job, phase.mode, phase.steps, image_size=phase.image_size)
    meter = Meter(on_device(batches, device), train_config.batch_size, device)
    for step, batch in zip(phase.steps, meter, strict=True):
        result = train_step(job, model, batch, step)
        done = step + 1
        looks = validation is not None and validation.is_due(done)
        if looks or done % train_config.log_every == 0 or done == phase.steps.stop:
            values = {**_measured(job, result, step), **meter.read()}
            if validation is not None and looks:
                values |= validation.look(done, phase.mode)
                meter.restart()
            if log is not None:
                log.write(step, values)
        if log is not None:
            log.advance()
        if validation is not None and validation.is_over:
            return
        if done % train_config.checkpoint_every == 0 and done < train_config.steps:
            _save(job, run, done, validation)


def _begin_phase(job: Job, phase: _Phase) -> nn.Module:
    """The module to call on the phase's inputs, its trained parameters thawed."""
    if phase.mode == "head":
        model: nn.Module = job.detector.head.train()
    else:
        job.detector.train_backbone(phase.num_open)
        model = job.detector
    if job.train_config.compile:
        model.compile()
    if job.world.size == 1:
        return model
    devices = [job.world.device] if job.world.device.type == "cuda" else None
    # No gradient reaches the blocks above a penultimate layer. A static graph finds that out once,
    # but does not go with gradients that are held back (torch 2.14 stops by an assertion).
    is_static = job.train_config.accumulate == 1
    has_unused = job.config.encoder.layer == "penultimate" and not is_static
    return DistributedDataParallel(
        model, device_ids=devices, static_graph=is_static, find_unused_parameters=has_unused
    )


def _measured(job: Job, result: StepResult, step: int) -> dict[str, float]:
    """Every process takes part in the sum, one writes it."""
    loss = job.world.all_reduce_sum(result.loss).item() / job.world.size
    values = {
        "loss": _finite(loss, step),
        "clipped_mass": result.clipped_mass.item(),
        "learning_rate": job.optimizer.param_groups[0]["lr"],
    }
    if result.grad_norm is not None:
        values["grad_norm"] = result.grad_norm.item()
    if job.scaler.is_enabled():
        values["loss_scale"] = job.scaler.get_scale()
    return values


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise InfinegError(
            f"the loss is {loss} at step {step}; lower train.learning_rate or "
            "train.backbone_learning_rate, or set train.amp: off"
        )
    return loss


def _save(job: Job, run: Run, step: int, validation: Validation | None) -> None:
    if not job.world.is_main:
        return
    checkpoint = Checkpoint(
        step=step,
        samples_seen=step * job.train_config.batch_size,
        generation=run.generation.number,
        settings=run.settings,
        segments=job.segments,
    )
    extra = update_state(job.scaler, job.average)
    if validation is not None:
        extra |= validation.watch.state()
    save_checkpoint(
        run.path,
        checkpoint,
        module=job.trained,
        optimizer=job.optimizer,
        extra=extra,
        keep=job.train_config.keep_checkpoints,
    )


def _restore(job: Job, run: Run) -> tuple[int, dict[str, Tensor]]:
    """Back to the last checkpoint, if any: steps done, and what validation has seen."""
    if run.checkpoint is None:
        return 0, {}
    extra = load_checkpoint(run.path, run.checkpoint, module=job.trained, optimizer=job.optimizer)
    restore_update_state(job.scaler, job.average, extra)
    _log.info("%s continues at step %s", run.path, f"{run.checkpoint.step:,}")
    return run.checkpoint.step, extra


def _export(job: Job, run: Run, validation: Validation | None) -> None:
    """The best weights, or the last ones; their average where there is one."""
    steps = job.train_config.steps
    if validation is None:
        job.trained.load_state_dict(job.evaluated.state_dict())
    else:
        validation.load_best()
        steps = validation.watch.step
    save_model(run.path, job.detector, describe_model(job, run.settings, steps=steps))
    samples = steps * job.train_config.batch_size
    _log.info("trained %s on %s samples", run.path, f"{samples:,}")
