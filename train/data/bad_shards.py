"""Pictures of training rows, and which picture stands in for one that is damaged."""

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
from train.model.detector import Segment

_log = logging.getLogger(__name__)


T = TypeVar("T")


class RowImages:
    """Decoded images by row. With `skip`, a damaged one is replaced and told, once a process.

    By the next row of its shard that can be read, or of the next shard with the same label: a
    function of the row and of what is stored, so that every process draws the same. The label is
    right, then; the weight stays that of the row that was drawn.
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
        """The JPEG, which may yet be damaged. Raises BadShard."""
        return self._first(row, self._read)

    def _first(self, row: int, attempt: Callable[[int], T]) -> T:
        """Of the row, or of the first that can stand in for it."""
        try:
            return attempt(row)
        except BadShard as error:
            if self._policy == "stop":
                raise
            for stand_in in self._stand_ins(row):
                try:
                    found = attempt(stand_in)
                except BadShard:
                    continue
                self._tell(row, stand_in, error)
                return found
            raise

    def _decode(self, row: int) -> NDArray[np.uint8]:
        return self._images.decode(
            self._shard_of(row),
            self._read(row),
            offset=int(self._rows.tar_offset_N[row]),
            key=lambda: self._rows.keys[row].as_py(),  # slow where shards are many
        )

    def _read(self, row: int) -> bytes:
        shard = self._shard_of(row)
        if shard in self._bad_shards:
            raise self._images.bad(shard, "it could not be read before")
        offset, size = int(self._rows.tar_offset_N[row]), int(self._rows.tar_size_N[row])
        try:
            return self._images.read(shard, offset, size)
        except BadShard:
            if self._policy == "skip":
                self._bad_shards.add(shard)  # not to be fetched again
            raise

    def _shard_of(self, row: int) -> int:
        return int(np.searchsorted(self._rows.starts, row, side="right")) - 1

    def _stand_ins(self, row: int) -> Iterator[int]:
        shard = self._shard_of(row)
        starts, shards = self._rows.starts, self._rows.shards
        yield from range(row + 1, starts[shard + 1])
        yield from range(starts[shard], row)
        for step in range(1, len(shards)):
            other = (shard + step) % len(shards)
            if shards[other].label == shards[shard].label and other not in self._bad_shards:
                yield from range(starts[other], starts[other + 1])

    def _tell(self, row: int, stand_in: int, error: BadShard) -> None:
        if row not in self._bad_rows:
            self._bad_rows.add(row)
            keys = self._rows.keys
            _log.warning(
                "train.on_bad_shard: skip: %s stands in for %s, %d samples so far in this process. "
                "%s", keys[stand_in].as_py(), keys[row].as_py(), len(self._bad_rows), error,
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
    world: World,
) -> tuple[TrainRows, tuple[Segment, ...]]:
    """Rows of the last segment, and the segments.

    Where more shards are damaged than the last segment knows of, `stop` raises BadShard; `skip`
    begins another segment at first_step without them, the same in all processes.
    """
    known = segments[-1].skipped
    shards = [s for s in generation.shards if s.split == "train" and s.path not in known]
    bad = _find_bad_tars(root, shards, generation.number) if needs_images else {}
    found = read_rows_of_shards(
        root, shards, generation.number, verifies=policy == "skip", embedding_dim=embedding_dim
    )
    bad = {n: rows for n, rows in enumerate(found) if isinstance(rows, BadShard)} | bad
    is_bad = _is_bad_anywhere(len(shards), bad, world)
    for number in is_bad:
        error = bad.get(number) or BadShard(
            f"shard {storage.join(root, shards[number].path)}: another process cannot use it"
        )
        if policy == "stop":
            raise error
        _log.warning("train.on_bad_shard: skip: training without a shard. %s", error)
    if is_bad:
        skipped = sorted({*known, *(shards[number].path for number in is_bad)})
        segments = extend_segments(segments, generation.number, first_step, tuple(skipped))
        num_lost = sum(shards[number].num_samples for number in is_bad)
        _log.warning(
            "train.on_bad_shard: skip: %d of %d shards, %s samples, are left out",
            len(is_bad), len(shards), f"{num_lost:,}",
        )  # fmt: skip
    usable = [
        (shard, rows)
        for number, (shard, rows) in enumerate(zip(shards, found, strict=True))
        if number not in is_bad and isinstance(rows, pa.Table)
    ]
    return join_rows(root, generation.number, targets, usable), segments


def _find_bad_tars(
    root: str, shards: Sequence[ShardRecord], generation: int
) -> dict[int, BadShard]:
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


def _is_bad_anywhere(num_shards: int, bad: dict[int, BadShard], world: World) -> list[int]:
    flags = torch.zeros(num_shards, device=world.device)
    flags[list(bad)] = 1
    return world.all_reduce_sum(flags).nonzero()[:, 0].tolist()
