"""A run in progress: what is done between steps, and the files and threads it needs for that."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from signal import Signals
from typing import NamedTuple

from pipeline.telemetry.metrics import TRAIN_METRICS, serve_metrics
from train.distributed.signals import RunStopped, stop_on_signals
from train.distributed.sync import StepSync, SyncResult
from train.loop.checkpoint import Checkpoint, Saver, find_checkpoint, snapshot
from train.loop.nonfinite import has_nonfinite_weights, nonfinite_loss_error
from train.loop.optim import update_state
from train.loop.phases import Phase
from train.loop.run_dir import Run, write_config
from train.loop.run_log import RunLog, open_run_log
from train.loop.state import TrainState
from train.loop.step import StepResult
from train.loop.validation import Validation


class Due(NamedTuple):
    """What follows a step. `sync` waits for the device and all processes; the rest needs it."""

    sync: bool
    validate: bool
    log: bool
    checkpoint: bool


@dataclass(frozen=True)
class Session:
    """Only the main process has a log and a saver."""

    state: TrainState
    run: Run
    validation: Validation | None
    step_sync: StepSync
    run_log: RunLog | None
    saver: Saver | None

    @property
    def is_over(self) -> bool:
        """Whether validation ends the run early."""
        return self.validation is not None and self.validation.is_over

    def note(self, result: StepResult) -> None:
        """Counts a step as done, without waiting for it."""
        self.step_sync.note(result.loss)
        if self.run_log is not None:
            self.run_log.advance()

    def due_after(self, done: int, phase: Phase) -> Due:
        """What follows after `done` steps: the same in every process."""
        train_config = self.state.train_config
        validates = self.validation is not None and self.validation.is_due(done)
        logs = validates or done % train_config.log_every == 0 or done == phase.steps.stop
        saves = done % train_config.checkpoint_every == 0 and done < train_config.steps
        return Due(logs or saves or self.step_sync.is_due(), validates, logs, saves)

    def sync(self, done: int, phase: Phase) -> SyncResult:
        """Raises InfinegError if the loss of a step since the last sync is not finite."""
        synced = self.step_sync.sync(done)
        if synced.nonfinite_step is not None:
            raise nonfinite_loss_error(self.state, self.run.path, synced.nonfinite_step, phase)
        return synced

    def validate(self, done: int, phase: Phase) -> dict[str, float]:
        """What decides whether the run ends early, by its name."""
        assert self.validation is not None
        return self.validation.validate(done, phase.mode)

    def log(self, step: int, result: StepResult, loss: float, measured: dict[str, float]) -> None:
        """Writes one line of the run's log; `loss` is that of the global batch."""
        if self.run_log is None:
            return
        values = {
            "loss": loss,
            "clipped_mass": result.clipped_mass.item(),
            "learning_rate": self.state.optimizer.param_groups[0]["lr"],
        }
        if result.grad_norm is not None:
            values["grad_norm"] = result.grad_norm.item()
        if self.state.scaler.is_enabled():
            values["loss_scale"] = self.state.scaler.get_scale()
        self.run_log.write(step, values | measured)

    def checkpoint(self, done: int, phase: Phase) -> None:
        """Begins to save; with a sharded model every process contributes its parts.

        Raises InfinegError if a weight is not finite, to keep the last good checkpoint.
        """
        state = self.state
        if has_nonfinite_weights(state):
            raise nonfinite_loss_error(state, self.run.path, done - 1, phase)
        if self.saver is None and not state.is_sharded:
            return
        checkpoint = Checkpoint(
            step=done,
            samples_seen=done * state.train_config.batch_size,
            generation=state.generation.number,
            settings=self.run.settings,
            segments=state.segments,
        )
        extra = update_state(state.scaler, state.average)
        if self.validation is not None:
            extra |= self.validation.state()
        tensors = snapshot(state.trained, state.optimizer, extra)
        if self.saver is not None:
            self.saver.save(checkpoint, tensors)

    def wait(self) -> None:
        """Until no checkpoint is being written."""
        if self.saver is not None:
            self.saver.wait()

    def stopped(self, done: int, received: Signals) -> RunStopped:
        """The error that ends the run after a signal, once the checkpoint is written."""
        self.wait()
        last = find_checkpoint(self.run.path)
        kept = "nothing could be saved" if last is None else f"saved at step {last.step:,}"
        where = f"{received.name} after step {done:,} of {self.run.path}"
        return RunStopped(f"{where}: {kept}; --resume continues there", received)


@contextmanager
def open_session(state: TrainState, run: Run, validation: Validation | None) -> Iterator[Session]:
    """Files, servers and threads are closed at the end; until then signals are noted."""
    train_config, log, saver = state.train_config, None, None
    with ExitStack() as stack:
        if state.world.is_main:
            write_config(run, state.config, train_config)
            served = serve_metrics(TRAIN_METRICS, train_config.metrics, "train.metrics.port")
            opened = open_run_log(
                run.path,
                first_step=run.first_step,
                num_steps=train_config.steps,
                batch_size=train_config.batch_size,
                tracker=train_config.tracker,
                settings=run.settings,
                metrics=stack.enter_context(served),
            )
            log = stack.enter_context(opened)
            saver = Saver(run.path, keep=train_config.keep_checkpoints)
            stack.enter_context(closing(saver))
        request = stack.enter_context(stop_on_signals())
        step_sync = StepSync(state.world, request, every=train_config.log_every)
        yield Session(state, run, validation, step_sync, log, saver)
