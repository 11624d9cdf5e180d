"""Named tensors in safetensors files: no pickle, so that a model file cannot run code."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import InfinegError
from train.distributed.fsdp import shard_like

_NUM_NAMED = 5  # mismatches that a message lists


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> str:
    """Writes atomically, on the CPU and in the default memory format; returns the sha256."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return storage.write_atomic(str(path), safetensors.torch.save(plain))


def read_tensors(path: str | os.PathLike[str], *, sha256: str = "") -> dict[str, Tensor]:
    """Raises InfinegError if the file is missing, damaged or not a safetensors file.

    sha256: what its content must have; "" if nobody knows.
    """
    try:
        content = Path(path).read_bytes()
        found = hashlib.sha256(content).hexdigest() if sha256 else ""
        if found != sha256:
            raise InfinegError(
                f"{path}: not a safetensors file, or cut short, or changed since it was written "
                f"({len(content):,} bytes of sha256 {found}, recorded {sha256}); restore it from a "
                "copy, or train again"
            )
        return safetensors.torch.load(content)
    except FileNotFoundError:
        raise InfinegError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise InfinegError(f"{path}: not a safetensors file, or cut short ({error})") from None


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str | os.PathLike[str]
) -> None:
    """Copies `tensors` into the module. Raises InfinegError unless names and shapes agree."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        names = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        listed = ", ".join(
            f"{name} is {found.get(name, 'missing')}, wanted {wanted.get(name, 'none')}"
            for name in names[:_NUM_NAMED]
        )
        raise InfinegError(f"{source}: {len(names)} tensors do not fit the model: {listed}")
    state = module.state_dict()
    module.load_state_dict({name: shard_like(tensors[name], state[name]) for name in state})
