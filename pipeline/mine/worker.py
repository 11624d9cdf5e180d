"""A worker of mining: embeds and scores candidates, and reads chosen ones again.

Knows nothing of Ray, of other workers, or of how scores are used. Files of work in progress are in
`mining/<fingerprint>/` of the data set; a file that exists is complete and is not made again.
Shapes: N rows.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from more_itertools import chunked
from numpy.typing import NDArray

from pipeline import storage
from pipeline.cluster.process import Task
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.embedding_cache import KeptEmbeddings
from pipeline.dataset.metadata import TakenDown
from pipeline.dataset.schema import (
    Partition,
    Positioned,
    embedding_matrix,
    row_schema,
    with_columns,
)
from pipeline.dataset.shards import LEDGER_COLUMNS
from pipeline.encoders.preprocessing import crop_pixels
from pipeline.encoders.runtimes import PreparedEncoder
from pipeline.mine.scorer import OpenScorer, Scorer
from pipeline.sources import Source, read_partitions
from pipeline.sources.rereading import changed_source
from pipeline.worker.careful import open_source_of
from pipeline.worker.embedder import Embedder
from pipeline.worker.reread import read_images, read_kept
from pipeline.worker.span import SAMPLES_PER_PART
from pipeline.worker.steps.decode import decode_batch
from pipeline.worker.steps.read import SourceDefaults, read_rows

SCORED = pa.schema(
    [("content_hash", pa.string()), ("log_odds", pa.float32()), ("margin", pa.float32())]
)
_ROWS_PER_PASS = 512  # through the head; through a detector, `encoder.batch_size`


class EmbedTask(Task, frozen=True):
    """Consecutive partitions whose embeddings are not kept, and their number of samples."""

    source: str
    partitions: tuple[Partition, ...]
    num_samples: int
    stem: str  # of the paths to write, without the number of the part


class ScoreTask(Task, frozen=True):
    """Candidates, as files of embeddings or, for a model that reads pixels, as partitions."""

    source: str
    path: str  # to write
    embeddings: tuple[str, ...] = ()
    partitions: tuple[Partition, ...] = ()


class FetchTask(Task, frozen=True):
    """Decided rows of a ledger whose images are wanted.

    rows_path: a table of `LEDGER_COLUMNS`, embedding_path and embedding_row, in the order of
    `partitions`, which they come from.
    """

    source: str
    path: str  # to write
    rows_path: str
    num_rows: int
    partitions: tuple[Partition, ...]


class MineWorker:
    """Holds what is costly to make: the model and, if embeddings are missing, the encoder."""

    def __init__(
        self,
        config: Config,
        scorer: Scorer,
        encoder: PreparedEncoder | None,
        taken_down: TakenDown,
        fence: storage.Fence | None = None,
    ) -> None:
        """fence: of the lease under which the driver mines, for this worker to ask."""
        storage.configure(config.storage)
        storage.fence_worker(config.output.path, fence)
        self._config = config
        self._dataset = Dataset(config.output.path)
        self._scorer = scorer
        self._encoder = encoder
        self._taken_down = taken_down
        self._kept = KeptEmbeddings(config.output.path)
        self._entries = {entry.name: entry for entry in config.entries}

    def embed(self, task: EmbedTask) -> Iterator[pa.Table]:
        """Embeds partitions, in parts as a build does."""
        paths = [
            f"{task.stem}-{part:06d}.parquet"
            for part in range(-(-task.num_samples // SAMPLES_PER_PART))
        ]
        if not all(storage.exists(self._dataset.uri(path)) for path in paths):
            entry = self._entries[task.source]
            tables = (
                self._embedder.embed(iter(samples), entry)
                for samples in chunked(self._read(task), SAMPLES_PER_PART)
            )
            # A source with more or fewer samples than the ledger has changed since.
            for path, rows in _zip_same(paths, tables, task):
                self._write(path, rows.select(["content_hash", "reject_reason", "embedding"]))
        yield pa.table({"num_rows": [task.num_samples]})

    def score(self, task: ScoreTask) -> Iterator[pa.Table]:
        """Writes content_hash, log_odds and margin of each candidate; null if it is unusable."""
        if not storage.exists(self._dataset.uri(task.path)):
            tables = self._score_files(task) if task.embeddings else self._score_images(task)
            self._write(task.path, pa.concat_tables([SCORED.empty_table(), *tables]))
        with storage.open_read(self._dataset.uri(task.path)) as file:
            num_rows = pq.read_metadata(file).num_rows
        yield pa.table({"num_rows": [num_rows]})

    def fetch(self, task: FetchTask) -> Iterator[pa.Table]:
        """Writes the rows with image and embedding, as a build would have."""
        if not storage.exists(self._dataset.uri(task.path)):
            rows = self._dataset.read_table(task.rows_path)
            settings = self._config.output.image_settings
            images = read_images(self._open(task), task.partitions, rows, settings)
            embeddings = self._read_embeddings(rows, images)
            schema = row_schema(embeddings.type.list_size)
            rows = rows.select(list(LEDGER_COLUMNS))
            rows = with_columns(rows, image=images, embedding=embeddings)
            self._write(task.path, rows.select(schema.names).cast(schema))
        yield pa.table({"num_rows": [task.num_rows]})

    def _score_files(self, task: ScoreTask) -> Iterator[pa.Table]:
        for path in task.embeddings:
            rows = self._kept.read(path, ["content_hash", "embedding"])
            usable = rows["embedding"].is_valid()
            yield self._scored(rows, usable, embedding_matrix(rows.filter(usable)), _ROWS_PER_PASS)

    def _score_images(self, task: ScoreTask) -> Iterator[pa.Table]:
        defaults = SourceDefaults.of(self._config, self._entries[task.source])
        for read in read_rows(self._read(task), defaults, self._taken_down):
            rows = decode_batch(read, self._config.output.image_settings)
            usable = rows["reject_reason"].is_null()
            pixels = [
                crop_pixels(image.as_py(), self._scorer.preprocessing)
                for image in rows.filter(usable)["image"]
            ]
            size = self._scorer.preprocessing.image_size
            pixels_NCHW = np.stack(pixels) if pixels else np.empty((0, 3, size, size), np.uint8)
            yield self._scored(rows, usable, pixels_NCHW, self._config.encoder.batch_size)

    def _scored(
        self, rows: pa.Table, usable: pa.ChunkedArray, inputs_N: NDArray[Any], batch_size: int
    ) -> pa.Table:
        hashes = rows.filter(usable)["content_hash"].to_pylist()
        scored_N2 = self._model.score(inputs_N, hashes, batch_size)
        usable_N = usable.to_numpy()
        padded_N2 = np.zeros((rows.num_rows, 2), np.float32)
        padded_N2[usable_N] = scored_N2
        columns = {
            name: pa.array(padded_N2[:, column], mask=~usable_N)
            for column, name in enumerate(("log_odds", "margin"))
        }
        return pa.table({"content_hash": rows["content_hash"], **columns})

    def _read_embeddings(self, rows: pa.Table, images: pa.Array) -> pa.Array:
        """The kept embeddings, or new ones where they are missing."""
        if not rows["embedding_path"].null_count:
            return read_kept(self._dataset.root, rows)
        decoded = pa.table({"image": images, "reject_reason": pa.nulls(len(images), pa.string())})
        return self._embedder.embed_decoded(decoded)["embedding"].combine_chunks()

    def _read(self, task: EmbedTask | ScoreTask) -> Iterator[Positioned]:
        return read_partitions(self._open(task), task.partitions, 0)

    def _open(self, task: EmbedTask | ScoreTask | FetchTask) -> Source:
        return open_source_of(task, self._entries[task.source], self._config)

    def _write(self, path: str, rows: pa.Table) -> None:
        with storage.open_atomic(self._dataset.uri(path)) as file:
            pq.write_table(rows.combine_chunks(), file, compression="none")

    @functools.cached_property
    def _model(self) -> OpenScorer:
        return OpenScorer(self._scorer)

    @functools.cached_property
    def _embedder(self) -> Embedder:
        assert self._encoder is not None, "no encoder: all embeddings should be kept"
        return Embedder(self._config, self._encoder, self._taken_down)


def _zip_same(
    paths: list[str], tables: Iterator[pa.Table], task: EmbedTask
) -> Iterator[tuple[str, pa.Table]]:
    num_samples = 0
    for number, rows in enumerate(tables):
        num_samples += rows.num_rows
        if number < len(paths):
            yield paths[number], rows
    if num_samples != task.num_samples:
        raise changed_source(task.source, f"{task.partitions[0].id} or a partition after it")
