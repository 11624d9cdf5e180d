"""Small files that only one of many writers can win: create, compare and swap, compare and remove.

On a disk: a hard link, which fails where there is a name, and a lock on the file that is to be
replaced (both hold on NFS, too). On S3: the conditions If-None-Match and If-Match. Content has to
be the writer's own, such as with a random id: an upload whose answer was lost is sent again, also
by drivers unasked, and is then refused; what is there tells whose it was.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.storage.atomic import (
    make_parents,
    put_in_place,
    resolve_writable,
    sync_directory,
    sync_file,
)
from pipeline.storage.errors import s3_code
from pipeline.storage.locations import is_local, is_protocol, redact
from pipeline.storage.retry import retry

# `memory://` is one process; its own check and write are two steps.
_memory_lock = threading.Lock()
_LOCK_TIMEOUT_S = 2.0


def create_exclusive(uri: str, data: bytes) -> bool:
    """Writes a small file if there is none, whole; False where there is one.

    Of all writers at once, one gets True.
    """
    fs, path = resolve_writable(uri)
    what = f"create {redact(uri)}"
    if is_local(fs):
        return retry(lambda: _link_new(data, path), what)

    def upload() -> bool:
        try:
            # S3 and az: If-None-Match: *; gs: ifGenerationMatch=0.
            fs.pipe_file(path, data, mode="create")
        except OSError as error:
            if not _is_refused(error):
                raise
            return _content(fs, path) == data
        return True

    with _memory_lock if is_protocol(fs, "memory") else contextlib.nullcontext():
        return retry(upload, what)


def replace_if(uri: str, old: bytes, new: bytes) -> bool:
    """Replaces a small file if its content is `old`; False where it is not.

    Of all writers at once on a disk, on S3 or in memory, one gets True. Elsewhere the content is
    compared, but two that write in the same moment both get True, and the last one has won.
    """
    fs, path = resolve_writable(uri)

    def put_local() -> None:
        put_in_place(_written_beside(new, path), path)

    def put(condition: dict[str, str]) -> None:
        fs.pipe_file(path, new, **condition)

    return _change_if(uri, old, new, local=put_local, remote=put)


def remove_if(uri: str, old: bytes) -> bool:
    """Removes a small file if its content is `old`; False where it is not, or none is there."""
    fs, path = resolve_writable(uri)

    def remove(condition: dict[str, str]) -> None:
        if condition:
            bucket, key, _ = fs.split_path(path)
            fs.call_s3("delete_object", Bucket=bucket, Key=key, **condition)
        else:
            fs.rm_file(path)

    return _change_if(uri, old, None, local=lambda: os.unlink(path), remote=remove)


def _change_if(
    uri: str,
    old: bytes,
    new: bytes | None,
    *,
    local: Callable[[], None],
    remote: Callable[[dict[str, str]], None],
) -> bool:
    """Changes a file from `old` to `new`, None for gone; False where it is not `old`."""
    fs, path = resolve_writable(uri)

    def change() -> bool:
        with _current(fs, path) as (content, condition):
            if content != old:
                return content is not None and content == new
            if is_local(fs):
                local()
                sync_directory(os.path.dirname(path))
                return True
            try:
                remote(condition)
            except OSError as error:
                if not _is_refused(error):
                    raise
                return _content(fs, path) == new
            return True

    return retry(change, f"replace {redact(uri)}" if new is not None else f"remove {redact(uri)}")


@contextlib.contextmanager
def _current(fs: Any, path: str) -> Iterator[tuple[bytes | None, dict[str, str]]]:
    """Content of a file, None for none, and the condition under which it still has it."""
    if is_local(fs):
        with _locked(path) as content:
            yield content, {}
        return
    with _memory_lock if is_protocol(fs, "memory") else contextlib.nullcontext():
        try:
            # In this order: the condition must not be younger than the content.
            condition = {"IfMatch": fs.info(path)["ETag"]} if is_protocol(fs, "s3") else {}
        except FileNotFoundError:
            yield None, {}
        else:
            yield _content(fs, path), condition


def _content(fs: Any, path: str) -> bytes | None:
    """Content of a file, None for none."""
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bytes | None]:
    """Content of a local file that no other process replaces meanwhile; None for none."""
    try:
        handle = os.open(path, os.O_RDWR)  # NFS locks only what may be written
    except FileNotFoundError:
        yield None
        return
    with os.fdopen(handle, "rb") as file:
        _lock(handle)
        try:
            is_current = os.path.samestat(os.fstat(handle), os.stat(path))
        except FileNotFoundError:
            is_current = False
        # Replaced since it was opened, the lock is on a file that is no more.
        yield file.read() if is_current else None


def _lock(handle: int) -> None:
    """Locks an open file until it is closed; a process that stopped with the lock is no trap."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another process keeps it locked") from None
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            return  # a file system without locks: that the content is compared has to do


def _link_new(data: bytes, path: str) -> bool:
    temporary = _written_beside(data, path)
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        return False  # another was faster, or has swept the folder, which is for who was faster
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return _open_new(data, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_directory(os.path.dirname(path))
    return True


def _open_new(data: bytes, path: str) -> bool:
    """For a file system without links: no less exclusive, but a reader may see half of it."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            sync_file(file)
    except FileExistsError:
        return False
    sync_directory(os.path.dirname(path))
    return True


def _written_beside(data: bytes, path: str) -> str:
    """A synced temporary file, readable by all, in the folder of `path`."""
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=make_parents(path))
    with os.fdopen(handle, "wb") as file:
        os.chmod(temporary, 0o644)
        file.write(data)
        sync_file(file)
    return temporary


def _is_refused(error: OSError) -> bool:
    """True where a condition did not hold, or what it is about is gone."""
    if isinstance(error, FileExistsError):
        return True
    codes = {s3_code(error), s3_code(error.__cause__)}
    return not codes.isdisjoint({"PreconditionFailed", "412", "NoSuchKey"})
