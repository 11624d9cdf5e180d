"""Adds `cheap_embedding`: what a network sees of a small decode. `image` stays as it was read.

Sets `reject_reason` of what cannot be decoded, as a full look would. Knows nothing of Ray, or of
what becomes of a row after this look.
"""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.encoders import Preprocessing, crop_decoded
from pipeline.images import Pixels, decode_small
from pipeline.records import ImageSettings
from pipeline.runtimes import Runtime

READS = ("image", "rotation", "reject_reason")
ADDS = ("cheap_embedding",)
# To see only whether an image can be decoded: libjpeg is fastest at an eighth of the size.
_SMALLEST = 16


def look_batch(
    rows: pa.Table,
    *,
    decoded_B: NDArray[np.bool_],
    embedded_B: NDArray[np.bool_],
    settings: ImageSettings,
    runtime: Runtime,
    preprocessing: Preprocessing,
    embedding_dim: int,
    batch_size: int,
) -> pa.Table:
    """Decodes usable rows of decoded_B, and embeds those of embedded_B among them.

    Which images share a forward pass follows from the rows alone, as for `embedding`.
    """
    reasons = rows["reject_reason"].to_pylist()
    images: list[bytes | None] = rows["image"].to_pylist()
    pixels: dict[int, Pixels] = {}
    for b in np.flatnonzero(decoded_B):
        image = images[b]
        if reasons[b] is not None or image is None:
            continue
        side = preprocessing.resize_size if embedded_B[b] else _SMALLEST
        rotation = rows["rotation"][int(b)].as_py() or 0
        found = decode_small(image, rotation=rotation, settings=settings, side=side)
        if isinstance(found, str):
            reasons[b], images[b] = found.value, None
        elif embedded_B[b]:
            pixels[int(b)] = found
    chosen = np.array(sorted(pixels), int)
    embedding_BD = np.zeros((rows.num_rows, embedding_dim), np.float16)
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        crops = [crop_decoded(torch.from_numpy(pixels[int(b)]), preprocessing) for b in batch]
        embedding_BD[batch] = runtime.embed(torch.stack(crops).numpy())
    is_null_B = np.ones(rows.num_rows, bool)
    is_null_B[chosen] = False
    changed = {
        "reject_reason": pa.array(reasons, pa.string()),
        "image": pa.array(images, pa.large_binary()),
    }
    for name, column in changed.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(embedding_BD.reshape(-1)), embedding_dim, mask=pa.array(is_null_B)
    )
    return rows.append_column("cheap_embedding", embedding)
