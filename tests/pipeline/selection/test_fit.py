from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_plan import ENTRY, REFERENCE, config_with, pilot_of, rows_of

from pipeline.config.schema import Config
from pipeline.dataset.schema import Partition
from pipeline.selection.fit import fit_probabilities, pilot_needed, probability_curve
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


def needed(config: Config, similarity_N: NDArray[np.float32]) -> int:
    return pilot_needed(read_pilot(config, similarity_N), config=config, reference=REFERENCE)


@pytest.mark.parametrize("beta", [0.0, 8.0, 16.0])
def test_counts_meet_a_budget_of_ten_thousand_within_five_percent(
    similarity_N: NDArray[np.float32], beta: float
) -> None:
    """Over repeated pilots, each as large as its first 500 candidates ask for."""
    config = config_with(budget=10_000, beta=beta, pilot=500)
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(100):
        size = needed(config, rng.choice(similarity_N, 500))
        pilot = read_pilot(config, rng.choice(similarity_N, size))
        fit = fit_probabilities(
            pilot, config=config, reference=REFERENCE, num_candidates=NUM_CANDIDATES
        )
        probability_N = inclusion_probability(
            similarity_N, scale=fit.scale, **probability_curve(config, REFERENCE)
        )
        train = config.split.fractions["train"]
        selected = rng.random(NUM_CANDIDATES) < train * probability_N
        errors.append(selected.sum() / 10_000 - 1)
    assert np.quantile(np.abs(errors), 0.95) < 0.05, np.std(errors)


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
