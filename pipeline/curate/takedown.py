"""Removes samples for good: from the next generation, and from what later builds accept."""

import pyarrow as pa

from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import Generation, TakenDown, is_taken_down
from pipeline.dataset.revise import remove_replaced, revise
from pipeline.dataset.schema import RejectReason, with_columns
from pipeline.dataset.shards import LEDGER_COLUMNS
from pipeline.errors import ConfigError


def take_down(root: str, wanted: TakenDown, *, purge: bool = False) -> tuple[Generation, int]:
    """Commits a generation without the samples in `wanted`; returns it and their number of rows.

    Images with the same bytes are rejected too, whatever their name. With `purge` the files that
    held them are deleted, and earlier generations lack these files. Raises ConfigError if nothing
    is found.
    """
    dataset = Dataset(root)
    dataset.read_info()
    with hold_lease(root) as lease:
        complete(dataset)
        parent = dataset.read_generation()
        named = _find(dataset, parent, wanted)
        if not named.num_rows:
            raise ConfigError(f"{root}: generation {parent.number} has no such sample")
        hashes = frozenset(named["content_hash"].to_pylist())
        everything = TakenDown(content_hashes=hashes)
        rows = _find(dataset, parent, everything)
        generation = revise(dataset, parent, rows["key"].to_pylist(), _reject)
        parts = (parent.taken_down, wanted, everything)
        union = {
            name: frozenset().union(*(getattr(part, name) for part in parts))
            for name in TakenDown.model_fields
        }
        generation = generation.model_copy(update={"taken_down": TakenDown(**union)})
        generation = commit(dataset, generation, lease)
        if purge:
            remove_replaced(dataset, parent, generation)
    return generation, rows.num_rows


def _find(dataset: Dataset, generation: Generation, wanted: TakenDown) -> pa.Table:
    columns = ["key", "uri", "author", "content_hash"]
    tables = [
        rows.filter(is_taken_down(rows, wanted))
        for source in generation.sources
        for ledger in source.ledger
        for rows in [dataset.read_table(ledger.path, columns)]
    ]
    return pa.concat_tables(tables)


def _reject(rows: pa.Table) -> pa.Table:
    """Rejects all rows; their doubt and label stay."""
    assert set(LEDGER_COLUMNS) <= set(rows.column_names)
    return with_columns(
        rows,
        selected=pa.repeat(False, rows.num_rows),
        inclusion_probability=pa.nulls(rows.num_rows, pa.float32()),
        reject_reason=pa.repeat(pa.scalar(RejectReason.TAKEN_DOWN.value), rows.num_rows),
    )
