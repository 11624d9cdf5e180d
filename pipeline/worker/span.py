"""Makes the parts of one span of partitions: read -> decode -> embed -> score -> select -> write.

Runs inside a worker and knows nothing of Ray. The whole chain stays in one process, so that
decoded pixels never travel; only a small record leaves it.
"""

import functools
import itertools
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from more_itertools import chunked, ilen, peekable, side_effect

from pipeline import storage
from pipeline.cluster.process import Task
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.dataset import Dataset, part_stem
from pipeline.dataset.embedding_cache import (
    KEPT,
    KeptEmbeddings,
    attach_embeddings,
    embeddings_beside,
    embeddings_path,
    write_embeddings,
)
from pipeline.dataset.keys import short_hash
from pipeline.dataset.metadata import Counts, PartRecord, TakenDown
from pipeline.dataset.schema import Partition, Positioned, row_schema, with_columns
from pipeline.dataset.seen_labels import SeenLabels, count_labels
from pipeline.dataset.shards import count_rows, output_groups, write_part
from pipeline.encoders.runtimes import PreparedEncoder
from pipeline.selection.reference import ReferenceBank, read_bank
from pipeline.selection.rule import SelectionRule, load_rule
from pipeline.sources import Source, left_out_labels, read_partitions
from pipeline.telemetry.stopwatch import Stopwatch
from pipeline.worker.careful import open_source_of
from pipeline.worker.embedder import Embedder
from pipeline.worker.rejects import check_rejects
from pipeline.worker.steps.score import score_batch
from pipeline.worker.steps.select import select_batch

# A crash costs at most one part. Part of the format: images are embedded part by part, and the
# last bit of an embedding may depend on its batch.
SAMPLES_PER_PART = 512
_SOURCE, _LEFT_OUT = b"source", b"left_out"  # in the metadata of a table
_PILOT_COLUMNS = (
    "source", "partition", "label", "label_state", "stratum", "similarity", "doubt",
    "reject_reason", "read_bytes", "size_bytes", "seconds", "partition_size",
)  # fmt: skip


class ReadTask(Task, frozen=True):
    """Consecutive partitions of one source to read as one stream; `limit` bounds the samples."""

    source: str
    partitions: tuple[Partition, ...]
    round: int = 1
    span: int = 0  # number in the round
    limit: int | None = None
    num_counted: int = 0  # samples to count after the limit, to see whether the end is near

    @property
    def span_id(self) -> str:
        return short_hash("\n".join(partition.id for partition in self.partitions))

    @property
    def num_samples(self) -> int:
        """0 if the source does not say."""
        return sum(partition.num_samples or 0 for partition in self.partitions)


class SpanWorker:
    """Holds what is costly to open: the encoder and, once it is written, the reference bank."""

    def __init__(
        self,
        config: Config,
        encoder: PreparedEncoder,
        taken_down: TakenDown,
        fence: storage.Fence | None = None,
    ) -> None:
        """fence: of the lease under which the driver builds, for this worker to ask."""
        storage.configure(config.storage)
        storage.fence_worker(config.output.path, fence)
        self._config = config
        self._embedding_dim = encoder.embedding_dim
        self._embedder = Embedder(config, encoder, taken_down)
        self._dataset = Dataset(config.output.path)
        self._entries = {entry.name: entry for entry in config.entries}
        self._rules: dict[str, SelectionRule] = {}
        given = config.build.embeddings_from
        self._given_embeddings = None if given is None else KeptEmbeddings(given)

    @property
    def stopwatch(self) -> Stopwatch:
        """Seconds of read, decode, embed, select and write."""
        return self._embedder.stopwatch

    def embed(self, task: ReadTask) -> Iterator[pa.Table]:
        """Rows with embeddings, from which the reference bank is made.

        If the source declares labels, a last table has no rows, and those left out (`seen_in`).
        """
        entry = self._entries[task.source]
        source = self._open(task)
        for samples in chunked(read_partitions(source, task.partitions, 0), SAMPLES_PER_PART):
            yield self._embedder.embed(samples, entry).drop_columns(["image"])
        if (left_out := left_out_labels(source)) is not None:
            rows = self._embedder.embed([], entry).drop_columns(["image"])
            labels = {_SOURCE: task.source, _LEFT_OUT: left_out.model_dump_json()}
            yield rows.replace_schema_metadata(labels)

    def score(self, task: ReadTask) -> Iterator[pa.Table]:
        """One table for the pilot: a row per sample, with sizes and the mean seconds per sample.

        `partition_size` is null unless the end was reached.
        """
        began = time.monotonic()
        samples = read_partitions(self._open(task), task.partitions, 0)
        read_bytes: list[int] = []
        read = side_effect(
            lambda each: read_bytes.append(len(each.sample.image)),
            itertools.islice(samples, task.limit),
        )
        rows = self._embedder.embed(read, self._entries[task.source])
        rows = score_batch(rows, self._bank)
        seconds = (time.monotonic() - began) / max(rows.num_rows, 1)
        num_more = ilen(itertools.islice(samples, task.num_counted))
        size = rows.num_rows + num_more if num_more < task.num_counted else None
        sizes = [len(image.as_buffer()) if image.is_valid else 0 for image in rows["image"]]
        rows = with_columns(
            rows,
            read_bytes=pa.array(read_bytes, pa.int64()),
            size_bytes=pa.array(sizes, pa.int64()),
            seconds=pa.array([seconds] * rows.num_rows, pa.float64()),
            partition_size=pa.array([size] * rows.num_rows, pa.int64()),
        )
        yield rows.select(_PILOT_COLUMNS)

    def build(self, task: ReadTask) -> Iterator[tuple[PartRecord, bool]]:
        """Commits the parts of a span that are not committed yet.

        Yields every part with whether it is new: a task that Ray runs again has to yield what it
        yielded before. Raises TooManyRejects before it commits the part that exceeds the limit.
        """
        counts: list[Counts] = []
        while record := self._dataset.read_part(task, len(counts)):
            yield record, False
            counts.append(record.counts)
            if record.is_last:
                return
        source = self._open(task)
        start = sum(each.read for each in counts)
        samples = peekable(read_partitions(source, task.partitions, start))
        is_last = False
        while not is_last:
            part = len(counts)
            taken = itertools.islice(samples, SAMPLES_PER_PART)
            rows, embeddings_sha256 = self._decide(taken, task, part)
            is_last = not samples
            counts.append(count_rows(rows))
            check_rejects(self._entries[task.source], task.partitions, counts, rows)
            with self.stopwatch.stage("write"):
                record = write_part(
                    self._dataset,
                    rows,
                    task,
                    part=part,
                    is_last=is_last,
                    left_out=left_out_labels(source),
                    embeddings_sha256=embeddings_sha256,
                )
            yield record, True

    def _open(self, task: ReadTask) -> Source:
        return open_source_of(task, self._entries[task.source], self._config)

    def _decide(
        self, samples: Iterator[Positioned], task: ReadTask, part: int
    ) -> tuple[pa.Table, str | None]:
        """Read, decode, embed, score, select: the rows of one part, as `row_schema`.

        Returns also the sha256 of the file of their embeddings, if they are kept.

        Embeddings of another data set replace decode and embed: then only images that are kept are
        decoded, at the end.
        """
        entry = self._entries[task.source]
        stem = part_stem(task, part)
        embedded = self._read_embeddings(stem)
        if embedded is None:
            embedded = self._embedder.embed(samples, entry)
            rows = self._select(embedded, entry)
        else:
            kept, selected = [], []
            for table in _attach_each(self._embedder.read(samples, entry), embedded):
                kept.append(table.select(KEPT))
                selected.append(self._decode_kept(self._select(table, entry)))
            embedded, rows = pa.concat_tables(kept), pa.concat_tables(selected)
        sha256 = None
        if self._config.build.keep_embeddings:
            sha256 = write_embeddings(self._dataset.root, embeddings_path(stem), embedded)
        elif self._config.adds_hardest(entry):
            write_embeddings(self._dataset.root, embeddings_beside(stem), embedded)
        schema = row_schema(self._embedding_dim)
        return rows.select(schema.names).cast(schema), sha256

    def _read_embeddings(self, stem: str) -> pa.Table | None:
        return None if self._given_embeddings is None else self._given_embeddings.read_part(stem)

    def _select(self, embedded: pa.Table, entry: SourceEntry) -> pa.Table:
        """Score, select."""
        with self.stopwatch.stage("select"):
            rows = score_batch(embedded, self._bank)
            return select_batch(rows, self._rule(entry.name), self._bank.positives)

    def _decode_kept(self, rows: pa.Table) -> pa.Table:
        """Decodes the images that go into a shard or into quarantine and removes the others."""
        kept = np.array([bool(group) for group in output_groups(rows)], bool)
        read = rows.filter(pa.array(kept)).select(["image", "rotation"])
        read = read.append_column("reject_reason", pa.nulls(read.num_rows, pa.string()))
        decoded = iter(self._embedder.decode(read)["image"])
        images = [next(decoded).as_py() if is_kept else None for is_kept in kept]
        return with_columns(rows, image=pa.array(images, pa.large_binary()))

    @functools.cached_property
    def _bank(self) -> ReferenceBank:
        return read_bank(self._dataset, num_neighbors=self._config.selection.num_neighbors)

    def _rule(self, source: str) -> SelectionRule:
        if source not in self._rules:
            self._rules[source] = load_rule(self._dataset, source, self._config.selection)
        return self._rules[source]


def seen_in(rows: pa.Table) -> tuple[str, SeenLabels]:
    """The source of a table of `SpanWorker.embed`, and its labels: of rows, or those left out."""
    labels = rows.schema.metadata or {}
    if _LEFT_OUT in labels:
        return labels[_SOURCE].decode(), SeenLabels.model_validate_json(labels[_LEFT_OUT])
    return rows["source"][0].as_py(), count_labels(rows)


def _attach_each(tables: Iterator[pa.Table], embedded: pa.Table) -> Iterator[pa.Table]:
    """`attach_embeddings` for tables that together are the rows of `embedded`."""
    start = 0
    for rows in tables:
        # The last table is empty: whatever is left then, the source has no more.
        length = rows.num_rows or None
        yield attach_embeddings(rows, embedded.slice(start, length))
        start += rows.num_rows
