"""Tars as streams: members in order, one at a time, and an error that says where a tar breaks."""

import logging
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Self

from pipeline.errors import InfinegError

_log = logging.getLogger(__name__)

# A photograph is a few MB; what is larger would only eat memory before it is rejected.
MAX_MEMBER_BYTES = 256 << 20


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

    Never seeks; gz, bz2 and xz are seen by their first bytes. A member over MAX_MEMBER_BYTES comes
    as b"", so that it is counted. Raises InfinegError, after all that could be read, where the
    tar is broken.
    """
    where = "at its start"
    try:
        with tarfile.open(
            fileobj=file, mode="r|*", bufsize=1 << 20, tarinfo=_StrictTarInfo
        ) as archive:
            while (member := archive.next()) is not None:
                where = f"at {member.name!r}, byte {member.offset}"
                if member.isreg():
                    yield member.name, _content(archive, member, uri, is_wanted)
                where = f"after {member.name!r}, byte {member.offset_data + member.size}"
                # Else the headers of all members stay in memory.
                archive.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it
    except tarfile.TarError as error:
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


def list_members(file: IO[bytes], uri: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each regular file; reads headers only, by seeking."""
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                if member.isreg():
                    yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise InfinegError(f"{uri}: broken tar: {error}") from None
