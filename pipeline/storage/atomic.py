"""Atomic writes: a reader sees a whole file or none.

On a disk: a temporary file in the same folder, synced, renamed, then the folder synced. The folder,
too, because after a power cut the record of a part must not be there without its data. On an object
store: one upload, invisible until it is complete.
"""

import contextlib
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import ConfigError
from pipeline.storage.locations import is_http, is_local, is_protocol, redact, resolve
from pipeline.storage.retry import retry

# Larger uploads go in parts, 10 at a time: 160 MB of memory instead of s3fs's 500.
_UPLOAD_PART_BYTES = 16 * 2**20


class HashingWriter(io.RawIOBase):
    """A binary file that computes the sha256 and the size of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        view = memoryview(data)
        self._hash.update(view)
        self.size_bytes += view.nbytes
        return self._file.write(view)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


@contextlib.contextmanager
def open_atomic(uri: str) -> Iterator[HashingWriter]:
    """Writes a file that appears when the block ends, and not at all if it raises."""
    fs, path = resolve_writable(uri)
    what = f"write {redact(uri)}"
    # In the same folder, so that the rename stays within one file system.
    directory = str(retry(lambda: make_parents(path), what)) if is_local(fs) else None
    handle, temporary = retry(lambda: tempfile.mkstemp(prefix=".tmp-", dir=directory), what)
    try:
        with os.fdopen(handle, "wb") as file:
            yield HashingWriter(file)
            retry(lambda: sync_file(file), what)
        if is_local(fs):
            retry(lambda: put_in_place(temporary, path), what)
        else:
            options = {"chunksize": _UPLOAD_PART_BYTES} if is_protocol(fs, "s3") else {}
            retry(lambda: fs.put_file(temporary, path, **options), what)
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = redact(uri)  # a failed write names no file
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomic(uri: str, data: bytes) -> str:
    """Writes a small file atomically and returns its sha256."""
    fs, path = resolve_writable(uri)
    if is_local(fs):
        with open_atomic(uri) as file:
            file.write(data)
    else:
        retry(lambda: fs.pipe_file(path, data), f"write {redact(uri)}")
    return hashlib.sha256(data).hexdigest()


def resolve_writable(uri: str) -> tuple[Any, str]:
    """File system and path of a URI to write to."""
    fs, path = resolve(uri)
    if is_http(fs):
        raise ConfigError(f"{redact(uri)}: http and https can only be read")
    return fs, path


def put_in_place(temporary: str, path: str) -> None:
    """Makes a synced temporary file readable by all and renames it to `path`."""
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
    sync_directory(Path(path).parent)


def make_parents(path: str) -> Path:
    """Makes the folders of a file, synced; returns its own."""
    parent = Path(path).parent
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
    return Path(path).parent


def sync_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: str | Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)
