"""The content of metrics.json, from test predictions and a calibration.

Every rate has an interval and its n; unknown values are null, never nan. Shapes: N samples.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.special import logit as log_odds
from sklearn.metrics import brier_score_loss

from pipeline import storage
from pipeline.errors import InfinegError
from train.config import EvaluateConfig
from train.metrics import ranking, rates
from train.metrics.intervals import event_rate
from train.metrics.predictions import TargetPredictions
from train.metrics.probability import calibrated_logits
from train.metrics.ranking import Floats
from train.model.info import ModelInfo, TargetCalibration

_TPR_LEVELS = (0.95, 0.99)  # at which the false-positive rate is reported
_PARTIAL_MAX_FPR = 1e-3


def measure(
    tests: Sequence[TargetPredictions],
    info: ModelInfo,
    config: EvaluateConfig,
    *,
    cross_fitted: Sequence[TargetPredictions] | None = None,
) -> dict[str, Any]:
    """The content of metrics.json. `info` carries the calibration of each target.

    cross_fitted: of each target, the rows of train and val that heads of other folds predict.
    """
    assert info.calibration is not None
    blocks = {
        test.target: _measure_target(
            test, info.calibration[test.target], config, info.positive_share
        )
        for test in tests
    }
    for test, others in zip(tests, cross_fitted, strict=True) if cross_fitted else ():
        # No choice depends on the positives of a fold but the scale of the probabilities.
        is_detected = [
            each.logits_N[each.is_positive_N] >= blocks[test.target]["threshold"]
            for each in (test, others)
        ]
        events_N = np.concatenate(is_detected)
        blocks[test.target]["tpr_cross_fitted"] = asdict(
            event_rate(events_N, np.ones(len(events_N)))
        )
    return {
        "target": blocks,
        "strata": _measure_sources(tests, info.calibration),
        "generation": info.generation,
        "samples_seen": info.samples_seen,
    }


def read_metrics(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Raises InfinegError if there is none that can be read."""
    path = Path(run_dir) / "metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InfinegError(f"{path}: {error}; `infineg evaluate {run_dir}` writes it") from None
    return metrics


def write_metrics(run_dir: str | os.PathLike[str], metrics: Mapping[str, Any]) -> None:
    # JSON has no nan; one would be a bug, better found here than by a reader.
    text = json.dumps(metrics, indent=1, allow_nan=False)
    storage.write_atomic(str(Path(run_dir) / "metrics.json"), f"{text}\n".encode())


def _measure_target(
    test: TargetPredictions,
    calibration: TargetCalibration,
    config: EvaluateConfig,
    train_prior: float,
) -> dict[str, Any]:
    """The block of one target.

    `ece`, `brier`, `log_loss` are those in use: negatives as in the stream, the target at
    `deploy_prior`. `test_mix` has those of the stream as it was read, positives included;
    `train_mix` those of the mix in the loss, the target at its share of a batch.
    """
    by_stratum, by_similarity = rates.members_by_stratum(test), rates.members_by_similarity(test)
    positives_N = test.logits_N[test.is_positive_N]
    levels: dict[str, float | None] = {"fpr": calibration.threshold}
    for level in _TPR_LEVELS:  # the threshold that detects that share of the test positives
        found = ranking.threshold_at_tpr(positives_N, tpr=level) if len(positives_N) else None
        levels[f"fpr_at_tpr{100 * level:g}"] = found
    by_level = {name: rates.detection_rates(test, by_stratum, at) for name, at in levels.items()}
    tpr = asdict(rates.detected(test, test.is_positive_N, calibration.threshold))
    prior, samples = config.deploy_prior, (test.is_positive_N, test.logits_N, test.weights_N)
    return {
        "threshold": calibration.threshold,
        "alpha": calibration.alpha,
        "alpha_wanted": config.alpha,
        "delta": calibration.delta,
        "num_held_out_negatives": calibration.num_negatives,
        "promise": config.promise,
        "promises": {name: each.model_dump() for name, each in calibration.promises.items()},
        "deploy_prior": prior,
        "tpr": tpr,
        **by_level,
        **{
            f"at_true_tpr{100 * level:g}": rates.intervals_at_true_tpr(test, by_stratum, level)
            for level in _TPR_LEVELS
        },
        "by_similarity": {
            name: rates.detection_rates(test, by_similarity, at) for name, at in levels.items()
        },
        # Each sample counted once, whatever its inclusion probability.
        "fpr_as_drawn": rates.detection_rates(
            replace(test, weights_N=np.ones(len(test.weights_N))), by_stratum, calibration.threshold
        ),
        "evidence": rates.evidence(test, by_stratum, calibration.threshold),
        "negatives_needed": rates.claims([config.alpha]),
        **rates.per_million(by_level["fpr"]["all"]),
        "precision": rates.precision(tpr, by_level["fpr"]["all"], prior),
        "auroc": ranking.area_under_roc(*samples),
        "partial_auroc": ranking.area_under_roc(*samples, max_fpr=_PARTIAL_MAX_FPR),
        "average_precision": ranking.average_precision(*samples),
        **_calibration(test, calibration, config, prior),
        "test_mix": _calibration(test, calibration, config, None),
        "train_mix": {"prior": train_prior, **_calibration(test, calibration, config, train_prior)},
    }


def _measure_sources(
    tests: Sequence[TargetPredictions], calibration: Mapping[str, TargetCalibration]
) -> dict[str, Any]:
    """source -> target -> share detected of its positives ("tpr") and negatives ("fpr")."""
    strata: dict[str, Any] = {}
    for source in sorted({source for test in tests for source in test.source_N.tolist()}):
        strata[source] = {}
        for test in tests:
            here = test.source_N == source
            members = {"tpr": here & test.is_positive_N, "fpr": here & ~test.is_positive_N}
            threshold = calibration[test.target].threshold
            strata[source][test.target] = rates.detection_rates(test, members, threshold)
    return strata


def _calibration(
    test: TargetPredictions,
    calibration: TargetCalibration,
    config: EvaluateConfig,
    prior: float | None,
) -> dict[str, float | None]:
    """Calibration measures if the target has the share `prior`, by default that of the weights."""
    if not test.has_both:
        return dict.fromkeys(("ece", "ece_floor", "ece_above_floor", "brier", "log_loss"))
    weights_N: Floats = test.weights_N
    logits_N = calibrated_logits(calibration, test.logits_N, deployed=prior is not None)
    if prior is not None:
        logits_N = logits_N + log_odds(prior) - log_odds(config.deploy_prior)
        weights_N = ranking.weights_at_prior(test.is_positive_N, weights_N, prior=prior)
    probabilities_N = expit(logits_N)
    ece = ranking.reliability(test.is_positive_N, probabilities_N, weights_N).ece
    floor = ranking.ece_floor(test.is_positive_N, probabilities_N, weights_N)
    return {
        "ece": ece,
        "ece_floor": floor,  # of true probabilities, at this number of samples
        "ece_above_floor": max(0.0, ece - floor),
        "brier": float(
            brier_score_loss(test.is_positive_N, probabilities_N, sample_weight=weights_N)
        ),
        "log_loss": ranking.log_loss(test.is_positive_N, logits_N, weights_N),
    }
