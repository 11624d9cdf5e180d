"""Checkpoints: weights and optimizer state in safetensors, the rest in JSON beside it.

The JSON is written last and commits the checkpoint; tensors without it are garbage. It has their
sha256, so that a damaged checkpoint is passed over for the one before it. Order, rates and noise
are pure functions of the step and need no state of their own.
"""

import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from pydantic import BaseModel, JsonValue
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline import storage
from pipeline.dataset.records import decode_record, encode_record
from pipeline.errors import InfinegError, TransientStorageError
from train.distributed.fsdp import full_tensor, shard_like
from train.model.info import Segment
from train.model.tensors import load_into, read_tensors, write_tensors

_log = logging.getLogger(__name__)

_MODEL, _OPTIMIZER, _EXTRA = "model.", "optimizer.", "extra."


class Checkpoint(BaseModel, frozen=True, extra="forbid"):
    """`checkpoints/step-<step>.json`."""

    step: int  # optimizer steps done; the next batch has this number
    samples_seen: int
    generation: int
    settings: dict[str, JsonValue]  # of the run; a config with others may not continue it
    segments: tuple[Segment, ...] = ()  # which steps were trained on which rows
    sha256: str = ""  # of the tensors; "" in older versions


def snapshot(
    module: nn.Module, optimizer: torch.optim.Optimizer, extra: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A copy on the CPU of what a checkpoint holds; `load_checkpoint` returns `extra` again.

    With a sharded model every process takes part.
    """
    tensors = {_MODEL + name: tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{index}.{name}": tensor for name, tensor in state.items()}
    tensors |= {_EXTRA + name: tensor for name, tensor in extra.items()}
    return {
        name: full_tensor(tensor.detach()).to("cpu", copy=True) for name, tensor in tensors.items()
    }


def find_checkpoint(run_dir: str | os.PathLike[str]) -> Checkpoint | None:
    """The last committed one that is whole, or None if none is committed.

    A damaged one is skipped with a warning; raises InfinegError if none of them is whole.
    """
    problem = None
    for path in reversed(_committed(run_dir)):
        if problem is not None:
            _log.warning("%s. Looking at the checkpoint before it, %s", problem, path)
        try:
            return _read_whole(path)
        except InfinegError as error:
            problem = error
    if problem is not None:
        raise InfinegError(
            f"{problem}. No checkpoint before it is whole: restore one from a copy, or remove "
            f"{Path(run_dir) / 'checkpoints'} to train again"
        )
    return None


def _read_whole(path: Path) -> Checkpoint:
    """A checkpoint, by its JSON; raises InfinegError if that or its tensors are damaged."""
    checkpoint = decode_record(str(path), path.read_bytes(), Checkpoint)
    tensors = path.with_suffix(".safetensors")
    if not tensors.exists():
        raise InfinegError(f"{tensors}: missing")
    if checkpoint.sha256 and storage.sha256_of(str(tensors)) != checkpoint.sha256:
        raise InfinegError(f"{tensors}: damaged, its sha256 differs from the record")
    return checkpoint


def load_checkpoint(
    run_dir: str | os.PathLike[str],
    checkpoint: Checkpoint,
    *,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Tensor]:
    """Restores module and optimizer, and returns the extra state.

    Raises InfinegError if they do not fit.
    """
    path = f"{_stem(run_dir, checkpoint.step)}.safetensors"
    tensors = read_tensors(path, sha256=checkpoint.sha256)
    model = {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
    load_into(module, model, path)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, field = name.removeprefix(_OPTIMIZER).split(".")
            state.setdefault(int(index), {})[field] = _as_stored(tensor, parameters[int(index)])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return {k.removeprefix(_EXTRA): v for k, v in tensors.items() if k.startswith(_EXTRA)}


def _as_stored(tensor: Tensor, parameter: Tensor) -> Tensor:
    """In the parameter's memory format: sums in another order would round differently."""
    if tensor.shape != parameter.shape:
        return tensor
    if isinstance(parameter, DTensor):
        return shard_like(tensor, parameter)
    return torch.empty_like(parameter, dtype=tensor.dtype, device="cpu").copy_(tensor)


def _stem(run_dir: str | os.PathLike[str], step: int) -> str:
    return str(Path(run_dir) / "checkpoints" / f"step-{step:09d}")


def _committed(run_dir: str | os.PathLike[str]) -> list[Path]:
    return sorted((Path(run_dir) / "checkpoints").glob("step-*.json"))


class Saver:
    """Writes checkpoints in a thread, one at a time, and keeps the last `keep` of them.

    One that cannot be written (a full disk, storage that is away for a while) is logged and
    skipped: the last good one stays, and training is worth more than giving up at once.
    """

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        folder = run_dir / "checkpoints"
        tensors = folder.glob("step-*.safetensors")
        stray = [path for path in tensors if not path.with_suffix(".json").exists()]
        for path in (*stray, *folder.glob(".tmp-*")):  # a killed process left them
            path.unlink()
        self._run_dir = run_dir
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, "saver")
        self._writing: Future[None] | None = None

    def save(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        """Begins to write a snapshot."""
        self.wait()
        self._writing = self._pool.submit(self._write, checkpoint, tensors)

    def wait(self) -> None:
        """Until nothing is being written. Raises all errors but those of storage."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        stem = _stem(self._run_dir, checkpoint.step)
        try:
            sha256 = write_tensors(f"{stem}.safetensors", tensors)
            committed = encode_record(checkpoint.model_copy(update={"sha256": sha256}))
            storage.write_atomic(f"{stem}.json", committed)
            for path in _committed(self._run_dir)[: -self._keep]:
                path.unlink()
                path.with_suffix(".safetensors").unlink(missing_ok=True)
        except (OSError, TransientStorageError) as error:
            last = find_checkpoint(self._run_dir)
            kept = "there is none yet" if last is None else f"the last is of step {last.step:,}"
            _log.error(
                "checkpoint of step %s could not be written (%s); %s, and training goes on",
                f"{checkpoint.step:,}", error, kept,
            )  # fmt: skip
