"""Adds `embedding`: float16, L2-normalised, of the image that a shard would hold.

Knows nothing of Ray, of where the encoder came from, or of what the embedding is for.
"""

import numpy as np
import pyarrow as pa

from pipeline.encoders import Preprocessing, crop_pixels
from pipeline.runtimes import Runtime

READS = ("image", "reject_reason")
ADDS = ("embedding",)


def embed_batch(
    rows: pa.Table,
    *,
    runtime: Runtime,
    preprocessing: Preprocessing,
    embedding_dim: int,
    batch_size: int,
) -> pa.Table:
    """Embeds usable rows, `batch_size` images a forward pass; rejected rows get null.

    Which images share a forward pass follows from the rows alone: sums inside a network may
    differ in the last bit with the shape of the batch.
    """
    images = rows["image"]
    usable = np.flatnonzero(rows["reject_reason"].is_null().to_numpy())
    embedding_ND = np.zeros((rows.num_rows, embedding_dim), np.float16)
    for start in range(0, len(usable), batch_size):
        chosen = usable[start : start + batch_size]
        pixels_BCHW = np.stack(
            [crop_pixels(images[int(i)].as_py(), preprocessing).numpy() for i in chosen]
        )
        embedding_ND[chosen] = runtime.embed(pixels_BCHW)
    is_null = np.ones(rows.num_rows, bool)
    is_null[usable] = False
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(embedding_ND.reshape(-1)), embedding_dim, mask=pa.array(is_null)
    )
    return rows.append_column("embedding", column)
