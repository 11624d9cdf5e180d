"""The training loop: head on cached embeddings, then (finetune) head and backbone on images."""

import logging
from pathlib import Path

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.schema import Config
from pipeline.encoders.origin import weights_origin
from train.config import TrainConfig
from train.data.device import on_device
from train.distributed.fsdp import full_tensor
from train.distributed.world import compute_deterministically, is_restart, join_world
from train.loop.checkpoint import load_checkpoint
from train.loop.optim import restore_update_state
from train.loop.phases import Phase, phases_from
from train.loop.run_dir import GenerationSwitch, Run, describe_model, open_run
from train.loop.run_log import Meter
from train.loop.session import Session, open_session
from train.loop.state import TrainState, prepare_state
from train.loop.step import train_step
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
        train_config = run.train_config
        state = prepare_state(
            config, train_config, run.dataset, run.generation, world,
            segments=run.segments, first_step=run.first_step,
        )  # fmt: skip
        _log.info(
            "encoder %s, weights from %s", config.encoder.name, weights_origin(config.encoder)
        )
        validation = _restore(state, run)
        with open_session(state, run, validation) as session:
            for phase in phases_from(run.first_step, state.detector, train_config):
                if not session.is_over:
                    _train_phase(session, phase)
        _export(state, run, validation)
        world.barrier()
        return run.path


def _train_phase(session: Session, phase: Phase) -> None:
    """The loop itself. Ends early if validation says so; raises RunStopped after a signal."""
    state, device = session.state, session.state.world.device
    model = _begin_phase(state, phase)
    session.wait()  # no thread of ours may run while loader processes are forked
    batches = open_stream(state, phase.mode, phase.steps, image_size=phase.image_size)
    meter = Meter(on_device(batches, device), state.train_config.batch_size, device)
    for step, batch in zip(phase.steps, meter, strict=True):
        result = train_step(state, model, batch, step)
        session.note(result)
        done = step + 1
        due = session.due_after(done, phase)
        if not due.sync:
            continue
        synced = session.sync(done, phase)
        with meter.paused():
            scores = session.validate(done, phase) if due.validate else {}
        if due.log:
            session.log(step, result, synced.loss, meter.read() | scores)
        if session.is_over:
            return
        signal = synced.signal if done < state.train_config.steps else None  # else it is finished
        if due.checkpoint or signal is not None:
            session.checkpoint(done, phase)
        if signal is not None:
            raise session.stopped(done, signal)


def _begin_phase(state: TrainState, phase: Phase) -> nn.Module:
    """The module to call on the phase's inputs, with its trained parameters unfrozen."""
    if phase.mode == "head":
        model: nn.Module = state.detector.head.train()
    else:
        state.detector.train_backbone(phase.num_open)
        model = state.detector
    if state.train_config.compile:
        model.compile()
    if state.world.size == 1 or state.is_sharded:
        return model
    devices = [state.world.device] if state.world.device.type == "cuda" else None
    # No gradient reaches the blocks above a penultimate layer. A static graph finds that out once,
    # but does not go with gradients that are held back (torch 2.14 fails with an assertion).
    is_static = state.train_config.accumulate == 1
    has_unused = state.config.encoder.layer == "penultimate" and not is_static
    return DistributedDataParallel(
        model, device_ids=devices, static_graph=is_static, find_unused_parameters=has_unused
    )


def _restore(state: TrainState, run: Run) -> Validation | None:
    """Loads the last checkpoint, if any; returns what ends the run early, if anything does."""
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


def _export(state: TrainState, run: Run, validation: Validation | None) -> None:
    """Writes the best weights, or the last ones; their moving average if there is one."""
    if validation is None:
        state.trained.load_state_dict(state.evaluated.state_dict())
        steps = state.train_config.steps
    else:
        steps = validation.finish()
    weights = {k: full_tensor(tensor) for k, tensor in state.detector.state_dict().items()}
    if not state.world.is_main:
        return
    save_model(run.path, weights, describe_model(state, run.settings, steps=steps))
    samples = steps * state.train_config.batch_size
    _log.info("trained %s on %s samples", run.path, f"{samples:,}")
