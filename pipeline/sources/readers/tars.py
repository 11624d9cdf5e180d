"""Reads tars as streams: one member at a time, with errors that say where a tar is broken."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from pipeline import storage
from pipeline.errors import InfinegError
from pipeline.sources.readers.compression import DAMAGED, open_compressed
from pipeline.sources.readers.folders import tell_once
from pipeline.sources.readers.tar_headers import (
    BLOCK_BYTES,
    BrokenTar,
    Header,
    TarStream,
    read_headers,
)
from pipeline.sources.readers.tar_links import MemberIndex, linked_name

_log = logging.getLogger(__name__)

# A photograph is a few MB; larger files would only take memory before they are rejected.
MAX_MEMBER_BYTES = 256 << 20
_MAX_PADDING_BYTES = 1 << 20  # zeros behind the last member; tar writes up to 10 kB
# What is remembered of a tar that cannot seek, for links to it: many labels and some images.
_SMALL_BYTES = 4096
_MAX_SMALL_BYTES, _MAX_LARGE_BYTES = 16 << 20, 64 << 20


class TarMember(NamedTuple):
    """A file of a tar or a link to one; `content` is None if it was not wanted.

    It is b"" if it `is_lost`: too large, sparse, or a link to what is not in the tar.
    """

    name: str
    content: bytes | None
    is_lost: bool = False


def read_members(
    file: IO[bytes], uri: str, is_wanted: Callable[[str], bool]
) -> Iterator[TarMember]:
    """Each file of the tar that starts here, with its bytes if wanted; links have their target's.

    Other members are skipped by seeking if the file can seek and is not compressed, else by
    reading; gz, bz2 and xz are detected by their first bytes. `is_wanted` is called once per name,
    in order. Raises InfinegError, after all readable members, if the tar or its compression is
    broken.
    """
    where, end = "at its start", 0
    try:
        tar = _open_tar(file, uri)
        contents = _Contents(tar, uri)
        for header in read_headers(tar):
            where = f"at {storage.escape(header.name)!r}, byte {header.offset}"
            if header.kind != "other":
                yield contents.member(header, is_wanted(header.name))
            end = header.content_at + header.size
            where = f"after {storage.escape(header.name)!r}, byte {end}"
        if end == 0 or tar.at - end > _MAX_PADDING_BYTES:
            tell_once(
                f"{storage.redact(uri)}: only zeros {where}, {tar.at - end:,} bytes; a file that "
                "was not written to its end looks like that"
            )
    except (BrokenTar, *DAMAGED) as error:
        raise InfinegError(f"{storage.redact(uri)}: broken tar {where}: {error}") from None


def list_members(file: IO[bytes], uri: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each file; seeks from header to header.

    A link has offset and size of its target; a link to nothing has size 0.
    """
    try:
        tar = _open_tar(file, uri)
        if not tar.is_seekable:
            raise InfinegError(f"{uri}: compressed, but read in pieces; unpack it first")
        index: MemberIndex | None = None
        for header in read_headers(tar):
            if header.kind == "file":
                yield header.name, header.content_at, header.size
            elif header.kind != "other":
                index = index or MemberIndex(tar)
                found = index.find(header)
                yield header.name, *(found or (header.content_at, 0))
    except BrokenTar as error:
        raise InfinegError(f"{uri}: broken tar: {error}") from None


def list_names(file: IO[bytes], uri: str) -> Iterator[str]:
    """Names of files and links, without their content."""
    return (member.name for member in read_members(file, uri, lambda _: False))


def estimate_members(size: int | None, mean_bytes: float) -> float | None:
    """Estimated number of images of `mean_bytes` in a tar of `size` bytes, compressed or not."""
    # A header, and on average half a block of padding.
    return None if size is None else size / (mean_bytes + 1.5 * BLOCK_BYTES)


def _open_tar(file: IO[bytes], uri: str) -> TarStream:
    try:
        stream, is_seekable = open_compressed(file, uri)
    except ValueError as error:
        raise InfinegError(f"{storage.redact(uri)}: {error}") from None
    return TarStream(stream, is_seekable=is_seekable)


class _Contents:
    """Contents of members, those of links included."""

    def __init__(self, tar: TarStream, uri: str) -> None:
        self._tar = tar
        self._uri = uri
        self._index: MemberIndex | None = None
        self._small = _Recent(_MAX_SMALL_BYTES)
        self._large = _Recent(_MAX_LARGE_BYTES)

    def member(self, header: Header, is_wanted: bool) -> TarMember:
        if header.kind == "file" and header.size <= MAX_MEMBER_BYTES:
            # Where there is no way back, a link may ask for it later.
            if not is_wanted and (self._tar.is_seekable or header.size > _MAX_LARGE_BYTES):
                return TarMember(header.name, None)
            content = self._tar.read_all(header.size)
            self._remember(header, content)
            return TarMember(header.name, content if is_wanted else None)
        if not is_wanted:
            return TarMember(header.name, None)
        linked = self._linked(header) if header.kind.endswith("link") else None
        if linked is None:
            self._warn(header)
        return TarMember(header.name, linked or b"", is_lost=linked is None)

    def _remember(self, header: Header, content: bytes) -> None:
        if not self._tar.is_seekable:
            (self._small if header.size <= _SMALL_BYTES else self._large).add(
                linked_name(header), content
            )

    def _linked(self, header: Header) -> bytes | None:
        """Content of a link's target; None if it is not there, or too large."""
        if not self._tar.is_seekable:
            name = linked_name(header)
            content = self._small.get(name)
            content = self._large.get(name) if content is None else content
            if content is not None:  # a link to this link is found, too
                self._remember(header._replace(kind="file", size=len(content)), content)
            return content
        self._index = self._index or MemberIndex(self._tar)
        found = self._index.find(header)
        if found is None or found[1] > MAX_MEMBER_BYTES:
            return None
        here = self._tar.at
        self._tar.seek(found[0])
        content = self._tar.read_all(found[1])
        self._tar.seek(here)
        return content

    def _warn(self, header: Header) -> None:
        reason = {
            "file": f"{header.size:,} bytes, more than {MAX_MEMBER_BYTES:,}",
            "sparse": "a sparse file",
        }.get(header.kind, f"a {header.kind} to {storage.escape(header.target)!r}, which was not "
                           "found in the tar")  # fmt: skip
        _log.warning("%s: %s, not read", storage.redact(f"{self._uri}#{header.name}"), reason)


class _Recent:
    """Contents by name, the latest of them, in bounded memory."""

    def __init__(self, max_bytes: int) -> None:
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self._max_bytes = self._room = max_bytes

    def add(self, name: str, content: bytes) -> None:
        self._room += len(self._contents.pop(name, b""))
        self._contents[name] = content
        self._room -= len(content)
        while self._room < 0:
            self._room += len(self._contents.popitem(last=False)[1])

    def get(self, name: str) -> bytes | None:
        return self._contents.get(name)
