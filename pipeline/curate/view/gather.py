"""What the page shows: read from sidecars and ledgers, some columns and rows at a time.

Memory grows with the number of sources, strata and leakage groups, not with that of samples.
"""

import heapq
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.metadata import (
    DatasetInfo,
    Generation,
    ReferenceInfo,
    ShardFile,
    ShardRecord,
    SourceRecord,
    strata_by_similarity,
)
from pipeline.dataset.schema import with_columns
from pipeline.dataset.taken_down import NAMING_COLUMNS, is_taken_down, refuse_taken_down

BIN_EDGES = np.linspace(-1, 1, 101)  # of similarity, a cosine
POSITIVES = "positives"  # what stands for their stratum
_STRATA = (POSITIVES, "near", "mid", "far", "generated")
_NUM_EXTREME = 24  # hardest negatives, and suspected positives
_NUM_GROUPS, _NUM_OF_GROUP = 12, 6
_NUM_EXAMPLES = 5  # of each reason to reject
_MOST_GENERATIONS = 50
NOT_STATED = "not stated"
_COLUMNS = (
    *NAMING_COLUMNS, "label", "stratum", "split", "license", "group", "similarity",
    "inclusion_probability", "tar_offset", "tar_size",
)  # fmt: skip
_LEDGER_COLUMNS = (
    *NAMING_COLUMNS, "split", "similarity", "inclusion_probability", "selected", "reject_reason",
)  # fmt: skip

# A row of a sidecar with the path of its `shard`.
Row = dict[str, Any]


@dataclass
class Histogram:
    """Training candidates of a source by similarity, in the bins of `BIN_EDGES`."""

    candidates_M: NDArray[np.int64] = field(default_factory=lambda: _zeros(np.int64))
    selected_M: NDArray[np.int64] = field(default_factory=lambda: _zeros(np.int64))
    probability_M: NDArray[np.float64] = field(default_factory=lambda: _zeros(np.float64))  # sums

    def add(self, rows: pa.Table) -> None:
        """rows: of a ledger."""
        drawn = pc.and_(pc.is_valid(rows["similarity"]), pc.equal(rows["split"], "train"))
        rows = rows.filter(pc.and_(drawn, pc.is_valid(rows["inclusion_probability"])))
        similarity_N = rows["similarity"].to_numpy().clip(-1, 1)  # 1.0000001 by rounding
        probability_N = rows["inclusion_probability"].to_numpy()
        selected_N = rows["selected"].to_numpy().astype(bool)
        self.candidates_M += np.histogram(similarity_N, BIN_EDGES)[0]
        self.selected_M += np.histogram(similarity_N[selected_N], BIN_EDGES)[0]
        self.probability_M += np.histogram(similarity_N, BIN_EDGES, weights=probability_N)[0]


@dataclass
class SourceView:
    """A source and some of its pictures."""

    record: SourceRecord
    num_bytes: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    strata: Counter[str] = field(default_factory=Counter)
    pictures: dict[str, list[Row]] = field(default_factory=dict)  # by stratum
    histogram: Histogram = field(default_factory=Histogram)
    rejects: dict[str, list[str]] = field(default_factory=dict)  # reason -> some URIs


@dataclass
class DatasetView:
    root: str
    info: DatasetInfo
    generation: Generation
    history: list[Generation]  # the latest ones, oldest first
    sources: dict[str, SourceView]
    hardest: list[Row]  # negatives, the most similar first
    suspects: list[Row]  # suspected positives, the most similar first
    groups: list[tuple[int, list[Row]]]  # the largest leakage groups: their size, and some


def gather(root: str, *, num_pictures: int) -> DatasetView:
    """The latest generation of a data set, with `num_pictures` of each stratum of a source.

    Which ones is decided by their keys, so that the same are shown each time. What is taken down
    is left out. Raises ConfigError if there is no data set.
    """
    dataset = Dataset(root)
    info, generation = dataset.read_info(), dataset.read_generation()
    reference = dataset.read_reference()
    view = DatasetView(
        root=root,
        info=info,
        generation=generation,
        history=_history(dataset),
        sources={source.name: SourceView(source) for source in generation.sources},
        hardest=[],
        suspects=[],
        groups=[],
    )
    sizes: Counter[str] = Counter()
    for shard in generation.shards:
        rows = _read(dataset, shard, generation)
        sizes.update(rows["group"].drop_null().to_pylist())
        _add_shard(view.sources[shard.source], shard, rows, reference, num_pictures)
        if not shard.label:
            view.hardest = _most_similar(view.hardest, rows)
    for file in generation.quarantine:
        view.suspects = _most_similar(view.suspects, _read(dataset, file, generation))
    view.groups = _largest_groups(dataset, generation, sizes)
    for source in view.sources.values():
        _add_ledgers(dataset, source, generation)
    return view


def _history(dataset: Dataset) -> list[Generation]:
    numbers = dataset.generation_numbers()[-_MOST_GENERATIONS:]
    return [dataset.read_generation(number) for number in numbers]


def _read(dataset: Dataset, file: ShardFile, generation: Generation) -> pa.Table:
    rows = dataset.read_sidecar(file, _COLUMNS)
    rows = rows.filter(pc.invert(is_taken_down(rows, generation.taken_down)))
    return with_columns(rows, shard=pa.array([file.path] * rows.num_rows, pa.string()))


def _add_shard(
    source: SourceView,
    shard: ShardRecord,
    rows: pa.Table,
    reference: ReferenceInfo | None,
    num_pictures: int,
) -> None:
    source.num_bytes += shard.size_bytes
    source.licenses.update(rows["license"].fill_null(NOT_STATED).to_pylist())
    stratum_N = _strata(rows, shard, reference)
    order_N = np.array([zlib.crc32(key.encode()) for key in rows["key"].to_pylist()])
    for stratum in sorted(set(stratum_N)):
        members = np.flatnonzero(stratum_N == stratum)
        source.strata[stratum] += len(members)
        first = members[np.argsort(order_N[members], kind="stable")[:num_pictures]]
        shown = source.pictures.get(stratum, []) + _rows(rows, first)
        shown.sort(key=lambda row: (zlib.crc32(row["key"].encode()), row["key"]))
        source.pictures[stratum] = shown[:num_pictures]


def _strata(
    rows: pa.Table, shard: ShardRecord, reference: ReferenceInfo | None
) -> NDArray[np.object_]:
    """As the source states it, else by similarity."""
    if shard.label:
        return np.full(rows.num_rows, POSITIVES, object)
    stratum = rows["stratum"]
    if reference is not None:
        stratum = pc.coalesce(stratum, strata_by_similarity(rows["similarity"], reference))
    return np.asarray(stratum.fill_null(NOT_STATED).to_numpy(), object)


def _most_similar(so_far: list[Row], rows: pa.Table) -> list[Row]:
    similarity_N = rows["similarity"].fill_null(-1).to_numpy()
    best = np.argsort(-similarity_N, kind="stable")[:_NUM_EXTREME]
    return heapq.nsmallest(_NUM_EXTREME, so_far + _rows(rows, best), key=_by_similarity)


def _by_similarity(row: Row) -> tuple[float, str]:
    return -(row["similarity"] if row["similarity"] is not None else -1), row["key"]


def _rows(rows: pa.Table, positions: NDArray[np.int64]) -> list[Row]:
    return [_shown(row) for row in rows.take(pa.array(positions, pa.int64())).to_pylist()]


def _shown(row: Row) -> Row:
    return {**row, "uri": storage.redact(row["uri"] or "")}


def _largest_groups(
    dataset: Dataset, generation: Generation, sizes: Mapping[str, int]
) -> list[tuple[int, list[Row]]]:
    largest = heapq.nsmallest(
        _NUM_GROUPS, (g for g in sizes if sizes[g] > 1), key=lambda group: (-sizes[group], group)
    )
    found: dict[str, list[Row]] = {group: [] for group in largest}
    for shard in generation.shards if largest else ():
        rows = _read(dataset, shard, generation)
        rows = rows.filter(pc.is_in(rows["group"], value_set=pa.array(largest, pa.string())))
        for row in map(_shown, rows.to_pylist()):
            if len(found[row["group"]]) < _NUM_OF_GROUP:
                found[row["group"]].append(row)
    return [(sizes[group], rows) for group, rows in found.items()]


def _add_ledgers(dataset: Dataset, source: SourceView, generation: Generation) -> None:
    for table in source.record.ledger:
        for batch in dataset.iterate_table(table.path):
            rows = refuse_taken_down(batch.select(_LEDGER_COLUMNS), generation.taken_down)
            if source.record.role == "negative":
                source.histogram.add(rows)
            _add_rejects(source.rejects, rows)


def _add_rejects(rejects: dict[str, list[str]], rows: pa.Table) -> None:
    rows = rows.filter(pc.is_valid(rows["reject_reason"]))
    for reason in pc.unique(rows["reject_reason"]).to_pylist():
        examples = rejects.setdefault(reason, [])
        if len(examples) < _NUM_EXAMPLES:
            uris = rows.filter(pc.equal(rows["reject_reason"], reason))["uri"].drop_null()
            room = _NUM_EXAMPLES - len(examples)
            examples += map(storage.redact, uris.slice(0, room).to_pylist())


def ordered_strata(names: Iterable[str]) -> Iterator[str]:
    """Positives first, then from near to far, then what no one has named."""
    names = set(names)
    yield from (name for name in _STRATA if name in names)
    yield from sorted(names - {*_STRATA})


def _zeros(dtype: type[np.generic]) -> NDArray[Any]:
    return np.zeros(len(BIN_EDGES) - 1, dtype)
