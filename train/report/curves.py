"""The figures of one target, as (caption, what it says, SVG)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from scipy.special import expit

from train.metrics.calibration import calibrated_logits
from train.metrics.intervals import weighted_interval
from train.metrics.predictions import TargetPredictions
from train.metrics.ranking import NUM_BINS, Floats, bins_of, reliability
from train.model.detector import TargetCalibration
from train.report.figures import (
    draw_histograms,
    draw_precision_recall,
    draw_rates,
    draw_reliability,
    draw_ridges,
    draw_roc,
)


class Drawing(NamedTuple):
    caption: str
    note: str
    svg: Markup  # our own, whose texts matplotlib has escaped


def draw_strata(test: TargetPredictions, metrics: Mapping[str, Any]) -> list[Drawing]:
    """Every stratum's false positive rate, and how similar the pictures of each source are."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    by_similarity = metrics["by_similarity"]
    for stratum in metrics["fpr"]:
        rows[stratum] = [metrics["fpr"][stratum], metrics["fpr_at_tpr95"][stratum]]
    for stratum in by_similarity["fpr"]:
        both = [by_similarity[level][stratum] for level in ("fpr", "fpr_at_tpr95")]
        rows[f"{stratum}, by similarity"] = both
    rows = {name: rates for name, rates in rows.items() if rates[0]["n"]}
    drawings = []
    if rows:
        svg = draw_rates(
            rows, labels=("at the threshold", "at TPR 95 %"), goal=metrics["alpha_wanted"]
        )
        note = (
            "Dots are rates, whiskers 95 % intervals. An open triangle is where none was detected: "
            "the rate lies anywhere left of it. Dashed: the rate that was wanted."
        )
        drawings.append(Drawing("False positive rates", note, Markup(svg)))
    if similarities := _similarities_by_source(test):
        svg = draw_ridges(similarities, label="Similarity to the reference bank")
        note = "How much the pictures of each source resemble the positives, model apart."
        drawings.append(Drawing("Similarity by source", note, Markup(svg)))
    return drawings


def draw_curves(
    test: TargetPredictions,
    metrics: Mapping[str, Any],
    calibration: TargetCalibration,
) -> list[Drawing]:
    """None that needs both classes where one is missing."""
    drawings = []
    if test.has_both:
        drawings += _ranking_curves(test, metrics)
        note = (
            "In the mix of the test split, with 95 % intervals. On the diagonal, what is said is "
            "what is seen."
        )
        svg = _draw_reliability(test, calibration)
        drawings.append(Drawing("Reliability", note, Markup(svg)))
    if len(test.logits_N):
        classes = {"positives": test.is_positive_N, "negatives": ~test.is_positive_N}
        logits = {
            name: test.logits_N[members] for name, members in classes.items() if members.any()
        }
        svg = draw_histograms(logits, label="Raw logit", threshold=metrics["threshold"])
        note = "The model's raw answer. Right of the threshold it says the name."
        drawings.append(Drawing("Logits", note, Markup(svg)))
    return drawings


def _draw_reliability(test: TargetPredictions, calibration: TargetCalibration) -> str:
    probabilities_N = expit(calibrated_logits(calibration, test.logits_N, deployed=False))
    bin_N = bins_of(probabilities_N)
    low_M, high_M = np.zeros(NUM_BINS), np.ones(NUM_BINS)
    for m in np.unique(bin_N):
        members = bin_N == m
        low_M[m], high_M[m] = weighted_interval(
            test.is_positive_N[members], test.weights_N[members]
        )
    curve = reliability(test.is_positive_N, probabilities_N, test.weights_N)
    return draw_reliability(curve, low_M, high_M)


def _ranking_curves(test: TargetPredictions, metrics: Mapping[str, Any]) -> list[Drawing]:
    here = (metrics["fpr"]["all"]["value"], metrics["tpr"]["value"])
    roc = draw_roc(_roc_curves(test), operating_point=here)
    precision_recall = draw_precision_recall(
        test.is_positive_N,
        test.logits_N,
        test.weights_N,
        deploy_prior=metrics["deploy_prior"],
    )
    return [
        Drawing(
            "ROC, by stratum of the negatives",
            "Left is better: a stratum whose curve lies right is the one that is mistaken. Of n "
            "negatives nothing is known below a rate of 1 / n.",
            Markup(roc),
        ),
        Drawing(
            "Precision and recall",
            "For two mixes: as the test split has it, and with the target as rare as in use.",
            Markup(precision_recall),
        ),
    ]


def _roc_curves(test: TargetPredictions) -> dict[str, Any]:
    """All negatives together, then each stratum's against the same positives."""
    curves = {"all": np.ones(len(test.logits_N), dtype=bool)}
    for stratum in test.strata:
        curves[stratum] = test.is_positive_N | (test.stratum_N == stratum)
    return {
        name: (test.is_positive_N[chosen], test.logits_N[chosen], test.weights_N[chosen])
        for name, chosen in curves.items()
    }


def _similarities_by_source(test: TargetPredictions) -> dict[str, Floats]:
    known = ~np.isnan(test.similarity_N)
    return {
        source: test.similarity_N[known & (test.source_N == source)]
        for source in sorted(set(test.source_N[known].tolist()))
    }
