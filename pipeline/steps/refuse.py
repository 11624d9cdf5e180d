"""Sets `reject_reason` of what was taken down, so that it is neither decoded nor kept.

Knows nothing of Ray, of files, or of who asked for it.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.metadata import TakenDown, is_taken_down
from pipeline.dataset.schema import RejectReason


def refuse_batch(rows: pa.Table, taken_down: TakenDown) -> pa.Table:
    """Rejects the rows that are taken down; their image goes."""
    refused = is_taken_down(rows, taken_down)
    reasons = pc.if_else(refused, RejectReason.TAKEN_DOWN.value, rows["reject_reason"])
    images = pc.if_else(refused, pa.scalar(None, pa.large_binary()), rows["image"])
    rows = rows.set_column(rows.schema.get_field_index("reject_reason"), "reject_reason", reasons)
    return rows.set_column(rows.schema.get_field_index("image"), "image", images)
