"""The candidates of a data set, round by round, and their scores by a trained model.

Finds the embeddings that are kept, makes the tasks of embedding and scoring, and joins the scores
with the ledger, whose order is that of the source. Holds one ledger at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import chunked
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import SourceRecord, TableRecord
from pipeline.dataset.schema import Partition
from pipeline.dataset.shards import LEDGER_COLUMNS
from pipeline.dataset.taken_down import same_pictures
from pipeline.errors import InfinegError
from pipeline.mine.worker import SCORED, EmbedTask, ScoreTask
from pipeline.sources import open_entry
from pipeline.sources.survey import take_partitions

# Candidates per task: a second of work or more.
_FILES_PER_TASK = 16
_SAMPLES_PER_TASK = 512


@dataclass(frozen=True)
class MinedRound:
    """One round of a source: the rows that one ledger file lists."""

    source: str
    number: int  # from 1
    ledger: TableRecord
    hashes: TableRecord
    folder: str  # of the work in progress

    @property
    def name(self) -> str:
        return f"{self.source}/{self.number:06d}"

    def path(self, kind: str, number: int) -> str:
        """Path of a file of work in progress."""
        return f"{self.folder}/{kind}/{self.name}/{number:06d}.parquet"


def rounds_of(source: SourceRecord, folder: str) -> list[MinedRound]:
    return [
        MinedRound(source.name, number, ledger, hashes, folder)
        for number, (ledger, hashes) in enumerate(
            zip(source.ledger, source.hashes, strict=True), start=1
        )
    ]


class KeptFile(NamedTuple):
    """A file with the embeddings of consecutive candidates."""

    path: str
    num_rows: int


# The files of each round, by its name; None where embeddings are missing.
Embeddings = Mapping[str, list[KeptFile] | None]


def find_embeddings(dataset: Dataset, round_: MinedRound) -> list[KeptFile] | None:
    """The files with the embeddings of exactly the round's candidates, in order, or None.

    They were kept by the build or made by mining.
    """
    hashes = dataset.read_table(round_.ledger.path, ["content_hash"])["content_hash"]
    for folder in (f"embeddings/{round_.name}", f"{round_.folder}/embeddings/{round_.name}"):
        kept, position = [], 0
        names = storage.list_files(dataset.uri(folder), (".parquet",))
        paths = [f"{folder}/{name}" for name in names]
        tables = dataset.read_tables(paths, ["content_hash"])
        for path, table in zip(paths, tables, strict=True):
            found = table["content_hash"]
            if position == len(hashes):
                break  # the rest was left by a plan that was replaced
            if not same_pictures(found, hashes.slice(position, len(found))):
                position = -1
                break
            kept.append(KeptFile(path, len(found)))
            position += len(found)
        if position == len(hashes):
            return kept
    return None


@dataclass(frozen=True)
class Listing:
    """The planned partitions of a source. They are found in its order, in one pass for all."""

    source: str
    partitions: Iterator[Partition]

    def find(self, partition_id: str) -> Partition:
        for partition in self.partitions:
            if partition.id == partition_id:
                return partition
        raise InfinegError(
            f"source {self.source!r}: partition {partition_id} is no longer listed. Restore the "
            "source, or mine without it (--source)"
        )


def with_listings(
    config: Config, rounds: Sequence[MinedRound]
) -> Iterator[tuple[MinedRound, Listing]]:
    """Each round with the listing of its source, which is opened once per source."""
    dataset = Dataset(config.output.path)
    for name, of_source in groupby(rounds, key=lambda round_: round_.source):
        plan = dataset.read_plan(name)
        assert plan is not None, f"no plan is committed for {name}"
        entry = next(entry for entry in config.entries if entry.name == name)
        source = open_entry(entry, config.role_of(entry))
        listing = Listing(name, take_partitions(source, plan.num_partitions, plan.num_listed))
        for round_ in of_source:
            yield round_, listing


def embed_tasks(config: Config, rounds: Sequence[MinedRound]) -> Iterator[EmbedTask]:
    for round_, listing in with_listings(config, rounds):
        for number, (partitions, num_samples) in enumerate(_spans(config, round_, listing)):
            stem = round_.path("embeddings", number).removesuffix(".parquet")
            yield EmbedTask(
                source=round_.source, partitions=partitions, num_samples=num_samples, stem=stem
            )


def score_embedding_tasks(
    rounds: Sequence[MinedRound], embeddings: Embeddings
) -> Iterator[ScoreTask]:
    """For a model that reads embeddings."""
    for round_ in rounds:
        for number, files in enumerate(chunked(embeddings[round_.name] or (), _FILES_PER_TASK)):
            paths = tuple(file.path for file in files)
            path = round_.path("scored", number)
            yield ScoreTask(source=round_.source, path=path, embeddings=paths)


def score_image_tasks(config: Config, rounds: Sequence[MinedRound]) -> Iterator[ScoreTask]:
    """For a model that reads pixels."""
    for round_, listing in with_listings(config, rounds):
        for number, (partitions, _) in enumerate(_spans(config, round_, listing)):
            path = round_.path("scored", number)
            yield ScoreTask(source=round_.source, path=path, partitions=partitions)


def _spans(
    config: Config, round_: MinedRound, listing: Listing
) -> Iterator[tuple[tuple[Partition, ...], int]]:
    """Consecutive partitions of a round, one tuple per task, with their number of samples."""
    span: list[Partition] = []
    num_samples = 0
    dataset = Dataset(config.output.path)
    names = dataset.read_table(round_.ledger.path, ["partition"])["partition"]
    runs = pc.run_end_encode(names.combine_chunks())
    ends = runs.run_ends.to_pylist()
    for name, start, stop in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False):
        span.append(listing.find(name))
        num_samples += stop - start
        if num_samples >= _SAMPLES_PER_TASK:
            yield tuple(span), num_samples
            span, num_samples = [], 0
    if span:
        yield tuple(span), num_samples


class Scored(NamedTuple):
    """Ledger rows and their scores, nan where there is no usable image."""

    rows: pa.Table
    log_odds_N: NDArray[np.float32]
    margin_N: NDArray[np.float32]


def read_scored(dataset: Dataset, round_: MinedRound) -> Scored:
    """Raises InfinegError if the scored candidates are not those of the ledger."""
    ledger = round_.ledger
    rows = dataset.read_table(ledger.path, LEDGER_COLUMNS, sha256=ledger.sha256)
    folder = f"{round_.folder}/scored/{round_.name}"
    names = storage.list_files(dataset.uri(folder), (".parquet",))
    tables = dataset.read_tables(f"{folder}/{name}" for name in names)
    scored = pa.concat_tables([SCORED.empty_table(), *tables])
    if not same_pictures(scored["content_hash"], rows["content_hash"]):
        raise InfinegError(
            f"source {round_.source!r} has changed since the data set was built. Restore it, or "
            "mine without it (--source)"
        )
    columns = (pc.fill_null(scored[name], float("nan")) for name in ("log_odds", "margin"))
    return Scored(rows, *(np.asarray(column.to_numpy(), np.float32) for column in columns))
