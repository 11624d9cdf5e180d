"""Detection rates of negatives by stratum, and the evidence behind them.

Three views of the same test negatives: weighted to the stream that they were sampled from, with
the strata that their sources state; the same with strata by similarity only; and as they were
drawn, each counted once, which is the mix that the threshold's guarantee is about.
Shapes: N samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

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
# Reported even if empty, so that a reader finds "n": 0 instead of nothing.
_ALWAYS = ("near", "far", "generated")
_BY_SIMILARITY = ("near", "mid", "far")
_CLAIMS = (1e-3, 1e-4, 1e-5, 1e-6)


def members_by_stratum(test: TargetPredictions) -> dict[str, Bools]:
    """Strata as stated by the source, else by similarity; and "all".

    "near" also by origin where test has look-alikes of sources without negatives in training: those
    of the others share cameras, places and styles with what was trained on, and are easier.
    """
    members = {
        stratum: ~test.is_positive_N & (test.stratum_N == stratum)
        for stratum in _STRATA
        if stratum in {*_ALWAYS, *test.strata}
    }
    by_origin = {
        "near, sources in training": members["near"] & test.is_known_source_N,
        "near, other sources": members["near"] & ~test.is_known_source_N,
    }
    if all(chosen.any() for chosen in by_origin.values()):
        members |= by_origin
    return members | {"all": ~test.is_positive_N}


def members_by_similarity(test: TargetPredictions) -> dict[str, Bools]:
    """Strata by similarity only, also for generated images."""
    return {
        stratum: ~test.is_positive_N & (test.similarity_stratum_N == stratum)
        for stratum in _BY_SIMILARITY
    }


def detection_rates(
    test: TargetPredictions, members: Mapping[str, Bools], threshold: float | None
) -> dict[str, Any]:
    """Name -> rate in the stream; without values if there is no threshold.

    The interval takes the threshold as fixed.
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
    """Name -> interval of the rate at the threshold that detects `tpr` of all positives.

    Includes the uncertainty of the threshold, which `detection_rates` takes as fixed. Null without
    positives or negatives.
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


def evidence(
    test: TargetPredictions, members: Mapping[str, Bools], threshold: float
) -> dict[str, Any]:
    """Name -> the evidence for its rate at the threshold.

    `n_effective`: the number of equally weighted samples that are as informative; `below`: the
    one-sided 95 % upper bound of the rate (3 / n for none of n, equally weighted), null without
    samples.
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
    """Rate -> how many negatives without a detection it takes to claim it at 95 %."""
    return {f"{rate:g}": samples_needed(rate) for rate in sorted({*rates, *_CLAIMS}, reverse=True)}


def per_million(fpr: Mapping[str, Any]) -> dict[str, Any]:
    name = "false_positives_per_million"
    if fpr["n"] == 0:
        return {name: None, f"{name}_interval": None}
    return {name: 1e6 * fpr["value"], f"{name}_interval": [1e6 * fpr["low"], 1e6 * fpr["high"]]}


def precision(tpr: Mapping[str, Any], fpr: Mapping[str, Any], prior: float) -> dict[str, Any]:
    """The share of detections that are right, at the prior.

    By Bayes' rule from the two rates; the ends combine the worse and the better ends of both, so
    that they cover at least 90 %. Null if a rate is unknown or nothing is ever detected.
    """

    def bayes(detected: float | None, mistaken: float | None) -> float | None:
        if detected is None or mistaken is None:
            return None
        right, wrong = prior * detected, (1 - prior) * mistaken
        return right / (right + wrong) if right + wrong > 0 else None

    return {
        "value": bayes(tpr["value"], fpr["value"]),
        "low": bayes(tpr["low"], fpr["high"]),
        "high": bayes(tpr["high"], fpr["low"]),
    }
