"""From raw logits to probabilities, a threshold with a guarantee, and "one in N".

Fitted on held-out rows, which are never those of test: rows that the model, or the head of their
fold, was not trained on (`train.folds`; otherwise val). They are drawn uniformly or weighted by
1 / inclusion_probability. In this order:

1. Prior correction: a logit is the log-odds at the prior trained on; minus the log-odds of that
   prior it is a log-likelihood ratio, which does not depend on the mix.
2. Platt scaling (scale and bias) or temperature scaling (only scale), then the log-odds of the
   prior of those rows. For Platt step 1 is only another bias, so that it works with any loss and
   correction.
3. Another shift to the prior in use.

The threshold and the negatives kept for "one in N" are raw logits: Platt's scale is positive, so
the order is the same, and the guarantee does not depend on the fit.

With several folds the logits are those of different heads, and the model is the mean of these: the
guarantee of the threshold is then approximate. The mean varies less than a head, so that fewer of
its negatives reach a threshold set on theirs: simulated with delta 5 %, the rate was above alpha in
0 to 2.4 % of 1,000 runs (tests/train/metrics/test_promise_of_folds.py).

Shapes: N held-out samples.
"""

import logging
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit
from scipy.special import logit as log_odds
from scipy.stats import beta, binom

from pipeline.errors import ConfigError, InfinegError
from train.metrics.ranking import Bools, Floats
from train.model.info import Promise, TargetCalibration

Method = Literal["platt", "temperature"]

# Parts of the negatives for which a rate is promised, by strata. Photographs include look-alikes.
PARTS = {
    "photographs": ("near", "mid", "far", ""),
    "look_alikes": ("near",),
    "generated": ("generated",),
}

_log = logging.getLogger(__name__)

# Kept in model.json, about 40 kB per target: enough for the top 0.1 % of 4 million negatives.
_MAX_NEGATIVE_LOGITS = 4096
# Bounds of the scale in units of 1 / the spread of the logits; a smaller one separates nothing.
_MIN_SCALE, _MAX_SCALE = 1e-3, 1e3
_NOTHING_LEARNED = "held-out positives have no higher logits than negatives: nothing was learned"
_TOO_FEW = (
    "%s: %d held-out negatives%s are too few for alpha %g at delta %g (it takes %d); "
    "the threshold holds for alpha %.3g"
)


def calibrate_target(
    logits_N: Floats,
    is_positive_N: Bools,
    weights_N: Floats,
    *,
    target: str,
    stratum_N: NDArray[np.str_] | None = None,
    promise: Literal["mix", "worst"] = "mix",
    alpha: float,
    delta: float,
    deploy_prior: float,
    method: Method = "platt",
    trained_prior: float | None = None,
) -> TargetCalibration:
    """Fits a target's calibration and threshold.

    Calibrated log-odds are scale * f + bias in the mix of these rows, and the same + prior_shift
    if the target's share is `deploy_prior`. weights_N, 1 / inclusion_probability, are for the
    calibration; the threshold and "one in N" are about negatives as drawn, each counted once.
    promise: whether alpha is the rate of all negatives, or of each part of them by itself
    (`PARTS`). Raises ConfigError for `temperature` without the `trained_prior`, at which logits_N
    are log-odds.
    """
    num_negatives = int((~is_positive_N).sum())
    if num_negatives in (0, len(is_positive_N)):
        raise InfinegError(
            f"target {target}: {num_negatives} of {len(is_positive_N)} held-out samples are "
            "negatives; calibration needs both classes. Raise `split.val` or add samples."
        )
    if method == "platt":
        scale, bias = fit_platt(logits_N, is_positive_N, weights_N)
    else:
        if trained_prior is None:
            raise ConfigError(
                f"evaluate.calibration: temperature needs the prior that the logits of {target} "
                "were trained on, which is only known for train.loss: bce with train.correction: "
                "weight or offset; platt does not need it"
            )
        scale, bias = fit_temperature(
            logits_N, is_positive_N, weights_N, trained_prior=trained_prior
        )
    prior = np.average(is_positive_N, weights=weights_N)
    negative_logits = np.sort(logits_N[~is_positive_N])[::-1]
    parts = {} if stratum_N is None else _parts(logits_N[~is_positive_N], stratum_N[~is_positive_N])
    wanted_for = list(parts.values()) if promise == "worst" and parts else [negative_logits]
    bounds = [umbrella_threshold(each, alpha=alpha, delta=delta) for each in wanted_for]
    threshold, reached = (max(values) for values in zip(*bounds, strict=True))
    if reached > alpha:
        wanted, fewest = negatives_needed(alpha, delta), min(map(len, wanted_for))
        where = " of the smallest part (promise: worst)" if promise == "worst" and parts else ""
        _log.warning(_TOO_FEW, target, fewest, where, alpha, delta, wanted, reached)
    return TargetCalibration(
        scale=scale,
        bias=bias,
        prior_shift=float(log_odds(deploy_prior) - log_odds(prior)),
        prior=deploy_prior,
        threshold=threshold,
        alpha=reached,
        delta=delta,
        num_negatives=num_negatives,
        promises={
            name: Promise(
                alpha=promised_rate(each, threshold, delta=delta), num_negatives=len(each)
            )
            for name, each in parts.items()
        },
        negative_logits=tuple(map(float, negative_logits[:_MAX_NEGATIVE_LOGITS])),
    )


def fit_platt(logits_N: Floats, is_positive_N: Bools, weights_N: Floats) -> tuple[float, float]:
    """(scale, bias) so that expit(scale * f + bias) is the probability in the weighted mix.

    Platt 1999: logistic regression on targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2), so that the fit
    stays finite for separable classes. Each class has its number of samples as mass, so that those
    targets mean one uncertain sample whatever the weights; the bias is then moved to the weighted
    mix (Prentice and Pyke 1979: another mix of the classes only changes the bias).
    """
    mass_N, goal_N = _goals(is_positive_N, weights_N)
    center, spread = logits_N.mean(), max(float(logits_N.std()), 1e-12)
    standard_N = (logits_N.astype(np.float64) - center) / spread

    def loss_and_gradient(parameters: Floats) -> tuple[float, Floats]:
        f_N = parameters[0] * standard_N + parameters[1]
        error_N = mass_N * (expit(f_N) - goal_N)
        loss = np.sum(mass_N * (np.logaddexp(0, f_N) - goal_N * f_N))
        return float(loss), np.array([error_N @ standard_N, error_N.sum()])

    # The scale stays positive to keep order and ties: a wrong ranking gives a nearly flat curve.
    start = np.array([1.0, log_odds(is_positive_N.mean())])
    fit = minimize(
        loss_and_gradient, start, jac=True, bounds=[(_MIN_SCALE, None), (None, None)], tol=1e-10
    )
    if fit.x[0] <= _MIN_SCALE:
        _log.warning(_NOTHING_LEARNED)
    scale = float(fit.x[0] / spread)
    assert scale > 0
    weighted_prior = np.average(is_positive_N, weights=weights_N)
    bias = fit.x[1] - scale * center + log_odds(weighted_prior) - log_odds(is_positive_N.mean())
    return scale, float(bias)


def fit_temperature(
    logits_N: Floats, is_positive_N: Bools, weights_N: Floats, *, trained_prior: float
) -> tuple[float, float]:
    """(scale, bias) like `fit_platt`, but with one free parameter, the temperature 1 / scale.

    Guo et al. 2017 (arXiv:1706.04599). Scales the log-likelihood ratio, which is the logit minus
    the log-odds of `trained_prior`, then adds the log-odds of the weighted mix. Masses and targets
    are those of `fit_platt`. The loss is convex in the scale, so its slope has one root.
    """
    mass_N, goal_N = _goals(is_positive_N, weights_N)
    ratio_N = logits_N.astype(np.float64) - log_odds(trained_prior)
    spread = max(float(np.sqrt(np.mean(ratio_N**2))), 1e-12)
    drawn_log_odds = log_odds(is_positive_N.mean())

    def slope(log_scale: float) -> float:
        predicted_N = expit(np.exp(log_scale) / spread * ratio_N + drawn_log_odds)
        return float((mass_N * (predicted_N - goal_N)) @ (ratio_N / spread))

    low, high = math.log(_MIN_SCALE), math.log(_MAX_SCALE)
    if slope(low) >= 0:
        _log.warning(_NOTHING_LEARNED)
        high = low
    elif slope(high) > 0:
        high = float(brentq(slope, low, high, xtol=1e-10))
    scale = math.exp(high) / spread
    weighted_prior = np.average(is_positive_N, weights=weights_N)
    return scale, float(log_odds(weighted_prior) - scale * log_odds(trained_prior))


def _goals(is_positive_N: Bools, weights_N: Floats) -> tuple[Floats, Floats]:
    """mass_N and goal_N of Platt 1999: see `fit_platt`."""
    num_positives = int(is_positive_N.sum())
    num_negatives = len(is_positive_N) - num_positives
    mass_N = weights_N.astype(np.float64)
    for members, number in ((is_positive_N, num_positives), (~is_positive_N, num_negatives)):
        mass_N[members] *= number / mass_N[members].sum()
    goal_N = np.where(
        is_positive_N, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2)
    )
    return mass_N, goal_N


def _parts(negative_logits_N: Floats, stratum_N: NDArray[np.str_]) -> dict[str, Floats]:
    """The logits of each part that has any."""
    found = {name: negative_logits_N[np.isin(stratum_N, strata)] for name, strata in PARTS.items()}
    return {name: logits for name, logits in found.items() if len(logits)}


def promised_rate(negative_logits_N: Floats, threshold: float, *, delta: float) -> float:
    """The false-positive rate that the threshold stays under, with probability 1 - delta.

    The upper bound of Clopper and Pearson for the negatives that reach it. For a threshold that was
    set on the same negatives, as the k-th smallest of them, that is the alpha of
    `umbrella_threshold`; for a part of them it is approximate.
    """
    num_reaching = int(np.sum(negative_logits_N >= threshold))
    num_others = len(negative_logits_N) - num_reaching
    return float(beta.ppf(1 - delta, num_reaching + 1, num_others)) if num_others else 1.0


def negatives_needed(alpha: float, delta: float) -> int:
    """The fewest negatives that allow a threshold with P(FPR > alpha) <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def umbrella_threshold(
    negative_logits_N: Floats, *, alpha: float, delta: float
) -> tuple[float, float]:
    """(threshold, alpha reached): P(FPR of f >= threshold exceeds alpha) <= delta.

    The probability is over the draw of these negatives, and the FPR is that of the mix that they
    were drawn from; there is no other assumption (Tong, Feng and Li, Science Advances 2018,
    proposition 1). A threshold above the k-th smallest logit violates alpha with probability at
    most P(Binomial(n, 1 - alpha) >= k). Takes the smallest k for which that is at most delta; if
    there is none, the largest negative and the alpha that it allows.

    Negatives of several sources may differ in distribution: the mix is then the sources in the
    numbers given, since a sum of independent trials with different probabilities is in the tail at
    most as often as with equal probabilities of the same mean (Hoeffding, Annals of Mathematical
    Statistics 1956). The guarantee does not extend to other mixes, such as that of the stream when
    sources were sampled at different rates.
    """
    n = len(negative_logits_N)
    ascending_N = np.sort(negative_logits_N)
    rank, reached = n, 1 - delta ** (1 / n)
    if n >= negatives_needed(alpha, delta):
        rank, reached = int(binom.isf(delta, n, 1 - alpha)) + 1, alpha
        assert rank <= n
    # "Above the k-th" as "at least the next float32", the type of logits.
    above = np.nextafter(np.float32(ascending_N[rank - 1]), np.float32(np.inf))
    return float(above), reached
