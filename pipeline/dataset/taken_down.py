"""Which rows are taken down, and what is left of them.

The only place that decides it: for rows that are read, packed, revised, purged or verified.
"""

import functools

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.metadata import TakenDown
from pipeline.dataset.schema import RejectReason, with_columns

NAMING_COLUMNS = ("key", "uri", "author", "content_hash")
# Where in the input a sample was, and on which side: ledgers number every sample that was read.
_LEFT = frozenset({"key", "source", "partition", "ordinal", "split", "label", "label_state"})


def is_taken_down(rows: pa.Table, taken_down: TakenDown) -> pa.ChunkedArray:
    """Whether each row is taken down, by its key, URI, author or content hash.

    Not if nothing is left of it, see `refuse_taken_down`. rows: with content_hash; the other
    columns need not be there.
    """
    found = pa.chunked_array([pa.repeat(False, rows.num_rows)])
    for name, values in _values_of(taken_down).items():
        if name in rows.column_names:
            found = pc.or_(found, pc.is_in(rows[name], value_set=values))
    return pc.and_(found, rows["content_hash"].is_valid())


def refuse_taken_down(rows: pa.Table, taken_down: TakenDown) -> pa.Table:
    """The same rows; those that are taken down are rejected, and lose all but `_LEFT`.

    A row comes out the same whether it is refused when it is read, packed, or later, with whatever
    columns it has then.
    """
    refused = is_taken_down(rows, taken_down)
    if not pc.any(refused).as_py():
        return rows
    emptied = {
        field.name: pc.if_else(refused, pa.scalar(None, field.type), rows[field.name])
        for field in rows.schema
        if field.name not in _LEFT
    }
    reason = pa.scalar(RejectReason.TAKEN_DOWN.value)
    emptied["reject_reason"] = pc.if_else(refused, reason, rows["reject_reason"])
    if "selected" in emptied:
        emptied["selected"] = pc.and_not(rows["selected"], refused)
    return with_columns(rows, **emptied)


def same_pictures(content_hashes: pa.ChunkedArray, others: pa.ChunkedArray) -> bool:
    """Whether two columns tell of the same pictures in the same order.

    The hash of a picture that was taken down is null in what was written after that.
    """
    if len(content_hashes) != len(others):
        return False
    return bool(pc.all(pc.equal(content_hashes, others), min_count=0).as_py())


@functools.lru_cache(8)
def _values_of(taken_down: TakenDown) -> dict[str, pa.Array]:
    """The values to look for, by column; made once, because rows come in small tables."""
    columns = {
        "key": taken_down.keys,
        "uri": taken_down.uris,
        "author": taken_down.authors,
        "content_hash": taken_down.content_hashes,
    }
    return {name: pa.array(sorted(each), pa.string()) for name, each in columns.items() if each}
