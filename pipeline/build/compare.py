"""Reads a source again and compares it with the rows that a data set has of it."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from operator import itemgetter
from typing import Any

from more_itertools import chunked

from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import SourceRecord
from pipeline.dataset.schema import Partition, Positioned, RejectReason
from pipeline.errors import ConfigError, InfinegError, TransientStorageError
from pipeline.sources import Source
from pipeline.worker.steps.read import SourceDefaults, read_batch

_log = logging.getLogger(__name__)

_READ_AT_ONCE = 16
_OF_SAMPLE = (
    "ordinal", "uri", "content_hash", "class_name", "group", "license", "author", "rotation",
)  # fmt: skip
_OF_LABEL = ("label", "label_state", "doubt")
_COLUMNS = ("partition", "reject_reason", *_OF_SAMPLE, *_OF_LABEL)

Row = dict[str, Any]


def find_changed_files(
    config: Config,
    dataset: Dataset,
    entry: SourceEntry,
    source: Source,
    record: SourceRecord | None,
    files: Set[str],
) -> list[str]:
    """Those of `files` from which other samples are read than are in the data set.

    record: what a generation has of the source; parts that are not packed follow it. Partitions
    with a sample from one of the files are read again. A file without samples, such as one of
    labels, may concern every partition.
    """
    defaults = SourceDefaults.of(config, entry)
    met: set[str] = set()
    changed: set[str] = set()

    def differing(is_wanted: Callable[[set[str]], bool]) -> Iterator[str]:
        partitions = source.partitions()
        for is_whole, rows in _rows_of(dataset, entry.name, record):
            for name, group in itertools.groupby(rows, key=itemgetter("partition")):
                then = list(group)
                touched = {_file_of(row["uri"], files) for row in then} - {""}
                met.update(touched)
                if is_wanted(touched):
                    partition = next((each for each in partitions if each.id == name), None)
                    yield from _differing(then, partition, source, defaults, is_whole)

    changed.update(_file_of(uri, files) for uri in differing(bool))
    if (others := files - met) and any(differing(lambda touched: not touched)):
        changed |= others
    # A row that names none of them was changed by what they say of it.
    return sorted(changed - {""}) or sorted(files if changed else ())


def lost_partitions(dataset: Dataset, source: Source, record: SourceRecord | None) -> list[str]:
    """Partitions that were read and that the source no longer lists."""
    if record is None:
        return []
    lost: set[str] = set()
    for table in record.ledger:
        lost.update(dataset.read_table(table.path, ["partition"])["partition"].unique().to_pylist())
    for partition in source.partitions():
        lost.discard(partition.id)
        if not lost:
            break
    return sorted(lost)


def _rows_of(
    dataset: Dataset, source: str, record: SourceRecord | None
) -> Iterator[tuple[bool, Iterator[Row]]]:
    """Rows in the order of the source, and whether their partitions were read to the end."""
    for ledger in record.ledger if record else ():
        tables = dataset.iterate_table(ledger.path)
        yield True, (row for rows in tables for row in rows.select(_COLUMNS).to_pylist())
    for number in itertools.count((record.num_rounds if record else 0) + 1):
        paths = [part.path for part in dataset.iterate_parts(source, number)]
        if not paths:
            return
        parts = dataset.read_tables(paths, _COLUMNS)
        yield False, (row for rows in parts for row in rows.to_pylist())


def _differing(
    then: Sequence[Row],
    partition: Partition | None,
    source: Source,
    defaults: SourceDefaults,
    is_whole: bool,
) -> Iterator[str]:
    """Addresses of samples of a partition that are not what they were."""
    now = _read_again(source, partition, len(then) + 1, defaults) if partition else iter(())
    for before, after in itertools.zip_longest(then, now):
        if before is None:
            if is_whole:
                yield after["uri"]
        elif after is None or not _is_same(before, after):
            yield before["uri"]


def _read_again(
    source: Source, partition: Partition, number: int, defaults: SourceDefaults
) -> Iterator[Row]:
    samples: Iterable[Positioned] = (
        Positioned(partition.id, ordinal, sample)
        for ordinal, sample in enumerate(source.read(partition))
    )
    try:
        for some in chunked(itertools.islice(samples, number), _READ_AT_ONCE):
            yield from read_batch(some, defaults).select(_COLUMNS).to_pylist()
    except (ConfigError, TransientStorageError):
        raise
    except InfinegError as error:  # broken now, and it was not
        _log.warning("%s", error)


def _is_same(then: Row, now: Row) -> bool:
    if then["reject_reason"] == RejectReason.TAKEN_DOWN:
        return True  # nothing of it is kept, whatever it is now
    if any(then[name] != now[name] for name in _OF_SAMPLE):
        return False
    # A person may have decided since on what the source leaves open.
    is_open = not now["label"] and (now["label_state"] == "unknown" or now["doubt"])
    return bool(is_open) or all(then[name] == now[name] for name in _OF_LABEL)


def _file_of(uri: str, files: Set[str]) -> str:
    """The one of `files` in which a sample lies, `archive#member` or a file by itself; else ""."""
    while uri not in files and "#" in uri:
        uri = uri.rpartition("#")[0]
    return uri if uri in files else ""
