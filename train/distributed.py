"""One process or many: started by torchrun (or Ray), joined through its environment variables."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among those that train together. Alone, every collective is the identity."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; the input is left as it is."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, which have equally many each, rank after rank."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[World]:
    """Joins the process group that the launcher describes, and leaves it at the end.

    Raises ConfigError where a GPU is asked for and there is none.

    gloo on CPUs, nccl on GPUs, one GPU a process. A group that is there already (Ray Train makes
    its own) is used and left alone.
    """
    own_device = _own_device(device)
    has_group = dist.is_available() and dist.is_initialized()
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if is_alone and not has_group:
        yield World(rank=0, size=1, device=own_device)
        return
    if not has_group:
        dist.init_process_group("nccl" if own_device.type == "cuda" else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=own_device)
    finally:
        if not has_group:
            dist.destroy_process_group()


def _own_device(wanted: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ConfigError(
            f"train.device: cuda, but torch {torch.__version__} finds no CUDA device here; auto "
            "takes a GPU where there is one, nvidia-smi lists them"
        )
    if wanted == "cpu" or not has_gpu:
        return torch.device("cpu")
    device = torch.device(
        "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    )
    torch.cuda.set_device(device)
    return device
