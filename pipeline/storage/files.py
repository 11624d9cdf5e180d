"""Reads and removes files and objects."""

import contextlib
import hashlib
import io
import itertools
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.errors import InfinegError
from pipeline.storage.fenced_files import remove_fenced
from pipeline.storage.fencing import ask_fence, cat_file, is_fenced
from pipeline.storage.listings import find_files, forget_listings, resolve_listable
from pipeline.storage.locations import is_http, is_local, is_protocol, redact, resolve
from pipeline.storage.public import public_only
from pipeline.storage.retry import retry
from pipeline.storage.streams import HttpBody, ResumedFile, read_http_range
from pipeline.storage.threads import map_many
from pipeline.storage.uploads import remove_object

# docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_MAX_DELETED = 1000
_PIECE_BYTES = 2**22
_BUFFER_BYTES = 2**20  # a tar reader reads much less at once


def open_read(uri: str, *, allow_private: bool = True) -> io.BufferedReader:
    """A buffered binary stream that reconnects; seekable unless an http server has no ranges.

    Raises PrivateAddress for an http server that is none of the internet, unless `allow_private`.
    """
    fs, path = resolve(uri)
    if is_http(fs) and not allow_private:
        fs = public_only(fs)
    what = f"read {redact(uri)}"
    if is_local(fs):
        return retry(lambda: _open_local(path), what)
    kind = HttpBody if is_http(fs) else ResumedFile
    return io.BufferedReader(kind(fs, path, what), _BUFFER_BYTES)


def read_bytes(uri: str) -> bytes:
    fs, path = resolve(uri)
    if is_http(fs):
        with open_read(uri) as stream:
            return stream.read()
    if is_local(fs):
        return retry(lambda: read_local(path, 0, -1), f"read {redact(uri)}")
    return retry(lambda: cat_file(fs, path), f"read {redact(uri)}")


def read_many(uris: Sequence[str]) -> list[bytes]:
    """The content of many small files, in order; in parallel over a network."""
    return map_many(read_bytes, uris, fs=resolve(uris[0])[0]) if uris else []


def read_range(
    uri: str,
    offset: int,
    size: int,
    *,
    http_deadline_s: float | None = None,
    allow_private: bool = True,
) -> bytes:
    """`size` bytes from `offset`, or fewer at the end; does not read what comes before.

    Raises InfinegError if an http server has not sent them after `http_deadline_s`, and
    PrivateAddress for one that is none of the internet, unless `allow_private`.
    """
    fs, path = resolve(uri)
    what = f"read {redact(uri)}"
    if is_http(fs):
        fs = fs if allow_private else public_only(fs)
        return read_http_range(fs, path, what, offset=offset, size=size, deadline_s=http_deadline_s)
    if is_local(fs):
        return retry(lambda: read_local(path, offset, size), what)
    return bytes(retry(lambda: fs.cat_file(path, start=offset, end=offset + size), what))


def _open_local(path: str) -> io.BufferedReader:
    """Without waiting for the other end of a pipe, and no device, which may never end."""
    file = open(  # noqa: SIM115 - the caller closes it
        path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InfinegError(f"read {path}: a pipe, socket or device; a file is wanted")
    return file


def read_local(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file, -1 for all; raises OSError, and InfinegError for a pipe or device."""
    with _open_local(path) as file:
        file.seek(offset)
        return file.read(size)


def exists(uri: str) -> bool:
    fs, path = resolve(uri)
    forget_listings(fs)
    try:
        # Not fs.exists: some drivers answer False for what they cannot reach.
        retry(lambda: fs.info(path), f"look for {redact(uri)}")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove_tree(uri: str) -> None:
    """Removes a folder or a file, if there is one."""
    fs, path = resolve_listable(uri)
    what = f"remove {redact(uri)}"
    if is_local(fs):
        with contextlib.suppress(FileNotFoundError):
            retry(lambda: _remove_folder(fs, path), what)
    else:
        # Not fs.rm: it takes `[1]` in a name for a pattern, and can remove a whole bucket.
        _remove_all(fs, find_files(fs, path, what), what)


def _remove_folder(fs: Any, path: str) -> None:
    if not is_fenced(fs, path):
        fs.rm(path, recursive=True)
        return
    if os.path.isfile(path):
        _remove_file(fs, path, f"remove {path}")
    # One by one, so that the lease is asked for each; new files stay, with their folders.
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            ask_fence(fs, path)
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def remove_many(uris: Iterable[str]) -> None:
    """Removes files of one storage; missing ones are no error.

    Below a fenced root each is removed only if it is what was there when the fence was asked.
    """
    resolved = [resolve(uri) for uri in uris]
    if not resolved:
        return
    fs, paths = resolved[0][0], [path for _, path in resolved]
    if is_fenced(fs, paths[0]):
        map_many(lambda path: _remove_file(fs, path, "remove files"), paths, fs=fs)
    else:
        _remove_all(fs, paths, "remove files")


def sha256_of(uri: str) -> str:
    """sha256 of a stored file, read in pieces."""
    with open_read(uri) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(uri: str, file: IO[bytes]) -> tuple[str, int]:
    """Copies the content of `uri` into an open file; returns its sha256 and size."""
    digest, size_bytes = hashlib.sha256(), 0
    with open_read(uri) as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
            size_bytes += len(piece)
    return digest.hexdigest(), size_bytes


def local_path(uri: str) -> Path | None:
    """The path of `uri` on this machine; None if it is elsewhere."""
    fs, path = resolve(uri)
    return Path(path) if is_local(fs) else None


def _remove_all(fs: Any, paths: Sequence[str], what: str) -> None:
    if is_protocol(fs, "s3"):
        batches = [paths[i : i + _MAX_DELETED] for i in range(0, len(paths), _MAX_DELETED)]
        refused = map_many(lambda batch: _delete_objects(fs, batch, what), batches, fs=fs)
        # One by one, they are retried or raise their own error.
        paths = list(itertools.chain.from_iterable(refused))
    map_many(lambda path: _remove_file(fs, path, what), paths, fs=fs)


def _delete_objects(fs: Any, paths: Sequence[str], what: str) -> list[str]:
    """Deletes objects of one bucket in one request; returns those that were refused."""
    keys = {fs.split_path(path)[1]: path for path in paths}
    bucket = fs.split_path(paths[0])[0]
    request = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

    def delete() -> Any:
        ask_fence(fs, paths[0])
        return fs.call_s3("delete_objects", Bucket=bucket, Delete=request)

    answer = retry(delete, what)
    return [keys[error["Key"]] for error in answer.get("Errors", [])]


def _remove_file(fs: Any, path: str, what: str) -> None:
    def remove() -> None:
        if not is_fenced(fs, path):
            fs.rm_file(path)
        elif is_local(fs):
            remove_fenced(path, lambda: ask_fence(fs, path))
        elif is_protocol(fs, "s3"):
            remove_object(fs, path)
        else:
            ask_fence(fs, path)
            fs.rm_file(path)

    with contextlib.suppress(FileNotFoundError):
        retry(remove, what)
