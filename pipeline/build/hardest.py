"""A first head adds the hardest negatives of some rounds to those that similarity drew.

    parts -> first head -> hardest -> their images, read again -> parts to pack instead

What was chosen is kept in `parts/<source>/<round>/hardest.parquet` before an image is read, and a
part with more selected rows is another file beside it: an interrupted build continues where it
stopped and commits the same bytes. Shapes: N candidates, D embedding, F folds.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline import storage
from pipeline.build.reading import Round, Spans
from pipeline.cluster.workers import Cluster
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import part_stem, round_folder
from pipeline.dataset.embedding_cache import KeptEmbeddings, embeddings_of
from pipeline.dataset.keys import short_hash, unit_hash
from pipeline.dataset.metadata import PartRecord, TakenDown
from pipeline.dataset.schema import embedding_matrix
from pipeline.dataset.tables import write_table
from pipeline.dataset.taken_down import refuse_taken_down
from pipeline.errors import InfinegError
from pipeline.selection.first_head import FirstHead, fit_first_heads
from pipeline.selection.hardest import deep_candidates, take_spread
from pipeline.selection.mining import fold_of
from pipeline.selection.reference import read_bank
from pipeline.telemetry.progress import Progress
from pipeline.worker.adding import AddingWorker, AddTask

_log = logging.getLogger(__name__)
_NUM_FOLDS = 3
# More negatives hardly change a head, but take minutes and gigabytes to fit.
_MAX_FITTED = 4096
_COLUMNS = (
    "key", "partition", "uri", "author", "content_hash", "split", "label", "label_state",
    "similarity", "inclusion_probability", "selected", "reject_reason",
)  # fmt: skip


def add_hardest(
    config: Config,
    rounds: Sequence[Round],
    spans: Spans,
    cluster: Cluster,
    taken_down: TakenDown,
) -> dict[str, str]:
    """Chooses, and reads what was chosen; returns the parts to pack, by the paths of those before.

    The rounds share their budget if `selection.pool` says so.
    """
    judged = [round_ for round_ in rounds if config.adds_hardest(round_.planned.entry)]
    pools = [judged] if config.selection.pool == "all" else [[round_] for round_ in judged]
    tasks = [
        task for pool in pools if pool for task in _Pool(config, pool, taken_down).tasks(spans)
    ]
    total = sum(len(task.rows) for task in tasks)
    make_worker = functools.partial(AddingWorker, config, storage.fence_of(config.output.path))
    with Progress("add the hardest", total=total, unit="images") as progress:
        for table in cluster.map(AddingWorker.add, tasks, make_worker=make_worker):
            progress.advance(table["num_rows"][0].as_py())
    return {task.part_path: task.path for task in tasks}


class _Candidates(NamedTuple):
    """Usable training negatives of some parts, in order."""

    part_N: NDArray[np.int64]  # number of the part
    row_N: NDArray[np.int64]  # position in it
    hash_N: NDArray[np.bytes_]  # content hash
    fold_N: NDArray[np.int64]
    similarity_N: NDArray[np.float32]
    probability_N: NDArray[np.float64]  # of being drawn
    is_drawn_N: NDArray[np.bool_]
    is_unknown_N: NDArray[np.bool_]  # nobody has verified that it shows no target

    def hashes(self, chosen: NDArray[np.int64]) -> list[str]:
        return [each.decode() for each in self.hash_N[chosen].tolist()]


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
                path=f"{part_stem(part, part.part)}.{name}.parquet",
            )

    def _read_or_choose(self) -> list[str]:
        """Content hashes of the hardest; chosen once."""
        first = self.rounds[0]
        path = f"{round_folder(first.source, first.number)}/hardest.parquet"
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
        """As many as are drawn, in expectation, and what was certain with a smaller budget."""
        found = self._candidates()
        if not len(found.part_N) or found.probability_N.min() == 1:
            return set()  # all of them are drawn
        is_kept_N = np.isin(found.hash_N, self._certain_before())
        logit_N = self._judge(found)
        logit_N[is_kept_N] = -np.inf  # they are taken anyway
        taken = set(found.hashes(np.flatnonzero(is_kept_N)))
        for fold in range(_NUM_FOLDS):
            own = np.flatnonzero(found.fold_N == fold)
            probability_N = found.probability_N[own]
            wanted = float(probability_N.sum() - (1 - probability_N[is_kept_N[own]]).sum())
            deep = own[deep_candidates(logit_N[own], probability_N, wanted)]
            if len(deep):
                taken |= take_spread(
                    found.hashes(deep),
                    self._embeddings_at(found, deep),
                    probability_K=found.probability_N[deep],
                    wanted=wanted,
                )
        return taken

    def _judge(self, found: _Candidates) -> NDArray[np.float64]:
        """logit_N by the head that has not seen their fold; -inf of what may show a target.

        Where there is too little to fit a head, similarity takes its place.
        """
        heads = self._fit(found)
        guards_F = np.array([np.inf if head is None else head.guard for head in heads])
        logit_N = found.similarity_N.astype(np.float64)
        for number in range(len(self._parts)):
            own = np.flatnonzero(found.part_N == number)
            if not len(own):
                continue
            embedding_ND, fold_N = self._embeddings_at(found, own), found.fold_N[own]
            for fold, head in enumerate(heads):
                if head is not None:
                    here_N = fold_N == fold
                    logit_N[own[here_N]] = head.logits(embedding_ND[here_N])
        if self.config.selection.quarantine == "auto":
            logit_N[found.is_unknown_N & (logit_N >= guards_F[found.fold_N])] = -np.inf
        return logit_N

    def _fit(self, found: _Candidates) -> list[FirstHead | None]:
        drawn = np.flatnonzero(found.is_drawn_N)
        chance = np.array([unit_hash("fitted", each) for each in found.hashes(drawn)])
        drawn = np.sort(drawn[np.argsort(chance, kind="stable")[:_MAX_FITTED]])
        bank = read_bank(self._dataset, num_neighbors=self.config.selection.num_neighbors)
        return fit_first_heads(
            bank.embedding_KD,
            self._embeddings_at(found, drawn),
            found.probability_N[drawn],
            positive_fold_P=fold_of(bank.content_hashes, _NUM_FOLDS),
            negative_fold_N=found.fold_N[drawn],
            num_folds=_NUM_FOLDS,
        )

    def _candidates(self) -> _Candidates:
        of_parts = []
        for number, rows in enumerate(self._rows()):
            is_candidate = _is_candidate(rows)
            own = rows.filter(is_candidate)
            hashes = own["content_hash"].to_pylist()
            of_parts.append(
                _Candidates(
                    part_N=np.full(own.num_rows, number),
                    row_N=np.flatnonzero(is_candidate.to_numpy()),
                    hash_N=np.array(hashes, "S64"),
                    fold_N=fold_of(hashes, _NUM_FOLDS),
                    similarity_N=own["similarity"].to_numpy(),
                    probability_N=own["inclusion_probability"].to_numpy().astype(np.float64),
                    is_drawn_N=own["selected"].to_numpy(),
                    is_unknown_N=pc.equal(own["label_state"], "unknown").to_numpy(),
                )
            )
        return _Candidates(*map(np.concatenate, zip(*of_parts, strict=True)))

    def _certain_before(self) -> NDArray[np.bytes_]:
        """Content hashes of what a smaller budget selected for certain."""
        found: list[str] = []
        for table in (table for each in self.rounds for table in each.planned.plan.smaller):
            if storage.exists(self._dataset.uri(table.path)):  # else it was purged
                rows = self._dataset.read_table(table.path, _COLUMNS)
                rows = rows.filter(pc.and_(_is_candidate(rows), rows["selected"]))
                is_certain = pc.equal(rows["inclusion_probability"], 1)
                found += rows.filter(is_certain)["content_hash"].to_pylist()
        return np.array(found, "S64")

    def _embeddings_at(self, found: _Candidates, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """embedding_ND of the candidates at these positions, in their order."""
        part_N = found.part_N[chosen]
        numbers = np.unique(part_N)
        embedding_ND = np.empty((0, 0), np.float32)
        read = storage.map_ahead(
            lambda number: self._read_embeddings(self._parts[number][1]), numbers
        )
        for number, table in zip(numbers, read, strict=True):
            here = np.flatnonzero(part_N == number)
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
