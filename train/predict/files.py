"""Pictures wherever they are: files, folders, globs, URLs, tars, tables, and lists of these."""

import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline import storage
from pipeline.dataset.decoders import image_suffixes
from pipeline.errors import ConfigError, InfinegError, TransientStorageError

MAX_FILE_BYTES = 256 << 20  # as of an image in a tar
STDIN = "-"

_TARS = (".tar", ".tar.gz", ".tgz")
_TABLES = (".parquet", ".pq")
_WILDCARDS = "*?["
_DEADLINE_S = 20.0  # for one picture from a web server


@dataclass(frozen=True)
class Picture:
    """The name of a picture, and its encoded bytes once they are asked for.

    `read` raises OSError or InfinegError if it cannot be read. is_remote: reading means waiting.
    """

    name: str
    read: Callable[[], bytes]
    is_remote: bool = False


def find_pictures(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Picture]:
    """The pictures of each path, in order: those of folders by name, those of archives as they lie.

    A path is a file or folder, a glob, an address such as https:// or s3:// (of a file, or of a
    folder or glob where a storage can list), a tar or a parquet table anywhere, or "-": one such
    path a line of stdin. Raises ConfigError, before the first picture, for a path that leads
    nowhere; a line of stdin that does is a picture that cannot be read.
    """
    found = [_find(os.fspath(path)) for path in paths]
    return _fetched_ahead(itertools.chain.from_iterable(found))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file. Raises OSError, and InfinegError for what is no image file."""
    return _within_limit(storage.read_local(os.fspath(path), 0, MAX_FILE_BYTES + 1))


def _within_limit(content: bytes) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise InfinegError(f"over {MAX_FILE_BYTES:,} bytes, which no image has")
    return content


def _find(path: str) -> Iterator[Picture]:
    if path == STDIN:
        return itertools.chain.from_iterable(map(_find_listed, sys.stdin))
    if "://" in path:
        return _find_remote(path)
    if not path:  # of a shell's variable that is not set; to pathlib it is the working folder
        raise ConfigError("an empty path: name a file or a folder, such as .")
    local = Path(path)
    try:
        is_folder, exists = local.is_dir(), local.exists()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise ConfigError(f"{path}: {error.strerror}") from None
    if is_folder:
        return _walk(local)
    if exists:
        return _in_archive(path) or iter([Picture(path, partial(read_file, path))])
    if matching := sorted(glob.iglob(path, recursive=True)):
        return itertools.chain.from_iterable(map(_find, matching))
    is_glob = any(character in path for character in _WILDCARDS)
    what = "no file or folder matches" if is_glob else "no such file or folder"
    raise ConfigError(f"{path}: {what}")


def _find_listed(line: str) -> Iterator[Picture]:
    path = line.rstrip("\r\n")
    if not path or path == STDIN:
        return
    try:
        for picture in _find(path):
            yield replace(picture, read=partial(_read_listed, picture.read))
    except ConfigError as error:
        yield _unreadable(path, str(error).removeprefix(f"{path}: "))


def _read_listed(read: Callable[[], bytes]) -> bytes:
    """A line that is no address, or needs credentials that are missing, costs no other line."""
    try:
        return read()
    except ConfigError as error:
        raise InfinegError(str(error)) from None


def _find_remote(uri: str) -> Iterator[Picture]:
    if archived := _in_archive(uri):
        return archived
    if uri.lower().startswith(("http://", "https://")):
        return iter([_remote(uri)])
    from pipeline.sources.readers.patterns import find_all_files

    return map(_remote, find_all_files([uri], image_suffixes()))


def _remote(uri: str) -> Picture:
    return Picture(storage.redact(uri), partial(_read_remote, uri), is_remote=True)


def _read_remote(uri: str) -> bytes:
    try:
        return _within_limit(
            storage.read_range(uri, 0, MAX_FILE_BYTES + 1, http_deadline_s=_DEADLINE_S)
        )
    except ValueError as error:  # of aiohttp: not a URL
        raise InfinegError(str(error)) from None


def _walk(folder: Path) -> Iterator[Picture]:
    """Files that sources read, too; what cannot be read comes last, with its error."""
    unreadable = []

    def add(path: str, error: OSError) -> None:
        unreadable.append(_unreadable(path, error.strerror or str(error)))

    names = storage.walk(str(folder), is_passed_over=storage.is_hidden, on_error=add)
    for name in sorted(names, key=lambda name: name.split("/")):
        path = str(folder / name)
        yield Picture(path, partial(read_file, path))
    yield from unreadable


def _unreadable(name: str, reason: str) -> Picture:
    def refuse() -> bytes:
        raise InfinegError(reason)

    return Picture(name, refuse)


def _in_archive(uri: str) -> Iterator[Picture] | None:
    """The pictures of a tar or table, by the source that builds read it with; else None."""
    if uri.lower().endswith(_TARS):
        return _read_source("webdataset", uri)
    if uri.lower().endswith(_TABLES):
        return _read_source("parquet", uri)
    return None


def _read_source(kind: str, uri: str) -> Iterator[Picture]:
    from pipeline.sources import open_source  # not needed for files

    source = open_source(kind, {"urls": [uri]})
    try:
        for partition in source.partitions():
            for sample in source.read(partition):
                if sample.refused is None:
                    yield Picture(storage.redact(sample.uri), partial(bytes, sample.image))
                else:
                    yield _unreadable(storage.redact(sample.uri), sample.refused)
    except (ConfigError, TransientStorageError):
        raise
    except (InfinegError, OSError) as error:  # after all that could be read
        yield _unreadable(storage.redact(uri), str(error))


def _fetched_ahead(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """The same; several remote ones are read at once, while others wait for the network."""
    for is_remote, group in itertools.groupby(pictures, key=lambda picture: picture.is_remote):
        if is_remote:
            group = storage.map_ahead(_fetched, group)
        yield from group


def _fetched(picture: Picture) -> Picture:
    try:
        return Picture(picture.name, partial(bytes, picture.read()))
    except ConfigError:
        raise
    except (OSError, InfinegError) as error:
        return _unreadable(picture.name, _reason(error))


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
