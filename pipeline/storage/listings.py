"""Lists files and objects, and measures them."""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.errors import as_user_error
from pipeline.storage.locations import is_http, is_local, is_protocol, redact, resolve
from pipeline.storage.retry import retry
from pipeline.storage.threads import map_many
from pipeline.storage.walking import is_hidden, walk

_log = logging.getLogger(__name__)

# Of s3fs, adlfs and memory. gcsfs gives text, which is ignored.
_TIME_KEYS = ("LastModified", "last_modified", "created")
_MISSING = -1


def list_files(uri: str, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Every file below a folder, sorted, relative to it; [] if there is no such folder.

    Suffixes are lower case and match any case. Links to folders are followed, to each once.
    """
    fs, path = resolve_listable(uri)
    root = path.rstrip("/") + "/"
    found = find_files(fs, path, f"list {redact(uri)}")
    names = (name.removeprefix(root) for name in found if name.startswith(root))
    return sorted(name for name in names if name.lower().endswith(suffixes))


def list_visible(uri: str) -> list[str]:
    """Like `list_files`, without hidden files and all that lies in hidden folders."""
    fs, path = resolve_listable(uri)
    if is_local(fs):
        return sorted(_walk_local(path, is_passed_over=is_hidden))
    return [name for name in list_files(uri) if not is_hidden(name)]


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


def resolve_listable(uri: str) -> tuple[Any, str]:
    fs, path = resolve(uri)
    if is_http(fs):
        raise ConfigError(f"{redact(uri)}: http and https cannot be listed; name the files")
    forget_listings(fs)
    return fs, path


def forget_listings(fs: Any) -> None:
    """Drops cached listings: hf:// has no option for it, and other processes write, too."""
    if is_protocol(fs, "hf"):
        fs.invalidate_cache()


def _list_sizes(fs: Any, path: str, folder: str) -> dict[str, int | None]:
    """Bytes of each entry of a folder, by URI."""
    entries = retry(lambda: fs.ls(path, detail=True), f"list {redact(folder)}")
    return {f"{folder}/{entry['name'].rpartition('/')[2]}": entry["size"] for entry in entries}


def _size_or_missing(uri: str) -> int | None:
    try:
        return size_of(uri)
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING


def find_files(fs: Any, path: str, what: str) -> list[str]:
    """Full paths of all files below a folder, or of the file itself; [] if there is none."""
    if is_local(fs):
        names = _walk_local(path, is_passed_over=lambda _: False)
        return [f"{path.rstrip('/')}/{name}" for name in names]
    try:
        found = retry(lambda: fs.find(path), what)
    except FileNotFoundError:
        return []
    # A name that ends in / is a folder, which some tools write as an empty object.
    return [name for name in found if not name.endswith("/")]


def _walk_local(path: str, *, is_passed_over: Callable[[str], bool]) -> Iterator[str]:
    """Raises InfinegError at a folder that cannot be read: what is in it would be missing."""

    def stop(where: str, error: OSError) -> None:
        shown = redact(where)
        if error.errno == errno.EINVAL:
            _log.warning("%s: %s, passed over", shown, error.strerror)
            return
        raise as_user_error(error, f"list {shown}") or error

    return walk(path, is_passed_over=is_passed_over, on_error=stop)


def _names_in(fs: Any, path: str, prefix: str) -> list[str]:
    """Names of files in a folder: at least all that begin with `prefix`."""
    if is_local(fs):
        with os.scandir(path) as listing:
            return [e.name for e in listing if e.name.startswith(prefix) and e.is_file()]
    if is_protocol(fs, "s3"):
        return [name.rpartition("/")[2] for name in fs.find(path, maxdepth=1, prefix=prefix)]
    listed = fs.ls(path, detail=True)
    return [entry["name"].rpartition("/")[2] for entry in listed if entry["type"] == "file"]
