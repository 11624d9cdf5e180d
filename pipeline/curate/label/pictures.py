"""Pictures of candidates: from shards and quarantine, or read again from their sources.

What is read of a source is as it would be in a shard, and its bytes are compared with the ledger.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.curate.label.candidates import Candidates
from pipeline.curate.local_page import UnknownPicture
from pipeline.dataset import Dataset
from pipeline.dataset.decoders import UnusableImage
from pipeline.dataset.schema import Partition
from pipeline.errors import ConfigError, InfinegError
from pipeline.pool import Pool
from pipeline.sources import Source, open_entry
from pipeline.sources.rereading import reread_images
from pipeline.sources.survey import take_partitions

_log = logging.getLogger(__name__)
_MAX_CACHED = 1024  # 25 kB each
_NUM_THREADS = 4


def read_from_sources(
    config: Config, rows: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Content hash and JPEG of rows of ledgers, in the order of source, partition and ordinal.

    Raises InfinegError if a source has changed or cannot be read.
    """
    ordered = sorted(rows, key=lambda row: (row["source"], row["partition"], row["ordinal"]))
    for name, of_source in groupby(ordered, key=lambda row: row["source"]):
        by_partition = {
            partition: list(own)
            for partition, own in groupby(of_source, key=lambda row: row["partition"])
        }
        source = _open(config, name)
        for partition in _find(config, source, name, set(by_partition)):
            own = by_partition[partition.id]
            settings = config.output.image_settings
            images = reread_images(source, partition, own, settings, remedy="Restore the source")
            yield from zip((row["content_hash"] for row in own), images, strict=True)


def _open(config: Config, name: str) -> Source:
    entry = next((entry for entry in config.sources if entry.name == name), None)
    if entry is None:
        raise ConfigError(f"source {name!r} is in the data set and not in the config")
    return open_entry(entry, "negative")


def _find(config: Config, source: Source, name: str, wanted: set[str]) -> Iterator[Partition]:
    """The partitions of these ids, in one pass over the listing."""
    plan = Dataset(config.output.path).read_plan(name)
    assert plan is not None, f"no plan is committed for {name}"
    for partition in take_partitions(source, plan.num_partitions, plan.num_listed):
        if partition.id in wanted:
            wanted = wanted - {partition.id}
            yield partition
            if not wanted:
                return
    raise InfinegError(
        f"source {name!r}: partition {sorted(wanted)[0]} is no longer listed. Restore the source"
    )


class Pictures:
    """Reads pictures by position, and those of a round ahead, in threads."""

    def __init__(self, config: Config, found: Candidates) -> None:
        self._config, self._found = config, found
        self._dataset = Dataset(config.output.path)
        self._lock = threading.Lock()
        self._pending: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._threads = ThreadPoolExecutor(_NUM_THREADS)

    def close(self) -> None:
        """Begins no further read."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def read(self, position: int) -> bytes:
        """The JPEG as in a shard. Raises UnknownPicture if its source cannot be read."""
        (future,) = self.prefetch([position])
        try:
            return future.result()
        except (InfinegError, UnusableImage, OSError) as error:
            reason = storage.redact(str(storage.as_failure(error) or error))
            raise UnknownPicture(f"only a preview can be shown: {reason}") from None

    def preview(self, position: int) -> bytes:
        """A JPEG of 64 pixels of the pool; raises UnknownPicture if there is none."""
        place = self._found.previews.get(position)
        if place is None or self._config.pool is None:
            raise UnknownPicture("the pool has no preview of this picture")
        table = Pool(self._config.pool).files.read_table(place.path, ["preview"])
        image: bytes | None = table["preview"][place.offset].as_py()
        if image is None:
            raise UnknownPicture("the pool has no preview of this picture")
        return image

    def prefetch(self, positions: Sequence[int]) -> "list[Future[bytes]]":
        """Begins to read what is not cached, partition by partition."""
        with self._lock:
            new = {n: Future[bytes]() for n in positions if n not in self._pending}
            self._pending |= new
            futures = [self._pending[n] for n in positions]
            while len(self._pending) > _MAX_CACHED:
                self._pending.popitem(last=False)
        rows = {n: self._found.describe(n) for n in new if n not in self._found.in_tars}
        for n in new.keys() - rows.keys():
            self._threads.submit(self._read_tar, n, new[n])

        def partition_of(n: int) -> tuple[str, str]:
            return rows[n]["source"], rows[n]["partition"]

        for _, own in groupby(sorted(rows, key=partition_of), key=partition_of):
            some = list(own)
            self._threads.submit(self._read_source, [rows[n] for n in some], [new[n] for n in some])
        return futures

    def _read_tar(self, position: int, future: "Future[bytes]") -> None:
        place = self._found.in_tars[position]
        try:
            future.set_result(
                storage.read_range(self._dataset.uri(place.path), place.offset, place.size)
            )
        except Exception as error:  # the reader of the future raises it
            self._fail([future], error)

    def _read_source(
        self, rows: Sequence[dict[str, Any]], futures: Sequence["Future[bytes]"]
    ) -> None:
        wanted = dict(zip((row["content_hash"] for row in rows), futures, strict=True))
        try:
            for content_hash, jpeg in read_from_sources(self._config, rows):
                wanted[content_hash].set_result(jpeg)
        except Exception as error:  # as above
            self._fail(futures, error)

    def _fail(self, futures: Iterable["Future[bytes]"], error: Exception) -> None:
        """Those that are not read yet; they are tried again when they are asked for."""
        failed = [future for future in futures if not future.done()]
        with self._lock:
            for position in [n for n, each in self._pending.items() if each in failed]:
                del self._pending[position]
        for future in failed:
            future.set_exception(error)
