"""Walks local folders: each once, however many links lead to it, and at any depth."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator

# A folder or file that cannot be read, and why.
OnError = Callable[[str, OSError], None]


def is_hidden(name: str) -> bool:
    """Whether a file lies in a hidden folder or is hidden, as are macOS's `._*` and `__MACOSX/*`.

    `name` is a path below the folder or archive that is read. Such files are never samples.
    """
    parts = name.split("/")
    return any(p == "__MACOSX" or (p.startswith(".") and p not in (".", "..")) for p in parts)


def walk(folder: str, *, is_passed_over: Callable[[str], bool], on_error: OnError) -> Iterator[str]:
    """Files below a folder, relative to it, in no order; links to folders are followed.

    `is_passed_over` gets the relative name of each folder and file. A folder that several names
    lead to is walked by its own name if that lies below `folder`, else by the first link. A link
    that leads nowhere is a file: reading it says what is wrong.
    """
    seen: set[tuple[int, int]] = set()
    links = deque([""])
    while links:
        folders = [links.popleft()]
        while folders:
            prefix = folders.pop()
            where = os.path.join(folder, prefix).rstrip("/") or "/"
            for entry in sorted(_entries(where, seen, on_error), key=lambda e: e.name):
                name = prefix + entry.name
                if is_passed_over(name):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(f"{name}/")
                elif _is_readable(entry, on_error):
                    yield name


def _entries(folder: str, seen: set[tuple[int, int]], on_error: OnError) -> list[os.DirEntry[str]]:
    """Entries of a folder that is not in `seen`, to which it is added."""
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return []
        seen.add(identity)
        with os.scandir(folder) as listing:
            return list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        on_error(folder, error)
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_readable(entry: os.DirEntry[str], on_error: OnError) -> bool:
    """Whether it is a file, or a link to one or to nowhere: reading a pipe would wait for ever."""
    try:
        if entry.is_file() or not os.path.exists(entry.path):
            return True
    except OSError:  # a link to itself
        return True
    on_error(entry.path, OSError(errno.EINVAL, "a pipe, socket or device"))
    return False
