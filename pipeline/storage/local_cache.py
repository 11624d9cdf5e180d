"""A bounded folder of local copies, shared by processes; the least recently used is evicted first.

A mapped copy has a shared lock and is not evicted, which would not free its space. A copy is
written under an exclusive lock and then renamed, so that others see it whole and wait instead of
fetching it, too. A process that ends frees its locks; a half-written copy is written again by
the next process, or evicted.

If copies in use fill the folder, a process closes all its maps except the one it opens, so that
the bound is exceeded by at most one copy per process.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import ConfigError, InfinegError

_MAX_OPEN = 256  # maps per process; each costs a file descriptor
HALF_COPY = ".part-"  # begins the name of a copy that is being written
_LOCK = ".lock"


def cache_folder(cache_dir: str | None = None) -> Path:
    """Files that can be made again: `cache_dir`, else `~/.cache/infineg` (XDG_CACHE_HOME)."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_dir or f"{home}/infineg").expanduser()


class LocalCache:
    """Memory maps of files of `directory`, by name. Safe for many processes and threads."""

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self._directory = Path(directory).expanduser()
        self._max_bytes = max_bytes
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()

    def map(self, name: str, size_bytes: int, write: Callable[[IO[bytes]], None]) -> mmap.mmap:
        """The file `name`, written by `write` if there is none of that size.

        Use it at once and drop it: the file is safe from eviction only while the map is
        referenced. Errors of `write` are raised and leave nothing behind.
        """
        with self._lock:
            found = self._maps.get(name)
            if found is not None:
                self._maps.move_to_end(name)
                return found
        opened = self._open(name, size_bytes, write)
        with self._lock:
            self._maps[name] = opened
            while len(self._maps) > _MAX_OPEN:
                self._maps.popitem(last=False)
        return opened

    def __reduce__(self) -> tuple[Any, ...]:
        """In a spawned process: the same folder, nothing mapped yet."""
        return LocalCache, (self._directory, self._max_bytes)

    def _open(self, name: str, size_bytes: int, write: Callable[[IO[bytes]], None]) -> mmap.mmap:
        self._directory.mkdir(parents=True, exist_ok=True)
        final, part = self._directory / name, self._directory / f"{HALF_COPY}{name}"
        while True:
            with contextlib.suppress(FileNotFoundError), final.open("rb") as file:
                _flock(file, fcntl.LOCK_SH)
                if os.fstat(file.fileno()).st_size == size_bytes and _is_at(file, final):
                    os.utime(file.fileno())  # the time of its last use
                    self._make_room(0, own=file)
                    # The map keeps the lock: its descriptor is a copy of the file's.
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with part.open("ab+") as file:
                if not _try_lock(file):
                    _flock(file, fcntl.LOCK_SH)  # until its writer is done
                    continue
                if not _is_at(file, part):
                    continue  # renamed meanwhile, or evicted before it was locked
                with contextlib.suppress(FileNotFoundError):
                    if final.stat().st_size == size_bytes:
                        part.unlink()  # renamed before this one was created
                        continue
                self._write(file, final, size_bytes, write)
                _flock(file, fcntl.LOCK_SH)
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _write(
        self, file: IO[bytes], final: Path, size_bytes: int, write: Callable[[IO[bytes]], None]
    ) -> None:
        part = self._directory / f"{HALF_COPY}{final.name}"
        try:
            self._make_room(size_bytes, own=file)
            with part.open("r+b") as beginning:  # `file` only appends
                write(beginning)
                beginning.truncate()
                written = beginning.tell()
                os.fsync(beginning.fileno())
            if written != size_bytes:
                raise InfinegError(f"{final}: {written:,} bytes written, not {size_bytes:,}")
            part.replace(final)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC:
                raise
            raise InfinegError(
                f"{self._directory}: the disk is full; set train.cache_gb, or train.cache_dir to a "
                "larger one"
            ) from None
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self, size_bytes: int, *, own: IO[bytes]) -> None:
        """Evicts until `size_bytes` more are within the bound, and reserves them for `own`."""
        if self._max_bytes is None:
            return
        with (self._directory / _LOCK).open("a") as lock:
            _flock(lock, fcntl.LOCK_EX)
            if not self._evict(self._max_bytes - size_bytes, own):
                with self._lock:
                    self._maps.clear()
                self._evict(self._max_bytes - size_bytes, own)
            if size_bytes:
                os.truncate(own.fileno(), size_bytes)  # so that others count it

    def _evict(self, max_bytes: int, own: IO[bytes]) -> bool:
        """Evicts unused files; whether at most max_bytes are left."""
        files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
        total = sum(status.st_size for _, status in files)
        mine = os.fstat(own.fileno())
        for path, status in files:
            if total <= max_bytes:
                break
            if not os.path.samestat(status, mine) and _remove_unused(path):
                total -= status.st_size
        return total <= max_bytes

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name != _LOCK:
                    with contextlib.suppress(FileNotFoundError):
                        yield Path(entry.path), os.stat(entry.path)


def _remove_unused(path: Path) -> bool:
    """False if this or another process uses it."""
    try:
        with path.open("rb") as file:
            if not _try_lock(file):
                return False
            path.unlink()
    except FileNotFoundError:
        pass
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(file: IO[Any]) -> bool:
    """Whether nobody else has it."""
    try:
        _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock(file: IO[Any], operation: int) -> None:
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise ConfigError(
                f"{os.path.dirname(file.name)}: a file system without locks cannot be a shared "
                "cache; set train.cache_dir to a local disk"
            ) from None
        raise
