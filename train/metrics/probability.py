"""From a raw logit to a probability and "one in N", by a calibration; without torch and scipy.

Shapes: N samples, K targets.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ConfigError
from train.model.info import TargetCalibration


def log_odds(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def probability(log_odds: float) -> float:
    """The share that has these log-odds."""
    if log_odds < 0:  # so that exp does not overflow
        return math.exp(log_odds) / (1 + math.exp(log_odds))
    return 1 / (1 + math.exp(-log_odds))


def calibrated_logits(
    calibration: TargetCalibration, logits_N: ArrayLike, *, deployed: bool = True
) -> NDArray[np.float64]:
    """Log-odds of the target at the deployment prior, or (not deployed) in the mix fitted on."""
    raw_N = np.asarray(logits_N, dtype=np.float64)
    shift = calibration.prior_shift if deployed else 0.0
    return calibration.scale * raw_N + calibration.bias + shift


def at_prior(calibration: TargetCalibration, prior: float) -> TargetCalibration:
    """The calibration if the target's share in use is `prior`: other probabilities, no other label.

    Raises ConfigError for no share, and for a calibration of a version that recorded no prior.
    """
    if not 0 < prior < 1:
        raise ConfigError(f"prior {prior:g}: a share between 0 and 1, both excluded")
    if calibration.prior is None:
        raise ConfigError("calibrated by a version that recorded no prior; evaluate the run again")
    shift = calibration.prior_shift + log_odds(prior) - log_odds(calibration.prior)
    return calibration.model_copy(update={"prior": prior, "prior_shift": shift})


def at_threshold(calibration: TargetCalibration, share: float) -> TargetCalibration:
    """The calibration with the probability `share`, at its prior, as the threshold.

    Raises ConfigError for no share.
    """
    if not 0 < share < 1:
        raise ConfigError(f"threshold {share:g}: a probability between 0 and 1, both excluded")
    calibrated = log_odds(share) - calibration.prior_shift - calibration.bias
    return calibration.model_copy(update={"threshold": calibrated / calibration.scale})


def conformal_p_value(calibration: TargetCalibration, logit: float) -> float:
    """A conservative estimate of the share of negatives with such a logit or a higher one.

    Split-conformal: (1 + #{held-out negatives >= f}) / (n + 1), so that P(p <= u) <= u for a
    negative of their mix (Vovk, Gammerman and Shafer 2005). 1 below all negatives that were kept.
    """
    kept = np.asarray(calibration.negative_logits)
    num_reaching = int(np.sum(kept >= logit))
    if num_reaching == len(kept):
        num_reaching = calibration.num_negatives
    return (1 + num_reaching) / (calibration.num_negatives + 1)


def decide(
    logits_NK: NDArray[np.floating], calibration: Mapping[str, TargetCalibration]
) -> list[str]:
    """The label of each row: the most probable target that reaches its threshold, "" without one.

    calibration: by target, in the order of the logits.
    """
    each_K = [*calibration.values()]
    log_odds_NK = np.stack(
        [calibrated_logits(each, logits_NK[:, k]) for k, each in enumerate(each_K)], axis=1
    )
    passes_NK = np.asarray(logits_NK, np.float64) >= [each.threshold for each in each_K]
    best_N = np.where(passes_NK, log_odds_NK, -np.inf).argmax(axis=1)
    targets = [*calibration]
    return [
        targets[best] if passes_K.any() else ""
        for best, passes_K in zip(best_N, passes_NK, strict=True)
    ]
