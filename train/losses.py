"""Binary cross-entropy in which each negative stands for the negatives that were not selected.

Shapes: B samples of this process, K targets. `reduce_sum` adds a tensor over all processes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

ReduceSum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImportanceWeights:
    """weight_BK, and the share of the negatives' weight that the clip took away (in [0, 1))."""

    weight_BK: Tensor
    clipped_mass: Tensor


def importance_weights(
    targets_BK: Tensor,
    inverse_probability_B: Tensor,
    *,
    max_weight: float,
    reduce_sum: ReduceSum,
) -> ImportanceWeights:
    """1 for positives; for negatives 1/inclusion_probability, self-normalised to mean 1.

    The mean is that of the global batch, target by target: a positive of one target is a negative
    of the others. A weight of more than `max_weight` times the mean is clipped (which trades a
    little bias for variance), then the mean is brought back to 1, so that the prior trained on
    stays the share of positives in the batch. The batch must hold negatives of every target.
    These are Horvitz-Thompson's weights, normalised as Hajek's.
    """
    is_negative_BK = 1 - targets_BK
    raw_BK = is_negative_BK * inverse_probability_B[:, None]
    num_K, sum_K = reduce_sum(torch.stack([is_negative_BK.sum(0), raw_BK.sum(0)]))
    clipped_BK = (raw_BK * (num_K / sum_K)).clamp(max=max_weight)
    kept_K = reduce_sum(clipped_BK.sum(0)) / num_K
    weight_BK = targets_BK + clipped_BK / kept_K
    return ImportanceWeights(weight_BK, clipped_mass=(1 - kept_K.mean()).clamp(min=0))


def weighted_bce(
    logits_BK: Tensor,
    targets_BK: Tensor,
    weight_BK: Tensor,
    *,
    global_batch_size: int,
    world_size: int,
) -> Tensor:
    """Mean over the global batch and the K targets of weight * cross-entropy.

    Scaled by the number of processes, since DistributedDataParallel averages their gradients:
    the average is then the gradient of the loss of one process with the whole batch.
    """
    loss_BK = binary_cross_entropy_with_logits(logits_BK.float(), targets_BK, reduction="none")
    scale = world_size / (global_batch_size * targets_BK.shape[1])
    return (weight_BK * loss_BK).sum() * scale
