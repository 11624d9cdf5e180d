from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_plan import ENTRY, REFERENCE, config_with, pilot_of, rows_of

from pipeline.config.schema import Config
from pipeline.dataset.schema import Partition
from pipeline.selection.fit import Fitted, fit_probabilities, pilot_needed
from pipeline.selection.pilot import Pilot
from pipeline.selection.rule import inclusion_probability
from pipeline.sources.survey import Listing, pilot_size

NUM_CANDIDATES = 100_000


@pytest.fixture(scope="module")
def similarity_N() -> NDArray[np.float32]:
    """Similarities like those of photographs: most far away, few near."""
    rng = np.random.default_rng(0)
    far = rng.normal(0.3, 0.06, NUM_CANDIDATES * 99 // 100)
    near = rng.normal(0.5, 0.05, NUM_CANDIDATES // 100)
    return np.concatenate([far, near]).astype(np.float32)


def listing_of(config: Config) -> Listing:
    example = Partition(id="0", locator=0, num_samples=1000)
    return Listing(
        num_listed=NUM_CANDIDATES // 1000,
        num_partitions=NUM_CANDIDATES // 1000,
        samples_per_partition=1000.0,
        examples=(example,),
        num_pilot=pilot_size(ENTRY, config.selection),
    )


def read_pilot(config: Config, similarity_N: NDArray[np.float32]) -> Pilot:
    rows = rows_of(len(similarity_N), similarity=list(map(float, similarity_N)))
    return pilot_of(listing_of(config), rows, config)


def probability_of(
    fit: Fitted, similarity_N: NDArray[np.float32], config: Config
) -> NDArray[np.float64]:
    return inclusion_probability(
        similarity_N,
        scale=fit.scale,
        beta=config.selection.effective_beta,
        offset=REFERENCE.median,
        min_probability=fit.min_probability,
    )


def needed(config: Config, similarity_N: NDArray[np.float32]) -> int:
    return pilot_needed(read_pilot(config, similarity_N), config=config, reference=REFERENCE)


@pytest.mark.parametrize("beta", [0.0, 8.0, 16.0])
def test_counts_meet_a_budget_of_ten_thousand_within_five_percent(
    similarity_N: NDArray[np.float32], beta: float
) -> None:
    """Over repeated pilots, each as large as its first 500 candidates ask for."""
    config = config_with(mode="similarity", budget=10_000, beta=beta, pilot=500)
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(100):
        size = needed(config, rng.choice(similarity_N, 500))
        pilot = read_pilot(config, rng.choice(similarity_N, size))
        (fit,) = fit_probabilities([(pilot, NUM_CANDIDATES)], config=config, reference=REFERENCE)
        probability_N = probability_of(fit, similarity_N, config)
        train = config.split.fractions["train"]
        selected = rng.random(NUM_CANDIDATES) < train * probability_N
        errors.append(selected.sum() / 10_000 - 1)
    assert np.quantile(np.abs(errors), 0.95) < 0.05, np.std(errors)


@pytest.mark.parametrize("budget", [20, 1000])
def test_floor_does_not_decide_how_many_are_drawn(
    similarity_N: NDArray[np.float32], budget: int
) -> None:
    """A floor of 0.01 alone would draw 700 of 70,000, whatever the budget."""
    config = config_with(budget=budget, beta=16.0)
    pilot = read_pilot(config, similarity_N)
    (fit,) = fit_probabilities([(pilot, NUM_CANDIDATES)], config=config, reference=REFERENCE)
    assert fit.num_wanted == budget
    assert fit.min_probability == pytest.approx(0.1 * (budget / 2) / 70_000)
    drawn = 0.7 * probability_of(fit, similarity_N, config).sum()
    assert drawn == pytest.approx(budget / 2), "a first head adds the other half"


def test_sources_that_share_a_budget_share_the_scale_by_their_weights(
    similarity_N: NDArray[np.float32],
) -> None:
    config = config_with(pool="all", budget=2000, eval_budget=300)
    pilots = []
    for name, weight, shift in (("near", 1.0, 0.1), ("far", 3.0, 0.0), ("empty", 1.0, 0.0)):
        pilot = read_pilot(config, similarity_N[::10] + np.float32(shift))
        if name == "empty":
            pilot = replace(pilot, usable=pilot.usable.slice(0, 0))
        pilots.append(replace(pilot, entry=ENTRY.model_copy(update={"weight": weight})))
    numbers = [50_000, 10_000, 1000]
    fits = fit_probabilities(
        list(zip(pilots, numbers, strict=True)), config=config, reference=REFERENCE
    )
    assert fits[1].scale == pytest.approx(3 * fits[0].scale)
    assert {(fit.num_wanted, fit.min_probability) for fit in fits} == {
        (2000, fits[0].min_probability)
    }
    drawn = [
        0.7 * number * probability_of(fit, pilot.similarity_N, config).mean()
        for fit, pilot, number in zip(fits[:2], pilots[:2], numbers[:2], strict=True)
    ]
    assert sum(drawn) == pytest.approx(1000)
    assert drawn[0] / 50_000 > 0.5 * drawn[1] / 10_000, "nearer ones, where the weight is less"
    assert fits[0].eval_probability == pytest.approx(300 / (60_000 * 0.15))


def test_steeper_curve_asks_for_a_larger_pilot(similarity_N: NDArray[np.float32]) -> None:
    pilot = np.random.default_rng(2).choice(similarity_N, 500)
    sizes = [
        needed(config_with(budget=10_000, beta=beta, pilot=500), pilot) for beta in (0.0, 8.0, 16.0)
    ]
    assert sizes[0] == 500
    assert 500 < sizes[1] < sizes[2] <= 8192


def test_pilot_need_not_be_surer_than_the_draw(similarity_N: NDArray[np.float32]) -> None:
    pilot = np.random.default_rng(2).choice(similarity_N, 500)
    assert needed(config_with(budget=300, beta=8.0, pilot=500), pilot) == 500


def test_suspected_positives_are_not_expected_to_be_selected() -> None:
    columns: dict[str, Any] = {
        "similarity": [0.1, 0.2, REFERENCE.ceiling + 0.1, REFERENCE.ceiling + 0.1],
        "label_state": ["unknown", "unknown", "unknown", "verified_absent"],
    }
    rows = rows_of(4, **columns)
    for quarantine, num_usable, rejected in (
        ("auto", 3, {"suspected_positive": 1}),
        ("off", 4, {}),
    ):
        config = config_with(quarantine=quarantine)
        pilot = pilot_of(listing_of(config), rows, config)
        assert pilot.usable.num_rows == num_usable
        assert pilot.rejected == rejected
