"""Fills a pool: every candidate of the sources of a config, embedded, without any positive.

A span that is in the pool is not read again, so that an interrupted run resumes.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
from more_itertools import chunked

from pipeline import storage
from pipeline.build.pilot import Surveyed
from pipeline.build.pooled_sources import (
    Files,
    changed_since,
    list_pooled,
    pooled_entries,
    record_source,
)
from pipeline.cluster.workers import Cluster, open_cluster
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.embedding_cache import EmbeddingsInfo
from pipeline.dataset.metadata import TakenDown
from pipeline.encoders.runtimes import prepare_encoder
from pipeline.errors import ConfigError
from pipeline.pool import Pool
from pipeline.selection.pilot import mean_partition_size
from pipeline.selection.plan import span_length
from pipeline.sources import Source, open_entry
from pipeline.sources.survey import estimate_sizes, survey, take_partitions
from pipeline.telemetry.progress import Progress
from pipeline.worker.span import ReadTask, SpanWorker

_log = logging.getLogger(__name__)
_MakeWorker = functools.partial[SpanWorker]


class PooledCounts(NamedTuple):
    """Candidates of a source in the pool, and how many of them are new."""

    source: str
    num_rows: int
    num_new: int


def build_pool(config: Config, *, only: Sequence[str] = ()) -> list[PooledCounts]:
    """Embeds what the pool has not yet of the negatives of a config, or `only` some of them.

    A source whose files have changed is removed from the pool and embedded again. Raises
    ConfigError if the pool was made by another encoder or of images of another size.
    """
    if config.pool is None:
        raise ConfigError("pool: not set; name its folder, e.g. --set pool=data/pool")
    storage.configure(config.storage)
    entries = pooled_entries(config, _chosen(config, only))
    pool, files = Pool(config.pool), list_pooled(entries)
    with open_cluster(config.build) as cluster:
        gpus = config.build.gpus_per_embedder
        encoder = cluster.share(prepare_encoder(config.encoder, gpus_per_worker=gpus))
        images = config.output.image_settings
        pool.require_info(EmbeddingsInfo(encoder=encoder.fingerprint, images=images))
        make_worker = functools.partial(SpanWorker, config, encoder, TakenDown())
        return [_fill(config, pool, entry, files, cluster, make_worker) for entry in entries]


def _chosen(config: Config, only: Sequence[str]) -> list[SourceEntry]:
    names = [entry.name for entry in config.sources]
    if unknown := sorted(set(only) - set(names)):
        raise ConfigError(f"--source {unknown[0]}: the sources of the config are {names}")
    return [entry for entry in config.sources if not only or entry.name in only]


def _fill(
    config: Config,
    pool: Pool,
    entry: SourceEntry,
    files: Files,
    cluster: Cluster,
    make_worker: _MakeWorker,
) -> PooledCounts:
    if told := changed_since(pool, entry, files):
        _log.info("source %r has changed and is embedded again: %s", entry.name, told)
        pool.remove_source(entry)
    source = open_entry(entry, "negative")
    layout = _lay_out(config, entry, source, cluster, make_worker)
    record_source(
        pool,
        entry,
        files,
        num_partitions=layout.num_partitions,
        num_listed=layout.num_listed,
        partitions_per_span=span_length(layout.samples_per_partition),
    )
    total = round(layout.num_partitions * layout.samples_per_partition)
    cluster.expect(total)
    num_rows = num_new = 0
    with Progress(f"pool {entry.name}", total=total, unit="candidates") as progress:
        tasks = _tasks(entry, source, layout)
        for table in cluster.map(SpanWorker.pool, tasks, make_worker=make_worker):
            (part,) = table.to_pylist()
            num_rows += part["num_rows"]
            num_new += part["num_rows"] if part["is_new"] else 0
            progress.advance(part["num_rows"])
    return PooledCounts(entry.name, num_rows, num_new)


class _Layout(NamedTuple):
    """As in a plan."""

    num_partitions: int
    num_listed: int | None
    samples_per_partition: float


def _lay_out(
    config: Config, entry: SourceEntry, source: Source, cluster: Cluster, make_worker: _MakeWorker
) -> _Layout:
    """What a build would take of a source, and how much of it at once."""
    listing = survey(source, entry, config)
    size = listing.samples_per_partition
    if size is None:
        tasks = Surveyed(entry, source, listing).tasks()
        tables = cluster.map(SpanWorker.measure, tasks, make_worker=make_worker)
        rows = pa.concat_tables(tables)
        listing = estimate_sizes(listing, source, rows)
        size = mean_partition_size(listing, rows)
    num_partitions = listing.num_partitions
    if listing.estimates:
        num_partitions = listing.num_partitions_for(size)
    return _Layout(num_partitions, listing.num_listed, size)


def _tasks(entry: SourceEntry, source: Source, layout: _Layout) -> Iterator[ReadTask]:
    taken = take_partitions(source, layout.num_partitions, layout.num_listed)
    for number, span in enumerate(chunked(taken, span_length(layout.samples_per_partition))):
        yield ReadTask(source=entry.name, partitions=tuple(span), span=number)
