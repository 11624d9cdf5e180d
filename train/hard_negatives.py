"""Online hard example mining: only the negatives of a batch that cost most count.

Shapes: B samples of this process, G samples of all processes, K targets.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def hardest_negatives(
    loss_BK: Tensor,
    targets_BK: Tensor,
    weight_BK: Tensor,
    *,
    share: float,
    gather: Callable[[Tensor], Tensor],
) -> Tensor:
    """kept_BK in [0, 1], by which weights are to be multiplied: 1 for positives.

    1 also for the negatives of the largest losses that together hold `share` of the weight of the
    global batch's negatives, target by target, and 0 for the rest (Shrivastava et al. 2016,
    arXiv:1604.03540, who mine regions of equal weight). Shares of weight and not of number, since
    a weight of 10 stands for ten negatives of the stream. What lies on the limit counts in part,
    and ties in equal parts, so that the result does not depend on the order of the batch or on
    how many processes share it. `gather` joins the rows of all processes.

    Positives keep their weight while negatives lose 1 - share of theirs: the prior trained on is
    no longer the share of positives in the batch.
    """
    negative_weight_BK = weight_BK * (1 - targets_BK)
    # A positive has no weight here; below every loss, it is no limit either.
    ranked_BK = torch.where(targets_BK == 1, -torch.inf, loss_BK.detach())
    ranked_GK, weight_GK = gather(torch.stack([ranked_BK, negative_weight_BK], 1)).unbind(1)
    wanted_K = share * weight_GK.sum(0)
    descending_GK, order_GK = ranked_GK.sort(0, descending=True)
    # Doubles, so that the limit is not missed by the rounding of a long sum.
    mass_GK = weight_GK.gather(0, order_GK).double().cumsum(0)
    position_K = (mass_GK < wanted_K * (1 - 1e-6)).sum(0).clamp(max=len(mass_GK) - 1)
    limit_K = descending_GK.gather(0, position_K[None])[0]
    above_K = (weight_GK * (ranked_GK > limit_K)).sum(0)
    at_limit_K = (weight_GK * (ranked_GK == limit_K)).sum(0)
    part_K = ((wanted_K - above_K) / at_limit_K).clamp(0, 1)
    kept_BK = (ranked_BK > limit_K) + part_K * (ranked_BK == limit_K)
    return torch.where(targets_BK == 1, 1.0, kept_BK)
