"""Rates with their intervals: how often an event happens in the stream, and how sure that is.

Knows no model, file or stratum. Weights are Horvitz-Thompson (1952), 1 / inclusion_probability, so
that sums estimate the stream that was sampled from. Shapes: N samples, M negatives.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from train.metrics.ranking import Bools, Floats


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A proportion in [0, 1] and its two-sided 95 % interval; None where there was no sample."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # samples looked at, weights apart


def clopper_pearson(
    num_events: float, n: float, *, confidence: float = 0.95
) -> tuple[float, float]:
    """The exact interval of a binomial proportion (Clopper and Pearson, Biometrika 1934).

    Two-sided: 0 of n gives an upper end of about 3.7 / n (the one-sided bound is 3 / n).
    """
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, num_events, n - num_events + 1) if num_events > 0 else 0.0
    high = beta.ppf(1 - tail, num_events + 1, n - num_events) if num_events < n else 1.0
    return float(low), float(high)


def weighted_interval(
    events_N: Bools, weights_N: Floats, *, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of a weighted proportion; with equal weights that of Clopper and Pearson.

    Fay and Feuer (Statistics in Medicine 1997) for rates: each end is a quantile of a distribution
    with the mean and variance of the estimate, for the upper end after one more event of the
    largest weight, the worst that can have stayed unseen. Here of a beta instead of their gamma
    distribution, on the effective sample size that the variance implies (Korn and Graubard, Survey
    Methodology 1998), so that it ends at 1 and holds for common events, too.

    Covers 93 to 97 % where one sample of the largest weight holds less of the stream than a
    quarter of the standard error; else more, up to 99 %: where few events or few heavy samples
    decide. The percentile bootstrap covers as little as 75 % there (test_intervals.py).
    """
    tail = (1 - confidence) / 2
    share_N = weights_N.astype(np.float64) / weights_N.sum(dtype=np.float64)
    if events_N.all() or share_N @ events_N > 0.5:
        low, high = _interval_of_less_than_half(~events_N, share_N, tail)
        return 1 - high, 1 - low
    return _interval_of_less_than_half(events_N, share_N, tail)


def _interval_of_less_than_half(
    events_N: Bools, share_N: Floats, tail: float
) -> tuple[float, float]:
    rate = float(share_N @ events_N)
    # The events' own share of the variance, as if they were Poisson; or, where events sit in light
    # samples, that of the ratio estimate, which then hangs on the mass of the heavy ones.
    variance = max(
        float(share_N[events_N] @ share_N[events_N]),
        float(share_N**2 @ (events_N - rate) ** 2) / (1 - rate),
    )
    low = 0.0
    if events_N.any():
        num_events, n = rate**2 / variance, rate / variance
        low = float(beta.ppf(tail, num_events, max(n - num_events + 1, 1e-9)))
    unseen = float(share_N.max())
    rate, variance = rate + unseen, variance + unseen**2
    num_events, n = rate**2 / variance, rate / variance
    if num_events >= n + 1:  # one sample is nearly all of the stream
        return low, 1.0
    return low, float(beta.ppf(1 - tail, num_events, n - num_events + 1))


def event_rate(events_N: Bools, weights_N: Floats) -> Rate:
    """How often an event happens in the stream, e.g. a detection among negatives."""
    n = len(events_N)
    if n == 0:
        return Rate()
    low, high = weighted_interval(events_N, weights_N)
    return Rate(value=float(np.average(events_N, weights=weights_N)), low=low, high=high, n=n)


def upper_bound(events_N: Bools, weights_N: Floats) -> float:
    """One-sided, at 95 %: the rate is below. With 0 of n of equal weight that is 3 / n."""
    return weighted_interval(events_N, weights_N, confidence=0.9)[1]


def threshold_bounds(
    positive_logits_N: Floats, *, tpr: float, confidence: float
) -> tuple[float, float]:
    """Where the threshold lies that detects a share `tpr` of all positives, not just of these.

    Order statistics, whatever the distribution (David and Nagaraja, Order Statistics, 2003, 7.1);
    infinite where there are too few positives to tell.
    """
    tail, n = (1 - confidence) / 2, len(positive_logits_N)
    ascending_N = np.sort(positive_logits_N)
    lower, upper = binom.ppf([tail, 1 - tail], n, 1 - tpr).astype(int)
    low = float(ascending_N[lower - 1]) if lower > 0 else -math.inf
    high = float(ascending_N[upper]) if upper < n else math.inf
    return low, high


def rate_at_true_tpr(
    positive_logits_N: Floats, negative_logits_M: Floats, weights_M: Floats, *, tpr: float
) -> tuple[float, float]:
    """The 95 % interval of the rate at which negatives are detected where `tpr` of all positives
    are.

    Half of the 5 % goes to the threshold, which the positives tell no better than their number
    allows, half to the rate at its ends (Bonferroni): covers at least 95 %.
    """
    at_least, at_most = threshold_bounds(positive_logits_N, tpr=tpr, confidence=0.975)
    low = weighted_interval(negative_logits_M >= at_most, weights_M, confidence=0.975)[0]
    if at_least == -math.inf:
        return low, 1.0
    return low, weighted_interval(negative_logits_M >= at_least, weights_M, confidence=0.975)[1]


def effective_size(weights_N: Floats) -> float:
    """So many equally weighted samples would tell as much (Kish 1965); 0 of none."""
    return float(weights_N.sum() ** 2 / np.sum(weights_N**2)) if len(weights_N) else 0.0


def samples_needed(rate: float) -> int:
    """The fewest samples among which no event says, at 95 %, that it is rarer than `rate`."""
    return math.ceil(math.log(0.05) / math.log1p(-rate))
