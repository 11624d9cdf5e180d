"""Rates and their confidence intervals: how often an event happens in the stream.

Weights are Horvitz-Thompson (1952), 1 / inclusion_probability, so that sums estimate the stream
that was sampled from. Shapes: N samples, M negatives.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from train.metrics.ranking import Bools, Floats


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A proportion in [0, 1] and its two-sided 95 % interval; None without samples."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # number of samples, unweighted


def weighted_interval(
    events_N: Bools, weights_N: Floats, *, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of a weighted proportion; with equal weights that of Clopper and Pearson.

    Fay and Feuer (Statistics in Medicine 1997) for rates: each end is a quantile of a distribution
    with the mean and variance of the estimate; the upper end first adds one event of the largest
    weight, the worst that can have been missed. This uses a beta instead of their gamma
    distribution, with the effective sample size that the variance implies (Korn and Graubard,
    Survey Methodology 1998), so that it ends at 1 and also holds for common events.

    Covers 93 to 97 % if the largest weight's share of the stream is less than a quarter of the
    standard error, else up to 99 %: if few events or few heavy samples decide. The percentile
    bootstrap covers as little as 75 % there (test_intervals.py).
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
    # The variance of the events as if they were Poisson; or, if only light samples are events, that
    # of the ratio estimate, which then depends on the mass of the heavy samples.
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
    if num_events >= n + 1:  # one sample stands for nearly all of the stream
        return low, 1.0
    return low, float(beta.ppf(1 - tail, num_events, n - num_events + 1))


def event_rate(events_N: Bools, weights_N: Floats) -> Rate:
    """The rate of an event in the stream, e.g. of detections among negatives."""
    n = len(events_N)
    if n == 0:
        return Rate()
    low, high = weighted_interval(events_N, weights_N)
    return Rate(value=float(np.average(events_N, weights=weights_N)), low=low, high=high, n=n)


def upper_bound(events_N: Bools, weights_N: Floats) -> float:
    """The one-sided 95 % upper bound of the rate: 3 / n for 0 of n of equal weight."""
    return weighted_interval(events_N, weights_N, confidence=0.9)[1]


def threshold_bounds(
    positive_logits_N: Floats, *, tpr: float, confidence: float
) -> tuple[float, float]:
    """The interval of the threshold that detects a share `tpr` of the population of positives.

    By order statistics, for any distribution (David and Nagaraja, Order Statistics, 2003, 7.1);
    infinite ends if the positives are too few.
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
    """The 95 % interval of the false-positive rate at which `tpr` of all positives are detected.

    Half of the 5 % goes to the threshold, which is estimated from the positives, half to the rate
    at its ends (Bonferroni): covers at least 95 %.
    """
    at_least, at_most = threshold_bounds(positive_logits_N, tpr=tpr, confidence=0.975)
    low = weighted_interval(negative_logits_M >= at_most, weights_M, confidence=0.975)[0]
    if at_least == -math.inf:
        return low, 1.0
    return low, weighted_interval(negative_logits_M >= at_least, weights_M, confidence=0.975)[1]


def effective_size(weights_N: Floats) -> float:
    """The number of equally weighted samples that are as informative (Kish 1965); 0 for none."""
    return float(weights_N.sum() ** 2 / np.sum(weights_N**2)) if len(weights_N) else 0.0


def samples_needed(rate: float) -> int:
    """The fewest samples that, without an event, show at 95 % that it is rarer than `rate`."""
    return math.ceil(math.log(0.05) / math.log1p(-rate))
