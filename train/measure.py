"""The numbers of metrics.json, from test predictions and a calibration fitted elsewhere.

Knows no network and no data set. Every rate has its interval and its n; what no sample can tell is
null, never nan. Shapes: N samples.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from pipeline import storage
from train.config import EvaluateConfig
from train.metrics import (
    Bools,
    Floats,
    Rate,
    area_under_roc,
    average_precision,
    brier,
    event_rate,
    log_loss,
    reliability,
    threshold_at_tpr,
    weights_at_prior,
)
from train.model import ModelInfo, TargetCalibration
from train.predictions import TargetPredictions
from train.probability import calibrated_logits

# Reported even where empty, so that a reader finds "n": 0 instead of nothing.
_ALWAYS = ("near", "far", "generated")
_PARTIAL_MAX_FPR = 1e-3


def measure(
    tests: Sequence[TargetPredictions], info: ModelInfo, config: EvaluateConfig
) -> dict[str, Any]:
    """The content of metrics.json. `info` carries the calibration of each target."""
    assert info.calibration is not None
    rng = np.random.default_rng(config.seed)
    return {
        "target": {
            test.target: _measure_target(test, info.calibration[test.target], config, rng)
            for test in tests
        },
        "strata": _measure_sources(tests, info.calibration, config, rng),
        "generation": info.generation,
        "samples_seen": info.samples_seen,
    }


def write_metrics(run_dir: str | os.PathLike[str], metrics: Mapping[str, Any]) -> None:
    # nan is no JSON: it would be a bug of ours, better found here than in a reader.
    text = json.dumps(metrics, indent=1, allow_nan=False)
    storage.write_atomic(str(Path(run_dir) / "metrics.json"), f"{text}\n".encode())


def _measure_target(
    test: TargetPredictions,
    calibration: TargetCalibration,
    config: EvaluateConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """`ece`, `brier`, `log_loss` are at `deploy_prior`; `test_mix` has those of the test mix."""
    fpr = _fpr_by_stratum(test, calibration.threshold, config, rng)
    positive_logits_N = test.logits_N[test.is_positive_N]
    at_levels = {}
    for level in sorted({0.95, *config.tpr_levels}):
        threshold = (
            threshold_at_tpr(positive_logits_N, tpr=level) if len(positive_logits_N) else None
        )
        at_levels[f"fpr_at_tpr{100 * level:g}"] = _fpr_by_stratum(test, threshold, config, rng)
    deploy_logits_N = calibrated_logits(calibration, test.logits_N)
    mix_logits_N = calibrated_logits(calibration, test.logits_N, deployed=False)
    return {
        "threshold": calibration.threshold,
        "alpha": calibration.alpha,
        "alpha_wanted": config.alpha,
        "delta": calibration.delta,
        "num_val_negatives": calibration.num_negatives,
        "deploy_prior": config.deploy_prior,
        "tpr": asdict(_detected(test, test.is_positive_N, calibration.threshold, config, rng)),
        "fpr": fpr,
        **at_levels,
        **_per_million(fpr["all"]),
        **_ranking(test),
        **_calibration(test, deploy_logits_N, config.deploy_prior, config.num_bins),
        "test_mix": _calibration(test, mix_logits_N, None, config.num_bins),
    }


def _measure_sources(
    tests: Sequence[TargetPredictions],
    calibration: Mapping[str, TargetCalibration],
    config: EvaluateConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """source -> target -> share detected of its positives ("tpr") and negatives ("fpr")."""
    strata: dict[str, Any] = {}
    for source in sorted({source for test in tests for source in test.source_N.tolist()}):
        strata[source] = {}
        for test in tests:
            threshold = calibration[test.target].threshold
            of_source = test.source_N == source
            strata[source][test.target] = {
                name: asdict(_detected(test, of_source & kind, threshold, config, rng))
                for name, kind in (("tpr", test.is_positive_N), ("fpr", ~test.is_positive_N))
            }
    return strata


def _fpr_by_stratum(
    test: TargetPredictions,
    threshold: float | None,
    config: EvaluateConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Stratum, and "all" -> false positive rate; empty where no positive gives a threshold.

    The interval takes the threshold as given.
    """
    strata = [*_ALWAYS, *(stratum for stratum in test.strata if stratum not in _ALWAYS)]
    members = {stratum: ~test.is_positive_N & (test.stratum_N == stratum) for stratum in strata}
    members["all"] = ~test.is_positive_N
    return {
        name: asdict(
            Rate() if threshold is None else _detected(test, chosen, threshold, config, rng)
        )
        for name, chosen in members.items()
    }


def _detected(
    test: TargetPredictions,
    chosen_N: Bools,
    threshold: float,
    config: EvaluateConfig,
    rng: np.random.Generator,
) -> Rate:
    return event_rate(
        test.logits_N[chosen_N] >= threshold,
        test.weights_N[chosen_N],
        rng=rng,
        num_bootstrap=config.bootstrap,
    )


def _per_million(fpr: Mapping[str, Any]) -> dict[str, Any]:
    name = "false_positives_per_million"
    if fpr["n"] == 0:
        return {name: None, f"{name}_interval": None}
    return {name: 1e6 * fpr["value"], f"{name}_interval": [1e6 * fpr["low"], 1e6 * fpr["high"]]}


def _ranking(test: TargetPredictions) -> dict[str, float | None]:
    samples = (test.is_positive_N, test.logits_N, test.weights_N)
    return {
        "auroc": area_under_roc(*samples),
        "partial_auroc": area_under_roc(*samples, max_fpr=_PARTIAL_MAX_FPR),
        "average_precision": average_precision(*samples),
    }


def _calibration(
    test: TargetPredictions, logits_N: Floats, prior: float | None, num_bins: int
) -> dict[str, float | None]:
    """At the prior given, or at the one that the weights imply."""
    if not test.has_both:
        return {"ece": None, "brier": None, "log_loss": None}
    weights_N = test.weights_N
    if prior is not None:
        weights_N = weights_at_prior(test.is_positive_N, weights_N, prior=prior)
    probabilities_N = expit(logits_N)
    return {
        "ece": reliability(test.is_positive_N, probabilities_N, weights_N, num_bins=num_bins).ece,
        "brier": brier(test.is_positive_N, probabilities_N, weights_N),
        "log_loss": log_loss(test.is_positive_N, logits_N, weights_N),
    }
