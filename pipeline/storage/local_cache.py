"""A folder of local copies that processes share, bounded: what was not used longest goes first.

Whoever maps a copy holds a shared lock on it, so that what is in use is never evicted: its space
would not be freed. A copy is written under an exclusive lock and then renamed: it is seen whole or
not at all, and others that want it wait instead of fetching it, too. A process that stops frees
its locks; what it had half written is written anew by the next, or evicted.

Where copies in use fill the bound, a process gives up all its maps but the one that it opens, so
that the folder exceeds the bound by at most one copy a process.
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

_MAX_OPEN = 256  # maps of a process; each costs a file descriptor
_PART, _LOCK = ".part-", ".lock"


class LocalCache:
    """Read-only maps of files of `directory`, by name. Many processes and threads may share it."""

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int | None = None) -> None:
        self._directory = Path(directory).expanduser()
        self._max_bytes = max_bytes
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()

    def map(self, name: str, size_bytes: int, write: Callable[[IO[bytes]], None]) -> mmap.mmap:
        """The file `name`, written by `write` where there is none of that size.

        To be used at once and not kept: only while it is referenced is the file safe from
        eviction. Errors of `write` are raised, and leave nothing behind.
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
        """For a process that is not forked: the same folder, nothing mapped yet."""
        return LocalCache, (self._directory, self._max_bytes)

    def _open(self, name: str, size_bytes: int, write: Callable[[IO[bytes]], None]) -> mmap.mmap:
        self._directory.mkdir(parents=True, exist_ok=True)
        final, part = self._directory / name, self._directory / f"{_PART}{name}"
        while True:
            with contextlib.suppress(FileNotFoundError), final.open("rb") as file:
                _flock(file, fcntl.LOCK_SH)
                if os.fstat(file.fileno()).st_size == size_bytes and _is_at(file, final):
                    os.utime(file.fileno())  # the time of its last use
                    self._make_room(0, own=file)
                    return _map(file)
            with part.open("ab+") as file:
                if not _try_lock(file):
                    _flock(file, fcntl.LOCK_SH)  # until whoever writes it is done
                    continue
                if not _is_at(file, part):
                    continue  # it has been renamed meanwhile, or evicted before it was locked
                if _has_size(final, size_bytes):
                    part.unlink()  # renamed before this one was made
                    continue
                self._write(file, final, size_bytes, write)
                _flock(file, fcntl.LOCK_SH)
                return _map(file)

    def _write(
        self, file: IO[bytes], final: Path, size_bytes: int, write: Callable[[IO[bytes]], None]
    ) -> None:
        part = self._directory / f"{_PART}{final.name}"
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
        """Evicts until `size_bytes` more are within the bound, and takes that room for `own`."""
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
        """Whether no more than max_bytes are left."""
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
    """False where another process, or this one, has it in use."""
    try:
        with path.open("rb") as file:
            if not _try_lock(file):
                return False
            path.unlink()
    except FileNotFoundError:
        pass
    return True


def _map(file: IO[bytes]) -> mmap.mmap:
    """The map has the lock, too: its descriptor is a copy of the file's."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def _try_lock(file: IO[Any]) -> bool:
    """Whether nobody else had it."""
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
