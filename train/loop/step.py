"""One optimizer step: from a batch to weights. All randomness is a function of the step.

Shapes: B samples of this process, K targets.
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.data.batches import Batch
from train.distributed.fsdp import full_tensor
from train.loop.optim import set_learning_rates
from train.loop.state import TrainState
from train.loss.losses import importance_weights
from train.loss.mixup import draw_mixing
from train.loss.objective import batch_loss

_MIXING = 1  # after (seed, step): a random stream of its own for mixing


class StepResult(NamedTuple):
    """What is logged of a step; grad_norm is None if gradients are not clipped."""

    loss: Tensor  # this process's share
    clipped_mass: Tensor
    grad_norm: Tensor | None  # before it was clipped


class _Labels(NamedTuple):
    """Labels of the inputs, and their share of the loss."""

    share: float
    batch: Batch
    weight_BK: Tensor


def train_step(state: TrainState, model: nn.Module, batch: Batch, step: int) -> StepResult:
    """Gradients of the whole batch, one update of weights and of their average."""
    train_config, world = state.train_config, state.world
    set_learning_rates(state.optimizer, step)
    # Noise is a function of the step, so that a checkpoint needs no generator's state.
    noise_seed = np.random.SeedSequence((train_config.seed, step, world.rank))
    # Not torch.manual_seed, which also tries absent devices: a tenth of a head's step.
    torch.default_generator.manual_seed(int(noise_seed.generate_state(1)[0]))
    if world.device.type == "cuda":
        torch.cuda.manual_seed(int(noise_seed.generate_state(1)[0]))
    batch = Batch(*(tensor.to(world.device) for tensor in batch))
    weights = importance_weights(
        batch.targets_BK,
        batch.importance_B,
        max_weight=train_config.max_weight,
        reduce_sum=world.all_reduce_sum,
    )
    labels = [_Labels(1.0, batch, weights.weight_BK)]
    inputs = batch.inputs
    if train_config.regularization.mixes:
        inputs, labels = _mix(state, labels[0], step)
    state.optimizer.zero_grad()
    loss = _accumulate_gradients(state, model, inputs, labels)
    grad_norm = _clip_gradients(state)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.trained)
    return StepResult(loss, weights.clipped_mass, grad_norm)


def _mix(state: TrainState, labels: _Labels, step: int) -> tuple[Tensor, list[_Labels]]:
    """Blended inputs, and both of their labels (train.loss.mixup)."""
    mixing = draw_mixing(
        state.train_config.regularization,
        labels.batch.inputs,
        seed=(state.train_config.seed, step, _MIXING),
        rank=state.world.rank,
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
    state: TrainState, model: nn.Module, inputs: Tensor, labels: list[_Labels]
) -> Tensor:
    """The loss; its gradient is summed over `accumulate` parts, one in memory at a time.

    Weights are normalised over the whole batch, so that the sum is its gradient.
    """
    train_config, world = state.train_config, state.world
    num_parts, amp = train_config.accumulate, train_config.amp
    uses_amp = amp in ("bf16", "fp16") or (amp == "auto" and world.device.type == "cuda")
    amp_dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    bounds = [round(i * len(inputs) / num_parts) for i in range(num_parts + 1)]
    total = torch.zeros((), device=world.device)
    for rows in map(slice, bounds, bounds[1:]):
        is_last = rows.stop == len(inputs)
        # Processes reduce their gradients once, after the last part.
        waits = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with torch.autocast(world.device.type, amp_dtype, enabled=uses_amp):
                logits_BK = model(inputs[rows])
            losses = [
                share
                * batch_loss(logits_BK, _take(batch, rows), weight_BK[rows], train_config, world)
                for share, batch, weight_BK in labels
            ]
            loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _clip_gradients(state: TrainState) -> Tensor | None:
    """Scales gradients down to `max_grad_norm`; returns their norm before that."""
    limit = state.train_config.max_grad_norm
    if limit is None:
        return None
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    return full_tensor(nn.utils.clip_grad_norm_(parameters, limit))


def _take(batch: Batch, rows: slice | Tensor) -> Batch:
    return Batch(*(tensor[rows] for tensor in batch))
