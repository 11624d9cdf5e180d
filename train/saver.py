"""Checkpoints written beside the training: a step waits for a copy in memory, not for the disk."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from pipeline.errors import TransientStorageError
from train.checkpoint import Checkpoint, find_checkpoint, sweep, write_checkpoint

_log = logging.getLogger(__name__)


class Saver:
    """One checkpoint is written at a time; the next one waits for it.

    One that cannot be written (a full disk, storage that is away for a while) is told and left
    out: the last good one stays, and training is worth more than giving up at once.
    """

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self._run_dir = run_dir
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, "saver")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        sweep(self._run_dir)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def save(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Begins to write a snapshot."""
        self.wait()
        self._writing = self._pool.submit(self._write, checkpoint, tensors)

    def wait(self) -> None:
        """Until nothing is being written. Raises what was not a failure of storage."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        try:
            write_checkpoint(self._run_dir, checkpoint, tensors, keep=self._keep)
        except (OSError, TransientStorageError) as error:
            last = find_checkpoint(self._run_dir)
            kept = "there is none yet" if last is None else f"the last is of step {last.step:,}"
            _log.error(
                "checkpoint of step %s could not be written (%s); %s, and training goes on",
                f"{checkpoint.step:,}", error, kept,
            )  # fmt: skip
