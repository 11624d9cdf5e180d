"""Errors that the world outside causes, as messages: what was read, what was seen, what to do.

A file that cannot be opened, a broken table, text in another encoding: a user can act on these.
Anything else is a bug and keeps its traceback.
"""

import contextlib
import errno
from collections.abc import Iterator

from pipeline.errors import BadShard, InfinegError
from pipeline.storage.errors import first_line, names_of
from pipeline.storage.locations import redact

# By name: `infineg --help` must not wait for pyarrow.
_CONTENT = frozenset(
    {
        "builtins.EOFError",
        "builtins.UnicodeError",
        "_csv.Error",
        "_lzma.LZMAError",
        "json.decoder.JSONDecodeError",
        "pyarrow.lib.ArrowException",
        "safetensors_rust.SafetensorError",
        "tarfile.TarError",
        "zipfile.BadZipFile",
        "zlib.error",
    }
)
_AGAIN = "then run the same command again (a training with --resume): it continues"
_REMEDIES = {
    errno.ENOSPC: f"free some space, {_AGAIN}",
    errno.EDQUOT: f"free some space, {_AGAIN}",
    errno.EFBIG: f"allow larger files (ulimit -f), {_AGAIN}",
    errno.EMFILE: f"allow more open files (ulimit -n), {_AGAIN}",
    errno.ENFILE: f"end other processes, {_AGAIN}",
    errno.EACCES: "check its owner and mode",
    errno.EPERM: "check its owner and mode",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of this path is a file; a folder is wanted",
    errno.EISDIR: "it is a folder; a file is wanted",
    errno.EEXIST: "choose another place, or remove it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads to itself: remove it",
}
_DEBUG = "`infineg --debug COMMAND` shows where"


def as_failure(error: BaseException) -> InfinegError | None:
    """The failure that an error stands for; None for a bug."""
    if isinstance(error, InfinegError):
        return error
    if isinstance(error, OSError):
        place = error.filename if error.filename2 is None else error.filename2  # of a rename
        name = "" if place is None else f"{redact(_text(place))}: "
        if not name and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            name = "the output, or a temporary file: "
        reason = redact(error.strerror) if error.strerror else first_line(error)
        remedy = _REMEDIES.get(error.errno or 0, _DEBUG)
        return InfinegError(f"{name}{reason or type(error).__name__}; {remedy}")
    if _CONTENT.isdisjoint(names_of(error)):
        return None
    return InfinegError(f"something that was read is broken: {_seen(error)}; {_DEBUG}")


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Raises BadShard with the name of the file for what its content causes in this block."""
    try:
        yield
    except Exception as error:
        if _CONTENT.isdisjoint(names_of(error)):
            raise
        raise BadShard(
            f"{redact(uri)}: broken: {_seen(error)}; replace it by an intact copy, or make it anew"
        ) from None


def _text(name: object) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def _seen(error: BaseException) -> str:
    if isinstance(error, UnicodeError):
        return "not UTF-8" if isinstance(error, UnicodeDecodeError) else first_line(error)
    return first_line(error) or type(error).__name__
