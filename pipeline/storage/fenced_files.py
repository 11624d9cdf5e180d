"""Changes to local files that another process may have changed since the lease was asked.

A new file is linked to its name, which fails if the name is taken. What is there already is first
moved aside: if it is not the file that was there before the lease was asked, it goes back. Every
writer puts a file of its own there, even one of the same content, so that inode, time and size
identify a file.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

_NUM_TRIES = 10
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)

_Identity = tuple[int, int, int]


def put_fenced(temporary: str, path: str, ask: Callable[[], object], *, replaces: bool) -> None:
    """Gives a temporary file in the same folder its name. ask: raises if that is not allowed.

    replaces: a file that is there is replaced in one step, for those who may read it now, even if
    another process has written it since: for what is derived from other files.
    """
    for _ in range(_NUM_TRIES):
        seen = _identity(path)
        ask()
        if seen is not None and replaces:
            os.replace(temporary, path)
            return
        if (seen is None or _take_away(path, seen)) and _link(temporary, path):
            return
    raise TimeoutError("another process keeps writing it")


def remove_fenced(path: str, ask: Callable[[], object]) -> None:
    """Removes a file. Raises FileNotFoundError if there is none."""
    for _ in range(_NUM_TRIES):
        seen = _identity(path)
        ask()
        if seen is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if _take_away(path, seen):
            return
    raise TimeoutError("another process keeps writing it")


def _take_away(path: str, seen: _Identity) -> bool:
    """Removes the file that was seen; False if another one is there now, which stays."""
    aside = str(Path(path).with_name(f".tmp-{secrets.token_hex(8)}"))
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    is_seen = _identity(aside) == seen
    if not is_seen:
        _link(aside, path)  # unless a third one is there by now
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)
    return is_seen


def _link(source: str, path: str) -> bool:
    """Gives a file another name; False if it is taken."""
    try:
        os.link(source, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):  # a file system without links: two steps have to do
            return False
        os.replace(source, path)
    return True


def _identity(path: str) -> _Identity | None:
    """None if there is no such file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
