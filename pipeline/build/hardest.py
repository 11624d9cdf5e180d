"""A first head adds the hardest negatives of some rounds to those that similarity drew.

    parts -> first head -> hardest -> their images, read again -> parts to pack instead

What was chosen is kept in `parts/<source>/<round>/` before an image is read, and a part with more
selected rows is another file beside it: an interrupted build continues where it stopped and
commits the same bytes. Shapes: N candidates, D embedding.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline import storage
from pipeline.build.monitor import BuildMonitor
from pipeline.build.pack import AddedPart
from pipeline.build.reading import Round, Spans
from pipeline.cluster.workers import Cluster
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import part_stem, round_folder
from pipeline.dataset.embedding_cache import KeptEmbeddings, embeddings_of
from pipeline.dataset.keys import short_hash
from pipeline.dataset.metadata import PartRecord, TableRecord, TakenDown
from pipeline.dataset.schema import embedding_matrix
from pipeline.dataset.tables import write_table
from pipeline.dataset.taken_down import refuse_taken_down
from pipeline.errors import InfinegError
from pipeline.selection.hardest import NUM_FOLDS, Candidates, Positives, choose_hardest
from pipeline.selection.mining import fold_of
from pipeline.selection.reference import read_bank
from pipeline.telemetry.progress import Progress
from pipeline.worker.adding import AddingWorker, AddTask

_log = logging.getLogger(__name__)
_COLUMNS = (
    "key", "partition", "uri", "author", "content_hash", "split", "label", "label_state",
    "similarity", "inclusion_probability", "selected", "reject_reason",
)  # fmt: skip


def add_hardest(
    config: Config,
    rounds: Sequence[Round],
    spans: Spans,
    cluster: Cluster,
    monitor: BuildMonitor,
    taken_down: TakenDown,
) -> dict[str, AddedPart]:
    """Chooses, and reads what was chosen; returns the parts to pack, by the paths of those before.

    The rounds share their budget if `selection.pool` says so.
    """
    judged = [round_ for round_ in rounds if config.adds_hardest(round_.planned.entry)]
    pools = [judged] if config.selection.pool == "all" else [[round_] for round_ in judged]
    tasks = [
        task for pool in pools if pool for task in _Pool(config, pool, taken_down).tasks(spans)
    ]
    if not tasks:
        return {}
    make_worker = functools.partial(AddingWorker, config, storage.fence_of(config.output.path))
    added = {}
    with Progress("add the hardest", total=len(tasks), unit="parts") as progress:
        for table in cluster.map(AddingWorker.add, tasks, make_worker=make_worker):
            (row,) = table.to_pylist()
            added[row["part_path"]] = AddedPart(row["path"], row["sha256"])
            monitor.added(row["source"], row["num_new"])
            progress.advance()
    return added


@dataclass(frozen=True)
class _Pool:
    """Rounds whose candidates are judged together, by heads that are fitted on all of them."""

    config: Config
    rounds: Sequence[Round]
    taken_down: TakenDown

    def tasks(self, spans: Spans) -> Iterator[AddTask]:
        """What to add to each part, in order."""
        hardest = pa.array(self._read_or_choose(), pa.string())
        for (round_, part), rows in zip(self._parts, self._rows(), strict=True):
            is_added = pc.and_(_is_candidate(rows), pc.is_in(rows["content_hash"], hardest))
            added = rows.filter(is_added)
            if not added.num_rows:
                continue
            read = set(added["partition"].filter(pc.invert(added["selected"])).to_pylist())
            of_span = spans.find(round_, part.span) if read else ()
            name = short_hash("\n".join(added["key"].to_pylist()))
            yield AddTask(
                source=part.source,
                partitions=tuple(each for each in of_span if each.id in read),
                part_path=part.path,
                sha256=part.sha256,
                embeddings_path=embeddings_of(part),
                rows=tuple(np.flatnonzero(is_added.to_numpy()).tolist()),
                prefix=f"{part_stem(part, part.part)}.{name}",
            )

    def _read_or_choose(self) -> list[str]:
        """Content hashes of the hardest; chosen once."""
        first = self.rounds[0]
        # A choice that was made before a takedown is not the one that is made after it.
        made_of = [f"{each.planned.plan.fingerprint} {each.number}" for each in self.rounds]
        made_of.append(self.taken_down.model_dump_json())
        name = f"hardest-{short_hash(' '.join(made_of))}.parquet"
        path = f"{round_folder(first.source, first.number)}/{name}"
        if not storage.exists(self._dataset.uri(path)):
            # On one thread: else the last bits of sums would depend on the machine.
            with threadpool_limits(1):
                hardest = self._choose()
            table = pa.table({"content_hash": pa.array(sorted(hardest), pa.string())})
            write_table(self._dataset, path, table)
            _log.info(
                "%s: the first head has chosen %s of the hardest",
                ", ".join(round_.source for round_ in self.rounds), f"{len(hardest):,}",
            )  # fmt: skip
        return list(self._dataset.read_table(path)["content_hash"].to_pylist())

    def _choose(self) -> set[str]:
        found = self._candidates()
        smaller = (table for each in self.rounds for table in each.planned.plan.smaller)
        bank = read_bank(self._dataset, num_neighbors=self.config.selection.num_neighbors)
        return choose_hardest(
            found,
            functools.partial(self._embeddings_at, found),
            Positives(bank.embedding_KD, bank.content_hashes),
            kept=_certain_in(self._dataset, tuple(dict.fromkeys(smaller))),
            is_guarded=self.config.selection.quarantine == "auto",
        )

    def _candidates(self) -> Candidates:
        of_parts = []
        for number, rows in enumerate(self._rows()):
            is_candidate = _is_candidate(rows)
            own = rows.filter(is_candidate)
            hashes = own["content_hash"].to_pylist()
            of_parts.append(
                Candidates(
                    file_N=np.full(own.num_rows, number),
                    row_N=np.flatnonzero(is_candidate.to_numpy()),
                    hash_N=np.array(hashes, "S64"),
                    fold_N=fold_of(hashes, NUM_FOLDS),
                    similarity_N=own["similarity"].to_numpy(),
                    probability_N=own["inclusion_probability"].to_numpy().astype(np.float64),
                    is_drawn_N=own["selected"].to_numpy(),
                    is_unknown_N=pc.equal(own["label_state"], "unknown").to_numpy(),
                )
            )
        return Candidates(*map(np.concatenate, zip(*of_parts, strict=True)))

    def _embeddings_at(self, found: Candidates, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """embedding_ND of the candidates at these positions, in their order."""
        file_N = found.file_N[chosen]
        numbers = np.unique(file_N)
        embedding_ND = np.empty((0, 0), np.float32)
        read = storage.map_ahead(
            lambda number: self._read_embeddings(self._parts[number][1]), numbers
        )
        for number, table in zip(numbers, read, strict=True):
            here = np.flatnonzero(file_N == number)
            values_MD = embedding_matrix(table.take(pa.array(found.row_N[chosen[here]])))
            if not embedding_ND.size:
                embedding_ND = np.empty((len(chosen), values_MD.shape[1]), np.float32)
            embedding_ND[here] = values_MD
        return embedding_ND

    def _read_embeddings(self, part: PartRecord) -> pa.Table:
        path = embeddings_of(part)
        try:
            return self._kept.read(path, ["embedding"])
        except FileNotFoundError:
            raise InfinegError(
                f"{self._dataset.uri(path)}: missing. Remove parts/{part.source} of the data set, "
                "and the next build reads this source again"
            ) from None

    def _rows(self) -> Iterator[pa.Table]:
        """Of all parts, in order."""
        tables = self._dataset.read_tables((part.path for _, part in self._parts), _COLUMNS)
        return (refuse_taken_down(rows, self.taken_down) for rows in tables)

    @functools.cached_property
    def _parts(self) -> list[tuple[Round, PartRecord]]:
        return [
            (round_, part)
            for round_ in self.rounds
            for part in self._dataset.iterate_parts(round_.source, round_.number)
        ]

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return Dataset(self.config.output.path)

    @functools.cached_property
    def _kept(self) -> KeptEmbeddings:
        return KeptEmbeddings(self.config.output.path)


def _is_candidate(rows: pa.Table) -> pa.ChunkedArray:
    """Whether each row is a usable training negative."""
    is_negative = pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["label"], ""))
    return pc.and_(is_negative, rows["reject_reason"].is_null())


@functools.lru_cache(1)  # the rounds of a source ask one after the other
def _certain_in(dataset: Dataset, ledgers: tuple[TableRecord, ...]) -> NDArray[np.bytes_]:
    """Content hashes of the training negatives that are selected there with probability 1."""
    found: list[str] = []
    for ledger in ledgers:
        if storage.exists(dataset.uri(ledger.path)):  # else it was purged
            rows = dataset.read_table(ledger.path, _COLUMNS)
            is_certain = pc.and_(rows["selected"], pc.equal(rows["inclusion_probability"], 1))
            rows = rows.filter(pc.and_(_is_candidate(rows), is_certain))
            found += rows["content_hash"].to_pylist()
    return np.array(found, "S64")
