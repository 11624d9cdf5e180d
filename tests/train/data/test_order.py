"""What is promised of the order: the same for any ranks and workers, exact shares, no starving."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.encoders.networks import load_encoder
from support.train_runs import ENCODER, read_train_rows, write_dataset
from train.config import WINDOW
from train.data.batches import AugmentedImages, Batches
from train.data.corrections import loss_terms
from train.data.order import BatchOrder, MixedOrder, Stream, take_turns

UNEVEN = [range(1), range(1, 1001), range(1001, 1004)]
POSITIVES = [range(2000, 2005)]
BATCH = 24


def open_order(rank: int = 0, size: int = 1, **changes: Any) -> BatchOrder:
    settings: dict[str, Any] = {
        "num_positives": 6, "batch_size": BATCH, "window": 2, "seed": 3,
        "rank": rank,
        "world_size": size,
    }  # fmt: skip
    return BatchOrder([Stream(POSITIVES)], [Stream(UNEVEN)], **settings | changes)


def whole_batch(step: int, size: int, **changes: Any) -> np.ndarray:
    """(row, position) of all ranks, by position."""
    parts = [np.stack(open_order(rank, size, **changes).batch(step)) for rank in range(size)]
    assert {part.shape[1] for part in parts} == {BATCH // size}, "no rank gets more or less"
    pairs = np.concatenate(parts, axis=1)
    return pairs[:, pairs[1].argsort()]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_rank_reopened_after_40_batches_goes_on_with_the_very_next_sample(size: int) -> None:
    for rank in range(size):
        undisturbed = open_order(rank, size)
        seen = [undisturbed.batch(step) for step in range(48)]
        for workers in range(5):
            # Worker w of n reads every n-th batch after the start, each with an order of its own.
            orders = [open_order(rank, size) for _ in range(max(workers, 1))]
            for step in range(40, 48):
                batch = orders[step % len(orders)].batch(step)
                assert np.array_equal(batch, seen[step])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_together_see_what_one_process_sees(size: int) -> None:
    for step in range(0, 120, 7):
        assert np.array_equal(whole_batch(step, size), whole_batch(step, 1))


def test_another_seed_is_another_order() -> None:
    assert not np.array_equal(open_order(seed=4).batch(30)[0], open_order().batch(30)[0])


def test_after_a_change_of_ranks_each_sample_is_seen_equally_often() -> None:
    """100 steps by 4 ranks, 50 by 1, 70 by 3: as if by one all along."""
    sizes = [4] * 100 + [1] * 50 + [3] * 70
    rows = np.concatenate([whole_batch(step, size)[0] for step, size in enumerate(sizes)])
    for of_stream in (POSITIVES, UNEVEN):
        counts = np.bincount(rows, minlength=2005)[np.concatenate([list(r) for r in of_stream])]
        assert counts.max() - counts.min() <= 1
        assert counts.min() > 0


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_fewer_shards_and_rows_than_ranks_starve_none(size: int) -> None:
    streams = {"positives": [Stream([range(1)])], "negatives": [Stream([range(1, 3)])]}
    for rank in range(size):
        order = BatchOrder(
            **streams, num_positives=6, batch_size=BATCH, window=16, seed=0,
            rank=rank,
            world_size=size,
        )  # fmt: skip
        for step in (0, 1, 50):
            assert len(order.batch(step)[0]) == BATCH // size


def test_a_later_segment_begins_an_epoch_of_its_own() -> None:
    later = open_order(first_step=60)
    rows = np.concatenate([later.batch(step)[0] for step in range(60, 60 + 56)])
    counts = np.bincount(rows, minlength=2005)
    assert set(counts[:1004]) <= {1, 2}, "56 * 18 is one epoch and 4 samples"
    assert set(counts[2000:]) <= {67, 68}
    assert not np.array_equal(later.batch(60)[0], open_order().batch(0)[0])
    positions = later.batch(60)[1]
    assert positions.tolist() == list(range(60 * BATCH, 61 * BATCH)), "chance is not repeated"


COUNTS = [[1000], [1, 999], [300, 500, 200], [1, 1, 1, 997], [143] * 6 + [142], [10] * 100]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_every_window_of_1000_positions_has_the_exact_counts(counts: list[int]) -> None:
    turns = np.tile(take_turns(counts), 3)
    for start in range(0, 2 * WINDOW, 37):
        window = turns[start : start + WINDOW]
        assert np.bincount(window, minlength=len(counts)).tolist() == counts
    # Spread, too: before any position each has had what is due to it, give or take a few.
    due = np.outer(np.arange(1, WINDOW + 1), counts) / WINDOW
    had = np.cumsum(turns[:WINDOW, None] == np.arange(len(counts)), axis=0)
    assert np.abs(had - due).max() < 3


def test_mixed_rows_are_those_of_each_stream_in_its_own_order() -> None:
    streams = [
        Stream([range(10)], 250, (7,)),
        Stream([range(10, 10)], 0),
        Stream([range(10, 400), range(400, 500)], 750),
    ]
    order = MixedOrder(streams, window=2, seed=(0, 1))
    stream = order.rows(0, 4 * WINDOW)
    assert np.bincount(stream[stream < 10]).tolist() == [100] * 10
    counts = np.bincount(stream[stream >= 10])[10:]
    assert counts.min() >= 6
    assert counts.max() - counts.min() <= 1
    fresh = MixedOrder(streams, window=2, seed=(0, 1))
    for start, count in [(3999, 1), (1234, 77), (0, 3), (998, 4)]:
        assert np.array_equal(fresh.rows(start, count), stream[start : start + count])
    alone = MixedOrder([Stream([range(9)])], window=1, seed=(0,)).rows(5, 40)
    assert {tuple(sorted(alone[4 + 9 * i : 13 + 9 * i])) for i in range(4)} == {tuple(range(9))}


def test_neighbouring_epochs_differ() -> None:
    order = MixedOrder([Stream(UNEVEN)], window=1, seed=(0, 1))
    epochs = [order.rows(1004 * i, 1004) for i in range(3)]
    assert all(sorted(epoch) == list(range(1004)) for epoch in epochs)
    assert not any(np.array_equal(*pair) for pair in pairwise(epochs))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # of few cores
@pytest.mark.parametrize(("size", "workers"), [(1, 3), (2, 1), (3, 4)])
def test_real_worker_processes_of_any_rank_go_on_with_the_next_eight_batches(
    tmp_path: Path, size: int, workers: int
) -> None:
    root = str(tmp_path)
    write_dataset(tmp_path, num_positives=3, num_negatives=45, image_size=32, samples_per_shard=7)
    rows = read_train_rows(root, Dataset(root).read_generation(), ["cat"])
    terms = loss_terms(rows, "weight")
    preprocessing = load_encoder(ENCODER).preprocessing

    def open_batches(rank: int) -> Batches:
        images = AugmentedImages(
            root, rows, preprocessing=preprocessing, strength="light", seed=0
        )  # fmt: skip
        order = BatchOrder(
            [Stream(rows.positives)], [Stream(rows.negatives)], num_positives=3,
            batch_size=12, window=2, seed=0, rank=rank, world_size=size,
        )  # fmt: skip
        return Batches(rows, terms, order, images)

    rank = size - 1
    undisturbed = [open_batches(rank).read(step) for step in range(40, 48)]
    for batch, wanted in zip(
        open_batches(rank).stream(range(40, 48), workers=workers), undisturbed, strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))
