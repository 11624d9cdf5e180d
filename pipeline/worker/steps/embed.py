"""Adds `embedding`: float16, L2-normalised, of the decoded image.

Knows nothing of Ray, of where the encoder runs, or of what the embedding is for.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.encoders.preprocessing import Preprocessing, crop_pixels
from pipeline.encoders.runtimes import Pending, Runtime

READS = ("image", "reject_reason")
ADDS = ("embedding",)


class BatchEmbedder:
    """Collects rows table by table and embeds each batch of `batch_size` images once it is full.

    Rejected rows get null. Which images share a batch depends only on the rows, not on the tables:
    with the shape of the batch, sums in a network may differ in the last bit.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        preprocessing: Preprocessing,
        embedding_dim: int,
        batch_size: int,
    ) -> None:
        self._runtime = runtime
        self._preprocessing = preprocessing
        self._embedding_dim = embedding_dim
        self._batch_size = batch_size
        self._tables: list[pa.Table] = []
        self._num_rows = 0
        self._places: list[int] = []  # among all rows, of the pixels of the next batch
        self._pixels: list[NDArray[np.uint8]] = []
        self._pending: list[tuple[list[int], Pending]] = []

    def add(self, rows: pa.Table) -> None:
        """Adds decoded rows and starts the batches that they fill."""
        images = rows["image"]
        for i in np.flatnonzero(rows["reject_reason"].is_null().to_numpy()):
            self._places.append(self._num_rows + int(i))
            self._pixels.append(crop_pixels(images[int(i)].as_py(), self._preprocessing))
            if len(self._places) == self._batch_size:
                self._submit()
        self._tables.append(rows)
        self._num_rows += rows.num_rows

    def finish(self) -> pa.Table:
        """Waits for all batches; returns all rows in order."""
        if self._places:
            self._submit()
        embedding_ND = np.zeros((self._num_rows, self._embedding_dim), np.float16)
        is_null_N = np.ones(self._num_rows, bool)
        for places, wait in self._pending:
            embedding_ND[places] = wait()
            is_null_N[places] = False
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(embedding_ND.reshape(-1)), self._embedding_dim, mask=pa.array(is_null_N)
        )
        return pa.concat_tables(self._tables).append_column("embedding", column)

    def _submit(self) -> None:
        self._pending.append((self._places, self._runtime.submit(np.stack(self._pixels))))
        self._places, self._pixels = [], []
