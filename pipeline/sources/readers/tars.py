"""Reads tars as streams: one member at a time, with errors that say where a tar is broken."""

import logging
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Self, cast

from pipeline.errors import InfinegError
from pipeline.sources.readers.gzip import GZIP_ERRORS, GZIP_MAGIC, GzipStream, peek

_log = logging.getLogger(__name__)

# A photograph is a few MB; larger files would only take memory before they are rejected.
MAX_MEMBER_BYTES = 256 << 20

_BZIP2, _XZ = b"BZh", b"\xfd7zXZ\x00"
_READ_BYTES = 1 << 16  # at once


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive and silently drops the rest."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ in ("TruncatedHeaderError", "InvalidHeaderError"):
                raise tarfile.ReadError(str(error)) from None
            raise


def read_members(
    file: IO[bytes], uri: str, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes | None]]:
    """Name of each regular file of the tar that starts here, and its bytes if wanted.

    Other members are skipped by seeking if the file can seek and is not compressed, else by
    reading; gz, bz2 and xz are detected by their first bytes. `is_wanted` is called once per name,
    in order. A member over MAX_MEMBER_BYTES is b"", so that it is counted. Raises InfinegError,
    after all readable members, if the tar or its compression is broken.
    """
    where = "at its start"
    try:
        stream, mode = _open_stream(file)
        with tarfile.open(  # type: ignore[call-overload]  # mode is one of those it knows
            fileobj=stream, mode=mode, bufsize=_READ_BYTES, tarinfo=_StrictTarInfo
        ) as archive:
            while (member := archive.next()) is not None:
                where = f"at {member.name!r}, byte {member.offset}"
                if member.isreg():
                    yield member.name, _content(archive, member, uri, is_wanted)
                where = f"after {member.name!r}, byte {member.offset_data + member.size}"
                # Otherwise the headers of all members stay in memory.
                archive.members.clear()
        if isinstance(stream, GzipStream):
            stream.drain()  # its checksums come after the end of the tar
    except (tarfile.TarError, *GZIP_ERRORS) as error:
        raise InfinegError(f"{uri}: broken tar {where}: {error}") from None


def _content(
    archive: tarfile.TarFile, member: tarfile.TarInfo, uri: str, is_wanted: Callable[[str], bool]
) -> bytes | None:
    if not is_wanted(member.name):
        return None
    if member.size > MAX_MEMBER_BYTES:
        _log.warning("%s#%s: %d bytes, not read", uri, member.name, member.size)
        return b""
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    return content.read()


def estimate_members(size: int | None, mean_bytes: float) -> float | None:
    """Estimated number of images of `mean_bytes` in a tar of `size` bytes, compressed or not."""
    # A header, and on average half a block of padding.
    return None if size is None else size / (mean_bytes + 1.5 * tarfile.BLOCKSIZE)


def list_members(file: IO[bytes], uri: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each regular file; seeks from header to header."""
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                if member.isreg():
                    yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise InfinegError(f"{uri}: broken tar: {error}") from None


def _open_stream(file: IO[bytes]) -> tuple[IO[bytes], str]:
    """The stream and the mode for tarfile."""
    head, stream, is_seekable = peek(file, len(_XZ))
    if head.startswith(GZIP_MAGIC):
        return cast(IO[bytes], GzipStream(stream)), "r|"
    if head.startswith((_BZIP2, _XZ)):
        return stream, "r|*"
    return stream, "r:" if is_seekable else "r|"
