"""Tars as streams: members in order, one at a time, and an error that says where a tar breaks."""

import logging
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Self, cast

from pipeline.errors import InfinegError
from pipeline.sources.readers.gzip import GZIP_ERRORS, GZIP_MAGIC, GzipStream, peek

_log = logging.getLogger(__name__)

# A photograph is a few MB; what is larger would only eat memory before it is rejected.
MAX_MEMBER_BYTES = 256 << 20

_BZIP2, _XZ = b"BZh", b"\xfd7zXZ\x00"
_READ_BYTES = 1 << 16  # at once; of gzip all that is sound before a damage comes, whatever this is


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive and drops the rest in silence."""

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
    """Name of each regular file of the tar that starts here, and its bytes where wanted.

    What is not wanted is passed over by seeking where the file can seek and is not compressed,
    else by reading; gz, bz2 and xz are seen by their first bytes. `is_wanted` is asked once for
    each name, in order. A member over MAX_MEMBER_BYTES comes as b"", so that it is counted.
    Raises InfinegError, after all that could be read, where the tar or its compression is broken.
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
                # Else the headers of all members stay in memory.
                archive.members.clear()
        if isinstance(stream, GzipStream):
            stream.drain()  # its checksums follow the tar's end
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
    """About how many images of `mean_bytes` a tar of `size` bytes holds.

    Compressed or not: images hardly shrink any more.
    """
    # A header, and on average half a block that is not filled.
    return None if size is None else size / (mean_bytes + 1.5 * tarfile.BLOCKSIZE)


def list_members(file: IO[bytes], uri: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each regular file; reads headers only, by seeking."""
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                if member.isreg():
                    yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise InfinegError(f"{uri}: broken tar: {error}") from None


def _open_stream(file: IO[bytes]) -> tuple[IO[bytes], str]:
    """What tarfile is to read, and in which mode."""
    head, stream, is_seekable = peek(file, len(_XZ))
    if head.startswith(GZIP_MAGIC):
        return cast(IO[bytes], GzipStream(stream)), "r|"
    if head.startswith((_BZIP2, _XZ)):
        return stream, "r|*"
    return stream, "r:" if is_seekable else "r|"
