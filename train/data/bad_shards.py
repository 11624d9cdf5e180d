"""Training with missing or damaged shards: stop, or go on without them (`train.on_bad_shard`)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.errors import BadShard
from train.config import BadShardPolicy
from train.data.images import ShardImages
from train.data.order import extend_segments
from train.data.rows import TrainRows, join_rows, read_rows_of_shards
from train.distributed.world import World
from train.model.info import Segment

_log = logging.getLogger(__name__)
T = TypeVar("T")


class RowImages:
    """Images by row. With `skip`, another image replaces a damaged one, logged once per process.

    The replacement is the next readable row of the shard, else of the next shard with the same
    label. That depends only on the row and the stored files, so that every process takes the same
    one. Its label is the same; the weight stays that of the row that was drawn.
    """

    def __init__(self, rows: TrainRows, images: ShardImages, policy: BadShardPolicy) -> None:
        self._rows = rows
        self._images = images
        self._policy = policy
        self._bad_rows: set[int] = set()
        self._bad_shards: set[int] = set()

    def decode(self, row: int) -> NDArray[np.uint8]:
        """RGB pixels HWC. Raises BadShard."""
        return self._first(row, self._decode)

    def read(self, row: int) -> bytes:
        """The encoded JPEG, not checked for damage. Raises BadShard."""
        return self._first(row, self._read)

    def _first(self, row: int, attempt: Callable[[int], T]) -> T:
        """The result for the row, or for the first replacement that can be read."""
        try:
            return attempt(row)
        except BadShard as error:
            if self._policy == "stop":
                raise
            for other in self._replacements(row):
                try:
                    found = attempt(other)
                except BadShard:
                    continue
                self._warn_once(row, other, error)
                return found
            raise

    def _decode(self, row: int) -> NDArray[np.uint8]:
        return self._images.decode(
            self._shard_of(row),
            self._read(row),
            offset=int(self._rows.tar_offset_N[row]),
            key=lambda: self._rows.keys[row].as_py(),  # slow with many shards
        )

    def _read(self, row: int) -> bytes:
        shard = self._shard_of(row)
        if shard in self._bad_shards:
            raise self._images.bad(shard, "reading it failed before")
        offset, size = int(self._rows.tar_offset_N[row]), int(self._rows.tar_size_N[row])
        try:
            return self._images.read(shard, offset, size)
        except BadShard:
            if self._policy == "skip":
                self._bad_shards.add(shard)  # not fetched again
            raise

    def _shard_of(self, row: int) -> int:
        return int(np.searchsorted(self._rows.starts, row, side="right")) - 1

    def _replacements(self, row: int) -> Iterator[int]:
        shard = self._shard_of(row)
        starts, shards = self._rows.starts, self._rows.shards
        yield from range(row + 1, starts[shard + 1])
        yield from range(starts[shard], row)
        for step in range(1, len(shards)):
            other = (shard + step) % len(shards)
            if shards[other].label == shards[shard].label and other not in self._bad_shards:
                yield from range(starts[other], starts[other + 1])

    def _warn_once(self, row: int, other: int, error: BadShard) -> None:
        if row not in self._bad_rows:
            self._bad_rows.add(row)
            keys = self._rows.keys
            _log.warning(
                "train.on_bad_shard: skip: %s replaces %s, %d samples so far in this process. %s",
                keys[other].as_py(), keys[row].as_py(), len(self._bad_rows), error,
            )  # fmt: skip


def read_usable_rows(
    root: str,
    generation: Generation,
    targets: Sequence[str],
    *,
    segments: tuple[Segment, ...],
    first_step: int,
    policy: BadShardPolicy,
    needs_images: bool,
    embedding_dim: int | None,
    num_folds: int = 1,
    world: World,
) -> tuple[TrainRows, tuple[Segment, ...]]:
    """The train rows of the last segment, and the segments.

    Checks all shards that the last segment uses. If any is damaged, `stop` raises BadShard, and
    `skip` begins another segment at first_step without them, the same one in all processes.

    embedding_dim: of the embeddings that the run needs, None if it needs none. With more than one
    fold the rows of val are among them: each is held out by the head of its fold.
    """
    known = segments[-1].skipped
    splits = ("train",) if num_folds == 1 else ("train", "val")
    shards = [s for s in generation.shards if s.split in splits and s.path not in known]
    bad = _find_bad_tars(root, shards, generation.number) if needs_images else {}
    found = read_rows_of_shards(
        root, shards, generation.number, verifies=policy == "skip", embedding_dim=embedding_dim
    )
    bad = {n: rows for n, rows in enumerate(found) if isinstance(rows, BadShard)} | bad
    flags = torch.zeros(len(shards), device=world.device)
    flags[list(bad)] = 1
    bad_numbers = world.all_reduce_sum(flags).nonzero()[:, 0].tolist()  # in any process
    for number in bad_numbers:
        error = bad.get(number) or BadShard(
            f"shard {storage.join(root, shards[number].path)}: another process cannot use it"
        )
        if policy == "stop":
            raise error
        _log.warning("train.on_bad_shard: skip: training without a shard. %s", error)
    if bad_numbers:
        skipped = sorted({*known, *(shards[number].path for number in bad_numbers)})
        segments = extend_segments(segments, generation.number, first_step, tuple(skipped))
        num_lost = sum(shards[number].num_samples for number in bad_numbers)
        _log.warning(
            "train.on_bad_shard: skip: left out %d of %d shards, %s samples",
            len(bad_numbers), len(shards), f"{num_lost:,}",
        )  # fmt: skip
    usable = [
        (shard, rows)
        for number, (shard, rows) in enumerate(zip(shards, found, strict=True))
        if number not in bad_numbers and isinstance(rows, pa.Table)
    ]
    return join_rows(root, generation.number, targets, usable, num_folds=num_folds), segments


def _find_bad_tars(
    root: str, shards: Sequence[ShardRecord], generation: int
) -> dict[int, BadShard]:
    """Number of the shard -> what is wrong with its tar, by existence and size."""
    images = ShardImages(root, shards, generation=generation)
    uris = [storage.join(root, shard.path) for shard in shards]
    sizes = storage.sizes_of(uris)
    bad = {}
    for number, (uri, shard) in enumerate(zip(uris, shards, strict=True)):
        if uri not in sizes:
            bad[number] = images.bad(number, "it is missing")
        elif sizes[uri] not in (None, shard.size_bytes):
            bad[number] = images.bad(number, f"it has {sizes[uri]:,} bytes")
    return bad
