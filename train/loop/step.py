"""One optimizer step: from a batch to weights. All randomness is a function of the step.

The heads of several folds are trained side by side, as if each target had F columns in place of
one: K is then F times the number of targets, fold by fold. A sample has no weight in the columns of
its own fold. Shapes: B samples of this process, F folds, K columns of logits.
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
    trained_BK: Tensor  # 0 where the sample is held out, else 1


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
    batch, trained_BK = _by_fold(state, batch)
    weights = importance_weights(
        batch.targets_BK,
        batch.importance_B,
        max_weight=train_config.max_weight,
        reduce_sum=world.all_reduce_sum,
        trained_BK=trained_BK,
    )
    # As if each column saw all samples, so that losses do not depend on the number of folds.
    weight_BK = weights.weight_BK / (1 - 1 / train_config.folds if train_config.folds > 1 else 1)
    labels = [_Labels(1.0, batch, weight_BK, trained_BK)]
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


def _by_fold(state: TrainState, batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with targets_BK of every fold, and trained_BK."""
    num_folds, targets_BK = state.train_config.folds, batch.targets_BK
    if num_folds == 1:
        return batch, torch.ones_like(targets_BK)
    folds_F = torch.arange(num_folds, device=targets_BK.device)
    trained_BF = (batch.fold_B[:, None] != folds_F).to(targets_BK.dtype)
    trained_BK = trained_BF.repeat_interleave(targets_BK.shape[1], dim=1)
    return batch._replace(targets_BK=targets_BK.repeat(1, num_folds)), trained_BK


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
    # A column may see neither of the two if it may not see one.
    trained_BK = labels.trained_BK * labels.trained_BK[partner_B]
    partners = _Labels(
        1 - mixing.share,
        _take(labels.batch, partner_B),
        labels.weight_BK[partner_B] * trained_BK,
        trained_BK,
    )
    own = _Labels(mixing.share, labels.batch, labels.weight_BK * trained_BK, trained_BK)
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
                if train_config.folds > 1:
                    logits_BK = model(inputs[rows], by_fold=True).flatten(1)
                else:
                    logits_BK = model(inputs[rows])
            losses = [
                share
                * batch_loss(logits_BK, _take(batch, rows), weight_BK[rows], train_config, world)
                for share, batch, weight_BK, _ in labels
            ]
            loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _clip_gradients(state: TrainState) -> Tensor | None:
    """Scales gradients down to `max_grad_norm`; returns their norm before that.

    With several heads that is the mean of what each would have by itself.
    """
    limit = state.train_config.max_grad_norm
    if limit is None:
        return None
    state.scaler.unscale_(state.optimizer)
    num_folds = state.train_config.folds
    if num_folds > 1:
        # Each head by itself: a common norm would carry what one head learns to the others.
        of_heads = [list(head.parameters()) for head in state.detector.head.folds]
    else:
        of_heads = [[p for group in state.optimizer.param_groups for p in group["params"]]]
    # The loss is the mean over the heads, so that a head's gradient is F times that of its share.
    norms = [nn.utils.clip_grad_norm_(each, limit / num_folds) for each in of_heads]
    return torch.stack([full_tensor(norm) for norm in norms]).sum()


def _take(batch: Batch, rows: slice | Tensor) -> Batch:
    return Batch(*(tensor[rows] for tensor in batch))
