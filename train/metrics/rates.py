"""How often negatives are detected, stratum by stratum, with all that is needed to judge it.

Three views of the same test negatives: weighted to the stream that they were sampled from, the
strata as their sources state them; the same by similarity alone; and as they were drawn, each
counted once, which is the mix that the threshold's promise speaks of. Shapes: N samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from train.metrics.intervals import (
    Rate,
    effective_size,
    event_rate,
    rate_at_true_tpr,
    samples_needed,
    upper_bound,
)
from train.metrics.predictions import TargetPredictions
from train.metrics.ranking import Bools

_STRATA = ("near", "mid", "far", "generated")
# Reported even where empty, so that a reader finds "n": 0 instead of nothing.
_ALWAYS = ("near", "far", "generated")
_BY_SIMILARITY = ("near", "mid", "far")
_CLAIMS = (1e-3, 1e-4, 1e-5, 1e-6)


def members_by_stratum(test: TargetPredictions) -> dict[str, Bools]:
    """Stratum as its source states it, else by similarity; and "all"."""
    shown = {*_ALWAYS, *test.strata}
    strata = [stratum for stratum in _STRATA if stratum in shown]
    members = {stratum: ~test.is_positive_N & (test.stratum_N == stratum) for stratum in strata}
    return members | {"all": ~test.is_positive_N}


def members_by_similarity(test: TargetPredictions) -> dict[str, Bools]:
    """Generated pictures, too, lie where their similarity puts them."""
    return {
        stratum: ~test.is_positive_N & (test.similarity_stratum_N == stratum)
        for stratum in _BY_SIMILARITY
    }


def detection_rates(
    test: TargetPredictions, members: Mapping[str, Bools], threshold: float | None
) -> dict[str, Any]:
    """Name -> rate in the stream; empty where no positive gave a threshold.

    The interval takes the threshold as given.
    """
    return {
        name: asdict(Rate() if threshold is None else detected(test, chosen, threshold))
        for name, chosen in members.items()
    }


def detected(test: TargetPredictions, chosen_N: Bools, threshold: float) -> Rate:
    return event_rate(test.logits_N[chosen_N] >= threshold, test.weights_N[chosen_N])


def intervals_at_true_tpr(
    test: TargetPredictions, members: Mapping[str, Bools], tpr: float
) -> dict[str, Any]:
    """Name -> between what the rate lies where that share of all positives is detected.

    Counts the doubt of the threshold, too, which `detection_rates` takes as given. Null where
    there is no positive or no negative.
    """
    positive_logits_N = test.logits_N[test.is_positive_N]
    found = {}
    for name, chosen in members.items():
        low = high = None
        if len(positive_logits_N) and chosen.any():
            low, high = rate_at_true_tpr(
                positive_logits_N, test.logits_N[chosen], test.weights_N[chosen], tpr=tpr
            )
        found[name] = {"low": low, "high": high, "n": int(chosen.sum())}
    return found


def rates_as_drawn(
    test: TargetPredictions, members: Mapping[str, Bools], threshold: float
) -> dict[str, Any]:
    """Each sample counted once, whatever its probability."""
    return {
        name: asdict(event_rate(test.logits_N[chosen] >= threshold, np.ones(chosen.sum())))
        for name, chosen in members.items()
    }


def evidence(
    test: TargetPredictions, members: Mapping[str, Bools], threshold: float
) -> dict[str, Any]:
    """Name -> what its rate at the threshold rests on.

    `n_effective`: equally weighted samples that would tell as much; `below`: the rate is under it,
    one-sided at 95 % (none of n, equally weighted: 3 / n), null where there is no sample.
    """
    found = {}
    for name, chosen in members.items():
        events, weights = test.logits_N[chosen] >= threshold, test.weights_N[chosen]
        found[name] = {
            "num_detected": int(events.sum()),
            "n": len(events),
            "n_effective": effective_size(weights),
            "below": upper_bound(events, weights) if len(events) else None,
        }
    return found


def claims(rates: Sequence[float]) -> dict[str, int]:
    """Rate -> the negatives, none of them detected, that it takes to claim it at 95 %."""
    return {f"{rate:g}": samples_needed(rate) for rate in sorted({*rates, *_CLAIMS}, reverse=True)}


def per_million(fpr: Mapping[str, Any]) -> dict[str, Any]:
    name = "false_positives_per_million"
    if fpr["n"] == 0:
        return {name: None, f"{name}_interval": None}
    return {name: 1e6 * fpr["value"], f"{name}_interval": [1e6 * fpr["low"], 1e6 * fpr["high"]]}


def precision(tpr: Mapping[str, Any], fpr: Mapping[str, Any], prior: float) -> dict[str, Any]:
    """Share of the pictures called by the name that do show the target, at the prior.

    By Bayes' rule from the two rates; the ends from their worse and better ends, so that they
    cover at least 90 %. Null where a rate is unknown or nothing is ever detected.
    """

    def share(found: float | None, mistaken: float | None) -> float | None:
        if found is None or mistaken is None:
            return None
        right, wrong = prior * found, (1 - prior) * mistaken
        return right / (right + wrong) if right + wrong > 0 else None

    return {
        "value": share(tpr["value"], fpr["value"]),
        "low": share(tpr["low"], fpr["high"]),
        "high": share(tpr["high"], fpr["low"]),
    }
