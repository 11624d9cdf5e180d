"""Which row is drawn when: a pure function of (seed, shard sizes, position), nothing else.

Therefore a resumed run continues with the very next sample, and any number of ranks or workers
sees the same batches. Rows are numbered over the shards of the train split, in shard order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
_POSITIVE, _NEGATIVE = 0, 1


def shuffle_epoch(shards: Sequence[range], *, window: int, rng: np.random.Generator) -> Rows:
    """Each row of `shards` once: shards in random order, then rows within `window` shards each.

    Shuffling everything at once would mix a little better and read every shard all the time.
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
    """Epoch after epoch of the same rows, each epoch in an order of its own."""

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


@dataclass(frozen=True)
class RankSlice:
    """Which samples of each global batch are this process's."""

    rank: int = 0
    world_size: int = 1


class BatchOrder:
    """The rows of global batch `step`, and the slice of them that one rank takes."""

    def __init__(
        self,
        positives: Sequence[range],
        negatives: Sequence[range],
        *,
        num_positives: int,
        batch_size: int,
        window: int,
        seed: int,
        part: RankSlice = RankSlice(),
    ) -> None:
        assert batch_size % part.world_size == 0
        self._positives = EndlessOrder(positives, window=window, seed=(seed, _POSITIVE))
        self._negatives = EndlessOrder(negatives, window=window, seed=(seed, _NEGATIVE))
        self._num_positives = num_positives
        self._num_negatives = batch_size - num_positives
        self._part = part

    def batch(self, step: int) -> tuple[Rows, Rows]:
        """rows_B of this rank at `step`, and positions_B: their places in the whole stream."""
        rows = np.concatenate(
            [
                self._positives.rows(step * self._num_positives, self._num_positives),
                self._negatives.rows(step * self._num_negatives, self._num_negatives),
            ]
        )
        positions = step * len(rows) + np.arange(len(rows))
        # Strided, so that every rank gets its share of the positives, which come first.
        mine = slice(self._part.rank, None, self._part.world_size)
        return rows[mine], positions[mine]
