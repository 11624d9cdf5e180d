"""Changes decisions about samples that a data set holds: takedowns, and verdicts of a review.

A revision is a generation like any other. Files that hold one of its samples are replaced by new
ones without it, and what it selects goes into additional shards; no file is changed.
"""

import logging
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.metadata import Generation, ShardFile, SourceRecord, TableRecord, add_counts
from pipeline.dataset.schema import RejectReason
from pipeline.dataset.shards import (
    LEDGER_COLUMNS,
    count_rows,
    group_of,
    output_groups,
    read_shard,
    refuse_rows,
    sort_files,
    write_shard,
)
from pipeline.dataset.tables import read_seen_images, take_number, write_decided

_log = logging.getLogger(__name__)


# Takes rows with `LEDGER_COLUMNS` and others; returns the same rows with other decisions.
Decide = Callable[[pa.Table], pa.Table]


def revise(dataset: Dataset, parent: Generation, keys: Iterable[str], decide: Decide) -> Generation:
    """Decides the samples with these keys again; returns the generation to commit.

    `decide` gets only rows of these keys, once from the ledger and once from the shards, and must
    decide the same both times. Duplicates among the rows that it selects are refused.
    """
    revision = _Revision(dataset, parent, pa.array(sorted(set(keys)), pa.string()), decide)
    ledgers = {source.name: revision.ledger_rows(source) for source in parent.sources}
    touched = {name for name, rows in ledgers.items() if rows.num_rows}
    before = (*parent.shards, *parent.quarantine)
    paths = (file.sidecar_path for file in before if file.source in touched)
    held = dataset.read_tables(paths, ["key"])  # one per file of a touched source
    files = [
        new
        for file in before
        for new in (revision.replace_file(file, next(held)) if file.source in touched else [file])
    ]
    files += revision.write_moved()
    shards, quarantine = sort_files(files)
    sources = [
        revision.replace_tables(source) if source.name in touched else source
        for source in parent.sources
    ]
    return parent.model_copy(
        update={
            "number": parent.number + 1,
            "parent": parent.number,
            "sources": tuple(sources),
            "shards": tuple(shards),
            "quarantine": tuple(quarantine),
            "next_numbers": dict(sorted(revision.numbers.items())),
        }
    )


class _Revision:
    """Numbers for new files, and the rows on their way from one file to another."""

    def __init__(
        self, dataset: Dataset, parent: Generation, keys: pa.Array, decide: Decide
    ) -> None:
        self._dataset = dataset
        self._parent = parent
        self._info = dataset.read_info()
        self._keys = keys
        self._decide = decide
        self._moved: list[tuple[int, pa.Table]] = []  # round of the source, rows with images
        self._refused: dict[str, RejectReason] = {}  # by key
        self.numbers = dict(parent.next_numbers)

    def ledger_rows(self, source: SourceRecord) -> pa.Table:
        """The rows of a source that are decided again."""
        tables = list(self._dataset.read_recorded(source.ledger, LEDGER_COLUMNS))
        return pa.concat_tables([rows.filter(self._is_named(rows)) for rows in tables])

    def replace_file(self, file: ShardFile, keys: pa.Table) -> list[ShardFile]:
        """The file itself, or one without the samples in question, whose rows move."""
        is_named = self._is_named(keys)
        if not pc.any(is_named).as_py():
            return [file]
        rows, round_number = read_shard(self._dataset, file)
        self._moved.append((round_number, self._decide(rows.filter(is_named))))
        kept = rows.filter(pc.invert(is_named))
        if not kept.num_rows:
            return []
        return [self._write(kept, group_of(file.path), round_number)]

    def write_moved(self) -> list[ShardFile]:
        """Shards of the moved rows that are now selected or suspected; the others are in none."""
        seen = read_seen_images(self._dataset, self._parent)
        by_place: dict[tuple[str, int], list[pa.Table]] = {}
        for round_number, rows in self._moved:
            selected = np.flatnonzero(rows["selected"].to_numpy())
            refused = seen.admit(rows.take(selected))
            reasons = {int(selected[n]): reason for n, reason in refused.items()}
            self._refused |= {rows["key"][n].as_py(): r for n, r in reasons.items()}
            rows = refuse_rows(rows, reasons)
            groups = np.array(output_groups(rows), object)
            for group in sorted(set(groups) - {""}):
                chosen = rows.filter(pa.array(groups == group))
                by_place.setdefault((group, round_number), []).append(chosen)
        size = self._info.fingerprint_inputs["output"]["samples_per_shard"]
        return [
            self._write(rows.slice(start, size), group, round_number)
            for (group, round_number), tables in sorted(by_place.items(), key=lambda item: item[0])
            for rows in [pa.concat_tables(tables)]
            for start in range(0, rows.num_rows, size)
        ]

    def replace_tables(self, source: SourceRecord) -> SourceRecord:
        """The record of a source, with new ledgers and hashes if a row has changed."""
        ledgers, hashes, counts = [], [], []
        for ledger, images in zip(source.ledger, source.hashes, strict=True):
            rows = self._dataset.read_table(ledger.path, LEDGER_COLUMNS, sha256=ledger.sha256)
            is_named = self._is_named(rows)
            if pc.any(is_named).as_py():
                ledger, images, rows = self._replace_ledger(source.name, rows, is_named)
            ledgers.append(ledger)
            hashes.append(images)
            counts.append(count_rows(rows))
        return source.model_copy(
            update={
                "ledger": tuple(ledgers),
                "hashes": tuple(hashes),
                "counts": add_counts(counts),
            }
        )

    def _replace_ledger(
        self, source: str, rows: pa.Table, is_named: pa.ChunkedArray
    ) -> tuple[TableRecord, TableRecord, pa.Table]:
        decided = self._decide(rows.filter(is_named)).select(rows.column_names).cast(rows.schema)
        keys = decided["key"].to_pylist()
        decided = refuse_rows(
            decided, {n: self._refused[key] for n, key in enumerate(keys) if key in self._refused}
        )
        # Back in their places: a ledger keeps the order of its source.
        position_N = np.arange(rows.num_rows)
        named_N = is_named.to_numpy()
        position_N[named_N] = rows.num_rows + np.arange(decided.num_rows)
        rows = pa.concat_tables([rows, decided]).take(pa.array(position_N))
        return *write_decided(self._dataset, source, rows, self.numbers), rows

    def _write(self, rows: pa.Table, group: str, round_number: int) -> ShardFile:
        return write_shard(
            self._dataset,
            rows,
            stem=f"{group}-{take_number(self.numbers, group):06d}",
            targets=self._info.targets,
            encoder=self._info.encoder,
            round_number=round_number,
        )

    def _is_named(self, rows: pa.Table) -> pa.ChunkedArray:
        return pc.is_in(rows["key"], value_set=self._keys)


def remove_replaced(dataset: Dataset, before: Generation, after: Generation) -> int:
    """Deletes the files that a revision has replaced, which earlier generations then lack.

    All sidecars of a deleted tar are deleted, also those that only earlier generations list.
    """
    gone = before.paths() - after.paths()
    for number in range(1, before.number):
        earlier = dataset.read_generation(number)
        gone |= {f.sidecar_path for f in earlier.shards if f.path in gone}
    storage.remove_many([dataset.uri(path) for path in sorted(gone)])
    return len(gone)
