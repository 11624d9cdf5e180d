"""Streams that reconnect after a lost connection and continue where they were."""

import asyncio
import io
import os
import time
from collections.abc import Awaitable, Callable
from typing import IO, Any, TypeVar

from fsspec.asyn import sync

from pipeline.errors import InfinegError, TransientStorageError
from pipeline.storage.public import PrivateAddress
from pipeline.storage.retry import retry

# Cheaper to read and discard than a new request.
_MAX_SKIP_BYTES = 2**20
_PIECE_BYTES = 2**20
# A server that sends less in this time, spent waiting, counts as one that does not answer.
_SLOW_S, _SLOW_BYTES = 60.0, 2**16

T = TypeVar("T")


def read_http_range(
    fs: Any, url: str, what: str, *, offset: int, size: int, deadline_s: float | None = None
) -> bytes:
    """`size` bytes from `offset`, also from a server without ranges.

    Raises InfinegError if they are not there after `deadline_s`, all tries together.
    """
    data = bytearray()
    with HttpBody(fs, url, what, start=offset, end=offset + size, deadline_s=deadline_s) as body:
        while piece := body.read(min(_PIECE_BYTES, size - len(data))):
            data += piece
    return bytes(data)


class ResumedFile(io.RawIOBase):
    """A file of fsspec whose reads go through `retry`.

    The driver's file stays open: if the storage has versions, it keeps reading its own.
    """

    def __init__(self, fs: Any, path: str, what: str) -> None:
        super().__init__()
        self._what = what
        self._at = 0
        self._file: IO[bytes] = retry(lambda: fs.open(path, "rb"), what)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = self._at + offset, os.SEEK_SET
        self._at = self._file.seek(offset, whence)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = retry(lambda: self._read(len(buffer)), self._what)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        self._file.seek(self._at)
        return self._file.read(size)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class HttpBody(io.RawIOBase):
    """Bytes `start` to `end` of the body of one GET; seekable where the server offers ranges.

    After a lost connection continues with a range (RFC 9110, section 14.2) of the same version;
    a server without ranges sends all again, and what was read is skipped.
    """

    def __init__(
        self,
        fs: Any,
        url: str,
        what: str,
        *,
        start: int = 0,
        end: int | None = None,
        deadline_s: float | None = None,
    ) -> None:
        super().__init__()
        self._deadline_s = deadline_s
        self._began = time.monotonic()
        self._waited_s, self._num_waited_for = 0.0, 0  # for bytes of the body, and how many came
        self._fs, self._url, self._what = fs, url, what
        self._at, self._end = start, end
        self._response: Any = None
        self._body_at = 0  # of the response
        self._size: int | None = None
        self._version: str | None = None
        self._has_ranges = True  # until a response shows that it has none
        retry(self._connect, what)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._has_ranges and self._size is not None

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if not self.seekable():
            raise io.UnsupportedOperation("the server offers no ranges")
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size or 0}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = len(buffer) if self._end is None else min(len(buffer), self._end - self._at)
        data = retry(lambda: self._read(size), self._what) if size > 0 else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        if self._size is not None and self._at >= self._size:
            return b""
        try:
            if self._response is None or not 0 <= self._at - self._body_at <= _MAX_SKIP_BYTES:
                self._connect()
            began = time.monotonic()
            data = self._wait_for(lambda: self._skip_and_read(size))
            self._refuse_slow(time.monotonic() - began, len(data))
        except Exception:
            self._disconnect()
            raise
        return data

    async def _skip_and_read(self, size: int) -> bytes:
        while self._body_at < self._at:
            skipped = await self._response.content.read(min(self._at - self._body_at, 2**20))
            if not skipped:
                return b""
            self._body_at += len(skipped)
        data: bytes = await self._response.content.read(size)
        self._body_at += len(data)
        return data

    def _connect(self) -> None:
        self._disconnect()
        self._response = self._wait_for(self._request)
        try:
            self._take_headers(self._response)
        except Exception:
            self._disconnect()
            raise

    def _wait_for(self, action: Callable[[], Awaitable[T]]) -> T:
        """Runs `action` on the loop of the driver, up to the deadline."""
        ends = None if self._deadline_s is None else self._began + self._deadline_s

        async def run() -> T:
            left = None if ends is None else max(ends - time.monotonic(), 0)
            return await asyncio.wait_for(action(), left)

        try:
            result: T = sync(self._fs.loop, run)
        except TimeoutError:
            if ends is None or time.monotonic() < ends:
                raise
            raise InfinegError(f"{self._what}: not complete after {self._deadline_s:g} s") from None
        return result

    def _refuse_slow(self, seconds: float, num_bytes: int) -> None:
        self._waited_s += seconds
        self._num_waited_for += num_bytes
        if self._waited_s < _SLOW_S:
            return
        if self._num_waited_for < _SLOW_BYTES:
            raise TransientStorageError(
                f"{self._what}: only {self._num_waited_for:,} bytes in {self._waited_s:.0f} s"
            )
        self._waited_s, self._num_waited_for = 0.0, 0

    async def _request(self) -> Any:
        session = await self._fs.set_session()
        # Offsets into a compressed body would mean something else.
        headers = {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if self._has_ranges:
            headers["Range"] = f"bytes={self._at}-{'' if self._end is None else self._end - 1}"
        url, options = self._fs.encode_url(self._url), {**self._fs.kwargs, "headers": headers}
        try:
            return await session.get(url, **options)
        except PrivateAddress as error:
            raise PrivateAddress(f"{self._what}: {error}") from None

    def _take_headers(self, response: Any) -> None:
        """Takes position, size, version and support of ranges from a response."""
        if response.status == 404:
            raise FileNotFoundError(self._url)
        if response.status == 416:  # an empty file, or its end
            self._size = self._at
            return
        response.raise_for_status()
        headers = response.headers
        version = headers.get("ETag") or headers.get("Last-Modified")
        if self._version not in (None, version):
            raise InfinegError(f"{self._what}: it was changed while it was read; run again")
        self._version = version
        is_plain = headers.get("Content-Encoding", "identity") == "identity"
        if response.status == 206 and is_plain:
            given = headers.get("Content-Range", f"bytes {self._at}-/*").removeprefix("bytes ")
            first, _, total = given.partition("/")
            self._body_at = int(first.partition("-")[0])
            self._size = int(total) if total.isdigit() else None
        else:
            self._has_ranges = False
            self._body_at = 0
            length = headers.get("Content-Length")
            self._size = int(length) if length and is_plain else None

    def _disconnect(self) -> None:
        if self._response is not None:
            self._fs.loop.call_soon_threadsafe(self._response.close)
            self._response = None

    def close(self) -> None:
        if not self.closed:
            self._disconnect()
        super().close()
