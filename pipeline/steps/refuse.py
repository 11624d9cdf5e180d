"""Sets `reject_reason` of what was taken down, so that it is neither decoded nor kept.

Knows nothing of Ray, of files, or of who asked for it.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commits import TakenDown
from pipeline.records import RejectReason


def is_taken_down(rows: pa.Table, taken_down: TakenDown) -> pa.ChunkedArray:
    """Whether each row is named by its key, its URI, its author or its bytes."""
    columns = {
        "key": taken_down.keys,
        "uri": taken_down.uris,
        "author": taken_down.authors,
        "content_hash": taken_down.content_hashes,
    }
    found = pa.chunked_array([pa.repeat(False, rows.num_rows)])
    for name, values in columns.items():
        if values:
            named = pa.array(sorted(values), pa.string())
            found = pc.or_(found, pc.is_in(rows[name], value_set=named))
    return found


def refuse_batch(rows: pa.Table, taken_down: TakenDown) -> pa.Table:
    """Rejects the rows that are taken down; their image goes."""
    refused = is_taken_down(rows, taken_down)
    reasons = pc.if_else(refused, RejectReason.TAKEN_DOWN.value, rows["reject_reason"])
    images = pc.if_else(refused, pa.scalar(None, pa.large_binary()), rows["image"])
    rows = rows.set_column(rows.schema.get_field_index("reject_reason"), "reject_reason", reasons)
    return rows.set_column(rows.schema.get_field_index("image"), "image", images)
