"""Every row of a data set decided anew, and the list of the images that are wanted.

Goes over the ledgers three times: to see what may be chosen, to fit the scales, and to decide.
Holds one ledger at a time, and of what is selected the hashes and keys.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.metadata import Counts, TableRecord
from pipeline.dataset.schema import with_columns
from pipeline.dataset.shards import count_rows, refuse_rows
from pipeline.dataset.tables import PartRows, positions_by_group, write_decided, write_table
from pipeline.mine.candidates import KeptFile, Locator, MinedRound, read_scored
from pipeline.mine.shards import Change
from pipeline.mine.worker import FetchTask
from pipeline.selection.mining import (
    Decided,
    Eligible,
    decide,
    fit_log_scale,
    fold_of,
    judge,
    log_probability,
)

_ROWS_PER_FETCH = 1024  # 25 MB of images at 256 px


def write_eligible(root: str, round_: MinedRound, num_folds: int) -> NDArray[np.int64]:
    """Writes what the scales are fitted on, a file a fold; returns num_F, the rows of each."""
    scored = read_scored(root, round_)
    is_eligible_N = judge(scored.rows, scored.margin_N)[0]
    rows = scored.rows.filter(pa.array(is_eligible_N))
    fold_N = fold_of(rows["content_hash"].to_pylist(), num_folds)
    table = pa.table(
        {
            "log_p": log_probability(scored.log_odds_N[is_eligible_N]),
            "probability": rows["inclusion_probability"],
        }
    )
    for fold in range(num_folds):
        path = round_.path("eligible", fold)
        with storage.open_atomic(storage.join(root, path)) as file:
            pq.write_table(table.filter(pa.array(fold_N == fold)), file, compression="none")
    return np.bincount(fold_N, minlength=num_folds)


def fit_scales(
    root: str, rounds: Sequence[MinedRound], num_F: NDArray[np.int64], budget: float
) -> tuple[float, ...]:
    """log c of each fold. A fold's part of the budget is its part of the candidates.

    That part does not depend on what was drawn before, nor on what a model says.
    """

    def pieces(fold: int) -> Iterator[Eligible]:
        for round_ in rounds:
            table = manifest.read_table(root, round_.path("eligible", fold))
            log_p_N = table["log_p"].to_numpy()
            yield Eligible(log_p_N, table["probability"].to_numpy().astype(np.float64))

    shares = num_F / max(num_F.sum(), 1)
    return tuple(
        fit_log_scale(lambda fold=fold: pieces(fold), budget=budget * share)  # type: ignore[misc]
        for fold, share in enumerate(shares)
    )


@dataclass
class Tally:
    """What mining did to one source."""

    num_scored: int = 0  # training negatives that might be chosen, suspects left out
    num_expected: float = 0.0  # newly selected, before the draw and before duplicates
    num_selected: int = 0  # newly selected
    num_suspected: int = 0
    num_refused: int = 0  # drawn, but the same as another image


@dataclass
class ChosenRound:
    """A round decided anew: its files to be, and the work that is left for them."""

    round: MinedRound
    ledger: TableRecord
    hashes: TableRecord
    counts: Counts
    tasks: list[FetchTask] = field(default_factory=list)
    parts: list[PartRows] = field(default_factory=list)  # what the tasks write, in order

    @property
    def num_wanted(self) -> int:
        return sum(task.num_rows for task in self.tasks)


class Chooser:
    """Decides rounds one after the other, in the order of the data set."""

    def __init__(
        self,
        root: str,
        *,
        log_scales: Sequence[float],
        seed: int,
        seen: SeenImages,
        numbers: dict[str, int],
    ) -> None:
        self._root = root
        self._log_scales = log_scales
        self._seed = seed
        self._seen = seen
        self._numbers = numbers  # `next_numbers`
        self.tallies: dict[str, Tally] = {}
        self.changes: dict[str, Change] = {}  # of what was selected before, by key

    def choose(
        self, round_: MinedRound, kept: Sequence[KeptFile] | None, locator: Locator
    ) -> ChosenRound:
        """Writes the tables of a round, and what is to be fetched for it."""
        scored = read_scored(self._root, round_)
        decided = decide(
            scored.rows,
            log_odds_N=scored.log_odds_N,
            margin_N=scored.margin_N,
            log_scales=self._log_scales,
            seed=self._seed,
        )
        rows, is_wanted_N = self._refuse_duplicates(decided, round_.source)
        self._note_changes(scored.rows, rows)
        ledger, hashes = round_.ledger, round_.hashes
        if not rows.equals(scored.rows):
            ledger, hashes = write_decided(self._root, round_.source, rows, self._numbers)
        chosen = ChosenRound(round_, ledger, hashes, count_rows(rows))
        self._plan_fetches(chosen, rows, np.flatnonzero(is_wanted_N), kept, locator)
        return chosen

    def _refuse_duplicates(
        self, decided: Decided, source: str
    ) -> tuple[pa.Table, NDArray[np.bool_]]:
        """Rows without new ones that are duplicates; which images are wanted."""
        new = np.flatnonzero(decided.is_new_N)
        refused = self._seen.admit(decided.rows.take(pa.array(new)))
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
        locator: Locator,
    ) -> None:
        round_ = chosen.round
        partition = None
        for number, start in enumerate(range(0, len(wanted), _ROWS_PER_FETCH)):
            positions = wanted[start : start + _ROWS_PER_FETCH]
            of_task = _with_places(rows.take(pa.array(positions)), positions, kept)
            path = round_.path("wanted", number)
            write_table(self._root, path, of_task)
            partitions = []
            for name in dict.fromkeys(of_task["partition"].to_pylist()):
                if partition is None or partition.id != name:  # it may have begun before
                    partition = locator.find(name)
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
    """Rows at `positions` of a round, with where their embeddings are kept, null if nowhere."""
    paths: pa.Array = pa.nulls(len(positions), pa.string())
    places: pa.Array = pa.nulls(len(positions), pa.int64())
    if kept is not None:
        starts = np.array(list(itertools.accumulate((k.num_rows for k in kept), initial=0)))
        file_N = np.searchsorted(starts, positions, side="right") - 1
        paths = pa.array([kept[n].path for n in file_N], pa.string())
        places = pa.array(positions - starts[file_N], pa.int64())
    return with_columns(rows, embedding_path=paths, embedding_row=places)
