"""The tables of a round: its ledger, with every row seen, and the hashes of the selected images.

Deduplicates on the way, because the ledger says which rows were refused.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.dedup import COLUMNS, SeenImages
from pipeline.dataset.metadata import Counts, Generation, TableRecord, TakenDown, add_counts
from pipeline.dataset.schema import RejectReason
from pipeline.dataset.shards import LEDGER_COLUMNS, count_rows, output_groups, refuse_rows
from pipeline.dataset.taken_down import NAMING_COLUMNS, is_taken_down, refuse_taken_down

# The columns of `hashes/`, by which an image in a shard is recognised.
HASH_COLUMNS = ("key", *COLUMNS)

_ROWS_PER_GROUP = 2**16  # of ledgers and hashes


@dataclass(frozen=True)
class PartRows:
    """Positions of the rows of a part that are packed, by output group."""

    path: str
    rows: Mapping[str, Sequence[int]]
    sha256: str | None = None  # of the part, if it is committed


@dataclass(frozen=True)
class RoundTables:
    """The tables of one round, and the rows to pack."""

    counts: Counts
    ledger: TableRecord
    hashes: TableRecord
    parts: list[PartRows]


def write_tables(
    dataset: Dataset,
    parts: Sequence[str],
    seen: SeenImages,
    *,
    ledger_path: str,
    hashes_path: str,
    taken_down: TakenDown = TakenDown(),  # noqa: B008 - immutable
) -> RoundTables:
    """Refuses what is taken down, and duplicates; writes the ledger and the hashes of a round.

    parts: their paths, in order. They are read twice, so that memory holds the hashes of selected
    rows, not the rows. A part may be older than a takedown.
    """
    refused = _refuse_duplicates(dataset, parts, seen, taken_down)
    counts, packed, num_hashes = [], [], 0
    with (
        _parquet_writer(dataset, ledger_path) as (ledger_file, write_ledger),
        _parquet_writer(dataset, hashes_path) as (hashes_file, write_hashes),
    ):
        for number, rows in enumerate(dataset.read_tables(parts, LEDGER_COLUMNS)):
            rows = refuse_rows(refuse_taken_down(rows, taken_down), refused.get(number, {}))
            write_ledger(rows)
            selected = rows.filter(rows["selected"]).select(HASH_COLUMNS)
            write_hashes(selected)
            num_hashes += selected.num_rows
            counts.append(count_rows(rows))
            packed.append(PartRows(parts[number], positions_by_group(rows)))
    total = add_counts(counts)
    return RoundTables(
        counts=total,
        ledger=TableRecord(path=ledger_path, sha256=ledger_file.sha256, num_rows=total.read),
        hashes=TableRecord(path=hashes_path, sha256=hashes_file.sha256, num_rows=num_hashes),
        parts=packed,
    )


def write_decided(
    dataset: Dataset, source: str, rows: pa.Table, numbers: dict[str, int]
) -> tuple[TableRecord, TableRecord]:
    """Writes a ledger whose rows were decided again, and the hashes of its selected rows.

    numbers: `next_numbers` of the generation to commit, which is updated.
    """
    ledger_path, hashes_path = take_table_paths(numbers, source)
    selected = rows.filter(rows["selected"]).select(HASH_COLUMNS)
    return write_table(dataset, ledger_path, rows), write_table(dataset, hashes_path, selected)


def take_table_paths(numbers: dict[str, int], source: str) -> tuple[str, str]:
    """Paths of a source's next ledger and hashes, which share a number."""
    number = take_number(numbers, f"ledger/{source}", first=1)
    numbers[f"hashes/{source}"] = number + 1
    return f"ledger/{source}-{number:06d}.parquet", f"hashes/{source}-{number:06d}.parquet"


def take_number(numbers: dict[str, int], group: str, *, first: int = 0) -> int:
    """The number of a group's next file, which no other file will get."""
    number = numbers.get(group, first)
    numbers[group] = number + 1
    return number


def read_seen_images(dataset: Dataset, generation: Generation) -> SeenImages:
    """The images of all shards that a generation lists."""
    seen = SeenImages()
    tables = (table for source in generation.sources for table in source.hashes)
    for rows in dataset.read_recorded(tables, COLUMNS):
        seen.add(rows)
    return seen


def _refuse_duplicates(
    dataset: Dataset, parts: Sequence[str], seen: SeenImages, taken_down: TakenDown
) -> dict[int, dict[int, RejectReason]]:
    """Reasons for the rows to refuse, by number of the part and position in it."""
    tables, positions = [], []
    columns = {*COLUMNS, "selected", *(NAMING_COLUMNS if taken_down else ())}
    for number, rows in enumerate(dataset.read_tables(parts, sorted(columns))):
        is_left = pc.and_not(rows["selected"], is_taken_down(rows, taken_down))
        selected = np.flatnonzero(is_left.to_numpy())
        tables.append(rows.select(COLUMNS).take(selected))
        positions.append(np.stack([np.full(len(selected), number), selected], axis=1))
    if not tables:
        return {}
    position_N2 = np.concatenate(positions)
    refused: dict[int, dict[int, RejectReason]] = {}
    for row, reason in seen.admit(pa.concat_tables(tables)).items():
        part_number, position = position_N2[row].tolist()
        refused.setdefault(part_number, {})[position] = reason
    return refused


def positions_by_group(rows: pa.Table) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for position, group in enumerate(output_groups(rows)):
        if group:
            found.setdefault(group, []).append(position)
    return found


def write_table(dataset: Dataset, path: str, rows: pa.Table) -> TableRecord:
    with _parquet_writer(dataset, path) as (file, write):
        write(rows)
    return TableRecord(path=path, sha256=file.sha256, num_rows=rows.num_rows)


@contextlib.contextmanager
def _parquet_writer(
    dataset: Dataset, path: str
) -> Iterator[tuple[storage.HashingWriter, "_WriteRows"]]:
    with storage.open_atomic(dataset.uri(path)) as file:
        write = _WriteRows(file)
        yield file, write
        write.close()


class _WriteRows:
    """Appends tables to a parquet file, with the schema of the first.

    Gathers them into large row groups. With one per part, the metadata of the row groups, which
    every reader of a single column has to read, would be an eighth of a ledger.
    """

    def __init__(self, file: storage.HashingWriter) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def __call__(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        if self._num_waiting >= _ROWS_PER_GROUP:
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        rows = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._num_waiting = [], 0
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, rows.schema, compression="zstd")
        self._writer.write_table(rows)
