"""Which negatives a model's probabilities choose: the arithmetic, and that sums stay unbiased."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.keys import sha256_hex, unit_hash
from pipeline.selection.mining import (
    Eligible,
    decide,
    expected_new,
    fit_log_scale,
    fold_of,
    judge,
    log_probability,
    mined_probability,
)

NO_GUARD = -np.inf


def ledger(probability_N: np.ndarray, seed: int, **columns: list[str | None]) -> pa.Table:
    """Train negatives drawn with the permanent random numbers of `seed`."""
    num = len(probability_N)
    hashes = [sha256_hex(f"image {i}".encode()) for i in range(num)]
    chance_N = np.array([unit_hash(seed, each) for each in hashes])
    default: dict[str, list[str | None]] = {
        "split": ["train"] * num, "label": [""] * num, "label_state": ["unknown"] * num,
        "reject_reason": [None] * num,
    }  # fmt: skip
    strings = {name: pa.array(values, pa.string()) for name, values in (default | columns).items()}
    return pa.table(
        {
            "content_hash": hashes,
            "inclusion_probability": pa.array(probability_N, pa.float32()),
            "selected": chance_N < probability_N,
            **strings,
        }
    )


def test_only_usable_training_negatives_are_looked_at_and_only_unverified_ones_suspected() -> None:
    columns: dict[str, list[str | None]] = {
        "split": ["train", "train", "val", "test", "train", "train"],
        "label": ["", "", "", "", "cat", ""],
        "label_state": ["unknown", "verified_absent", "unknown", "unknown", "unknown", "unknown"],
        "reject_reason": [None, None, None, None, None, "duplicate"],
    }
    rows = ledger(np.full(6, 0.5, np.float32), 0, **columns)
    is_eligible_N, is_suspect_N = judge(rows, np.full(6, 1.0, np.float32))
    assert is_suspect_N.tolist() == [True] + [False] * 5, "what is verified absent never is"
    assert is_eligible_N.tolist() == [False, True] + [False] * 4
    is_eligible_N, is_suspect_N = judge(rows, np.array([0, 1, 1, 1, 1, np.nan], np.float32))
    assert not is_suspect_N.any(), "at the guard is not above it"
    assert is_eligible_N.tolist() == [True, True] + [False] * 4


@pytest.mark.parametrize("budget", [0.001, 1.0, 50.0, 300.0])
def test_scale_is_that_of_the_budget_exactly(budget: float) -> None:
    rng = np.random.default_rng(0)
    log_p_N = log_probability(rng.normal(-8, 6, 2000).astype(np.float32))
    pieces = [Eligible(log_p_N[i::3], rng.uniform(0.01, 0.3, len(log_p_N[i::3]))) for i in range(3)]
    log_scale = fit_log_scale(lambda: pieces, budget=budget)
    assert sum(expected_new(piece, log_scale) for piece in pieces) == pytest.approx(budget)


def test_budget_of_more_than_there_is_takes_all_and_one_of_nothing_none() -> None:
    eligible = Eligible(log_probability(np.array([-300.0, 2.0], np.float32)), np.array([0.2, 0.4]))
    log_scale = fit_log_scale(lambda: [eligible], budget=1e6)
    assert mined_probability(eligible.log_p_N, np.full(2, log_scale)).tolist() == [1.0, 1.0]
    assert fit_log_scale(list, budget=5) == 0.0
    lowest = fit_log_scale(lambda: [eligible], budget=1e-300)
    assert expected_new(eligible, lowest) == pytest.approx(0, abs=1e-12)


def test_what_was_selected_stays_and_a_second_round_can_only_add() -> None:
    probability_N = np.random.default_rng(1).uniform(0.02, 0.5, 400).astype(np.float32)
    rows = ledger(probability_N, seed=3)
    log_odds_N = np.random.default_rng(2).normal(-3, 2, 400).astype(np.float32)
    guard_N = np.full(400, NO_GUARD, np.float32)
    for log_scale in (0.5, 1.0, 0.2, 2.0):
        before = rows
        decided = decide(
            rows, log_odds_N=log_odds_N, margin_N=guard_N, log_scales=[log_scale], seed=3
        )
        rows = decided.rows
        pi2_N = np.exp(np.minimum(log_probability(log_odds_N) + log_scale, 0)).astype(np.float32)
        wanted_N = np.maximum(before["inclusion_probability"].to_numpy(), pi2_N)
        np.testing.assert_array_equal(rows["inclusion_probability"].to_numpy(), wanted_N)
        selected_N, was_N = rows["selected"].to_numpy(), before["selected"].to_numpy()
        assert selected_N[was_N].all()
        np.testing.assert_array_equal(decided.is_new_N, selected_N & ~was_N)
        chance_N = np.array([unit_hash(3, each) for each in rows["content_hash"].to_pylist()])
        np.testing.assert_array_equal(selected_N, chance_N < wanted_N)


NUM, NUM_FOLDS, NUM_SEEDS = 300, 3, 400
_WORLD = np.random.default_rng(5)
PLACE_N = _WORLD.uniform(0, 1, NUM)
PI1_N = np.clip(0.1 * np.exp(1.5 * PLACE_N), 0.1, 1).astype(np.float32)
POSITIVES = _WORLD.uniform(0.55, 1, 60)
FOLD_N = fold_of([sha256_hex(f"image {i}".encode()) for i in range(NUM)], NUM_FOLDS)


def nearby(place_N: np.ndarray, others: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Kernel density so narrow that whatever was seen remembers itself."""
    return np.exp(-(((place_N[:, None] - others) / 0.004) ** 2)) @ mass


def learned_log_odds(rows: pa.Table, is_seen_N: np.ndarray) -> np.ndarray:
    """Of a model that was trained on the selected negatives among `is_seen_N`."""
    seen_N = np.flatnonzero(rows["selected"].to_numpy() & is_seen_N)
    negatives = nearby(PLACE_N, PLACE_N[seen_N], 1 / PI1_N[seen_N])
    positives = nearby(PLACE_N, POSITIVES, np.ones(len(POSITIVES)))
    return np.log((positives + 0.5) / (negatives + 0.5)).astype(np.float32)


def cross_fitted(rows: pa.Table) -> np.ndarray:
    return np.choose(
        FOLD_N, [learned_log_odds(rows, np.not_equal(FOLD_N, f)) for f in range(NUM_FOLDS)]
    )


def own_judge(rows: pa.Table) -> np.ndarray:
    return learned_log_odds(rows, np.ones(NUM, bool))


def weighted_histograms(log_odds_of: Callable[[pa.Table], np.ndarray]) -> np.ndarray:
    """Horvitz-Thompson estimates of the number of candidates in 4 ranges, a row a seed."""
    estimates = []
    for seed in range(NUM_SEEDS):
        rows = ledger(PI1_N, seed)
        log_odds_N = log_odds_of(rows)
        log_p_N = log_probability(log_odds_N)
        folds = [
            Eligible(log_p_N[here_N], PI1_N[here_N].astype(float))
            for here_N in (np.equal(FOLD_N, fold) for fold in range(NUM_FOLDS))
        ]
        scales = [
            fit_log_scale(lambda own=own: [own], budget=60 / NUM_FOLDS)  # type: ignore[misc]
            for own in folds
        ]
        guard_N = np.full(NUM, NO_GUARD, np.float32)
        decided = decide(
            rows, log_odds_N=log_odds_N, margin_N=guard_N, log_scales=scales, seed=seed
        ).rows
        selected_N = decided["selected"].to_numpy()
        weight_N = 1 / decided["inclusion_probability"].to_numpy()[selected_N].astype(float)
        estimates.append(np.histogram(PLACE_N[selected_N], 4, (0, 1), weights=weight_N)[0])
    return np.array(estimates)


def z_values(estimates: np.ndarray) -> np.ndarray:
    truth = np.histogram(PLACE_N, 4, (0, 1))[0]
    return (estimates.mean(0) - truth) / (estimates.std(0, ddof=1) / len(estimates) ** 0.5)


def test_weighted_sums_over_mined_negatives_are_unbiased() -> None:
    z = z_values(weighted_histograms(cross_fitted))
    assert np.abs(z).max() < 4, f"z of 4 ranges over {NUM_SEEDS} draws: {z.round(1)}"


def test_a_model_that_judges_what_it_was_trained_on_counts_hard_negatives_too_often() -> None:
    z = z_values(weighted_histograms(own_judge))
    assert z.max() > 6, f"else folds would not be needed: {z.round(1)}"
