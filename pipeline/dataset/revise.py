"""Changes decisions about samples that a data set holds: takedowns, and verdicts of a review.

A revision is a generation like any other. Files that hold one of its samples are replaced by new
ones without it, and what it selects goes into additional shards; no file is changed. Every row is
compared with the list of what is taken down, old entries and new.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.metadata import (
    Generation,
    ShardFile,
    SourceRecord,
    TableRecord,
    TakenDown,
    add_counts,
)
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
from pipeline.dataset.taken_down import NAMING_COLUMNS, is_taken_down, refuse_taken_down

_log = logging.getLogger(__name__)


# Takes rows with `LEDGER_COLUMNS` and others; returns the same rows with other decisions.
Decide = Callable[[pa.Table], pa.Table]


def revise(
    dataset: Dataset,
    parent: Generation,
    keys: Iterable[str],
    decide: Decide,
    *,
    refused: TakenDown = TakenDown(),  # noqa: B008 - immutable
    added: Iterable[tuple[int, pa.Table]] = (),
) -> Generation:
    """Decides the samples with these keys again; returns the generation to commit.

    added: rows of these keys that no shard holds, as `row_schema`, and the round of their source.
    `decide` gets only rows of these keys and rows that are taken down, once from the ledger and
    once from the shards or `added`, and must decide the same both times. Duplicates among the rows
    that it newly selects are refused. What is taken down, in the parent or by `refused`, is refused
    whatever `decide` says.
    """
    taken_down = parent.taken_down | refused
    revision = _Revision(
        dataset,
        parent,
        _named(dataset, parent, keys, taken_down),
        lambda rows: refuse_taken_down(decide(rows), taken_down),
    )
    touched = {source.name for source in parent.sources if revision.touches(source)}
    listed = (*parent.shards, *parent.quarantine)
    paths = (file.sidecar_path for file in listed if file.source in touched)
    held = dataset.read_tables(paths, ["key"])  # one per file of a touched source
    files = [
        new
        for file in listed
        for new in (revision.replace_file(file, next(held)) if file.source in touched else [file])
    ]
    for round_number, rows in added:
        revision.move(round_number, rows)
    files += revision.write_moved()
    shards, quarantine = sort_files(files)
    sources = [
        revision.replace_tables(source) if source.name in touched else source
        for source in parent.sources
    ]
    takedowns = parent.takedowns
    if refused and refused not in takedowns:
        # A data set of an older version has only the sum.
        before = takedowns or ((parent.taken_down,) if parent.taken_down else ())
        takedowns = (*before, refused)
    return parent.model_copy(
        update={
            "number": parent.number + 1,
            "parent": parent.number or None,
            "sources": tuple(sources),
            "shards": tuple(shards),
            "quarantine": tuple(quarantine),
            "next_numbers": dict(sorted(revision.numbers.items())),
            "taken_down": taken_down,
            "takedowns": takedowns,
        }
    )


def _named(
    dataset: Dataset, parent: Generation, keys: Iterable[str], taken_down: TakenDown
) -> pa.Array:
    """The keys given, and those of all rows that are taken down."""
    found = set(keys)
    paths = (table.path for source in parent.sources for table in source.ledger)
    for rows in dataset.read_tables(paths, NAMING_COLUMNS):
        found.update(rows["key"].filter(is_taken_down(rows, taken_down)).to_pylist())
    return pa.array(sorted(found), pa.string())


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of shards, and rows that were added, whose columns are in another order."""
    first = tables[0]
    return pa.concat_tables(rows.select(first.column_names).cast(first.schema) for rows in tables)


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
        # Round of the source, rows with images, and which of them a shard holds.
        self._moved: list[tuple[int, pa.Table, NDArray[np.bool_]]] = []
        self._refused: dict[str, RejectReason] = {}  # by key
        self.numbers = dict(parent.next_numbers)

    def touches(self, source: SourceRecord) -> bool:
        """Whether a row of the source is decided again."""
        tables = self._dataset.read_tables((table.path for table in source.ledger), ["key"])
        return any(pc.any(self._is_named(rows)).as_py() for rows in tables)

    def replace_file(self, file: ShardFile, keys: pa.Table) -> list[ShardFile]:
        """The file itself, or one without the samples in question, whose rows move."""
        is_named = self._is_named(keys)
        if not pc.any(is_named).as_py():
            return [file]
        rows, round_number = read_shard(self._dataset, file)
        self.move(round_number, rows.filter(is_named))
        kept = rows.filter(pc.invert(is_named))
        if not kept.num_rows:
            return []
        return [self._write(kept, group_of(file.path), round_number)]

    def move(self, round_number: int, rows: pa.Table) -> None:
        """Takes rows with images, as they were decided so far."""
        self._moved.append((round_number, self._decide(rows), rows["selected"].to_numpy()))

    def write_moved(self) -> list[ShardFile]:
        """Shards of the moved rows that are now selected or suspected; the others are in none."""
        seen = read_seen_images(self._dataset, self._parent)
        by_place: dict[tuple[str, int], list[pa.Table]] = {}
        for round_number, rows, was_selected_N in self._moved:
            selected = np.flatnonzero(rows["selected"].to_numpy() & ~was_selected_N)
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
            for rows in [_concatenated(tables)]
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
