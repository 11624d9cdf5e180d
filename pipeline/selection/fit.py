"""Fits the scale of a source's inclusion probabilities to a budget, from its pilot.

Pure: reads a pilot's rows, opens no image and starts nothing. Shapes: N negatives of the pilot.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.config.schema import Config
from pipeline.dataset.metadata import ReferenceInfo
from pipeline.selection.pilot import Pilot
from pipeline.selection.rule import inclusion_probability

# A pilot need not be more exact than the draw itself, which varies by 1 / sqrt(wanted), nor than
# this.
_PILOT_ERROR = 0.02
_MAX_PILOT = 8192
_MAX_PILOT_SHARE = 0.2  # of the candidates, which are read again when the source is built


@dataclass(frozen=True)
class Fitted:
    """Probabilities that meet a budget."""

    num_wanted: float  # training negatives
    scale: float
    eval_probability: float


def fit_scale(
    similarity_N: NDArray[np.floating],
    *,
    beta: float,
    offset: float,
    min_probability: float,
    mean_probability: float,
) -> float:
    """The scale for which the mean `inclusion_probability` is `mean_probability`.

    The mean grows with the scale, so that the root is unique. A mean below `min_probability` gives
    the smallest scale, one of 1 or more takes everything.
    """
    # Sorted, so that the mean does not depend on the order in which the pilot's rows arrive.
    similarity_N = np.sort(similarity_N)
    smallest = min_probability * math.exp(-beta * (float(similarity_N[-1]) - offset))
    largest = math.exp(beta * (1 + offset))  # takes even a similarity of -1

    def excess(log_scale: float) -> float:
        probability_N = inclusion_probability(
            similarity_N,
            scale=math.exp(log_scale),
            beta=beta,
            offset=offset,
            min_probability=min_probability,
        )
        return float(probability_N.mean()) - mean_probability

    low, high = math.log(smallest), math.log(largest)
    if excess(low) >= 0:
        return smallest
    if mean_probability >= 1:
        return largest
    return math.exp(float(brentq(excess, low, high, xtol=1e-12)))


def probability_curve(config: Config, reference: ReferenceInfo) -> dict[str, float]:
    """The inclusion probability as a function of similarity, but for its scale."""
    return {
        "beta": config.selection.effective_beta,
        "offset": reference.median,
        "min_probability": config.selection.min_probability,
    }


def fit_probabilities(
    pilot: Pilot, *, config: Config, reference: ReferenceInfo, num_candidates: float
) -> Fitted:
    """Probabilities with which `num_candidates` of the source are expected to meet the budget."""
    selection, fractions, weight = config.selection, config.split.fractions, pilot.entry.weight
    similarity_N = pilot.similarity_N
    if not len(similarity_N):
        return Fitted(num_wanted=0.0, scale=1.0, eval_probability=1.0)
    num_negatives = len(similarity_N) * (num_candidates / max(pilot.num_rows, 1))
    num_train = num_negatives * fractions["train"]
    if selection.budget.selected is not None:
        wanted = weight * selection.budget.selected
    elif selection.budget.bytes is not None:
        wanted = weight * selection.budget.bytes / pilot.mean_bytes
    else:
        wanted = num_train / selection.candidates_per_selected
    scale = fit_scale(
        similarity_N, mean_probability=wanted / num_train, **probability_curve(config, reference)
    )
    num_eval = num_negatives * (fractions["val"] + fractions["test"]) / 2
    wanted_eval = wanted / 4
    if selection.eval_budget is not None:
        wanted_eval = weight * selection.eval_budget
    eval_probability = min(1.0, wanted_eval / num_eval) if num_eval else 1.0
    return Fitted(num_wanted=wanted, scale=scale, eval_probability=eval_probability)


def pilot_needed(pilot: Pilot, *, config: Config, reference: ReferenceInfo) -> int:
    """Candidates a second pilot must read for the expected number of training negatives to hold.

    The error of a mean of n probabilities is their deviation / sqrt(n): a steep curve, under which
    a few candidates have most of the mean, needs more of them.
    """
    num_candidates = pilot.listing.num_partitions * pilot.samples_per_partition
    similarity_N = pilot.similarity_N
    if len(similarity_N) < 2:
        return pilot.listing.num_pilot
    fit = fit_probabilities(
        pilot, config=config, reference=reference, num_candidates=num_candidates
    )
    probability_N = inclusion_probability(
        similarity_N, scale=fit.scale, **probability_curve(config, reference)
    )
    variation = float(probability_N.std() / probability_N.mean())
    goal = max(_PILOT_ERROR, 1 / math.sqrt(max(fit.num_wanted, 1.0)))
    limit = min(_MAX_PILOT, int(_MAX_PILOT_SHARE * num_candidates))
    return max(pilot.listing.num_pilot, min(math.ceil((variation / goal) ** 2), limit))
