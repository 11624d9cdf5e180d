"""A backbone sharded over the processes, if with its optimizer it does not fit one GPU.

PyTorch's fully_shard (FSDP2): each process keeps a part of every weight, gradient and moment, and
has a whole block of the network only while it computes it. The head, which is small, stays whole.
Checkpoints hold whole tensors, so that they do not depend on the number of processes.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from train.distributed.world import World

_LISTS = (nn.ModuleList, nn.Sequential)


def shard_backbone(backbone: nn.Module, world: World) -> None:
    """In place; before an optimizer is made, since it replaces the parameters."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    backbone.to(memory_format=torch.contiguous_format)  # no other can be sharded
    for block in _blocks_of(backbone):
        fully_shard(block, mesh=mesh)
    fully_shard(backbone, mesh=mesh)


def _blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The networks in its lists, and lists of lists: a transformer's blocks."""
    for child in module.children():
        is_block = isinstance(module, _LISTS) and any(True for _ in child.children())
        if is_block and not isinstance(child, _LISTS):
            yield child
        else:
            yield from _blocks_of(child)


def average_whole_gradients(parameters: list[nn.Parameter], world: World) -> None:
    """Averages gradients of parameters that every process has whole, as DDP would."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ for sharded and whole parameters together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norms = [full_tensor(nn.utils.get_total_norm(part)) for part in (sharded, whole) if part]
    norm: Tensor = torch.stack(norms).norm()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local_tensor(gradient).mul_(scale)
    return norm


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


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
