"""The order in which rows are drawn: a pure function of (seed, segment, position).

A resumed run therefore continues with the next sample, and any number of ranks or workers sees
the same batches. Rows are numbered over the shards of the train split, in shard order.

Every batch takes its positives from one endless order and its negatives from another. Each order
mixes one or more streams: a stream fills a fixed number of every `WINDOW` consecutive positions
and shuffles its rows anew in each of its epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.config import WINDOW
from train.model.info import Segment

Rows = NDArray[np.int64]
_POSITIVE, _NEGATIVE = 0, 1


def extend_segments(
    segments: tuple[Segment, ...], generation: int, step: int, skipped: tuple[str, ...] = ()
) -> tuple[Segment, ...]:
    """The segments, continued at `step` with another generation or with more shards skipped."""
    trained = tuple(segment for segment in segments if segment.first_step < step)
    return (*trained, Segment(generation=generation, first_step=step, skipped=skipped))


@dataclass(frozen=True)
class Stream:
    """Shards whose rows are drawn equally often: `count` draws in every `WINDOW` positions."""

    shards: Sequence[range]
    count: int = WINDOW
    seed: tuple[int, ...] = ()  # added to the order's seed, so that streams differ


def shuffle_epoch(shards: Sequence[range], *, window: int, rng: np.random.Generator) -> Rows:
    """Each row once: shards in random order, rows shuffled within every `window` shards.

    Shuffling everything at once would mix slightly better but read from every shard all the time.
    """
    order = rng.permutation(len(shards))
    blocks = []
    for first in range(0, len(order), window):
        members = [
            np.arange(shards[i].start, shards[i].stop) for i in order[first : first + window]
        ]
        blocks.append(rng.permutation(np.concatenate(members)))
    return np.concatenate(blocks)


class EndlessOrder:
    """Epochs of the same rows without end, each in another order."""

    def __init__(self, shards: Sequence[range], *, window: int, seed: Sequence[int]) -> None:
        self.num_rows = sum(map(len, shards))
        assert self.num_rows > 0
        self._shards = shards
        self._window = window
        self._seed = tuple(seed)
        self._epoch = -1
        self._rows: Rows = np.empty(0, np.int64)

    def rows(self, start: int, count: int) -> Rows:
        """The rows at positions start, ..., start + count - 1."""
        pieces = []
        stop = start + count
        while start < stop:
            epoch, offset = divmod(start, self.num_rows)
            pieces.append(self._rows_of_epoch(epoch)[offset : offset + stop - start])
            start += len(pieces[-1])
        return np.concatenate(pieces)

    def _rows_of_epoch(self, epoch: int) -> Rows:
        if epoch != self._epoch:
            rng = np.random.default_rng([*self._seed, epoch])
            self._rows = shuffle_epoch(self._shards, window=self._window, rng=rng)
            self._epoch = epoch
        return self._rows


class MixedOrder:
    """Streams interleaved by a table of `WINDOW` positions that repeats.

    Any `WINDOW` consecutive positions therefore hold the exact counts, and any position maps
    directly to its place in its stream.
    """

    def __init__(self, streams: Sequence[Stream], *, window: int, seed: Sequence[int]) -> None:
        drawn = [stream for stream in streams if stream.count]
        self._counts = [stream.count for stream in drawn]
        self._orders = [
            EndlessOrder(stream.shards, window=window, seed=(*seed, *stream.seed))
            for stream in drawn
        ]
        self._turns = take_turns(self._counts)
        # For each position of the table, how many earlier ones belong to the same stream.
        self._before = np.zeros(WINDOW, np.int64)
        for number, count in enumerate(self._counts):
            self._before[self._turns == number] = np.arange(count)

    def rows(self, start: int, count: int) -> Rows:
        """The rows at positions start, ..., start + count - 1."""
        round_, place = np.divmod(np.arange(start, start + count), WINDOW)
        turns = self._turns[place]
        rows = np.empty(count, np.int64)
        for number in np.unique(turns):
            mine = np.flatnonzero(turns == number)
            first = round_[mine[0]] * self._counts[number] + self._before[place[mine[0]]]
            rows[mine] = self._orders[number].rows(int(first), len(mine))
        return rows


def take_turns(counts: Sequence[int]) -> Rows:
    """The stream of each of `WINDOW` positions: `counts` of each, spread evenly.

    Smooth weighted round-robin: at every position each stream is owed its count more, and the
    stream that is owed most gets the position.
    """
    assert sum(counts) == WINDOW
    owed = np.zeros(len(counts), np.int64)
    turns = np.empty(WINDOW, np.int64)
    for place in range(WINDOW):
        owed += counts
        turns[place] = owed.argmax()
        owed[turns[place]] -= WINDOW
    return turns


class BatchOrder:
    """The rows of each global batch that one rank takes."""

    def __init__(
        self,
        positives: Sequence[Stream],
        negatives: Sequence[Stream],
        *,
        num_positives: int,
        batch_size: int,
        window: int,
        seed: int,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """first_step: of the segment, which starts a new epoch in another order."""
        assert batch_size % world_size == 0
        later = (first_step,) if first_step else ()
        self._positives = MixedOrder(positives, window=window, seed=(seed, _POSITIVE, *later))
        self._negatives = MixedOrder(negatives, window=window, seed=(seed, _NEGATIVE, *later))
        self._first_step = first_step
        self._num_positives = num_positives
        self._num_negatives = batch_size - num_positives
        # Strided, so that every rank gets its share of the positives, which come first.
        self._mine = slice(rank, None, world_size)

    def batch(self, step: int) -> tuple[Rows, Rows]:
        """rows_B of this rank at `step`, and positions_B: their positions in the run."""
        step_of_segment = step - self._first_step
        assert step_of_segment >= 0
        rows = np.concatenate(
            [
                self._positives.rows(step_of_segment * self._num_positives, self._num_positives),
                self._negatives.rows(step_of_segment * self._num_negatives, self._num_negatives),
            ]
        )
        positions = step * len(rows) + np.arange(len(rows))
        return rows[self._mine], positions[self._mine]
