"""The rows that can be trained on: what shards are damaged is found before the first step.

Existence and sizes of the tars come from one listing, where images are needed; sidecars are read
anyway. What one process cannot use none uses, so that they go on drawing the same.
"""

import logging
from collections.abc import Sequence

import pyarrow as pa
import torch

from pipeline import storage
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.errors import BadShard
from train.config.settings import BadShardPolicy
from train.distributed.world import World
from train.images import ShardImages
from train.model.detector import Segment
from train.order import extend_segments
from train.rows import TrainRows, join_rows, read_rows_of_shards

_log = logging.getLogger(__name__)


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
