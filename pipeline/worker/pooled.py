"""The embedded candidates of spans: from a pool, or read from their source and added to it.

Knows nothing of how candidates are labelled, scored or selected.
"""

import itertools
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import peekable, side_effect

from pipeline.cluster.process import Task
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.schema import Partition, Positioned
from pipeline.pool import Pool, PooledPart
from pipeline.sources import left_out_labels, read_partitions
from pipeline.worker.careful import open_source_of
from pipeline.worker.embedder import Embedder


class PooledSpans:
    """Reads a pool, and adds to it what it has not."""

    def __init__(self, config: Config, embedder: Embedder) -> None:
        assert config.pool is not None
        self._config = config
        self._embedder = embedder
        self._pool = Pool(config.pool)

    def parts(
        self,
        task: Task,
        entry: SourceEntry,
        partitions: tuple[Partition, ...],
        span_id: str,
        *,
        first_part: int = 0,
        start: int = 0,
        part_size: int,
    ) -> Iterator[tuple[PooledPart, bool]]:
        """The parts of a span from one on, and whether each is new in the pool.

        start: samples in the parts before; part_size: samples in each but the last.
        """
        for part in itertools.count(first_part):
            with self._embedder.stopwatch.stage("read"):
                found = self._pool.read_part(entry, span_id, part)
            if found is None:
                break
            yield found, False
            if found.is_last:
                return
            start += found.rows.num_rows
        source = open_source_of(task, entry, self._config)
        samples = peekable(read_partitions(source, partitions, start))
        is_last = False
        while not is_last:
            rows = self._embed(itertools.islice(samples, part_size))
            is_last = not samples
            content = PooledPart(
                rows.drop_columns(["image"]), is_last, left_out_labels(source), rows["image"]
            )
            with self._embedder.stopwatch.stage("write"):
                self._pool.write_part(entry, span_id, part, content)
            yield content, True
            part += 1

    def read_partition(
        self, entry: SourceEntry, partition: Partition, span_id: str, most: int
    ) -> pa.Table | None:
        """The first rows of a partition, `most` or more if it has them.

        None unless all of these are in the pool, in the span given.
        """
        tables: list[pa.Table] = []
        num_found = 0
        for part in itertools.count():
            found = self._pool.read_part(entry, span_id, part)
            if found is None:
                return None
            own = found.rows.filter(pc.equal(found.rows["partition"], partition.id))
            tables.append(own)
            num_found += own.num_rows
            is_over = num_found > 0 and own.num_rows < found.rows.num_rows
            if num_found >= most or is_over or found.is_last:
                return pa.concat_tables(tables)
        return None

    def _embed(self, samples: Iterator[Positioned]) -> pa.Table:
        read_bytes: list[int] = []
        rows = self._embedder.embed_facts(
            side_effect(lambda each: read_bytes.append(len(each.sample.image)), samples)
        )
        rows = rows.append_column("read_bytes", pa.array(read_bytes, pa.int64()))
        return rows.append_column("size_bytes", image_sizes(rows["image"]))


def image_sizes(images: pa.ChunkedArray) -> pa.Array:
    """Bytes of each image; 0 of one that is null."""
    sizes = [len(image.as_buffer()) if image.is_valid else 0 for image in images]
    return pa.array(sizes, pa.int64())
