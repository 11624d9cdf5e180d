"""Checks the ledgers and hashes of a source against the rules and against its shards."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.keys import split_of, unit_hash
from pipeline.dataset.metadata import (
    Counts,
    DatasetInfo,
    SourceRecord,
    TableRecord,
    TakenDown,
    add_counts,
)
from pipeline.dataset.schema import RejectReason, row_schema
from pipeline.dataset.shards import count_rows, output_group
from pipeline.dataset.tables import HASH_COLUMNS
from pipeline.dataset.taken_down import is_taken_down

Expect = Callable[[bool, str], None]  # (claim, problem if it is false)

_VERIFIED = [
    "key", "source", "label", "group", "split", "content_hash", "inclusion_probability", "selected",
    "reject_reason",
]  # fmt: skip
_HASHES = pa.schema([row_schema(1).field(name) for name in HASH_COLUMNS])


class Packed(NamedTuple):
    """What a shard holds of a sample; removed when its row is found in a ledger."""

    group: str  # see `output_group`; "" if it is in no shard
    probability: float | None


def verify_source(
    dataset: Dataset,
    info: DatasetInfo,
    source: SourceRecord,
    packed: dict[str, Packed],
    taken_down: TakenDown,
    expect: Expect,
) -> tuple[int, pa.Table]:
    """Every row of a source is numbered without a gap, decided by the rule, and packed once.

    One that is taken down is refused.

    Returns their number and the rows of its `hashes/`.
    """
    numbering = _Numbering()
    counts: list[Counts] = []
    hashes: list[pa.Table] = [_HASHES.empty_table()]
    for ledger, images in zip(source.ledger, source.hashes, strict=True):
        if not (_is_sound(dataset, ledger, expect) and _is_sound(dataset, images, expect)):
            continue
        selected = [_HASHES.empty_table()]
        num_rows = 0
        for rows in dataset.iterate_table(ledger.path):
            counts.append(count_rows(rows))
            num_rows += rows.num_rows
            numbering.add(rows)
            is_refused = pc.equal(rows["reject_reason"], RejectReason.TAKEN_DOWN.value)
            used = rows.filter(
                pc.and_not(is_taken_down(rows, taken_down), is_refused.fill_null(False))
            )
            for key in used["key"].to_pylist():
                expect(False, f"{key}: was taken down, is not refused in {ledger.path}")
            for row in rows.select(_VERIFIED).to_pylist():
                _verify_row(row, info, packed, expect)
            selected.append(rows.filter(rows["selected"]).select(HASH_COLUMNS).cast(_HASHES))
        expect(num_rows == ledger.num_rows, f"{ledger.path}: other number of rows")
        hashes.append(dataset.read_table(images.path).cast(_HASHES))
        is_same = hashes[-1].equals(pa.concat_tables(selected))
        expect(is_same, f"{images.path}: other images than selected")
    total = add_counts(counts)
    expect(total == source.counts, f"{source.name}: other counts")
    expect(numbering.is_sound, f"{source.name}: ordinals missing or doubled")
    expect(source.counts.adds_up(), f"{source.name}: counts do not add up")
    return total.read, pa.concat_tables(hashes)


def _is_sound(dataset: Dataset, table: TableRecord, expect: Expect) -> bool:
    uri = dataset.uri(table.path)
    is_sound = storage.exists(uri) and storage.sha256_of(uri) == table.sha256
    expect(is_sound, f"{table.path}: missing, or sha256 differs from the record")
    return is_sound


def _verify_row(
    row: Mapping[str, Any], info: DatasetInfo, packed: dict[str, Packed], expect: Expect
) -> None:
    key, probability = row["key"], row["inclusion_probability"]
    found = packed.pop(key, Packed("", probability))
    expect(
        found.probability == probability,
        f"{key}: inclusion_probability is {found.probability} in the sidecar and {probability} in "
        "the ledger",
    )
    group = output_group(
        source=row["source"],
        split=row["split"],
        label=row["label"],
        selected=row["selected"],
        reason=row["reject_reason"],
    )
    expect(
        found.group == group,
        f"{key}: belongs in {group or 'no shard'}, is in {found.group or 'none'}",
    )
    if row["reject_reason"] is None:
        seed = info.fingerprint_inputs["selection"]["seed"]
        is_chosen = unit_hash(seed, str(row["content_hash"])) < probability
        expect(row["selected"] == is_chosen, f"{key}: selected against the rule")
    else:
        expect(not row["selected"], f"{key}: rejected and selected")
    if row["group"] is None:
        return  # it was taken down
    fractions = {"train": 0.0, **info.fingerprint_inputs["split"]}
    expect(row["split"] == split_of(str(row["group"]), fractions), f"{key}: in the wrong split")


class _Numbering:
    """Whether the rows of a source, in its order, are numbered from 0 in each partition.

    Holds only the names of partitions.
    """

    def __init__(self) -> None:
        self.is_sound = True
        self._names: set[str] = set()
        self._name: str | None = None
        self._num_seen = 0  # rows of the latest partition

    def add(self, rows: pa.Table) -> None:
        runs = pc.run_end_encode(rows["partition"].combine_chunks())
        ends = runs.run_ends.to_pylist()
        ordinals = rows["ordinal"].to_numpy()
        for name, start, stop in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False):
            if name != self._name:
                self.is_sound &= name not in self._names
                self._names.add(name)
                self._name, self._num_seen = name, 0
            wanted = np.arange(self._num_seen, self._num_seen + stop - start)
            self.is_sound &= np.array_equal(ordinals[start:stop], wanted)
            self._num_seen += stop - start
