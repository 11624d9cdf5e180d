"""The first head: logistic regressions on the negatives that similarity drew, one per fold.

Each leaves out one fold of the negatives, so that no candidate is judged by a head that has seen
it, and one of the positives, which set its guard. Features are standardised by the mean and
deviation of the samples that it is fitted on. Seconds on kept embeddings.

Knows nothing of Ray or files. Shapes: B batch, P positives, N negatives, D embedding, F folds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

_STRENGTH = 0.1  # inverse of the L2 regularisation of standardised features
_MAX_WEIGHT = 20.0  # of a negative, in units of their mean
_GUARD_TPR = 0.95

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FirstHead:
    """logit = embedding @ weight_D + bias; guard: the logit that 95 % of the positives reach."""

    weight_D: NDArray[np.float32]
    bias: float
    guard: float

    def logits(self, embedding_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(embedding_BD @ self.weight_D + np.float32(self.bias))


def fit_first_heads(
    positive_PD: Floats,
    negative_ND: Floats,
    probability_N: Floats,
    *,
    positive_fold_P: Ints,
    negative_fold_N: Ints,
    num_folds: int,
) -> list[FirstHead | None]:
    """Head f has seen nothing of fold f; None if that leaves no positive or no negative to fit.

    probability_N: with which the negatives were drawn; they weigh its inverse.
    """
    return [
        _fit_without(
            positive_PD, negative_ND, probability_N, positive_fold_P == f, negative_fold_N == f
        )
        for f in range(num_folds)
    ]


def _fit_without(
    positive_PD: Floats,
    negative_ND: Floats,
    probability_N: Floats,
    is_left_out_P: NDArray[np.bool_],
    is_left_out_N: NDArray[np.bool_],
) -> FirstHead | None:
    if is_left_out_P.all() or is_left_out_N.all():
        return None
    seen_N = ~is_left_out_N
    weight_D, bias = fit_logistic(
        positive_PD[~is_left_out_P], negative_ND[seen_N], 1 / probability_N[seen_N].astype(float)
    )
    judged_PD = positive_PD[is_left_out_P] if is_left_out_P.any() else positive_PD
    return FirstHead(weight_D.astype(np.float32), bias, guard_of(judged_PD @ weight_D + bias))


def guard_of(logit_P: Floats) -> float:
    """The logit that 95 % of the positives reach."""
    return float(np.quantile(logit_P, 1 - _GUARD_TPR, method="lower"))


def fit_logistic(
    positive_PD: Floats, negative_ND: Floats, weight_N: Floats
) -> tuple[Floats, float]:
    """weight_D and bias for embeddings as they are, of a regression on standardised features.

    weight_N: of the negatives among each other; both classes weigh the same.
    """
    samples_D = np.concatenate([positive_PD, negative_ND]).astype(np.float64)
    mean_D, deviation_D = samples_D.mean(axis=0), samples_D.std(axis=0) + 1e-6
    weight_N = np.minimum(weight_N / weight_N.mean(), _MAX_WEIGHT)
    half = len(samples_D) / 2
    weights = np.concatenate(
        [np.full(len(positive_PD), half / len(positive_PD)), weight_N * half / weight_N.sum()]
    )
    is_positive = np.arange(len(samples_D)) < len(positive_PD)
    model = LogisticRegression(C=_STRENGTH, max_iter=1000)
    model.fit((samples_D - mean_D) / deviation_D, is_positive, sample_weight=weights)
    weight_D = model.coef_[0] / deviation_D
    return weight_D, float(model.intercept_[0] - mean_D @ weight_D)
