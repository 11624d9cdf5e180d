"""Rates and their confidence intervals: how often an event happens in the stream.

Weights are Horvitz-Thompson (1952), 1 / inclusion_probability, so that sums estimate the stream
that was sampled from. Shapes: N samples, M negatives.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from pipeline.selection.intervals import weighted_interval
from train.metrics.ranking import Bools, Floats


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A proportion in [0, 1] and its two-sided 95 % interval; None without samples."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # number of samples, unweighted


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
