"""A network sharded over the processes, if with its optimizer it does not fit one GPU.

PyTorch's fully_shard (FSDP2): each process keeps a part of every weight, gradient and moment, and
has a whole block of the network only while it computes it. Checkpoints hold whole tensors, so that
they do not depend on the number of processes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from train.distributed.world import World

_LISTS = (nn.ModuleList, nn.Sequential)


def shard(backbone: nn.Module, head: nn.Module, world: World) -> None:
    """In place; before an optimizer is made, since it replaces the parameters."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    backbone.to(memory_format=torch.contiguous_format)  # no other can be sharded
    for part in (*_blocks_of(backbone), backbone, head):
        fully_shard(part, mesh=mesh)


def _blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The networks in its lists, and lists of lists: a transformer's blocks."""
    for child in module.children():
        is_block = isinstance(module, _LISTS) and any(True for _ in child.children())
        if is_block and not isinstance(child, _LISTS):
            yield child
        else:
            yield from _blocks_of(child)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor; every process takes part."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole: Tensor = tensor.full_tensor()
    return whole


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of it in this process."""
    if not isinstance(tensor, DTensor):
        return tensor
    part: Tensor = tensor.to_local()
    return part


def shard_like(tensor: Tensor, template: Tensor) -> Tensor:
    """A whole tensor, which every process has, sharded as `template` is, if it is."""
    if not isinstance(template, DTensor) or tensor.shape != template.shape:
        return tensor
    mesh = template.device_mesh
    whole = tensor.to(template.device)
    return distribute_tensor(whole, mesh, template.placements, src_data_rank=None)
