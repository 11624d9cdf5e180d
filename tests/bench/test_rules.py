"""The rules that the study compares: they keep their budget, and their probabilities are exact."""

from dataclasses import replace

import numpy as np
import pytest

from study.choosing import Rule, Stream, choose, fit_logistic

NUM, NUM_HARD, BUDGET, NUM_SEEDS = 600, 60, 60, 100
SPREAD = Rule(share=0.5, pick="spread", depth=2)


def stream(seed: int) -> Stream:
    """The same candidates for every seed, of which the first are like the positives."""
    rng = np.random.default_rng(0)
    centre_D = np.eye(8)[0]
    positive_PD = rng.normal(0, 0.3, (40, 8)) + centre_D
    candidate_ND = rng.normal(0, 0.3, (NUM, 8)) - centre_D
    candidate_ND[:NUM_HARD] += 1.7 * centre_D
    return Stream(
        positive_PD=positive_PD / np.linalg.norm(positive_PD, axis=1, keepdims=True),
        candidate_ND=candidate_ND / np.linalg.norm(candidate_ND, axis=1, keepdims=True),
        chance_N=np.random.default_rng([1, seed]).uniform(size=NUM),
        fold_N=np.arange(NUM) % 3,
        is_near_N=np.arange(NUM) < NUM_HARD,
        seed=seed,
    )


def hard_estimates(rule: Rule) -> tuple[float, float]:
    """Mean over draws of the Horvitz-Thompson number of hard candidates, and its error."""
    totals = []
    for seed in range(NUM_SEEDS):
        is_chosen_N, probability_N = choose(stream(seed), rule, BUDGET)
        totals.append((is_chosen_N / probability_N)[:NUM_HARD].sum())
    return float(np.mean(totals)), float(np.std(totals) / NUM_SEEDS**0.5)


@pytest.mark.parametrize("pick", ["top", "spread", "draw", "build"])
def test_cross_fitted_probabilities_are_exact(pick: str) -> None:
    rule = replace(SPREAD, pick=pick, beta=0.0)  # type: ignore[arg-type]
    mean, error = hard_estimates(rule)
    assert abs(mean - NUM_HARD) < 4 * error


def test_a_head_that_judges_what_it_has_seen_counts_hard_candidates_twice() -> None:
    mean, error = hard_estimates(replace(SPREAD, pick="top", beta=0.0, is_exact=False))
    assert mean - NUM_HARD > 4 * error


@pytest.mark.parametrize(
    "rule",
    [Rule(beta=0.0), Rule(), SPREAD, replace(SPREAD, pick="top"), replace(SPREAD, pick="build")],
)
def test_expected_number_is_the_budget(rule: Rule) -> None:
    probability_N = choose(stream(0), rule, BUDGET).probability_N
    assert probability_N.sum() == pytest.approx(BUDGET, abs=1.5), "one candidate more, per fold"


def test_the_first_head_finds_what_is_hard() -> None:
    is_chosen_N, probability_N = choose(stream(0), replace(SPREAD, pick="top"), BUDGET)
    is_hard_N = probability_N == 1
    assert is_hard_N[:NUM_HARD].sum() >= 25
    assert is_hard_N[NUM_HARD:].sum() <= 3, "10 % of the candidates are hard"
    assert is_chosen_N[probability_N == 1].all()


def test_spread_takes_unlike_candidates() -> None:
    world = stream(0)
    top, spread = (choose(world, rule, 30) for rule in (replace(SPREAD, pick="top"), SPREAD))
    distances = []
    for each in (top, spread):
        taken_MD = world.candidate_ND[each.probability_N == 1]
        distances.append(np.median(np.sort(1 - taken_MD @ taken_MD.T, axis=1)[:, 1]))
    assert distances[1] > distances[0]


def test_standardised_logits_do_not_depend_on_the_scale_of_a_feature() -> None:
    world = stream(0)
    positive_PD, negative_ND = world.positive_PD, world.candidate_ND[:100]
    factor_D = np.geomspace(0.1, 10, 8)
    weight_N = np.linspace(1, 3, 100)
    plain = fit_logistic(positive_PD, negative_ND, weight_N)(world.candidate_ND)
    scaled = fit_logistic(positive_PD * factor_D, negative_ND * factor_D, weight_N)
    np.testing.assert_allclose(scaled(world.candidate_ND * factor_D), plain, atol=0.02)
