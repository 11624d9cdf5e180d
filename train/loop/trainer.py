"""The training loop: head on cached embeddings, then (finetune) head and backbone on images.

Shapes: B samples of this process, K targets.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.schema import Config
from pipeline.errors import InfinegError
from pipeline.telemetry.metrics import TRAIN_METRICS, Metrics, serve_metrics
from train.config.settings import Mode, TrainConfig
from train.data.batches import Batch
from train.data.device import on_device
from train.distributed.fsdp import full_tensor
from train.distributed.signals import RunStopped, stop_on_signals
from train.distributed.sync import StepSync
from train.distributed.world import compute_deterministically, is_restart, join_world
from train.loop.checkpoint import Checkpoint, Saver, find_checkpoint, load_checkpoint, snapshot
from train.loop.job import Job, open_stream, prepare_job
from train.loop.nonfinite import has_nonfinite_weights, nonfinite_loss_error
from train.loop.optim import restore_update_state, stages_of, update_state
from train.loop.run_dir import Run, describe_model, open_run, write_config
from train.loop.run_log import Meter, RunLog
from train.loop.step import StepResult, train_step
from train.loop.validation import BestSoFar, Validation
from train.model.detector import save_model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Phase:
    """Steps in which the same parameters are trained on the same kind of input."""

    mode: Mode
    steps: range
    num_open: int  # of the backbone's last groups
    image_size: int  # pixels


@dataclass(frozen=True)
class _Session:
    """A run under way, which its phases share."""

    job: Job
    run: Run
    log: RunLog | None  # of the main process, as the saver
    saver: Saver | None
    validation: Validation | None
    lockstep: StepSync


def train(
    config: Config,
    train_config: TrainConfig,
    *,
    resume: bool = False,
    generation: int | Literal["latest"] | None = None,
) -> Path:
    """Trains one run and returns its folder; does nothing where the run is finished.

    Alone, or as one of the processes that torchrun started. `resume` continues after the last
    checkpoint with the very next sample, as do processes that torchrun started again; with a
    newer `generation`, it goes on with its rows.
    Raises ConfigError for settings that cannot work, InfinegError where the data set or the loss
    cannot be used, and RunStopped after a signal, once a checkpoint is saved.
    """
    if train_config.deterministic:
        compute_deterministically()
    with join_world(train_config.device, timeout_s=train_config.timeout_s) as world:
        resume = world.any(resume or is_restart())
        run = open_run(config, train_config, world, resume=resume, wanted=generation)
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
            watch = BestSoFar.of_state(extra)
            validation = Validation(job, train_config.early_stopping, run.path, watch)
        with ExitStack() as stack:
            log = saver = None
            if world.is_main:
                write_config(run, config, train_config)
                served = serve_metrics(TRAIN_METRICS, train_config.metrics, "train.metrics.port")
                metrics = stack.enter_context(served)
                log = stack.enter_context(_open_log(run, train_config, first_step, metrics))
                saver = stack.enter_context(Saver(run.path, keep=train_config.keep_checkpoints))
            request = stack.enter_context(stop_on_signals())
            lockstep = StepSync(world, request, every=train_config.log_every)
            session = _Session(job, run, log, saver, validation, lockstep)
            for phase in _phases(job, first_step):
                if validation is None or not validation.is_over:
                    _run_phase(session, phase)
        _export(job, run, validation)
        world.barrier()
        return run.path


def _open_log(run: Run, train_config: TrainConfig, first_step: int, metrics: Metrics) -> RunLog:
    return RunLog(
        run.path,
        first_step=first_step,
        num_steps=train_config.steps,
        batch_size=train_config.batch_size,
        wandb=train_config.wandb,
        settings=run.settings,
        metrics=metrics,
    )


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


def _run_phase(session: _Session, phase: _Phase) -> None:
    """The loop itself. Ends early where validation says so; raises RunStopped after a signal."""
    job = session.job
    train_config, device = job.train_config, job.world.device
    if session.saver is not None:
        session.saver.wait()  # no thread of ours runs where loader processes are forked
    model = _begin_phase(job, phase)
    batches = open_stream(job, phase.mode, phase.steps, image_size=phase.image_size)
    meter = Meter(on_device(batches, device), train_config.batch_size, device)
    for step, batch in zip(phase.steps, meter, strict=True):
        result = train_step(job, model, batch, step)
        session.lockstep.note(result.loss)
        received = _sync_and_log(session, phase, step, result, meter)
        if session.log is not None:
            session.log.advance()
        if session.validation is not None and session.validation.is_over:
            return
        if step + 1 < train_config.steps:
            _checkpoint_or_stop(session, phase, step, received)


def _sync_and_log(
    session: _Session, phase: _Phase, step: int, result: StepResult, meter: Meter[Batch]
) -> Signals | None:
    """What is logged after a step, if anything; and the signal that ends the run.

    Raises InfinegError where the loss of this step, or of one before it, is no number.
    """
    job, validation, done = session.job, session.validation, step + 1
    validates = validation is not None and validation.is_due(done)
    logs = validates or done % job.train_config.log_every == 0 or done == phase.steps.stop
    if not (logs or done % job.train_config.checkpoint_every == 0 or session.lockstep.is_due()):
        return None
    look = session.lockstep.look(done)
    if look.broken_step is not None:
        raise _broken(session, phase, look.broken_step)
    if logs:
        values = {**_log_values(job, result, look.loss), **meter.read()}
        if validation is not None and validates:
            values |= validation.look(done, phase.mode)
            meter.restart()
        if session.log is not None:
            session.log.write(step, values)
    return look.signal


def _checkpoint_or_stop(
    session: _Session, phase: _Phase, step: int, received: Signals | None
) -> None:
    """A checkpoint where one is due, or where the run ends by a signal, which raises RunStopped."""
    job, done = session.job, step + 1
    if received is None and done % job.train_config.checkpoint_every != 0:
        return
    if has_nonfinite_weights(job):
        raise _broken(session, phase, step)
    if session.saver is not None or job.is_sharded:
        _save(session, done)
    if received is not None:
        raise _stopped(session, done, received)


def _broken(session: _Session, phase: _Phase, step: int) -> InfinegError:
    return nonfinite_loss_error(
        session.job, session.run.path, step, mode=phase.mode, image_size=phase.image_size
    )


def _stopped(session: _Session, done: int, received: Signals) -> RunStopped:
    if session.saver is not None:
        session.saver.wait()
    last = find_checkpoint(session.run.path)
    kept = "nothing could be saved" if last is None else f"saved at step {last.step:,}"
    where = f"{received.name} after step {done:,} of {session.run.path}"
    return RunStopped(f"{where}: {kept}; --resume goes on there", received)


def _begin_phase(job: Job, phase: _Phase) -> nn.Module:
    """The module to call on the phase's inputs, its trained parameters thawed."""
    if phase.mode == "head":
        model: nn.Module = job.detector.head.train()
    else:
        job.detector.train_backbone(phase.num_open)
        model = job.detector
    if job.train_config.compile:
        model.compile()
    if job.world.size == 1 or (job.is_sharded and phase.mode == "finetune"):
        return model
    devices = [job.world.device] if job.world.device.type == "cuda" else None
    # No gradient reaches the blocks above a penultimate layer. A static graph finds that out once,
    # but does not go with gradients that are held back (torch 2.14 stops by an assertion).
    is_static = job.train_config.accumulate == 1
    has_unused = job.config.encoder.layer == "penultimate" and not is_static
    return DistributedDataParallel(
        model, device_ids=devices, static_graph=is_static, find_unused_parameters=has_unused
    )


def _log_values(job: Job, result: StepResult, loss: float) -> dict[str, float]:
    values = {
        "loss": loss,
        "clipped_mass": result.clipped_mass.item(),
        "learning_rate": job.optimizer.param_groups[0]["lr"],
    }
    if result.grad_norm is not None:
        values["grad_norm"] = result.grad_norm.item()
    if job.scaler.is_enabled():
        values["loss_scale"] = job.scaler.get_scale()
    return values


def _save(session: _Session, step: int) -> None:
    """By the main process; of a split model all bring their parts."""
    job, run, validation = session.job, session.run, session.validation
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
    tensors = snapshot(job.trained, job.optimizer, extra)
    if session.saver is not None:
        session.saver.save(checkpoint, tensors)


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
    weights = {k: full_tensor(tensor) for k, tensor in job.detector.state_dict().items()}
    if not job.world.is_main:
        return
    save_model(run.path, weights, describe_model(job, run.settings, steps=steps))
    samples = steps * job.train_config.batch_size
    _log.info("trained %s on %s samples", run.path, f"{samples:,}")
