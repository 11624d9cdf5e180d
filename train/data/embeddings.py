"""The embeddings of a train split: in memory if they fit, else in memory-mapped Arrow files.

Sidecars are compressed parquet, possibly in remote storage. One Arrow file per shard, named by the
sidecar's sha256, is written to the local cache once and shared by all processes of a machine and
all generations that list the shard; the operating system decides what stays in memory.

Shapes: B batch, D embedding, N rows of the train split.
"""

import functools
import hashlib
import mmap
from io import BytesIO
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
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
        self._data_offsets: dict[int, int] = {}  # where a file's values start, by number of rows

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
        num_rows, dim = record.num_samples, self._dim
        mapped = self._cache.map(
            f"{record.sidecar_sha256[:32]}.arrow",
            _file_size(num_rows, dim),
            lambda file: self._write(shard, file),
        )
        if num_rows not in self._data_offsets:
            self._data_offsets[num_rows] = _data_offset(mapped)
        offset = self._data_offsets[num_rows]
        return np.frombuffer(mapped, np.float16, num_rows * dim, offset).reshape(num_rows, dim)

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
        write_arrow(embeddings_of(rows), file)


def open_embeddings(
    root: str, rows: TrainRows, dim: int, cache: storage.LocalCache
) -> Embeddings | MappedEmbeddings:
    if int(rows.starts[-1]) * dim * 2 <= _MAX_IN_MEMORY_BYTES:
        return read_embeddings(root, rows)
    return MappedEmbeddings(root, rows, dim, cache)


def write_arrow(embedding_ND: Embeddings, file: IO[bytes] | pa.NativeFile) -> None:
    flat = pa.array(embedding_ND.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, embedding_ND.shape[1])
    table = pa.table({"embedding": column})
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


@functools.lru_cache
def _file_size(num_rows: int, dim: int) -> int:
    """Bytes of the Arrow file, which depend only on its shape."""
    counted = pa.MockOutputStream()
    write_arrow(np.zeros((num_rows, dim), np.float16), counted)
    return int(counted.size())


def _data_offset(mapped: mmap.mmap) -> int:
    whole = pa.py_buffer(mapped)
    batch = pa.ipc.open_file(pa.BufferReader(whole)).get_batch(0)
    return int(batch["embedding"].flatten().buffers()[1].address - whole.address)
