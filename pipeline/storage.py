"""Files and objects through fsspec: list, read, write atomically, hash, retry what is transient.

Every path is a local path or an fsspec URL. A write is atomic on both: a rename on a disk, a
single completed upload on an object store.
"""

import contextlib
import hashlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.core import url_to_fs

from pipeline.errors import ConfigError, TransientStorageError

_log = logging.getLogger(__name__)

# Named, because an unknown error must stop the run instead of being tried again.
_TRANSIENT = (TimeoutError, ConnectionError, InterruptedError)
_NUM_TRIES = 5

T = TypeVar("T")


def retry(action: Callable[[], T], what: str) -> T:
    """Runs `action` again on named transient errors, waiting 0.2, 0.4, 0.8, 1.6 s."""
    for attempt in range(_NUM_TRIES):
        try:
            return action()
        except _TRANSIENT as error:
            if attempt == _NUM_TRIES - 1:
                raise TransientStorageError(f"{what}: {error} ({_NUM_TRIES} tries)") from error
            _log.warning("%s: %s, trying again", what, error)
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def open_read(uri: str) -> IO[bytes]:
    """A binary stream, seekable where the storage allows; `pipe:` and other shells are refused."""
    fs, path = _resolve(uri)
    file: IO[bytes] = retry(lambda: fs.open(path, "rb"), f"open {uri}")
    return file


def read_bytes(uri: str) -> bytes:
    fs, path = _resolve(uri)
    return bytes(retry(lambda: fs.cat_file(path), f"read {uri}"))


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, without reading what comes before."""
    fs, path = _resolve(uri)
    return bytes(retry(lambda: fs.cat_file(path, start=offset, end=offset + size), f"read {uri}"))


def exists(uri: str) -> bool:
    fs, path = _resolve(uri)
    return bool(retry(lambda: fs.exists(path), f"look for {uri}"))


def list_files(uri: str, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Every file below a folder, sorted, relative to it; [] where there is no such folder."""
    fs, path = _resolve(uri)
    try:
        found = retry(lambda: fs.find(path), f"list {uri}")
    except FileNotFoundError:
        return []
    root = path.rstrip("/") + "/"
    names = (name.removeprefix(root) for name in found)
    return sorted(name for name in names if name.lower().endswith(suffixes))


def remove_tree(uri: str) -> None:
    """Removes a folder or a file; nothing happens where there is none."""
    fs, path = _resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: fs.rm(path, recursive=True), f"remove {uri}")


def join(root: str, *names: str) -> str:
    return "/".join([root.rstrip("/"), *names])


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
    fs, path = _resolve(uri)
    is_local = _is_local(fs)
    if is_local:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Beside its place on a disk, so that the rename cannot cross file systems.
    directory = str(Path(path).parent) if is_local else None
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            yield HashingWriter(file)
            file.flush()
            os.fsync(file.fileno())
        if is_local:
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        else:
            retry(lambda: fs.put_file(temporary, path), f"write {uri}")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomic(uri: str, data: bytes) -> str:
    """Writes a small file atomically and returns its sha256."""
    with open_atomic(uri) as file:
        file.write(data)
    return file.sha256


def sha256_of(uri: str) -> str:
    """sha256 of a stored file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fetch(uri: str, directory: Path) -> Path:
    """A local path with the content of `uri`: itself when local, else a copy in `directory`."""
    fs, path = _resolve(uri)
    if _is_local(fs):
        return Path(path)
    name = hashlib.sha256(uri.encode()).hexdigest()[:16] + "-" + Path(path).name
    local = directory / name
    if not local.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # A place of its own: several workers may fetch the same file at once.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tmp-") as temporary:
            part = str(Path(temporary) / name)
            retry(lambda: fs.get_file(path, part), f"fetch {uri}")
            os.replace(part, local)
    return local


def _resolve(uri: str) -> tuple[Any, str]:
    """File system and path of a URI; refuses what would run a shell."""
    if uri.startswith(("pipe:", "|")):
        raise ConfigError(f"{uri[:60]!r}: `pipe:` URLs run a shell and are refused")
    try:
        fs, path = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{uri}: {error}") from None
    return fs, path


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
