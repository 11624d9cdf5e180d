"""Reads, lists, measures and removes files and objects."""

import contextlib
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.errors import ConfigError
from pipeline.storage.locations import is_http, is_local, is_protocol, redact, resolve
from pipeline.storage.retry import retry
from pipeline.storage.streams import open_http, open_stream, read_http_range

A = TypeVar("A")
T = TypeVar("T")

# Small requests spend their time waiting for an answer.
_NUM_THREADS = 32
# docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_MAX_DELETED = 1000
# Of s3fs, adlfs and memory. gcsfs gives text, which is ignored.
_TIME_KEYS = ("LastModified", "last_modified", "created")
_PIECE_BYTES = 2**22
_MISSING = -1


def open_read(uri: str) -> IO[bytes]:
    """A buffered binary stream that reconnects; seekable unless an http server has no ranges."""
    fs, path = resolve(uri)
    what = f"read {redact(uri)}"
    if is_local(fs):
        return retry(lambda: open(path, "rb"), what)
    return open_http(fs, path, what) if is_http(fs) else open_stream(fs, path, what)


def read_bytes(uri: str) -> bytes:
    fs, path = resolve(uri)
    # Otherwise s3fs asks for the size first.
    options = {"max_concurrency": 1} if is_protocol(fs, "s3") else {}
    return bytes(retry(lambda: fs.cat_file(path, **options), f"read {redact(uri)}"))


def read_many(uris: Sequence[str]) -> list[bytes]:
    """The content of many small files, in order; in parallel over a network."""
    return map_many(read_bytes, uris, fs=resolve(uris[0])[0]) if uris else []


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, or fewer at the end; does not read what comes before."""
    fs, path = resolve(uri)
    what = f"read {redact(uri)}"
    if is_http(fs):
        return read_http_range(fs, path, what, offset=offset, size=size)
    return bytes(retry(lambda: fs.cat_file(path, start=offset, end=offset + size), what))


def exists(uri: str) -> bool:
    fs, path = resolve(uri)
    forget_listings(fs)
    try:
        # Not fs.exists: some drivers answer False for what they cannot reach.
        retry(lambda: fs.info(path), f"look for {redact(uri)}")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def list_files(uri: str, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Every file below a folder, sorted, relative to it; [] if there is no such folder.

    Suffixes are lower case and match any case. Links to folders are followed.
    """
    fs, path = resolve_listable(uri)
    root = path.rstrip("/") + "/"
    found = _find(fs, path, f"list {redact(uri)}")
    names = (name.removeprefix(root) for name in found if name.startswith(root))
    return sorted(name for name in names if name.lower().endswith(suffixes))


def list_times(uri: str, suffixes: tuple[str, ...] = ("",)) -> dict[str, datetime]:
    """Like `list_files`, with the time of each file's last change by the clock of the storage.

    Empty if the storage has no times.
    """
    fs, path = resolve_listable(uri)
    root = path.rstrip("/") + "/"
    what = f"list {redact(uri)}"
    times: dict[str, datetime] = {}
    if is_local(fs):
        for name in list_files(uri, suffixes):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                times[name] = datetime.fromtimestamp(os.stat(root + name).st_mtime, UTC)
        return times
    with contextlib.suppress(FileNotFoundError):
        found: dict[str, Any] = retry(lambda: fs.find(path, detail=True), what)
        for full, entry in found.items():
            name = full.removeprefix(root)
            time = next((entry[key] for key in _TIME_KEYS if entry.get(key)), None)
            if name.lower().endswith(suffixes) and isinstance(time, datetime):
                times[name] = time if time.tzinfo else time.replace(tzinfo=UTC)
    return dict(sorted(times.items()))


def list_prefix(uri_prefix: str) -> list[str]:
    """URIs, sorted, of the files of one folder whose names begin with what follows the last `/`.

    Not recursive; on S3 only keys with the prefix are listed.
    """
    folder, _, prefix = uri_prefix.rpartition("/")
    fs, path = resolve_listable(folder)
    try:
        found = retry(lambda: _names_in(fs, path, prefix), f"list {redact(uri_prefix)}*")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(f"{folder}/{name}" for name in found if name and name.startswith(prefix))


def remove_tree(uri: str) -> None:
    """Removes a folder or a file, if there is one."""
    fs, path = resolve_listable(uri)
    what = f"remove {redact(uri)}"
    if is_local(fs):
        with contextlib.suppress(FileNotFoundError):
            retry(lambda: fs.rm(path, recursive=True), what)
    else:
        # Not fs.rm: it takes `[1]` in a name for a pattern, and can remove a whole bucket.
        _remove_all(fs, _find(fs, path, what), what)


def remove_many(uris: Iterable[str]) -> None:
    """Removes files of one storage; missing ones are no error."""
    resolved = [resolve(uri) for uri in uris]
    if resolved:
        _remove_all(resolved[0][0], [path for _, path in resolved], "remove files")


def sha256_of(uri: str) -> str:
    """sha256 of a stored file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


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


def resolve_listable(uri: str) -> tuple[Any, str]:
    fs, path = resolve(uri)
    if is_http(fs):
        raise ConfigError(f"{redact(uri)}: http and https cannot be listed; name the files")
    forget_listings(fs)
    return fs, path


def _find(fs: Any, path: str, what: str) -> list[str]:
    """Full paths of all files below a folder, or of the file itself; [] if there is none."""
    if is_local(fs):
        return retry(lambda: [f"{path.rstrip('/')}/{name}" for name in _walk(path, "", ())], what)
    try:
        found = retry(lambda: fs.find(path), what)
    except FileNotFoundError:
        return []
    # A name that ends in / is a folder, which some tools write as an empty object.
    return [name for name in found if not name.endswith("/")]


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Files below a local folder, each after `prefix`; a link to a folder above is not followed."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as listing:
            entries = list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
        else:
            yield prefix + entry.name


def _names_in(fs: Any, path: str, prefix: str) -> list[str]:
    """Names of files in a folder: at least all that begin with `prefix`."""
    if is_local(fs):
        with os.scandir(path) as listing:
            return [e.name for e in listing if e.name.startswith(prefix) and e.is_file()]
    if is_protocol(fs, "s3"):
        return [name.rpartition("/")[2] for name in fs.find(path, maxdepth=1, prefix=prefix)]
    listed = fs.ls(path, detail=True)
    return [entry["name"].rpartition("/")[2] for entry in listed if entry["type"] == "file"]


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
    answer = retry(lambda: fs.call_s3("delete_objects", Bucket=bucket, Delete=request), what)
    return [keys[error["Key"]] for error in answer.get("Errors", [])]


def _remove_file(fs: Any, path: str, what: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: fs.rm_file(path), what)


def map_many(action: Callable[[A], T], arguments: Sequence[A], *, fs: Any) -> list[T]:
    """`action` of each, in order; in threads if the storage is remote."""
    if is_local(fs) or len(arguments) < 2:
        return [action(argument) for argument in arguments]
    with ThreadPoolExecutor(min(_NUM_THREADS, len(arguments))) as pool:
        return list(pool.map(action, arguments))


def forget_listings(fs: Any) -> None:
    """Drops cached listings: hf:// has no option for it, and other processes write, too."""
    if is_protocol(fs, "hf"):
        fs.invalidate_cache()


def size_of(uri: str) -> int | None:
    """Bytes of a stored file, without reading it; None if its server does not say."""
    fs, path = resolve(uri)
    forget_listings(fs)
    size = retry(lambda: fs.info(path), f"look for {redact(uri)}")["size"]
    return None if size is None else int(size)


def sizes_of(uris: Sequence[str]) -> dict[str, int | None]:
    """Bytes of each existing file, by URI; None if its server does not say.

    All of one storage. Takes one listing per folder where the storage can list.
    """
    if not uris:
        return {}
    fs, _ = resolve(uris[0])
    if is_local(fs) or is_http(fs):
        sizes = map_many(_size_or_missing, uris, fs=fs)
        return {uri: size for uri, size in zip(uris, sizes, strict=True) if size != _MISSING}
    listed: dict[str, int | None] = {}
    for folder in sorted({uri.rpartition("/")[0] for uri in uris}):
        fs, path = resolve_listable(folder)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            listed |= _list_sizes(fs, path, folder)
    return {uri: listed[uri] for uri in uris if uri in listed}


def _list_sizes(fs: Any, path: str, folder: str) -> dict[str, int | None]:
    """Bytes of each entry of a folder, by URI."""
    entries = retry(lambda: fs.ls(path, detail=True), f"list {redact(folder)}")
    return {f"{folder}/{entry['name'].rpartition('/')[2]}": entry["size"] for entry in entries}


def _size_or_missing(uri: str) -> int | None:
    try:
        return size_of(uri)
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING


def map_ahead(
    function: Callable[[A], T], arguments: Iterable[A], *, num_ahead: int = 16
) -> Iterator[T]:
    """`function` of each, in order, in threads; memory holds at most `num_ahead` results.

    An error is raised in place of its result, and no further call is started.
    """
    with ThreadPoolExecutor(num_ahead) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for argument in arguments:
                if len(waiting) == num_ahead:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, argument))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
