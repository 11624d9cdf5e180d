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
from pipeline.storage.fenced_files import put_fenced
from pipeline.storage.fencing import ask_fence, is_fenced
from pipeline.storage.locations import is_local, is_protocol, protocol_of, redact, resolve
from pipeline.storage.retry import retry
from pipeline.storage.uploads import upload, upload_bytes

_WRITABLE = ("file", "local", "memory", "s3", "s3a")


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
def open_atomic(uri: str, *, replaces: bool = False) -> Iterator[HashingWriter]:
    """Writes a file that appears when the block ends, and not at all if it raises."""
    fs, path = resolve_writable(uri)
    what = f"write {redact(uri)}"
    if is_local(fs) and os.path.isdir(path):  # before the work of hours is lost for it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    # In the same folder, so that the rename stays within one file system.
    directory = str(retry(lambda: make_parents(path), what)) if is_local(fs) else None
    handle, temporary = retry(lambda: tempfile.mkstemp(prefix=".tmp-", dir=directory), what)
    try:
        with os.fdopen(handle, "wb") as file:
            yield HashingWriter(file)
            retry(lambda: sync_file(file), what)
        retry(lambda: _put(fs, temporary, path, replaces=replaces), what)
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = redact(uri)  # a failed write names no file
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomic(uri: str, data: bytes, *, replaces: bool = False) -> str:
    """Writes a small file atomically and returns its sha256.

    replaces: below a fenced root, a file that is there is never missing meanwhile.
    """
    fs, path = resolve_writable(uri)
    if is_protocol(fs, "s3"):
        retry(lambda: upload_bytes(fs, path, data), f"write {redact(uri)}")
    else:
        with open_atomic(uri, replaces=replaces) as file:
            file.write(data)
    return hashlib.sha256(data).hexdigest()


def _put(fs: Any, temporary: str, path: str, *, replaces: bool) -> None:
    """Makes a synced temporary file appear at `path`."""
    if is_protocol(fs, "s3"):
        upload(fs, path, lambda: io.FileIO(temporary))
    elif not is_local(fs):
        ask_fence(fs, path)
        fs.put_file(temporary, path)
    elif is_fenced(fs, path):
        os.chmod(temporary, 0o644)
        put_fenced(temporary, path, lambda: ask_fence(fs, path), replaces=replaces)
        sync_directory(Path(path).parent)
    else:
        put_in_place(temporary, path)


def resolve_writable(uri: str) -> tuple[Any, str]:
    """File system and path of a URI to write to. Raises ConfigError if it can only be read."""
    refuse_unwritable(uri)
    return resolve(uri)


def refuse_unwritable(uri: str) -> None:
    """Raises ConfigError if what is at `uri` can only be read.

    A write must be refused where another process has written meanwhile, or one that was stopped
    for longer than its lease would change what the next one has committed.
    """
    protocol = protocol_of(uri)
    if protocol not in _WRITABLE:
        why = "" if protocol in ("http", "https") else ": no conditional writes are made there"
        raise ConfigError(
            f"{redact(uri)}: {protocol}:// can only be read{why}. Write to a local path or to "
            "s3://, and copy the finished folder"
        )


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
