"""Ranking and calibration measures of one target.

A sample is detected iff logit >= threshold. Weights are Horvitz-Thompson (1952):
1 / inclusion_probability, so that sums estimate the stream that was sampled from.
Shapes: N samples, M bins.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

NUM_BINS = 15  # of the reliability diagram and of ECE
_NUM_SIMULATED = 100  # draws of labels: the floor of the ECE to two digits


def threshold_at_tpr(positive_logits_N: Floats, *, tpr: float) -> float:
    """The largest threshold that detects at least a share `tpr` of the positives, at least one."""
    num_detected = max(1, math.ceil(tpr * len(positive_logits_N) - 1e-9))
    return float(np.sort(positive_logits_N)[-num_detected])


def area_under_roc(
    is_positive_N: Bools, logits_N: Floats, weights_N: Floats, *, max_fpr: float | None = None
) -> float | None:
    """AUROC; with `max_fpr` the partial area, standardised to [0.5, 1] (McClish 1989)."""
    if not has_both(is_positive_N):
        return None
    area = roc_auc_score(is_positive_N, logits_N, sample_weight=weights_N, max_fpr=max_fpr)
    return float(area)


def average_precision(is_positive_N: Bools, logits_N: Floats, weights_N: Floats) -> float | None:
    """Sum of precision times the increase in recall, without interpolation."""
    if not has_both(is_positive_N):
        return None
    return float(average_precision_score(is_positive_N, logits_N, sample_weight=weights_N))


def has_both(is_positive_N: Bools) -> bool:
    return bool(is_positive_N.any() and not is_positive_N.all())


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Predicted and observed frequencies per bin of probabilities; nan in empty bins."""

    mass_M: Floats  # share of the weight, sums to 1
    predicted_M: Floats  # mean probability
    observed_M: Floats  # share of positives

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean of |predicted - observed|, weighted by mass."""
        return float(np.nansum(self.mass_M * np.abs(self.predicted_M - self.observed_M)))


def reliability(is_positive_N: Bools, probabilities_N: Floats, weights_N: Floats) -> Reliability:
    """Bins of equal width over [0, 1], as in Guo et al. 2017 (arXiv:1706.04599, eq. 3).

    Uses the probability of the positive class (Niculescu-Mizil and Caruana 2005), not of the
    likelier class, since nearly every sample is a negative. Bins of equal mass would put the few
    positives into one bin with many negatives, where their errors cancel.
    """
    bin_N = bins_of(probabilities_N)
    mass = np.bincount(bin_N, weights_N, NUM_BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin is the documented nan
        predicted = np.bincount(bin_N, weights_N * probabilities_N, NUM_BINS) / mass
        observed = np.bincount(bin_N, weights_N * is_positive_N, NUM_BINS) / mass
    return Reliability(mass_M=mass / mass.sum(), predicted_M=predicted, observed_M=observed)


def ece_floor(is_positive_N: Bools, probabilities_N: Floats, weights_N: Floats) -> float:
    """The ECE to expect of a model whose probabilities are true, from so many samples.

    Binned errors are absolute, so that chance adds up (Roelofs et al. 2022, arXiv:2012.08668). The
    mean over labels drawn from the probabilities, each moved to the odds at which the samples were
    drawn: by the weight of a negative there over that of a positive.
    """
    negative_weight = weights_N[~is_positive_N].mean()
    positive_weight = weights_N[is_positive_N].mean()
    if_negative_N = np.where(is_positive_N, negative_weight, weights_N)
    clipped_N = np.clip(probabilities_N, 1e-12, 1 - 1e-12)
    odds_N = clipped_N / (1 - clipped_N) * if_negative_N / positive_weight
    rng, floors = np.random.default_rng(0), []
    for _ in range(_NUM_SIMULATED):
        is_drawn_N = rng.random(len(odds_N)) < odds_N / (1 + odds_N)
        drawn_weights_N = np.where(is_drawn_N, positive_weight, if_negative_N)
        floors.append(reliability(is_drawn_N, probabilities_N, drawn_weights_N).ece)
    return float(np.mean(floors))


def bins_of(probabilities_N: Floats) -> NDArray[np.intp]:
    """The bin of each probability; bins have equal width over [0, 1]."""
    return np.minimum((probabilities_N * NUM_BINS).astype(np.intp), NUM_BINS - 1)


def log_loss(is_positive_N: Bools, logits_N: Floats, weights_N: Floats) -> float:
    """Mean negative log-likelihood in nats, from calibrated logits: exact for large ones, too."""
    losses = np.logaddexp(0, np.where(is_positive_N, -logits_N, logits_N))
    return float(np.average(losses, weights=weights_N))


def weights_at_prior(is_positive_N: Bools, weights_N: Floats, *, prior: float) -> Floats:
    """The weights, scaled per class so that positives have the share `prior` of their sum."""
    share_N = np.where(is_positive_N, prior, 1 - prior)
    mass_N = np.where(
        is_positive_N, weights_N[is_positive_N].sum(), weights_N[~is_positive_N].sum()
    )
    scaled: Floats = weights_N * share_N / mass_N
    return scaled
