"""Coverage of the intervals. Each regime is a stream, sampled 1,000 times."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from pipeline.selection.intervals import weighted_interval
from train.metrics.intervals import (
    Rate,
    effective_size,
    event_rate,
    rate_at_true_tpr,
    samples_needed,
    upper_bound,
)

NUM_RUNS = 1000


def clopper_pearson(events: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    interval = binomtest(events, n).proportion_ci(confidence, method="exact")
    return interval.low, interval.high


@pytest.mark.parametrize(("events", "n"), [(0, 1), (1, 1), (0, 30), (1, 30), (16, 30), (7, 5000)])
def test_equal_weights_give_the_interval_of_clopper_and_pearson(events: int, n: int) -> None:
    interval = weighted_interval(np.arange(n) < events, np.full(n, 1 / np.float32(0.3)))
    assert interval == pytest.approx(clopper_pearson(events, n), abs=1e-9)


def test_no_event_among_29957_supports_one_in_ten_thousand_one_sided() -> None:
    nothing = np.zeros(29_957, dtype=bool)
    assert upper_bound(nothing, np.ones(29_957)) <= 1e-4
    assert upper_bound(nothing[2:], np.ones(29_955)) > 1e-4


@pytest.mark.parametrize(("rate", "n"), [(1e-3, 2995), (1e-4, 29_956), (1e-6, 2_995_731)])
def test_samples_needed_for_a_claim_are_the_fewest_that_support_it(rate: float, n: int) -> None:
    assert samples_needed(rate) == n
    assert (
        clopper_pearson(0, n, confidence=0.9)[1]
        <= rate
        < clopper_pearson(0, n - 1, confidence=0.9)[1]
    )


def test_rate_of_a_uniform_sample_has_the_exact_interval() -> None:
    rate = event_rate(np.arange(200) < 3, np.full(200, 1 / np.float32(0.3)))
    assert rate.value == pytest.approx(3 / 200)
    assert (rate.low, rate.high) == pytest.approx(clopper_pearson(3, 200), abs=1e-9)
    assert rate.n == 200


def test_rate_of_nothing_is_none_and_not_nan() -> None:
    assert event_rate(np.zeros(0, dtype=bool), np.zeros(0)) == Rate()


def test_weighted_rate_without_events_keeps_an_upper_end() -> None:
    rate = event_rate(np.zeros(100, dtype=bool), np.array([1.0] * 50 + [10.0] * 50))
    assert rate.value == rate.low == 0
    assert rate.high > clopper_pearson(0, 100)[1], (
        "unequal weights are less informative than 100 samples"
    )


def test_interval_of_the_complement_is_the_complement() -> None:
    rng = np.random.default_rng(0)
    events, weights = rng.random(300) < 0.2, rng.exponential(size=300)
    low, high = weighted_interval(events, weights)
    assert weighted_interval(~events, weights) == pytest.approx((1 - high, 1 - low))


def test_one_sample_that_outweighs_all_others_leaves_the_rate_open() -> None:
    weights = np.array([1.0] * 50 + [1000.0])
    assert weighted_interval(np.zeros(51, dtype=bool), weights) == pytest.approx((0, 1), abs=0.03)


def test_effective_size_is_that_of_kish() -> None:
    assert effective_size(np.full(40, 7.0)) == pytest.approx(40)
    assert effective_size(np.array([1.0, 3.0])) == pytest.approx(16 / 10)
    assert effective_size(np.zeros(0)) == 0


@dataclass(frozen=True)
class Stream:
    """Candidates of each source, the probability of inclusion, and how often they are detected."""

    num: tuple[int, ...]
    probability: tuple[float, ...]
    rate: tuple[float, ...]

    @property
    def truth(self) -> float:
        return float(np.average(self.rate, weights=self.num))

    @property
    def heaviest_in_standard_errors(self) -> float:
        """The share of one sample of the largest weight over the standard error of the rate."""
        num, probability, rate = map(np.array, (self.num, self.probability, self.rate))
        squares = (rate * (1 - self.truth) ** 2 + (1 - rate) * self.truth**2) * num / probability
        return float(1 / probability.min() / np.sqrt(squares.sum()))

    def samples(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(events_N, weights_N) of NUM_RUNS Poisson samples, each of a fresh stream."""
        drawn_RS = rng.binomial(self.num, self.probability, (NUM_RUNS, len(self.num)))
        detected_RS = rng.binomial(drawn_RS, self.rate)
        for drawn_S, detected_S in zip(drawn_RS, detected_RS, strict=True):
            order = [np.arange(n) < k for n, k in zip(drawn_S, detected_S, strict=True)]
            yield np.concatenate(order), np.repeat(1 / np.array(self.probability), drawn_S)


@dataclass(frozen=True)
class HeavyTail:
    """Weights that vary from sample to sample, as after exp(beta * similarity): log-normal.

    A sample of weight w is detected with probability `rate` * w**`slope`.
    """

    n: int
    spread: float
    rate: float
    slope: float = 0.0

    @property
    def truth(self) -> float:
        """E[w p(w)] / E[w] of a log-normal w."""
        return float(self.rate * np.exp(self.spread**2 * (self.slope**2 / 2 + self.slope)))

    def samples(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _ in range(NUM_RUNS):
            weights = rng.lognormal(sigma=self.spread, size=self.n)
            yield rng.random(self.n) < self.rate * weights**self.slope, weights


FOUR = ((300, 600, 1200, 3000), (1, 0.5, 0.25, 0.1))
FOUR_LARGE = ((1200, 2400, 4800, 12_000), FOUR[1])
# The heaviest sample adds little to the uncertainty.
MANY_EVENTS: dict[str, Stream] = {
    "one source, 100 events": Stream((5000,), (1,), (0.02,)),
    "four sources, 200 events": Stream(*FOUR_LARGE, (0.042,) * 4),
    "four sources, half are events": Stream(*FOUR, (0.5,) * 4),
    "four sources, nearly all are events": Stream(*FOUR_LARGE, (0.95,) * 4),
    "four sources of unlike rates": Stream(*FOUR_LARGE, (0.3, 0.1, 0.05, 0.03)),
    "hard ones beside uniform ones": Stream((2000, 18_000), (1, 0.05), (0.2, 0.02)),
    "a third of the stream in 200 samples of weight 20": Stream(
        (9000, 4000), (1, 0.05), (0.3, 0.1)
    ),
    "weights over three powers of ten": Stream(
        (300, 3000, 30_000), (1, 0.1, 0.01), (0.1, 0.1, 0.1)
    ),
}
# Few events, or few samples that hold much of the stream: an unseen event there widens the
# interval, so that it covers more than 95 %, up to 99 %.
FEW_EVENTS: dict[str, Stream | HeavyTail] = {
    "one source, 3 events": Stream((1000,), (1,), (0.003,)),
    "four sources, 0.3 events": Stream(*FOUR, (0.00025,) * 4),
    "four sources, 3 events": Stream(*FOUR, (0.0025,) * 4),
    "four sources, 10 events": Stream(*FOUR, (0.0083,) * 4),
    "four sources, 50 events": Stream(*FOUR, (0.042,) * 4),
    "four sources of unlike rates": Stream(*FOUR, (0.3, 0.1, 0.05, 0.03)),
    "four sources, all events in the heaviest": Stream(*FOUR, (0, 0, 0.001, 0.02)),
    "four sources, most events in the lightest": Stream(*FOUR, (0.03, 0.005, 0.001, 0.0005)),
    "four sources, 10 misses": Stream(*FOUR, (0.99,) * 4),
    "hard ones beside uniform ones": Stream((200, 1800), (1, 0.05), (0.2, 0.002)),
    "hard ones beside uniform ones without events": Stream((500, 4500), (0.5, 0.05), (0.05, 0)),
    "all events in 20 samples of weight 25": Stream((2000, 500), (1, 0.04), (0, 0.15)),
    "all events in 40 samples of weight 20": Stream((2000, 800), (1, 0.05), (0, 0.05)),
    "many events, and 2 in the heaviest 40": Stream((2000, 800), (1, 0.05), (0.01, 0.05)),
    "heavy tail, 3 events": HeavyTail(1000, 1.0, 0.003),
    "heavy tail, 30 events": HeavyTail(1000, 1.0, 0.03),
    "heavy tail, more events in heavy ones": HeavyTail(1000, 1.0, 0.01, 0.5),
    "heavy tail, more events in light ones": HeavyTail(1000, 1.0, 0.003, -0.5),
    "heavier tail, 30 events": HeavyTail(1000, 1.5, 0.03),
}


def _coverage(regime: Stream | HeavyTail) -> float:
    truth, covered = regime.truth, 0
    for events, weights in regime.samples(np.random.default_rng(0)):
        low, high = weighted_interval(events, weights)
        covered += low <= truth <= high
    return covered / NUM_RUNS


@pytest.mark.parametrize("name", MANY_EVENTS)
def test_interval_of_many_events_covers_93_to_97_percent(name: str) -> None:
    assert MANY_EVENTS[name].heaviest_in_standard_errors < 0.25
    assert 0.93 <= _coverage(MANY_EVENTS[name]) <= 0.97


@pytest.mark.parametrize("name", FEW_EVENTS)
def test_interval_of_few_events_covers_at_least_93_percent(name: str) -> None:
    assert _coverage(FEW_EVENTS[name]) >= 0.93


@pytest.mark.parametrize("name", FEW_EVENTS)
def test_bound_of_few_events_holds_in_at_least_93_percent(name: str) -> None:
    regime = FEW_EVENTS[name]
    samples = regime.samples(np.random.default_rng(1))
    held = [upper_bound(events, weights) >= regime.truth for events, weights in samples]
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize(
    ("num_positives", "num_negatives", "tpr"),
    [(109, 85, 0.95), (109, 924, 0.95), (100, 10_000, 0.95), (1000, 10_000, 0.95),
     (1000, 1000, 0.99), (30, 300, 0.99)],
)  # fmt: skip
def test_interval_at_a_true_tpr_covers_though_the_threshold_is_estimated(
    num_positives: int, num_negatives: int, tpr: float
) -> None:
    """Normal logits, 4 apart, negatives of weights 1 and 5."""
    rng = np.random.default_rng(0)
    truth = norm.sf(4 + norm.ppf(1 - tpr))
    weights = np.where(np.arange(num_negatives) % 2, 1.0, 5.0)
    covered = 0
    for _ in range(300):
        positives, negatives = rng.normal(4, 1, num_positives), rng.normal(0, 1, num_negatives)
        low, high = rate_at_true_tpr(positives, negatives, weights, tpr=tpr)
        covered += low <= truth <= high
    assert covered / 300 >= 0.93


def test_too_few_positives_leave_the_rate_at_a_high_tpr_open() -> None:
    """Of 100 positives 99 % leave one out: any lower threshold would be as likely."""
    rng = np.random.default_rng(0)
    positives, negatives = rng.normal(9, 1, 100), rng.normal(0, 1, 5000)
    assert rate_at_true_tpr(positives, negatives, np.ones(5000), tpr=0.99) == (0, 1)
    low, high = rate_at_true_tpr(positives, negatives, np.ones(5000), tpr=0.9)
    assert (low, high) == (0, pytest.approx(clopper_pearson(0, 5000, confidence=0.975)[1]))
