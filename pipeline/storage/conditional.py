"""Conditional writes of small files: create, compare and swap, compare and remove.

Of several writers at once only one succeeds. On a disk: a hard link, which fails if the name is
taken, and a lock on the file to replace (both work on NFS, too). On S3: the conditions
If-None-Match and If-Match. Content must be unique to the writer, e.g. by a random id: an upload
whose answer was lost is sent again (drivers do so, too) and then refused, and only the content
shows whose it was.
"""

import contextlib
import errno
import fcntl
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import TransientStorageError
from pipeline.storage.atomic import (
    make_parents,
    put_in_place,
    resolve_writable,
    sync_directory,
    sync_file,
)
from pipeline.storage.errors import is_refused
from pipeline.storage.fencing import ask_fence, read_if_there
from pipeline.storage.locations import is_local, is_protocol, redact
from pipeline.storage.retry import retry

# memory:// lives in one process, where a check and a write are two steps.
_memory_lock = threading.Lock()
_LOCK_TIMEOUT_S = 2.0
# Doubled each time, at random below that, because writers who failed together would meet again.
_NUM_TRIES_TOGETHER, _FIRST_WAIT_TOGETHER_S = 12, 0.002


def create_exclusive(uri: str, data: bytes) -> bool:
    """Creates a small file, whole; False if it exists. Of all writers at once, one gets True."""
    fs, path = resolve_writable(uri)
    what = f"create {redact(uri)}"

    def create() -> bool:
        ask_fence(fs, path)
        if is_local(fs):
            return _link_new(data, path)
        try:
            fs.pipe_file(path, data, mode="create")  # S3: If-None-Match: *
        except OSError as error:
            if not is_refused(error):
                raise
            return read_if_there(fs, path) == data
        return True

    with _memory_lock if is_protocol(fs, "memory") else contextlib.nullcontext():
        return retry(create, what)


def replace_if(uri: str, old: bytes, new: bytes) -> bool:
    """Replaces a small file if its content is `old`; else False.

    Of all writers at once, one gets True.
    """
    fs, path = resolve_writable(uri)

    def put_local() -> None:
        put_in_place(_written_beside(new, path), path)

    def put(condition: dict[str, str]) -> None:
        fs.pipe_file(path, new, **condition)

    return _change_if(uri, old, new, local=put_local, remote=put)


def remove_if(uri: str, old: bytes) -> bool:
    """Removes a small file if its content is `old`; else False, also if there is none."""
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
    """Changes a file from `old` to `new` (None removes it); False if it is not `old`."""
    fs, path = resolve_writable(uri)

    def change() -> bool:
        with _current(fs, path) as (content, condition):
            ask_fence(fs, path)
            if content != old:
                return content is not None and content == new
            if is_local(fs):
                local()
                sync_directory(os.path.dirname(path))
                return True
            try:
                remote(condition)
            except OSError as error:
                if not is_refused(error):
                    raise
                return read_if_there(fs, path) == new
            return True

    return retry(change, f"replace {redact(uri)}" if new is not None else f"remove {redact(uri)}")


@contextlib.contextmanager
def _current(fs: Any, path: str) -> Iterator[tuple[bytes | None, dict[str, str]]]:
    """Content of a file (None if missing), and a condition that holds while it is the same."""
    if is_local(fs):
        with _locked(path) as content:
            yield content, {}
        return
    with _memory_lock if is_protocol(fs, "memory") else contextlib.nullcontext():
        try:
            # In this order: the condition must not be newer than the content.
            condition = {"IfMatch": fs.info(path)["ETag"]} if is_protocol(fs, "s3") else {}
        except FileNotFoundError:
            yield None, {}
        else:
            yield read_if_there(fs, path), condition


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bytes | None]:
    """Content of a local file (None if missing) that no other process replaces meanwhile.

    The lock is on the file itself: a lock file beside it would stay in the user's folder.
    """
    try:
        handle = os.open(path, os.O_RDWR)  # NFS locks only files opened for writing
    except FileNotFoundError:
        yield None
        return
    with os.fdopen(handle, "rb") as file:
        _lock(handle)
        try:
            is_current = os.path.samestat(os.fstat(handle), os.stat(path))
        except FileNotFoundError:
            is_current = False
        # If it was replaced since it was opened, the lock is on a file without a name.
        yield file.read() if is_current else None


def _lock(handle: int) -> None:
    """Locks an open file until it is closed; waits for at most _LOCK_TIMEOUT_S."""
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
            return  # a file system without locks: comparing the content has to do


def _link_new(data: bytes, path: str) -> bool:
    temporary = _written_beside(data, path)
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        return False  # another was faster, or a faster one has swept the folder
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
    """For a file system without links: as exclusive, but a reader may see half a file."""
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


def until_written(write: Callable[[], bool], uri: str) -> None:
    """Calls `write`, which reads a file and replaces what it has read, until it succeeds.

    Raises TransientStorageError if others have changed the file each time, for some 8 s.
    """
    for attempt in range(_NUM_TRIES_TOGETHER):
        if write():
            return
        time.sleep(random.uniform(0, _FIRST_WAIT_TOGETHER_S * 2**attempt))
    raise TransientStorageError(f"{redact(uri)} keeps changing; try again")
