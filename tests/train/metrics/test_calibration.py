import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy.special import expit
from scipy.special import logit as log_odds

from pipeline.errors import ConfigError, InfinegError
from train.metrics.calibration import (
    calibrate_target,
    fit_platt,
    fit_temperature,
    negatives_needed,
    umbrella_threshold,
)
from train.metrics.probability import calibrated_logits, conformal_p_value
from train.metrics.ranking import reliability
from train.model.info import TargetCalibration


def _calibrate(
    positives: np.ndarray, negatives: np.ndarray, *, alpha: float = 0.05
) -> TargetCalibration:
    logits = np.concatenate([positives, negatives]).astype(np.float32)
    is_positive = np.arange(len(logits)) < len(positives)
    return calibrate_target(
        logits,
        is_positive,
        np.ones(len(logits)),
        target="cat",
        alpha=alpha,
        delta=0.05,
        deploy_prior=0.01,
    )


def _draw_biased(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A stream with P(positive | f) = expit(1.7 f - 4), its easy negatives kept in 1 of 10."""
    logits = rng.normal(0, 2, 200_000)
    is_positive = rng.random(200_000) < expit(1.7 * logits - 4)
    probability = np.where(is_positive | (logits > 0.5), 1.0, 0.1)
    kept = rng.random(200_000) < probability
    return logits[kept], is_positive[kept], 1 / probability[kept]


def test_platt_recovers_scale_and_bias_of_the_stream_from_a_biased_sample() -> None:
    logits, is_positive, weights = _draw_biased(np.random.default_rng(0))
    assert fit_platt(logits, is_positive, weights) == pytest.approx((1.7, -4), abs=0.1)
    unweighted = fit_platt(logits, is_positive, np.ones(len(logits)))
    assert unweighted != pytest.approx((1.7, -4), abs=0.1)


def test_platt_stays_finite_on_separable_classes() -> None:
    """The plain likelihood has no maximum; n negatives support odds of at most about n."""
    logits = np.concatenate([np.full(50, 3.0), np.full(1000, -3.0)])
    is_positive = logits > 0
    scale, bias = fit_platt(logits, is_positive, np.ones(1050))
    assert expit(scale * 3 + bias) == pytest.approx(51 / 52, abs=1e-4)
    assert expit(-scale * 3 + bias) == pytest.approx(1 / 1002, abs=1e-5)


def test_platt_smoothing_does_not_grow_with_the_weights() -> None:
    """Weights of 1,000 make the negatives' mass large, not their number."""
    logits = np.concatenate([np.full(50, 3.0), np.full(1000, -3.0)])
    is_positive = logits > 0
    plain = fit_platt(logits, is_positive, np.ones(1050))
    weighted = fit_platt(logits, is_positive, np.where(is_positive, 1.0, 1000.0))
    assert weighted[0] == pytest.approx(plain[0])
    assert weighted[1] == pytest.approx(plain[1] - np.log(1000), rel=1e-4)


@pytest.mark.parametrize(
    ("fit", "at_most"),
    [(fit_platt, 1.0), (partial(fit_temperature, trained_prior=0.5), 0.01)],
    ids=["platt", "temperature"],
)
def test_logits_in_the_wrong_order_keep_a_positive_scale(
    fit: Callable[..., tuple[float, float]], at_most: float, caplog: pytest.LogCaptureFixture
) -> None:
    logits = np.concatenate([np.full(50, -3.0), np.full(50, 3.0)])
    scale, _ = fit(logits, logits < 0, np.ones(100))
    assert 0 < scale < at_most
    assert "nothing was learned" in caplog.text


def test_temperature_recovers_the_stream_from_a_biased_sample() -> None:
    """Logits twice too sure, at a prior of 25 %, of a stream with few positives."""
    rng = np.random.default_rng(8)
    is_positive = rng.random(200_000) < 0.05
    ratio = rng.normal(np.where(is_positive, 1, -1), 2**0.5)  # its log-likelihood ratio is itself
    logits = 2 * ratio + log_odds(0.25)
    probability = np.where(is_positive | (ratio > 0), 1.0, 0.1)
    kept = rng.random(200_000) < probability
    fit = fit_temperature(
        logits[kept], is_positive[kept], 1 / probability[kept], trained_prior=0.25
    )
    wanted = log_odds(0.05) - 0.5 * log_odds(0.25)
    assert fit == pytest.approx((0.5, wanted), abs=0.03)
    assert fit == pytest.approx(fit_platt(logits[kept], is_positive[kept], 1 / probability[kept]),
                                abs=0.1)  # fmt: skip


def test_temperature_of_few_samples_strays_less_than_platt() -> None:
    """Its purpose: one parameter instead of two."""
    rng = np.random.default_rng(9)
    errors = []
    for _ in range(200):
        is_positive = np.arange(60) < 8
        ratio = rng.normal(np.where(is_positive, 1, -1), 2**0.5)
        arguments = (ratio, is_positive, np.ones(60))
        fits = (fit_temperature(*arguments, trained_prior=0.5), fit_platt(*arguments))
        errors.append([bias - log_odds(8 / 60) for _, bias in fits])
    temperature, platt = np.std(errors, axis=0)
    assert temperature < 0.1 * platt


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_temperature_stays_finite_on_separable_classes_of_any_size(unit: float) -> None:
    logits = unit * np.concatenate([np.full(50, 3.0), np.full(1000, -3.0)])
    scale, bias = fit_temperature(logits, logits > 0, np.ones(1050), trained_prior=0.5)
    assert bias == pytest.approx(log_odds(50 / 1050))
    assert 0 < scale * unit < 5
    assert expit(-scale * unit * 3 + bias) == pytest.approx(1 / 1002, abs=1e-3)


def test_temperature_without_the_prior_trained_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.calibration: temperature .* of cat were"):
        calibrate_target(
            np.arange(10.0), np.arange(10) > 5, np.ones(10), target="cat", alpha=0.1, delta=0.05,
            deploy_prior=0.1, method="temperature",
        )  # fmt: skip


def test_prior_shift_calibrates_for_the_deployment_prior() -> None:
    rng = np.random.default_rng(1)
    calibration = _calibrate(rng.normal(2, 1, 20_000), rng.normal(-2, 1, 20_000))
    n = 400_000
    is_positive = rng.random(n) < 0.01
    logits = rng.normal(np.where(is_positive, 2, -2), 1)
    deployed = expit(calibrated_logits(calibration, logits))
    undeployed = expit(calibrated_logits(calibration, logits, deployed=False))
    assert reliability(is_positive, deployed, np.ones(n)).ece < 0.001
    assert reliability(is_positive, undeployed, np.ones(n)).ece > 0.01


def test_prior_shift_starts_from_the_weighted_mix() -> None:
    is_positive = np.arange(300) < 100
    calibration = calibrate_target(
        np.random.default_rng(0).normal(is_positive, 1),
        is_positive,
        np.where(is_positive, 1.0, 49.5),
        target="cat",
        alpha=0.1,
        delta=0.05,
        deploy_prior=0.01,
    )
    assert calibration.prior_shift == pytest.approx(0, abs=1e-9), "100 of 10,000 is 1 %"


def _violations(alpha: float, delta: float, *, n: int, umbrella: bool) -> float:
    """How often the true FPR of standard normal negatives exceeds alpha, over 2,000 draws."""
    rng = np.random.default_rng(2)
    # The true rate at a threshold is 1 - its uniform quantile, so that uniforms suffice.
    exceeded = 0
    for _ in range(2000):
        negatives = rng.random(n)
        threshold = (
            umbrella_threshold(negatives, alpha=alpha, delta=delta)[0]
            if umbrella
            else np.quantile(negatives, 1 - alpha)
        )
        exceeded += 1 - threshold > alpha
    return exceeded / 2000


@pytest.mark.parametrize(("alpha", "delta", "n"), [(0.05, 0.05, 59), (0.05, 0.1, 500)])
def test_umbrella_threshold_keeps_its_promise(alpha: float, delta: float, n: int) -> None:
    margin = 3 * np.sqrt(delta / 2000)
    assert _violations(alpha, delta, n=n, umbrella=True) <= delta + margin
    assert _violations(alpha, delta, n=n, umbrella=False) > 3 * delta, "a plain quantile does not"


def test_umbrella_takes_the_smallest_rank_that_is_allowed() -> None:
    """Of 500 at (5 %, 5 %) that is the 484th: P(Bin(500, .95) >= 484) <= 5 % < P(... >= 483)."""
    threshold, reached = umbrella_threshold(np.arange(500.0), alpha=0.05, delta=0.05)
    assert np.sum(np.arange(500.0) >= threshold) == 16
    assert reached == 0.05


@pytest.mark.parametrize(("alpha", "expected"), [(0.05, 59), (1e-3, 2995), (1e-4, 29_956)])
def test_negatives_needed(alpha: float, expected: int) -> None:
    assert negatives_needed(alpha, 0.05) == expected


def test_too_few_negatives_say_what_they_allow(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(3)
    positives, negatives = rng.normal(3, 1, 50), rng.normal(0, 1, 100)
    with caplog.at_level(logging.WARNING):
        calibration = _calibrate(positives, negatives, alpha=1e-3)
    assert calibration.alpha == pytest.approx(1 - 0.05 ** (1 / 100))
    assert not np.any(negatives.astype(np.float32) >= calibration.threshold)
    assert "100 held-out negatives are too few" in caplog.text
    assert "it takes 2995" in caplog.text


def test_ties_with_the_threshold_order_statistic_are_not_detected() -> None:
    """Generated negatives come in exact duplicates."""
    threshold, _ = umbrella_threshold(np.zeros(1000, dtype=np.float32), alpha=0.05, delta=0.05)
    assert not np.float32(0) >= threshold


def test_conformal_p_value_of_a_negative_is_super_uniform() -> None:
    rng = np.random.default_rng(4)
    p_values = []
    for _ in range(40):
        negatives = rng.normal(0, 1, 200)
        calibration = _calibrate(rng.normal(3, 1, 20), negatives)
        fresh = rng.normal(0, 1, 100).astype(np.float32)
        p_values += [conformal_p_value(calibration, float(logit)) for logit in fresh]
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        assert np.mean(np.array(p_values) <= level) <= level + 3 * np.sqrt(level / 4000) + 0.01


def test_conformal_p_value_is_never_smaller_than_the_negatives_support() -> None:
    rng = np.random.default_rng(5)
    calibration = _calibrate(rng.normal(3, 1, 20), rng.normal(0, 1, 200))
    assert conformal_p_value(calibration, 1e9) == 1 / 201
    assert conformal_p_value(calibration, -1e9) == 1


def test_conformal_p_value_below_the_negatives_kept_is_one() -> None:
    rng = np.random.default_rng(6)
    negatives = rng.normal(0, 1, 5000).astype(np.float32)
    calibration = _calibrate(rng.normal(3, 1, 20), negatives)
    assert len(calibration.negative_logits) == 4096
    above, below = np.sort(negatives)[[-4000, -4500]]
    assert conformal_p_value(calibration, float(above)) == 4001 / 5001
    assert conformal_p_value(calibration, float(below)) == 1


def test_calibrated_probabilities_keep_the_order_of_logits() -> None:
    rng = np.random.default_rng(7)
    calibration = _calibrate(rng.normal(1, 1, 100), rng.normal(0, 1, 300))
    assert np.all(np.diff(calibrated_logits(calibration, np.linspace(-9, 9, 50))) > 0)
    assert calibration.prior_shift == pytest.approx(log_odds(0.01) - log_odds(0.25))


def test_val_without_positives_is_refused() -> None:
    with pytest.raises(InfinegError, match=r"target cat: 10 of 10 held-out samples are negatives"):
        _calibrate(np.zeros(0), np.arange(10.0))
