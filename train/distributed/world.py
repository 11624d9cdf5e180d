"""One process or many: torchrun or Ray starts them, environment variables join them."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from pipeline.errors import ConfigError, InfinegError

_log = logging.getLogger(__name__)
_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # of torchrun: a new store for each attempt
# Plain RuntimeErrors of torch when another process is gone or does not answer.
_LOST = re.compile(r"gloo|nccl|timed? ?out|connection (closed|reset|refused)", re.IGNORECASE)


class LostProcess(InfinegError):
    """Another process is gone; its own log says why."""


@dataclass(frozen=True)
class World:
    """This process among those that train together. In a world of one, collectives do nothing."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def alone(cls) -> Self:
        return cls(rank=0, size=1, device=torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; the input is not changed."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, rank after rank; each has equally many."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def any(self, claim: bool) -> bool:
        """Whether it is true in at least one process."""
        mine = torch.tensor(float(claim), device=self.device)
        return self.all_reduce_sum(mine).item() > 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(
    device: Literal["auto", "cpu", "cuda"] = "auto", *, timeout_s: float = 600
) -> Iterator[World]:
    """Joins the process group that the launcher describes, and leaves it at the end.

    gloo on CPUs, nccl on GPUs, one GPU per process. An existing group (Ray Train makes its own) is
    used and not destroyed. A process that does not answer for `timeout_s` counts as lost.

    Raises ConfigError if a GPU is asked for and there is none, or if the environment describes no
    group, or several tasks of srun without torchrun; LostProcess if another process is lost.
    """
    own_device = _own_device(device)
    has_group = dist.is_available() and dist.is_initialized()
    size = _int_of("WORLD_SIZE", 1)
    if size == 1 and not has_group:
        _refuse_bare_srun()
        yield World(rank=0, size=1, device=own_device)
        return
    try:
        if not has_group:
            _check_environment(size)
            _begin_group("nccl" if own_device.type == "cuda" else "gloo", size, timeout_s)
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=own_device)
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        reason = str(error).partition("\n")[0]
        raise LostProcess(
            f"one of the processes is gone, or has not answered for {timeout_s:g} s "
            f"(train.timeout_s): {reason}. The log of that one says why; --resume continues from "
            "the last checkpoint"
        ) from error
    finally:
        if not has_group and dist.is_initialized():
            dist.destroy_process_group()


def _begin_group(backend: str, size: int, timeout_s: float) -> None:
    timeout = timedelta(seconds=timeout_s)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    # torchrun 2.14 serves one store to all attempts, with the addresses of killed processes in it.
    # Of one agent the number of restarts keeps attempts apart; of several, only that of the agent
    # whose process failed rises.
    if _int_of("GROUP_WORLD_SIZE", 1) > 1:
        _check_restarts_on_nodes()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = TCPStore(host, port, is_master=False, timeout=timeout)
    attempt, rank = _int_of("TORCHELASTIC_RESTART_COUNT", 0), int(os.environ["RANK"])
    store = PrefixStore(f"attempt-{attempt}", shared)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _check_restarts_on_nodes() -> None:
    advice = (
        f"export {_OWN_STORE}=1 before torchrun on every node, for restarted processes to find "
        "each other"
    )
    if is_restart():
        raise ConfigError(f"torchrun started this process again, on several nodes: {advice}")
    if _int_of("TORCHELASTIC_MAX_RESTARTS", 0) > 0:
        _log.warning("torchrun --max-restarts on several nodes: %s", advice)


def is_restart() -> bool:
    """Whether torchrun started this process in place of one that failed."""
    return _int_of("TORCHELASTIC_RESTART_COUNT", 0) > 0


def compute_deterministically() -> None:
    """From now on in this process; https://pytorch.org/docs/stable/notes/randomness.html."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _check_environment(size: int) -> None:
    rank = _int_of("RANK", -1)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not 0 <= rank < size:
        seen = f"{' and '.join(missing)} not set" if missing else f"RANK {rank}"
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {seen}: start it by torchrun, which sets them all, or "
            "unset WORLD_SIZE to train in one process"
        )


def _refuse_bare_srun() -> None:
    """Each of several tasks would train a model of its own and write to the same folder."""
    # Set in a step that srun started; SLURM_NTASKS is also set in the script of a whole job.
    num_tasks = _int_of("SLURM_STEP_NUM_TASKS", 1)
    if num_tasks > 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"srun started {num_tasks} tasks, which do not know of each other: start torchrun by "
            "srun, one task per node (srun --ntasks-per-node 1 torchrun ...), or use "
            "`infineg launch train CONFIG --on slurm`, which does"
        )


def _int_of(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r} in the environment is not a number") from None


def _own_device(wanted: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError(
            f"train.device: cuda, but torch {torch.__version__} finds no CUDA device here; auto "
            "takes a GPU if there is one, nvidia-smi lists them"
        )
    if wanted == "cpu" or not has_gpu:
        return torch.device("cpu")
    device = torch.device(
        "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    )
    torch.cuda.set_device(device)
    return device
