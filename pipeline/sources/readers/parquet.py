"""Reads parquet files a few rows at a time: footers, ranges of row groups, rows."""

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence, Set
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError, TransientStorageError

# In memory at once: a few MB of photographs. Any row may be as large as all of its row group.
_ROWS_PER_BATCH, _BYTES_PER_BATCH = 16, 64 << 20
_REPEATED_PER_BATCH = 512  # rows with values that are kept once
# Images do not shrink; what unpacks to more than this many times its size repeats a few values,
# which are then kept once, up to a size that no such column of images has.
_MAX_RATIO, _MAX_REPEATED_BYTES = 100, 256 << 20
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
    schema: pa.Schema
    group_sizes: list[int]  # rows of each row group
    group_bytes: list[int]  # of each, unpacked
    num_bytes: int  # of the file
    repeated: set[str]  # columns whose values are kept once

    def unpacks_to_much(self, group: int) -> bool:
        return self.group_bytes[group] > max(_MAX_RATIO * self.num_bytes, _BUFFER_BYTES)


@contextlib.contextmanager
def open_table(uri: str) -> Iterator[Table]:
    """Reads only the footer; raises InfinegError if there is none."""
    try:
        file = storage.open_read(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{uri}: no such file") from None
    with file:
        table = _read_footer(uri, file)
        if any(map(table.unpacks_to_much, range(len(table.group_sizes)))):
            repeated = {field.name for field in table.schema if _is_bytes(field.type)}
            table = _read_footer(uri, file, repeated)
        yield table


def _read_footer(uri: str, file: IO[bytes], repeated: Set[str] = frozenset()) -> Table:
    """Asks nothing of columns: of some broken footers Arrow then ends the process."""
    with _errors_of(f"{uri}: not a parquet file, or broken"):
        opened = pq.ParquetFile(
            file, read_dictionary=sorted(repeated), buffer_size=_BUFFER_BYTES, pre_buffer=False
        )
        groups = [opened.metadata.row_group(n) for n in range(opened.num_row_groups)]
        return Table(
            uri,
            opened,
            opened.schema_arrow,
            [group.num_rows for group in groups],
            [group.total_byte_size for group in groups],
            file.seek(0, io.SEEK_END),
            set(repeated),
        )


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether Arrow can keep values of a column once; it cannot inside of structs."""
    return bool(pa.types.is_binary(kind) or pa.types.is_string(kind))


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
    _batch_rows(table, group, [label_column])  # refuses one that takes too much
    with _errors_of(f"{table.uri}: row group {group}: broken parquet"):
        read = table.file.read_row_group(group, columns=[label_column])
    labels = itertools.chain.from_iterable(map(_values, read[label_column].chunks))
    return {row for row, label in enumerate(labels) if is_offered(label)}


def _batch_rows(table: Table, group: int, columns: Sequence[str]) -> int:
    """How many rows of a group to read at once; raises InfinegError for one that takes too much."""
    num_bytes = table.group_bytes[group]
    if table.unpacks_to_much(group) and num_bytes > _MAX_REPEATED_BYTES:
        raise InfinegError(
            f"{storage.redact(table.uri)}: row group {group} unpacks to {num_bytes:,} bytes, the "
            f"file has {table.num_bytes:,}: images never do; it is not read"
        )
    small = {field.name for field in table.schema if pa.types.is_primitive(field.type)}
    if table.repeated and (table.repeated | small).issuperset(columns):
        return _REPEATED_PER_BATCH
    return max(1, min(_ROWS_PER_BATCH, _BYTES_PER_BATCH // max(num_bytes, 1)))


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """One row at a time: as objects of Python they are in memory again."""
    for values in zip(*map(_values, batch.columns), strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _values(array: pa.Array) -> Iterator[Any]:
    """One at a time; of a dictionary, a value that comes again is the same object."""
    if not pa.types.is_dictionary(array.type):
        yield from map(_as_python, array)
        return
    last, value = None, None
    for index in array.indices.to_pylist():
        if index != last:
            last, value = index, None if index is None else _as_python(array.dictionary[index])
        yield value


def _read_group(
    table: Table, group: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    # After a damaged batch again, row by row: a batch fails as a whole.
    for size in (_batch_rows(table, group, columns), 1):
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
                for values in _rows(batch):
                    yield row, values
                    row += 1


def _as_python(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if isinstance(value, pa.StringScalar):
            return value.as_buffer().to_pybytes().decode(errors="replace")
        return None  # a struct of an image: it cannot be read
    except (ValueError, OverflowError) as error:  # a time outside of Python's range
        raise InfinegError(f"a value that cannot be read: {error}") from None


@contextlib.contextmanager
def _errors_of(what: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        raise TransientStorageError(f"{what.partition(': ')[0]}: {error}") from error
    except InfinegError:  # of the storage
        raise
    except Exception as error:  # whatever Arrow raises on bytes
        raise InfinegError(f"{what}: {error}") from None
