"""The embeddings of a train split: in memory if they fit, else in memory-mapped files.

Sidecars are compressed parquet, possibly in remote storage. One file per shard of plain float16
numbers, named by the sidecar's sha256, is written to the local cache once and shared by all
processes of a machine and all generations that list the shard; the operating system decides what
stays in memory.

Shapes: B batch, D embedding, N rows of the train split.
"""

import hashlib
from io import BytesIO
from typing import IO

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.local_copies import embeddings_copy
from train.data.images import bad_shard
from train.data.rows import TrainRows, embeddings_of, read_embeddings

_MAX_IN_MEMORY_BYTES = 2**28  # up to here one array is faster than maps of many small files
Embeddings = NDArray[np.float16]


class MappedEmbeddings:
    """embedding_ND of all rows, indexed by rows_B like an array."""

    def __init__(self, root: str, rows: TrainRows, dim: int, cache: storage.LocalCache) -> None:
        self._root = root
        self._rows = rows
        self._dim = dim
        self._cache = cache

    def __len__(self) -> int:
        return int(self._rows.starts[-1])

    def __getitem__(self, rows_B: NDArray[np.int64]) -> Embeddings:
        """embedding_BD. Raises BadShard, and InfinegError where a row has no embedding."""
        embedding_BD = np.empty((len(rows_B), self._dim), np.float16)
        shard_B = self._rows.shard_of(rows_B)
        for shard in np.unique(shard_B):
            is_here_B = shard_B == shard
            places = rows_B[is_here_B] - self._rows.starts[shard]
            embedding_BD[is_here_B] = self._of_shard(int(shard))[places]
        return embedding_BD

    def _of_shard(self, shard: int) -> Embeddings:
        """A view of one shard's map, not to be kept."""
        record = self._rows.shards[shard]
        mapped = self._cache.map(
            embeddings_copy(record),
            record.num_samples * self._dim * 2,
            lambda file: self._write(shard, file),
        )
        return np.frombuffer(mapped, np.float16).reshape(record.num_samples, self._dim)

    def _write(self, shard: int, file: IO[bytes]) -> None:
        record = self._rows.shards[shard]
        uri = storage.join(self._root, record.sidecar_path)
        content = storage.read_bytes(uri)
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != record.sidecar_sha256:
            problem = f"it has {len(content):,} bytes, sha256 {sha256}"
            recorded = f"sha256 {record.sidecar_sha256}"
            raise bad_shard(uri, problem, recorded, self._rows.generation)
        rows = pq.read_table(BytesIO(content), columns=["embedding"])
        file.write(embeddings_of(rows).tobytes())


def open_embeddings(
    root: str, rows: TrainRows, dim: int, cache: storage.LocalCache
) -> Embeddings | MappedEmbeddings:
    if int(rows.starts[-1]) * dim * 2 <= _MAX_IN_MEMORY_BYTES:
        return read_embeddings(root, rows)
    return MappedEmbeddings(root, rows, dim, cache)
