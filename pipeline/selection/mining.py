"""Inclusion probabilities from a trained model: how mining chooses more training negatives.

A training negative that the model gives probability p (of showing a target) is chosen with pi2 =
min(1, c * p). The gradient of its logistic loss has length p, so that this is the importance
sampling of least variance (Needell, Srebro and Ward 2014; Katharopoulos and Fleuret 2018). With
the permanent random number u of each image the union of the old draw and this one is Poisson
sampling with pi = max(pi1, pi2) (Ohlsson 1995), provided that p does not depend on u. A model that
was trained on a negative would break that, since it gives images it has seen a lower p. Hence
folds, by a hash of their own: each fold is scored by a model that saw no negative of it
(cross-fitting: Chernozhukov et al. 2018), and has its own c. That is exact for a first pass; in a
second one pi1 itself comes from a model that was trained on draws of other folds, and u reaches p
through two models.

Knows nothing of Ray, files or models. Shapes: N rows, F folds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.dataset.keys import unit_hash
from pipeline.dataset.schema import RejectReason, with_columns

Floats = NDArray[np.float64]


class Eligible(NamedTuple):
    """Some of the training negatives that may be chosen."""

    log_p_N: Floats  # log of the model's probability that they show a target
    probability_N: Floats  # inclusion probability so far


class Decided(NamedTuple):
    """Rows with new decisions, and the changes."""

    rows: pa.Table
    is_new_N: NDArray[np.bool_]  # selected now and not before
    is_suspect_N: NDArray[np.bool_]  # suspected now and not before
    num_eligible: int
    num_expected: float  # of newly selected, before the draw


def fold_of(content_hashes: Iterable[str], num_folds: int) -> NDArray[np.int64]:
    """fold_N in [0, num_folds): by content, so equal images share a fold; independent of u."""
    return np.array([int(unit_hash("fold", each) * num_folds) for each in content_hashes], np.int64)


def judge(
    rows: pa.Table, margin_N: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(is_eligible_N, is_suspect_N) of ledger rows.

    Usable training negatives are eligible; mining leaves val, test and positives as they are. A
    training negative is suspected instead if nobody has verified it and its logit is above the one
    that 95 % of the positives of val reach (margin_N > 0): an unlabelled image so much like the
    target must not become a hard negative. One that is verified absent makes the best of them.
    """
    is_eligible = pc.and_(
        pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["label"], "")),
        rows["reject_reason"].is_null(),
    )
    is_eligible_N = is_eligible.to_numpy()
    is_unknown_N = pc.equal(rows["label_state"], "unknown").to_numpy()
    is_suspect_N = is_eligible_N & is_unknown_N & (margin_N > 0)
    return is_eligible_N & ~is_suspect_N, is_suspect_N


def log_probability(log_odds_N: NDArray[np.float32]) -> Floats:
    """log sigmoid, also exact for very negative log odds."""
    return np.asarray(-np.logaddexp(0.0, -log_odds_N.astype(np.float64)))


def mined_probability(log_p_N: Floats, log_scale_N: Floats) -> NDArray[np.float32]:
    """pi2_N = min(1, c * p)."""
    return np.exp(np.minimum(log_p_N + log_scale_N, 0.0)).astype(np.float32)


def fit_log_scale(pieces: Callable[[], Iterable[Eligible]], *, budget: float) -> float:
    """log c of one fold, for which `budget` more samples are expected.

    Exact: every p is known. `pieces` is called several times. A budget larger than the number of
    candidates takes all.
    """
    low, high, num_most = math.inf, -math.inf, 0.0
    for log_p_N, probability_N in pieces():
        if len(log_p_N):
            low = min(low, float((np.log(probability_N) - log_p_N).min()))  # adds nothing yet
            high = max(high, float(-log_p_N.min()))  # takes everything
            num_most += float((1 - probability_N).sum())
    if low == math.inf:
        return 0.0  # no candidate
    if budget >= num_most:
        return high

    def excess(log_scale: float) -> float:
        return sum(expected_new(piece, log_scale) for piece in pieces()) - budget

    if excess(low) >= 0:
        return low
    return float(brentq(excess, low, high, xtol=1e-12, rtol=1e-14))


def expected_new(eligible: Eligible, log_scale: float) -> float:
    """The sum of max(pi1, pi2) - pi1."""
    log_p_N, probability_N = eligible
    mined_N = np.exp(np.minimum(log_p_N + log_scale, 0.0))
    return float(np.maximum(mined_N - probability_N, 0).sum())


def decide(
    rows: pa.Table,
    *,
    log_odds_N: NDArray[np.float32],
    margin_N: NDArray[np.float32],
    log_scales: Sequence[float],
    seed: int,
) -> Decided:
    """Ledger rows with `inclusion_probability` max(pi1, pi2), drawn by it.

    A suspect is rejected but keeps that probability, by which it is drawn after a person has said
    that it shows no target (`pipeline.curate.verdicts`).
    """
    is_eligible_N, is_suspect_N = judge(rows, margin_N)
    touched = np.flatnonzero(is_eligible_N | is_suspect_N)
    hashes = rows["content_hash"].take(pa.array(touched)).to_pylist()
    before_N = pc.fill_null(rows["inclusion_probability"], 0).to_numpy()
    after_N = before_N.copy()
    log_scale = np.array(log_scales)[fold_of(hashes, len(log_scales))]
    mined = mined_probability(log_probability(log_odds_N[touched]), log_scale)
    after_N[touched] = np.maximum(before_N[touched], mined)
    was_selected_N = rows["selected"].to_numpy()
    is_selected_N = was_selected_N.copy()
    chance = np.array([unit_hash(seed, content_hash) for content_hash in hashes])
    is_selected_N[touched] = chance < after_N[touched]
    is_selected_N &= ~is_suspect_N
    is_null = rows["inclusion_probability"].is_null().to_numpy()
    suspected = pa.scalar(RejectReason.SUSPECTED_POSITIVE.value)
    rows = with_columns(
        rows,
        inclusion_probability=pa.array(after_N, pa.float32(), mask=is_null),
        selected=pa.array(is_selected_N),
        reject_reason=pc.if_else(pa.array(is_suspect_N), suspected, rows["reject_reason"]),
    )
    raised_N = (after_N.astype(np.float64) - before_N)[is_eligible_N]
    return Decided(
        rows,
        is_new_N=is_selected_N & ~was_selected_N,
        is_suspect_N=is_suspect_N,
        num_eligible=int(is_eligible_N.sum()),
        num_expected=float(raised_N.sum()),
    )
