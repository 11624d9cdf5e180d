"""Writes that are seen whole or not at all, and small files that only one writer can win.

On a disk: a file beside its place, synced, then renamed or linked, then the folder synced. The
folder, too, because a record of a part must not outlive a power cut that its data did not. On an
object store: one completed upload, conditional where only one may win.
"""

import contextlib
import errno
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import ConfigError
from pipeline.storage.locations import is_local, is_protocol, resolve, shown
from pipeline.storage.transient import retry

# Larger uploads go in parts, 10 at a time: 160 MB of memory instead of s3fs's 500.
_UPLOAD_PART_BYTES = 16 * 2**20

# `memory://` is one process; its own check and write are two steps.
_memory_lock = threading.Lock()


class HashingWriter(io.RawIOBase):
    """A binary file that knows the sha256 and the size of what went through it."""

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
    """Writes all or nothing: readers see the file only once the block has ended well."""
    fs, path = _resolve_writable(uri)
    what = f"write {shown(uri)}"
    # Beside its place on a disk, so that the rename cannot cross file systems.
    directory = str(retry(lambda: _make_parents(path), what)) if is_local(fs) else None
    handle, temporary = retry(lambda: tempfile.mkstemp(prefix=".tmp-", dir=directory), what)
    try:
        with os.fdopen(handle, "wb") as file:
            yield HashingWriter(file)
            retry(lambda: _sync(file), what)
        if is_local(fs):
            retry(lambda: _put_in_place(temporary, path), what)
        else:
            options = {"chunksize": _UPLOAD_PART_BYTES} if is_protocol(fs, "s3") else {}
            retry(lambda: fs.put_file(temporary, path, **options), what)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomic(uri: str, data: bytes) -> str:
    """Writes a small file atomically and returns its sha256."""
    fs, path = _resolve_writable(uri)
    if is_local(fs):
        with open_atomic(uri) as file:
            file.write(data)
    else:
        retry(lambda: fs.pipe_file(path, data), f"write {shown(uri)}")
    return hashlib.sha256(data).hexdigest()


def create_exclusive(uri: str, data: bytes) -> bool:
    """Writes a small file if there is none, whole; False where there is one.

    Of all writers at once, one gets True. After a lost answer of an object store, the file's
    content tells if it was ours: `data` has to be the writer's own.
    """
    fs, path = _resolve_writable(uri)
    if is_local(fs):
        return retry(lambda: _link_in_place(data, path), f"create {shown(uri)}")
    if is_protocol(fs, "memory"):
        with _memory_lock:
            return _pipe_if(fs, path, data, {"mode": "create"}, uri)
    # S3: If-None-Match: *; gs: ifGenerationMatch=0; az: If-None-Match: *.
    return _pipe_if(fs, path, data, {"mode": "create"}, uri)


def _pipe_if(fs: Any, path: str, data: bytes, condition: dict[str, str], uri: str) -> bool:
    """Uploads under a condition; False where it does not hold."""
    num_tries = 0

    def upload() -> bool:
        nonlocal num_tries
        num_tries += 1
        try:
            fs.pipe_file(path, data, **condition)
        except OSError as error:
            if not _is_precondition_failure(error):
                raise
            # An earlier try may have been done without our hearing of it.
            return num_tries > 1 and bytes(fs.cat_file(path)) == data
        return True

    return retry(upload, f"create {shown(uri)}")


def _is_precondition_failure(error: OSError) -> bool:
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return isinstance(error, FileExistsError) or code == "PreconditionFailed"


def _resolve_writable(uri: str) -> tuple[Any, str]:
    fs, path = resolve(uri)
    if is_protocol(fs, "http", "https"):
        raise ConfigError(f"{shown(uri)}: http and https can only be read")
    return fs, path


def _link_in_place(data: bytes, path: str) -> bool:
    directory = _make_parents(path)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            _sync(file)
        os.chmod(temporary, 0o644)
        os.link(temporary, path)
        _sync_directory(directory)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def _put_in_place(temporary: str, path: str) -> None:
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
    _sync_directory(Path(path).parent)


def _make_parents(path: str) -> Path:
    """Makes the folders of a file so that they, too, outlive a power cut."""
    parent = Path(path).parent
    missing = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        _sync_directory(directory.parent)
    return Path(path).parent


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)
