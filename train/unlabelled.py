"""The risk of training on negatives among which some positives hide: nnPU beside real negatives.

Three kinds of samples: P positives of a target; N negatives that are known to be, verified absent
or positives of another target; U of unknown label. N and U are different parts of one stream, so
their risks add, each with its share of the stream, and U's alone is corrected:

    R = sum_P l(f, 1) + c * [ sum_N w l(f, 0) + max(0, sum_U w l(f, 0) - h * mean_P l(f, 0)) ]

w are the importance weights, h = prior * sum_U w is the weight of the positives among U, whose
cost as negatives the term takes back. It holds since U = prior * P + (1 - prior) * negatives (du
Plessis et al. 2015); a network overfits until the difference is negative, which no risk is, hence
the maximum (nnPU: Kiryo et al. 2017, arXiv:1703.00593, eq. 6). Sakai et al. 2017 (PNU,
arXiv:1605.06955) instead average a risk of P and N with one of P and U; that needs N to be drawn
like the negatives in U, while here a source of generated pictures may be N and photographs U.
c = sum_NU w / (sum_NU w - h) gives the negatives that are left the weight of all, so that the
prior trained on stays the share of positives in the batch. With prior 0, R is the plain sum. The
maximum is taken of each batch: small ones lose some of the correction to it.

The assumption: hidden positives look like known ones ("selected completely at random"). Quarantine
breaks it, as it takes those of high similarity away, therefore only positives no more similar
than the most similar U stand for them (`hidden_weights`). `prior` is the share of the target among
the unknown samples of the stream that are left then. It is half a remedy: in simulation nnPU after
quarantine did harm (mean error of the probability 1.0 % as plain negatives, 4.0 % with nnPU and
offsets), so that it belongs to data sets built with `selection.quarantine: off`.

With offsets o (train.corrections) negatives come by exp(o) times their rate in the stream, hidden
positives too: l is of f - o, mean_P of exp(o) l(f - o, 0), and in h and c stands w exp(-o) for w.

Shapes: B samples of this process, K targets, N rows of the train split.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def hidden_weights(
    label_N: NDArray[np.str_], is_unknown_N: NDArray[np.bool_], similarity_N: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How much each row stands for the positives hidden among unknown ones; 0 for negatives.

    The mean over each target's positives is 1; all weights are 0 for a target without a positive
    that is as little similar as the unknown ones. A similarity of nan excludes nothing.
    """
    ceiling = np.max(similarity_N[is_unknown_N], initial=-np.inf)
    can_hide_N = (label_N != "") & ~(similarity_N > ceiling)
    weight_N = np.zeros(len(label_N), np.float32)
    for target in set(label_N[can_hide_N].tolist()):
        of_target_N = label_N == target
        hiding_N = can_hide_N & of_target_N
        weight_N[hiding_N] = of_target_N.sum() / hiding_N.sum()
    return weight_N


def nonnegative_risk(
    positive_loss_BK: Tensor,
    negative_loss_BK: Tensor,
    targets_BK: Tensor,
    weight_BK: Tensor,
    *,
    is_unknown_B: Tensor,
    hidden_weight_B: Tensor,
    offset_B: Tensor,
    prior: float,
    reduce_sum: Callable[[Tensor], Tensor],
) -> Tensor:
    """risk_BK, whose sum over all processes is R of each target; so is its gradient.

    positive_loss_BK and negative_loss_BK are l(f - o, 1) and l(f - o, 0) of every sample,
    weight_BK is 1 for positives.
    """
    is_unknown_BK = is_unknown_B[:, None] * (1 - targets_BK)
    rate_B = torch.exp(offset_B)  # of selection, relative to its mean over the stream
    stands_BK = targets_BK * (hidden_weight_B * rate_B)[:, None]
    negative_weight_BK = weight_BK * (1 - targets_BK)
    stream_weight_BK = negative_weight_BK / rate_B[:, None]
    num_positives_K, stream_K, unknown_K = reduce_sum(
        torch.stack(
            [
                targets_BK.sum(0),
                stream_weight_BK.sum(0),
                (is_unknown_BK * stream_weight_BK).sum(0),
            ]
        )
    )
    hidden_K = prior * unknown_K / num_positives_K.clamp(min=1)
    unknown_risk_BK = (is_unknown_BK * weight_BK - hidden_K * stands_BK) * negative_loss_BK
    is_risk_K = reduce_sum(unknown_risk_BK.detach().sum(0)) >= 0
    known_risk_BK = (negative_weight_BK * (1 - is_unknown_BK)) * negative_loss_BK
    negative_risk_BK = known_risk_BK + unknown_risk_BK * is_risk_K
    scale_K = stream_K / (stream_K - prior * unknown_K)
    risk_BK: Tensor = targets_BK * positive_loss_BK + scale_K * negative_risk_BK
    return risk_BK
