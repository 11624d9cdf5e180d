"""Writes below a folder that only the holder of its lease may make.

A process that writes to a data set registers a fence for its root. Every write, replacement and
removal below that root then asks it first: a process that was stopped for longer than its lease
lasts changes nothing when it goes on.

On a disk the lease stays locked from the question to the change, so that nobody can take it over
in between. On S3, which has no locks, an upload besides takes effect only if the object is still
what it was when the lease was asked (`pipeline.storage.uploads`).
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.storage.locations import is_local, resolve

_LOCK_TIMEOUT_S = 2.0


class Fence(Protocol):
    """Says whether this process may write; is sent to workers."""

    @property
    def uri(self) -> str:
        """The file that says who may."""

    def check(self, content: bytes | None) -> None:
        """Raises InfinegError unless the file, by its content (None if missing), allows it."""


_fences: dict[str, Fence] = {}


@contextlib.contextmanager
def fenced(root: str, fence: Fence) -> Iterator[None]:
    """In the block, writes below `root` ask the fence."""
    key = _key(*resolve(root))
    before = _fences.get(key)
    _fences[key] = fence
    try:
        yield
    finally:
        if before is None:
            del _fences[key]
        else:
            _fences[key] = before


def fence_of(root: str) -> Fence | None:
    """The fence of this process for `root`, to be given to its workers."""
    return _fences.get(_key(*resolve(root)))


def fence_worker(root: str, fence: Fence | None) -> None:
    """In a worker, for as long as it lives: writes below `root` ask the fence of its driver."""
    if fence is not None:
        _fences.setdefault(_key(*resolve(root)), fence)


@contextlib.contextmanager
def allowed(fs: Any, path: str) -> Iterator[bool]:
    """A block in which a file may be changed; yields whether a fence was asked.

    Raises the fence's error if the file may not be changed.
    """
    fence = _find(fs, path)
    if fence is None:
        yield False
        return
    lease_fs, lease_path = resolve(fence.uri)
    if _key(fs, path) == _key(lease_fs, lease_path):
        yield False  # the lease itself, which is changed only by conditional writes
        return
    if is_local(lease_fs):
        with _locked_shared(lease_path) as content:
            fence.check(content)
            yield True
    else:
        fence.check(read_if_there(lease_fs, lease_path))
        yield True


def read_if_there(fs: Any, path: str) -> bytes | None:
    """Content of a file; None if missing."""
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def locked(path: str) -> Iterator[bytes | None]:
    """Content of a local file (None if missing) that no other process replaces meanwhile.

    The lock is on the file itself: a lock file beside it would stay in the user's folder.
    """
    try:
        handle = os.open(path, os.O_RDWR)  # NFS locks only files opened for writing
    except FileNotFoundError:
        yield None
        return
    with os.fdopen(handle, "rb") as file:
        _lock(handle, fcntl.LOCK_EX)
        # If it was replaced since it was opened, the lock is on a file without a name.
        yield file.read() if _is_current(handle, path) else None


@contextlib.contextmanager
def _locked_shared(path: str) -> Iterator[bytes | None]:
    """The same for many readers at once, of what the file is now."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            yield None
            return
        with os.fdopen(handle, "rb") as file:
            _lock(handle, fcntl.LOCK_SH)
            if _is_current(handle, path):
                yield file.read()
                return


def _is_current(handle: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(handle: int, kind: int) -> None:
    """Locks an open file until it is closed; waits for at most _LOCK_TIMEOUT_S."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another process keeps it locked") from None
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            return  # a file system without locks: comparing the content has to do


def _find(fs: Any, path: str) -> Fence | None:
    """The fence of the root that a file lies in."""
    if not _fences:
        return None
    key = _key(fs, path)
    return next((fence for root, fence in _fences.items() if key.startswith(root)), None)


def _key(fs: Any, path: str) -> str:
    """Root or file: the protocol, then a path that ends in /."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return f"{protocol}:{path.rstrip('/')}/"
