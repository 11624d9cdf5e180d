"""Parts become shards: which rows go into which shard, and the writing of one shard or ledger.

Shards hold one source, split and label each, in the order of partition and ordinal, cut at a
fixed count, so that their bytes do not depend on who built them or how often it was interrupted.
"""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline import manifest, storage
from pipeline.records import LedgerRecord, PartRecord, ShardFile
from pipeline.shards import ledger_rows, output_groups, write_shard


class Piece(BaseModel, frozen=True):
    """Rows `start` to `stop` of those that a part has for one output group."""

    part_path: str
    start: int
    stop: int


class ShardTask(BaseModel, frozen=True):
    """One shard to write: `group` is its path without the number and suffix."""

    source: str
    round: int
    group: str
    number: int
    pieces: tuple[Piece, ...]

    @property
    def stem(self) -> str:
        return f"{self.group}-{self.number:06d}"


def cut_shards(
    parts: Iterable[PartRecord],
    *,
    samples_per_shard: int,
    round_number: int,
    num_before: Mapping[str, int],
) -> list[ShardTask]:
    """Cuts the rows of each output group, in the order of `parts`, every `samples_per_shard`.

    `num_before` counts the shards that earlier generations have in a group. Needs the records
    alone: no row is read to plan a shard.
    """
    tasks: list[ShardTask] = []
    open_pieces: dict[str, list[Piece]] = {}
    sizes: dict[str, int] = {}
    numbers = dict(num_before)

    def close(source: str, group: str) -> None:
        number = numbers.get(group, 0)
        pieces = tuple(open_pieces.pop(group))
        tasks.append(
            ShardTask(source=source, round=round_number, group=group, number=number, pieces=pieces)
        )
        numbers[group], sizes[group] = number + 1, 0

    for part in parts:
        for group, num_rows in part.packable.items():
            start = 0
            while start < num_rows:
                room = samples_per_shard - sizes.get(group, 0)
                stop = min(num_rows, start + room)
                open_pieces.setdefault(group, []).append(
                    Piece(part_path=part.path, start=start, stop=stop)
                )
                sizes[group] = sizes.get(group, 0) + stop - start
                start = stop
                if sizes[group] == samples_per_shard:
                    close(part.source, group)
    for group in sorted(open_pieces):
        close(part.source, group)
    return sorted(tasks, key=lambda task: task.stem)


def pack_shard(root: str, task: ShardTask, *, targets: Sequence[str], encoder: str) -> ShardFile:
    """Writes one shard from its pieces."""
    tables = []
    for piece in task.pieces:
        rows = manifest.read_table(root, piece.part_path)
        of_group = pa.array([group == task.group for group in output_groups(rows)])
        tables.append(rows.filter(of_group).slice(piece.start, piece.stop - piece.start))
    return write_shard(
        root,
        pa.concat_tables(tables),
        stem=task.stem,
        targets=targets,
        encoder=encoder,
        round_number=task.round,
    )


def pack_ledger(
    root: str, source: str, parts: Iterable[PartRecord], *, round_number: int
) -> LedgerRecord:
    """Writes every row seen of a source, part by part: memory does not grow with the source."""
    path = f"ledger/{source}-{round_number:06d}.parquet"
    writer: pq.ParquetWriter | None = None
    num_rows = 0
    with storage.open_atomic(storage.join(root, path)) as file:
        for part in parts:
            rows = ledger_rows(manifest.read_table(root, part.path))
            if writer is None:
                writer = pq.ParquetWriter(file, rows.schema)
            writer.write_table(rows)
            num_rows += rows.num_rows
        if writer is not None:
            writer.close()
    return LedgerRecord(path=path, sha256=file.sha256, num_rows=num_rows)
