"""Tars as streams: members in order, one at a time, and an error that says where a tar breaks."""

import contextlib
import io
import logging
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Self, cast

from pipeline.errors import InfinegError

_log = logging.getLogger(__name__)

# A photograph is a few MB; what is larger would only eat memory before it is rejected.
MAX_MEMBER_BYTES = 256 << 20

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_PIECE = 1 << 16  # bytes of a gzip file inflated at once


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
            fileobj=stream, mode=mode, bufsize=_PIECE, tarinfo=_StrictTarInfo
        ) as archive:
            while (member := archive.next()) is not None:
                where = f"at {member.name!r}, byte {member.offset}"
                if member.isreg():
                    yield member.name, _content(archive, member, uri, is_wanted)
                where = f"after {member.name!r}, byte {member.offset_data + member.size}"
                # Else the headers of all members stay in memory.
                archive.members.clear()
        if isinstance(stream, _GzipStream):
            stream.drain()  # its checksums follow the tar's end
    except (tarfile.TarError, zlib.error, EOFError) as error:
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


def _open_stream(file: IO[bytes]) -> tuple[IO[bytes], str]:
    """What tarfile is to read, and in which mode."""
    head = file.read(len(_XZ))
    try:
        # Some streams claim to be seekable and are not.
        file.seek(-len(head), io.SEEK_CUR)
        is_seekable, stream = True, file
    except (OSError, ValueError):
        is_seekable, stream = False, cast(IO[bytes], _Rejoined(head, file))
    if head.startswith(_GZIP):
        return cast(IO[bytes], _GzipStream(stream)), "r|"
    if head.startswith((_BZIP2, _XZ)):
        return stream, "r|*"
    return stream, "r:" if is_seekable else "r|"


class _Rejoined:
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head or self._rest.read(size)


class _GzipStream:
    """What a gzip file holds, up to the very byte where it is damaged.

    tarfile's own reader checks no checksum and stops after the first of several members, and
    gzip.GzipFile drops up to a whole read of sound bytes before the damage.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._rest = b""  # compressed, not inflated yet
        self._error: zlib.error | EOFError | None = None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end; raises zlib.error or EOFError where it is damaged."""
        while self._error is None:
            if self._inflater.eof and not self._next_member():
                return b""
            piece = self._rest or self._file.read(_PIECE)
            if not piece:
                self._error = EOFError("the gzip stream is cut off")
            elif content := self._inflate(piece, size):
                return content
        raise self._error

    def drain(self) -> None:
        """Reads to the end, so that the checksum is compared."""
        while self.read(_PIECE):
            pass

    def _next_member(self) -> bool:
        """Whether another gzip member follows; zeros after the last are padding (RFC 1952)."""
        rest = self._inflater.unused_data.lstrip(b"\0")
        while not rest and (piece := self._file.read(_PIECE)):
            rest = piece.lstrip(b"\0")
        if rest:
            self._inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            self._rest = rest
        return bool(rest)

    def _inflate(self, piece: bytes, size: int) -> bytes:
        before = self._inflater.copy()
        try:
            content = self._inflater.decompress(piece, size)
            self._rest = self._inflater.unconsumed_tail
            return content
        except zlib.error as error:
            self._error = error
        # Once more, byte by byte: what the damaged piece holds before the damage.
        whole = bytearray()
        with contextlib.suppress(zlib.error):
            for position in range(len(piece)):
                whole += before.decompress(piece[position : position + 1])
        return bytes(whole)
