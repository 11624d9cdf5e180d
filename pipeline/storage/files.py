"""Reads, lists, removes and fetches files and objects."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.storage.locations import is_local, is_protocol, resolve, shown
from pipeline.storage.transient import retry

T = TypeVar("T")

# Small requests spend their time waiting for an answer.
_NUM_THREADS = 32
# Of one request of S3.
_MAX_DELETED = 1000


def open_read(uri: str) -> IO[bytes]:
    """A binary stream, seekable where the storage allows."""
    fs, path = resolve(uri)
    file: IO[bytes] = retry(lambda: fs.open(path, "rb"), f"open {shown(uri)}")
    return file


def read_bytes(uri: str) -> bytes:
    fs, path = resolve(uri)
    # Else s3fs asks for the size first.
    options = {"max_concurrency": 1} if is_protocol(fs, "s3") else {}
    return bytes(retry(lambda: fs.cat_file(path, **options), f"read {shown(uri)}"))


def read_many(uris: Sequence[str]) -> list[bytes]:
    """The content of many small files, in their order; all at once on an object store."""
    return _map_many(read_bytes, uris)


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`, without reading what comes before."""
    fs, path = resolve(uri)
    return bytes(
        retry(lambda: fs.cat_file(path, start=offset, end=offset + size), f"read {shown(uri)}")
    )


def exists(uri: str) -> bool:
    fs, path = resolve(uri)
    _forget_listings(fs)
    try:
        # Not fs.exists: for some drivers, whatever they cannot reach does not exist.
        retry(lambda: fs.info(path), f"look for {shown(uri)}")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def list_files(uri: str, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Every file below a folder, sorted, relative to it; [] where there is no such folder."""
    fs, path = resolve(uri)
    _forget_listings(fs)
    try:
        found = retry(lambda: fs.find(path), f"list {shown(uri)}")
    except FileNotFoundError:
        return []
    root = path.rstrip("/") + "/"
    names = (name.removeprefix(root) for name in found)
    return sorted(name for name in names if name.lower().endswith(suffixes))


def list_prefix(uri_prefix: str) -> list[str]:
    """URIs, sorted, of the files of one folder whose names begin with what follows the last `/`.

    Neither the rest of the folder nor what is below it is listed (on a disk, the folder is).
    """
    folder, _, prefix = uri_prefix.rpartition("/")
    fs, path = resolve(folder)
    _forget_listings(fs)
    try:
        found = retry(lambda: _names_in(fs, path, prefix), f"list {shown(uri_prefix)}*")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(f"{folder}/{name}" for name in found if name.startswith(prefix))


def remove_tree(uri: str) -> None:
    """Removes a folder or a file; nothing happens where there is none."""
    fs, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: fs.rm(path, recursive=True), f"remove {shown(uri)}")


def remove_many(uris: Iterable[str]) -> None:
    """Removes files; those that are gone already are no error."""
    _map_many(_remove_file, list(uris))


def sha256_of(uri: str) -> str:
    """sha256 of a stored file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fetch(uri: str, directory: Path) -> Path:
    """A local path with the content of `uri`: itself when local, else a copy in `directory`."""
    fs, path = resolve(uri)
    if is_local(fs):
        return Path(path)
    name = hashlib.sha256(uri.encode()).hexdigest()[:16] + "-" + Path(path).name
    local = directory / name
    if not local.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # A place of its own: several workers may fetch the same file at once.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tmp-") as temporary:
            part = str(Path(temporary) / name)
            retry(lambda: fs.get_file(path, part), f"fetch {shown(uri)}")
            os.replace(part, local)
    return local


def _names_in(fs: Any, path: str, prefix: str) -> list[str]:
    """Names of the files of a folder, at least all of those that begin with `prefix`."""
    if is_local(fs):
        with os.scandir(path) as entries:
            return [e.name for e in entries if e.name.startswith(prefix) and e.is_file()]
    if is_protocol(fs, "s3"):
        found = fs.find(path, maxdepth=1, prefix=prefix) if prefix else fs.find(path, maxdepth=1)
        return [name.rpartition("/")[2] for name in found]
    entries = fs.ls(path, detail=True)
    return [e["name"].rpartition("/")[2] for e in entries if e["type"] == "file"]


def _remove_file(uri: str) -> None:
    fs, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        retry(lambda: fs.rm_file(path), f"remove {shown(uri)}")


def _map_many(action: Callable[[str], T], uris: Sequence[str]) -> list[T]:
    """`action` of each, in order; in threads where there is a network between."""
    if not uris or is_local(resolve(uris[0])[0]):
        return [action(uri) for uri in uris]
    with ThreadPoolExecutor(min(_NUM_THREADS, len(uris))) as pool:
        return list(pool.map(action, uris))


def _forget_listings(fs: Any) -> None:
    """Another process may have written since: hf:// has no option against its cache."""
    if is_protocol(fs, "hf"):
        fs.invalidate_cache()
