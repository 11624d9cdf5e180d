"""Rounds of simulated candidates: probabilities and estimates that hold, whoever is asked."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.curate.label.candidates import Candidates
from pipeline.curate.label.choosing import (
    Chosen,
    Judged,
    choose_round,
    inclusion_probability,
    judge,
)
from pipeline.curate.label.estimates import Estimates, estimate, rate
from pipeline.curate.label.log import (
    Event,
    RoundEvent,
    Standing,
    VerdictEvent,
    standing_of,
)
from pipeline.dataset.keys import sha256_hex, unit_hash
from pipeline.selection.hardest import NUM_FOLDS, Positives
from pipeline.selection.mining import fold_of
from support.label import simulated_embeddings

NUM, DIM = 900, 8
START = datetime(2026, 1, 1, tzinfo=UTC)


def make_world(seed: int) -> tuple[Candidates, Positives, NDArray[np.bool_]]:
    """The same candidates for all seeds, drawn anew with a probability of a fifth; the truth.

    A tenth of them shows the target, and the head cannot tell all of these from the others.
    """
    rng = np.random.default_rng(0)
    is_target_N = np.arange(NUM) % 10 == 0
    embedding_ND = np.where(
        is_target_N[:, None],
        simulated_embeddings(NUM, DIM, rng, towards=2.0),
        simulated_embeddings(NUM, DIM, rng),
    ).astype(np.float16)
    hashes = [sha256_hex(str(n).encode()) for n in range(NUM)]
    chance_N = np.array([unit_hash(seed, each) for each in hashes])
    rows = pa.table(
        {
            "key": [f"key-{n}" for n in range(NUM)],
            "label": [""] * NUM,
            "label_state": ["unknown", "verified_absent"] * (NUM // 2),
            "similarity": embedding_ND[:, 0].astype(np.float32),
            "inclusion_probability": np.full(NUM, 0.2, np.float32),
            "selected": chance_N < np.float32(0.2),
        }
    )
    found = Candidates(
        generation=1, rows=rows, embedding_ND=embedding_ND, chance_N=chance_N,
        fold_N=fold_of(hashes, NUM_FOLDS), hashes=hashes,
        position={each: n for n, each in enumerate(hashes)}, in_tars={}, previews={},
        num_without=0,
    )  # fmt: skip
    positives = simulated_embeddings(60, DIM, rng, towards=2.0).astype(np.float32)
    names = [sha256_hex(f"positive {n}".encode()) for n in range(60)]
    return found, Positives(positives, names), is_target_N


def after(
    events: list[Event], chosen: Chosen, found: Candidates, truth: NDArray[np.bool_]
) -> list[Event]:
    """The events, with a round and what the truth says of it."""
    time = START + timedelta(seconds=len(events))
    drawn: Mapping[str, float] = {**standing_of(events).drawn, **chosen.drawn}
    common = {"time": time, "rater": "anna", "model": "m", "round": chosen.number}
    verdicts = [
        VerdictEvent(
            **common, content_hash=each, key=f"key-{found.position[each]}",
            verdict="positive" if truth[found.position[each]] else "negative",
            how="picked" if each in chosen.picked else "random",
            probability=1.0 if each in chosen.picked else drawn[each],
            label_state=str(found.rows["label_state"][found.position[each]]),
        )
        for each in chosen.shown
    ]  # fmt: skip
    round_ = RoundEvent(**common, shown=chosen.shown, picked=chosen.picked, drawn=chosen.drawn)
    return [*events, round_, *verdicts]


def label(seed: int, num_rounds: int) -> tuple[Candidates, Standing, Estimates, float, float]:
    """Rounds with the truth; the estimates, the false positives of 1,000, and the missed."""
    found, positives, truth = make_world(seed)
    events: list[Event] = []
    for _ in range(num_rounds):
        standing = standing_of(events)
        judged = judge(found, standing, positives, ceiling=0.9)
        events = after(events, choose_round(found, judged, standing, "anna"), found, truth)
    # The next round ends the last one.
    standing = standing_of(events)
    judged = judge(found, standing, positives, ceiling=0.9)
    last = choose_round(found, judged, standing, "anna")
    events = [*events, *after(events, last, found, truth)[len(events) : len(events) + 1]]
    standing = standing_of(events)
    called_N = judged.is_called_N
    false, missed = (called_N & ~truth).mean(), (~called_N & truth).mean()
    return found, standing, estimate(found, judged, standing), 1000 * false, 1000 * missed


def weighted_total(found: Candidates, standing: Standing, near_N: NDArray[np.bool_]) -> float:
    """Of the candidates in `near_N`, by those that the next generation holds."""
    probability_N = inclusion_probability(found, standing)
    is_held_N = found.chance_N < probability_N
    return float((near_N & is_held_N) @ (1 / probability_N))


def test_weighted_counts_of_the_next_generation_are_unbiased() -> None:
    totals = []
    for seed in range(60):
        found, standing, *_ = label(seed, 2)
        near_N = found.embedding_ND[:, 0] > 0.3  # where heads pick
        totals.append(weighted_total(found, standing, near_N) - near_N.sum())
    error = np.mean(totals) / (np.std(totals) / np.sqrt(len(totals)))
    assert abs(error) < 4, f"{error:.1f} standard errors"


def test_estimates_cover_the_truth_of_a_head_that_has_learned() -> None:
    num_covered = num_seen = 0
    errors = []
    for seed in range(40):
        _, _, estimates, false, missed = label(seed, 2)
        for found, truth in ((estimates.false_positives, false), (estimates.missed, missed)):
            num_covered += found.low <= truth <= found.high
            num_seen += found.n
        if estimates.false_positives.value is not None:
            errors.append(estimates.false_positives.value - false)
    assert num_covered >= 74, "of 80, at 95 %"
    assert num_seen > 40 * 15
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors))


def test_what_was_drawn_stays_drawn_and_what_was_picked_counts_for_no_estimate() -> None:
    found, standing, estimates, *_ = label(0, 3)
    drawn_rounds = [event for event in standing.events if isinstance(event, RoundEvent)]
    assert [event.round for event in drawn_rounds] == [1, 2, 3, 4]
    shown = [each for event in drawn_rounds for each in event.shown]
    assert len(set(shown)) == len(shown)
    for each, probability in standing.drawn.items():
        assert found.chance_N[found.position[each]] < probability
    assert estimates.precision.n + estimates.missed.n == len(standing.drawn_before)
    assert len(standing.drawn_before) < len(standing.verdicts) / 2
    assert len(standing.picked) >= 3 * 45


@pytest.mark.parametrize("verdict", ["positive", "negative"])
def test_draws_and_verdicts_of_a_fold_have_no_part_in_what_is_picked_of_it(verdict: str) -> None:
    found, positives, truth_N = make_world(0)
    start = Standing([])
    first = choose_round(found, judge(found, start, positives, ceiling=0.9), start, "anna")
    before = after([], first, found, truth_N)

    def picks(events: list[Event]) -> set[str]:
        standing = standing_of(events)
        judged = judge(found, standing, positives, ceiling=0.9)
        return set(choose_round(found, judged, standing, "anna").picked)

    own = {each for each in picks(before) if found.fold_N[found.position[each]] == 1}
    assert len(own) == 16
    # As if those had been drawn in an earlier round, and rated.
    drawn = Chosen(1, tuple(sorted(own)[:8]), {}, dict.fromkeys(own, 0.01))
    truth_N = np.full(NUM, verdict == "positive")
    events = after(before, drawn, found, truth_N)[len(before) :]
    late = picks([*before, *events[1:]]), picks([events[0], *before, *events[1:]])
    for chosen in late:
        assert own == {each for each in chosen if found.fold_N[found.position[each]] == 1}
    assert late[0] != picks(before), "heads of other folds have learned from it"


def test_what_was_picked_in_vain_and_drawn_later_has_the_probability_of_its_draw() -> None:
    found, _, truth_N = make_world(0)
    one, other, third = found.hashes[:3]
    rounds = [
        Chosen(1, (), {one: "uncertain", other: "uncertain"}, {}),  # nothing is rated
        Chosen(2, (one, third), {}, {one: 0.1, third: 0.1}),
        Chosen(3, (other,), {other: "uncertain", third: "uncertain"}, {}),
    ]
    events: list[Event] = []
    for chosen in rounds:
        events = after(events, chosen, found, truth_N)
    assert standing_of(events).probability == {one: 0.1, third: 1.0, other: 1.0}


def test_each_draw_stands_for_the_inverse_of_its_probability() -> None:
    found, _, _ = make_world(0)
    called = found.hashes[:4]
    probability = dict(zip(called, (0.5, 0.5, 0.1, 0.1), strict=True))
    chosen = [Chosen(1, tuple(called), {}, probability), Chosen(2, (), {}, {})]
    truth_N = np.isin(np.arange(NUM), (0, 2))
    standing = standing_of(after(after([], chosen[0], found, truth_N), chosen[1], found, truth_N))
    judged = Judged("m", np.where(np.arange(NUM) < 3, 1.0, -1.0).astype(np.float32))
    estimates = estimate(found, judged, standing)
    assert estimates.precision.value == pytest.approx((2 + 10) / (2 + 2 + 10))
    assert estimates.false_positives.value == pytest.approx(1000 * 3 / NUM * 2 / 14)
    assert (estimates.missed.value, estimates.missed.n) == (0, 1)


@pytest.mark.parametrize(
    ("num", "doubtful", "n", "low", "high"),
    [(0, 0, 10, 0.0, 0.3085), (5, 0, 10, 0.1871, 0.8129), (5, 2, 10, 0.1871, 0.9333)],
)
def test_intervals_are_those_of_clopper_and_pearson(
    num: int, doubtful: int, n: int, low: float, high: float
) -> None:
    place_N = np.arange(n)
    found = rate(place_N < num, (place_N >= num) & (place_N < num + doubtful), np.full(n, 7.0))
    assert (found.low, found.high, found.n) == (
        pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4), n,
    )  # fmt: skip
    assert found.value == pytest.approx(num / (n - doubtful))
    assert rate(*(np.zeros(0, bool),) * 2, np.zeros(0)).value is None
