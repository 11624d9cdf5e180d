"""What a calibration makes of a raw logit: log-odds, and how rare it is among negatives."""

import numpy as np
from numpy.typing import ArrayLike

from train.metrics import Floats
from train.model.detector import TargetCalibration


def calibrated_logits(
    calibration: TargetCalibration, logits_N: ArrayLike, *, deployed: bool = True
) -> Floats:
    """Log-odds of the target at the deployment prior, else in the mix of the val split."""
    raw_N = np.asarray(logits_N, dtype=np.float64)
    shift = calibration.prior_shift if deployed else 0.0
    return calibration.scale * raw_N + calibration.bias + shift


def conformal_p_value(calibration: TargetCalibration, logit: float) -> float:
    """The share of negatives that reach such a logit, never said too small.

    Split-conformal: (1 + #{val negatives >= f}) / (n + 1), so that P(p <= u) <= u for a negative
    of the val mix (Vovk, Gammerman and Shafer 2005). 1 below the negatives that were kept.
    """
    kept = np.asarray(calibration.negative_logits)
    num_reaching = int(np.sum(kept >= logit))
    if num_reaching == len(kept):
        num_reaching = calibration.num_negatives
    return (1 + num_reaching) / (calibration.num_negatives + 1)
