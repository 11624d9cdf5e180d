"""The training loop: head on cached embeddings, then (finetune) head and backbone on images.

Shapes: B samples of this process, K targets.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import NamedTuple

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.schema import Config
from pipeline.telemetry.metrics import TRAIN_METRICS, serve_metrics
from train.config import TrainConfig
from train.data.device import on_device
from train.distributed.fsdp import full_tensor
from train.distributed.signals import RunStopped, stop_on_signals
from train.distributed.sync import StepSync, SyncResult
from train.distributed.world import compute_deterministically, is_restart, join_world
from train.loop.checkpoint import Checkpoint, Saver, find_checkpoint, load_checkpoint, snapshot
from train.loop.nonfinite import has_nonfinite_weights, nonfinite_loss_error
from train.loop.optim import restore_update_state, update_state
from train.loop.phases import Phase, phases_from
from train.loop.run_dir import GenerationSwitch, Run, describe_model, open_run, write_config
from train.loop.run_log import Meter, RunLog, open_run_log
from train.loop.state import TrainState, prepare_state
from train.loop.step import StepResult, train_step
from train.loop.stream import open_stream
from train.loop.validation import BestSoFar, Validation
from train.model.detector import save_model

_log = logging.getLogger(__name__)


def train(
    config: Config,
    train_config: TrainConfig,
    *,
    resume: bool = False,
    generation: GenerationSwitch = None,
) -> Path:
    """Trains one run and returns its folder; does nothing if the run is finished.

    In one process, or as one of those that torchrun or Ray Train started. `resume` continues
    after the last checkpoint with the very next sample, as do processes that torchrun started
    again; with a newer `generation`, it continues on its rows.
    Raises ConfigError for settings that cannot work, InfinegError if the data set or the loss
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
        state = prepare_state(
            config, train_config, run.dataset, run.generation, world,
            segments=run.segments, first_step=run.first_step,
        )  # fmt: skip
        validation = _restore(state, run)
        with _open_session(state, run, validation) as session:
            for phase in phases_from(run.first_step, state.detector, train_config):
                if not session.is_over:
                    _train_phase(session, phase)
        _export(state, run, validation)
        world.barrier()
        return run.path


@dataclass(frozen=True)
class _Session:
    """A run in progress, shared by its phases."""

    state: TrainState
    run: Run
    validation: Validation | None
    sync: StepSync
    log: RunLog | None  # of the main process, like the saver
    saver: Saver | None

    @property
    def is_over(self) -> bool:
        """Whether validation ends the run early."""
        return self.validation is not None and self.validation.is_over


@contextmanager
def _open_session(state: TrainState, run: Run, validation: Validation | None) -> Iterator[_Session]:
    """Files, metrics and the saver's thread are closed at the end."""
    train_config, log, saver = state.train_config, None, None
    with ExitStack() as stack:
        if state.world.is_main:
            write_config(run, state.config, train_config)
            served = serve_metrics(TRAIN_METRICS, train_config.metrics, "train.metrics.port")
            metrics = stack.enter_context(served)
            opened = open_run_log(
                run.path,
                first_step=run.first_step,
                num_steps=train_config.steps,
                batch_size=train_config.batch_size,
                wandb=train_config.wandb,
                settings=run.settings,
                metrics=metrics,
            )
            log = stack.enter_context(opened)
            saver = Saver(run.path, keep=train_config.keep_checkpoints)
            stack.enter_context(closing(saver))
        request = stack.enter_context(stop_on_signals())
        sync = StepSync(state.world, request, every=train_config.log_every)
        yield _Session(state, run, validation, sync, log, saver)


def _train_phase(session: _Session, phase: Phase) -> None:
    """The loop itself. Ends early if validation says so; raises RunStopped after a signal."""
    state, train_config = session.state, session.state.train_config
    if session.saver is not None:
        session.saver.wait()  # no thread of ours may run while loader processes are forked
    model = _begin_phase(state, phase)
    batches = open_stream(state, phase.mode, phase.steps, image_size=phase.image_size)
    device = state.world.device
    meter = Meter(on_device(batches, device), train_config.batch_size, device)
    for step, batch in zip(phase.steps, meter, strict=True):
        result = train_step(state, model, batch, step)
        session.sync.note(result.loss)
        if session.log is not None:
            session.log.advance()
        done = step + 1
        due = _due_after(done, session, phase)
        if not due.sync:
            continue
        synced = _sync(session, phase, done)
        with meter.paused():
            scores = _validate(session, phase, done) if due.validate else {}
        if due.log:
            _log_step(session, step, result, synced.loss, meter.read() | scores)
        if session.is_over:
            return
        signal = synced.signal if done < train_config.steps else None  # else the run is done
        if due.checkpoint or signal is not None:
            _checkpoint(session, phase, done)
        if signal is not None:
            raise _stopped(session, done, signal)


class _Due(NamedTuple):
    """What follows a step. All else needs `sync`, which waits for the device and all processes."""

    sync: bool
    validate: bool
    log: bool
    checkpoint: bool


def _due_after(done: int, session: _Session, phase: Phase) -> _Due:
    train_config, validation = session.state.train_config, session.validation
    validates = validation is not None and validation.is_due(done)
    logs = validates or done % train_config.log_every == 0 or done == phase.steps.stop
    saves = done % train_config.checkpoint_every == 0 and done < train_config.steps
    return _Due(logs or saves or session.sync.is_due(), validates, logs, saves)


def _begin_phase(state: TrainState, phase: Phase) -> nn.Module:
    """The module to call on the phase's inputs, with its trained parameters unfrozen."""
    if phase.mode == "head":
        model: nn.Module = state.detector.head.train()
    else:
        state.detector.train_backbone(phase.num_open)
        model = state.detector
    if state.train_config.compile:
        model.compile()
    if state.world.size == 1 or (state.is_sharded and phase.mode == "finetune"):
        return model
    devices = [state.world.device] if state.world.device.type == "cuda" else None
    # No gradient reaches the blocks above a penultimate layer. A static graph finds that out once,
    # but does not go with gradients that are held back (torch 2.14 fails with an assertion).
    is_static = state.train_config.accumulate == 1
    has_unused = state.config.encoder.layer == "penultimate" and not is_static
    return DistributedDataParallel(
        model, device_ids=devices, static_graph=is_static, find_unused_parameters=has_unused
    )


def _sync(session: _Session, phase: Phase, done: int) -> SyncResult:
    """Raises InfinegError if the loss of one of the steps since the last sync is not finite."""
    synced = session.sync.sync(done)
    if synced.nonfinite_step is not None:
        raise nonfinite_loss_error(session.state, session.run.path, synced.nonfinite_step, phase)
    return synced


def _validate(session: _Session, phase: Phase, done: int) -> dict[str, float]:
    assert session.validation is not None
    return session.validation.validate(done, phase.mode)


def _log_step(
    session: _Session, step: int, result: StepResult, loss: float, measured: dict[str, float]
) -> None:
    state = session.state
    if session.log is None:
        return
    values = {
        "loss": loss,
        "clipped_mass": result.clipped_mass.item(),
        "learning_rate": state.optimizer.param_groups[0]["lr"],
    }
    if result.grad_norm is not None:
        values["grad_norm"] = result.grad_norm.item()
    if state.scaler.is_enabled():
        values["loss_scale"] = state.scaler.get_scale()
    session.log.write(step, values | measured)


def _checkpoint(session: _Session, phase: Phase, done: int) -> None:
    """Saved by the main process; with a sharded model every process contributes its parts.

    Raises InfinegError if a weight is not finite, to keep the last good checkpoint.
    """
    state, run, validation = session.state, session.run, session.validation
    if has_nonfinite_weights(state):
        raise nonfinite_loss_error(state, run.path, done - 1, phase)
    if session.saver is None and not state.is_sharded:
        return
    checkpoint = Checkpoint(
        step=done,
        samples_seen=done * state.train_config.batch_size,
        generation=run.generation.number,
        settings=run.settings,
        segments=state.segments,
    )
    extra = update_state(state.scaler, state.average)
    if validation is not None:
        extra |= validation.best.state()
    tensors = snapshot(state.trained, state.optimizer, extra)
    if session.saver is not None:
        session.saver.save(checkpoint, tensors)


def _restore(state: TrainState, run: Run) -> Validation | None:
    """Loads the last checkpoint, if any; returns the validation with the best it has seen."""
    extra = {}
    if run.checkpoint is not None:
        extra = load_checkpoint(
            run.path, run.checkpoint, module=state.trained, optimizer=state.optimizer
        )
        restore_update_state(state.scaler, state.average, extra)
        _log.info("%s continues at step %s", run.path, f"{run.first_step:,}")
    settings = state.train_config.early_stopping
    if settings is None:
        return None
    return Validation(state, settings, run.path, BestSoFar.from_state(extra))


def _stopped(session: _Session, done: int, received: Signals) -> RunStopped:
    if session.saver is not None:
        session.saver.wait()
    last = find_checkpoint(session.run.path)
    kept = "nothing could be saved" if last is None else f"saved at step {last.step:,}"
    where = f"{received.name} after step {done:,} of {session.run.path}"
    return RunStopped(f"{where}: {kept}; --resume continues there", received)


def _export(state: TrainState, run: Run, validation: Validation | None) -> None:
    """Writes the best weights, or the last ones; their moving average if there is one."""
    steps = state.train_config.steps
    if validation is None:
        state.trained.load_state_dict(state.evaluated.state_dict())
    else:
        validation.load_best()
        steps = validation.best.step
    weights = {k: full_tensor(tensor) for k, tensor in state.detector.state_dict().items()}
    if not state.world.is_main:
        return
    save_model(run.path, weights, describe_model(state, run.settings, steps=steps))
    samples = steps * state.train_config.batch_size
    _log.info("trained %s on %s samples", run.path, f"{samples:,}")
