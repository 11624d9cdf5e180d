"""Makes the parts of one span of partitions: read -> decode -> embed -> score -> select -> write.

Runs inside a worker and knows nothing of Ray. The whole chain stays in one process, so that
decoded pixels never travel; only a small record leaves it.
"""

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from pipeline.pool import PooledPart
from pipeline.selection.reference import ReferenceBank, read_bank
from pipeline.selection.rule import SelectionRule, load_rule
from pipeline.sources import Source, left_out_labels, read_partitions
from pipeline.telemetry.stopwatch import Stopwatch
from pipeline.worker.careful import open_source_of
from pipeline.worker.embedder import Embedder
from pipeline.worker.pooled import PooledSpans, image_sizes
from pipeline.worker.rejects import check_rejects
from pipeline.worker.reread import read_images
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
    pooled_in: str = ""  # of a pilot: the span of the pool that the partition may be in

    @property
    def span_id(self) -> str:
        return span_id_of(self.partitions)

    @property
    def num_samples(self) -> int:
        """0 if the source does not say."""
        return sum(partition.num_samples or 0 for partition in self.partitions)


class _Decided(NamedTuple):
    """A part whose candidates are selected or not."""

    rows: pa.Table  # as `row_schema`
    embeddings_sha256: str | None
    is_last: bool
    left_out: SeenLabels | None


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
        self._pooled = PooledSpans(config, self._embedder) if config.pool is not None else None

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
        rows, size = self._pooled_pilot(task) or self._read_pilot(task)
        rows = score_batch(rows, self._bank)
        seconds = (time.monotonic() - began) / max(rows.num_rows, 1)
        rows = with_columns(
            rows,
            seconds=pa.array([seconds] * rows.num_rows, pa.float64()),
            partition_size=pa.array([size] * rows.num_rows, pa.int64()),
        )
        yield rows.select(_PILOT_COLUMNS)

    def pool(self, task: ReadTask) -> Iterator[pa.Table]:
        """Adds a span to the pool; a row per part: source, num_rows, is_new.

        Raises TooManyRejects after the part that exceeds the limit.
        """
        assert self._pooled is not None
        entry, counts = self._entries[task.source], []
        for part, is_new in self._pooled_parts(task):
            rejected = Counter(
                reason for reason in part.rows["reject_reason"].to_pylist() if reason
            )
            counts.append(Counts(read=part.rows.num_rows, rejected=rejected))
            check_rejects(entry, task.partitions, counts, part.rows)
            row = {"source": task.source, "num_rows": part.rows.num_rows, "is_new": is_new}
            yield pa.Table.from_pylist([row])

    def measure(self, task: ReadTask) -> Iterator[pa.Table]:
        """What a pilot tells of sizes, without decoding: partition, read_bytes, partition_size."""
        samples = read_partitions(self._open(task), task.partitions, 0)
        sizes = [len(each.sample.image) for each in itertools.islice(samples, task.limit)]
        num_more = ilen(itertools.islice(samples, task.num_counted))
        size = len(sizes) + num_more if num_more < task.num_counted else None
        yield pa.table(
            {
                "partition": [task.partitions[0].id] * len(sizes),
                "read_bytes": pa.array(sizes, pa.int64()),
                "partition_size": pa.array([size] * len(sizes), pa.int64()),
            }
        )

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
        for decided in self._decide_parts(task, len(counts), sum(each.read for each in counts)):
            part = len(counts)
            counts.append(count_rows(decided.rows))
            check_rejects(self._entries[task.source], task.partitions, counts, decided.rows)
            with self.stopwatch.stage("write"):
                record = write_part(
                    self._dataset,
                    decided.rows,
                    task,
                    part=part,
                    is_last=decided.is_last,
                    left_out=decided.left_out,
                    embeddings_sha256=decided.embeddings_sha256,
                )
            yield record, True

    def _decide_parts(self, task: ReadTask, part: int, start: int) -> "Iterator[_Decided]":
        """The parts of a span from one on, whose first sample is `start`, until the last."""
        is_negative = self._config.role_of(self._entries[task.source]) == "negative"
        if self._pooled is not None and is_negative:
            source = functools.cache(lambda: self._open(task))
            for number, (pooled, _) in enumerate(self._pooled_parts(task, part, start), part):
                rows, sha256 = self._decide_pooled(pooled, task, number, source)
                yield _Decided(rows, sha256, pooled.is_last, pooled.left_out)
            return
        read = self._open(task)
        samples = peekable(read_partitions(read, task.partitions, start))
        is_last = False
        while not is_last:
            rows, sha256 = self._decide(itertools.islice(samples, SAMPLES_PER_PART), task, part)
            is_last = not samples
            yield _Decided(rows, sha256, is_last, left_out_labels(read))
            part += 1

    def _pooled_parts(
        self, task: ReadTask, part: int = 0, start: int = 0
    ) -> Iterator[tuple[PooledPart, bool]]:
        assert self._pooled is not None
        return self._pooled.parts(
            task,
            self._entries[task.source],
            task.partitions,
            task.span_id,
            first_part=part,
            start=start,
            part_size=SAMPLES_PER_PART,
        )

    def _read_pilot(self, task: ReadTask) -> tuple[pa.Table, int | None]:
        """Rows with read_bytes and size_bytes, and the partition's size if its end was reached."""
        samples = read_partitions(self._open(task), task.partitions, 0)
        read_bytes: list[int] = []
        read = side_effect(
            lambda each: read_bytes.append(len(each.sample.image)),
            itertools.islice(samples, task.limit),
        )
        rows = self._embedder.embed(read, self._entries[task.source])
        num_more = ilen(itertools.islice(samples, task.num_counted))
        size = rows.num_rows + num_more if num_more < task.num_counted else None
        rows = with_columns(
            rows,
            read_bytes=pa.array(read_bytes, pa.int64()),
            size_bytes=image_sizes(rows["image"]),
        )
        return rows, size

    def _pooled_pilot(self, task: ReadTask) -> tuple[pa.Table, int | None] | None:
        """The same from the pool, if it has them."""
        if self._pooled is None or not task.pooled_in:
            return None
        assert task.limit is not None
        entry, (partition,) = self._entries[task.source], task.partitions
        most = task.limit + task.num_counted
        found = self._pooled.read_partition(entry, partition, task.pooled_in, most)
        if found is None:
            return None
        num_more = min(max(found.num_rows - task.limit, 0), task.num_counted)
        taken = found.slice(0, task.limit)
        size = taken.num_rows + num_more if num_more < task.num_counted else None
        rows = self._embedder.label(taken.drop_columns(["read_bytes", "size_bytes"]), entry)
        is_left = rows["content_hash"].is_valid()
        rows = with_columns(
            rows,
            read_bytes=taken["read_bytes"],
            size_bytes=pc.if_else(is_left, taken["size_bytes"], 0),
        )
        return rows, size

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
        return self._keep(embedded, rows, entry, stem)

    def _decide_pooled(
        self, part: PooledPart, task: ReadTask, number: int, source: Callable[[], Source]
    ) -> tuple[pa.Table, str | None]:
        """The same of a part of the pool; then the images that are kept are read again."""
        entry = self._entries[task.source]
        with self.stopwatch.stage("read"):
            embedded = self._embedder.label(part.rows, entry)
        rows = self._select(embedded, entry)
        images = part.images
        if images is None:
            is_kept_N = np.array([bool(group) for group in output_groups(rows)], bool)
            images = pa.nulls(rows.num_rows, pa.large_binary())
            if is_kept_N.any():
                kept = rows.filter(pa.array(is_kept_N))
                with self.stopwatch.stage("decode"):
                    settings = self._config.output.image_settings
                    read = read_images(source(), task.partitions, kept, settings)
                images = pc.replace_with_mask(images, pa.array(is_kept_N), read)
        rows = with_columns(rows, image=images)
        return self._keep(embedded, rows, entry, part_stem(task, number))

    def _keep(
        self, embedded: pa.Table, rows: pa.Table, entry: SourceEntry, stem: str
    ) -> tuple[pa.Table, str | None]:
        """Writes the embeddings if they are wanted; returns rows as `row_schema`, and sha256."""
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


def span_id_of(partitions: Iterable[Partition]) -> str:
    return short_hash("\n".join(partition.id for partition in partitions))


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
