"""The candidates of a data set, a ledger at a time, with what a trained model says of each.

Finds the embeddings that are kept or has them made, has all scored, and joins what comes back with
the ledgers, whose order is that of the source. Holds one ledger at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import chunked
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.metadata import SourceRecord, TableRecord
from pipeline.dataset.schema import Partition
from pipeline.dataset.shards import LEDGER_COLUMNS
from pipeline.errors import InfinegError
from pipeline.mine.worker import SCORED, EmbedTask, ScoreTask
from pipeline.sources import Source
from pipeline.sources.survey import take_partitions

# So many candidates a task: a second of work or more.
_FILES_PER_TASK = 16
_SAMPLES_PER_TASK = 512


@dataclass(frozen=True)
class MinedRound:
    """One round of a source: the rows that one ledger file lists."""

    source: str
    number: int  # 1 for the source's first
    ledger: TableRecord
    hashes: TableRecord
    folder: str  # of mining's own files

    @property
    def name(self) -> str:
        return f"{self.source}/{self.number:06d}"

    def path(self, kind: str, number: int | str) -> str:
        """Of a file of work in progress."""
        shown = number if isinstance(number, str) else f"{number:06d}"
        return f"{self.folder}/{kind}/{self.name}/{shown}.parquet"


class KeptFile(NamedTuple):
    """Embeddings of consecutive candidates."""

    path: str
    num_rows: int


def rounds_of(source: SourceRecord, folder: str) -> list[MinedRound]:
    return [
        MinedRound(source.name, number, ledger, hashes, folder)
        for number, (ledger, hashes) in enumerate(
            zip(source.ledger, source.hashes, strict=True), start=1
        )
    ]


def find_embeddings(root: str, round_: MinedRound) -> list[KeptFile] | None:
    """The files that hold the embeddings of exactly these candidates, in order; None without.

    Those of the build, or those that mining has made.
    """
    hashes = manifest.read_table(root, round_.ledger.path, ["content_hash"])["content_hash"]
    for folder in (f"embeddings/{round_.name}", f"{round_.folder}/embeddings/{round_.name}"):
        kept, position = [], 0
        names = storage.list_files(storage.join(root, folder), (".parquet",))
        paths = [f"{folder}/{name}" for name in names]
        tables = manifest.read_tables(root, paths, ["content_hash"])
        for path, table in zip(paths, tables, strict=True):
            found = table["content_hash"]
            if position == len(hashes):
                break  # of a plan that is no more
            if not found.equals(hashes.slice(position, len(found))):
                position = -1
                break
            kept.append(KeptFile(path, len(found)))
            position += len(found)
        if position == len(hashes):
            return kept
    return None


class Locator:
    """Finds partitions of a source by name, in its order: one pass over the listing for all."""

    def __init__(self, root: str, source: Source, name: str) -> None:
        plan = manifest.read_plan(root, name)
        assert plan is not None, f"no plan is committed for {name}"
        self._name = name
        self._listing = take_partitions(source, plan.num_partitions, plan.num_listed)

    def find(self, partition_id: str) -> Partition:
        for partition in self._listing:
            if partition.id == partition_id:
                return partition
        raise InfinegError(
            f"source {self._name!r}: partition {partition_id} is no longer listed. Restore the "
            "source, or mine without it (--source)"
        )


def embed_tasks(root: str, round_: MinedRound, locator: Locator) -> Iterator[EmbedTask]:
    for number, (partitions, num_samples) in enumerate(_spans(root, round_, locator)):
        stem = round_.path("embeddings", number).removesuffix(".parquet")
        yield EmbedTask(
            source=round_.source, partitions=partitions, num_samples=num_samples, stem=stem
        )


def score_tasks(round_: MinedRound, kept: Sequence[KeptFile]) -> Iterator[ScoreTask]:
    """For a model that reads embeddings."""
    for number, files in enumerate(chunked(kept, _FILES_PER_TASK)):
        paths = tuple(file.path for file in files)
        path = round_.path("scored", number)
        yield ScoreTask(source=round_.source, path=path, embeddings=paths)


def look_tasks(root: str, round_: MinedRound, locator: Locator) -> Iterator[ScoreTask]:
    """For a model that reads pixels."""
    for number, (partitions, _) in enumerate(_spans(root, round_, locator)):
        path = round_.path("scored", number)
        yield ScoreTask(source=round_.source, path=path, partitions=partitions)


def _spans(
    root: str, round_: MinedRound, locator: Locator
) -> Iterator[tuple[tuple[Partition, ...], int]]:
    """The partitions of a round, some at a time, with their number of samples."""
    span: list[Partition] = []
    num_samples = 0
    names = manifest.read_table(root, round_.ledger.path, ["partition"])["partition"]
    runs = pc.run_end_encode(names.combine_chunks())
    ends = runs.run_ends.to_pylist()
    for name, start, stop in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False):
        span.append(locator.find(name))
        num_samples += stop - start
        if num_samples >= _SAMPLES_PER_TASK:
            yield tuple(span), num_samples
            span, num_samples = [], 0
    if span:
        yield tuple(span), num_samples


class Scored(NamedTuple):
    """Ledger rows, and what the model says of each (nan of what is no image)."""

    rows: pa.Table
    log_odds_N: NDArray[np.float32]
    margin_N: NDArray[np.float32]


def read_scored(root: str, round_: MinedRound) -> Scored:
    """Raises InfinegError where the candidates that were scored are not those of the ledger."""
    rows = manifest.read_table(root, round_.ledger.path, LEDGER_COLUMNS)
    folder = f"{round_.folder}/scored/{round_.name}"
    names = storage.list_files(storage.join(root, folder), (".parquet",))
    tables = manifest.read_tables(root, (f"{folder}/{name}" for name in names))
    said = pa.concat_tables([SCORED.empty_table(), *tables])
    if not said["content_hash"].equals(rows["content_hash"]):
        raise InfinegError(
            f"source {round_.source!r}: it is not what it was when the data set was built. Restore "
            "the source, or mine without it (--source)"
        )
    return Scored(rows, *(_with_nan(said[name]) for name in ("log_odds", "margin")))


def _with_nan(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(pc.fill_null(column, float("nan")).to_numpy(), np.float32)
