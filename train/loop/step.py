"""One optimizer step: from a batch to weights. All that it draws is a function of the step.

Shapes: B samples of this process, K targets.
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.data.batches import Batch
from train.distributed.fsdp import average_whole_gradients, clip_gradients
from train.loop.job import Job
from train.loop.optim import set_learning_rates
from train.loss.mixup import draw_mixing
from train.loss.objective import batch_loss, batch_weights

_MIXING = 1  # after (seed, step): keeps what mixing draws apart from all else


class StepResult(NamedTuple):
    """What a step can tell; grad_norm None where gradients are not clipped."""

    loss: Tensor  # this process's share
    clipped_mass: Tensor
    grad_norm: Tensor | None  # before it was clipped


class _Labels(NamedTuple):
    """What the inputs are said to show, and the share of the loss that this counts for."""

    share: float
    batch: Batch
    weight_BK: Tensor

    def part(self, rows: slice) -> "_Labels":
        return _Labels(self.share, _take(self.batch, rows), self.weight_BK[rows])


def train_step(job: Job, model: nn.Module, batch: Batch, step: int) -> StepResult:
    """Gradients of the whole batch, one update of weights and of their average."""
    train_config, world = job.train_config, job.world
    set_learning_rates(job.optimizer, step)
    # Noise is a function of the step too, so that a checkpoint needs no generator's state.
    noise_seed = np.random.SeedSequence((train_config.seed, step, world.rank))
    # Not torch.manual_seed: it seeds devices that are not there too, a tenth of a head's step.
    torch.default_generator.manual_seed(int(noise_seed.generate_state(1)[0]))
    if world.device.type == "cuda":
        torch.cuda.manual_seed(int(noise_seed.generate_state(1)[0]))
    batch = Batch(*(tensor.to(world.device) for tensor in batch))
    weights = batch_weights(batch, train_config, world)
    labels = [_Labels(1.0, batch, weights.weight_BK)]
    inputs = batch.inputs
    if train_config.regularization.mixes:
        inputs, labels = _mix(job, labels[0], step)
    job.optimizer.zero_grad()
    loss = _accumulate_gradients(job, model, inputs, labels)
    if job.is_sharded and not isinstance(model, DistributedDataParallel):
        average_whole_gradients(_parameters_of(job), world)
    grad_norm = _clip_gradients(job)
    job.scaler.step(job.optimizer)
    job.scaler.update()
    if job.average is not None:
        job.average.update_parameters(job.trained)
    return StepResult(loss, weights.clipped_mass, grad_norm)


def _mix(job: Job, labels: _Labels, step: int) -> tuple[Tensor, list[_Labels]]:
    """Blended inputs, and both of the labels that they have (train.mixing)."""
    mixing = draw_mixing(
        job.train_config.regularization,
        labels.batch.inputs,
        seed=(job.train_config.seed, step, _MIXING),
        rank=job.world.rank,
    )
    if mixing is None:
        return labels.batch.inputs, [labels]
    partner_B = mixing.partner_B
    partners = _Labels(
        1 - mixing.share, _take(labels.batch, partner_B), labels.weight_BK[partner_B]
    )
    own = labels._replace(share=mixing.share)
    return mixing.blend(labels.batch.inputs), [own, partners]


def _accumulate_gradients(
    job: Job, model: nn.Module, inputs: Tensor, labels: list[_Labels]
) -> Tensor:
    """The loss; its gradient is summed over `accumulate` parts of the batch, which share memory.

    Weights are those of the whole batch, so that the sum is its gradient.
    """
    train_config, world = job.train_config, job.world
    num_parts = train_config.accumulate
    bounds = [round(i * len(inputs) / num_parts) for i in range(num_parts + 1)]
    total = torch.zeros((), device=world.device)
    for rows in map(slice, bounds, bounds[1:]):
        is_last = rows.stop == len(inputs)
        # Processes add up their gradients once, after the last part.
        waits = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with torch.autocast(world.device.type, job.amp_dtype, enabled=job.uses_amp):
                logits_BK = model(inputs[rows])
            parts = [each.part(rows) for each in labels]
            losses = [
                share * batch_loss(logits_BK, batch, weight_BK, train_config, world)
                for share, batch, weight_BK in parts
            ]
            loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
            job.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _clip_gradients(job: Job) -> Tensor | None:
    """The norm of all gradients together, brought down to `max_grad_norm`."""
    limit = job.train_config.max_grad_norm
    if limit is None:
        return None
    job.scaler.unscale_(job.optimizer)
    if job.is_sharded:
        return clip_gradients(_parameters_of(job), limit)
    return nn.utils.clip_grad_norm_(_parameters_of(job), limit)


def _parameters_of(job: Job) -> list[nn.Parameter]:
    return [p for group in job.optimizer.param_groups for p in group["params"]]


def _take(batch: Batch, rows: slice | Tensor) -> Batch:
    return Batch(*(tensor[rows] for tensor in batch))
