"""Selection is a pure function of seed, content, similarity and scale."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pipeline.dataset.dedup import NearDuplicateIndex
from pipeline.dataset.keys import unit_hash
from pipeline.selection.fit import Sampled, fit_scale
from pipeline.selection.reference import KnownPositives
from pipeline.selection.rule import SelectionRule
from pipeline.worker.steps.select import ADDS, READS, select_batch

NUM_ROWS = 20_000
OFFSET, MIN_PROBABILITY = 0.5, 0.01
RULE = SelectionRule(
    scale=0.05,
    beta=8.0,
    offset=OFFSET,
    min_probability=MIN_PROBABILITY,
    eval_probability=0.2,
    seed=0,
    near=0.4,
    ceiling=None,
)


HASH = 0x0F1E_2D3C_4B5A_6978  # half of its bits


def rows_of(
    similarities: Sequence[float] | NDArray[np.floating], **columns: Sequence[object]
) -> pa.Table:
    """Usable training negatives, verified absent, where `columns` say nothing else."""
    num_rows = len(similarities)
    defaults = {
        "key": [f"k-{n}" for n in range(num_rows)],
        "label": [""] * num_rows,
        "label_state": ["verified_absent"] * num_rows,
        "split": ["train"] * num_rows,
        "content_hash": [hashlib.sha256(str(n).encode()).hexdigest() for n in range(num_rows)],
    }
    table = pa.table({name: list(columns.get(name, value)) for name, value in defaults.items()})
    table = table.append_column("similarity", pa.array(similarities, pa.float32()))
    hashes = list(columns.get("perceptual_hash", [HASH + n for n in range(num_rows)]))
    table = table.append_column("perceptual_hash", pa.array(hashes, pa.uint64()))
    for name in ("doubt", "reject_reason"):
        values = list(columns.get(name, [None] * num_rows))
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


@pytest.fixture(scope="module")
def similarities() -> NDArray[np.float32]:
    """Most candidates are far from the positives, few near: as in a natural stream."""
    rng = np.random.default_rng(1)
    return np.clip(rng.beta(2, 8, NUM_ROWS) * 1.4 - 0.3, -1, 1).astype(np.float32)


def fit(similarities: NDArray[np.float32], budget: float, beta: float = 8.0) -> float:
    return fit_scale(
        [Sampled(similarities)],
        beta=beta,
        offset=OFFSET,
        min_probability=MIN_PROBABILITY,
        mean_probability=budget / len(similarities),
    )


def selected_keys(rows: pa.Table, rule: SelectionRule) -> set[str]:
    chosen = select_batch(rows, rule, KnownPositives())
    return set(chosen.filter(chosen["selected"])["key"].to_pylist())


@pytest.mark.parametrize("beta", [0.0, 2.0, 8.0, 20.0])
@pytest.mark.parametrize("budget", [500, 2000, 12_000])
def test_number_selected_meets_the_budget(
    similarities: NDArray[np.float32], beta: float, budget: int
) -> None:
    rule = dataclasses.replace(RULE, beta=beta, scale=fit(similarities, budget, beta))
    probability = rule.train_probability(similarities).astype(np.float64)
    assert probability.sum() == pytest.approx(budget, rel=1e-4)
    sigma = np.sqrt((probability * (1 - probability)).sum())
    num_selected = len(selected_keys(rows_of(similarities), rule))
    assert abs(num_selected - budget) < 4 * sigma


def test_beta_zero_is_exactly_uniform(similarities: NDArray[np.float32]) -> None:
    rule = dataclasses.replace(RULE, beta=0.0, scale=fit(similarities, 3000, beta=0.0))
    chosen = select_batch(rows_of(similarities), rule, KnownPositives())
    assert chosen["inclusion_probability"].unique().to_pylist() == [np.float32(0.15)]


def test_larger_budget_keeps_all_that_a_smaller_one_kept(similarities: NDArray[np.float32]) -> None:
    rows = rows_of(similarities)
    kept: set[str] = set()
    for budget in (300, 1000, 3000, 10_000, 20_000):
        now = selected_keys(rows, dataclasses.replace(RULE, scale=fit(similarities, budget)))
        assert kept < now
        kept = now
    assert len(kept) == NUM_ROWS


def test_decision_depends_on_the_row_alone(similarities: NDArray[np.float32]) -> None:
    rows = rows_of(similarities)
    together = select_batch(rows, RULE, KnownPositives())
    shuffled = rows.take(np.random.default_rng(2).permutation(NUM_ROWS))
    parts = [shuffled.slice(start, 977) for start in range(0, NUM_ROWS, 977)]
    apart = pa.concat_tables(select_batch(part, RULE, KnownPositives()) for part in parts)
    assert apart.sort_by("key").equals(together.sort_by("key").combine_chunks())


def test_duplicates_agree_and_another_seed_decides_otherwise(
    similarities: NDArray[np.float32],
) -> None:
    rows = rows_of(similarities)
    again = rows.set_column(0, "key", pa.array([f"again-{n}" for n in range(NUM_ROWS)]))
    rule = dataclasses.replace(RULE, scale=fit(similarities, 4000))
    keys = selected_keys(rows, rule)
    assert {k.removeprefix("again") for k in selected_keys(again, rule)} == {
        k.removeprefix("k") for k in keys
    }
    others = selected_keys(rows, dataclasses.replace(rule, seed=1))
    expected = rule.train_probability(similarities).astype(np.float64)
    assert len(keys & others) == pytest.approx((expected**2).sum(), rel=0.2), "independent of it"


def test_random_numbers_are_uniform() -> None:
    numbers = np.sort([unit_hash(0, f"{n:064x}") for n in range(NUM_ROWS)])
    distance = np.abs(numbers - np.arange(NUM_ROWS) / NUM_ROWS).max()
    assert distance < 1.95 / np.sqrt(NUM_ROWS), "Kolmogorov-Smirnov, one chance in a thousand"


def test_similar_candidates_are_taken_more_often_and_none_never(
    similarities: NDArray[np.float32],
) -> None:
    probability = RULE.train_probability(np.sort(similarities))
    assert (np.diff(probability) >= 0).all()
    assert probability.min() == np.float32(MIN_PROBABILITY)
    low, high = RULE.train_probability(np.array([0.5, 0.5 + np.log(2) / 8], np.float32))
    assert high / low == pytest.approx(2, rel=1e-5)


def test_val_and_test_negatives_are_drawn_alike_and_positives_all(
    similarities: NDArray[np.float32],
) -> None:
    splits = ["val", "test"] * (NUM_ROWS // 2)
    chosen = select_batch(rows_of(similarities, split=splits), RULE, KnownPositives())
    assert chosen["inclusion_probability"].unique().to_pylist() == [np.float32(0.2)]
    labels = ["cat"] * NUM_ROWS
    chosen = select_batch(rows_of(similarities, split=splits, label=labels), RULE, KnownPositives())
    assert chosen["inclusion_probability"].unique().to_pylist() == [1.0]
    assert chosen["selected"].unique().to_pylist() == [True]


def test_doubtful_candidates_are_set_aside_whatever_their_probability() -> None:
    rule = dataclasses.replace(RULE, scale=1e9, ceiling=0.7)
    rows = rows_of(
        [0.9, 0.9, 0.9, 0.6, 0.6, 0.9, np.nan],
        label=["", "", "cat", "", "", "", ""],
        label_state=["unknown", "verified_absent", "verified_present", "unknown",
                     "verified_absent", "unknown", "unknown"],
        split=["train", "train", "train", "train", "train", "test", "train"],
        reject_reason=[None, None, None, None, None, None, "truncated"],
    )  # fmt: skip
    positive = rows["content_hash"][4].as_py()
    chosen = select_batch(rows, rule, KnownPositives(frozenset([positive])))
    assert chosen["reject_reason"].to_pylist() == [
        "suspected_positive", None, None, None, "conflicting_labels", "suspected_positive",
        "truncated",
    ]  # fmt: skip
    is_usable = [reason is None for reason in chosen["reject_reason"].to_pylist()]
    assert chosen["inclusion_probability"].is_valid().to_pylist() == is_usable
    assert chosen["selected"].to_pylist() == is_usable
    off = select_batch(rows, dataclasses.replace(rule, ceiling=None), KnownPositives())
    assert off["reject_reason"].to_pylist() == [None] * 6 + ["truncated"]


@pytest.mark.parametrize("ceiling", [None, 0.7])
def test_doubt_of_a_source_sets_a_sample_aside_unless_it_has_a_label(ceiling: float | None) -> None:
    rule = dataclasses.replace(RULE, scale=1e9, ceiling=ceiling)
    rows = rows_of(
        [0.1] * 5,
        label=["", "", "cat", "", ""],
        doubt=["suspected_positive", "conflicting_labels", "suspected_positive",
               "suspected_positive", None],
        reject_reason=[None, None, None, "truncated", None],
    )  # fmt: skip
    chosen = select_batch(rows, rule, KnownPositives())
    assert chosen["reject_reason"].to_pylist() == [
        "suspected_positive", "conflicting_labels", None, "truncated", None,
    ]  # fmt: skip
    assert chosen["selected"].to_pylist() == [False, False, True, False, True]


def known_by_hash(*hashes: int) -> KnownPositives:
    index = NearDuplicateIndex()
    index.add(np.array(hashes, np.uint64))
    return KnownPositives(near_duplicates=index)


@pytest.mark.parametrize("ceiling", [None, 0.7])
def test_near_candidate_with_the_hash_of_a_positive_is_rejected(ceiling: float | None) -> None:
    rule = dataclasses.replace(RULE, scale=1e9, ceiling=ceiling)
    flat, three_off, four_off = 0b1111111, HASH ^ 0b1011, HASH ^ 0b1111
    rows = rows_of(
        [0.5, 0.4, 0.39, 0.5, 0.5, 0.5, 0.5, 0.5, np.nan],
        perceptual_hash=[HASH, three_off, HASH, four_off, HASH, flat, HASH, HASH, None],
        label=["", "", "", "", "", "", "cat", "", ""],
        label_state=["unknown", "unknown", "unknown", "unknown", "verified_absent", "unknown",
                     "verified_present", "unknown", "unknown"],
        split=["train", "test", *["train"] * 7],
        doubt=[*[None] * 7, "conflicting_labels", None],
        reject_reason=[*[None] * 8, "unreadable"],
    )  # fmt: skip
    chosen = select_batch(rows, rule, known_by_hash(HASH, flat))
    assert chosen["reject_reason"].to_pylist() == [
        "suspected_positive", "suspected_positive",
        None,  # hashes collide, similarity is low
        None,  # four bits off
        "conflicting_labels",
        None,  # an image so flat that its hash is not used
        None,  # positives may resemble each other
        "conflicting_labels",  # the doubt of its source comes first
        "unreadable",
    ]  # fmt: skip
    is_usable = [reason is None for reason in chosen["reject_reason"].to_pylist()]
    assert chosen["selected"].to_pylist() == is_usable


def test_other_columns_and_the_order_of_rows_are_left_alone(
    similarities: NDArray[np.float32],
) -> None:
    rows = rows_of(similarities[:100])
    chosen = select_batch(rows, RULE, KnownPositives())
    assert set(READS) <= set(rows.column_names)
    assert chosen.column_names == [*rows.column_names, *ADDS]
    assert chosen.drop_columns([*ADDS]).equals(rows)
