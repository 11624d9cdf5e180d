"""Shares of portions as counts, and what rows then weigh for the loss to be of those shares.

Shapes: C portions of a stream.
"""

import numpy as np
from numpy.typing import NDArray

from train.config.settings import WINDOW

TOLERANCE = 1e-9  # of sums of shares


def round_shares(share_C: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts in `WINDOW`, by largest remainder; none but a share of 0 is left without any."""
    exact_C = share_C / share_C.sum() * WINDOW
    count_C: NDArray[np.int64] = np.floor(exact_C).astype(np.int64)
    missing = WINDOW - int(count_C.sum())
    count_C[np.argsort(count_C - exact_C, kind="stable")[:missing]] += 1
    for starved in np.flatnonzero((count_C == 0) & (share_C > TOLERANCE)):
        count_C[count_C.argmax()] -= 1
        count_C[starved] = 1
    return count_C


def importance_factors(
    share_C: NDArray[np.float64],
    drawn_C: NDArray[np.float64],
    mean_weight_C: NDArray[np.float64],
    is_stated_C: NDArray[np.bool_],
    size_C: NDArray[np.int64],
) -> NDArray[np.float64]:
    """factor_C of the 1 / pi of each portion's rows; 1 for one that is not drawn.

    Let q be a portion's share, Q that share as rounded (drawn_C), w the mean of 1 / pi over its
    rows, and G the portions whose share is not stated, but natural. Rows of G weigh q / Q of their
    1 / pi, so that G has the weight T per share, T = (sum_G q w) / (sum_G q); rows of the others
    weigh q T / (Q w) of theirs, so that each has the weight q T. Without G, T is the mean of
    1 / pi.
    """
    natural_share = float(share_C[~is_stated_C].sum())
    if natural_share > TOLERANCE:
        total = float((share_C * mean_weight_C)[~is_stated_C].sum()) / natural_share
    else:
        total = float(np.average(mean_weight_C, weights=size_C))
    wanted_C = share_C * np.where(is_stated_C, total, mean_weight_C)
    had_C = drawn_C * mean_weight_C
    return np.divide(wanted_C, had_C, out=np.ones_like(wanted_C), where=had_C > 0)
