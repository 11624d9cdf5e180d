"""The figures of one target, each with a caption and a note."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from scipy.special import expit

from pipeline.selection.intervals import weighted_interval
from train.metrics.predictions import TargetPredictions
from train.metrics.probability import calibrated_logits
from train.metrics.ranking import NUM_BINS, bins_of, reliability
from train.model.info import TargetCalibration
from train.report import figures


class Drawing(NamedTuple):
    caption: str
    note: str
    svg: Markup


def draw_strata(test: TargetPredictions, metrics: Mapping[str, Any]) -> list[Drawing]:
    """The false positive rate of each stratum, and the similarities of each source."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for block, suffix in ((metrics, ""), (metrics["by_similarity"], ", by similarity")):
        for stratum, rate in block["fpr"].items():
            if rate["n"]:
                rows[stratum + suffix] = [rate, block["fpr_at_tpr95"][stratum]]
    drawings = []
    if rows:
        svg = figures.draw_rates(
            rows, labels=("at the threshold", "at TPR 95 %"), goal=metrics["alpha_wanted"]
        )
        note = (
            "Dots are rates, lines 95 % intervals. An open triangle means that none was detected: "
            "the rate is anywhere left of it. Dashed: evaluate.alpha."
        )
        drawings.append(Drawing("False positive rates", note, svg))
    known = ~np.isnan(test.similarity_N)
    similarities = {
        source: test.similarity_N[known & (test.source_N == source)]
        for source in sorted(set(test.source_N[known].tolist()))
    }
    if similarities:
        svg = figures.draw_ridges(similarities, label="Similarity to the reference bank")
        note = "How similar the pictures of each source are to the positives, before any training."
        drawings.append(Drawing("Similarity by source", note, svg))
    return drawings


def draw_curves(
    test: TargetPredictions, metrics: Mapping[str, Any], calibration: TargetCalibration
) -> list[Drawing]:
    """ROC, precision, reliability and logits; only logits if a class is missing."""
    drawings = []
    if test.has_both:
        drawings += _ranking_curves(test, metrics)
        note = (
            "In the mix of the test split, with 95 % intervals. On the diagonal, predicted "
            "probabilities equal observed frequencies."
        )
        svg = _draw_reliability(test, calibration)
        drawings.append(Drawing("Reliability", note, svg))
    if len(test.logits_N):
        classes = {"positives": test.is_positive_N, "negatives": ~test.is_positive_N}
        logits = {
            name: test.logits_N[members] for name, members in classes.items() if members.any()
        }
        svg = figures.draw_histograms(logits, label="Raw logit", threshold=metrics["threshold"])
        note = f"Before calibration. From the threshold on, pictures are called {test.target}."
        drawings.append(Drawing("Logits", note, svg))
    return drawings


def _draw_reliability(test: TargetPredictions, calibration: TargetCalibration) -> Markup:
    probabilities_N = expit(calibrated_logits(calibration, test.logits_N, deployed=False))
    bin_N = bins_of(probabilities_N)
    low_M, high_M = np.zeros(NUM_BINS), np.ones(NUM_BINS)
    for m in np.unique(bin_N):
        members = bin_N == m
        low_M[m], high_M[m] = weighted_interval(
            test.is_positive_N[members], test.weights_N[members]
        )
    curve = reliability(test.is_positive_N, probabilities_N, test.weights_N)
    return figures.draw_reliability(curve, low_M, high_M)


def _ranking_curves(test: TargetPredictions, metrics: Mapping[str, Any]) -> list[Drawing]:
    here = (metrics["fpr"]["all"]["value"], metrics["tpr"]["value"])
    samples = (test.is_positive_N, test.logits_N, test.weights_N)
    # All negatives together, then each stratum's against the same positives.
    curves = {"all": samples}
    for stratum in test.strata:
        chosen = test.is_positive_N | (test.stratum_N == stratum)
        curves[stratum] = (samples[0][chosen], samples[1][chosen], samples[2][chosen])
    return [
        Drawing(
            "ROC, by stratum of the negatives",
            "Further left is better: strata whose curve is further right are mistaken more often. "
            "With n negatives, rates below 1 / n are unknown.",
            figures.draw_roc(curves, operating_point=here),
        ),
        Drawing(
            "Precision and recall",
            "For two mixes: that of the test split, and with the target as rare as in use.",
            figures.draw_precision_recall(*samples, deploy_prior=metrics["deploy_prior"]),
        ),
    ]
