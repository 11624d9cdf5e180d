"""Decides every row of the mined sources anew, and lists the images to read for that.

Passes over the scores three times: to find the eligible rows, to fit the scales, and to decide.
Holds one ledger at a time, and the hashes and keys of selected rows.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.metadata import Counts, TableRecord
from pipeline.dataset.schema import with_columns
from pipeline.dataset.shards import count_rows, refuse_rows
from pipeline.dataset.tables import PartRows, positions_by_group, write_decided, write_table
from pipeline.mine.candidates import (
    Embeddings,
    KeptFile,
    Listing,
    MinedRound,
    read_scored,
    with_listings,
)
from pipeline.mine.shards import Change
from pipeline.mine.worker import FetchTask
from pipeline.selection import mining

_ROWS_PER_FETCH = 1024  # 25 MB of images at 256 px


def fit_scales(
    dataset: Dataset, rounds: Sequence[MinedRound], *, num_folds: int, budget: float
) -> tuple[float, ...]:
    """log c of each fold. A fold's share of the budget is its share of the candidates.

    That share depends neither on earlier draws nor on the scores.
    """
    num_F = np.sum([_write_eligible(dataset, round_, num_folds) for round_ in rounds], axis=0)

    def pieces(fold: int) -> Iterator[mining.Eligible]:
        for round_ in rounds:
            table = dataset.read_table(round_.path("eligible", fold))
            log_p_N = table["log_p"].to_numpy()
            yield mining.Eligible(log_p_N, table["probability"].to_numpy().astype(np.float64))

    shares = num_F / max(num_F.sum(), 1)
    return tuple(
        mining.fit_log_scale(functools.partial(pieces, fold), budget=budget * share)
        for fold, share in enumerate(shares)
    )


def _write_eligible(dataset: Dataset, round_: MinedRound, num_folds: int) -> NDArray[np.int64]:
    """Writes what the scales are fitted on, one file per fold; returns num_F, the rows in each."""
    scored = read_scored(dataset, round_)
    is_eligible_N = mining.judge(scored.rows, scored.margin_N)[0]
    rows = scored.rows.filter(pa.array(is_eligible_N))
    fold_N = mining.fold_of(rows["content_hash"].to_pylist(), num_folds)
    table = pa.table(
        {
            "log_p": mining.log_probability(scored.log_odds_N[is_eligible_N]),
            "probability": rows["inclusion_probability"],
        }
    )
    for fold in range(num_folds):
        with storage.open_atomic(dataset.uri(round_.path("eligible", fold))) as file:
            pq.write_table(table.filter(pa.array(fold_N == fold)), file, compression="none")
    return np.bincount(fold_N, minlength=num_folds)


@dataclass
class Tally:
    """What mining did to one source."""

    num_scored: int = 0  # eligible training negatives
    num_expected: float = 0.0  # newly selected, before the draw and before duplicates are refused
    num_selected: int = 0  # newly selected
    num_suspected: int = 0
    num_refused: int = 0  # drawn, but a duplicate

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        return cls(*map(sum, zip(*map(astuple, tallies), strict=True)))


@dataclass
class ChosenRound:
    """A round decided anew: its new tables, and the images that are still to be read."""

    round: MinedRound
    ledger: TableRecord
    hashes: TableRecord
    counts: Counts
    tasks: list[FetchTask] = field(default_factory=list)
    parts: list[PartRows] = field(default_factory=list)  # written by the tasks, in order


@dataclass
class Chooser:
    """Decides rounds one after the other, in the order of the data set."""

    config: Config
    log_scales: Sequence[float]
    seen: SeenImages  # in all shards; newly selected images are added
    numbers: dict[str, int]  # `next_numbers` of the generation; updated
    tallies: dict[str, Tally] = field(default_factory=dict)  # by source
    changes: dict[str, Change] = field(default_factory=dict)  # of earlier selected samples, by key

    def choose(self, rounds: Sequence[MinedRound], embeddings: Embeddings) -> Iterator[ChosenRound]:
        for round_, listing in with_listings(self.config, rounds):
            yield self._choose_round(round_, embeddings[round_.name], listing)

    def _choose_round(
        self, round_: MinedRound, kept: Sequence[KeptFile] | None, listing: Listing
    ) -> ChosenRound:
        """Writes the tables of a round, and the rows whose images are to be read."""
        dataset = Dataset(self.config.output.path)
        scored = read_scored(dataset, round_)
        decided = mining.decide(
            scored.rows,
            log_odds_N=scored.log_odds_N,
            margin_N=scored.margin_N,
            log_scales=self.log_scales,
            seed=self.config.selection.seed,
        )
        rows, is_wanted_N = self._refuse_duplicates(decided, round_.source)
        self._note_changes(scored.rows, rows)
        ledger, hashes = round_.ledger, round_.hashes
        if not rows.equals(scored.rows):
            ledger, hashes = write_decided(dataset, round_.source, rows, self.numbers)
        chosen = ChosenRound(round_, ledger, hashes, count_rows(rows))
        self._plan_fetches(chosen, rows, np.flatnonzero(is_wanted_N), kept, listing)
        return chosen

    def _refuse_duplicates(
        self, decided: mining.Decided, source: str
    ) -> tuple[pa.Table, NDArray[np.bool_]]:
        """Rejects new rows that are duplicates; returns all rows and which images are wanted."""
        new = np.flatnonzero(decided.is_new_N)
        refused = self.seen.admit(decided.rows.take(pa.array(new)))
        rows = refuse_rows(decided.rows, {int(new[n]): reason for n, reason in refused.items()})
        is_new_N = decided.is_new_N.copy()
        is_new_N[new[list(refused)]] = False
        tally = self.tallies.setdefault(source, Tally())
        tally.num_scored += decided.num_eligible
        tally.num_expected += decided.num_expected
        tally.num_selected += int(is_new_N.sum())
        tally.num_suspected += int(decided.is_suspect_N.sum())
        tally.num_refused += len(refused)
        return rows, is_new_N | decided.is_suspect_N

    def _note_changes(self, before: pa.Table, after: pa.Table) -> None:
        of_shards = after.filter(before["selected"])
        columns = ("key", "inclusion_probability", "reject_reason")
        for key, probability, reason in zip(
            *(of_shards[name].to_pylist() for name in columns), strict=True
        ):
            self.changes[key] = Change(probability, is_suspect=reason is not None)

    def _plan_fetches(
        self,
        chosen: ChosenRound,
        rows: pa.Table,
        wanted: NDArray[np.int64],
        kept: Sequence[KeptFile] | None,
        listing: Listing,
    ) -> None:
        round_ = chosen.round
        partition = None
        for number, start in enumerate(range(0, len(wanted), _ROWS_PER_FETCH)):
            positions = wanted[start : start + _ROWS_PER_FETCH]
            of_task = _with_places(rows.take(pa.array(positions)), positions, kept)
            path = round_.path("wanted", number)
            write_table(Dataset(self.config.output.path), path, of_task)
            partitions = []
            for name in dict.fromkeys(of_task["partition"].to_pylist()):
                if partition is None or partition.id != name:  # else it began in an earlier task
                    partition = listing.find(name)
                partitions.append(partition)
            task = FetchTask(
                source=round_.source,
                path=round_.path("images", number),
                rows_path=path,
                num_rows=len(positions),
                partitions=tuple(partitions),
            )
            chosen.tasks.append(task)
            chosen.parts.append(PartRows(task.path, positions_by_group(of_task)))


def _with_places(
    rows: pa.Table, positions: NDArray[np.int64], kept: Sequence[KeptFile] | None
) -> pa.Table:
    """Adds where the embeddings of rows at `positions` of a round are kept; null if nowhere."""
    paths: pa.Array = pa.nulls(len(positions), pa.string())
    places: pa.Array = pa.nulls(len(positions), pa.int64())
    if kept is not None:
        starts = np.array(list(itertools.accumulate((k.num_rows for k in kept), initial=0)))
        file_N = np.searchsorted(starts, positions, side="right") - 1
        paths = pa.array([kept[n].path for n in file_N], pa.string())
        places = pa.array(positions - starts[file_N], pa.int64())
    return with_columns(rows, embedding_path=paths, embedding_row=places)
