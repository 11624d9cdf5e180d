"""The sources of a pool: whether they are still as they were pooled, and where what lies.

A source whose files have changed is never mixed with what was pooled of it before.
"""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
from more_itertools import chunked

from pipeline import storage
from pipeline.build.file_tables import compare_files, list_files, read_files, write_files
from pipeline.build.reading import PlannedSource
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.embedding_cache import EmbeddingsInfo
from pipeline.dataset.schema import Partition
from pipeline.errors import InfinegError
from pipeline.pool import Pool, PooledSource
from pipeline.sources import Source, open_entry
from pipeline.sources.survey import take_partitions
from pipeline.worker.span import SAMPLES_PER_PART, span_id_of

# The files of sources as they are now, by name; None of a source that reads none.
Files = Mapping[str, pa.Table | None]


def pooled_entries(config: Config, entries: Iterable[SourceEntry]) -> list[SourceEntry]:
    """Those that a pool has: all negatives. Positives are few, and all of them are wanted."""
    if config.pool is None:
        return []
    return [entry for entry in entries if config.role_of(entry) == "negative"]


def open_pool(config: Config, entries: Iterable[SourceEntry], info: EmbeddingsInfo) -> Files:
    """Begins the pool of a build, or checks the one that is there; lists its sources' files.

    Raises ConfigError if it was made with other settings than `info`, and InfinegError if files
    have changed since.
    """
    if config.pool is None:
        return {}
    pool, entries = Pool(config.pool), pooled_entries(config, entries)
    pool.require_info(info)
    files = list_pooled(entries)
    refuse_changed(pool, entries, files)
    return files


def record_planned(config: Config, planned: Iterable[PlannedSource], files: Files) -> None:
    """`record_source` of what a build is about to read."""
    for source in planned:
        if pooled_entries(config, [source.entry]):
            assert config.pool is not None
            record_source(
                Pool(config.pool),
                source.entry,
                files,
                num_partitions=source.plan.num_partitions,
                num_listed=source.plan.num_listed,
                partitions_per_span=source.plan.partitions_per_span,
            )


def num_pooled(config: Config, planned: Iterable[PlannedSource]) -> int:
    """Candidates that need not be read, at most: it decides only what runs the tasks."""
    entries = pooled_entries(config, (source.entry for source in planned))
    return Pool(config.pool).num_parts(entries) * SAMPLES_PER_PART if config.pool else 0


def list_pooled(entries: Iterable[SourceEntry]) -> Files:
    """To be listed before anything is read of them."""
    return {entry.name: list_files(open_entry(entry, "negative")) for entry in entries}


def changed_since(pool: Pool, entry: SourceEntry, files: Files) -> str:
    """What files of a source have changed since it was pooled; "" if none, or if it was not."""
    record, now = pool.read_source(entry), files[entry.name]
    if record is None or now is None or not record.files:
        return ""
    changes = compare_files(read_files(pool.files, record.files), now)
    if changes.touched and not str(changes):
        return f"{len(changes.touched):,} with another time or ETag, such as {changes.touched[0]}"
    return str(changes)


def refuse_changed(pool: Pool, entries: Iterable[SourceEntry], files: Files) -> None:
    """Raises InfinegError if files of a source have changed since it was pooled."""
    told = {entry.name: changed_since(pool, entry, files) for entry in entries}
    if lines := [f"source {name!r} has changed: {each}" for name, each in told.items() if each]:
        raise InfinegError(
            f"pool {storage.redact(pool.root)} was made of other files\n"
            + "\n".join(lines)
            + "\nEither restore the files, or run `infineg pool build CONFIG`, which removes these "
            "sources from the pool and embeds them again"
        )


def record_source(
    pool: Pool,
    entry: SourceEntry,
    files: Files,
    *,
    num_partitions: int,
    num_listed: int | None,
    partitions_per_span: int,
) -> None:
    """Records what a source is about to be pooled of, unless it is recorded so already."""
    found, now = pool.read_source(entry), files[entry.name]
    if found is None:
        pool.remove_source(entry)  # parts whose removal was interrupted
    path = found.files if found is not None else ""
    if now is not None and not (path and read_files(pool.files, path).equals(now)):
        path = write_files(pool.files, entry.name, now)
    record = PooledSource(
        kind=entry.kind,
        name=entry.name if found is None else found.name,
        num_partitions=num_partitions,
        num_listed=num_listed,
        partitions_per_span=partitions_per_span,
        files=path,
    )
    if record != found:
        pool.write_source(entry, record)


def find_spans(
    config: Config, entry: SourceEntry, source: Source, wanted: Sequence[Partition]
) -> dict[str, str]:
    """Ids of the spans of the pool in which partitions are, by the ids of these."""
    if not pooled_entries(config, [entry]):
        return {}
    assert config.pool is not None
    record = Pool(config.pool).read_source(entry)
    if record is None:
        return {}
    names, found = {partition.id for partition in wanted}, dict[str, str]()
    taken = take_partitions(source, record.num_partitions, record.num_listed)
    for span in chunked(taken, record.partitions_per_span):
        if here := [partition.id for partition in span if partition.id in names]:
            found |= dict.fromkeys(here, span_id_of(span))
            if len(found) == len(names):
                break
    return found
