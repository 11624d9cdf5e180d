"""Looks up rows of CSVs of any size by image: read once, kept sorted, in bounded memory.

If the CSVs are large, the rows kept go to files in a cache folder, one per first character of the
image id, as in a Grace hash join. All processes of a machine share them, and the images of a tar
`train_x` need only one of the sixteen.
"""

import contextlib
import fcntl
import functools
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.keys import sha256_hex
from pipeline.errors import ConfigError

_log = logging.getLogger(__name__)

KEY = "ImageID"
_FORMAT = 1  # of the files in the cache folder
# CSVs with a smaller total are read by each process, and no file is written.
_MAX_BYTES_IN_MEMORY = 32 << 20
_FLUSH_BYTES = 8 << 20  # of rows kept in memory before they are written
_MAX_OPEN_BUCKETS = 48
_MAX_OPEN_LOOKUPS = 8


class Bucket:
    """Distinct rows, sorted by image."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows.unify_dictionaries().sort_by(KEY)
        ids = self.rows[KEY].cast(pa.binary()).to_pylist()
        self._ids = np.array(ids, np.bytes_)

    def find(self, image_id: str) -> pa.Table:
        """The rows of an image, none or more."""
        wanted = image_id.encode(errors="surrogateescape")
        if not len(self._ids) or len(wanted) > self._ids.itemsize:
            return self.rows.slice(0, 0)
        first, last = (int(np.searchsorted(self._ids, wanted, side)) for side in ("left", "right"))
        return self.rows.slice(first, last - first)


class Lookup:
    """Rows by image: all in memory, or in the buckets of a folder, read when needed."""

    def __init__(self, rows: pa.Table | None = None, directory: Path | None = None) -> None:
        self._whole = None if rows is None else Bucket(rows)
        self._directory = directory

    def find(self, image_id: str) -> list[dict[str, Any]]:
        """The rows of an image as `column -> value`, none or more."""
        bucket = self._whole or self._bucket(_bucket_number(image_id))
        rows: list[dict[str, Any]] = bucket.find(image_id).to_pylist() if bucket else []
        return rows

    def image_ids(self) -> Iterator[str]:
        """Every id once, sorted."""
        buckets = [self._whole] if self._whole else map(self._bucket, range(128))
        for bucket in buckets:
            if bucket is not None:
                yield from (value.as_py() for value in bucket.rows[KEY].unique())

    def _bucket(self, number: int) -> Bucket | None:
        assert self._directory is not None
        return _read_bucket(self._directory / f"{number:03d}.parquet")


@functools.lru_cache(_MAX_OPEN_BUCKETS)
def _read_bucket(path: Path) -> Bucket | None:
    if not path.exists():
        return None
    schema = pq.read_schema(path)
    texts = [name for name in schema.names if pa.types.is_string(schema.field(name).type)]
    return Bucket(pq.read_table(path, read_dictionary=[n for n in texts if n != KEY]))


_open_lookups: dict[str, Lookup] = {}


def open_lookup(
    uris: Sequence[str], recipe: str, read_rows: Callable[[], Iterator[pa.Table]]
) -> Lookup:
    """The rows that `read_rows` reads from the files, with a column ImageID.

    `recipe` says how: rows of the same files and recipe are read once.
    """
    versions = [_version(uri) for uri in uris]
    digest = _digest(versions, recipe)
    if digest not in _open_lookups:
        while len(_open_lookups) >= _MAX_OPEN_LOOKUPS:
            del _open_lookups[next(iter(_open_lookups))]
        if sum(size for _, size, _ in versions) <= _MAX_BYTES_IN_MEMORY:
            _open_lookups[digest] = Lookup(_distinct(list(read_rows())))
        else:
            _open_lookups[digest] = Lookup(directory=_make_buckets(digest, read_rows))
    return _open_lookups[digest]


def is_cheap(uris: Sequence[str], recipe: str) -> bool:
    """Whether `open_lookup` takes seconds: the files are small, or were read on this machine."""
    versions = [_version(uri) for uri in uris]
    if sum(size for _, size, _ in versions) <= _MAX_BYTES_IN_MEMORY:
        return True
    return (_cache_folder() / _digest(versions, recipe)).exists()


def _digest(versions: Sequence[tuple[str, int, str]], recipe: str) -> str:
    return sha256_hex(json.dumps([_FORMAT, recipe, versions]).encode())[:32]


def _cache_folder() -> Path:
    return storage.cache_folder() / "lookups"


def _version(uri: str) -> tuple[str, int, str]:
    """URI, size in bytes, and a value that changes with the file.

    A remote file is known by its size and beginning: published files do not change in place.
    """
    try:
        file = storage.open_read(uri)
    except FileNotFoundError:
        return uri, 0, "missing"  # its reader raises an error that names the setting
    with file:
        try:
            status = os.fstat(file.fileno())
            return uri, status.st_size, str(status.st_mtime_ns)
        except OSError:
            beginning = sha256_hex(file.read(1 << 16))
            return uri, _size(file), beginning


def _size(file: IO[bytes]) -> int:
    try:
        return file.seek(0, io.SEEK_END)
    except (OSError, ValueError):
        return _MAX_BYTES_IN_MEMORY + 1  # the server does not say: it may be large


def _make_buckets(digest: str, read_rows: Callable[[], Iterator[pa.Table]]) -> Path:
    """The folder of a lookup, made by one process while the others wait."""
    root = _cache_folder()
    directory = root / digest
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f"{digest}.lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"{error}: label files are joined in a cache folder; set XDG_CACHE_HOME to a "
            "writable one"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            temporary = Path(tempfile.mkdtemp(dir=root, prefix=".tmp-"))
            try:
                _write_buckets(read_rows(), temporary)
                temporary.rename(directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _write_buckets(tables: Iterator[pa.Table], directory: Path) -> None:
    num_rows = 0
    with contextlib.ExitStack() as stack:
        writers: dict[int, pq.ParquetWriter] = {}
        for rows in map(_distinct, _in_pieces(tables, _FLUSH_BYTES)):
            num_rows += rows.num_rows
            first = pc.utf8_slice_codeunits(rows[KEY], 0, 1)
            for character in sorted(set(pc.unique(first).to_pylist()) - {""}):
                number = _bucket_number(character)
                if number not in writers:
                    path = directory / f"{number:03d}.parquet"
                    writers[number] = stack.enter_context(pq.ParquetWriter(path, rows.schema))
                writers[number].write_table(rows.filter(pc.equal(first, character)))
    _log.info("kept %s rows in %d files of %s", f"{num_rows:,}", len(writers), directory)


def _bucket_number(image_id: str) -> int:
    """0 to 127, different for each hexadecimal digit."""
    return ord(image_id[0]) & 127 if image_id else 0


def _in_pieces(tables: Iterable[pa.Table], max_bytes: int) -> Iterator[list[pa.Table]]:
    """Runs of tables of about `max_bytes`."""
    piece: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        piece.append(table)
        num_bytes += table.nbytes
        if num_bytes >= max_bytes:
            yield piece
            piece, num_bytes = [], 0
    if piece:
        yield piece


def _distinct(tables: Sequence[pa.Table]) -> pa.Table:
    """Distinct rows, in order of first occurrence."""
    if not tables:
        return pa.table({KEY: pa.array([], pa.string())})
    rows = pa.concat_tables(tables)
    return rows.group_by(rows.column_names, use_threads=False).aggregate([])
