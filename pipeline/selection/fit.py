"""Fits the scale of a source's inclusion probabilities to a budget, from its pilot.

Pure: reads a pilot's rows, opens no image and starts nothing. Shapes: N negatives of the pilot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
_MOST_OF_MEAN = 0.1  # the floor of probabilities: it must not decide how many are drawn


@dataclass(frozen=True)
class Fitted:
    """Probabilities that meet a budget."""

    num_wanted: float  # training negatives, with those that a first head adds
    scale: float
    min_probability: float
    eval_probability: float


class Sampled(NamedTuple):
    """Negatives of a source's pilot."""

    similarity_N: NDArray[np.floating]
    number: float = 1.0  # of training negatives that they stand for
    weight: float = 1.0  # of the source among those that share a scale


def fit_scale(
    sources: Sequence[Sampled],
    *,
    beta: float,
    offset: float,
    min_probability: float,
    mean_probability: float,
) -> float:
    """The scale for which the mean `inclusion_probability` is `mean_probability`.

    A source has the scale times its weight. The mean grows with the scale, so that the root is
    unique. A mean below `min_probability` gives the smallest scale, one of 1 or more takes
    everything.
    """
    # Sorted, so that the mean does not depend on the order in which the pilot's rows arrive.
    sources = [each._replace(similarity_N=np.sort(each.similarity_N)) for each in sources]
    total = sum(each.number for each in sources)
    smallest = min(
        min_probability * math.exp(-beta * (float(each.similarity_N[-1]) - offset)) / each.weight
        for each in sources
    )
    # Takes even a similarity of -1.
    largest = math.exp(beta * (1 + offset)) / min(each.weight for each in sources)

    def excess(log_scale: float) -> float:
        expected = 0.0
        for similarity_N, number, weight in sources:
            probability_N = inclusion_probability(
                similarity_N,
                scale=math.exp(log_scale) * weight,
                beta=beta,
                offset=offset,
                min_probability=min_probability,
            )
            expected += number * float(probability_N.mean())
        return expected / total - mean_probability

    low, high = math.log(smallest), math.log(largest)
    if excess(low) >= 0:
        return smallest
    if mean_probability >= 1:
        return largest
    return math.exp(float(brentq(excess, low, high, xtol=1e-12)))


def fit_probabilities(
    pilots: Sequence[tuple[Pilot, float]], *, config: Config, reference: ReferenceInfo
) -> list[Fitted]:
    """Probabilities of each source, with which all together are expected to meet one budget.

    pilots: each with the number of candidates of its source. One alone has its weight times the
    budget; of several, a source has its weight times the scale.
    """
    if len(pilots) == 1:
        units, weights = pilots[0][0].entry.weight, [1.0]
    else:
        units, weights = 1.0, [pilot.entry.weight for pilot, _ in pilots]
    fractions, selection = config.split.fractions, config.selection
    sampled = [
        Sampled(pilot.similarity_N, _num_negatives(pilot, number) * fractions["train"], weight)
        for (pilot, number), weight in zip(pilots, weights, strict=True)
    ]
    num_train = sum(each.number for each in sampled)
    if not num_train:
        return [Fitted(0.0, 1.0, selection.min_probability, 1.0) for _ in pilots]
    if selection.budget.selected is not None:
        wanted = units * selection.budget.selected
    elif selection.budget.bytes is not None:
        num_bytes = sum(e.number * p.mean_bytes for e, (p, _) in zip(sampled, pilots, strict=True))
        wanted = units * selection.budget.bytes / (num_bytes / num_train)
    else:
        wanted = num_train / selection.candidates_per_selected
    mean_probability = wanted / num_train
    if mean_probability < 1:
        mean_probability *= selection.share_drawn
    min_probability = min(selection.min_probability, _MOST_OF_MEAN * mean_probability)
    scale = fit_scale(
        [each for each in sampled if each.number],
        beta=selection.effective_beta,
        offset=reference.median,
        min_probability=min_probability,
        mean_probability=mean_probability,
    )
    num_eval = num_train / fractions["train"] * (fractions["val"] + fractions["test"]) / 2
    wanted_eval = wanted / 4
    if selection.eval_budget is not None:
        wanted_eval = units * selection.eval_budget
    eval_probability = min(1.0, wanted_eval / num_eval) if num_eval else 1.0
    if len(pilots) > 1:
        scale = round_scale(scale)
    return [Fitted(wanted, scale * w, min_probability, eval_probability) for w in weights]


def round_scale(scale: float) -> float:
    """To 12 digits, so that it can be told exactly from the plan of a source that shares it."""
    return float(f"{scale:.12g}")


def _num_negatives(pilot: Pilot, num_candidates: float) -> float:
    """Usable negatives of all splits among the candidates of a source."""
    return len(pilot.similarity_N) * (num_candidates / max(pilot.num_rows, 1))


def drawn_probability(
    fit: Fitted, pilot: Pilot, *, config: Config, reference: ReferenceInfo
) -> NDArray[np.float64]:
    """probability_N with which the negatives of a pilot are drawn, were they all of train."""
    return inclusion_probability(
        pilot.similarity_N,
        scale=fit.scale,
        beta=config.selection.effective_beta,
        offset=reference.median,
        min_probability=fit.min_probability,
    )


def pilot_needed(pilot: Pilot, *, config: Config, reference: ReferenceInfo) -> int:
    """Candidates a second pilot must read for the expected number of training negatives to hold.

    The error of a mean of n probabilities is their deviation / sqrt(n): a steep curve, under which
    a few candidates have most of the mean, needs more of them.
    """
    num_candidates = pilot.listing.num_partitions * pilot.samples_per_partition
    similarity_N = pilot.similarity_N
    if len(similarity_N) < 2:
        return pilot.listing.num_pilot
    fit = fit_probabilities([(pilot, num_candidates)], config=config, reference=reference)[0]
    probability_N = drawn_probability(fit, pilot, config=config, reference=reference)
    variation = float(probability_N.std() / probability_N.mean())
    goal = max(_PILOT_ERROR, 1 / math.sqrt(max(fit.num_wanted, 1.0)))
    limit = min(_MAX_PILOT, int(_MAX_PILOT_SHARE * num_candidates))
    return max(pilot.listing.num_pilot, min(math.ceil((variation / goal) ** 2), limit))
