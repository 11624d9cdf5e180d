"""Adds `similarity`: how much a row resembles the positives, by the reference bank.

Knows nothing of Ray, files or selection.
"""

import numpy as np
import pyarrow as pa

from pipeline.dataset.schema import embedding_matrix
from pipeline.selection.reference import ReferenceBank

READS = ("embedding", "content_hash")
ADDS = ("similarity",)


def score_batch(rows: pa.Table, bank: ReferenceBank) -> pa.Table:
    """Adds `similarity`: similarity_B float32 in [-1, 1]; null if `embedding` is."""
    usable = rows["embedding"].is_valid()
    embedded = rows.filter(usable)
    similarity_B = np.full(rows.num_rows, np.nan, np.float32)
    is_null = ~usable.to_numpy()
    if embedded.num_rows:
        similarity_B[~is_null] = bank.similarity(
            embedding_matrix(embedded), embedded["content_hash"].to_pylist()
        )
    return rows.append_column("similarity", pa.array(similarity_B, pa.float32(), mask=is_null))
