"""Byte streams: peeking at the first bytes, and inflating gzip up to a damage."""

import contextlib
import io
import zlib
from typing import IO, Any, cast

GZIP_MAGIC = b"\x1f\x8b"
# Raised by reading a damaged GzipStream.
GZIP_ERRORS = (zlib.error, EOFError)
_PIECE = 1 << 16  # bytes of a gzip file inflated at once


def peek(file: IO[bytes], size: int) -> tuple[bytes, IO[bytes], bool]:
    """The next bytes, a stream that still begins with them, and whether it can seek."""
    head = file.read(size)
    try:
        # Some streams claim to be seekable and are not, e.g. fsspec's for plain HTTP.
        file.seek(-len(head), io.SEEK_CUR)
    except (OSError, ValueError):
        return head, cast(IO[bytes], _Rejoined(head, file)), False
    return head, file, True


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes have been read."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = len(buffer)
        data, self._head = self._head[:size], self._head[size:]
        if not data:
            data = self._rest.read(size)
        buffer[: len(data)] = data
        return len(data)


class GzipStream(io.RawIOBase):
    """The content of a gzip file, up to the byte where it is damaged.

    tarfile's own reader checks no checksum and stops after the first of several members (RFC
    1952, 2.2); gzip.GzipFile drops up to a whole read of sound bytes before a damage.
    Reading raises one of GZIP_ERRORS at a damage.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._rest = b""  # compressed, not yet inflated
        self._error: zlib.error | EOFError | None = None
        self._last = b""  # content of the damaged piece before the damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def drain(self) -> None:
        """Reads to the end, which checks the checksum."""
        while self.read(_PIECE):
            pass

    def _read(self, size: int) -> bytes:
        while self._error is None:
            if self._inflater.eof and not self._next_member():
                return b""
            piece = self._rest or self._file.read(_PIECE)
            if not piece:
                self._error = EOFError("the gzip stream is cut off")
            elif content := self._inflate(piece, size):
                return content
        content, self._last = self._last[:size], self._last[size:]
        if not content:
            raise self._error
        return content

    def _next_member(self) -> bool:
        """Whether another gzip member follows; zeros after the last are padding."""
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
        # Again, byte by byte, up to the damage.
        sound = bytearray()
        with contextlib.suppress(zlib.error):
            for position in range(len(piece)):
                sound += before.decompress(piece[position : position + 1])
        self._last = bytes(sound)
        return b""
