import numpy as np
import pytest
from scipy.stats import binomtest

from train.metrics import (
    Rate,
    area_under_roc,
    average_precision,
    brier,
    clopper_pearson,
    event_rate,
    log_loss,
    reliability,
    threshold_at_tpr,
    weights_at_prior,
)


@pytest.mark.parametrize(("events", "n"), [(0, 30), (1, 30), (15, 30), (30, 30), (7, 5000)])
def test_clopper_pearson_agrees_with_scipys_exact_interval(events: int, n: int) -> None:
    expected = binomtest(events, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(events, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_event_among_29957_supports_one_in_ten_thousand_one_sided() -> None:
    """The rule of three: the one-sided bound at 95 % is the upper end of the 90 % interval."""
    assert clopper_pearson(0, 29_957, confidence=0.9)[1] <= 1e-4
    assert clopper_pearson(0, 29_955, confidence=0.9)[1] > 1e-4


def test_rate_of_a_uniform_sample_has_the_exact_interval() -> None:
    events = np.arange(200) < 3
    rate = event_rate(events, np.full(200, 1 / np.float32(0.3)), rng=np.random.default_rng(0))
    low, high = clopper_pearson(3, 200)
    assert rate.value == pytest.approx(3 / 200)
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-12)
    assert rate.n == 200


def test_rate_of_nothing_is_none_and_not_nan() -> None:
    nothing = np.zeros(0)
    assert event_rate(nothing.astype(bool), nothing, rng=np.random.default_rng(0)) == Rate()


def _draw_weighted(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Hard samples, kept always, err in 20 %; easy ones, kept in 1 of 20, in 2 %."""
    is_hard = rng.random(n) < 0.1
    events = rng.random(n) < np.where(is_hard, 0.2, 0.02)
    kept = is_hard | (rng.random(n) < 0.05)
    weights = np.where(is_hard, 1.0, 20.0)
    return events[kept], weights[kept], 0.1 * 0.2 + 0.9 * 0.02


def test_weighted_rate_estimates_the_stream_that_was_sampled() -> None:
    rng = np.random.default_rng(1)
    events, weights, truth = _draw_weighted(rng, 200_000)
    assert event_rate(events, weights, rng=rng).value == pytest.approx(truth, rel=0.05)
    assert events.mean() > 3 * truth, "unweighted, hard samples would stand for the stream"


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        events, weights, truth = _draw_weighted(rng, 10_000)
        rate = event_rate(events, weights, rng=rng, num_bootstrap=300)
        assert rate.low is not None
        assert rate.high is not None
        covered += rate.low <= truth <= rate.high
    assert 180 <= covered <= 198


def test_weighted_rate_without_events_keeps_an_upper_end() -> None:
    weights = np.array([1.0] * 50 + [10.0] * 50)
    rate = event_rate(np.zeros(100, dtype=bool), weights, rng=np.random.default_rng(0))
    assert rate.value == rate.low == 0
    assert rate.high is not None
    assert rate.high > clopper_pearson(0, 100)[1], "unequal weights tell less than 100 samples"


def test_threshold_at_tpr_detects_just_that_share() -> None:
    positives = np.random.default_rng(0).normal(size=200)
    threshold = threshold_at_tpr(positives, tpr=0.95)
    assert np.sum(positives >= threshold) == 190
    assert np.sum(positives > threshold) == 189


def test_ranking_measures_count_a_weighted_sample_as_that_many_copies() -> None:
    rng = np.random.default_rng(3)
    is_positive = rng.random(300) < 0.3
    logits = rng.normal(size=300) + is_positive
    copies = np.where(is_positive, 1, rng.integers(1, 6, 300))
    repeated = [np.repeat(values, copies) for values in (is_positive, logits)]
    ones = np.ones(copies.sum())
    for measure in (area_under_roc, average_precision):
        weighted = measure(is_positive, logits, copies.astype(float))
        assert weighted == pytest.approx(measure(*repeated, ones))
        assert weighted != pytest.approx(measure(is_positive, logits, np.ones(300)), abs=1e-4)


def test_ranking_of_one_class_is_unknown() -> None:
    assert area_under_roc(np.zeros(3, dtype=bool), np.arange(3.0), np.ones(3)) is None


def test_ece_of_a_constant_is_its_distance_to_the_weighted_share() -> None:
    is_positive = np.array([True] * 10 + [False] * 10)
    weights = np.where(is_positive, 1.0, 9.0)  # share of positives: 10 %
    curve = reliability(is_positive, np.full(20, 0.3), weights)
    assert curve.ece == pytest.approx(0.2)
    assert brier(is_positive, np.full(20, 0.1), weights) == pytest.approx(0.09)


def test_ece_of_true_probabilities_is_near_zero() -> None:
    rng = np.random.default_rng(4)
    probabilities = rng.random(200_000)
    is_positive = rng.random(200_000) < probabilities
    assert reliability(is_positive, probabilities, np.ones(200_000)).ece < 0.01
    assert reliability(is_positive, probabilities**2, np.ones(200_000)).ece > 0.1


def test_log_loss_is_exact_where_probabilities_round_to_one() -> None:
    assert log_loss(np.array([False]), np.array([60.0]), np.ones(1)) == pytest.approx(60)


def test_weights_at_prior_give_positives_that_share() -> None:
    is_positive = np.array([True, False, False])
    weights = weights_at_prior(is_positive, np.array([1.0, 1.0, 3.0]), prior=0.01)
    assert weights == pytest.approx([0.01, 0.99 / 4, 0.99 * 3 / 4])
