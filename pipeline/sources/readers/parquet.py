"""Reads parquet files a few rows at a time: footers, ranges of row groups, rows."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError, TransientStorageError

# Rows in memory at once: a few MB of photographs.
_ROWS_PER_BATCH = 16
# A column is read in pieces of this size; otherwise a whole row group is, often half a GB.
_BUFFER_BYTES = 1 << 20


class RowRange(NamedTuple):
    """Row groups `first_group` to `end_group` - 1 of a file, and the rows in them."""

    first_group: int
    end_group: int
    num_rows: int


class Table(NamedTuple):
    """An open parquet file."""

    uri: str
    file: pq.ParquetFile

    @property
    def schema(self) -> pa.Schema:
        return self.file.schema_arrow

    @property
    def group_sizes(self) -> list[int]:
        """Rows of each row group."""
        footer = self.file.metadata
        return [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]


@contextlib.contextmanager
def open_table(uri: str) -> Iterator[Table]:
    """Reads only the footer; raises InfinegError if there is none."""
    try:
        file = storage.open_read(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{uri}: no such file") from None
    with file:
        with _errors_of(f"{uri}: not a parquet file, or broken"):
            table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        yield Table(uri, table)


def row_ranges(table: Table, rows_per_range: int) -> Iterator[RowRange]:
    """Row groups in order, joined until they have `rows_per_range` rows."""
    sizes = table.group_sizes
    first, num_rows = 0, 0
    for group, size in enumerate(sizes):
        num_rows += size
        if num_rows >= rows_per_range:
            yield RowRange(first, group + 1, num_rows)
            first, num_rows = group + 1, 0
    if num_rows:
        yield RowRange(first, len(sizes), num_rows)


def class_names_of(schema: pa.Schema, column: str) -> list[str]:
    """Names of a column's numbered classes, if the file was written by `datasets`."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = described["info"]["features"][column]
        while feature.get("_type") in ("Sequence", "List", "LargeList"):
            feature = feature["feature"]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else []
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def read_rows(
    table: Table,
    *,
    columns: Sequence[str],
    groups: tuple[int, int | None] = (0, None),
    label_column: str | None = None,
    is_offered: Callable[[object], bool] | None = None,
    start: int = 0,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number in the file and values, for row groups `groups[0]` to `groups[1]` - 1.

    With `is_offered`, only rows whose value in `label_column` it accepts: that column is read
    first, and row groups without such a row are skipped. So are row groups whose rows all come
    before the `start`-th. If the file is broken, raises InfinegError after all readable rows.
    """
    broken: InfinegError | None = None
    sizes = table.group_sizes
    for group in range(len(sizes))[slice(*groups)]:
        try:
            wanted = _offered_rows(table, group, label_column, is_offered)
            num_wanted = sizes[group] if wanted is None else len(wanted)
            if start >= num_wanted:
                start -= num_wanted
                continue
            first_row = sum(sizes[:group])
            for row, values in _read_group(table, group, columns):
                if wanted is not None and row not in wanted:
                    continue
                if start > 0:
                    start -= 1
                else:
                    yield first_row + row, values
        except TransientStorageError:
            raise
        except InfinegError as error:
            broken = broken or error
    if broken is not None:
        raise broken


def _offered_rows(
    table: Table,
    group: int,
    label_column: str | None,
    is_offered: Callable[[object], bool] | None,
) -> set[int] | None:
    """Row numbers in the group; None for all."""
    if is_offered is None or label_column is None:
        return None
    with _errors_of(f"{table.uri}: row group {group}: broken parquet"):
        read = table.file.read_row_group(group, columns=[label_column])
        labels = read[label_column].to_pylist()
    return {row for row, label in enumerate(labels) if is_offered(label)}


def _read_group(
    table: Table, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    # After a damaged batch again, row by row: a batch fails as a whole.
    for size in (_ROWS_PER_BATCH, 1):
        batches = table.file.iter_batches(size, row_groups=[group], columns=list(columns))
        seen = 0
        while True:
            try:
                with _errors_of(f"{table.uri}: row group {group}, row {row}: broken parquet"):
                    batch = next(batches, None)
            except TransientStorageError:
                raise
            except InfinegError:
                if size == 1:
                    raise
                break
            if batch is None:
                return
            seen += batch.num_rows
            if seen > row:
                for values in batch.to_pylist():
                    yield row, values
                    row += 1


@contextlib.contextmanager
def _errors_of(what: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise TransientStorageError(f"{what.partition(': ')[0]}: {error}") from error
    except (pa.ArrowException, OSError) as error:
        raise InfinegError(f"{what}: {error}") from None
