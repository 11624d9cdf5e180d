"""What tells that a file has changed, as far as a listing or a header says; reads no content."""

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.errors import InfinegError, TransientStorageError
from pipeline.storage.listings import forget_listings, list_visible, resolve_listable
from pipeline.storage.locations import is_http, is_local, join, redact, resolve
from pipeline.storage.retry import retry
from pipeline.storage.threads import map_many
from pipeline.storage.walking import is_hidden

# The names that drivers give to a hash or version of the content, and to the time of the last
# change: s3fs and http; gcsfs and adlfs; hf; then the times of s3fs, adlfs, gcsfs, memory.
_STAMPS = (
    "ETag", "etag", "blob_id", "Content-MD5", "Last-Modified",
    "LastModified", "last_modified", "updated", "created",
)  # fmt: skip
_MAX_ASKED_ONE_BY_ONE = 32  # of a folder; more are listed, a thousand names a request


class FileVersion(NamedTuple):
    """A stored file and its version.

    A storage without versions gives the time of the last change, which a copy has, too: another
    stamp says that the content may be another, another size that it is.
    """

    uri: str
    size: int | None  # bytes; None if its server does not say
    stamp: str  # "" if its server gives neither version nor time


def list_versions(uri: str) -> list[FileVersion]:
    """Of every visible file below a folder, sorted by name: what one listing says of it."""
    fs, path = resolve_listable(uri)
    root = path.rstrip("/") + "/"
    if is_local(fs):
        found = (_local_version(join(uri, name), root + name) for name in list_visible(uri))
        return [version for version in found if version is not None]
    entries: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        entries = retry(lambda: fs.find(path, detail=True), f"list {redact(uri)}")
    return [
        _version(join(uri, name), entry)
        for full, entry in sorted(entries.items())
        for name in [full.removeprefix(root)]
        if full.startswith(root) and not full.endswith("/") and not is_hidden(name)
    ]


def versions_of(uris: Iterable[str]) -> list[FileVersion]:
    """Of each that exists and is no folder; in no order."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for uri in uris:
        by_folder[uri.rpartition("/")[0]].append(uri)
    return [
        version
        for folder, members in by_folder.items()
        for version in _versions_in(folder, members)
        if version is not None
    ]


def _versions_in(folder: str, uris: list[str]) -> list[FileVersion | None]:
    fs, _ = resolve(uris[0])
    if is_local(fs):
        return [_local_version(uri, fs._strip_protocol(uri)) for uri in uris]
    if len(uris) > _MAX_ASKED_ONE_BY_ONE and not is_http(fs):
        try:
            return _listed_versions(folder, uris)
        except TransientStorageError:
            raise
        except InfinegError:
            pass  # many public buckets can be read and not listed
    forget_listings(fs)
    return map_many(_asked_version, uris, fs=fs)


def _local_version(uri: str, path: str) -> FileVersion | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # a link to itself: reading it is one reject
        return FileVersion(uri, None, "")
    if stat.S_ISDIR(status.st_mode):
        return None
    return FileVersion(uri, status.st_size, str(status.st_mtime_ns))


def _listed_versions(folder: str, uris: list[str]) -> list[FileVersion | None]:
    fs, path = resolve_listable(folder)
    try:
        entries = retry(lambda: fs.ls(path, detail=True), f"list {redact(folder)}")
    except (FileNotFoundError, NotADirectoryError):
        return []
    by_name = {entry["name"].rpartition("/")[2]: entry for entry in entries}
    return [
        _version(uri, entry)
        for uri in uris
        if (entry := by_name.get(uri.rpartition("/")[2])) is not None
    ]


def _asked_version(uri: str) -> FileVersion | None:
    fs, path = resolve(uri)
    try:
        return _version(uri, retry(lambda: fs.info(path), f"look for {redact(uri)}"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _version(uri: str, entry: dict[str, Any]) -> FileVersion:
    stamp = next((str(entry[key]) for key in _STAMPS if entry.get(key)), "")
    size = entry.get("size")
    return FileVersion(uri, None if size is None else int(size), stamp)
