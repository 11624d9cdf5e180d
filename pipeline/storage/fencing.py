"""Writes below a folder that only the holder of its lease may make.

A process that writes to a data set registers a fence for its root. Every write, replacement and
removal below that root then asks it first, so that a process that was stopped for longer than its
lease lasts changes nothing when it goes on.

It may also be stopped between the answer and the change, while another one takes over and commits.
So no change there overwrites or removes what it has not seen before it asked: `fenced_files` does
that on a disk, `uploads` on S3.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from pipeline.storage.locations import is_protocol, resolve


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
    """In the block, changes below `root` ask the fence."""
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
    """In a worker, for as long as it lives: changes below `root` ask the fence of its driver."""
    if fence is not None:
        _fences.setdefault(_key(*resolve(root)), fence)


def is_fenced(fs: Any, path: str) -> bool:
    """Whether a file lies in a fenced root."""
    return _find(fs, path) is not None


def ask_fence(fs: Any, path: str) -> None:
    """Asks the fence of the root that a file lies in, if any.

    Raises the fence's error if the file may not be changed.
    """
    fence = _find(fs, path)
    if fence is not None:
        fence.check(read_if_there(*resolve(fence.uri)))


def read_if_there(fs: Any, path: str) -> bytes | None:
    """Content of a file; None if missing."""
    try:
        return cat_file(fs, path)
    except FileNotFoundError:
        return None


def cat_file(fs: Any, path: str) -> bytes:
    """Content of a file, in one request: by default s3fs first asks for the size."""
    options = {"max_concurrency": 1} if is_protocol(fs, "s3") else {}
    return bytes(fs.cat_file(path, **options))


def _find(fs: Any, path: str) -> Fence | None:
    """None also for the lease itself, which is changed only by conditional writes."""
    key = _key(fs, path)
    fence = next((fence for root, fence in _fences.items() if key.startswith(root)), None)
    return None if fence is None or key == _key(*resolve(fence.uri)) else fence


def _key(fs: Any, path: str) -> str:
    """Root or file: the protocol, then a path that ends in /."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return f"{protocol}:{path.rstrip('/')}/"
