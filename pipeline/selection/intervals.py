"""The interval of a rate in the stream, by samples that were drawn with known probabilities.

Pure. Shapes: N samples.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


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
