"""Byte streams: their first bytes, parts of them, and what is compressed in them."""

import abc
import bz2
import contextlib
import io
import logging
import lzma
import os
import zlib
from collections.abc import Callable
from typing import IO, Any, cast

_log = logging.getLogger(__name__)

GZIP_MAGIC = b"\x1f\x8b"
# Raised by reading a damaged stream.
DAMAGED = (zlib.error, EOFError)
_BZIP2, _XZ = b"BZh", b"\xfd7zXZ\x00"
# Formats that are not read, by their first bytes, and what unpacks them.
_UNREAD = {
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d"),
    b"LZIP": ("lzip", "lzip -d"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"\xff\x06\x00\x00sNaPpY": ("snappy", "snzip -d"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!": ("rar", "unrar x"),
}
_HEAD_BYTES = max(map(len, _UNREAD))
_PIECE = 1 << 16  # bytes of a compressed file that are read at once
_XZ_MEMORY_BYTES = 256 << 20  # xz -9 needs 65 MB


def open_compressed(file: IO[bytes], uri: str) -> tuple[IO[bytes], bool]:
    """The content of a file that is or is not compressed, and whether it can seek.

    Raises ValueError for a compression that is not read; reading raises one of DAMAGED.
    """
    head, stream, is_seekable = peek(file, _HEAD_BYTES)
    if head.startswith(GZIP_MAGIC):
        return cast(IO[bytes], GzipStream(stream, uri)), False
    if head.startswith(_BZIP2):
        return cast(IO[bytes], _Unpacked(stream, uri, _BZIP2, bz2.BZ2Decompressor)), False
    if head.startswith(_XZ):
        return cast(IO[bytes], _Unpacked(stream, uri, _XZ, _new_xz)), False
    for magic, (name, command) in _UNREAD.items():
        if head.startswith(magic):
            raise ValueError(f"compressed with {name}, which is not read; unpack it: {command}")
    return stream, is_seekable


def part_of(file: IO[bytes], offset: int, size: int) -> IO[bytes]:
    """`size` bytes from `offset` of a file that can seek, as a file."""
    return io.BufferedReader(_Part(file, offset, size), _PIECE)


def _new_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)


def _warn_of_rest(uri: str, rest: bytes) -> None:
    _log.warning(
        "%s: bytes behind the end of its compressed content are passed over: %r", uri, rest[:16]
    )


def peek(file: IO[bytes], size: int) -> tuple[bytes, IO[bytes], bool]:
    """The next bytes, a stream that still begins with them, and whether it can seek."""
    head = file.read(size)
    try:
        # Some streams claim to be seekable and are not, e.g. fsspec's for plain HTTP.
        file.seek(-len(head), io.SEEK_CUR)
    except (OSError, ValueError):
        return head, cast(IO[bytes], _Rejoined(head, file)), False
    return head, file, True


class _Stream(io.RawIOBase, abc.ABC):
    """A stream that cannot seek, of what `_read` returns."""

    @abc.abstractmethod
    def _read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Rejoined(_Stream):
    """A stream whose first bytes have been read."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def _read(self, size: int) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        return data or self._rest.read(size)


class GzipStream(_Stream):
    """The content of a gzip file, up to the byte where it is damaged.

    tarfile's own reader checks no checksum and stops after the first of several members (RFC
    1952, 2.2); gzip.GzipFile drops up to a whole read of sound bytes before a damage.
    Other bytes behind the last member are passed over with a warning, as by gzip itself.
    Reading raises one of DAMAGED at a damage.
    """

    def __init__(self, file: IO[bytes], uri: str) -> None:
        self._file = file
        self._uri = uri
        self._inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._rest = b""  # compressed, not yet inflated
        self._error: zlib.error | EOFError | None = None
        self._last = b""  # content of the damaged piece before the damage

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
        if len(rest) == 1:
            rest += self._file.read(_PIECE)
        if rest and not rest.startswith(GZIP_MAGIC):
            _warn_of_rest(self._uri, rest)
            return False
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


class _Unpacked(_Stream):
    """The content of a bzip2 or xz file, which may be several streams, one after the other."""

    def __init__(self, file: IO[bytes], uri: str, magic: bytes, make: Callable[[], Any]) -> None:
        self._file, self._uri = file, uri
        self._magic, self._make = magic, make
        self._unpacker = make()

    def _read(self, size: int) -> bytes:
        packed = b""
        while True:
            if self._unpacker.eof:
                packed = self._unpacker.unused_data.lstrip(b"\0") or self._file.read(_PIECE)
                if not packed.startswith(self._magic):
                    if packed.strip(b"\0"):
                        _warn_of_rest(self._uri, packed)
                    return b""
                self._unpacker = self._make()
            elif self._unpacker.needs_input and not packed:
                packed = self._file.read(_PIECE)
                if not packed:
                    raise EOFError("the compressed stream is cut off")
            try:
                data: bytes = self._unpacker.decompress(packed, size)
            except (OSError, lzma.LZMAError) as error:  # it reads no file
                raise zlib.error(str(error)) from None
            if data:
                return data
            packed = b""


class _Part(io.RawIOBase):
    """A stretch of a file that can seek."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file = file
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        size = max(min(len(buffer), self._size - self._at), 0)
        self._file.seek(self._offset + self._at)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
