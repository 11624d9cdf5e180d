"""Checks the ledgers of a data set against its rules and against what its shards hold.

Row by row, some at a time: a source may have a thousand million candidates.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.keys import split_of, unit_hash
from pipeline.dataset.metadata import Counts, DatasetInfo, SourceRecord, TableRecord, add_counts
from pipeline.dataset.schema import row_schema
from pipeline.dataset.shards import count_rows, output_group
from pipeline.dataset.tables import HASH_COLUMNS

# Of a ledger, what is looked at row by row.
_VERIFIED = [
    "key", "source", "label", "group", "split", "content_hash", "inclusion_probability", "selected",
    "reject_reason",
]  # fmt: skip
_HASHES = pa.schema([row_schema(1).field(name) for name in HASH_COLUMNS])


@dataclass
class Verification:
    """What was checked and what was found wrong."""

    num_shards: int = 0
    num_samples: int = 0
    num_rows: int = 0
    problems: list[str] = field(default_factory=list)

    def expect(self, claim: bool, problem: str) -> None:
        if not claim:
            self.problems.append(problem)


class Packed(NamedTuple):
    """What a shard holds of a sample; taken away where its row is found in a ledger."""

    group: str  # of `output_group`; "" where it is in no shard
    probability: float | None


def verify_source(
    root: str,
    info: DatasetInfo,
    source: SourceRecord,
    result: Verification,
    packed: dict[str, Packed],
) -> pa.Table:
    """Every row seen of a source: numbered without gap, decided by the rule, and packed once.

    Returns the rows of its `hashes/`.
    """
    numbering = _Numbering()
    counts: list[Counts] = []
    hashes: list[pa.Table] = [_HASHES.empty_table()]
    for ledger, images in zip(source.ledger, source.hashes, strict=True):
        if not (_is_sound(root, ledger, result) and _is_sound(root, images, result)):
            continue
        selected = [_HASHES.empty_table()]
        num_rows = 0
        for rows in manifest.iterate_table(root, ledger.path):
            counts.append(count_rows(rows))
            num_rows += rows.num_rows
            numbering.see(rows)
            for row in rows.select(_VERIFIED).to_pylist():
                _verify_row(row, info, result, packed)
            selected.append(rows.filter(rows["selected"]).select(HASH_COLUMNS).cast(_HASHES))
        result.num_rows += num_rows
        result.expect(num_rows == ledger.num_rows, f"{ledger.path}: other number of rows")
        hashes.append(manifest.read_table(root, images.path).cast(_HASHES))
        is_same = hashes[-1].equals(pa.concat_tables(selected))
        result.expect(is_same, f"{images.path}: other images than selected")
    result.expect(add_counts(counts) == source.counts, f"{source.name}: other counts")
    result.expect(numbering.is_sound, f"{source.name}: ordinals missing or doubled")
    result.expect(source.counts.adds_up(), f"{source.name}: counts do not add up")
    return pa.concat_tables(hashes)


def _is_sound(root: str, table: TableRecord, result: Verification) -> bool:
    uri = storage.join(root, table.path)
    is_sound = storage.exists(uri) and storage.sha256_of(uri) == table.sha256
    result.expect(is_sound, f"{table.path}: missing, or sha256 differs from the record")
    return is_sound


def _verify_row(
    row: dict[str, Any],
    info: DatasetInfo,
    result: Verification,
    packed: dict[str, Packed],
) -> None:
    key, probability = row["key"], row["inclusion_probability"]
    found = packed.pop(key, Packed("", probability))
    result.expect(
        found.probability == probability,
        f"{key}: inclusion_probability is {found.probability} in the sidecar and {probability} in "
        "the ledger",
    )
    fractions = info.fingerprint_inputs["split"]
    seed = info.fingerprint_inputs["selection"]["seed"]
    content_hash = str(row["content_hash"])
    group = output_group(
        source=str(row["source"]),
        split=str(row["split"]),
        label=str(row["label"]),
        selected=bool(row["selected"]),
        reason=row["reject_reason"],
    )
    result.expect(
        found.group == group,
        f"{key}: belongs in {group or 'no shard'}, is in {found.group or 'none'}",
    )
    if row["reject_reason"] is None:
        is_chosen = unit_hash(seed, content_hash) < probability
        result.expect(row["selected"] == is_chosen, f"{key}: selected against the rule")
    else:
        result.expect(not row["selected"], f"{key}: rejected and selected")
    full = {"train": 0.0, **fractions}
    result.expect(row["split"] == split_of(str(row["group"]), full), f"{key}: in the wrong split")


class _Numbering:
    """Whether the rows of a source, in its order, are numbered from 0 on in each partition.

    Memory holds the names of partitions, and not what was seen of each.
    """

    def __init__(self) -> None:
        self.is_sound = True
        self._names: set[str] = set()
        self._name: str | None = None
        self._num_seen = 0  # of the latest partition

    def see(self, rows: pa.Table) -> None:
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
