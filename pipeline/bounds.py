"""What a cheap look tells of the full one: from a pilot to the cascade of a plan.

Pure: reads a pilot's rows, opens no image and starts nothing. Shapes: N rows.
"""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack

from pipeline.commits import CascadePlan
from pipeline.config import SelectionConfig
from pipeline.records import CHEAP_SIMILARITY, RejectReason
from pipeline.steps.select import SelectionRule, decisive_similarity, upper_similarity

# Of the hard negatives' mass so much lies under the bound. What lies above is not lost, only drawn
# with the bound's probability: on photographs 98 % of near negatives are kept at beta 8.
_QUANTILE = 0.97
# Weights exp(beta s) of the fit, also where the selection is uniform: suspected positives are to
# be found among the most similar.
_MIN_BETA = 8.0
_MIN_FITTED = 20  # with fewer every look is a full one
_MAX_FITTED = 4096  # more cost minutes and hardly move two numbers


def fit_cascade(pilot: pa.Table, selection: SelectionConfig) -> CascadePlan | None:
    """Fits the bound, without expectations yet; None where there is too little to fit it on.

    It depends on no budget but by the size of the pilot. Suspected positives are fitted on too,
    for others to be found by it.
    """
    is_negative = pc.equal(pilot["label"], "")
    is_known = pc.and_(pilot["doubt"].is_null(), pilot[CHEAP_SIMILARITY].is_valid())
    negatives = pilot.filter(
        pc.and_(is_negative, pc.and_(is_known, pilot["similarity"].is_valid()))
    )
    if negatives.num_rows < _MIN_FITTED:
        return None
    # Sorted: the pilot's rows come in any order.
    negatives = negatives.sort_by([(CHEAP_SIMILARITY, "ascending"), ("similarity", "ascending")])
    step = math.ceil(negatives.num_rows / _MAX_FITTED)
    cheap_N, similarity_N = (
        negatives[name].to_numpy()[::step].astype(np.float64)
        for name in (CHEAP_SIMILARITY, "similarity")
    )
    beta = max(selection.effective_beta, _MIN_BETA)
    intercept, slope = fit_quantile(
        cheap_N,
        similarity_N,
        weight_N=np.exp(beta * (similarity_N - similarity_N.max())),
        quantile=_QUANTILE,
    )
    return CascadePlan(
        intercept=intercept, slope=slope, expected_recall=1.0, expected_full_share=1.0
    )


def fit_quantile(
    x_N: NDArray[np.float64],
    y_N: NDArray[np.float64],
    *,
    weight_N: NDArray[np.float64],
    quantile: float,
) -> tuple[float, float]:
    """Intercept and slope of the line that so much of the weight of y lies under.

    Linear quantile regression as a linear program (Koenker and Bassett 1978, Regression
    quantiles): the least weighted sum of quantile * over + (1 - quantile) * under. A line that
    falls says that x tells nothing; it is replaced by the quantile of y.
    """
    weight_N = weight_N / weight_N.mean()
    cost = np.concatenate([[0.0, 0.0], quantile * weight_N, (1 - quantile) * weight_N])
    line_N2 = csr_array(np.stack([np.ones_like(x_N), x_N], axis=1))
    identity_NN = eye_array(len(x_N), format="csr")
    bounds = [(None, None), (0, None)] + [(0, None)] * (2 * len(x_N))
    found = linprog(
        cost, A_eq=hstack([line_N2, identity_NN, -identity_NN]), b_eq=y_N, bounds=bounds
    )
    assert found.status == 0, found.message
    return float(found.x[0]), float(found.x[1])


def with_expectations(
    rule: SelectionRule, pilot: pa.Table, *, train_fraction: float
) -> CascadePlan:
    """The rule's cascade with what it comes to, for estimates alone."""
    assert rule.cascade is not None
    negatives = pilot.filter(
        pc.and_(pc.equal(pilot["label"], ""), pilot["reject_reason"].is_null())
    )
    full_N = rule.train_probability(negatives["similarity"].to_numpy())
    kept_N = rule.train_probability(decisive_similarity(negatives, rule.cascade))
    return rule.cascade.model_copy(
        update={
            "expected_recall": float(kept_N.sum() / full_N.sum()) if len(full_N) else 1.0,
            "expected_full_share": _full_share(rule, pilot, train_fraction),
        }
    )


def _full_share(rule: SelectionRule, pilot: pa.Table, train_fraction: float) -> float:
    """Share of candidates that get the full look, splits and random numbers left out."""
    num_rows = pilot.num_rows
    upper_N = upper_similarity(pilot, rule.cascade)
    train_N = rule.train_probability(np.fmin(upper_N, 1.0)).astype(np.float64)
    if rule.ceiling is not None:
        is_unlabelled_N = np.array([s == "unknown" for s in pilot["label_state"].to_pylist()], bool)
        train_N[is_unlabelled_N & ~(upper_N <= rule.ceiling)] = 1.0
    share_N = train_fraction * train_N + (1 - train_fraction) * rule.eval_probability
    columns = (pilot[name].to_pylist() for name in ("label", "doubt", "reject_reason"))
    for n, (label, doubt, reason) in enumerate(zip(*columns, strict=True)):
        if reason is not None or doubt == RejectReason.CONFLICTING_LABELS:
            share_N[n] = 0.0
        elif label or doubt == RejectReason.SUSPECTED_POSITIVE:
            share_N[n] = 1.0
    return float(share_N.mean()) if num_rows else 1.0
