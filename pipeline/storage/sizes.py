"""Sizes of stored files, of one or of many, without reading them."""

import contextlib
from collections.abc import Sequence
from typing import Any

from pipeline.storage.files import forget_listings, map_many, resolve_listable
from pipeline.storage.locations import is_http, is_local, resolve, shown
from pipeline.storage.transient import retry

_MISSING = -1


def size_of(uri: str) -> int | None:
    """Bytes of a stored file, without reading it; None where its server does not tell."""
    fs, path = resolve(uri)
    forget_listings(fs)
    size = retry(lambda: fs.info(path), f"look for {shown(uri)}")["size"]
    return None if size is None else int(size)


def sizes_of(uris: Sequence[str]) -> dict[str, int | None]:
    """Bytes of each that is there, by URI; None where its server does not tell.

    Of one storage, and by one listing a folder where there are listings.
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
    """Bytes of what is in a folder of a storage, by URI."""
    entries = retry(lambda: fs.ls(path, detail=True), f"list {shown(folder)}")
    return {f"{folder}/{entry['name'].rpartition('/')[2]}": entry["size"] for entry in entries}


def _size_or_missing(uri: str) -> int | None:
    try:
        return size_of(uri)
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
