"""Replaces `image` by an upright RGB JPEG of the output size; adds its hash and size.

Adds `perceptual_hash`, `width` and `height`, and rejects images that are unusable.
Knows nothing of Ray, labels or selection.
"""

import pyarrow as pa

from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.schema import ImageSettings, with_columns

READS = ("image", "rotation", "reject_reason")
ADDS = ("perceptual_hash", "width", "height")


def decode_batch(rows: pa.Table, settings: ImageSettings) -> pa.Table:
    """Decodes the rows that have no `reject_reason` yet.

    Rows with a `reject_reason` afterwards have null in `image` and the three new columns.
    """
    found: list[Decoded | str] = [
        reason.as_py()
        or decode_image(image.as_py(), rotation=rotation.as_py() or 0, settings=settings)
        for image, rotation, reason in zip(*(rows[name] for name in READS), strict=True)
    ]
    usable = [each if isinstance(each, Decoded) else None for each in found]
    reasons = [None if isinstance(each, Decoded) else each for each in found]
    return with_columns(
        rows,
        image=pa.array([each and each.image for each in usable], pa.large_binary()),
        reject_reason=pa.array(reasons, pa.string()),
        perceptual_hash=pa.array([each and each.perceptual_hash for each in usable], pa.uint64()),
        width=pa.array([each and each.width for each in usable], pa.int32()),
        height=pa.array([each and each.height for each in usable], pa.int32()),
    )
