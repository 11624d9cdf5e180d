"""The positives of the reference bank that are most similar to a suspect, and their pictures.

Shapes: B rows of a file, K reference rows, D embedding, N nearest.
"""

import functools
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import embedding_matrix
from pipeline.selection.reference import read_bank

NUM_NEAREST = 3
# Sidecars whose nearest positives are cached: 12 kB per thousand rows.
_MAX_FILES = 4096


class NearestPositives:
    """The part of the reference bank whose positives are in shards of a generation.

    A positive that was taken down, or is a duplicate of another, has no picture and is not shown.
    """

    def __init__(self, dataset: Dataset, generation: Generation) -> None:
        self._dataset = dataset
        self._pictures = _find_pictures(dataset, generation)
        bank = read_bank(dataset, num_neighbors=1)
        kept = [k for k, each in enumerate(bank.content_hashes) if each in self._pictures]
        self._hashes = [bank.content_hashes[k] for k in kept]
        self._embedding_KD = bank.embedding_KD[kept].astype(np.float32)
        self._of_file = functools.lru_cache(_MAX_FILES)(self._compare_file)

    def find(self, sidecar: str, row: int) -> list[dict[str, Any]]:
        """content_hash and cosine of the positives nearest to a row of a sidecar, nearest first."""
        index_BN, cosine_BN = self._of_file(sidecar)
        return [
            {"content_hash": self._hashes[int(k)], "cosine": float(cosine)}
            for k, cosine in zip(index_BN[row], cosine_BN[row], strict=True)
        ]

    def read_image(self, content_hash: str) -> bytes | None:
        """The JPEG of a positive; None if it is in no shard."""
        if content_hash not in self._pictures:
            return None
        tar, offset, size = self._pictures[content_hash]
        return storage.read_range(self._dataset.uri(tar), offset, size)

    def _compare_file(self, sidecar: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The nearest positives of all rows of a file at once: reading it is what takes time."""
        rows = self._dataset.read_table(sidecar, ["embedding"])
        cosine_BK = embedding_matrix(rows) @ self._embedding_KD.T
        order_BN = np.argsort(-cosine_BK, axis=1, kind="stable")[:, :NUM_NEAREST]
        return order_BN.astype(np.int32), np.take_along_axis(cosine_BK, order_BN, axis=1)


def _find_pictures(dataset: Dataset, generation: Generation) -> dict[str, tuple[str, int, int]]:
    """Tar, offset and size of the pictures of all positives, by content hash."""
    found: dict[str, tuple[str, int, int]] = {}
    for shard in generation.shards:
        if shard.label:
            columns = ["content_hash", "tar_offset", "tar_size"]
            rows: pa.Table = dataset.read_sidecar(shard, columns)
            hashes, offsets, sizes = (rows[name].to_pylist() for name in columns)
            places = zip(repeat(shard.path), offsets, sizes, strict=False)
            found |= zip(hashes, places, strict=True)
    return found
