"""`train.correction`: the importance and the offset by which the loss undoes the selection.

Negatives are selected with probability pi, so that the odds in the sample are not those in the
stream: logit_sample(x) = logit_stream(x) - log pi(x). Three corrections:

weight   each negative weighs 1 / pi. Exact for any pi, at the price of the variance of weights
         between 1 and 100.
offset   the loss is that of f(x) - log p(x), for positives and negatives alike, so that f learns
         logit_stream (King and Zeng 2001, prior correction, at every x; logit adjustment, Menon
         et al. 2021). p must be one function of x: positives belong to no source, and where the
         same x could come from two of them at different rates, neither's rate is right. Let
         p(s) be the share of the stream that is selected at similarity s, all sources together:
         number selected / sum of 1 / pi, around s. Each negative then weighs p(s) / pi, which
         brings every source to the rate p(s). Those weights are near 1, and all 1 where the
         sources have one scale; they also make the method exact for any p, and any pi, so that
         the estimate of p only costs variance. (In the world of tests/support/known_posterior.py,
         where an image reveals its source, probabilities are off by 0.6 % on average, without
         those weights by 2.9 %, and with each negative's own pi for p by 1.0 %.)
none     neither: f learns the odds of the sample, in which hard negatives are overrepresented.

Constants only change the bias, which the calibration sets: the oversampling of positives (log c),
and the mean of p over the stream, by which p is divided here so that f is at the prior
`positive_share` with both `weight` and `offset`.

Shapes: N rows of the train split, M knots.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from train.data.mixture import Mixture
from train.data.rows import TrainRows

_MAX_KNOTS = 128
_MIN_ROWS_PER_KNOT = 20
_NEVER = 1e-9  # draw rate of rows that are never drawn


@dataclass(frozen=True)
class LossTerms:
    """Columns beside `TrainRows`.

    Positives have an importance, too, since they are negatives of the other targets: their pi is 1.
    """

    importance_N: NDArray[np.float32]  # weight of a negative, before normalisation
    offset_N: NDArray[np.float32]  # subtracted from every logit of the sample


def loss_terms(
    rows: TrainRows,
    correction: Literal["weight", "offset", "none"],
    *,
    mixture: Mixture | None = None,
) -> LossTerms:
    """Raises ConfigError if `correction` is offset and similarities are missing."""
    importance_N, offset_N = rows.inverse_probability_N, np.zeros(len(rows.keys), np.float32)
    if mixture is not None:
        importance_N = (importance_N * mixture.importance_factor_N).astype(np.float32)
    if correction == "none":
        importance_N = np.ones_like(importance_N)
    elif correction == "offset":
        rate_N = None if mixture is None else mixture.draw_rate_N
        importance_N, offset_N = _offset(rows, importance_N, rate_N)
    return LossTerms(importance_N, offset_N)


def selection_curve(
    similarity_N: NDArray[np.float32],
    inverse_probability_N: NDArray[np.float32],
    draw_rate_N: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """knots_M of similarity, and log p there: the share of the stream that is selected around it.

    Takes negatives only. Knots are the means of equally many rows in order of similarity; the
    share is their number divided by the Horvitz-Thompson estimate of the stream's number. With a
    mixture, a row counts as often as it is drawn.
    """
    order = np.argsort(similarity_N, kind="stable")
    num_knots = int(np.clip(len(order) // _MIN_ROWS_PER_KNOT, 1, _MAX_KNOTS))
    groups = np.array_split(order, num_knots)
    knots_M = [similarity_N[group].mean(dtype=np.float64) for group in groups]
    if draw_rate_N is None:
        means = [inverse_probability_N[group].mean(dtype=np.float64) for group in groups]
    else:
        # Rows that are never drawn hardly count, unless a group has no others.
        rate_N = np.maximum(draw_rate_N, _NEVER)
        means = [np.average(inverse_probability_N[g], weights=rate_N[g]) for g in groups]
    log_share_M = -np.log(means)
    return np.array(knots_M), log_share_M


def _offset(
    rows: TrainRows, inverse_N: NDArray[np.float32], draw_rate_N: NDArray[np.float64] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """importance_N and offset_N, where each row stands for inverse_N of the stream."""
    if num_missing := int(np.isnan(rows.similarity_N).sum()):
        raise ConfigError(
            f"train.correction: offset needs the similarity of every training sample, but "
            f"{num_missing:,} of {len(rows.keys):,} have none; use train.correction: weight"
        )
    is_negative_N = rows.label_N == ""
    rate_N = None if draw_rate_N is None else draw_rate_N[is_negative_N]
    knots_M, log_share_M = selection_curve(
        rows.similarity_N[is_negative_N], inverse_N[is_negative_N], rate_N
    )
    # Beyond the knots, where there are hardly any negatives, the curve is constant.
    log_rate_N = np.interp(rows.similarity_N, knots_M, log_share_M)
    stands_for_N = inverse_N.astype(np.float64)
    importance_N = np.exp(log_rate_N) * stands_for_N
    drawn_N = 1.0 if rate_N is None else rate_N
    mean_rate = (importance_N[is_negative_N] * drawn_N).sum()
    mean_rate /= (stands_for_N[is_negative_N] * drawn_N).sum()
    return importance_N.astype(np.float32), (log_rate_N - np.log(mean_rate)).astype(np.float32)
