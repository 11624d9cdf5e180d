"""The most similar training images of an image, by cosine of the embeddings.

They explain mistakes: a wrong label among them, a missing kind, or a copy on both sides of the
split. Exact nearest neighbours by one matrix product per sidecar of the train split; only one
sidecar is in memory at a time.

Shapes: Q queries, N rows of a shard, D embedding, k neighbours.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.dataset.schema import embedding_matrix

_COLUMNS = ("key", "tar_offset", "tar_size", "embedding")
_Embeddings = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, order=True)
class Neighbour:
    """A training image and its location in the data set. Ordered by cosine, then by key."""

    cosine: float
    key: str
    label: str  # "" for none of the targets
    source: str
    shard: str
    tar_offset: int
    tar_size: int


def find_neighbours(
    dataset: str, generation: Generation, places: Sequence[tuple[str, str]], *, k: int = 3
) -> list[list[Neighbour]]:
    """The k nearest of the train split, nearest first, for each (key, path of its shard).

    Empty lists if the data set has no embeddings, which `train.mode: finetune` does not need.
    """
    nearest: list[list[Neighbour]] = [[] for _ in places]
    query_QD = _read_queries(dataset, generation, places)
    if query_QD is None:
        return nearest
    for shard in generation.shards:
        if shard.split != "train":
            continue
        rows = Dataset(dataset).read_sidecar(shard, _COLUMNS)
        if rows["embedding"].null_count:
            continue
        cosine_QN = query_QD @ embedding_matrix(rows).T
        best_Qk = np.argpartition(-cosine_QN, min(k, rows.num_rows) - 1, axis=1)[:, :k]
        for query, best_k in enumerate(best_Qk):
            found = [_describe(shard, rows, cosine_QN[query], int(row)) for row in best_k]
            nearest[query] = sorted(nearest[query] + found, reverse=True)[:k]
    return nearest


def _describe(
    shard: ShardRecord, rows: pa.Table, cosine_N: NDArray[np.float32], row: int
) -> Neighbour:
    (columns,) = rows.drop_columns(["embedding"]).slice(row, 1).to_pylist()
    return Neighbour(
        cosine=float(cosine_N[row]),
        label=shard.label,
        source=shard.source,
        shard=shard.path,
        **columns,
    )


def _read_queries(
    dataset: str, generation: Generation, places: Sequence[tuple[str, str]]
) -> _Embeddings | None:
    """query_QD, or None if one of them has no embedding."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for key, shard_path in places:
        wanted[shard_path].append(key)
    found: dict[str, _Embeddings] = {}
    for shard in generation.shards:
        if shard.path not in wanted:
            continue
        rows = Dataset(dataset).read_sidecar(shard, ("key", "embedding"))
        rows = rows.filter(pc.is_in(rows["key"], pa.array(wanted[shard.path])))
        if rows["embedding"].null_count:
            return None
        found |= zip(rows["key"].to_pylist(), embedding_matrix(rows), strict=True)
    return np.stack([found[key] for key, _ in places]) if places else None
