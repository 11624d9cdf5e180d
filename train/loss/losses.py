"""Importance weights, and losses per sample: cross-entropy, focal loss, hard negative mining.

Shapes: B samples of this process, K targets. `reduce_sum` adds a tensor over all processes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

ReduceSum = Callable[[Tensor], Tensor]


class ImportanceWeights(NamedTuple):
    """weight_BK, and the share of the negatives' weight that was clipped (in [0, 1))."""

    weight_BK: Tensor
    clipped_mass: Tensor


def importance_weights(
    targets_BK: Tensor,
    importance_B: Tensor,
    *,
    max_weight: float,
    reduce_sum: ReduceSum,
    trained_BK: Tensor | None = None,
) -> ImportanceWeights:
    """1 for positives; for negatives importance_B, self-normalised to mean 1.

    trained_BK: 1, or 0 for samples that a column is not trained on, whose weight is 0; default 1.

    The mean is over the global batch, per target: a positive of one target is a negative of the
    others. Weights above `max_weight` times the mean are clipped (trading a little bias for less
    variance), then the mean is brought back to 1, so that the prior trained on stays the share of
    positives in the batch. A column without negatives in the batch learns from positives only.
    These are the weights of Horvitz and Thompson, normalised as by Hajek.
    """
    if trained_BK is None:
        trained_BK = torch.ones_like(targets_BK)
    is_negative_BK = (1 - targets_BK) * trained_BK
    raw_BK = is_negative_BK * importance_B[:, None]
    num_K, sum_K = reduce_sum(torch.stack([is_negative_BK.sum(0), raw_BK.sum(0)]))
    has_none_K = num_K == 0
    clipped_BK = (raw_BK * (num_K / (sum_K + has_none_K))).clamp(max=max_weight)
    kept_K = (reduce_sum(clipped_BK.sum(0)) + has_none_K) / (num_K + has_none_K)
    weight_BK = targets_BK * trained_BK + clipped_BK / kept_K
    return ImportanceWeights(weight_BK, clipped_mass=(1 - kept_K.mean()).clamp(min=0))


def cross_entropy(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """loss_BK in nats; targets_BK are 0 or 1."""
    return binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="none")


def focal_loss(
    logits_BK: Tensor, targets_BK: Tensor, *, gamma: float, alpha: float | None
) -> Tensor:
    """loss_BK = alpha_t (1 - p_t)^gamma * cross-entropy, p_t the probability of the true answer.

    Lin et al. 2017 (arXiv:1708.02002, eq. 5). gamma 0 is cross-entropy, larger values give easy
    samples less weight. alpha weighs positives, 1 - alpha negatives; None weighs neither, since the
    share of positives in a batch and the importance weights already balance the classes.

    torchvision.ops.sigmoid_focal_loss takes the power directly, whose gradient is nan for gamma < 1
    once p_t rounds to 1; a power of logarithms stays finite.
    """
    true_logit_BK = logits_BK * (2 * targets_BK - 1)
    loss_BK = torch.exp(gamma * logsigmoid(-true_logit_BK)) * cross_entropy(logits_BK, targets_BK)
    if alpha is None:
        return loss_BK
    return loss_BK * (alpha * targets_BK + (1 - alpha) * (1 - targets_BK))


def hardest_negatives(
    loss_BK: Tensor,
    targets_BK: Tensor,
    weight_BK: Tensor,
    *,
    share: float,
    gather: Callable[[Tensor], Tensor],
) -> Tensor:
    """kept_BK in [0, 1], a factor for weights: 1 for positives and for the hardest negatives.

    The hardest negatives are those of the largest losses that together have `share` of the weight
    of the global batch's negatives, per target; the others have 0 (Shrivastava et al. 2016,
    arXiv:1604.03540, who mine regions of equal weight). The share is one of weight, not of number,
    since a weight of 10 stands for ten negatives of the stream. A negative at the limit counts in
    part, and ties in equal parts, so that the result does not depend on the order of the batch or
    the number of processes. `gather` concatenates the rows of all processes.

    Positives keep their weight while negatives lose 1 - share of theirs: the prior trained on is
    no longer the share of positives in the batch.
    """
    negative_weight_BK = weight_BK * (1 - targets_BK)
    # Positives have no weight here, and rank below every negative.
    ranked_BK = torch.where(targets_BK == 1, -torch.inf, loss_BK.detach())
    ranked_GK, weight_GK = gather(torch.stack([ranked_BK, negative_weight_BK], 1)).unbind(1)
    wanted_K = share * weight_GK.sum(0)
    descending_GK, order_GK = ranked_GK.sort(0, descending=True)
    # In float64, so that rounding of a long sum does not move the limit.
    mass_GK = weight_GK.gather(0, order_GK).double().cumsum(0)
    position_K = (mass_GK < wanted_K * (1 - 1e-6)).sum(0).clamp(max=len(mass_GK) - 1)
    limit_K = descending_GK.gather(0, position_K[None])[0]
    above_K = (weight_GK * (ranked_GK > limit_K)).sum(0)
    at_limit_K = (weight_GK * (ranked_GK == limit_K)).sum(0)
    # A column may have no negative in this batch: 0 / 0 would be nan for all of its samples.
    part_K = ((wanted_K - above_K) / (at_limit_K + (at_limit_K == 0))).clamp(0, 1)
    kept_BK = (ranked_BK > limit_K) + part_K * (ranked_BK == limit_K)
    return torch.where(targets_BK == 1, 1.0, kept_BK)
