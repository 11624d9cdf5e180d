import numpy as np
import pytest

from train.metrics.ranking import (
    area_under_roc,
    average_precision,
    ece_floor,
    log_loss,
    reliability,
    threshold_at_tpr,
    weights_at_prior,
)


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


@pytest.mark.parametrize("number", [200, 2000])
def test_ece_of_true_probabilities_is_its_floor_and_of_others_is_above(number: int) -> None:
    """Of negatives of which a fifth is drawn and weighs five times, too."""
    rng, found, wrong, floors = np.random.default_rng(0), [], [], []
    for _ in range(40):
        probabilities = rng.beta(0.3, 0.7, 3 * number)
        is_positive = rng.random(3 * number) < probabilities
        kept = is_positive | (rng.random(3 * number) < 0.2)
        weights = np.where(is_positive, 1.0, 5.0)[kept]
        samples = is_positive[kept], probabilities[kept], weights
        found.append(reliability(*samples).ece)
        floors.append(ece_floor(*samples))
        wrong.append(reliability(samples[0], probabilities[kept] ** 2, weights).ece)
    assert np.mean(found) == pytest.approx(np.mean(floors), rel=0.15)
    assert np.mean(floors) > 0.01
    assert np.mean(wrong) > 1.5 * np.mean(floors)
